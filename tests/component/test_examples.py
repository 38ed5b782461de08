"""The examples of the documents run as they stand there, against a real API."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.component.cloud import SERVER_NAME, Cloud

DOCS = Path(__file__).resolve().parents[2] / "docs"
_CALL = re.compile(r"^api -d '(.*?)' HOST:PORT ([\w.]+)/(\w+)$", re.MULTILINE | re.DOTALL)


async def test_the_python_example(cloud: Cloud, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("alice-token\n")
    where = (cloud.replicas[0].target, f"{cloud.authority.certificate()}", str(token), SERVER_NAME)
    for _ in range(2):  # it names its request: the second time it makes nothing
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(DOCS / "examples" / "networks.py"),
            *where,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, err) == (0, b"")
        (network,) = (await cloud.api.list("Network", by="alice")).items
        assert out.decode() == f"{network.id} from-python 1450\n"


async def test_the_grpcurl_examples_by_reflection(cloud: Cloud) -> None:
    """The same method names and JSON bodies, by what the server says of itself; grpcurl does it in this way too."""
    calls = _CALL.findall((DOCS / "grpc.md").read_text())
    assert len(calls) == 5
    told = await asyncio.to_thread(_reflected, cloud, calls)
    created, listed, applied, watched, changes = told
    assert created[0].name == "web"
    assert [item.id for item in listed[0].items] == [created[0].id]
    assert {item.kind for item in applied[0].objects} == {"Subnet", "Port"}
    assert (watched[0].type, watched[0].resource.fixed_ips[0].ip_address) == (1, "10.0.0.5")
    assert len(changes[0].items) == 3


def _reflected(cloud: Cloud, calls: list[tuple[str, str, str]]) -> list[list[Any]]:
    """The replies of each call; of a stream the first."""
    api = cloud.replicas[0]
    credentials = grpc.ssl_channel_credentials(api.certificate)
    told = []
    with grpc.secure_channel(api.target, credentials, [("grpc.ssl_target_name_override", SERVER_NAME)]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        assert {service for _, service, _ in calls} <= set(database.get_services())
        for body, service, name in calls:
            method = pool.FindServiceByName(service).methods_by_name[name]
            # grpcurl resolves what an Any holds by reflection as well.
            for held in re.findall(r'"@type": "type.googleapis.com/([\w.]+)"', body):
                GetMessageClass(pool.FindMessageTypeByName(held))
            request = json_format.Parse(body, GetMessageClass(method.input_type)(), descriptor_pool=pool)
            invoke: Any = (channel.unary_stream if method.server_streaming else channel.unary_unary)(
                f"/{service}/{name}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=GetMessageClass(method.output_type).FromString,
            )
            reply = invoke(request, timeout=30, metadata=[("authorization", "Bearer alice-token")])
            told.append([next(iter(reply))] if method.server_streaming else [reply])
    return told
