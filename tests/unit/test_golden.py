"""A-19: what a store of format 1 holds is read by this release to the same values, and written back to the same bytes."""

from __future__ import annotations

import pytest

from tests import golden

KNOWN = golden.read()


def test_every_stored_message_has_golden_bytes() -> None:
    assert [name for name, _ in golden.missing()] == [], "`python -m tests.golden` writes them"


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_stored_bytes_are_read_and_written_back_as_they_are(name: str) -> None:
    # A message that is no longer stored by anybody is still read from stores that exist.
    message_class = golden.stored()[name]
    data = bytes.fromhex(KNOWN[name]["bytes"])
    message = message_class.FromString(data)
    assert golden.as_json(message) == KNOWN[name]["value"]
    assert message.SerializeToString(deterministic=True) == data


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_every_field_of_then_is_known_now(name: str) -> None:
    """No field was renumbered, retyped or dropped: nothing of the bytes is unknown."""
    message = golden.stored()[name].FromString(bytes.fromhex(KNOWN[name]["bytes"]))
    message.DiscardUnknownFields()
    assert message.SerializeToString(deterministic=True).hex() == KNOWN[name]["bytes"]
