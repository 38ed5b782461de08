"""The examples of the documents run as they stand there, against a real API."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sys
from pathlib import Path

import grpc
from google.protobuf.json_format import MessageToDict

from controlplane.registry import KINDS, OPERATIONS
from kumihimo.v1.operations_pb2 import ListChangesRequest
from tests.component.cloud import SERVER_NAME, Cloud
from tests.waiting import DEADLINE

DOCS = Path(__file__).resolve().parents[2] / "docs"
BUF = Path(sys.executable).parent / "buf"
PUBLIC = ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"]
_LINES = re.compile(r"^api (?:-d '[^']*' )?HOST:PORT \S+$", re.MULTILINE)


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


async def test_the_grpcurl_examples(cloud: Cloud, tmp_path: Path) -> None:
    """Each line, translated for another client that knows nothing but what the server says of itself."""
    buf = Buf(cloud, tmp_path, "alice-token")
    lines = [shlex.split(line) for line in _LINES.findall((DOCS / "grpc.md").read_text())]
    names = [line[-1].rpartition("/")[2] for line in lines]
    assert names == ["list", "Create", "List", "Apply", "Watch", "ListChanges"]
    services, created, listed = [await buf.grpcurl(line) for line in lines[:3]]
    assert services.split() == sorted([*(kind.service.full_name for kind in KINDS.values()), OPERATIONS.full_name, *PUBLIC])
    network = await cloud.api.get("Network", json.loads(created)["id"], by="alice")
    assert json.loads(created)["name"] == "web"
    assert json.loads(listed)["items"] == [MessageToDict(network)]
    applied, watched, changes = [await buf.grpcurl(line) for line in lines[3:]]
    assert {item["kind"] for item in json.loads(applied)["objects"]} == {"Subnet", "Port"}
    (port,) = (await cloud.api.list("Port", by="alice", filter='name = "db"')).items
    event = json.loads(watched)
    assert (event["type"], event["resource"]["fixedIps"]) == ("EVENT_TYPE_INITIAL", MessageToDict(port)["fixedIps"])
    told = await cloud.api.call("Operations", "ListChanges", ListChangesRequest(page_size=3), "alice-token")
    assert json.loads(changes) == MessageToDict(told)


async def test_the_line_of_the_other_client_and_its_refusal(cloud: Cloud, tmp_path: Path) -> None:
    """As it stands in the document; without a token that we know it ends with the code of gRPC."""
    (line,) = re.findall(r"^buf (curl .*)$", (DOCS / "grpc.md").read_text(), re.MULTILINE)
    for token, code in (("alice-token", 0), ("nobody", grpc.StatusCode.UNAUTHENTICATED.value[0] << 3)):
        buf = Buf(cloud, tmp_path, token)
        process = await buf.start(shlex.split(line))
        out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
        assert process.returncode == code, err
        assert (b"revision" in out) == (code == 0)


class Buf:
    """`buf curl` as a caller, whose token is in no argument."""

    def __init__(self, cloud: Cloud, folder: Path, token: str) -> None:
        self._api = cloud.replicas[0].target.removeprefix("unix:")
        self._files = {"ca.pem": str(cloud.authority.certificate()), "@header": f"@{folder}/header"}
        (folder / "header").write_text(f"authorization: Bearer {token}\n")

    async def grpcurl(self, line: list[str]) -> str:
        """What a call answers that is written for grpcurl: `api [-d BODY] HOST:PORT METHOD`. Of a stream the first message."""
        (_, *body, _, method) = line
        common = ["curl", "--protocol", "grpc", "--cacert", "ca.pem", "-H", "@header"]
        rest = ["--list-services", "https://HOST:PORT"] if method == "list" else [*body, f"https://HOST:PORT/{method}"]
        process = await self.start([*common, *rest])
        if not method.endswith("/Watch"):
            out, err = await asyncio.wait_for(process.communicate(), DEADLINE)
            assert (process.returncode, err) == (0, b"")
            return out.decode()
        assert process.stdout is not None
        text = ""
        try:
            async with asyncio.timeout(DEADLINE):
                while not _whole(text):
                    text += (await process.stdout.readline()).decode()
        finally:
            process.terminate()
            await process.communicate()
        return text

    async def start(self, arguments: list[str]) -> asyncio.subprocess.Process:
        found = [self._files.get(item, item.replace("HOST:PORT", SERVER_NAME)) for item in arguments]
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(BUF, *found, "--unix-socket", self._api, stdout=pipe, stderr=pipe)


def _whole(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True
