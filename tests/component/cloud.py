"""A control plane for tests: an etcd and API servers of one's own, each a process, on unix sockets in a private folder.

Owns: how they are started, killed, frozen and started again, how the API is called, and what must hold for the keys in
the store after anything whatever has happened (`faults`). Ends only processes that it started itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2, status_pb2

from controlplane.admin.authority import Authority, Use
from controlplane.audit import audit
from controlplane.errors import StoreRefused, StoreUnavailable
from controlplane.registry import KINDS, OPERATIONS
from controlplane.services import quota, security
from controlplane.store import health, keys
from controlplane.store.client import Entry, Store, delete, entry, put
from kumihimo.v1 import operations_pb2, resource_pb2, store_pb2
from tests.component.certificates import etcd_flags, issue
from tests.mortal import MORTAL
from tests.waiting import DEADLINE, until

SERVER_NAME = "kumi-api"

# identity → (project, role); the token of each is its name with "-token" behind.
IDENTITIES = {
    "root": ("admin", "operator"),
    "alice": ("demo", "member"),
    "anna": ("demo", "admin"),
    "rita": ("demo", "reader"),
    "bob": ("other", "member"),
}
CONTROLLERS = ("access", "binder", "release", "registrar", "expiry", "members", "addresses")


def troubles(log: str) -> list[str]:
    """What a server has logged last of warnings and defects, with the stack trace below each."""
    found = re.findall(r"^timestamp=\S+ level=(?:warning|error|critical) [^\n]*(?:\n(?!timestamp=)[^\n]*)*", log, re.MULTILINE)
    return [line[:3000] for line in found[-20:]]


class Process:
    """A program in a folder, its output in a file there."""

    def __init__(self, name: str, argv: list[str], folder: Path) -> None:
        self._argv = argv
        self._folder = folder
        self.log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*MORTAL, *self._argv],
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(DEADLINE)

    def stop(self) -> None:
        """End it in an orderly way."""
        if self._process is not None and self.running:
            self._process.terminate()
            try:
                self._process.wait(DEADLINE)
            finally:
                self.kill()


class Etcd(Process):
    """One member, with the flags that a real one is started with.

    authority: it speaks TLS with a certificate of it, and knows its clients by theirs. options: those of a member of a larger
    cluster, which speaks in the clear.
    """

    program: ClassVar[str] = "etcd"

    def __init__(self, folder: Path, authority: Authority | None = None, options: Mapping[str, str] | None = None) -> None:
        scheme = "unixs" if authority else "unix"
        self.tls = issue(authority, "probe", Use.CLIENT) if authority else None
        flags = {
            "name": "one",
            "data-dir": "data",
            "listen-client-urls": f"{scheme}://localhost:2379",
            "advertise-client-urls": f"http{scheme[4:]}://localhost:2379",
            "listen-peer-urls": "unix://localhost:2380",
            "initial-advertise-peer-urls": "http://localhost:2380",
            "initial-cluster": "one=http://localhost:2380",
            "max-txn-ops": str(health.OPERATIONS),
            "max-request-bytes": str(health.LARGEST_REQUEST),
            "experimental-watch-progress-notify-interval": "2s",
            "heartbeat-interval": "20",
            "election-timeout": "200",
            "logger": "zap",
            "log-level": "warn",
            **(etcd_flags(authority) if authority else {}),
            **(options or {}),
        }
        name = f"etcd-{flags['name']}"
        super().__init__(name, [self.program, *(f"--{flag}={value}" for flag, value in flags.items())], folder)
        url = flags["listen-client-urls"]
        self.endpoint = f"unix:{folder}/localhost:2379" if url.startswith("unix") else url.removeprefix("http://")

    async def begin(self) -> None:
        """Start it and wait until it answers."""
        for name in ("localhost:2379", "localhost:2380"):
            (self._folder / name).unlink(missing_ok=True)
        self.start()
        store = Store([self.endpoint], self.tls)

        async def answers() -> bool:
            assert self.running, self.log.read_text()[-2000:]
            try:
                return await store.revision() > 0
            except StoreRefused:
                return True  # it has users by now, and the probe is none
            except StoreUnavailable:
                return False

        try:
            await until(answers, "etcd answers", 3 * DEADLINE)
        finally:
            await store.close()


class Api(Process):
    """One replica of the API. endpoint: of etcd; those of several members with commas between."""

    def __init__(self, cloud: Cloud, name: str, endpoint: str) -> None:
        folder = cloud.folder
        config = folder / f"{name}.toml"
        server = cloud.authority.issue(name, Use.API)
        lines = [
            f'listen = ["unix:{folder}/{name}.sock"]',
            f"etcd = {endpoint.split(',')}",
            f'tls_certificate = "{server.certificate}"',
            f'tls_key = "{server.key}"',
            f'tokens = "{folder}/tokens.toml"',
        ]
        if cloud.etcd.tls:
            held = issue(cloud.authority, f"{name}-etcd", Use.API)
            lines += [f'etcd_ca = "{held.ca}"', f'etcd_certificate = "{held.certificate}"', f'etcd_key = "{held.key}"']
        config.write_text("\n".join([*lines, cloud.config]))
        super().__init__(name, [str(Path(sys.executable).parent / "kumi-api"), "--config", str(config)], folder)
        self.target = f"unix:{folder}/{name}.sock"
        self.certificate = cloud.authority.certificate().read_bytes()  # of whoever vouches for it

    async def begin(self) -> None:
        """Start it and wait until it serves."""
        self.start()
        async with Client(self) as client:

            async def serves() -> bool:
                assert self.running, self.log.read_text()[-2000:]
                try:
                    await client.call("Networks", "List", resource_pb2.ListRequest(page_size=1))
                except Refused as refused:
                    refused.must_be("", "STORE_UNAVAILABLE")  # nobody listens yet
                    return False
                return True

            await until(serves, "the API serves", 3 * DEADLINE)


@dataclass(eq=False)
class Refused(Exception):
    """A call's error, taken apart."""

    code: grpc.StatusCode
    message: str
    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str, str], ...] = ()  # (field, reason, message)
    details: Mapping[str, Any] = field(default_factory=dict)  # name of the detail's message → it

    def __str__(self) -> str:
        return f"{self.code.name} {self.reason}: {self.message}"

    def must_be(self, *reasons: str) -> None:
        """AssertionError unless it is one of these."""
        assert self.reason in reasons, self

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> Refused:
        trailers = dict(error.trailing_metadata() or ())
        found = cls(error.code(), error.details() or "")
        raw = trailers.get("grpc-status-details-bin")
        if isinstance(raw, bytes):
            status = status_pb2.Status.FromString(raw)
            details: dict[str, Any] = {}
            for any_message in status.details:
                name = any_message.type_url.rsplit(".", 1)[1]
                details[name] = getattr(error_details_pb2, name).FromString(any_message.value)
            found.details = details
            found.reason = details["ErrorInfo"].reason
            found.metadata = dict(details["ErrorInfo"].metadata)
            if "BadRequest" in details:
                faults = details["BadRequest"].field_violations
                found.violations = tuple((item.field, item.reason, item.description) for item in faults)
        return found


