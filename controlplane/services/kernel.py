"""What the create, update and delete of every kind do inside a transaction. The kind's own rules are called from here.

The way of a write: rules of the descriptor → defaults → the kind's checks (`prepare`) → in the attempt: references, the
kind's claims, quota, index, history. Everything an attempt decides on it reads through its transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from controlplane import redaction, services
from controlplane.config import Defaults
from controlplane.errors import (
    ApiError,
    Code,
    Violation,
    etag_mismatch,
    not_found,
    precondition,
    reference_not_found,
    refuse,
)
from controlplane.identity import Caller
from controlplane.masks import merged
from controlplane.registry import KINDS, Kind, rules
from controlplane.services import quota
from controlplane.services.base import Context, label
from controlplane.store import keys
from controlplane.store.txn import Transaction, stamp, time_ordered_id
from controlplane.validate import check, clear_output
from kumihimo.v1 import store_pb2

LARGEST_RESOURCE = 256 * 1024  # bytes stored

# Made at read (api/output.py); cleared before an object is stored.
MADE_AT_READ = (
    "revision",
    "etag",
    "state",
    "conditions",
    "realization",
    "subnets",
    "binding",
    "agent",
    "shared",
    "availability_zones",
    "routers",
    "usage",
    "used",
    "available",
    "nodes",
    "dns_assignments",
    "counters",
    "rules",
    "member_count",
    "normalized_cidr",
)
_MADE: dict[str, tuple[str, ...]] = {}


def strip(message: Any) -> None:
    """Clear what is made at read."""
    name = message.DESCRIPTOR.name
    if name not in _MADE:
        _MADE[name] = tuple(field for field in MADE_AT_READ if field in message.DESCRIPTOR.fields_by_name)
    for field in _MADE[name]:
        message.ClearField(field)


def copy(message: Any) -> Any:
    twin = type(message)()
    twin.CopyFrom(message)
    return twin


def visible(kind: Kind, message: Any, caller: Caller) -> bool:
    """Whether the caller may know that the object is there."""
    return not kind.owned or caller.sees(message.project_id)


# -- create -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Draft:
    """The object that a create asks for. new: complete but for what depends on the store. faults: what is wrong with it.

    defaults: those it was completed by.
    """

    given: Any
    new: Any
    faults: list[Violation]
    defaults: Defaults


def prepare(kind: Kind, given: Any, context: Context, object_id: str = "") -> Draft:
    """The draft of an object; with this id, where it brings none."""
    new = copy(given)
    clear_output(new)
    new.ClearField("etag")
    rules_of = services.RULES[kind.name]
    found = [*_set_project(kind, new, context.caller), *check(new, operator=context.caller.is_operator)]
    rules_of.complete(new, context)
    found += rules_of.check(new, None, context)
    new.id = new.id or object_id or time_ordered_id()
    return Draft(given, new, found, context.defaults)


def create(
    transaction: Transaction, kind: Kind, draft: Draft, context: Context, project: str = "", counted: bool = True
) -> Any:
    """Make an object that `prepare` gave, in a project if that was asked for; what is stored. counted: it takes quota."""
    context = context.at(transaction)
    if context.defaults is not draft.defaults:
        draft = prepare(kind, draft.given, context, draft.new.id)
        refuse(draft.faults)
    new = _made(transaction, kind, draft, context, project)
    _enter(transaction, kind, new, quota.take(transaction, kind, new, context) if kind.options.quota and counted else 0)
    _write(transaction, kind, new, b"")
    services.RULES[kind.name].furnish(transaction, new, context)
    return new


def exchange(transaction: Transaction, kind: Kind, gone: Sequence[Any], drafts: Sequence[Draft], context: Context) -> list[Any]:
    """Put objects in the place of others of their project; what is stored.

    They take over the slots that those had in the quota, so an exchange of many fits into one transaction, and a project that
    is at its limit may make it. Its history is for the caller to write.
    """
    context = context.at(transaction)
    slots = [index.quota_slot for old in gone if (index := _erase(transaction, kind, old, False, context)) and index.quota_slot]
    made = []
    for draft in drafts:
        new = _made(transaction, kind, draft, context)
        slot = slots.pop() if slots else 0
        if slot:
            claimed = store_pb2.Claim(owner=new.id, project_id=new.project_id)
            transaction.put(keys.claim(keys.quota_pool(new.project_id, kind), slot), claimed)
        _enter(transaction, kind, new, slot or quota.take(transaction, kind, new, context))
        store(transaction, kind, new)
        made.append(new)
    for slot in slots:
        quota.give_back(transaction, kind, store_pb2.Index(project_id=gone[0].project_id, quota_slot=slot))
    return made


def _made(transaction: Transaction, kind: Kind, draft: Draft, context: Context, project: str = "") -> Any:
    """The object of a draft as it is to be stored, with what it claims."""
    new = copy(draft.new)
    _refuse_taken_id(transaction, kind, new.id)
    _require_references(transaction, new, None, context.caller)
    if kind.parent and project:
        _refuse_foreign_parent(transaction, kind, new, project)
    services.RULES[kind.name].create(transaction, new, context)
    stamp(new.create_time)
    new.creator = transaction.origin.actor
    return new


def _enter(transaction: Transaction, kind: Kind, new: Any, slot: int) -> None:
    """Have an object found by its id, and counted in the slot of a quota that it has."""
    if kind.indexed:
        index = store_pb2.Index(parent_id=kind.parent_of(new), quota_slot=slot)
        if kind.options.quota:
            index.project_id = new.project_id
        transaction.put(keys.index(kind.name, new.id), index)


def _set_project(kind: Kind, new: Any, caller: Caller) -> Iterator[Violation]:
    if not kind.owned:
        return
    if new.project_id and new.project_id != caller.project and not caller.is_operator:
        yield Violation(
            "project_id",
            "FIELD_FORBIDDEN",
            f"project_id may be {caller.project} only; another project's needs the operator role",
            Code.PERMISSION_DENIED,
        )
    new.project_id = new.project_id or caller.project


def _refuse_taken_id(transaction: Transaction, kind: Kind, object_id: str) -> None:
    key = keys.index(kind.name, object_id) if kind.indexed else keys.place(kind, object_id)
    if transaction.read(key) is not None:
        raise ApiError(
            Code.ALREADY_EXISTS,
            "ID_TAKEN",
            f"{kind.name} {object_id} exists; leave id out to have one made",
            {"id": object_id},
        )


def _refuse_foreign_parent(transaction: Transaction, kind: Kind, new: Any, project: str) -> None:
    """A child belongs to its parent's project; one that is asked for in another project cannot see the parent."""
    parent = transaction.object(KINDS[kind.parent_kind], kind.parent_of(new))
    if parent is not None and parent.project_id != project:
        raise reference_not_found(kind.parent, kind.parent_kind, kind.parent_of(new))


