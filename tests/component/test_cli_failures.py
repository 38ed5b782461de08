"""Every command of `kumi`, plug-ins too, when what it stands on fails: one line, a documented exit code, no stack trace.

The commands come from the command tree: a new one without sample words fails here.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from socket import AF_UNIX, socket

import click
import pytest
from google.protobuf.descriptor import FieldDescriptor

from cli import client, values
from cli.errors import DENIED, ERROR, EXIT_CODES, UNAVAILABLE
from cli.kinds import kind_named, kinds, option_name, required, rules
from cli.main import root
from controlplane.admin.authority import Authority
from controlplane.errors import StoreUnavailable
from controlplane.store.client import put
from kumihimo.v1 import resource_pb2
from tests.chaos.proxy import Proxy
from tests.component.cloud import Cloud, freeze
from tests.component.kumi import Kumi
from tests.fakes.api import Result, make_certificate
from tests.waiting import DEADLINE

ID = "0192f0c4-7a3e-7c1d-8f2a-00000000000a"
# What goes behind commands that are no verb of a noun. FILE: objects for `apply`. PKI: an authority's folder.
OTHERS: dict[str, list[str]] = {
    "apply": ["-f", "FILE"],
    "export": ["--all"],
    "history": ["web"],
    "status": ["web"],
    "drift": ["h1"],
    "capabilities": ["h1"],
    "wait": [ID, "--timeout", "1s"],
    "trace": ["--from", "web", "--to", "10.0.0.5"],
    "attach": ["web", "--netns", "none"],
    "detach": ["web"],
    "subnet-pool add-prefixes": [ID, "10.0.0.0/8"],
    "subnet-pool remove-prefixes": [ID, "10.0.0.0/8"],
    "subnet-pool onboard": [ID, ID],
    "security-group replace-rules": [ID, "RULES"],
    "address-group add-addresses": [ID, "10.0.0.5"],
    "address-group remove-addresses": [ID, "10.0.0.5"],
    "default-security-group-rule create": ["--direction", "ingress", "--used-in-other-groups"],
    "port bind": [ID, "h1"],
    "port unbind": [ID],
    "network get-ip-availability": [ID],
    "settings create": ["installation"],
    "node invite": ["x-3", "--pki", "PKI", "--etcd", "192.0.2.1:2379", "--to", "PKI"],
}
# The same of those that ask no API. PLACE: a folder of their own, in which `pki init ca` was done.
LOCAL: dict[str, list[str]] = {
    "profile list": [],
    "profile show": ["root"],
    "profile set": ["new", "--endpoint", "x:1", "--ca", "x" * 5000],
    "profile use": ["root"],
    "profile delete": ["root"],
    "pki init": ["PLACE/new"],
    "pki issue": ["PLACE/ca", "h1", "--for", "node"],
    "pki renew": ["PLACE/ca", "ca"],
    "pki list": ["PLACE/ca"],
    "restore": ["PLACE/client.toml", "--data-dir", "PLACE/new"],
    "node join": ["PLACE/client.toml"],
    "completion": ["bash"],
    "help": [],
}
# The same of those that speak to etcd; CONFIG: the API's configuration.
STORE: dict[str, list[str]] = {"backup": ["PLACE/backup.db", "--config", "CONFIG"], "doctor": ["--config", "CONFIG"]}
WRITING = {"profile set", "profile use", "profile delete", "pki init", "pki issue", "pki renew"}
READS = ("show", "list", "watch")


def _leaves(command: click.Command, context: click.Context, path: str = "") -> Iterator[str]:
    if not isinstance(command, click.Group):
        yield path
        return
    for name in command.list_commands(context):
        child = command.get_command(context, name)
        assert child is not None
        yield from _leaves(child, click.Context(child, parent=context, info_name=name), f"{path} {name}".strip())


COMMANDS = list(_leaves(root, click.Context(root, info_name="kumi")))


def _words(path: str, file: str = "") -> list[str] | None:
    """A command line that is right; None: it needs no API."""
    if path in LOCAL or path in STORE:
        return None
    if path in OTHERS:
        folder = Path(file).parent
        places = {"FILE": file, "PKI": str(folder / "pki"), "RULES": str(folder / "rules.yaml")}
        return [*path.split(), *(places.get(word, word) for word in OTHERS[path])]
    noun, verb = path.split()
    kind = kind_named(noun)
    assert kind is not None, f"{path} has no sample words"
    if verb == "create":
        needed = [field for field in kind.descriptor.fields if required(field) or field.name in kind.options.arguments]
        given = [f"--{option_name(field)}={_value(field)}" for field in needed]
        return [noun, verb, *given]
    return [noun, verb, *{"list": [], "watch": [], "update": [ID, "--description", "x"]}.get(verb, [ID])]


def _value(field: FieldDescriptor) -> str:
    """A value that the command line takes."""
    if field.enum_type is not None:
        accepted = values.choices(field.enum_type)
        return "vxlan" if "vxlan" in accepted else accepted[0]  # the type of network that needs nothing else
    if field.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        return "7"
    known = rules(field)
    return {resource_pb2.FORMAT_UUID: ID, resource_pb2.FORMAT_CIDR: "10.0.0.0/24"}.get(known.format, "x-1")


ASKING = [path for path in COMMANDS if _words(path) is not None]


def test_every_command_has_sample_words() -> None:
    assert {path for path in COMMANDS if _words(path) is None} == {*LOCAL, *STORE}
    assert {f"{noun} {verb}" for noun in kinds() for verb in READS} < set(ASKING)
    assert {"attach", "detach"} < set(ASKING), "plug-ins are commands like others"


def one_line(result: Result, code: int, *patterns: str) -> None:
    """The failure is told as promised."""
    assert result.code == code, result
    assert str(code) in re.findall(r"\d+", EXIT_CODES)
    assert result.out == ""
    assert re.fullmatch(r"kumi: [^\n]+\n", result.err), result.err
    assert "Traceback" not in result.err
    assert "unexpected failure" not in result.err
    for pattern in patterns:
        assert re.search(pattern, result.err), result.err


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "RETRY_SECONDS", (0.0, 0.0))


@pytest.fixture
def kumi(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kumi:
    return Kumi(cloud, tmp_path, monkeypatch, capsys)


def _all(kumi: Kumi) -> list[list[str]]:
    file = kumi.file("{kind: network, name: x}")
    if not (Path(file).parent / "pki").exists():
        Authority(Path(file).parent / "pki").init()
    (Path(file).parent / "rules.yaml").write_text("[]\n")
    return [words for path in ASKING if (words := _words(path, file))]


async def test_no_api_there(kumi: Kumi) -> None:
    kumi.config.write_text(re.sub(r'endpoint = "[^"]*"', f'endpoint = "unix:{kumi.folder}/none.sock"', kumi.config.read_text()))
    for words in _all(kumi):
        one_line(await kumi(*words), UNAVAILABLE, "no API server answers at unix:")


async def test_another_program_has_the_port(kumi: Kumi) -> None:
    path = kumi.folder / "other.sock"
    with socket(AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)

        def answer() -> None:
            while True:
                try:
                    caller, _ = listener.accept()
                except OSError:
                    return
                with caller:
                    caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=answer, daemon=True).start()
        kumi.config.write_text(re.sub(r'endpoint = "[^"]*"', f'endpoint = "unix:{path}"', kumi.config.read_text()))
        for words in _all(kumi):
            one_line(await kumi(*words), UNAVAILABLE, "no API server answers at unix:")


async def test_an_api_that_is_far_or_slow_is_no_failure(cloud: Cloud, kumi: Kumi) -> None:
    """To connect takes five ways of 100 ms: TLS, then what HTTP/2 has to say first."""
    async with Proxy(cloud.replicas[0].target) as proxy:
        proxy.late = 0.1
        kumi.config.write_text(kumi.config.read_text().replace(cloud.replicas[0].target, proxy.target))
        await kumi.done("network", "list")


async def test_wrong_ca(kumi: Kumi) -> None:
    other = make_certificate(kumi.folder, "kumi-api")
    kumi.config.write_text(re.sub(r'ca = "[^"]*"', f'ca = "{other.certificate}"', kumi.config.read_text()))
    for words in _all(kumi):
        one_line(await kumi(*words), UNAVAILABLE, "presents a certificate that the profile's ca does not vouch for")


async def test_token_that_the_api_does_not_know(kumi: Kumi) -> None:
    (kumi.folder / "root.token").write_text("of-yesterday\n")
    for words in _all(kumi):
        one_line(await kumi(*words), DENIED, r"\[TOKEN_INVALID\]", "token file: ")
    (kumi.folder / "root.token").write_text("\n")
    for words in _all(kumi):
        one_line(await kumi(*words), ERROR, "holds no token")


@pytest.fixture
async def own(request: pytest.FixtureRequest) -> AsyncIterator[Cloud]:
    """A control plane whose etcd may come to harm."""
    async with Cloud(etcd={"quota-backend-bytes": str(1 << 20)}) as cloud:
        yield cloud


async def test_etcd_frozen_and_then_gone(
    own: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kumi = Kumi(own, tmp_path, monkeypatch, capsys)
    with freeze(own.etcd):
        for words in (["network", "list"], ["network", "create", "a"]):
            one_line(await kumi(*words), UNAVAILABLE, r"\[STORE_UNAVAILABLE\]")
    own.etcd.kill()
    for words in _all(kumi):
        one_line(await kumi(*words), UNAVAILABLE, r"\[STORE_UNAVAILABLE\]")
    for path in STORE:
        words = [word.replace("CONFIG", str(own.folder / "api0.toml")) for word in _local(path, kumi.folder, STORE)]
        one_line(await kumi(*words), UNAVAILABLE, "etcd")


async def _fill(cloud: Cloud) -> None:
    """Write until etcd refuses: it looks at its size when it has written a batch to the disk, some ten times a second."""
    async with asyncio.timeout(DEADLINE):
        for number in itertools.count():
            await cloud.write(put(f"ballast/{number % 64}", os.urandom(64 << 10)))


async def test_etcd_is_full(
    own: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kumi = Kumi(own, tmp_path, monkeypatch, capsys)
    network = await own.api.create("Network", name="web", id=ID)
    await own.api.create("Node", id="x-2")
    with pytest.raises(StoreUnavailable, match="out of space"):
        await _fill(own)
    full_words = [
        ["network", "create", "more"],
        ["network", "update", "web", "--description", "x"],
        ["network", "delete", "web"],
        ["subnet", "create", "web", "10.0.0.0/24"],
        ["port", "create", "web"],
        ["node", "create", "x-1"],
        ["node", "update", "x-2", "--weight", "1"],
        ["node", "delete", "x-2"],
        ["quota", "update", "p", "--limits", "ports=1"],
        ["apply", "-f", kumi.file("{kind: network, name: x}")],
    ]
    for words in full_words:
        one_line(await kumi(*words), UNAVAILABLE, "etcd is out of space", r"\[STORE_UNAVAILABLE\]")
    # Reading goes on.
    assert network.id in await kumi.done("network", "list")
    assert "web" in await kumi.done("history", "web")
    assert "kind: network" in await kumi.done("export", "--all")


def _run(kumi: Kumi, *words: str, stdout: int, config: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", *words],
        env={**os.environ, "KUMI_CONFIG": config or str(kumi.config), "KUMI_PROFILE": "root"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )


async def test_disk_full_of_output(kumi: Kumi) -> None:
    """Whatever a command has to say, to a place that takes nothing."""
    await kumi.done("network", "create", "web", "--id", ID)
    await kumi.done("pki", "init", f"{kumi.folder}/ca")
    file = kumi.file("{kind: network, name: x}")
    told = [f"{noun} list" for noun in kinds()] + ["network show", "export", "history"]
    lines = [_words(path, file) or [] for path in told] + [
        _local(path, kumi.folder) for path in sorted(set(LOCAL) - WRITING - {"restore", "node join"})
    ]
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for words in lines:
            done = _run(kumi, *words, stdout=full)
            result = Result(done.returncode, "", done.stderr)
            one_line(result, ERROR, "the output cannot be written: No space left on device")
    finally:
        os.close(full)


def _local(path: str, place: Path, samples: dict[str, list[str]] = LOCAL) -> list[str]:
    return [*path.split(), *(word.replace("PLACE", str(place)) for word in samples[path])]


SCRIPT = """
set -e
mount -t tmpfs -o size=64k none "$1"
cp "$2" "$1/client.toml"
export KUMI_CONFIG="$1/client.toml"
"$3" -c "from cli.main import main; main()" pki init "$1/ca" >/dev/null
dd if=/dev/zero of="$1/ballast" bs=1k count=100 2>/dev/null || true
exec "$3" -c "from cli.main import main; main()" $4 > "${5:-/dev/stdout}"
"""


def _on_a_full_disk(kumi: Kumi, words: list[str], output: str = "") -> Result:
    place = kumi.folder / "small"
    place.mkdir(exist_ok=True)
    words = [word.replace("PLACE", str(place)) for word in words]
    into = [f"{place}/{output}"] if output else []
    shell = ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", str(place), str(kumi.config), sys.executable]
    done = subprocess.run([*shell, " ".join(words), *into], capture_output=True, text=True, timeout=60, check=False)
    return Result(done.returncode, done.stdout, done.stderr)


def test_disk_full_under_what_is_written(kumi: Kumi) -> None:
    for path in sorted(WRITING):
        result = _on_a_full_disk(kumi, [*path.split(), *LOCAL[path]])
        one_line(result, ERROR, "No space left on device")
    # What does not fit into a file is no success.
    for words in (["export", "--all"], ["completion", "bash"], ["network", "list", "-o", "json"]):
        result = _on_a_full_disk(kumi, ["--profile", "root", *words], "export.yaml")
        one_line(result, ERROR, "the output cannot be written: No space left on device")