class Client:
    """Calls of one API replica; every method raises Refused. token: that of one of IDENTITIES, by name.

    timeout: seconds that one call may take. connect: seconds that one attempt to connect may take.
    """

    def __init__(self, api: Api, timeout: float = 60.0, connect: float = 5.0) -> None:
        self.timeout = timeout
        credentials = grpc.ssl_channel_credentials(api.certificate)
        options = [
            ("grpc.ssl_target_name_override", SERVER_NAME),
            ("grpc.initial_reconnect_backoff_ms", 50),
            # How long one attempt to connect may take, TLS and all, on a machine that has much else to do.
            ("grpc.min_reconnect_backoff_ms", round(connect * 1000)),
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        self.channel = grpc.aio.secure_channel(api.target, credentials, options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.channel.close()

    async def call(self, service: str, method: str, request: Any, token: str | None = "root-token") -> Any:  # noqa: S107
        """One call, for example ("Networks", "Create", request)."""
        name = f"kumihimo.v1.{service}"
        found = next((kind.service for kind in KINDS.values() if kind.service.full_name == name), None)
        descriptor = (found or OPERATIONS).methods_by_name[method]
        invoke = self.channel.unary_unary(
            f"/{name}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(descriptor.output_type).FromString,
        )
        metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        try:
            return await invoke(request, metadata=metadata, timeout=self.timeout)
        except grpc.aio.AioRpcError as error:
            raise Refused.of(error) from None

    async def create(self, kind: str, *, by: str = "root", request: Mapping[str, Any] | None = None, **fields: Any) -> Any:
        message = request_class(kind, "Create")(resource=KINDS[kind].message(**fields), **request or {})
        return await self.call(service_of(kind), "Create", message, f"{by}-token")

    async def get(self, kind: str, object_id: str, *, by: str = "root") -> Any:
        return await self.call(service_of(kind), "Get", resource_pb2.GetRequest(id=object_id), f"{by}-token")

    async def list(self, kind: str, *, by: str = "root", **request: Any) -> Any:
        return await self.call(service_of(kind), "List", resource_pb2.ListRequest(**request), f"{by}-token")

    async def update(
        self,
        kind: str,
        object_id: str,
        *,
        by: str = "root",
        mask: Iterable[str] = (),
        request: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Any:
        message = request_class(kind, "Update")(resource=KINDS[kind].message(id=object_id, **fields), **request or {})
        if mask:
            message.update_mask.CopyFrom(FieldMask(paths=list(mask)))
        return await self.call(service_of(kind), "Update", message, f"{by}-token")

    async def delete(self, kind: str, object_id: str, *, by: str = "root", **request: Any) -> Any:
        message = resource_pb2.DeleteRequest(id=object_id, **request)
        return await self.call(service_of(kind), "Delete", message, f"{by}-token")

    async def wait(self, *, by: str = "root", seconds: float = 30.0, **request: Any) -> Any:
        message = operations_pb2.WaitRequest(**request)
        message.timeout.FromMilliseconds(int(seconds * 1000))
        return await self.call("Operations", "Wait", message, f"{by}-token")


async def refused(call: Awaitable[Any]) -> Refused:
    """The error of a call that must fail."""
    try:
        reply = await call
    except Refused as error:
        return error
    raise AssertionError(f"not refused: {reply}")


def request_class(kind: str, method: str) -> Any:
    return GetMessageClass(KINDS[kind].service.methods_by_name[method].input_type)


def service_of(kind: str) -> str:
    return str(KINDS[kind].service.name)


class Cloud:
    """An etcd and its API replicas. `api` is the first replica's client, `store` the way past it, by the user root.

    config: what else stands in the configuration of each replica, in TOML. identities: more of them. etcd: options of etcd
    other than the usual ones.
    """

    def __init__(
        self,
        config: str = "",
        identities: Mapping[str, tuple[str, str]] | None = None,
        etcd: Mapping[str, str] | None = None,
    ) -> None:
        self.config = config
        self.identities = {**IDENTITIES, **(identities or {})}
        self._holder = tempfile.TemporaryDirectory(prefix="kumi-test-")
        self.folder = Path(self._holder.name)
        self.authority = Authority(self.folder / "ca")
        self.authority.init()
        self.etcd = Etcd(self.folder, self.authority, etcd)
        self.replicas: list[Api] = []
        self._numbers = itertools.count()
        self._exit = contextlib.AsyncExitStack()
        self.api: Client
        self.store: Store

    async def __aenter__(self) -> Self:
        try:
            self._secrets()
            await self.etcd.begin()
            # The user `root` is made when the first API starts.
            self.root = issue(self.authority, "root", Use.CLIENT) if self.etcd.tls else None
            self.store = Store(self.etcd.endpoint.split(","), self.root)
            self._exit.push_async_callback(self.store.close)
            self.api = await self.replica()
            for project in {project for project, _ in IDENTITIES.values()}:
                await self.api.update("Quota", project, limits=dict.fromkeys(quota.COUNTED, quota.UNLIMITED))
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._exit.aclose()
        finally:
            for process in [*self.replicas, self.etcd]:
                process.kill()
            if error is not None:
                for api in self.replicas:
                    print(*troubles(api.log.read_text(errors="replace")), sep="\n")
            self._holder.cleanup()

    async def replica(self, endpoint: str = "") -> Client:
        """Start one more API server; its client. endpoint: where it finds etcd, if not at etcd itself."""
        api = Api(self, f"api{next(self._numbers)}", endpoint or self.etcd.endpoint)
        self.replicas.append(api)
        await api.begin()
        client = Client(api)
        self._exit.push_async_callback(client.channel.close)
        return client

    def _secrets(self) -> None:
        lines = [
            f'[[tokens]]\nsha256 = "{hashlib.sha256(f"{name}-token".encode()).hexdigest()}"\n'
            f'identity = "{name}"\nproject = "{project}"\nroles = ["{role}"]\n'
            for name, (project, role) in self.identities.items()
        ]
        (self.folder / "tokens.toml").write_text("".join(lines))

    # -- the store, past the API --------------------------------------------------------------------------------------

    async def everything(self) -> dict[str, Entry]:
        """All keys, at one revision."""
        return await everything(self.store)

    async def settled(self) -> int:
        """Wait until the controllers are held and nothing waits to be released; the revision, which then stands still."""

        async def calm() -> bool:
            # Not the whole store: its history grows with each test.
            held, claims = [await everything(self.store, prefix) for prefix in (keys.controller(""), keys.CLAIMS)]
            wanted = CONTROLLERS if self.etcd.tls else set(CONTROLLERS) - {"access"}
            releasing = any(store_pb2.Claim.FromString(item.value).releasing for item in claims.values())
            return not releasing and all(keys.controller(name) in held for name in wanted)

        await until(calm, "every claim is released")
        return await self.store.revision()

    async def written_since(self, revision: int) -> list[str]:
        """Keys that were written or deleted after a revision.

        Not those which replicas write by themselves at any time: who holds a place (a lease is lost on a busy machine), and
        how old revisions are.
        """
        if await self.store.revision() == revision:
            return []
        before, now = [await everything(self.store, at=at) for at in (revision, 0)]
        changed = (key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        return sorted(key for key in changed if not key.startswith((keys.controller(""), keys.COMPACTION)))

    async def write(self, *operations: Any) -> int:
        """Operations in one transaction, as an agent would write them; the revision."""
        return (await self.store.transact([], list(operations))).revision

    async def node_says(self, node: str, **networks: int) -> int:
        """A live node that has applied each network up to a revision."""
        return await self.write(alive(node), *(applied(node, network, at) for network, at in networks.items()))

    async def clear(self) -> None:
        """Delete everything that is no base: all networks with what is in them, all nodes, what nodes said."""
        await self.write(delete(keys.STATUS, prefix=True), delete(keys.ALIVE, prefix=True))
        for network in await self._ids("Network"):
            for kind in ("Port", "Subnet"):
                for item in await self._all(kind, f'network_id = "{network}"'):
                    if item.deletion_protection:
                        await self.api.update(kind, item.id, mask=["deletion_protection"])
                    await self.api.delete(kind, item.id, force=True)
            await self.api.update("Network", network, mask=["deletion_protection"])
            await self.api.delete("Network", network, force=True)
        await self._clear_groups()
        # Those that others refer to come last.
        for kind in (
            "Node",
            "AddressGroup",
            "DefaultSecurityGroupRule",
            "SubnetPool",
            "AddressScope",
            "NetworkSegmentRange",
            "PhysicalNetwork",
        ):
            for object_id in await self._ids(kind):
                await self.api.update(kind, object_id, mask=["deletion_protection"])
                await self.api.delete(kind, object_id, force=kind == "Node")

    async def _clear_groups(self) -> None:
        """Delete all security groups: their rules first, which may name each other, and the defaults past the API."""
        groups = await self._all("SecurityGroup")
        for rule in await self._all("SecurityGroupRule", "deletion_protection = true"):
            await self.api.update("SecurityGroupRule", rule.id, mask=["deletion_protection"])
        for group in groups:
            request = request_class("SecurityGroup", "ReplaceRules")(id=group.id)
            await self.api.call(service_of("SecurityGroup"), "ReplaceRules", request)
        for group in groups:
            if not group.is_default:
                await self.api.update("SecurityGroup", group.id, mask=["deletion_protection"])
                await self.api.delete("SecurityGroup", group.id)
        kind = KINDS["SecurityGroup"]
        for group in groups:
            if group.is_default:
                index = await self.store.get(keys.index(kind.name, group.id))
                assert index is not None
                slot = store_pb2.Index.FromString(index.value).quota_slot  # 0 unless it was made by its id
                claims = (keys.claim(security.KEY_POOL, group.key), keys.claim(keys.quota_pool(group.project_id, kind), slot))
                places = (keys.index(kind.name, group.id), *claims)
                await self.write(delete(keys.scope(group.id, kind.scope), prefix=True), *map(delete, places))

    async def _ids(self, kind: str) -> list[str]:
        return [item.id for item in await self._all(kind)]

    async def _all(self, kind: str, filter: str = "") -> list[Any]:
        found: list[Any] = []
        token = ""
        while True:
            page = await self.api.list(kind, page_size=1000, filter=filter, page_token=token)
            found += page.items
            token = page.next_page_token
            if not token:
                return found


async def everything(store: Store, prefix: str = "", at: int = 0) -> dict[str, Entry]:
    """All keys with a prefix, at one revision; 0: now."""
    found: dict[str, Entry] = {}
    async for _, kvs in store.pages(prefix, at=at):
        found.update((kv.key.decode(), entry(kv)) for kv in kvs)
    return found


# -- what an agent writes ---------------------------------------------------------------------------------------------


def alive(node: str) -> Any:
    return put(keys.alive(node), b"1")


def dead(node: str) -> Any:
    return delete(keys.alive(node))


def applied(node: str, object_id: str, revision: int, *errors: store_pb2.ObjectError, folder: str = "net") -> Any:
    """How far a node has applied a network, or what else has a scope in a folder."""
    message = store_pb2.Applied(revision=revision, errors=errors)
    return put(keys.scope_status(node, keys.scope(object_id, folder)), message.SerializeToString())


def applied_nodes(node: str, revision: int) -> Any:
    return put(keys.scope_status(node, ""), store_pb2.Applied(revision=revision).SerializeToString())


def unconcerned(node: str, network: str) -> Any:
    return delete(keys.scope_status(node, keys.scope(network)))


def plugged(node: str, port: str, *, wired: bool = True, interface: str = "tap0", since: int = 0) -> Any:
    """since: in seconds; 0: it is not said."""
    status = store_pb2.PortStatus(interface=interface, ofport=7, wired=wired)
    if since:
        status.since.FromSeconds(since)
    return put(keys.port_status(node, port), status.SerializeToString())


def unplugged(node: str, port: str) -> Any:
    return delete(keys.port_status(node, port))


# -- what must hold for the keys --------------------------------------------------------------------------------------


def faults(entries: Mapping[str, Entry]) -> list[str]:
    """What is wrong with the store, a line each."""
    return [str(finding) for finding in audit(entries)]


async def consistent(store: Store) -> dict[str, Entry]:
    """Everything in the store, which has no fault."""
    entries = await everything(store)
    found = faults(entries)
    assert not found, "\n".join(found)
    return entries


def freeze(process: Process) -> contextlib.AbstractContextManager[None]:
    """The process neither runs nor ends while this lasts."""

    @contextlib.contextmanager
    def frozen() -> Any:
        process.signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.signal(signal.SIGCONT)

    return frozen()
