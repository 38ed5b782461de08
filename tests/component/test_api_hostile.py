"""What hostile requests have found, one by one (tests/chaos/test_hostile.py is the storm), and what large ones cost others."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from controlplane.api.body import LARGEST
from controlplane.api.watch import WATCHES
from controlplane.registry import KINDS
from controlplane.store import keys
from kumihimo.v1 import network_pb2, node_pb2, operations_pb2, port_pb2, resource_pb2, store_pb2
from tests.chaos.test_hostile import memory
from tests.chaos.wire import Idle
from tests.component.cloud import Client, Cloud, Refused, refused, request_class
from tests.waiting import until

ROOT = (("authorization", "Bearer root-token"),)
DURATIONS = [{"seconds": 1 << 62}, {"seconds": 600, "nanos": -1_000_000}, {"seconds": 600, "nanos": 1_000_000_000}]


async def raw(cloud: Cloud, method: str, body: bytes, metadata: Any = ROOT, **options: Any) -> Refused:
    """The error of a call whose body is these bytes."""
    try:
        await cloud.api.channel.unary_unary(f"/kumihimo.v1.{method}")(body, metadata=metadata, timeout=20, **options)
    except grpc.aio.AioRpcError as error:
        return Refused.of(error)
    raise AssertionError("not refused")


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x02\xff\xfe", b"\x0b" * 200, b"\x0a\x7f"])
async def test_bytes_that_are_no_message_are_the_fault_of_the_client(cloud: Cloud, body: bytes) -> None:
    """Not UNKNOWN, which gRPC makes of them; and nobody reads them before it is known who sent them."""
    for method in ("Networks/Create", "Operations/Apply", "Ports/List"):
        error = await raw(cloud, method, body)
        assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "STRING_INVALID")
        assert (await raw(cloud, method, body, None)).reason == "TOKEN_MISSING"
    for path, token in (("/kumihimo.v1.Ports/Watch", ROOT), ("/grpc.health.v1.Health/Watch", ())):
        call = cloud.api.channel.unary_stream(path)(body, metadata=token, timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert Refused.of(caught.value).reason == "STRING_INVALID"
    mirror = cloud.api.channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(
        iter([body]), timeout=20
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await mirror.read()
    assert Refused.of(caught.value).reason == "STRING_INVALID"


async def test_requests_have_a_largest_size_and_strangers_a_small_one(cloud: Cloud) -> None:
    error = await raw(cloud, "Networks/Create", b"\x12" + b"\x80\x80\x40" + b"a" * LARGEST)
    assert (error.code.name, error.reason) == ("INVALID_ARGUMENT", "TOO_MANY_VALUES")
    over = cloud.api.channel.unary_unary("/kumihimo.v1.Operations/Apply")(b"a" * (8 * LARGEST + 1), metadata=ROOT, timeout=20)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await over
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(cloud.api.channel).Check(health_pb2.HealthCheckRequest(service="x" * 5000), timeout=20)
    assert Refused.of(caught.value).reason == "TOO_MANY_VALUES"


async def test_a_small_request_that_swells_is_not_unpacked(cloud: Cloud) -> None:
    """256 MB of zeros, which are 250 KB on the way: refused, and never in memory."""
    before = memory(cloud.replicas[0], "VmHWM")
    error = await raw(cloud, "Networks/Create", bytes(256 << 20), compression=grpc.Compression.Gzip)
    assert error.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert memory(cloud.replicas[0], "VmHWM") < before + 50


@pytest.mark.parametrize("lease", DURATIONS)
async def test_a_time_that_cannot_be_shown_is_not_stored(cloud: Cloud, lease: dict[str, int]) -> None:
    """It made every list of changes fail from then on."""
    network = (await cloud.api.create("Network")).id
    error = await refused(cloud.api.create("Subnet", network_id=network, cidr="10.0.0.0/24", dhcp_lease_duration=lease))
    assert (error.reason, error.metadata["field"]) == ("VALUE_OUT_OF_RANGE", "dhcp_lease_duration")
    await cloud.api.call("Operations", "ListChanges", operations_pb2.ListChangesRequest())


async def test_what_is_named_in_a_map_is_no_object(cloud: Cloud) -> None:
    """An apply with a map in it: the map's entries were taken for objects that refer to others."""
    request = operations_pb2.ApplyRequest()
    request.objects.add().resource.Pack(node_pb2.Node(id="h1", bridge_mappings={"physnet": "br-ex"}))
    request.objects.add().resource.Pack(port_pb2.Port(name="p", network_id="n", hints={"a": "b"}))
    request.objects.add().resource.Pack(network_pb2.Network(name="n"))
    error = await refused(cloud.api.call("Operations", "Apply", request))
    assert {violation[1] for violation in error.violations} <= {"REFERENCE_NOT_FOUND", "FEATURE_NOT_SUPPORTED"}


