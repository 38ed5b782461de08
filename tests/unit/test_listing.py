"""Pages, filters and masks, without a store."""

from __future__ import annotations

import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from controlplane.api.filtering import predicate
from controlplane.api.listing import Order, later_than, page_size
from controlplane.errors import ApiError
from controlplane.masks import merged, read_mask
from controlplane.registry import KINDS
from kumihimo.v1 import network_pb2, port_pb2


@pytest.mark.parametrize(("asked", "given"), [(0, 100), (1, 1), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)])
def test_page_size_is_cut_and_not_refused(asked: int, given: int) -> None:
    assert page_size(asked) == given


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(ApiError, match=r"0 .* to 1000 is accepted"):
        page_size(-1)


def walk(order_by: str, messages: list[port_pb2.Port], size: int = 2) -> list[str]:
    """Ids in the order of pages of `size`, each page asked for by the token of the one before."""
    order = Order(KINDS["Port"], order_by)
    shown: list[str] = []
    token = ""
    while True:
        later = later_than(order, order.after(token))
        places = sorted((place for place in map(order.place, messages) if later(place)), key=order.key)
        shown += [place[-1] for place in places[:size]]
        if len(places) <= size:
            return shown
        token = order.token(places[size - 1])


def test_pages_walk_by_order_then_id() -> None:
    names = ["b", "a", "a", "c", "b"]
    messages = [port_pb2.Port(id=f"p{number}", name=name, revision=number % 2) for number, name in enumerate(names)]
    assert walk("", messages) == ["p0", "p1", "p2", "p3", "p4"]
    assert walk("name", messages) == ["p1", "p2", "p0", "p4", "p3"]
    assert walk("name desc", messages) == ["p3", "p0", "p4", "p1", "p2"]
    assert walk("revision desc, name", messages, 1) == ["p1", "p3", "p2", "p0", "p4"]


def test_an_order_that_means_nothing_is_refused() -> None:
    for text in ("colour", "tags", "fixed_ips", "name up", ",", "realization", "state"):
        with pytest.raises(ApiError) as caught:
            Order(KINDS["Port"], text)
        assert caught.value.reason == "ORDER_BY_INVALID"


def test_a_token_of_another_list_is_refused() -> None:
    order = Order(KINDS["Port"], "")
    by_name = Order(KINDS["Port"], "name")
    assert order.after("") is None
    foreign = by_name.token(by_name.place(port_pb2.Port(id="p", name="n")))
    for token in ("?", "a", "ü", "AAA", "//79", "MQ==", "W10=", foreign):
        with pytest.raises(ApiError) as caught:
            order.after(token)
        assert caught.value.reason == "PAGE_TOKEN_INVALID"
    by_revision = Order(KINDS["Port"], "revision")
    with pytest.raises(ApiError) as caught:
        later_than(by_revision, by_revision.after(foreign))(by_revision.place(port_pb2.Port(id="p", revision=1)))
    assert caught.value.reason == "PAGE_TOKEN_INVALID"


def test_a_read_mask_keeps_what_it_names_and_the_id() -> None:
    port = port_pb2.Port(id="p", name="n", description="d", tags=["t"])
    assert read_mask(KINDS["Port"], FieldMask())(port) == port
    assert read_mask(KINDS["Port"], FieldMask(paths=["name"]))(port) == port_pb2.Port(id="p", name="n")
    with pytest.raises(ApiError, match="read_mask names 'colour'"):
        read_mask(KINDS["Port"], FieldMask(paths=["colour"]))


