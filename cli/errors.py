"""What `kumi` says when something fails, and with which exit code.

Every failure a person can cause reaches the terminal as `kumi: <sentence> [REASON]`, one line per fault.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import grpc

ERROR = 1
USAGE = 2
NOT_ACTIVE = 3
NOT_FOUND = 4
DENIED = 5
UNAVAILABLE = 6
TIMEOUT = 7
INTERRUPTED = 130

EXIT_CODES = (
    "0 done, 1 error, 2 usage, 3 not active, 4 not found, 5 unauthenticated or denied, 6 unavailable, 7 timeout, "
    "130 interrupted"
)

_BY_STATUS = {
    "NOT_FOUND": NOT_FOUND,
    "UNAUTHENTICATED": DENIED,
    "PERMISSION_DENIED": DENIED,
    "UNAVAILABLE": UNAVAILABLE,
    "DEADLINE_EXCEEDED": TIMEOUT,
    "CANCELLED": TIMEOUT,  # nobody here cancels: the server has found the deadline first, and reset the call
}


class CliError(click.ClickException):
    """A failure told in one line per fault, each printed after `kumi: `.

    detail: what follows as it is, for example a table of candidates. reason: the API's reason, where it gave one.
    faults: what the API said of fields, (path, sentence, reason).
    """

    def __init__(
        self,
        message: str,
        exit_code: int = ERROR,
        *,
        detail: str = "",
        reason: str = "",
        faults: Sequence[tuple[str, str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares the default on the class
        self.detail = detail
        self.reason = reason
        self.faults = faults

    def show(self, file: Any = None) -> None:
        out = file or sys.stderr
        for line in self.message.splitlines():
            click.echo(f"kumi: {line}", file=out)
        if self.detail:
            click.echo(self.detail, file=out)


def from_rpc(error: grpc.RpcError, endpoint: str) -> CliError:
    """The server's google.rpc.Status as lines; a failure below gRPC as one line that names the endpoint."""
    from google.rpc import error_details_pb2, status_pb2

    code: str = error.code().name
    exit_code = _BY_STATUS.get(code, ERROR)
    trailing: Any = error.trailing_metadata() or ()
    packed = dict(trailing).get("grpc-status-details-bin")
    if packed is None:
        return CliError(_transport(code, error.details() or "", endpoint), exit_code)
    status = status_pb2.Status.FromString(packed)
    info, fields = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        if not detail.Unpack(info):
            detail.Unpack(fields)
    faults = [(item.field, item.description, item.reason or info.reason) for item in fields.field_violations]
    lines = [line(with_field(path, sentence), reason) for path, sentence, reason in faults]
    message = "\n".join(lines) or line(status.message, info.reason)
    return CliError(message, exit_code, reason=info.reason, faults=faults)


def line(sentence: str, reason: str) -> str:
    """A sentence of the API on one line, with its reason."""
    sentence = " ".join(sentence.split())
    return f"{sentence} [{reason}]" if reason else sentence


def with_field(field: str, sentence: str) -> str:
    """Name the field once: most sentences of the server begin with it."""
    field = field.removeprefix("resource.")
    return sentence if not field or field in sentence else f"{field}: {sentence}"


def _cause(details: str) -> str:
    """The last thing that was tried and failed, without what the library puts before it."""
    cause = details.rpartition("last error: ")[2]
    return re.sub(r"^[A-Z_]+: ", "", cause) or "no reason given"


def _transport(code: str, details: str, endpoint: str) -> str:
    """A sentence for a call that no handler answered."""
    details = " ".join(details.split())
    if "CERTIFICATE_VERIFY_FAILED" in details:
        return (
            f"the server at {endpoint} presents a certificate that the profile's ca does not vouch for; "
            "set it with `kumi profile set NAME --ca FILE`"
        )
    if "Hostname Verification Check failed" in details:
        return (
            f"the certificate of the server at {endpoint} is for another name; "
            "set the name it carries with `kumi profile set NAME --server-name HOST`"
        )
    if code == "UNAVAILABLE":
        return f"no API server answers at {endpoint} ({_cause(details)})"
    if code in ("DEADLINE_EXCEEDED", "CANCELLED"):
        return f"the API server at {endpoint} did not answer in time"
    return f"the API server at {endpoint} failed: {code} {details}".rstrip()
