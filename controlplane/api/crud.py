"""Create, Get, List, Update and Delete for every kind: the generic kernel.

The way of a write: descriptor's rules → defaults → kind's checks → (attempt: request replay, references, kind's claims,
what is to be written) → commit. The attempt may run several times and touches nothing but its transaction.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterator
from typing import Any

from google.protobuf.message_factory import GetMessageClass

from controlplane.api import filtering, listing
from controlplane.api.leases import RequestLease
from controlplane.api.masks import merged, read_mask
from controlplane.api.output import Output, strip
from controlplane.errors import (
    ApiError,
    Code,
    StoreUnavailable,
    Violation,
    etag_mismatch,
    fault,
    not_found,
    precondition,
    reference_not_found,
    refuse,
    unavailable,
)
from controlplane.identity import Caller
from controlplane.registry import KINDS, Kind, rules
from controlplane.services import RULES
from controlplane.services.base import Context, label
from controlplane.store import keys
from controlplane.store.cache import Cache, parse
from controlplane.store.client import Store
from controlplane.store.txn import Origin, Transaction, commit, time_ordered_id
from controlplane.validate import check, clear_output
from kumihimo.v1 import resource_pb2, store_pb2

LONGEST_REQUEST_ID = 64
LARGEST_RESOURCE = 256 * 1024  # bytes stored


class Crud:
    """The standard methods of one kind."""

    def __init__(self, kind: Kind, store: Store, cache: Cache, output: Output, lease: RequestLease) -> None:
        self._kind = kind
        self._rules = RULES[kind.name]
        self._store = store
        self._cache = cache
        self._output = output
        self._lease = lease

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, request: resource_pb2.GetRequest, context: Context, origin: Origin) -> Any:
        shown = read_mask(self._kind, request.read_mask)
        await self._current()
        return shown(self._output.fill(self._visible(request.id, context.caller), context.caller))

    async def list(self, request: resource_pb2.ListRequest, context: Context, origin: Origin) -> Any:
        caller = context.caller
        size = listing.page_size(request.page_size)
        accepts = filtering.predicate(self._kind, request.filter)
        order = listing.Order(self._kind, request.order_by)
        after = order.after(request.page_token)
        shown = read_mask(self._kind, request.read_mask)
        if request.project_id and not caller.sees(request.project_id):
            raise ApiError(
                Code.PERMISSION_DENIED,
                "FIELD_FORBIDDEN",
                f"project_id may be {caller.project} only",
                {"field": "project_id"},
            )
        await self._current()
        found = self._after(order, after, self._matching(request, caller, accepts, after if order.is_by_id else None))
        response = _response_class(self._kind, "List")(revision=self._cache.revision)
        last: listing.Place = ()
        for message in found:
            if len(response.items) == size:
                response.next_page_token = order.token(last)
                break
            last = order.place(message)
            response.items.append(shown(self._output.fill(_copy(message), caller)))
        return response

    def _matching(
        self, request: resource_pb2.ListRequest, caller: Caller, accepts: filtering.Predicate, after: listing.Place | None
    ) -> Iterator[Any]:
        """Visible objects that the request asks for, by id; without output fields."""
        ids = self._cache.ids(self._kind)
        for object_id in ids[bisect.bisect_right(ids, after[-1]) if after else 0 :]:
            message = self._stored(object_id)
            if message is None or not self._is_visible(message, caller):
                continue
            if request.project_id and message.project_id != request.project_id:
                continue
            # A filter or an order may ask for what is made at read, as the caller sees it.
            if request.filter and not accepts(self._output.fill(_copy(message), caller)):
                continue
            yield message

    def _after(self, order: listing.Order, after: listing.Place | None, found: Iterator[Any]) -> Iterator[Any]:
        if order.is_by_id:
            yield from found
            return
        later = listing.later_than(order, after)
        places = [(order.key(place), message) for message in found if later(place := order.place(message))]
        yield from (message for _, message in sorted(places, key=lambda pair: pair[0]))

    # -- writing ------------------------------------------------------------------------------------------------------

    async def create(self, request: Any, context: Context, origin: Origin, asked: Any = None) -> Any:
        """asked: what the client sent, where that is an update of something missing."""
        new = _copy(request.resource)
        clear_output(new)
        new.ClearField("etag")
        found = [*self._set_project(new, context.caller), *check(new, operator=context.caller.is_operator)]
        self._rules.complete(new, context)
        refuse([*found, *self._rules.check(new, None, context)])
        new.id = new.id or time_ordered_id()

        def attempt(transaction: Transaction) -> Any:
            message = _copy(new)
            self._refuse_taken_id(transaction, message.id)
            self._require_references(transaction, message, None, context.caller)
            if self._kind.options.parent:
                self._refuse_foreign_parent(transaction, request.resource)
            self._rules.create(transaction, message, context)
            message.create_time.GetCurrentTime()
            message.creator = origin.actor
            return self._write(transaction, message, origin)

        return await self._commit(attempt, asked or request, context, origin)

    async def update(self, request: Any, context: Context, origin: Origin) -> Any:
        given = request.resource
        if not given.id:
            raise fault("resource.id", "MISSING_FIELD", "resource.id is missing; it names what to update")
        await self._current()
        if request.allow_missing and self._stored(given.id) is None:
            create = _request_class(self._kind, "Create")(
                resource=given, request_id=request.request_id, validate_only=request.validate_only
            )
            return await self.create(create, context, origin, asked=request)

        def attempt(transaction: Transaction) -> Any:
            old = self._visible(given.id, context.caller, transaction)
            self._check_etag(old, given.etag)
            new = merged(old, given, list(request.update_mask.paths))
            found = check(new, operator=context.caller.is_operator, old=old)
            self._rules.complete(new, context)
            refuse([*found, *self._rules.check(new, old, context)])
            self._require_references(transaction, new, old, context.caller)
            self._rules.update(transaction, old, new, context)
            strip(old)
            strip(new)
            if new == old:
                return self._stored(given.id)
            return self._write(transaction, new, origin)

        return await self._commit(attempt, request, context, origin)

    async def delete(self, request: Any, context: Context, origin: Origin) -> Any:
        await self._current()

        def attempt(transaction: Transaction) -> Any:
            if request.allow_missing and not self._sees(request.id, context.caller):
                return resource_pb2.DeleteResponse()
            old = self._visible(request.id, context.caller, transaction)
            self._check_etag(old, request.etag)
            if old.deletion_protection:
                raise precondition(
                    "DELETION_PROTECTED",
                    f"{self._kind.name} {label(old.id, old.name)} is protected; set deletion_protection to false first",
                )
            self._rules.delete(transaction, old, request.force, context)
            key = self._cache.locate(self._kind, old.id)
            if key is not None and self._kind.name != "Network":  # a network's whole scope is gone with it
                transaction.delete(key)
            if self._kind.options.parent:
                transaction.delete(keys.index(self._kind.name, old.id))
            transaction.resources.append(f"{self._kind.noun}/{old.id}")
            return resource_pb2.DeleteResponse()

        return await self._commit(attempt, request, context, origin)

    # -- parts --------------------------------------------------------------------------------------------------------

    async def _commit(self, attempt: Any, request: Any, context: Context, origin: Origin) -> Any:
        """Commit once per request id; the reply with revision and output fields."""
        replay = await self._replay_of(request, origin)

        def once(transaction: Transaction) -> Any:
            if replay is None:
                return attempt(transaction)
            key, digest, lease = replay
            seen = transaction.read(key)
            if seen is None:
                reply = attempt(transaction)
                stored = _copy(reply)
                if stored.DESCRIPTOR.full_name == self._kind.descriptor.full_name:
                    strip(stored)
                    # An update that changed nothing shows the revision of the last change, not that of this record.
                    stored.revision = reply.revision
                record = store_pb2.RequestRecord(digest=digest, reply=stored.SerializeToString())
                transaction.put(key, record, lease)
                return reply
            record = store_pb2.RequestRecord.FromString(seen.value)
            if record.digest != digest:
                raise ApiError(
                    Code.ALREADY_EXISTS,
                    "REQUEST_ID_REUSED",
                    f"request_id {origin.request_id} was used for another request; use a new one",
                )
            reply = _reply_class(self._kind, origin.method).FromString(record.reply)
            reply.revision = reply.revision or seen.create_revision
            return reply

        reply, revision = await commit(self._store, self._cache, once, origin, dry_run=request.validate_only)
        if not reply.revision:
            reply.revision = revision
        if not isinstance(reply, resource_pb2.DeleteResponse):
            if not request.validate_only:
                reply.etag = format(reply.revision, "x")
            try:
                await self._cache.reach(reply.revision)
            except StoreUnavailable as error:
                raise unavailable(str(error)) from error
            self._output.fill(reply, context.caller)
        return reply

    async def _replay_of(self, request: Any, origin: Origin) -> tuple[str, bytes, int] | None:
        if not request.request_id or request.validate_only:
            return None
        if len(request.request_id) > LONGEST_REQUEST_ID:
            raise fault("request_id", "STRING_TOO_LONG", f"request_id: at most {LONGEST_REQUEST_ID} characters are accepted")
        body = _copy(request)
        body.ClearField("request_id")
        digest = hashlib.sha256(origin.method.encode() + body.SerializeToString(deterministic=True)).digest()
        try:
            return keys.request(origin.actor, request.request_id), digest, await self._lease.current()
        except StoreUnavailable as error:
            raise unavailable(str(error)) from error

    async def _current(self) -> None:
        try:
            await self._cache.sync()
        except StoreUnavailable as error:
            raise unavailable(str(error)) from error

    def _stored(self, object_id: str) -> Any | None:
        key = self._cache.locate(self._kind, object_id)
        entry = self._cache.get(key) if key else None
        return parse(self._kind, entry) if entry else None

    def _visible(self, object_id: str, caller: Caller, transaction: Transaction | None = None) -> Any:
        """The stored object; compared at commit when a transaction is given. Raises NOT_FOUND."""
        key = self._cache.locate(self._kind, object_id)
        entry = None
        if key is not None:
            entry = transaction.read(key) if transaction else self._cache.get(key)
        message = parse(self._kind, entry) if entry else None
        if message is None or not self._is_visible(message, caller):
            raise not_found(self._kind.name, object_id or '""')
        return message

    def _sees(self, object_id: str, caller: Caller) -> bool:
        message = self._stored(object_id)
        return message is not None and self._is_visible(message, caller)

    def _is_visible(self, message: Any, caller: Caller) -> bool:
        return self._kind.options.operator_named or caller.sees(message.project_id)

    def _check_etag(self, old: Any, etag: str) -> None:
        if etag and etag != old.etag:
            raise etag_mismatch(self._kind.name, old.id, old.etag)

    def _set_project(self, new: Any, caller: Caller) -> Iterator[Violation]:
        if self._kind.options.operator_named:
            return
        if new.project_id and new.project_id != caller.project and not caller.is_operator:
            yield Violation(
                "project_id",
                "FIELD_FORBIDDEN",
                f"project_id may be {caller.project} only; another project's needs the operator role",
                Code.PERMISSION_DENIED,
            )
        new.project_id = new.project_id or caller.project

    def _refuse_taken_id(self, transaction: Transaction, object_id: str) -> None:
        parented = bool(self._kind.options.parent)
        key = keys.index(self._kind.name, object_id) if parented else keys.place(self._kind, object_id)
        if transaction.read(key) is not None:
            raise ApiError(
                Code.ALREADY_EXISTS,
                "ID_TAKEN",
                f"{self._kind.name} {object_id} exists; leave id out to have one made",
                {"id": object_id},
            )

    def _require_references(self, transaction: Transaction, new: Any, old: Any | None, caller: Caller) -> None:
        """Every object that a new or changed field names exists, is visible, and stays until the commit."""
        for path, kind_name, object_id in _references(new, old):
            kind = KINDS.get(kind_name)
            key = self._cache.locate(kind, object_id) if kind else None
            entry = transaction.require(key) if key else None
            if kind is None or entry is None:
                raise reference_not_found(path, kind_name, object_id)
            target = parse(kind, entry)
            if not kind.options.operator_named and not caller.sees(target.project_id):
                raise reference_not_found(path, kind_name, object_id)

    def _refuse_foreign_parent(self, transaction: Transaction, given: Any) -> None:
        """A child belongs to its parent's project; one that is asked for in another project cannot see the parent."""
        entry = transaction.require(keys.network(given.network_id.lower()))
        parent = parse(KINDS["Network"], entry) if entry else None
        if given.project_id and parent is not None and parent.project_id != given.project_id:
            raise reference_not_found("network_id", "Network", given.network_id)

    def _write(self, transaction: Transaction, message: Any, origin: Origin) -> Any:
        strip(message)
        message.update_time.GetCurrentTime()
        message.last_modifier = origin.actor
        if message.ByteSize() > LARGEST_RESOURCE:
            raise ApiError(
                Code.INVALID_ARGUMENT,
                "TOO_MANY_VALUES",
                f"the object has {message.ByteSize()} bytes; {LARGEST_RESOURCE} fit",
            )
        network_id = ""
        if self._kind.options.parent:
            network_id = message.network_id
            index_key = keys.index(self._kind.name, message.id)
            if self._cache.get(index_key) is None:
                transaction.put(index_key, store_pb2.Index(network_id=network_id))
        transaction.put(keys.place(self._kind, message.id, network_id), message)
        transaction.resources.append(f"{self._kind.noun}/{message.id}")
        return message


def _references(new: Any, old: Any | None) -> Iterator[tuple[str, str, str]]:
    """(path, kind, id) of every reference field that is set and changed, nested ones included."""
    for field, value in new.ListFields():
        if old is not None and value == getattr(old, field.name):
            continue
        kind = rules(field).reference
        if kind and field.is_repeated:
            for number, item in enumerate(value):
                yield f"{field.name}[{number}]", kind, item
        elif kind and value:
            yield field.name, kind, value
        elif field.message_type is not None and field.is_repeated and not field.message_type.GetOptions().map_entry:
            for number, item in enumerate(value):
                for path, inner, object_id in _references(item, None):
                    yield f"{field.name}[{number}].{path}", inner, object_id


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _method(kind: Kind, name: str) -> Any:
    return kind.service.methods_by_name[name]


def _request_class(kind: Kind, name: str) -> Any:
    return GetMessageClass(_method(kind, name).input_type)


def _response_class(kind: Kind, name: str) -> Any:
    return GetMessageClass(_method(kind, name).output_type)


def _reply_class(kind: Kind, method: str) -> Any:
    return _response_class(kind, method.rsplit("/", 1)[1])
