"""Every error that a client of the API can see, on one screen.

An `ApiError` becomes a `google.rpc.Status` with typed details in one place, `controlplane/api/dispatch.py`. Messages are
one sentence that names the object and says what would be accepted. Reasons are part of the API (RESOURCES, errors).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc

Code = grpc.StatusCode


@dataclass(frozen=True, slots=True)
class Violation:
    """One fault of one field. `field` is a path such as `fixed_ips[0].ip_address`."""

    field: str
    reason: str
    message: str
    code: grpc.StatusCode = Code.INVALID_ARGUMENT


@dataclass(eq=False)
class ApiError(Exception):
    """What a handler raises to refuse a request."""

    code: grpc.StatusCode
    reason: str
    message: str
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: Sequence[Violation] = ()

    def __str__(self) -> str:
        return f"{self.message} [{self.reason}]"


class StoreUnavailable(Exception):
    """etcd does not answer, or answered that it cannot serve. The outcome of a write may be unknown."""

    pause = 0.0
    """Seconds, at least, after which it is worth asking again."""


class StoreRefused(StoreUnavailable):
    """etcd answers, and does not let this process: the user of its certificate is missing, or may not do this."""

    pause = 2.0


class StoreFull(StoreUnavailable):
    """etcd has reached its quota and takes no writes; it still answers reads. The message says what to do."""


class BadConfig(Exception):
    """A configuration file that cannot be used; the message names file, field and what would be accepted."""


# What is reported first when one request has faults of several kinds: a malformed request is malformed whoever sends it.
_ORDER = (Code.INVALID_ARGUMENT, Code.PERMISSION_DENIED, Code.NOT_FOUND, Code.UNIMPLEMENTED)


def refuse(violations: Sequence[Violation]) -> None:
    """Raise one error for all of a request's faults; returns when there are none."""
    if not violations:
        return
    rank = {code: number for number, code in enumerate(_ORDER)}
    worst = sorted(violations, key=lambda violation: rank.get(violation.code, len(rank)))
    first = worst[0]
    same = tuple(violation for violation in worst if violation.code is first.code)
    raise ApiError(first.code, first.reason, first.message, {"field": first.field}, same)


def fault(field: str, reason: str, message: str) -> ApiError:
    """INVALID_ARGUMENT for one field."""
    violation = Violation(field, reason, message)
    return ApiError(Code.INVALID_ARGUMENT, reason, message, {"field": field}, (violation,))


def not_found(kind: str, object_id: str) -> ApiError:
    """The object is missing, or the caller may not see it: the two must not be told apart."""
    return ApiError(
        Code.NOT_FOUND,
        "RESOURCE_NOT_FOUND",
        f"{kind} {object_id} does not exist",
        {"kind": kind, "id": object_id},
    )


def reference_not_found(field: str, kind: str, object_id: str) -> ApiError:
    """A field names an object that is missing or invisible."""
    return ApiError(
        Code.NOT_FOUND,
        "REFERENCE_NOT_FOUND",
        f"{field} names {kind} {object_id}, which does not exist",
        {"field": field, "kind": kind, "id": object_id},
    )


def taken(reason: str, message: str, holder: str = "") -> ApiError:
    """ALREADY_EXISTS: a value that must be unique has an owner."""
    return ApiError(Code.ALREADY_EXISTS, reason, message, {"holder": holder} if holder else {})


def precondition(reason: str, message: str, **metadata: str) -> ApiError:
    """FAILED_PRECONDITION: some other object must change first."""
    return ApiError(Code.FAILED_PRECONDITION, reason, message, metadata)


def exhausted(reason: str, message: str, **metadata: str) -> ApiError:
    """RESOURCE_EXHAUSTED: nothing left."""
    return ApiError(Code.RESOURCE_EXHAUSTED, reason, message, metadata)


def unsupported(field: str, message: str) -> ApiError:
    """UNIMPLEMENTED: checked, well-formed, and not acted upon by this release."""
    return ApiError(Code.UNIMPLEMENTED, "FEATURE_NOT_SUPPORTED", message, {"field": field})


def etag_mismatch(kind: str, object_id: str, current: str) -> ApiError:
    return ApiError(
        Code.ABORTED,
        "ETAG_MISMATCH",
        f"{kind} {object_id} has changed since: its etag is {current}; read it again",
        {"etag": current},
    )


def conflict() -> ApiError:
    """The bounded retries of a commit were used up."""
    return ApiError(Code.ABORTED, "CONCURRENT_CHANGE", "others changed the same objects again and again; try again")


def unavailable(cause: StoreUnavailable | str) -> ApiError:
    text = str(cause) if isinstance(cause, StoreFull) else f"the store does not answer ({cause}); try again"
    return ApiError(Code.UNAVAILABLE, "STORE_UNAVAILABLE", text)