# -- update -----------------------------------------------------------------------------------------------------------


def find(transaction: Transaction, kind: Kind, object_id: str, context: Context) -> tuple[str, Any]:
    """(key, the stored object, not to be changed); the commit happens only if it is still so. Raises NOT_FOUND."""
    key = transaction.locate(kind, object_id)
    message = None
    if key is not None:
        transaction.read(key)
        message = transaction.message(kind, key)
    elif kind.options.implicit:
        key = keys.place(kind, object_id)
        transaction.read(key)
        message = services.RULES[kind.name].default(object_id, context)
    if key is None or message is None or not visible(kind, message, context.caller):
        raise not_found(kind.name, object_id or '""')
    return key, message


def update(transaction: Transaction, kind: Kind, given: Any, paths: list[str], context: Context) -> Any:
    """Change an object to what the masked fields of `given` say; the object, with its old revision when nothing differs."""
    context = context.at(transaction)
    key, stored = find(transaction, kind, given.id, context)
    check_etag(kind, stored, given.etag)
    old = copy(stored)
    new = merged(old, given, paths)
    rules_of = services.RULES[kind.name]
    found = check(new, operator=context.caller.is_operator, old=old)
    rules_of.complete(new, context)
    refuse([*found, *rules_of.check(new, old, context)])
    _require_references(transaction, new, old, context.caller)
    rules_of.update(transaction, old, new, context)
    strip(old)
    strip(new)
    if new == old:
        return copy(stored)
    before = transaction.get(key)
    _write(transaction, kind, new, before.value if before else b"")
    return new


def amend(transaction: Transaction, kind: Kind, stored: Any, **fields: Any) -> None:
    """Set fields of an object, which may be those that no client can change; it is as it was read until the commit."""
    new = copy(stored)
    for name, value in fields.items():
        setattr(new, name, value)
    restate(transaction, kind, new)


def restate(transaction: Transaction, kind: Kind, new: Any) -> None:
    """Write an object in place of the one that was read, past the rules; that one is as it was until the commit."""
    before = transaction.read(keys.place(kind, new.id, kind.parent_of(new)))
    _write(transaction, kind, new, before.value if before else b"")


