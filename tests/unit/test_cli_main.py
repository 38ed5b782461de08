"""Help, plug-ins, completion and tracing of `kumi`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import grpc
import pytest

from cli import main, tracing
from cli.errors import EXIT_CODES
from cli.kinds import kinds
from cli.main import root
from cli.options import FieldOption
from cli.plugins import PLUGINS
from cli.tracing import Trace
from tests.fakes.api import FakeApi, Fault, Kumi

pytest_plugins = ("tests.fakes.api",)


@pytest.fixture
def plugins(monkeypatch: pytest.MonkeyPatch) -> dict[str, EntryPoint]:
    """Entry points in place of the installed ones."""
    found: dict[str, EntryPoint] = {}
    monkeypatch.setattr(main, "_plugins", lambda: found)
    return found


def _all(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Command, click.Context]]:
    yield context.command_path, command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            yield from _all(child, click.Context(child, parent=context, info_name=name))


def test_a46_every_verb_is_listed(kumi: Kumi, plugins: dict[str, EntryPoint]) -> None:
    plugins["attach"] = EntryPoint("attach", "nowhere.at_all:attach", PLUGINS)
    result = kumi("--help")
    assert (result.code, result.err) == (0, "")
    lines = [" ".join(line.split()) for line in result.out.splitlines()]
    for noun in kinds():
        assert [line for line in lines if line.startswith(f"{noun} create, show, list, watch, update, delete")]
    for name in ("apply", "export", "history", "status", "wait", "profile", "completion", "help"):
        assert any(line.startswith(name + " ") for line in lines)
    assert "(list, show, set, use, delete)" in " ".join(lines)
    assert "attach from nowhere.at_all" in lines
    assert " ".join(EXIT_CODES.split()) in " ".join(lines)
    assert kumi("help").out == result.out


def test_a46_every_command_has_help_with_an_example(plugins: dict[str, EntryPoint]) -> None:
    assert not plugins
    for path, command, context in _all(root, click.Context(root, info_name="kumi", **root.context_settings)):
        text = command.get_help(context)
        example = text.partition("Example:\n")[2].strip()
        assert command.help, path
        assert example.startswith(path if path != "kumi" else "kumi network create"), path
        assert "VALUE" not in example, path


def test_help_says_what_the_contract_says(kumi: Kumi) -> None:
    text = " ".join(kumi("help", "port", "create").out.split())
    assert "Where the other nodes send" not in text
    assert "--mac MAC Unique in the network. Default: made by the server." in text
    assert "--name TEXT Free text for people; need not be unique." in text
    assert "--ip VALUE Default: one free address per family that has a subnet. In IPv6" in text
    assert "ADDRESS or SUBNET or" in text
    assert "Id or name." in text


def test_help_of_nothing(kumi: Kumi) -> None:
    result = kumi("help", "network", "frobnicate")
    assert (result.code, result.err) == (
        2,
        "kumi: there is no command 'kumi network frobnicate'; `kumi help` lists all\n",
    )
    assert kumi("help", "network", "create").out == kumi("network", "create", "--help").out


def test_no_command_shows_help(kumi: Kumi) -> None:
    result = kumi()
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("Usage: kumi ")


def test_help_loads_no_more_than_it_needs() -> None:
    code = (
        "import sys; from cli.main import run; from cli.tracing import Trace; run(['--help'], Trace.begin());"
        "sys.stderr.write(' '.join({'grpc', 'rich', 'opentelemetry', 'yaml', 'ssl', 'asyncio', 'agent', 'controlplane'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.returncode == 0


def test_plugin_is_loaded_only_when_it_is_named(kumi: Kumi, plugins: dict[str, EntryPoint]) -> None:
    plugins["broken"] = EntryPoint("broken", "nowhere.at_all:command", PLUGINS)
    plugins["odd"] = EntryPoint("odd", "json:dumps", PLUGINS)
    plugins["fine"] = EntryPoint("fine", "cli.status:wait", PLUGINS)
    assert kumi("--help").code == 0
    result = kumi("broken", "--help")
    assert (result.code, result.err) == (
        1,
        "kumi: the command 'broken' (nowhere.at_all:command) cannot be loaded: No module named 'nowhere'\n",
    )
    assert "it is no click command" in kumi("odd").err
    assert kumi("fine", "--help").code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, kumi: Kumi) -> None:
    result = kumi("completion", shell)
    assert result.code == 0
    assert "_KUMI_COMPLETE" in result.out


@pytest.fixture
def complete(
    config: Path,
    plugins: dict[str, EntryPoint],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Kumi:
    """What the shell is offered after the words."""
    plugins["broken"] = EntryPoint("broken", "nowhere.at_all:command", PLUGINS)

    def offered(*words: str) -> list[str]:
        monkeypatch.setenv("_KUMI_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(["kumi", *words]))
        monkeypatch.setenv("COMP_CWORD", str(len(words)))
        with pytest.raises(SystemExit):
            main.run([], Trace.begin())
        captured = capsys.readouterr()
        assert captured.err == ""
        return [line.partition(",")[2] for line in captured.out.splitlines() if line]

    return offered  # type: ignore[return-value]


def test_completion_of_words_and_names(complete: Kumi, api: FakeApi) -> None:
    api.add("network", id="0192f0c4-7a3e-7c1d-8f2a-00000000000a", name="testnet")
    api.add("network", id="0192f0c4-7a3e-7c1d-8f2a-00000000000b", name="other")
    assert complete("netw") == ["network", "network-segment-range"]
    assert complete("network", "sh") == ["show"]
    assert complete("network", "create", "--type", "vx") == ["vxlan"]
    for words in (("network", "show"), ("network", "delete"), ("port", "create"), ("subnet", "create", "--network")):
        assert complete(*words, "te") == ["testnet"]
    assert complete("network", "show", "0192")[-1].endswith("b")


def test_completion_is_silent_when_anything_fails(complete: Kumi, api: FakeApi, config: Path) -> None:
    api.faults["Networks/List"] = [Fault(grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE", "away")]
    assert complete("network", "show", "te") == []
    assert len(api.calls) == 1, "nobody waits for a second attempt at the terminal"
    config.unlink()
    assert complete("network", "show", "te") == []
    assert complete("brok") == []


def test_span_of_a_command_is_what_was_sent(kumi: Kumi, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "spans.jsonl"
    monkeypatch.setenv("KUMI_TRACE_FILE", str(path))
    trace = Trace.begin()
    code = main.run(["network", "create", "secret-name"], trace)
    tracing.record(trace, code)
    (line,) = path.read_text().splitlines()
    span = json.loads(line)
    _, trace_id, span_id, _ = api.calls[0].metadata["traceparent"].split("-")
    assert (span["trace_id"], span["span_id"], span["parent_id"]) == (trace_id, span_id, None)
    assert (span["name"], span["attributes"]) == ("kumi network create", {"kumi.exit_code": 0})
    assert span["start"] == trace.start <= span["end"]
    assert kumi("--help").code == 0


def test_profile_names_the_trace_file(kumi: Kumi, api: FakeApi, config: Path) -> None:
    with config.open("a") as file:
        file.write('trace_file = "spans.jsonl"\n')
    for words in (["--help"], ["network", "list"]):
        trace = Trace.begin()
        tracing.record(trace, main.run(words, trace))
    assert len((config.parent / "spans.jsonl").read_text().splitlines()) == 1


def test_trace_file_that_cannot_be_written_is_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tracing.record(Trace(1, 1, 1, "kumi", str(tmp_path)), 0)
    assert capsys.readouterr().err == f"kumi: trace file {tmp_path} cannot be written: Is a directory\n"


def test_options_of_fields_are_described() -> None:
    for kind in kinds().values():
        for field in kind.settable:
            option = FieldOption(field)
            names, _ = option.get_help_record(click.Context(click.Command("x"))) or ("", "")
            assert option.opts[0] in names


def test_a_pipe_that_closes_is_no_fault(config: Path) -> None:
    """`kumi --help | head -1` and its like."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", "--help"],
        env={**os.environ, "KUMI_CONFIG": str(config)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writer)
    assert "Traceback" not in done.stderr
