"""Create, Get, List, Update and Delete for every kind: the methods. What a write does is in services/kernel.py."""

from __future__ import annotations

import bisect
import hashlib
import heapq
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

from controlplane.api import filtering, listing
from controlplane.api.output import Output
from controlplane.api.pace import paced
from controlplane.api.past import Past
from controlplane.errors import ApiError, Code, StoreUnavailable, fault, not_found, refuse, unavailable
from controlplane.identity import Caller
from controlplane.masks import read_mask
from controlplane.registry import Kind
from controlplane.services import RULES, kernel
from controlplane.services.base import Context, Method
from controlplane.store import keys
from controlplane.store.cache import Cache
from controlplane.store.commit import Committer, Repeat
from controlplane.store.txn import Origin, Transaction
from controlplane.validate import check
from kumihimo.v1 import resource_pb2

LONGEST_REQUEST_ID = 64

Handler = Callable[[Any, Context, Origin], Awaitable[Any]]


class Crud:
    """The standard methods of one kind."""

    def __init__(self, kind: Kind, committer: Committer, output: Output) -> None:
        self._kind = kind
        self._committer = committer
        self._cache: Cache = committer.cache
        self._output = output
        self._past = Past(committer.store)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def get(self, request: resource_pb2.GetRequest, context: Context, origin: Origin) -> Any:
        shown = read_mask(self._kind, request.read_mask)
        await current(self._cache)
        if request.at_revision:
            found = await self._past.get(self._kind, request.id, request.at_revision)
            if found is None or not kernel.visible(self._kind, found, context.caller):
                raise not_found(self._kind.name, request.id or '""')
            return shown(self._output.past(found, context.caller))
        key = self._cache.locate(self._kind, request.id)
        message = self._cache.message(self._kind, key) if key else None
        if message is None and self._kind.options.implicit:
            message = RULES[self._kind.name].default(request.id, context)
        if message is None or not kernel.visible(self._kind, message, context.caller):
            raise not_found(self._kind.name, request.id or '""')
        return shown(self._output.fill(kernel.copy(message), context.caller, request.read_mask.paths))

    async def list(self, request: resource_pb2.ListRequest, context: Context, origin: Origin) -> Any:
        caller = context.caller
        size = listing.page_size(request.page_size)
        accepts = filtering.predicate(self._kind, request.filter)
        order = listing.Order(self._kind, request.order_by)
        after = order.after(request.page_token)
        shown = read_mask(self._kind, request.read_mask)
        refuse_foreign_project(request.project_id, caller)
        await current(self._cache)
        response = self._kind.reply("List")(revision=request.at_revision or self._cache.revision)
        if request.at_revision:
            candidates = iter(await self._past.list(self._kind, request.at_revision))

            def fill(message: Any) -> Any:
                return self._output.past(message, caller)
        else:
            # All of a project's objects can be seen by who may ask for them: without a filter one page needs no more.
            most = size + 1 if order.is_by_id and not request.filter else None
            candidates = self._candidates(request.project_id, caller, after, most)

            def fill(message: Any) -> Any:
                return self._output.fill(kernel.copy(message), caller, request.read_mask.paths)

        asked = request.project_id
        later = listing.later_than(order, after)
        walk = self._wanted(candidates, asked, caller, accepts if request.filter else None, fill)
        if order.is_by_id:
            found: AsyncIterator[Any] = (message async for message in walk if later(order.place(message)))
        else:
            places = [(order.key(place), message) async for message in walk if later(place := order.place(message))]
            first = heapq.nsmallest(size + 1, places, key=lambda pair: pair[0])
            found = paced(message for _, message in first)
        last: listing.Place = ()
        size_left = listing.LARGEST_REPLY
        async for message in found:
            if len(response.items) == size or size_left <= 0:
                response.next_page_token = order.token(last)
                break
            last = order.place(message)
            response.items.append(shown(fill(message)))
            size_left -= response.items[-1].ByteSize()
        return response

    def _candidates(self, project: str, caller: Caller, after: listing.Place | None, most: int | None) -> Iterator[Any]:
        """Objects that may be asked for, by id; without output fields, and not to be changed.

        most: how many, None for all. The walk gives way to others meanwhile, so what is there is taken now: a list shows
        what was at the revision that it names.
        """
        if self._kind.owned and not caller.is_operator:
            project = project or caller.project
        if not self._kind.owned:
            project = ""
        if most is None:
            entries = self._cache.entries(self._kind, project)
        else:
            ids = self._cache.ids(self._kind, project)
            first = bisect.bisect_right(ids, after[-1]) if after else 0
            located = (self._cache.located(self._kind, object_id) for object_id in islice(ids, first, None))
            entries = list(islice((pair for pair in located if pair), most))
        return (self._cache.parsed(self._kind, key, entry) for key, entry in entries)

    async def _wanted(
        self,
        candidates: Iterable[Any],
        project: str,
        caller: Caller,
        accepts: filtering.Predicate | None,
        fill: Callable[[Any], Any],
    ) -> AsyncIterator[Any]:
        """Those that the request asks for and the caller may see."""
        async for message in paced(candidates):
            if not kernel.visible(self._kind, message, caller):
                continue
            if project and message.project_id != project:
                continue
            # A filter or an order may ask for what is made at read, as the caller sees it.
            if accepts is None or accepts(fill(message)):
                yield message

    # -- writing ------------------------------------------------------------------------------------------------------

    async def create(self, request: Any, context: Context, origin: Origin, asked: Any = None) -> Any:
        """asked: what the client sent, where that is an update of something missing."""
        draft = kernel.prepare(self._kind, request.resource, context)
        refuse(draft.faults)
        project = request.resource.project_id

        def attempt(transaction: Transaction) -> Any:
            return kernel.create(transaction, self._kind, draft, context, project)

        return await self._commit(attempt, asked or request, context, origin)

    async def update(self, request: Any, context: Context, origin: Origin) -> Any:
        given = request.resource
        if not given.id:
            raise fault("resource.id", "MISSING_FIELD", "resource.id is missing; it names what to update")
        if request.allow_missing:
            await current(self._cache)
            if self._cache.locate(self._kind, given.id) is None and not self._kind.options.implicit:
                create = self._kind.request("Create")(
                    resource=given, request_id=request.request_id, validate_only=request.validate_only
                )
                return await self.create(create, context, origin, asked=request)

        def attempt(transaction: Transaction) -> Any:
            return kernel.update(transaction, self._kind, given, list(request.update_mask.paths), context)

        return await self._commit(attempt, request, context, origin)

    async def delete(self, request: Any, context: Context, origin: Origin) -> Any:
        def attempt(transaction: Transaction) -> Any:
            try:
                kernel.delete(transaction, self._kind, request.id, context, etag=request.etag, force=request.force)
            except ApiError as error:
                if not request.allow_missing or error.reason != "RESOURCE_NOT_FOUND":
                    raise
            return resource_pb2.DeleteResponse()

        return await self._commit(attempt, request, context, origin)

    def change(self, method: Method, complete: Callable[[Any], None] | None = None) -> Handler:
        """The handler of a method that changes an object of the kind and gives it. complete: what a request may leave out."""

        async def handler(request: Any, context: Context, origin: Origin) -> Any:
            if complete is not None:
                complete(request)
            refuse(check(request, operator=context.caller.is_operator))

            def attempt(transaction: Transaction) -> Any:
                return method(transaction, request, context.at(transaction))

            return await self._commit(attempt, request, context, origin)

        return handler

    def read(self, method: Method) -> Handler:
        """The handler of a method that reads what is now."""

        async def handler(request: Any, context: Context, origin: Origin) -> Any:
            refuse(check(request, operator=context.caller.is_operator))
            reply, _ = await self._committer.rehearse(lambda transaction: method(transaction, request, context), origin)
            return reply

        return handler

    async def _commit(self, attempt: Callable[[Transaction], Any], request: Any, context: Context, origin: Origin) -> Any:
        """Commit once per request id; the reply with revision and output fields."""
        if request.validate_only:
            reply, revision = await self._committer.rehearse(attempt, origin)
        else:
            reply, revision = await self._committer.commit(attempt, origin, repeat_of(request, origin, _dump, self._load))
        if isinstance(reply, resource_pb2.DeleteResponse):
            reply.revision = reply.revision or revision
            return reply
        # What an update found as it should be shows the revision of its last change.
        reply.revision = reply.revision or revision
        if not request.validate_only:
            reply.etag = format(reply.revision, "x")
            await caught_up(self._cache, max(reply.revision, revision))
        return self._output.fill(reply, context.caller)

    def _load(self, stored: bytes, revision: int) -> Any:
        """The first result of a request that is repeated."""
        delete = not stored or stored == _DELETED
        reply = resource_pb2.DeleteResponse() if delete else self._kind.new(stored)
        reply.revision = reply.revision or revision
        return reply


