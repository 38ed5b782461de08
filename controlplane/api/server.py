"""`kumi-api`: puts the parts together, checks the store, serves until told to stop."""

from __future__ import annotations

import argparse
import asyncio
import gc
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import structlog
from google.protobuf.message_factory import GetMessageClass

from controlplane import config, process, telemetry
from controlplane.api import body, public
from controlplane.api.agents import Agents, Inspect
from controlplane.api.apply import Apply
from controlplane.api.changes import Changes
from controlplane.api.crud import Crud
from controlplane.api.dispatch import Dispatch
from controlplane.api.drift import Drift
from controlplane.api.expired import Expired
from controlplane.api.explain import Explain
from controlplane.api.output import Output
from controlplane.api.standing import Standing
from controlplane.api.trace import Trace
from controlplane.api.wait import Wait
from controlplane.api.watch import Hub, Watch
from controlplane.controllers import runner
from controlplane.controllers.access import AccessControl
from controlplane.controllers.addresses import Addresses
from controlplane.controllers.binder import Binder
from controlplane.controllers.compactor import Compactor
from controlplane.controllers.expiry import Expiry
from controlplane.controllers.members import Members
from controlplane.controllers.registrar import Registrar
from controlplane.controllers.release import Release
from controlplane.errors import BadConfig, StoreRefused, StoreUnavailable
from controlplane.progress import Progress
from controlplane.registry import KINDS, OPERATIONS
from controlplane.services import RULES
from controlplane.services.defaults import Installation
from controlplane.serving import Certificate
from controlplane.store import health as store_health
from controlplane.store import restored
from controlplane.store.access import Access, CannotProtect
from controlplane.store.cache import Cache
from controlplane.store.client import Store
from controlplane.store.commit import Committer
from controlplane.store.health import Unfit
from controlplane.tls import API_USER, Tls, Watched
from controlplane.tokens import Tokens

STORE_DEADLINE = 30.0
GRACE = 2.0

_log = structlog.get_logger("kumihimo.api")


def handlers(
    dispatch: Dispatch, installation: Installation, committer: Committer, progress: Progress, agents: Agents
) -> list[grpc.GenericRpcHandler]:
    """A gRPC handler per service, made from the descriptors."""
    store, cache = committer.store, committer.cache
    output = Output(cache, progress, installation)
    hub = Hub(store, cache, output)
    standing = Standing(cache, progress, output)
    watches: Counter[str] = Counter()
    found = []
    for kind in KINDS.values():
        crud = Crud(kind, committer, output)
        verbs: dict[str, Any] = {
            "Create": crud.create,
            "Get": crud.get,
            "List": crud.list,
            "Watch": Watch(kind, hub, cache, watches).watch,
            "Update": crud.update,
            "Delete": crud.delete,
        }
        rules = RULES[kind.name]
        verbs.update((name, crud.change(method, rules.completes.get(name))) for name, method in rules.changes.items())
        verbs.update((name, crud.read(method)) for name, method in rules.reads.items())
        if kind.name == "Node":
            verbs["Inspect"] = Inspect(cache, agents).inspect
        if kind.name == "Port":
            verbs["Explain"] = Explain(cache, standing, agents).explain
        found.append(_service(kind.service, kind.name, verbs, dispatch))
    operations = {
        "Wait": Wait(store, cache, progress, output).wait,
        "Apply": Apply(committer).apply,
        "ListChanges": Changes(store).changes,
        "ListDrift": Drift(cache).drift,
        "Trace": Trace(cache, standing, agents, Expired(store)).trace,
    }
    found.append(_service(OPERATIONS, "Operations", operations, dispatch))
    return found


def _service(descriptor: Any, kind: str, verbs: Mapping[str, Any], dispatch: Dispatch) -> grpc.GenericRpcHandler:
    methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in descriptor.methods:
        name = f"{descriptor.full_name}/{method.name}"
        largest = body.LARGEST_APPLY if method.name == "Apply" else body.LARGEST
        parse = partial(body.parse, GetMessageClass(method.input_type), largest=largest)
        if method.server_streaming:
            # What is told to many is serialized once, by the handler.
            methods[method.name] = grpc.unary_stream_rpc_method_handler(
                dispatch.stream(name, kind, method.name, verbs[method.name], parse)
            )
        else:
            methods[method.name] = grpc.unary_unary_rpc_method_handler(
                dispatch.method(name, kind, method.name, verbs[method.name], parse),
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
    return grpc.method_handlers_generic_handler(descriptor.full_name, methods)


async def serve(settings: config.Config) -> None:
    """Run until SIGTERM or SIGINT. Raises Unfit, StoreUnavailable and BadConfig before it listens."""
    tokens = Tokens(settings.tokens, settings.oidc)
    store = Store(settings.etcd, settings.etcd_tls)
    cache = Cache(store)
    replica = process.this()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await _store_is_fit(store, settings)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(cache.run()), group.create_task(tokens.run())]
        async with asyncio.timeout(STORE_DEADLINE):
            await cache.ready.wait()
        tasks.append(group.create_task(restored.watch(store, cache)))
        tasks.append(group.create_task(store_health.watch(store, settings.store.quota)))
        progress = Progress(cache)
        committer = Committer(store, cache)
        tasks.append(group.create_task(committer.run()))
        installation = Installation(cache, settings.defaults)
        controllers: list[runner.Elected] = [
            Binder(committer, progress),
            Release(committer, progress),
            Registrar(committer, progress, installation),
            Expiry(committer, progress, installation),
            Members(committer, progress, installation),
            Addresses(committer, progress, installation),
            Compactor(store, cache, settings.store.history),
        ]
        if settings.etcd_tls:
            controllers.append(AccessControl(committer, progress))
        for controller in controllers:
            tasks.append(group.create_task(runner.run(controller, replica)))
        dispatch = Dispatch(tokens, installation, committer.hints)
        agents = Agents(cache, settings.etcd_tls)
        server = _server(handlers(dispatch, installation, committer, progress, agents))
        listeners: list[tuple[Certificate, str]] = []
        for address in settings.listen:
            certificate = Certificate(Watched(Tls(None, settings.tls_certificate, settings.tls_key, prefix="tls")))
            listeners.append((certificate, _listen(server, address, certificate.credentials)))
        await server.start()
        tasks += [group.create_task(certificate.renew(target)) for certificate, target in listeners]
        _spare_the_collector()
        process.ready()
        _log.info("serving", listen=", ".join(settings.listen), revision=cache.revision)
        await stop.wait()
        await server.stop(GRACE)
        for task in tasks:
            task.cancel()
    await store.close()


