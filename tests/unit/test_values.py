"""Value types: what is accepted, its canonical form, and the reason of what is not."""

from __future__ import annotations

import uuid
from ipaddress import IPv4Address, IPv6Address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import values
from controlplane.values import CANONICAL, Invalid
from kumihimo.v1 import resource_pb2 as pb

UUID, SLUG, IP, CIDR, MAC = pb.FORMAT_UUID, pb.FORMAT_SLUG, pb.FORMAT_IP, pb.FORMAT_CIDR, pb.FORMAT_MAC
PROTOCOL, ADDRESSES = pb.FORMAT_PROTOCOL, pb.FORMAT_ADDRESSES
LABEL, NAME, TAG, TEXT = pb.FORMAT_DNS_LABEL, pb.FORMAT_DNS_NAME, pb.FORMAT_TAG, pb.FORMAT_UNSPECIFIED

GOOD = [
    (TEXT, "", ""),
    (TEXT, "Größe ♥", "Größe ♥"),
    (UUID, "0192F0C1-7C1E-7B3A-9D4E-5F60718293A4", "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4"),
    (SLUG, "a", "a"),
    (SLUG, "rack-1.example", "rack-1.example"),
    (SLUG, "a" * 63, "a" * 63),
    (IP, "10.0.0.5", "10.0.0.5"),
    (IP, "FD00:0:0:0::5", "fd00::5"),
    (IP, "fe80::1", "fe80::1"),
    (IP, "169.254.1.1", "169.254.1.1"),
    (CIDR, "10.0.0.0/8", "10.0.0.0/8"),
    (CIDR, "0.0.0.0/0", "0.0.0.0/0"),
    (CIDR, "10.0.0.1/32", "10.0.0.1/32"),
    (CIDR, "FD00:0::/64", "fd00::/64"),
    (CIDR, "::/0", "::/0"),
    (MAC, "fa:16:3e:12:34:56", "fa:16:3e:12:34:56"),
    (MAC, "FA-16-3E-AB-CD-EF", "fa:16:3e:ab:cd:ef"),
    (LABEL, "Web-1", "web-1"),
    (LABEL, "1" * 63, "1" * 63),
    (NAME, "Web.Example.ORG", "web.example.org"),
    (NAME, ".".join(["a" * 63] * 3 + ["b" * 63]), ".".join(["a" * 63] * 3 + ["b" * 63])),
    (TAG, "a b", "a b"),
    (PROTOCOL, "TCP", "tcp"),
    (PROTOCOL, "6", "tcp"),
    (PROTOCOL, "ipv6-icmp", "icmpv6"),
    (PROTOCOL, "58", "icmpv6"),
    (PROTOCOL, "any", ""),
    (PROTOCOL, "0", "hopopt"),
    (PROTOCOL, "200", "200"),
    (PROTOCOL, "255", "255"),
    (ADDRESSES, "10.0.0.5", "10.0.0.5"),
    (ADDRESSES, "10.0.0.5/32", "10.0.0.5"),
    (ADDRESSES, "10.0.0.0/24", "10.0.0.0/24"),
    (ADDRESSES, "10.0.0.0-10.0.0.255", "10.0.0.0/24"),
    (ADDRESSES, "10.0.0.5-10.0.0.9", "10.0.0.5-10.0.0.9"),
    (ADDRESSES, "10.0.0.5-10.0.0.5", "10.0.0.5"),
    (ADDRESSES, "0.0.0.0-255.255.255.255", "0.0.0.0/0"),
    (ADDRESSES, "FD00:0::1-fd00::2", "fd00::1-fd00::2"),
    (ADDRESSES, "239.1.1.1", "239.1.1.1"),
]
BAD = [
    (TEXT, "a\nb", "STRING_INVALID"),
    (TEXT, "a\x7f", "STRING_INVALID"),
    (UUID, "", "ID_INVALID"),
    (UUID, "0192f0c17c1e7b3a9d4e5f60718293a4", "ID_INVALID"),
    (UUID, "{0192f0c1-7c1e-7b3a-9d4e-5f60718293a4}", "ID_INVALID"),
    (UUID, "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4 ", "ID_INVALID"),
    (SLUG, "", "ID_INVALID"),
    (SLUG, "A", "ID_INVALID"),
    (SLUG, "a/b", "ID_INVALID"),
    (SLUG, "-a", "ID_INVALID"),
    (SLUG, "a\n", "ID_INVALID"),
    (SLUG, "a" * 64, "ID_INVALID"),
    (IP, "", "IP_INVALID"),
    (IP, "10.0.0.05", "IP_INVALID"),
    (IP, "10.0.0", "IP_INVALID"),
    (IP, "10.0.0.5/32", "IP_INVALID"),
    (IP, "fe80::1%eth0", "IP_INVALID"),
    (IP, "0.0.0.0", "IP_INVALID"),  # noqa: S104
    (IP, "::", "IP_INVALID"),
    (IP, "127.0.0.1", "IP_INVALID"),
    (IP, "::1", "IP_INVALID"),
    (IP, "224.0.0.1", "IP_INVALID"),
    (IP, "ff02::1", "IP_INVALID"),
    (IP, "255.255.255.255", "IP_INVALID"),
    (CIDR, "10.0.0.0", "CIDR_INVALID"),
    (CIDR, "10.0.0.0/", "CIDR_INVALID"),
    (CIDR, "10.0.0.0/-1", "CIDR_INVALID"),
    (CIDR, "10.0.0.0/33", "CIDR_INVALID"),
    (CIDR, "10.0.0.0/255.0.0.0", "CIDR_INVALID"),
    (CIDR, "fd00::/129", "CIDR_INVALID"),
    (CIDR, "fe80::%1/64", "CIDR_INVALID"),
    (CIDR, "10.0.0.0/" + "0" * 4000 + "8", "CIDR_INVALID"),
    (CIDR, "10.0.0.1/24", "CIDR_HOST_BITS_SET"),
    (CIDR, "fd00::1/64", "CIDR_HOST_BITS_SET"),
    (MAC, "", "MAC_INVALID"),
    (MAC, "fa163e123456", "MAC_INVALID"),
    (MAC, "fa:16:3e:12:34:5g", "MAC_INVALID"),
    (MAC, "fa-16:3e:12:34:56", "MAC_INVALID"),
    (MAC, "ff:ff:ff:ff:ff:ff", "MAC_INVALID"),
    (MAC, "01:00:00:00:00:00", "MAC_INVALID"),
    (MAC, "00:00:00:00:00:00", "MAC_INVALID"),
    (LABEL, "a_b", "STRING_INVALID"),
    (LABEL, "-a", "STRING_INVALID"),
    (LABEL, "a" * 64, "STRING_INVALID"),
    (NAME, "a.", "STRING_INVALID"),
    (NAME, "a..b", "STRING_INVALID"),
    (NAME, ".".join(["a" * 63] * 4) + ".b", "STRING_INVALID"),
    (TAG, "", "STRING_INVALID"),
    (TAG, "a,b", "STRING_INVALID"),
    (TAG, "a\x00", "STRING_INVALID"),
    (PROTOCOL, "256", "ENUM_INVALID"),
    (PROTOCOL, "-1", "ENUM_INVALID"),
    (PROTOCOL, "0006", "ENUM_INVALID"),
    (PROTOCOL, "²", "ENUM_INVALID"),
    (PROTOCOL, "tcp ", "ENUM_INVALID"),
    (ADDRESSES, "", "IP_INVALID"),
    (ADDRESSES, "-", "IP_INVALID"),
    (ADDRESSES, "10.0.0.5-", "IP_INVALID"),
    (ADDRESSES, "10.0.0.5-10.0.0.4", "IP_INVALID"),
    (ADDRESSES, "10.0.0.5-fd00::1", "IP_INVALID"),
    (ADDRESSES, "10.0.0.5-10.0.0.6-10.0.0.7", "IP_INVALID"),
    (ADDRESSES, "fe80::1%eth0", "IP_INVALID"),
    (ADDRESSES, "10.0.0.1/24", "CIDR_HOST_BITS_SET"),
    (ADDRESSES, "10.0.0.0/33", "CIDR_INVALID"),
]


