"""Options of DHCPv4 and DHCPv6 that a port may be given: names, codes, what a value looks like, and how dnsmasq is told it.

The names are those of `dnsmasq --help dhcp` and `--help dhcp6`. One value that dnsmasq cannot read keeps it from starting,
for all ports of the network; so what is accepted here is what it accepts (tests/component/test_dhcp_options.py asks it).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType

from controlplane.values import Invalid, dns_name, prefix, quoted

MOST = 255  # bytes of a value: the length of an option of DHCPv4 is one byte
LONGEST_NAME = 253
VENDOR = 43  # vendor-specific information: options within the option

_BYTES = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2})+")


@dataclass(frozen=True, slots=True)
class Option:
    """A DHCP option. form checks a value and returns it as dnsmasq's configuration has it."""

    code: int
    name: str
    form: Callable[[str], str]


def _text(value: str) -> str:
    """In quotes, so that commas, blanks and # stand for themselves."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _addresses(value: str) -> str:
    for word in value.split(","):
        try:
            IPv4Address(word)
        except ValueError:
            raise Invalid("STRING_INVALID", f"{quoted(word)} is no IPv4 address; for example 10.0.0.3,10.0.0.4") from None
    return value


def _addresses6(value: str) -> str:
    """In brackets: dnsmasq takes what has none for bytes."""
    found = []
    for word in value.split(","):
        try:
            found.append(f"[{IPv6Address(word)}]")
        except ValueError:
            raise Invalid("STRING_INVALID", f"{quoted(word)} is no IPv6 address; for example fd00::3,fd00::4") from None
    return ",".join(found)


def _names(value: str) -> str:
    names = [dns_name(word) for word in value.split(",")]
    size = sum(len(name) + 2 for name in names)  # RFC 1035: a length before each label, and a zero
    if size > MOST or any(len(name) > LONGEST_NAME for name in names):
        raise Invalid("STRING_INVALID", f"these names take {size} bytes; {MOST} fit, and {LONGEST_NAME} letters of one name")
    return ",".join(names)


def _servers(value: str) -> str:
    return _names(value) if any(letter.isalpha() for letter in value) else _addresses(value)


def _routes(value: str) -> str:
    words = value.split(",")
    if len(words) % 2:
        raise Invalid("STRING_INVALID", f"{quoted(value)} is not PREFIX,ROUTER,…; for example 192.0.2.0/24,10.0.0.7")
    for destination, router in zip(words[::2], words[1::2], strict=True):
        if prefix(destination).version != 4:
            raise Invalid("STRING_INVALID", f"{quoted(destination)} is no IPv4 prefix")
        _addresses(router)
    return value


def _number(size: int) -> Callable[[str], str]:
    most = (1 << 8 * size) - 1

    def form(value: str) -> str:
        if not (value.isascii() and value.isdecimal() and int(value) <= most):
            raise Invalid("STRING_INVALID", f"{quoted(value)} is no number of 0 to {most}")
        return str(int(value))

    return form


def _offset(value: str) -> str:
    """Seconds east of Greenwich."""
    if value.startswith("-"):
        return "-" + _number(3)(value[1:])
    return _number(3)(value)


def _free(value: str) -> str:
    """dnsmasq takes it for addresses, a number or bytes (aa:bb) when it looks like that, else for text."""
    if set(value) <= set("0123456789.,/"):
        return _addresses(value) if "." in value or "," in value else _number(4)(value)
    return _bytes_or_text(value)


def _bytes_or_text(value: str) -> str:
    """Bytes (aa:bb) where it looks like that, else text."""
    return value if _BYTES.fullmatch(value) else _text(value)


def _bytes(value: str) -> str:
    if not _BYTES.fullmatch(value):
        raise Invalid("STRING_INVALID", f"{quoted(value)} is not bytes such as 01:04:0a:00:00:03")
    return value


def _table(forms: Mapping[Callable[[str], str], str]) -> Mapping[int, Option]:
    listed = ((form, entry.split()) for form, entries in forms.items() for entry in entries.split(","))
    return MappingProxyType({int(code): Option(int(code), name, form) for form, (code, name) in listed})


@dataclass(frozen=True, slots=True)
class Family:
    """The options of one protocol. named, numbered: how dnsmasq begins the name or code of one. last: the largest code.

    refused: codes that are the protocol's own or follow from other fields, with what to do instead. form: that of a code which
    has no name.
    """

    title: str
    named: str
    numbered: str
    last: int
    by_code: Mapping[int, Option]
    refused: Mapping[int, str]
    form: Callable[[int], Callable[[str], str]]
    by_name: Mapping[str, Option] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", MappingProxyType({option.name: option for option in self.by_code.values()}))

    def find(self, name: str) -> Option:
        """The option of a name or code. Raises Invalid with the names that are close, or all."""
        if name.isascii() and name.isdecimal():
            code = int(name) if len(name) < 10 else 0  # of 4,300 digits Python makes no number
            if not 1 <= code <= self.last:
                raise Invalid("STRING_INVALID", f"{quoted(name)} is no code of an option; 1 to {self.last} is accepted")
            found = self.by_code.get(code) or Option(code, name, self.form(code))
        else:
            known = self.by_name.get(name)
            if known is None:
                close = [each for each in self.by_name if name and name in each]
                close = close or difflib.get_close_matches(name, self.by_name)
                all_names = f"a code or one of {', '.join(self.by_name)} is accepted"
                accepted = f"did you mean {' or '.join(close)}?" if close else all_names
                raise Invalid("STRING_INVALID", f"{quoted(name)} is no {self.title} option: {accepted}")
            found = known
        if found.code in self.refused:
            raise Invalid("STRING_INVALID", f"option {name} cannot be set: {self.refused[found.code]}")
        return found

    def written(self, name: str, value: str) -> str:
        """`OPTION[,VALUE]` as dnsmasq's dhcp-option has it. Raises Invalid; an empty value keeps the option from being sent."""
        option = self.find(name)
        if len(value.encode()) > MOST:
            text = f"option {name}: the value has {len(value.encode())} bytes; at most {MOST} are sent"
            raise Invalid("STRING_TOO_LONG", text)
        what = self.named + option.name if option.code in self.by_code else f"{self.numbered}{option.code}"
        if not value:
            return what
        try:
            return f"{what},{option.form(value)}"
        except Invalid as error:
            raise Invalid("STRING_INVALID", f"option {name}: {error.message}") from None