@pytest.mark.parametrize("validate_only", [True, False])
async def test_an_apply_with_500_faulty_objects_is_answered_in_full_or_in_short(cloud: Cloud, validate_only: bool) -> None:
    """Not in trailers that are too long for a client with default settings; and the reason goes with the code."""
    request = operations_pb2.ApplyRequest(validate_only=validate_only)
    for _ in range(500):
        port = port_pb2.Port(network_id="nowhere", name="é" * 300, tags=["," * 900, "", "\n" * 255], mac_address="é" * 5000)
        request.objects.add(key="é" * 500).resource.Pack(port)
    call = cloud.api.call("Operations", "Apply", request)
    if validate_only:
        told = (await call).faults
        assert {fault.index for fault in told} == set(range(500))
        assert {fault.reason for fault in told} >= {"REFERENCE_NOT_FOUND", "STRING_TOO_LONG", "MAC_INVALID"}
        return
    error = await refused(call)
    assert (error.code.name, error.reason) == ("NOT_FOUND", "REFERENCE_NOT_FOUND")
    assert int(error.metadata["faults"]) >= 500
    assert error.violations[0][0] == "objects[0].network_id"


async def test_the_code_of_an_apply_is_that_of_its_first_fault(cloud: Cloud) -> None:
    """Faults are found in the order of the work and told in that of the request: code and reason come from one of them."""
    request = operations_pb2.ApplyRequest()
    request.objects.add().resource.Pack(port_pb2.Port(name="a", network_id="nowhere"))
    request.objects.add().resource.Pack(network_pb2.Network())
    error = await refused(cloud.api.call("Operations", "Apply", request))
    assert (error.code.name, error.reason) == ("NOT_FOUND", "REFERENCE_NOT_FOUND")
    assert [violation[1] for violation in error.violations] == ["REFERENCE_NOT_FOUND", "MISSING_FIELD"]


async def test_an_object_of_an_apply_is_measured_before_it_is_read(cloud: Cloud) -> None:
    request = operations_pb2.ApplyRequest(validate_only=True)
    request.objects.add().resource.Pack(network_pb2.Network(name="a", description="x" * (256 << 10)))
    request.objects.add().resource.Pack(port_pb2.Port(name="b", fixed_ips=[{}] * 50_000))
    request.objects.add().resource.Pack(network_pb2.Network(name="c", subnets=["x"] * 50_000))  # ignored on input
    told = (await cloud.api.call("Operations", "Apply", request)).faults
    assert [(fault.index, fault.reason) for fault in told] == [(0, "TOO_MANY_VALUES"), (1, "TOO_MANY_VALUES")]


async def test_an_id_that_spells_its_way_to_another_key_is_refused(cloud: Cloud) -> None:
    for name in ("a/b", ".change", "../node/h1"):
        error = await refused(cloud.api.update("Quota", name, limits={"ports": 5}))
        assert error.reason in ("ID_INVALID", "RESOURCE_NOT_FOUND")
        assert await cloud.store.get(keys.place(KINDS["Quota"], name)) is None


async def test_a_list_of_large_objects_arrives_in_pages_that_a_client_takes(cloud: Cloud) -> None:
    tags = [f"{number:02}" + "𝒳" * 253 for number in range(50)]
    for number in range(90):
        await cloud.api.create("Network", name=f"n{number:02}", tags=tags)
    seen: list[str] = []
    token, pages = "", 0
    while token or not pages:
        page = await cloud.api.list("Network", page_size=1000, page_token=token, order_by="name")
        assert page.ByteSize() < 4 << 20
        seen += [item.name for item in page.items]
        token, pages = page.next_page_token, pages + 1
    assert seen == [f"n{number:02}" for number in range(90)]
    assert pages > 1