@pytest.mark.parametrize(("form", "text", "canonical"), GOOD)
def test_good_text_becomes_canonical(form: int, text: str, canonical: str) -> None:
    assert CANONICAL[form](text) == canonical
    assert CANONICAL[form](canonical) == canonical


@pytest.mark.parametrize(("form", "text", "reason"), BAD)
def test_bad_text_is_refused_with_its_reason(form: int, text: str, reason: str) -> None:
    with pytest.raises(Invalid) as caught:
        CANONICAL[form](text)
    assert caught.value.reason == reason
    assert caught.value.message.count(" ") > 2


def test_every_format_has_its_check() -> None:
    assert set(CANONICAL) == set(pb.Format.values())


@given(form=st.sampled_from(sorted(CANONICAL)), text=st.text())
def test_any_text_is_accepted_in_canonical_form_or_refused(form: int, text: str) -> None:
    try:
        canonical, told = CANONICAL[form](text), ""
    except Invalid as error:
        canonical, told = None, error.message
    assert len(told) < 400
    assert canonical is None or CANONICAL[form](canonical) == canonical


@given(number=st.integers(min_value=0, max_value=2**128 - 1), length=st.integers(min_value=0, max_value=128))
def test_host_bits_are_what_python_says_they_are(number: int, length: int) -> None:
    text = str(ip_network((number, 128)).network_address) + f"/{length}"
    expected = ip_network(text, strict=False)
    if int(expected.network_address) == number:
        assert values.prefix(text) == expected
    else:
        with pytest.raises(Invalid, match=str(expected)):
            values.prefix(text)


@given(st.uuids())
def test_every_uuid_is_an_identifier(value: uuid.UUID) -> None:
    assert values.identifier(str(value).upper()) == str(value)


@given(st.integers(0, 255))
def test_a_protocol_goes_by_its_number_and_back(number: int) -> None:
    canonical = values.protocol(str(number))
    assert values.protocol(canonical) == canonical
    assert values.protocol_number(canonical) == number


@given(st.integers(0, (1 << 32) - 1), st.integers(0, 5000), st.booleans())
def test_a_range_means_all_from_its_first_to_its_last_address(first: int, more: int, six: bool) -> None:
    make = IPv6Address if six else IPv4Address
    low, high = make(first), make(min(first + more, (1 << 32) - 1))
    canonical, networks = values.addresses(f"{low}-{high}")
    assert values.addresses(canonical) == (canonical, networks)
    assert networks[0].network_address == low
    assert networks[-1].broadcast_address == high
    assert all(int(one.broadcast_address) + 1 == int(next_.network_address) for one, next_ in pairwise(networks))
