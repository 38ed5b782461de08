"""The profiles file: where the API is and how to speak to it.

`client.toml` holds `current = "NAME"` and a table `[profiles.NAME]` of strings. It stands at $KUMI_CONFIG, else in
~/.config/kumihimo/, else in /etc/kumihimo/. It names the token's file; the token itself never stands in it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from cli.errors import CliError
from cli.tracing import Trace

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PATHS = ("ca", "token_file", "trace_file")


@dataclass(frozen=True, slots=True)
class Profile:
    """How to reach one installation. Empty means: not set.

    endpoint: gRPC target ("host:port" or "unix:/path"). ca: PEM file that vouches for the server; unset: the well-known
    authorities. server_name: the name in the server's certificate, where it is not the endpoint's host.
    project: the project to work in, where the token's own is not meant. trace_file: where spans are appended.
    """

    endpoint: str = ""
    ca: str = ""
    token_file: str = ""
    server_name: str = ""
    project: str = ""
    trace_file: str = ""


FIELDS = tuple(entry.name for entry in fields(Profile))


@dataclass(frozen=True, slots=True)
class Config:
    """What the profiles file says."""

    path: Path
    current: str = ""
    profiles: Mapping[str, Profile] = field(default_factory=dict)

    def get(self, name: str = "") -> tuple[str, Profile]:
        """The profile of that name, or the current one, with its name. CliError names the file and what is there."""
        name = name or self.current
        if name in self.profiles:
            return name, self.profiles[name]
        how = "`kumi profile set NAME --endpoint HOST:PORT --ca FILE --token-file FILE` makes one"
        if not self.profiles:
            state = "names no profile" if self.path.exists() else "does not exist"
            raise CliError(f"no profile: {self.path} {state}; {how}")
        there = ", ".join(sorted(self.profiles))
        if not name:
            raise CliError(f"no current profile in {self.path}; `kumi profile use NAME` chooses one of: {there}")
        raise CliError(f"profile '{name}' is not in {self.path}, which has: {there}; {how}")

    def with_profile(self, name: str, profile: Profile) -> Config:
        return replace(self, profiles={**self.profiles, name: profile}, current=self.current or name)

    def without(self, name: str) -> Config:
        rest = {other: profile for other, profile in self.profiles.items() if other != name}
        return replace(self, profiles=rest, current="" if self.current == name else self.current)


@dataclass(frozen=True, slots=True)
class Settings:
    """One invocation of `kumi`: what was given before the command, and its trace. Commands find it in `ctx.obj`."""

    profile_name: str = ""
    project_name: str = ""
    trace: Trace = field(default_factory=Trace.begin)

    def profile(self) -> Profile:
        """The profile this invocation works with. CliError when there is none or it names no endpoint."""
        config = load()
        name, profile = config.get(self.profile_name)
        if not profile.endpoint:
            raise CliError(f"profile '{name}' in {config.path} has no endpoint; accepted: HOST:PORT or unix:/PATH")
        return replace(profile, project=self.project_name) if self.project_name else profile


def user_path() -> Path:
    """The file that `kumi profile` writes."""
    if given := os.environ.get("KUMI_CONFIG"):
        return Path(given)
    return Path.home() / ".config" / "kumihimo" / "client.toml"


def load() -> Config:
    """Read the profiles file; a missing one holds no profiles. CliError names the file and the field at fault."""
    import tomllib

    path = user_path()
    if not os.environ.get("KUMI_CONFIG") and not path.exists():
        system = Path("/etc/kumihimo/client.toml")
        path = system if system.exists() else path
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Config(path)
    except OSError as error:
        raise CliError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CliError(f"{path} is not TOML: {error}") from error
    current, profiles = data.pop("current", ""), data.pop("profiles", {})
    if data:
        raise CliError(f"{path}: unknown field '{next(iter(data))}'; accepted: current, profiles")
    if not isinstance(current, str):
        raise CliError(f"{path}: current must be the name of a profile in quotes")
    if not isinstance(profiles, dict):
        raise CliError(f"{path}: profiles must be tables such as [profiles.admin]")
    return Config(path, current, {name: _profile(path, name, table) for name, table in profiles.items()})


def _profile(path: Path, name: str, table: object) -> Profile:
    if not isinstance(table, dict):
        raise CliError(f"{path}: profiles.{name} must be a table: [profiles.{name}]")
    for key, value in table.items():
        if key not in FIELDS:
            raise CliError(f"{path}: unknown field 'profiles.{name}.{key}'; accepted: {', '.join(FIELDS)}")
        if not isinstance(value, str):
            raise CliError(f"{path}: profiles.{name}.{key} must be a text in quotes")
    # A relative path means the same wherever the command is typed.
    at = {key: str(path.parent / table[key]) for key in _PATHS if table.get(key)}
    return Profile(**{**table, **at})


def save(config: Config) -> Path:
    """Write the user's profiles file, readable by its owner only, in one step. Returns its path."""
    import tempfile

    path = user_path()
    lines = [f"current = {_quote(config.current)}"] if config.current else []
    for name, profile in sorted(config.profiles.items()):
        lines.append(f"\n[profiles.{name}]")
        lines += [f"{key} = {_quote(value)}" for key in FIELDS if (value := getattr(profile, key))]
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # mkstemp gives mode 0600; the rename leaves the old file or the new one, never half of it.
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".client-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CliError(f"{path} cannot be written: {error.strerror}") from error
    return path


def check_name(name: str) -> str:
    """A profile's name stands bare in TOML."""
    if not _NAME.fullmatch(name):
        raise CliError(f"profile name '{name}' is not accepted: letters, digits, - and _ are")
    return name


def _quote(text: str) -> str:
    """A TOML basic string. JSON's form is one, once DEL, which JSON leaves as it is, is escaped."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
