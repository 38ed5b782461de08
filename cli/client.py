"""Calls to the API: TLS, token, trace context, retries, names to ids. Plug-ins use it as the nouns do.

Synchronous: a command makes a few calls, one after the other. grpc is loaded by `connect`, not with this module.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from cli import values
from cli.errors import DENIED, NOT_FOUND, USAGE, CliError, from_rpc
from cli.kinds import Kind, kind_named, kinds, method, rules
from cli.settings import Profile, Settings

if TYPE_CHECKING:
    import grpc

__all__ = ["CliError", "Client", "connect"]

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
CALL_SECONDS = 30.0
# What the server's own answer may take beyond the time it was given to wait.
_GRACE_SECONDS = 5.0
MOST_WAITED_FOR = 500  # objects that the server waits for by name
# Pauses before the second and third attempt: a restarting server is back within them or it is really away.
RETRY_SECONDS: tuple[float, ...] = (0.2, 0.6)
# One attempt to connect, TLS and all: to a server that is far, or on a machine that has much else to do.
_CONNECT_SECONDS = 5.0
_PAGE = 500


def is_uuid(text: str) -> bool:
    return _UUID.fullmatch(text) is not None


class Client(AbstractContextManager["Client"]):
    """One invocation's connection to the API. All methods raise CliError, and nothing else, when a call fails."""

    def __init__(self, channel: grpc.Channel, metadata: Sequence[tuple[str, str]], profile: Profile) -> None:
        self._channel = channel
        self._metadata = tuple(metadata)
        self.profile = profile
        self.retry_seconds = RETRY_SECONDS

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, service: str, name: str, request: Message, *, timeout: float = CALL_SECONDS) -> Any:
        """One call, for example ("Ports", "Get", GetRequest(id=...)). timeout: seconds.

        Tried again while the server is unavailable, if that is safe: a reading, or a change that names its request.
        """
        import grpc

        invoke = self._method(service, name)
        safe = bool(getattr(request, "request_id", "safe"))
        pauses = iter(self.retry_seconds if safe else ())
        while True:
            try:
                return invoke(request, timeout=timeout, metadata=self._metadata)
            except grpc.RpcError as error:
                pause = next(pauses, None) if error.code() is grpc.StatusCode.UNAVAILABLE else None
                if pause is None:
                    raise self._error(error) from error
            time.sleep(pause)

    def stream(self, service: str, name: str, request: Message) -> Iterator[Any]:
        """The replies of a call that has many, as they come; it ends when the server ends it. Not tried again."""
        import grpc

        call = self._method(service, name)(request, metadata=self._metadata)
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._error(error) from error
        finally:
            call.cancel()

    def _method(self, service: str, name: str) -> Any:
        rpc = method(service, name)
        make: Any = self._channel.unary_stream if rpc.server_streaming else self._channel.unary_unary
        return make(
            f"/{rpc.containing_service.full_name}/{rpc.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(rpc.output_type).FromString,
        )

    def _error(self, error: grpc.RpcError) -> CliError:
        fault = from_rpc(error, self.profile.endpoint)
        if fault.exit_code == DENIED and fault.reason.startswith("TOKEN_"):
            where = self.profile.token_file or "none; `kumi profile set NAME --token-file FILE` names one"
            return CliError(f"{fault.message} (token file: {where})", DENIED, reason=fault.reason)
        return fault

    def pages(
        self,
        kind: Kind,
        *,
        filter: str = "",
        order_by: str = "",
        limit: int = 0,
        at: int = 0,
        project: str | None = None,
        timeout: float = CALL_SECONDS,
    ) -> Iterator[Any]:
        """All objects of a kind that match, page by page. limit: stop after so many; 0: never.

        at: as they were at a store revision; 0: now. project: whose; None: the profile's, where the kind has one.
        """
        request = kind.request("List")
        request.filter = filter
        request.order_by = order_by
        request.at_revision = at
        if project is not None:
            request.project_id = project
        elif kind.owned:
            request.project_id = self.profile.project
        request.page_size = min(limit or _PAGE, _PAGE)
        told = 0
        while True:
            page = self.call(kind.service.full_name, "List", request, timeout=timeout)
            for item in page.items:
                yield item
                told += 1
                if told == limit:
                    return
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def get(self, kind: Kind, object_id: str, at: int = 0, whole: bool = False) -> Any:
        """An object, as it was at a store revision; 0: now. whole: with the objects that it holds."""
        request = kind.request("Get")
        request.read_mask.paths.extend(["*"] if whole else [])
        request.id = object_id
        request.at_revision = at
        return self.call(kind.service.full_name, "Get", request)

    def find(self, kind: str, name_or_id: str, at: int = 0) -> Any:
        """The object of that id or name. kind: "Port" or "port". at: at a store revision; 0: now.

        CliError: none (exit code 4), or several so named.
        """
        known = kind_named(kind)
        if known is None:
            raise CliError(f"'{kind}' is no kind of this API; it has: {', '.join(kinds())}", USAGE)
        if is_uuid(name_or_id):
            return self.get(known, name_or_id.lower(), at)
        if known.options.operator_named or known.options.implicit:
            try:
                return self.get(known, name_or_id, at)
            except CliError as error:
                if error.exit_code != NOT_FOUND and error.reason != "ID_INVALID":
                    raise
        return self._only(known, name_or_id, self.named(known, name_or_id, at))

    def named(self, kind: Kind, name: str, at: int = 0) -> list[Any]:
        """The objects of a kind that have a name."""
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        # The filter may match more than the name itself (a final * stands for any ending).
        return [item for item in self.pages(kind, filter=f'name = "{quoted}"', at=at) if item.name == name]

    def _only(self, kind: Kind, name: str, found: Sequence[Any]) -> Any:
        if not found:
            raise CliError(f"no {kind.options.singular} has the id or name '{name}'", NOT_FOUND)
        if len(found) > 1:
            from cli import render

            columns = ("id", "name", "project_id", "create_time", "state")
            raise CliError(
                f"{len(found)} {kind.plural} are named '{name}'; give the id of one of these:",
                detail=render.table(found, columns),
            )
        return found[0]

    def id_of(self, kind: Kind, name_or_id: str) -> str:
        """The id of an object; a UUID is taken as it is, for the server to judge."""
        return name_or_id.lower() if is_uuid(name_or_id) else str(self.find(kind.name, name_or_id).id)

    def resolve(self, message: Message) -> None:
        """Put ids where a message's references hold names, in nested messages too."""
        for field, value in message.ListFields():
            if field.message_type is not None:
                if not field.message_type.GetOptions().map_entry:
                    for nested in value if field.is_repeated else [value]:
                        self.resolve(nested)
                continue
            # A kind that this release has no noun for has no names either: the server judges the text.
            kind = kind_named(rules(field).reference)
            if kind is None:
                continue
            if field.is_repeated:
                value[:] = [self.id_of(kind, text) for text in value]
            else:
                setattr(message, field.name, self.id_of(kind, value))

    def wait(self, revision: int, ids: Iterable[str] = (), active: bool = False, timeout: float = 30.0) -> Any:
        """Wait until the nodes concerned have applied a revision; active: and each port is ACTIVE. timeout: seconds.

        Without ids all nodes are concerned. Returns the WaitResponse. CliError with exit code 7 names who lags.
        """
        rpc = method("Operations", "Wait")
        request: Any = GetMessageClass(rpc.input_type)()
        request.revision = revision
        request.ids.extend(ids)
        request.active = active
        milli = round(timeout * 1000)
        request.timeout.seconds, request.timeout.nanos = milli // 1000, milli % 1000 * 1_000_000
        terminal = sys.stderr.isatty()
        if terminal:
            text = f"waiting until revision {revision} is applied, at most {values.duration_text(milli)} ..."
            click.echo(text, nl=False, err=True)
        try:
            return self.call("Operations", "Wait", request, timeout=timeout + _GRACE_SECONDS)
        finally:
            if terminal:
                click.echo("\r\033[K", nl=False, err=True)