PORT = port_pb2.Port(
    name='a "b" \\',
    tags=["x", "y"],
    admin_state_up=True,
    revision=41,
    create_time={"seconds": 10},
    vnic_type=1,
    fixed_ips=[{"ip_address": "10.0.0.1"}, {"ip_address": "10.0.0.2"}],
)


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("", True),
        ('tags = "x"', True),
        ('tags = "z"', False),
        ('tags="x" AND tags="y"', True),
        ('tags="x" AND tags="z"', False),
        ('name = "a \\"b\\" \\\\"', True),
        ('admin_state_up = "true"', True),
        ('vnic_type = "VNIC_TYPE_NORMAL"', True),
        ('fixed_ips.ip_address = "10.0.0.2"', True),
        ('fixed_ips.ip_address = "10.0.0.3"', False),
        ('name = "x" OR tags:"y"', True),
        ('NOT (name = "x" OR tags:"y")', False),
        ('name = "x" OR tags:"x" AND tags:"z"', False),
        ("name:b", True),
        ("name:*", True),
        ("description:*", False),
        ("description != x", True),
        ('fixed_ips.ip_address in_cidr "10.0.0.2/32"', True),
        ('fixed_ips.ip_address in_cidr "10.0.1.0/24"', False),
        ('fixed_ips.ip_address = "10.0.0.*"', True),
        ('fixed_ips.ip_address = "10.0.1.*"', False),
        ("vnic_type = normal", True),
        ("vnic_type = DIRECT", False),
        ("revision >= 41 AND revision < 42", True),
        ("revision > 41", False),
        ('create_time < "1970-01-01T00:00:11Z"', True),
        ('create_time < "1970-01-01T00:00:10"', False),
        ("security_group_ids = x", False),
        ("security_group_ids != x", True),
    ],
)
def test_filter(text: str, accepted: bool) -> None:
    assert predicate(KINDS["Port"], text)(PORT) == accepted


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("name", 4),
        ("name =", 6),
        ("name ! a", 5),
        ('(name = "a"', 11),
        ('name = "a")', 10),
        ("(" * 21 + "name = a" + ")" * 21, 20),
        ("name = a" + " " * 5000, 4096),
        ("revision = x", 11),
        ("admin_state_up = maybe", 17),
        ("vnic_type = FAST", 12),
        ("create_time > soon", 14),
        ('name in_cidr "10.0.0.1/8"', 13),
        ('revision in_cidr "10.0.0.0/8"', 17),
        ('name = "a" name = "b"', 11),
        ('name = "a" AND', 14),
        ('name = "a" AND colour = "b"', 15),
        ('name = "a', 7),
        ('fixed_ips = "a"', 12),
        ('name.first = "a"', 0),
        ('hints.key = "a"', 0),
    ],
)
def test_a_filter_that_means_nothing_is_refused_with_the_position(text: str, position: int) -> None:
    with pytest.raises(ApiError) as caught:
        predicate(KINDS["Port"], text)
    assert caught.value.reason == "FILTER_INVALID"
    assert caught.value.metadata["position"] == str(position)


def network(**fields: object) -> network_pb2.Network:
    return network_pb2.Network(**fields)


OLD = network(id="i", name="old", description="d", tags=["a"], network_type=2, mtu=1400, revision=7, etag="7")


@pytest.mark.parametrize(
    ("given", "paths", "expected"),
    [
        (network(name="new"), [], {"name": "new", "description": "d", "tags": ["a"], "mtu": 1400}),
        (network(mtu=0), [], {"mtu": 0, "name": "old"}),
        (network(name="new"), ["tags", "description"], {"name": "old", "description": "", "tags": []}),
        (network(tags=["b", "c"]), ["tags"], {"tags": ["b", "c"]}),
        (network(name="new"), ["*"], {"name": "new", "description": "", "tags": [], "network_type": 2}),
        (network(id="other", etag="x", revision=9), ["id", "etag", "revision"], {"id": "i", "etag": "7", "revision": 7}),
    ],
)
def test_masks(given: network_pb2.Network, paths: list[str], expected: dict[str, object]) -> None:
    new = merged(OLD, given, paths)
    assert {name: list(value) if name == "tags" else value for name in expected for value in [getattr(new, name)]} == expected
    assert new.id == "i"


@pytest.mark.parametrize("paths", [["colour"], ["name", "x" * 5000], ["*", "colour"], ["tags.0"], [""]])
def test_an_unknown_path_is_refused(paths: list[str]) -> None:
    with pytest.raises(ApiError) as caught:
        merged(OLD, network(), paths)
    assert caught.value.reason == "FIELD_MASK_INVALID"
    assert len(caught.value.message) < 300


# -- what is bounded --------------------------------------------------------------------------------------------------


def test_a_filter_that_denies_a_thousand_times_is_no_deeper_than_one() -> None:
    message = port_pb2.Port(name="a")
    for times, holds in ((1000, True), (1001, False)):
        assert predicate(KINDS["Port"], "NOT " * times + "name = a")(message) is holds


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("(" * 21 + "name = a" + ")" * 21, "parentheses"),
        (" OR ".join(["name = a"] * 101), "at most 100 comparisons"),
        ("name = " + "a" * 4096, "at most 4096 characters"),
    ],
)
def test_a_filter_has_bounds(text: str, what: str) -> None:
    with pytest.raises(ApiError, match=what) as caught:
        predicate(KINDS["Port"], text)
    assert caught.value.reason == "FILTER_INVALID"


def test_orders_and_page_tokens_have_bounds() -> None:
    with pytest.raises(ApiError, match="at most 1000 are accepted"):
        Order(KINDS["Port"], "name," * 200 + "id")
    order = Order(KINDS["Port"], "description")
    long = ("\U0001f600" * 1024, "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4")
    assert order.after(order.token(long)) == long
    with pytest.raises(ApiError, match="page_token is none of ours"):
        order.after(order.token(("a" * 60_000, "b")))
