"""Values of extra_dhcp_opts: what is refused and with what hint (test_api_rows.py), what is accepted (test_dhcp_options.py)."""

from __future__ import annotations

from typing import Any

from tests.component.rows import Edge, Row

# (name or code, value), of every form and from edge to edge.
ACCEPTED = (
    ("router", "10.0.0.9"),
    ("ntp-server", "10.0.0.3,10.0.0.4"),
    ("netmask", "255.255.0.0"),
    ("42", "10.0.0.3"),
    ("router", ""),
    ("200", ""),
    ("mtu", "0"),
    ("mtu", "65535"),
    ("tcp-ttl", "255"),
    ("T1", "4294967295"),
    ("time-offset", "-18000"),
    ("time-offset", "3600"),
    ("bootfile-name", "pxelinux.0"),
    ("bootfile-name", 'boot\\x64\\wdsnbp.com, "x" #1'),
    ("bootfile-name", "1.2.3"),
    ("bootfile-name", "x" * 127),
    ("66", "10.0.0.9"),
    ("server-ip-address", "10.0.0.9"),
    ("150", "10.0.0.9"),
    ("domain-search", "a.org,b.example"),
    ("domain-name", "a.org"),
    ("classless-static-route", "192.0.2.0/24,10.0.0.7,0.0.0.0/0,10.0.0.1"),
    ("posix-timezone", "CET-1CEST,M3.5.0,M10.5.0/3"),
    ("vendor-class", "PXEClient"),
    ("sip-server", "10.0.0.9"),
    ("rapid-commit", ""),
    ("224", "hello, world"),
    ("224", "4294967295"),
    ("224", "10.0.0.1,10.0.0.2"),
    ("224", "01:02:ff"),
    ("43", "01:04:aa"),
    ("252", "http://wpad/wpad.dat"),
    ("254", "ü # 'x' \\"),
    ("1", "255.255.255.0"),
)

ACCEPTED6 = (
    ("dns-server", "fd00::53,2001:db8::53"),
    ("23", "fd00::53"),
    ("sntp-server", "fd00::3"),
    ("ntp-server", "fd00::3"),
    ("dns-server", ""),
    ("domain-search", "a.org,b.example"),
    ("sip-server-domain", "sip.example"),
    ("information-refresh-time", "600"),
    ("posix-timezone", "CET-1CEST,M3.5.0,M10.5.0/3"),
    ("bootfile-url", "tftp://[fd00::3]/x, #1"),
    ("bootfile-param", "console=ttyS0"),
    ("224", "hello, world"),
    ("224", "01:02:ff"),
    ("65535", "x"),
)

# (name or code, value, field, what the message says)
WRONG6 = (
    ("router", "fd00::1", "name", "is no DHCPv6 option: a code or one of sip-server, dns-server"),
    ("ntp", "fd00::3", "name", "did you mean"),
    ("65536", "x", "name", "1 to 65535"),
    ("3", "x", "name", "fixed_ips"),
    ("2", "x", "name", "the protocol's own"),
    ("dns-server", "10.0.0.3", "value", "no IPv6 address; for example"),
    ("dns-server", "fd00::53,", "value", "no IPv6 address"),
    ("domain-search", "a..b", "value", "RFC 1123"),
    ("information-refresh-time", "4294967296", "value", "0 to 4294967295"),
)
WRONG = (
    ("ntp", "10.0.0.3", "name", "did you mean ntp-server or"),
    ("bootfile", "x", "name", "did you mean bootfile-name?"),
    ("nothing-like-it", "v", "name", "a code or one of netmask, router, dns-server"),
    ("0", "v", "name", "1 to 254"),
    ("255", "10.0.0.1", "name", "1 to 254"),
    ("53", "1", "name", "the protocol's own"),
    ("51", "3600", "name", "dhcp_lease_duration"),
    ("12", "web", "name", "dns_name"),
    ("router", "10.0.0", "value", "no IPv4 address; for example"),
    ("router", "fd00::1", "value", "no IPv4 address"),
    ("ntp-server", "10.0.0.3,", "value", "no IPv4 address"),
    ("mtu", "65536", "value", "0 to 65535"),
    ("mtu", "v", "value", "0 to 65535"),
    ("tcp-ttl", "256", "value", "0 to 255"),
    ("domain-search", "a..b", "value", "RFC 1123"),
    ("classless-static-route", "192.0.2.0/24", "value", "PREFIX,ROUTER"),
    ("classless-static-route", "192.0.2.1/24,10.0.0.7", "value", "192.0.2.0/24 would be accepted"),
    ("224", "1.2.3", "value", "no IPv4 address"),
    ("224", "4294967296", "value", "0 to 4294967295"),
    ("66", "ü" * 128, "value", "at most 255"),
)


def told(*options: tuple[str, str], version: int = 4) -> dict[str, Any]:
    return {"extra_dhcp_opts": [{"name": name, "value": value, "ip_version": version} for name, value in options]}


ROWS = [
    *(
        Row(
            "Port",
            told((name, value), version=version),
            "STRING_TOO_LONG" if says == "at most 255" else "STRING_INVALID",
            f"extra_dhcp_opts[0].{place}",
            says,
            label=f"{name[:20]}-{version}-{number}",
        )
        for version, wrong in ((4, WRONG), (6, WRONG6))
        for number, (name, value, place, says) in enumerate(wrong)
    ),
    Row("Port", told(("9" * 5000, "v")), "STRING_TOO_LONG", "extra_dhcp_opts[0].name", "5000 characters", label="no number"),
    Row("Port", told(("26", "1400"), ("mtu", "1400")), "DUPLICATE_VALUE", "extra_dhcp_opts[1].name", "26 is too; give it once"),
    Row("Port", told(("mtu", "1400"), ("mtu", "1300")), "DUPLICATE_VALUE", "extra_dhcp_opts[1].name", "give it once"),
]
BOTH = {"extra_dhcp_opts": [*told(("42", "10.0.0.3"))["extra_dhcp_opts"], *told(("42", "x"), version=6)["extra_dhcp_opts"]]}
EDGES = [
    *(Edge("Port", told(option)) for option in ACCEPTED),
    *(Edge("Port", told(option, version=6)) for option in ACCEPTED6),
    Edge("Port", BOTH),
]
