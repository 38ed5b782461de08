"""What differs between two states of an object, and the history made of it (`Operations.ListChanges`)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from controlplane import redaction
from controlplane.api.crud import refuse_foreign_project
from controlplane.api.listing import LARGEST_REPLY, page_size
from controlplane.errors import ApiError, Code, StoreUnavailable, unavailable
from controlplane.registry import KINDS, Field, Kind
from controlplane.services.base import Context
from controlplane.services.kernel import MADE_AT_READ
from controlplane.store import keys
from controlplane.store.client import Store
from controlplane.store.txn import Origin
from kumihimo.v1 import operations_pb2, port_pb2, store_pb2

# Who and when stand beside the fields. What a record says of a group's rules is what a replacement changed.
_ASIDE = {"create_time", "update_time", "attach_time", "creator", "last_modifier", *MADE_AT_READ} - {"rules"}
_MESSAGES: dict[str, Any] = {name: kind.descriptor for name, kind in KINDS.items()}
_MESSAGES["Binding"] = port_pb2.Binding.DESCRIPTOR
PAGE = 200  # records read from etcd at once


def field_changes(descriptor: Any, before: Any | None, after: Any | None) -> Iterator[operations_pb2.FieldChange]:
    """The fields that differ, in the order of their numbers; None: there was, or is, no object."""
    for field in descriptor.fields:
        if field.name in _ASIDE:
            continue
        old, new = _shown(field, before), _shown(field, after)
        if old == new:
            continue
        yield operations_pb2.FieldChange(path=field.name, before=old, after=new)


def _shown(field: Field, message: Any | None) -> str:
    """A field's value as JSON; "" when it is unset."""
    if message is None:
        return ""
    present = message.HasField(field.name) if field.has_presence else bool(getattr(message, field.name))
    if not present:
        return ""
    value = getattr(message, field.name)
    if field.message_type is None and not field.is_repeated and field.enum_type is None:
        return str(value).lower() if isinstance(value, bool) else str(value)
    alone = type(message)()
    if field.is_repeated:
        getattr(alone, field.name).MergeFrom(value)
    elif field.message_type is not None:
        getattr(alone, field.name).CopyFrom(value)
    else:
        setattr(alone, field.name, value)
    text = json_format.MessageToJson(alone, preserving_proto_field_name=True, indent=None)
    return text[text.index(":") + 2 : -1]


def action_of(before: object, after: object) -> int:
    if not before:
        return int(operations_pb2.ACTION_CREATE)
    return int(operations_pb2.ACTION_UPDATE if after else operations_pb2.ACTION_DELETE)


class Changes:
    """The method `Operations.ListChanges`. Records are read from etcd, newest first; they are not in the cache."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def changes(self, request: Any, context: Context, origin: Origin) -> Any:
        refuse_foreign_project(request.project_id, context.caller)
        project = request.project_id or ("" if context.caller.is_operator else context.caller.project)
        size = page_size(request.page_size)
        until, skip = _place(request.page_token)
        reply = operations_pb2.ListChangesResponse()
        last: tuple[int, str] = (0, "")
        size_left = LARGEST_REPLY
        try:
            async for revision, key, record in self._records(keys.change(request.id) if request.id else keys.CHANGES, until):
                if (revision == until and key >= skip and skip) or (project and record.project_id != project):
                    continue
                if len(reply.items) == size or size_left <= 0:
                    reply.next_page_token = _token(*last)
                    break
                last = revision, key
                change = change_of(record, revision)
                if record.kind == "Binding" and not context.caller.is_operator:
                    del change.fields[:]  # it names hosts
                reply.items.append(change)
                size_left -= change.ByteSize()
        except StoreUnavailable as error:
            raise unavailable(error) from error
        return reply

    async def _records(self, prefix: str, until: int) -> Any:
        """(revision, key, record) with this prefix, the newest first, up to a revision (0: all)."""
        done: tuple[int, str] | None = None
        while True:
            kvs = await self._store.newest(prefix, PAGE, until)
            # Several records of one revision come in no order of their own.
            found = sorted(((kv.mod_revision, kv.key.decode(), kv.value) for kv in kvs), reverse=True)
            if len(kvs) == PAGE and found[0][0] == found[-1][0]:
                found = await self._whole_revision(prefix, found[0][0])
            whole = len(kvs) < PAGE
            edge = found[-1][0] if found else 0
            for revision, key, value in found:
                # The last revision of a page may be cut: it comes again, whole, at the top of the next.
                if not whole and revision == edge and revision != found[0][0]:
                    continue
                if done is not None and (revision, key) >= done:
                    continue
                done = revision, key
                try:
                    yield revision, key, store_pb2.ChangeRecord.FromString(value)
                except DecodeError:
                    continue
            if whole:
                return
            until = edge if edge != found[0][0] else edge - 1

    async def _whole_revision(self, prefix: str, revision: int) -> list[tuple[int, str, bytes]]:
        kvs = await self._store.newest(prefix, 0, revision, revision)
        return sorted(((kv.mod_revision, kv.key.decode(), kv.value) for kv in kvs), reverse=True)


def change_of(record: store_pb2.ChangeRecord, revision: int) -> operations_pb2.Change:
    """A record as the API shows it."""
    change = operations_pb2.Change(
        revision=revision,
        actor=record.actor,
        method=record.method,
        request_id=record.request_id,
        kind=record.kind,
        id=record.id,
        name=record.name,
        project_id=record.project_id,
        action=action_of(record.before, record.after),  # type: ignore[arg-type]
        trace_context=record.trace_context,
    )
    change.time.CopyFrom(record.time)
    descriptor = _MESSAGES.get(record.kind)
    if descriptor is not None:
        make = GetMessageClass(descriptor)
        before, after = (make.FromString(value) if value else None for value in (record.before, record.after))
        change.fields.extend(field_changes(descriptor, before, after))
    return change


def of_kind(kind: Kind, before: Any | None, after: Any | None) -> list[operations_pb2.FieldChange]:
    """What differs between two states of an object; secrets are not shown."""
    if redaction.holds_secrets(kind.descriptor):
        old, new = redaction.masked_change(before or kind.new(), after or kind.new())
        before, after = before and old, after and new
    return list(field_changes(kind.descriptor, before, after))


def _token(revision: int, key: str) -> str:
    return base64.urlsafe_b64encode(f"{revision} {key}".encode()).decode()


def _place(token: str) -> tuple[int, str]:
    if not token:
        return 0, ""
    try:
        revision, _, key = base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode().partition(" ")
        place = int(revision)
        if not 0 < place < 1 << 63:
            raise ValueError
        return place, key
    except (binascii.Error, UnicodeError, ValueError):
        raise ApiError(Code.INVALID_ARGUMENT, "PAGE_TOKEN_INVALID", "page_token is none of ours; leave it empty") from None