_DELETED = b"-"


def _dump(reply: Any) -> bytes:
    return _DELETED if isinstance(reply, resource_pb2.DeleteResponse) else bytes(reply.SerializeToString())


def repeat_of(
    request: Any, origin: Origin, dump: Callable[[Any], bytes], load: Callable[[bytes, int], Any]
) -> Repeat[Any] | None:
    """How a request that names itself is known again; None when it does not. Raises STRING_TOO_LONG."""
    if not request.request_id:
        return None
    if len(request.request_id) > LONGEST_REQUEST_ID:
        raise fault("request_id", "STRING_TOO_LONG", f"request_id: at most {LONGEST_REQUEST_ID} characters are accepted")
    # Field numbers are in order and maps are few: what the client sent, less its name.
    name, request.request_id = request.request_id, ""
    digest = hashlib.sha256(origin.method.encode() + request.SerializeToString(deterministic=True)).digest()
    request.request_id = name
    return Repeat(name, keys.request(origin.actor, origin.project_id, name), digest, dump, load)


def refuse_foreign_project(project: str, caller: Caller) -> None:
    """Raise FIELD_FORBIDDEN for a list of a project that the caller does not see."""
    if project and not caller.sees(project):
        raise ApiError(
            Code.PERMISSION_DENIED, "FIELD_FORBIDDEN", f"project_id may be {caller.project} only", {"field": "project_id"}
        )


async def current(cache: Cache) -> None:
    """Wait until the cache holds all that was written before. Raises STORE_UNAVAILABLE."""
    try:
        await cache.sync()
    except StoreUnavailable as error:
        raise unavailable(error) from error


async def caught_up(cache: Cache, revision: int) -> None:
    """Wait until the cache holds a revision, so that who wrote it reads it. Raises STORE_UNAVAILABLE."""
    try:
        await cache.reach(revision)
    except StoreUnavailable as error:
        raise unavailable(error) from error