def check_etag(kind: Kind, old: Any, etag: str) -> None:
    """Raise ETAG_MISMATCH when a request knows another version of the object."""
    if etag and etag != old.etag:
        raise etag_mismatch(kind.name, old.id, old.etag)


def _require_references(transaction: Transaction, new: Any, old: Any | None, caller: Caller) -> None:
    """Every object that a new or changed field names exists, is visible, and stays until the commit."""
    for path, kind_name, object_id in references(new, old):
        kind = KINDS.get(kind_name)
        if kind is not None and (kind_name, object_id) in transaction.promised:
            continue
        key = transaction.locate(kind, object_id) if kind else None
        if kind is None or key is None or transaction.require(key) is None:
            raise reference_not_found(path, kind_name, object_id)
        target = transaction.message(kind, key)
        if target is None or not visible(kind, target, caller):
            raise reference_not_found(path, kind_name, object_id)


def references(new: Any, old: Any | None = None) -> Iterator[tuple[str, str, str]]:
    """(path, kind, id) of every reference field that is set and changed, nested ones included."""
    for field, value in new.ListFields():
        kind = rules(field).reference
        nested = field.message_type is not None and field.is_repeated
        if not kind and not nested:
            continue
        if old is not None and value == getattr(old, field.name):
            continue
        if kind and field.is_repeated:
            for number, item in enumerate(value):
                yield f"{field.name}[{number}]", kind, item
        elif kind:
            yield field.name, kind, value
        elif not field.message_type.GetOptions().map_entry:
            for number, item in enumerate(value):
                for path, inner, object_id in references(item):
                    yield f"{field.name}[{number}].{path}", inner, object_id


# -- delete -----------------------------------------------------------------------------------------------------------


def delete(
    transaction: Transaction, kind: Kind, object_id: str, context: Context, *, etag: str = "", force: bool = False
) -> Any:
    """Delete an object; the object as it was. Raises NOT_FOUND and what stands in the way."""
    key, old = find(transaction, kind, object_id, context)
    check_etag(kind, old, etag)
    if old.deletion_protection:
        raise precondition(
            "DELETION_PROTECTED",
            f"{kind.name} {label(old.id, old.name)} is protected; set deletion_protection to false first",
        )
    if transaction.get(key) is None:
        return old  # it stands at its defaults
    remove(transaction, kind, old, force, context)
    return old


def remove(transaction: Transaction, kind: Kind, old: Any, force: bool, context: Context) -> None:
    """Delete a stored object with all that stands for it."""
    before = transaction.get(keys.place(kind, old.id, kind.parent_of(old)))  # a network's rules delete the whole scope
    index = _erase(transaction, kind, old, force, context)
    if index is not None and kind.options.quota:
        quota.give_back(transaction, kind, index)
    _record(transaction, kind, old, before.value if before else b"", b"")


def _erase(transaction: Transaction, kind: Kind, old: Any, force: bool, context: Context) -> store_pb2.Index | None:
    """Delete an object and what it claims, but for its slot in a quota; its index."""
    services.RULES[kind.name].delete(transaction, old, force, context)
    if not kind.scope:  # else the whole scope is gone with it
        transaction.delete(keys.place(kind, old.id, kind.parent_of(old)))
    if not kind.indexed:
        return None
    key = keys.index(kind.name, old.id)
    entry = transaction.get(key)
    transaction.delete(key)
    return store_pb2.Index.FromString(entry.value) if entry is not None else None


def store(transaction: Transaction, kind: Kind, message: Any) -> bytes:
    """Put an object at its place; its bytes. Its history is for the caller to write."""
    strip(message)
    stamp(message.update_time)
    message.last_modifier = transaction.origin.actor
    value = bytes(message.SerializeToString())
    if len(value) > LARGEST_RESOURCE:
        raise ApiError(Code.INVALID_ARGUMENT, "TOO_MANY_VALUES", f"the object has {len(value)} bytes; {LARGEST_RESOURCE} fit")
    transaction.put_bytes(keys.place(kind, message.id, kind.parent_of(message)), value)
    return value


def _write(transaction: Transaction, kind: Kind, message: Any, before: bytes) -> None:
    _record(transaction, kind, message, before, store(transaction, kind, message))


def _record(transaction: Transaction, kind: Kind, message: Any, before: bytes, after: bytes) -> None:
    """Note a change in the history, which keeps no secret."""
    if redaction.holds_secrets(kind.descriptor):
        old, new = redaction.masked_change(kind.new(before), kind.new(after))
        before, after = before and old.SerializeToString(), after and new.SerializeToString()
    transaction.record(kind.name, message.id, project=message.project_id, name=message.name, before=before, after=after)
