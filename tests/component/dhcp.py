"""Values of extra_dhcp_opts: what is refused and with what hint (test_api_rows.py), what is accepted (test_dhcp_options.py)."""

from __future__ import annotations

from typing import Any

from tests.component.rows import LATER, UNIMPLEMENTED, Edge, Row

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

# (name or code, value, field, what the message says)
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


def told(*options: tuple[str, str]) -> dict[str, Any]:
    return {"extra_dhcp_opts": [{"name": name, "value": value} for name, value in options]}


ROWS = [
    *(
        Row(
            "Port",
            told((name, value)),
            "STRING_TOO_LONG" if says == "at most 255" else "STRING_INVALID",
            f"extra_dhcp_opts[0].{place}",
            says,
            label=f"{name}-{number}",
        )
        for number, (name, value, place, says) in enumerate(WRONG)
    ),
    Row("Port", told(("26", "1400"), ("mtu", "1400")), "DUPLICATE_VALUE", "extra_dhcp_opts[1].name", "26 is too; give it once"),
    Row(
        "Port",
        {"extra_dhcp_opts": [{"name": "dns-server", "value": "fd00::1", "ip_version": 6}]},
        LATER,
        "extra_dhcp_opts[0].ip_version",
        "IPV4 is accepted",
        UNIMPLEMENTED,
    ),
]
EDGES = [Edge("Port", told(option)) for option in ACCEPTED]
