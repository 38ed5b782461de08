"""The profiles file: written in one step, read strictly, and never a place for a token."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from cli import settings
from tests.fakes.api import TOKEN, FakeApi, Kumi

pytest_plugins = ("tests.fakes.api",)


@pytest.fixture
def empty(config: Path) -> Path:
    config.unlink()
    return config


def test_round_trip(kumi: Kumi, empty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(empty.parent)
    odd = 'we"ird \\ ünï\x7f'
    assert kumi("profile", "set", "a", "--endpoint", "h:1", "--ca", "ca.pem", "--token-file", "token").code == 0
    assert kumi("profile", "set", "b", "--endpoint", "unix:/s", "--project", odd, "--server-name", "n").code == 0
    assert kumi("profile", "set", "a", "--project", "p").code == 0
    assert kumi("profile", "use", "b").code == 0
    config = settings.load()
    assert config.current == "b"
    assert config.profiles == {
        "a": settings.Profile("h:1", str(empty.parent / "ca.pem"), str(empty.parent / "token"), "", "p"),
        "b": settings.Profile("unix:/s", "", "", "n", odd),
    }
    assert json.loads(kumi("profile", "show", "-o", "json").out)["name"] == "b"
    assert [entry["current"] for entry in json.loads(kumi("profile", "list", "-o", "json").out)] == [False, True]
    assert kumi("profile", "delete", "b").code == 0
    assert settings.load() == settings.Config(empty, "", {"a": config.profiles["a"]})
    assert "profile use NAME` chooses one of: a" in kumi("network", "list").err


def test_first_profile_becomes_the_current_one_and_the_file_is_private(kumi: Kumi, empty: Path) -> None:
    kumi("profile", "set", "a", "--endpoint", "h:1")
    assert settings.load().current == "a"
    assert stat.S_IMODE(empty.stat().st_mode) == 0o600
    assert not list(empty.parent.glob(".client-*"))


def test_token_is_never_shown(kumi: Kumi) -> None:
    for form in ("table", "json", "yaml"):
        for words in (("show",), ("list",)):
            result = kumi("profile", *words, "-o", form)
            assert result.code == 0
            assert TOKEN not in result.out + result.err
    assert "No such option" in kumi("profile", "set", "a", "--token", "x").err


def test_relative_paths_stand_for_the_same_file_everywhere(
    kumi: Kumi, api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert kumi("network", "list").code == 0
    assert api.calls[0].metadata["authorization"] == f"Bearer {TOKEN}"


def test_profile_option_chooses(kumi: Kumi) -> None:
    result = kumi("--profile", "other", "network", "list")
    assert result.code == 1
    assert "profile 'other' is not in" in result.err
    assert "which has: admin" in result.err


def test_home_goes_before_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUMI_CONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert settings.user_path() == tmp_path / ".config" / "kumihimo" / "client.toml"
    settings.save(settings.Config(Path(), "a", {"a": settings.Profile("h:1")}))
    assert settings.load().profiles["a"].endpoint == "h:1"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("current = ", "is not TOML"),
        ("\xff", "is not TOML"),
        ("current = 3", "current must be the name of a profile in quotes"),
        ('curent = "a"', "unknown field 'curent'; accepted: current, profiles"),
        ("profiles = 3", "profiles must be tables"),
        ("[profiles]\na = 3", "profiles.a must be a table"),
        ("[profiles.a]\nendpoint = 3", "profiles.a.endpoint must be a text in quotes"),
        ('[profiles.a]\ntoken = "x"', "unknown field 'profiles.a.token'; accepted: endpoint, ca, token_file,"),
        ('current = "a"\n[profiles.a]', "profile 'a' in"),
        ('current = "b"\n[profiles.a]\nendpoint = "h:1"', "profile 'b' is not in"),
        ("", "names no profile"),
    ],
)
def test_faults_of_the_file_are_one_line(text: str, sentence: str, kumi: Kumi, config: Path) -> None:
    config.write_bytes(text.encode("latin-1"))
    result = kumi("network", "list")
    assert (result.code, result.out) == (1, "")
    assert sentence in result.err
    assert str(config) in result.err
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("set", "a b", "--endpoint", "h:1"), "profile name 'a b' is not accepted"),
        (("set", "new"), "profile 'new' needs an --endpoint: HOST:PORT or unix:/PATH"),
        (("set", "admin", "--endpoint", ""), "needs an --endpoint"),
        (("use", "nobody"), "profile 'nobody' is not in"),
        (("delete", "nobody"), "profile 'nobody' is not in"),
        (("show", "nobody"), "profile 'nobody' is not in"),
    ],
)
def test_faults_of_the_command_change_nothing(words: tuple[str, ...], sentence: str, kumi: Kumi, config: Path) -> None:
    before = config.read_text()
    result = kumi("profile", *words)
    assert result.code in (1, 2)
    assert sentence in result.err
    assert result.err.count("\n") == 1
    assert config.read_text() == before


def test_no_file_at_all_says_how_to_make_one(kumi: Kumi, empty: Path) -> None:
    result = kumi("network", "list")
    assert result.err.startswith(f"kumi: no profile: {empty} does not exist; `kumi profile set NAME")
    assert result.code == 1


def test_file_that_is_a_directory(kumi: Kumi, empty: Path) -> None:
    empty.mkdir()
    assert kumi("network", "list").err == f"kumi: {empty} cannot be read: Is a directory\n"
    assert "cannot be written: " in kumi_error_of_save(empty)


def kumi_error_of_save(path: Path) -> str:
    with pytest.raises(settings.CliError) as caught:
        settings.save(settings.Config(path, "", {}))
    return str(caught.value)