V4 = Family(
    title="DHCPv4",
    named="option:",
    numbered="",
    last=254,
    by_code=_table(
        {
            # The last is no option but the field `siaddr`: dnsmasq gives it this number.
            _addresses: "1 netmask, 3 router, 6 dns-server, 7 log-server, 9 lpr-server, 16 swap-server, 21 policy-filter,"
            " 32 router-solicitation, 33 static-route, 41 nis-server, 42 ntp-server, 44 netbios-ns, 45 netbios-dd,"
            " 48 x-windows-fs, 49 x-windows-dm, 65 nis+-server, 68 mobile-ip-home, 69 smtp-server, 70 pop3-server,"
            " 71 nntp-server, 74 irc-server, 150 tftp-server-address, 255 server-ip-address",
            _text: "15 domain-name, 17 root-path, 18 extension-path, 40 nis-domain, 64 nis+-domain, 66 tftp-server,"
            " 67 bootfile-name, 100 posix-timezone, 101 tzdb-timezone",
            _names: "119 domain-search",
            _routes: "121 classless-static-route",
            _offset: "2 time-offset",
            _number(1): "19 ip-forward-enable, 20 non-local-source-routing, 23 default-ttl, 27 all-subnets-local,"
            " 31 router-discovery, 34 trailer-encapsulation, 36 ethernet-encap, 37 tcp-ttl, 46 netbios-nodetype",
            _number(2): "13 boot-file-size, 22 max-datagram-reassembly, 26 mtu, 93 client-arch",
            _number(4): "35 arp-timeout, 38 tcp-keepalive, 58 T1, 59 T2, 108 ipv6-only",
            _free: "47 netbios-scope, 60 vendor-class, 77 user-class, 80 rapid-commit, 94 client-interface-id,"
            " 97 client-machine-id, 125 vendor-id-encap",
            _servers: "120 sip-server",
        }
    ),
    refused=MappingProxyType(
        {
            12: "dns_name of the port says it",
            28: "it follows from cidr of the subnet",
            50: "the address is that of fixed_ips",
            51: "dhcp_lease_duration of the subnet says it",
            **dict.fromkeys((52, 53, 54, 55, 56, 57, 61, 82, 118), "it is the protocol's own"),
            81: "dns_name and dns_domain of the port say it",
        }
    ),
    form=lambda code: _bytes if code == VENDOR else _free,
)
# RFC 8415, section 21.
V6 = Family(
    title="DHCPv6",
    named="option6:",
    numbered="option6:",
    last=65535,
    by_code=_table(
        {
            _addresses6: "22 sip-server, 23 dns-server, 27 nis-server, 28 nis+-server, 31 sntp-server, 56 ntp-server",
            _names: "21 sip-server-domain, 24 domain-search, 29 nis-domain, 30 nis+-domain",
            _number(4): "32 information-refresh-time",
            _text: "41 posix-timezone, 42 tzdb-timezone, 59 bootfile-url, 60 bootfile-param",
        }
    ),
    refused=MappingProxyType(
        {
            **dict.fromkeys((1, 2, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20), "it is the protocol's own"),
            **dict.fromkeys((3, 4, 5, 25, 26), "addresses are those of fixed_ips"),
            39: "dns_name and dns_domain of the port say it",
        }
    ),
    form=lambda code: _bytes_or_text,
)


def family(version: int) -> Family:
    """That of an IP version; V4 where none is stated."""
    return V6 if version == 6 else V4