def _spare_the_collector() -> None:
    """Have the cyclic garbage collector look seldom: what is kept (the cache) is large, and holds no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _look_at(store: Store, settings: config.Config) -> None:
    """Protect the store, and refuse one that cannot be used."""
    await store.revision()
    if settings.etcd_tls:
        await Access(store).protect()
        if weakness := await Access(store).weakness():
            _log.warning(weakness)
    else:
        _log.warning(
            "etcd is spoken to in the clear and lets everybody write who reaches it; set etcd_ca, etcd_certificate, etcd_key"
        )
    await store_health.check(store)


async def _store_is_fit(store: Store, settings: config.Config) -> None:
    """Wait for etcd: at boot it may come later than we do, and be slow."""
    told = ""
    try:
        async with asyncio.timeout(STORE_DEADLINE):
            while True:
                try:
                    await _look_at(store, settings)
                except StoreRefused as error:
                    raise Unfit(f"{error}; the API must be user {API_USER} there, with role root") from None
                except StoreUnavailable as error:
                    wrong = await store.fault()
                    if wrong and wrong == told:  # twice: one that is just ending cuts connections as well
                        raise Unfit(wrong) from None
                    told = wrong
                    _log.info("waiting for the store", detail=str(error))
                    await asyncio.sleep(0.5)
                else:
                    return
    except TimeoutError:
        raise Unfit(f"etcd at {store.endpoints} has not answered for {STORE_DEADLINE:.0f} s; is it running?") from None


# What strangers can make the server hold. Times in ms.
OPTIONS = [
    ("grpc.max_receive_message_length", body.LARGEST_APPLY),
    ("grpc.max_concurrent_streams", 1000),  # of one connection
    ("grpc.max_allowed_incoming_connections", 10_000),
    ("grpc.server_handshake_timeout_ms", 10_000),
    # Clients that went without a word are found; those that say nothing for long connect anew.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),  # else a second server would share our port unheard, and `serving` could not reach us
]


def _server(services: list[grpc.GenericRpcHandler]) -> grpc.aio.Server:
    server = grpc.aio.server(options=OPTIONS)
    names = [*(kind.service.full_name for kind in KINDS.values()), OPERATIONS.full_name]
    server.add_generic_rpc_handlers([*services, *public.handlers(names)])
    return server


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> str:
    """Where it is then reached: the address, with the port that was given if any would do. Raises BadConfig."""
    if address.startswith("unix:"):
        # A socket file that a killed server left behind would refuse the next one.
        Path(address.removeprefix("unix:")).unlink(missing_ok=True)
    asked = address.rpartition(":")[2]
    try:
        # gRPC takes a port of more than 16 bits for another one.
        port = server.add_secure_port(address, credentials)
        if not address.startswith("unix:") and int(asked) not in (0, port):
            raise RuntimeError
    except (RuntimeError, ValueError):
        raise BadConfig(f"listen: {address} cannot be listened on; is it taken, or no address of this host?") from None
    return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"


def main() -> None:
    """Entry point of `kumi-api`. Exit code 0 after an orderly stop, 1 with one line when it cannot run."""
    parser = argparse.ArgumentParser(
        prog="kumi-api",
        description="The Kumihimo API server.",
        epilog="example: kumi-api --config /etc/kumihimo/api.toml",
    )
    parser.add_argument("--config", type=Path, default=Path("/etc/kumihimo/api.toml"), help="configuration file")
    arguments = parser.parse_args()
    telemetry.start_logging(service="kumi-api")
    failure = ""
    try:
        settings = config.load(arguments.config)
        telemetry.start_tracing("kumi-api", settings.trace_file)
        asyncio.run(serve(settings))
    except* TimeoutError:
        failure = "the store did not answer in time"
    except* (BadConfig, Unfit, CannotProtect, StoreUnavailable, OSError, ValueError) as group:
        failure = str(_first(group))
    if failure:
        # Not from within: what except* raises is a group again, and shown with its trace.
        sys.exit(f"kumi-api: {failure}")


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    main()
