"""Apply: many objects as a request says, in one transaction, in whatever order they stand there.

The way: read every object of the request (its kind, the existing object it means, the objects its fields mean) → delete what
is pruned, children first → make or change the rest, parents first. All of it runs on one transaction that sees its own
writes, through the same kernel as single writes, and every fault found is told with the object's place in the request.
Ids are given out before anything else, so objects may refer to each other in a circle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import DecodeError

from controlplane import services
from controlplane.api.changes import of_kind
from controlplane.api.crud import caught_up, repeat_of
from controlplane.api.faults import PRUNED, Faults, PlanError, wrong
from controlplane.errors import ApiError, Code, Violation, not_found, refuse
from controlplane.identity import Caller, authorize
from controlplane.registry import KINDS, Kind, rules
from controlplane.services import kernel
from controlplane.services.base import Context
from controlplane.store import keys
from controlplane.store.commit import Committer
from controlplane.store.txn import Origin, Transaction, time_ordered_id
from controlplane.validate import clear_output, holds_messages, too_many
from controlplane.values import Invalid, identifier, quoted
from kumihimo.v1 import operations_pb2 as pb
from kumihimo.v1 import store_pb2

MOST = 500


def _in_order() -> list[Kind]:
    """Kinds, each after those that its fields refer to; first those that were always there, such as limits."""
    found: list[Kind] = []

    def visit(kind: Kind) -> None:
        if kind in found or kind in visiting:
            return
        visiting.append(kind)
        for name in sorted(_referred(kind.descriptor)):
            if name in KINDS:
                visit(KINDS[name])
        found.append(kind)

    visiting: list[Kind] = []
    for kind in sorted(KINDS.values(), key=lambda kind: not kind.options.implicit):
        visit(kind)
    return found


def _referred(descriptor: Any) -> set[str]:
    names = set()
    for item in descriptor.fields:
        if rules(item).reference:
            names.add(rules(item).reference)
        elif holds_messages(item):
            names |= _referred(item.message_type)
    return names


ORDER = _in_order()


@dataclass(slots=True)
class Desired:
    """One object of the request. message: as it shall be; its references are ids once `_Plan.resolve` has seen it."""

    index: int
    kind: Kind
    message: Any
    fields: list[str]
    key: str
    exists: bool = False
    asked_project: str = ""


class Apply:
    """The method `Operations.Apply`."""

    def __init__(self, committer: Committer) -> None:
        self._committer = committer

    async def apply(self, request: Any, context: Context, origin: Origin) -> Any:
        if len(request.objects) > MOST:
            text = f"objects has {len(request.objects)} entries; at most {MOST} are accepted"
            refuse([Violation("objects", "TOO_MANY_VALUES", text)])
        project = request.project_id or context.caller.project
        if not context.caller.sees(project):
            text = f"project_id may be {context.caller.project} only; another project's needs the operator role"
            refuse([Violation("project_id", "FIELD_FORBIDDEN", text, Code.PERMISSION_DENIED)])
        desired, faults = _read(request, context.caller, project)
        # Made once: an attempt that runs again must not give out others.
        ids = [time_ordered_id() for _ in desired]

        def attempt(transaction: Transaction) -> Any:
            plan = _Plan(transaction, context, request, project, faults.copy())
            return plan.run(desired, ids)

        if request.validate_only:
            try:
                reply, _ = await self._committer.rehearse(attempt, origin)
            except PlanError as error:
                return pb.ApplyResponse(faults=error.faults)
            return reply
        repeat = repeat_of(request, origin, _dump, _load)
        reply, revision = await self._committer.commit(attempt, origin, repeat)
        if not reply.revision and any(item.action != pb.ACTION_NONE for item in reply.objects):
            reply.revision = revision
            await caught_up(self._committer.cache, revision)
        return reply


def _dump(reply: Any) -> bytes:
    return bytes(reply.SerializeToString())


def _load(stored: bytes, revision: int) -> Any:
    reply = pb.ApplyResponse.FromString(stored)
    if any(item.action != pb.ACTION_NONE for item in reply.objects):
        reply.revision = revision
    return reply


def _read(request: Any, caller: Caller, project: str) -> tuple[list[Desired], Faults]:
    """The objects that can be read at all, and the faults of the others."""
    found: list[Desired] = []
    faults = Faults()
    for index, item in enumerate(request.objects):
        name = item.resource.type_url.rpartition(".")[2]
        kind = KINDS.get(name)
        try:
            if kind is None:
                accepted = ", ".join(KINDS)
                raise wrong("resource", "ENUM_INVALID", f"{quoted(name)} is no kind of resource; accepted: {accepted}")
            if len(item.resource.value) > kernel.LARGEST_RESOURCE:
                text = f"the {kind.noun} has {len(item.resource.value)} bytes; {kernel.LARGEST_RESOURCE} fit"
                raise wrong("resource", "TOO_MANY_VALUES", text)
            try:
                message = kind.new(item.resource.value)
            except DecodeError:
                raise wrong("resource", "STRING_INVALID", f"the bytes are no {kind.name}") from None
            clear_output(message)
            refuse(list(too_many(message)))
            unknown = [path for path in item.fields.paths if path not in kind.descriptor.fields_by_name]
            if unknown:
                raise wrong("fields", "FIELD_MASK_INVALID", f"{quoted(min(unknown))} is no field of {kind.name}")
            asked = message.project_id if kind.owned else ""
            if kind.owned and not message.project_id:
                message.project_id = project
            if not message.id and not message.name:
                raise wrong("name", "MISSING_FIELD", f"the {kind.noun} needs a name or an id to be known by")
        except ApiError as error:
            faults.add(index, error)
            continue
        found.append(Desired(index, kind, message, list(item.fields.paths), item.key or message.name, asked_project=asked))
    return found, faults


class _Plan:
    """One attempt."""

    def __init__(self, transaction: Transaction, context: Context, request: Any, project: str, faults: Faults) -> None:
        self._transaction = transaction
        self._context = context
        self._applied = replace(context, applied=True)
        self._project = project
        self._prune_tag = request.prune_tag
        # Whoever asks for the plan wants to see all of what is made; else it is what he sent.
        self._tells_all = request.validate_only
        self._faults = faults
        self._by_key: dict[tuple[str, str], list[Desired]] = {}
        # (kind, project, parent, name) of what is made by name → its place in the request
        self._new_names: dict[tuple[str, str, str, str], int] = {}
        self._faulty: set[tuple[str, str]] = set()  # objects that will not be made

    def run(self, given: list[Desired], ids: list[str]) -> pb.ApplyResponse:
        desired = [
            Desired(item.index, item.kind, kernel.copy(item.message), item.fields, item.key, False, item.asked_project)
            for item in given
        ]
        for item in desired:
            if item.key:
                self._by_key.setdefault((item.kind.name, item.key), []).append(item)
        self._identify(desired, ids)
        for item in desired:
            if not self._faults.at(item.index):
                self._try(item.index, self._resolve, item)
        reply = pb.ApplyResponse()
        if self._prune_tag:
            self._prune(desired, reply)
        for item in sorted(desired, key=lambda item: ORDER.index(item.kind)):
            self._try(item.index, self._make, item, reply)
            if self._faults.at(item.index):
                self._faulty.add((item.kind.name, item.message.id))
        self._alone_in_projects()
        if self._faults:
            raise self._faults.error()
        return reply

    def _try(self, index: int, step: Any, *arguments: Any) -> None:
        try:
            step(*arguments)
        except ApiError as error:
            self._faults.add(index, error)

    # -- which object is meant ----------------------------------------------------------------------------------------

    def _identify(self, desired: list[Desired], ids: list[str]) -> None:
        """Give every object its id: parents first, since a child's name is looked for in its network."""
        taken: dict[tuple[str, str], int] = {}
        fresh = dict(zip((item.index for item in desired), ids, strict=True))
        for item in sorted(desired, key=lambda item: ORDER.index(item.kind)):
            self._try(item.index, self._identify_one, item, fresh[item.index])
            twin = taken.setdefault((item.kind.name, item.message.id), item.index)
            if item.message.id and twin != item.index:
                text = f"it is the same {item.kind.noun} as objects[{twin}]; state it once"
                self._faults.add(item.index, wrong("id", "DUPLICATE_VALUE", text))
            elif item.message.id:
                self._transaction.promised.add((item.kind.name, item.message.id))

    def _identify_one(self, item: Desired, fresh: str) -> None:
        kind, message = item.kind, item.message
        if message.id:
            if not kind.options.implicit:
                message.id = message.id.lower()
            stored = self._transaction.object(kind, message.id)
            item.exists = kind.options.implicit or (stored is not None and kernel.visible(kind, stored, self._context.caller))
            return
        if kind.parent:
            value = kind.parent_of(message)
            if value:
                setattr(message, kind.parent, self._meant(kind.parent, kind.parent_kind, value))
        found = list(self._named(kind, message.name, message.project_id, kind.parent_of(message)))
        if len(found) > 1:
            shown = ", ".join(sorted(other.id for other in found))
            raise wrong(
                "name",
                "DUPLICATE_VALUE",
                f"{len(found)} {kind.options.plural} have the name {message.name}: {shown}; give the id",
            )
        if not found and kind.options.implicit:
            text = f"no {kind.noun} has the name {quoted(message.name)}; give the id of the one that is meant"
            raise wrong("id", "MISSING_FIELD", text)
        there = found[0].id if found else self._always_there(kind, message.name, message.project_id)
        item.exists = bool(there)
        message.id = there or fresh
        if not there:
            place = (kind.name, message.project_id, kind.parent_of(message), message.name)
            twin = self._new_names.setdefault(place, item.index)
            if twin != item.index:
                text = f"objects[{twin}] is a new {kind.noun} of the same name; give them different names, or ids"
                raise wrong("name", "DUPLICATE_VALUE", text)

    def _alone_in_projects(self) -> None:
        """Names need not be unique, so two requests could make an object of one name twice: they go one after the other."""
        for project in sorted({project for _, project, _, _ in self._new_names}):
            key = keys.apply(project)
            self._transaction.read(key)
            self._transaction.put(key, store_pb2.Index(project_id=project))

    def _named(self, kind: Kind, name: str, project: str, parent_id: str = "") -> Iterator[Any]:
        """Existing objects of a name in a project (and network) that the caller may see."""
        for object_id in self._transaction.cache.named(kind, project if kind.owned else "", name, parent_id):
            stored = self._transaction.object(kind, object_id)
            if stored is not None and kernel.visible(kind, stored, self._context.caller):
                yield stored

    def _always_there(self, kind: Kind, name: str, project: str) -> str:
        """The id of an object that every project has, made with the first apply that names it; "": none of that name."""
        return services.RULES[kind.name].always_there(self._transaction, name, project, self._context)

    # -- what its fields mean -----------------------------------------------------------------------------------------

    def _resolve(self, item: Desired) -> None:
        """Put ids where fields hold keys or names."""
        self._resolve_message(item.message, "")

    def _resolve_message(self, message: Any, path: str) -> None:
        for item, value in message.ListFields():
            kind = rules(item).reference
            where = f"{path}{item.name}"
            if kind and item.is_repeated:
                value[:] = [self._meant(f"{where}[{number}]", kind, text) for number, text in enumerate(value)]
            elif kind:
                setattr(message, item.name, self._meant(where, kind, value))
            elif holds_messages(item):
                for number, inner in enumerate(value if item.is_repeated else [value]):
                    self._resolve_message(inner, f"{where}[{number}]." if item.is_repeated else f"{where}.")

    def _meant(self, where: str, kind_name: str, text: str) -> str:
        """The id of the object that a field's text means: an id, a key of the request, a name."""
        kind = KINDS.get(kind_name)
        if kind is None or kind.options.operator_named:
            return text
        try:
            return identifier(text)
        except Invalid:
            pass
        known = self._by_key.get((kind_name, text), [])
        ids = [item.message.id for item in known] or [found.id for found in self._named(kind, text, self._project)]
        if len(ids) == 1 and ids[0]:
            return str(ids[0])
        if not ids and (there := self._always_there(kind, text, self._project)):
            return there
        if not ids:
            text = (
                f"{where} names the {kind.noun} {quoted(text)}, which is neither in the request nor in project {self._project}"
            )
            raise ApiError(Code.NOT_FOUND, "REFERENCE_NOT_FOUND", text, {"field": where, "kind": kind_name})
        if not any(ids):
            return text
        shown = ", ".join(sorted(ids))
        raise wrong(where, "DUPLICATE_VALUE", f"{where}: {quoted(text)} may be {shown}; give the id")

    def _names_faulty(self, message: Any) -> bool:
        """Whether an object refers to one that will not be made."""
        return any((name, meant) in self._faulty for _, name, meant in kernel.references(message))

    # -- doing it -----------------------------------------------------------------------------------------------------

    def _prune(self, desired: list[Desired], reply: pb.ApplyResponse) -> None:
        """Delete what carries the tag and is not in the request, children first; what is in it gets the tag."""
        wanted = {(item.kind.name, item.message.id) for item in desired}
        for item in desired:
            stated = "tags" in item.fields if item.fields else bool(item.message.tags)
            stored = None if stated else self._transaction.object(item.kind, item.message.id)
            tags = {*item.message.tags, *(stored.tags if stored is not None else ()), self._prune_tag}
            item.message.tags[:] = sorted(tags)
            if item.fields and not stated:
                item.fields = [*item.fields, "tags"]
        for kind in reversed(ORDER):
            if not kind.owned:
                continue
            for object_id in list(self._transaction.cache.ids(kind, self._project)):
                stored = self._transaction.object(kind, object_id)
                if stored is None or self._prune_tag not in stored.tags or (kind.name, object_id) in wanted:
                    continue
                self._try(PRUNED, self._delete, kind, stored, reply)

    def _delete(self, kind: Kind, stored: Any, reply: pb.ApplyResponse) -> None:
        authorize(self._context.caller, kind.name, "Delete")
        kernel.delete(self._transaction, kind, stored.id, self._context)
        reply.objects.add(
            index=PRUNED,
            action=pb.ACTION_DELETE,
            kind=kind.name,
            id=stored.id,
            name=stored.name,
            fields=of_kind(kind, stored, None) if self._tells_all else (),
        )

    def _make(self, item: Desired, reply: pb.ApplyResponse) -> None:
        kind, message = item.kind, item.message
        if not item.exists:
            authorize(self._context.caller, kind.name, "Create")
            context = replace(self._applied, stated=frozenset(item.fields)) if item.fields else self._applied
            draft = kernel.prepare(kind, message, context)
            for fault in draft.faults:
                if not self._faults.at(item.index, fault.field):
                    self._faults.add(item.index, ApiError(fault.code, fault.reason, fault.message, {"field": fault.field}))
            if self._faults.at(item.index) or (self._faulty and self._names_faulty(message)):
                self._faulty.add((kind.name, message.id))
                return  # what it would be refused for is no fault of its own
            # A child is of its network's project, whatever the project of the request is.
            new = kernel.create(self._transaction, kind, draft, context, item.asked_project)
            reply.objects.add(
                index=item.index,
                action=pb.ACTION_CREATE,
                kind=kind.name,
                id=new.id,
                name=new.name,
                fields=of_kind(kind, None, new) if self._tells_all else (),
            )
            return
        if self._faults.at(item.index):
            return
        authorize(self._context.caller, kind.name, "Update")
        before = self._transaction.object(kind, message.id) or services.RULES[kind.name].default(message.id, self._context)
        if before is None:
            raise not_found(kind.name, message.id)
        before = kernel.copy(before)
        paths = [name for name in item.fields if name not in ("id", "project_id")]
        # What the server has set and the request leaves out stays; an immutable field may be stated as it is.
        if kind.owned and not item.asked_project:
            message.ClearField("project_id")
        after = kernel.update(self._transaction, kind, message, paths, replace(self._context, applied=True))
        fields = of_kind(kind, before, after)
        reply.objects.add(
            index=item.index,
            action=pb.ACTION_UPDATE if fields else pb.ACTION_NONE,
            kind=kind.name,
            id=message.id,
            name=after.name,
            fields=fields,
        )
