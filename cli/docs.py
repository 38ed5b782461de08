"""The comments of the .proto files, as help for the options that come from their fields.

Descriptors of generated code carry no comments, but the .proto files are installed beside it. Read only when help is
asked for; without the files the options are there all the same, with less text.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from google.protobuf.descriptor import Descriptor, FieldDescriptor

import kumihimo.v1
from cli.kinds import kinds

_FIELD = re.compile(r"(?:optional |repeated )?[\w.]+(?:<[^>]*>)? (\w+) = \d+")
_MESSAGE = re.compile(r"message (\w+) \{")
# Fields below this number are the same in every resource; a comment on one of them serves all.
_FIRST_OWN_FIELD = 20


def field_comment(field: FieldDescriptor) -> str:
    """What the contract says of a field; empty where it says nothing."""
    assert field.containing_type is not None, "the fields of a message know it"
    comment = _comments().get((field.containing_type.name, field.name), "")
    if comment or field.number >= _FIRST_OWN_FIELD:
        return comment
    same = (_comments().get((kind.name, field.name), "") for kind in kinds().values())
    return next((other for other in same if other), "")


def message_comment(message: Descriptor) -> str:
    return _comments().get((message.name, ""), "")


@cache
def _comments() -> dict[tuple[str, str], str]:
    """(message, field) -> comment; (message, "") for the message itself."""
    found: dict[tuple[str, str], str] = {}
    files = {file for directory in kumihimo.v1.__path__ for file in Path(directory).glob("*.proto")}
    for file in sorted(files):
        message, comment = "", []
        for line in map(str.strip, file.read_text(encoding="utf-8").splitlines()):
            if line.startswith("//"):
                comment.append(line.removeprefix("//").strip())
                continue
            if begun := _MESSAGE.match(line):
                message = begun[1]
                found[message, ""] = " ".join(comment)
            elif stated := _FIELD.match(line):
                found[message, stated[1]] = " ".join(comment)
            comment = []
    return found