def connect(settings: Settings) -> Client:
    """A client for the invocation's profile. CliError names the field or file at fault; nothing is sent yet."""
    profile = settings.profile()
    context = click.get_current_context(silent=True)
    settings.trace.used_by(context.command_path if context else "kumi", profile.trace_file)
    metadata = [("traceparent", settings.trace.traceparent)]
    if profile.token_file:
        metadata.append(("authorization", f"Bearer {_token(profile.token_file)}"))
    authorities = _authorities(profile.ca) if profile.ca else None
    # The core's own log lines would stand beside the one line that says what is wrong.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    import grpc

    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", round(_CONNECT_SECONDS * 1000)),
        # The endpoint is an address of the management network: a proxy for the web has no way there.
        ("grpc.enable_http_proxy", 0),
    ]
    if profile.server_name:
        options.append(("grpc.ssl_target_name_override", profile.server_name))
    credentials = grpc.ssl_channel_credentials(root_certificates=authorities)
    return Client(grpc.secure_channel(profile.endpoint, credentials, options), metadata, profile)


def _read(path: str, field: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CliError(f"the profile's {field} {path} cannot be read: {error.strerror}") from error


def _token(path: str) -> str:
    """The token in a file. No message ever shows any of it."""
    token = _read(path, "token_file").strip()
    if not token or not all(0x21 <= byte <= 0x7E for byte in token):
        raise CliError(f"the profile's token_file {path} holds no token; accepted: one line of printable characters")
    return token.decode("ascii")


def _authorities(path: str) -> bytes:
    import ssl

    pem = _read(path, "ca")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise CliError(f"the profile's ca {path} is not a certificate; accepted: PEM (BEGIN CERTIFICATE)") from error
    return pem
