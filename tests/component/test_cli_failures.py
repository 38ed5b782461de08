"""Every command of `kumi`, plug-ins too, when what it stands on fails: one line, a documented exit code, no stack trace.

The commands come from the command tree: a new one without sample words fails here.
"""

from __future__ import annotations

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

from cli import client
from cli.errors import DENIED, ERROR, EXIT_CODES, UNAVAILABLE
from cli.kinds import kind_named, kinds, option_name, required, rules
from cli.main import root
from cli.values import choices
from controlplane.errors import StoreUnavailable
from controlplane.store.client import put
from kumihimo.v1 import resource_pb2
from tests.component.cloud import Cloud, freeze
from tests.component.kumi import Kumi
from tests.fakes.api import Result, make_certificate

ID = "0192f0c4-7a3e-7c1d-8f2a-00000000000a"
# What goes behind commands that are no verb of a noun. None: it asks no API.
OTHERS: dict[str, list[str] | None] = {
    "apply": ["-f", "FILE"],
    "export": ["--all"],
    "history": ["web"],
    "status": ["web"],
    "wait": [ID, "--timeout", "1s"],
    "profile list": None,
    "profile show": None,
    "profile set": None,
    "profile use": None,
    "profile delete": None,
    "completion": None,
    "help": None,
    "attach": ["web", "--netns", "none"],
    "detach": ["web"],
}
# Commands that speak to etcd, or to files: their own tests have the tables of their failures (restore, doctor, pki).
OPERATING = ("backup", "restore", "doctor", "pki init", "pki issue", "pki renew", "pki list")
LOCAL = {
    "profile list": [],
    "profile show": ["root"],
    "profile set": ["new", "--endpoint", "x:1"],
    "profile use": ["root"],
    "profile delete": ["root"],
    "completion": ["bash"],
    "help": [],
}
METHODS = {"add-prefixes": [ID, "10.0.0.0/24"], "remove-prefixes": [ID, "10.0.0.0/24"], "onboard": [ID, ID]}
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
    if path in OPERATING:
        return None
    if path in OTHERS:
        words = OTHERS[path]
        return None if words is None else [path, *(file if word == "FILE" else word for word in words)]
    noun, verb = path.split()
    kind = kind_named(noun)
    assert kind is not None, f"{path} has no sample words"
    if verb == "create":
        fields = [kind.descriptor.fields_by_name[name] for name in kind.options.arguments]
        given = ["installation" if kind.name == "Settings" else _sample(field) for field in fields]
        for field in kind.settable:
            if required(field) and field not in fields:
                given += [f"--{option_name(field)}", _sample(field)]
        return [noun, verb, *given]
    return [noun, verb, *{"list": [], "watch": [], "update": [ID, "--description", "x"], **METHODS}.get(verb, [ID])]


def _sample(field: FieldDescriptor) -> str:
    known = rules(field)
    if field.enum_type is not None:
        names = choices(field.enum_type)
        return "vxlan" if "vxlan" in names else names[0]
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_UINT32):
        return "1"
    if known.reference:
        return ID
    return "10.0.0.0/24" if known.format == resource_pb2.FORMAT_CIDR else "x-1"


ASKING = [path for path in COMMANDS if _words(path) is not None]


def test_every_command_has_sample_words() -> None:
    assert {path for path in COMMANDS if _words(path) is None} == {*LOCAL, *OPERATING}
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
    cloud = Cloud(etcd={"quota-backend-bytes": str(1 << 20)})
    async with cloud:
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


async def _fill(cloud: Cloud) -> None:
    for number in range(64):
        await cloud.write(put(f"ballast/{number}", os.urandom(64 << 10)))


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
        one_line(await kumi(*words), UNAVAILABLE, "out of space", r"\[STORE_UNAVAILABLE\]")
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
    file = kumi.file("{kind: network, name: x}")
    told = {f"{noun} list" for noun in kinds()} | {"network show", "export", "history"}
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for words in [*(_words(path, file) or [] for path in sorted(told)), *([*path.split(), *LOCAL[path]] for path in LOCAL)]:
            if words[:2] in (["profile", "use"], ["profile", "delete"], ["profile", "set"]):
                continue  # they change what the others read
            done = _run(kumi, *words, stdout=full)
            result = Result(done.returncode, "", done.stderr)
            one_line(result, ERROR, "the output cannot be written: No space left on device")
    finally:
        os.close(full)


SCRIPT = """
set -e
mount -t tmpfs -o size=64k none "$1"
cp "$2" "$1/client.toml"
dd if=/dev/zero of="$1/ballast" bs=1k count=100 2>/dev/null || true
export KUMI_CONFIG="$1/client.toml"
shift 2
exec "$@"
"""


def test_disk_full_under_a_file(kumi: Kumi) -> None:
    """`kumi profile` leaves the file that was there; an export that does not fit is no success."""
    place = kumi.folder / "small"
    place.mkdir()
    python = [sys.executable, "-c", "from cli.main import main; main()"]
    script = ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", str(place), str(kumi.config), *python]
    for path in ("profile set", "profile use", "profile delete"):
        words = [*path.split(), *LOCAL[path], *(["--ca", "x" * 5000] if path == "profile set" else [])]
        done = subprocess.run([*script, *words], capture_output=True, text=True, timeout=60, check=False)
        one_line(Result(done.returncode, done.stdout, done.stderr), ERROR, "cannot be written: No space left on device")
    into = ["sh", "-c", f'exec "$@" > {place}/export.yaml', "sh", *python]
    script = ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", str(place), str(kumi.config), *into]
    done = subprocess.run([*script, "completion", "bash"], capture_output=True, text=True, timeout=60, check=False)
    one_line(Result(done.returncode, done.stdout, done.stderr), ERROR, "the output cannot be written: No space left on device")
