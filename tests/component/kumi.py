"""`kumi` against a real API: command lines run in this process, beside the event loop."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from cli import main
from cli.tracing import Trace
from tests.component.cloud import IDENTITIES, SERVER_NAME, Cloud
from tests.fakes.api import Result


class Kumi:
    """Runs command lines with a profile for each of IDENTITIES, and any other files in `folder`."""

    def __init__(self, cloud: Cloud, folder: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self._patch = patch
        self._capsys = capsys
        self.config = folder / f"{cloud.folder.name}.toml"
        lines = []
        for name in IDENTITIES:
            token = folder / f"{name}.token"
            token.write_text(f"{name}-token\n")
            lines.append(
                f'[profiles.{name}]\nendpoint = "{cloud.replicas[0].target}"\nserver_name = "{SERVER_NAME}"\n'
                f'ca = "{cloud.authority.certificate()}"\ntoken_file = "{token}"\n'
            )
        self.config.write_text("\n".join(lines))

    async def __call__(self, *words: str, by: str = "root", stdin: bytes | None = None) -> Result:
        self._patch.setenv("KUMI_CONFIG", str(self.config))
        self._patch.setenv("KUMI_PROFILE", by)
        self._patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin or b"")))
        self._capsys.readouterr()
        code = await asyncio.to_thread(main.run, words, Trace.begin())
        captured = self._capsys.readouterr()
        return Result(code, captured.out, captured.err)

    async def done(self, *words: str, by: str = "root", stdin: bytes | None = None) -> str:
        """What a command line that succeeds says."""
        result = await self(*words, by=by, stdin=stdin)
        assert (result.code, result.err) == (0, ""), result
        return result.out

    async def told(self, *words: str, by: str = "root", stdin: bytes | None = None) -> Any:
        """The same, as JSON."""
        return json.loads(await self.done(*words, "-o", "json", by=by, stdin=stdin))

    def file(self, text: str, name: str = "cloud.yaml") -> str:
        """A file of that text; its path."""
        path = self.folder / name
        path.write_text(text)
        return str(path)
