"""What is secret is shown nowhere: replies, logs, change records. No kind has a secret yet: the messages are made here."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from controlplane.redaction import CHANGED, MASK, masked, masked_change, without_secrets
from controlplane.registry import KINDS, rules
from kumihimo.v1 import resource_pb2

PACKAGE = "kumihimo.test.redaction"
SECRET = "hunter2"  # noqa: S105 - opens nothing
STRING, BYTES, INT, MESSAGE = 9, 12, 5, 11  # FieldDescriptorProto.Type

# Message → fields: name, type, what else it is.
FILE: dict[str, tuple[tuple[str, int | str, set[str]], ...]] = {
    "Peer": (("name", STRING, set()), ("key", STRING, {"secret"}), ("next", "Peer", set())),
    "Inner": (("note", STRING, set()), ("blob", BYTES, {"secret"})),
    "Tunnel": (
        ("name", STRING, set()),
        ("psk", STRING, {"secret"}),
        ("inner", "Inner", set()),
        ("peers", "Peer", {"many"}),
        ("old_psks", STRING, {"secret", "many"}),
        ("pin", INT, {"secret"}),
        ("by_site", "BySiteEntry", {"many"}),
        ("hint", STRING, {"choice"}),
        ("answer", STRING, {"choice", "secret"}),
    ),
    "Plain": (("name", STRING, set()), ("next", "Plain", set())),
    # What a later release made of Plain.
    "PlainLater": (("name", STRING, set()), ("next", "PlainLater", set()), ("token", STRING, {"secret"})),
}


def _types() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="kumihimo/test/redaction.proto", package=PACKAGE, syntax="proto3")
    file.dependency.append("kumihimo/v1/resource.proto")
    for name, fields in FILE.items():
        message = file.message_type.add(name=name)
        for number, (field_name, kind, more) in enumerate(fields, 1):
            field = message.field.add(name=field_name, number=number, label=3 if "many" in more else 1)
            if isinstance(kind, int):
                field.type = kind
            else:
                field.type = MESSAGE
                field.type_name = f".{PACKAGE}.{'Tunnel.' if kind == 'BySiteEntry' else ''}{kind}"
            if "secret" in more:
                field.options.Extensions[resource_pb2.rules].secret = True
            if "choice" in more:
                field.oneof_index = 0
    tunnel = file.message_type[list(FILE).index("Tunnel")]
    tunnel.oneof_decl.add(name="choice")
    entry = tunnel.nested_type.add(name="BySiteEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=STRING)
    entry.field.add(name="value", number=2, label=1, type=MESSAGE, type_name=f".{PACKAGE}.Peer")
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in FILE}


TYPES = _types()


def tunnel(secret: str = SECRET, pin: int = 4711) -> Any:
    """A message with that secret in every place that can hold one."""
    message = TYPES["Tunnel"](name="t", psk=secret, old_psks=[secret, secret], pin=pin, answer=secret)
    message.inner.note, message.inner.blob = "n", secret.encode()
    message.peers.add(name="p", key=secret).next.key = secret
    message.peers.add(name="q", key=secret)
    message.by_site["x"].key = message.by_site["y"].next.key = secret
    message.by_site["x"].name = "site"
    return message


def test_replies_have_no_secret_and_all_the_rest() -> None:
    message = tunnel()
    shown = without_secrets(message)
    assert shown == TYPES["Tunnel"](
        name="t",
        inner={"note": "n"},
        peers=[{"name": "p", "next": {}}, {"name": "q"}],
        by_site={"x": {"name": "site"}, "y": {"next": {}}},
    )
    assert SECRET.encode() not in shown.SerializeToString()
    assert message == tunnel(), "what is stored is not touched"


def test_logs_and_records_show_that_there_is_one_and_not_which() -> None:
    shown = masked(tunnel())
    assert SECRET not in str(shown)
    assert "4711" not in str(shown)
    assert (shown.name, shown.psk, shown.inner.blob, shown.answer) == ("t", MASK, MASK.encode(), MASK)
    assert [(peer.name, peer.key) for peer in shown.peers] == [("p", MASK), ("q", MASK)]
    assert shown.peers[0].next.key == shown.by_site["x"].key == shown.by_site["y"].next.key == MASK
    assert list(shown.old_psks) == [MASK]
    assert shown.pin == 0
    assert masked(TYPES["Tunnel"](name="t")) == TYPES["Tunnel"](name="t"), "none is none"
    assert masked(tunnel("short")) == masked(tunnel("much longer than that")), "nor its length"


def test_a_change_shows_which_secrets_differ() -> None:
    old, new = tunnel(), tunnel()
    assert masked_change(old, new)[0] == masked_change(old, new)[1] == masked(old)
    new.psk, new.inner.blob, new.peers[1].key = "a", b"b", "c"
    new.by_site["x"].key = "d"
    new.old_psks.append("e")
    new.peers.add(name="r", key=SECRET)
    before, after = masked_change(old, new)
    assert before == masked(tunnel())
    assert (after.psk, after.inner.blob, list(after.old_psks)) == (CHANGED, CHANGED.encode(), [CHANGED])
    assert [peer.key for peer in after.peers] == [MASK, CHANGED, CHANGED]
    assert (after.by_site["x"].key, after.by_site["y"].next.key) == (CHANGED, MASK)
    assert (after.peers[0].next.key, after.answer) == (MASK, MASK)
    new.ClearField("psk")
    assert masked_change(old, new)[1].psk == ""
    assert masked_change(TYPES["Tunnel"](), tunnel())[1].psk == CHANGED


@pytest.mark.parametrize("redacted", [without_secrets, masked, lambda message: masked_change(message, message)[1]])
def test_a_secret_of_a_later_release_is_not_shown_either(redacted: Any) -> None:
    later = TYPES["PlainLater"](name="n", token=SECRET)
    later.next.token = SECRET
    known = TYPES["Plain"].FromString(later.SerializeToString())
    assert SECRET.encode() in known.SerializeToString()
    shown = redacted(known)
    assert SECRET.encode() not in shown.SerializeToString()
    assert shown.name == "n"
    assert SECRET.encode() in known.SerializeToString(), "and stays in what is stored"


def test_a_message_without_secrets_is_shown_as_it_is() -> None:
    network = KINDS["Network"].message(name="n", tags=["a"])
    for shown in (without_secrets(network), masked(network), *masked_change(network, network)):
        assert shown == network
        assert shown is not network


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_secrets_of_kinds_are_strings_or_bytes_and_stand_in_no_column(kind: Any) -> None:
    """Only these can be masked; a number can only be left out, and a map would show its keys."""
    waiting, seen = [kind.descriptor], set()
    while waiting:
        descriptor = waiting.pop()
        for field in descriptor.fields:
            if rules(field).secret:
                assert field.type in (STRING, BYTES), field.full_name
                assert field.name not in kind.options.columns
            if field.message_type is not None and field.message_type.full_name not in seen:
                seen.add(field.message_type.full_name)
                waiting.append(field.message_type)