async def test_a_trace_that_is_none_is_not_kept(cloud: Cloud) -> None:
    body = request_class("Network", "Create")(resource=network_pb2.Network(name="n")).SerializeToString()
    method = cloud.api.channel.unary_unary("/kumihimo.v1.Networks/Create")
    await method(body, metadata=(*ROOT, ("traceparent", "x" * 4000)), timeout=20)
    records = [item.value for key, item in (await cloud.everything()).items() if key.startswith(keys.CHANGES)]
    assert max(len(store_pb2.ChangeRecord.FromString(record).trace_context) for record in records) < 100


async def test_the_log_holds_one_line_a_call_whatever_its_names_are(cloud: Cloud) -> None:
    name = 'x\ntimestamp=2026-01-01T00:00:00Z level=error event=defect "' + "z" * 100_000
    await refused(cloud.api.delete("Network", "nothing\n" * 1000, request_id=name))
    await refused(cloud.api.get("Network", "nothing\n" * 1000))
    lines = cloud.replicas[0].log.read_text().split("\n")
    assert max(len(line) for line in lines) < 20_000
    assert not [line for line in lines if line.startswith("timestamp=2026-01-01")]


async def test_a_watch_that_is_left_makes_room_at_once(cloud: Cloud) -> None:
    """Its end does not wait for the garbage collector, nor does a new one for its end."""
    watch = cloud.api.channel.unary_stream("/kumihimo.v1.Networks/Watch")
    body = resource_pb2.WatchRequest(include_initial=True).SerializeToString()
    for _ in range(3):
        calls = [watch(body, metadata=(("authorization", "Bearer rita-token"),), timeout=60) for _ in range(WATCHES)]
        await asyncio.gather(*(call.read() for call in calls))

        async def one_more() -> bool:
            call = watch(body, metadata=(("authorization", "Bearer rita-token"),), timeout=60)
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            # What was refused has ended.
            return bool(call.cancel())

        assert not await one_more()
        for call in calls:
            call.cancel()
        await until(one_more, "the watches have ended")


async def test_a_walk_over_many_objects_gives_way_to_others(cloud: Cloud, second_api: Client) -> None:
    """A list that looks at 3,000 ports takes long; somebody else's get does not wait for all of it."""
    network = (await cloud.api.create("Network")).id
    for turn in range(6):
        request = operations_pb2.ApplyRequest()
        for number in range(500):
            request.objects.add().resource.Pack(port_pb2.Port(network_id=network, name=f"p{turn}-{number}"))
        await cloud.api.call("Operations", "Apply", request)
    slow = " OR ".join(['conditions.reason = "x"'] * 99)
    began = time.perf_counter()
    walk = asyncio.create_task(cloud.api.list("Port", filter=slow, page_size=1000))
    served = 0
    while not walk.done():
        await cloud.api.get("Network", network)
        served += 1
    print(f"{served} calls while one took {time.perf_counter() - began:.2f} s")
    assert not walk.result().items
    assert served > 4


async def test_many_handshakes_at_once_do_not_end_the_server(cloud: Cloud) -> None:
    """A certificate that was put in place anew with each of them did: one thread used what another had freed."""
    api = cloud.replicas[0]
    idle = Idle(api.target.removeprefix("unix:"))
    await idle.hold(1000)
    await cloud.api.list("Network")
    assert api.running
    idle.drop()


@pytest.mark.parametrize("kind", [kind.name for kind in KINDS.values() if kind.options.implicit])
@pytest.mark.parametrize("named", [{"name": "a"}, {"id": "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4"}, {"id": "a/b"}])
async def test_an_apply_of_what_is_always_there_under_another_name_is_a_fault(
    cloud: Cloud, kind: str, named: dict[str, str]
) -> None:
    """Settings of which there is one, a quota with no project's id."""
    for validate_only in (True, False):
        request = operations_pb2.ApplyRequest(validate_only=validate_only)
        request.objects.add().resource.Pack(KINDS[kind].message(description="x", **named))
        if named == {"id": "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4"} and kind == "Quota":
            continue  # it may be one
        call = cloud.api.call("Operations", "Apply", request)
        reasons = {item.reason for item in (await call).faults} if validate_only else {(await refused(call)).reason}
        assert reasons <= {"ID_INVALID", "RESOURCE_NOT_FOUND", "MISSING_FIELD"}
        assert reasons
