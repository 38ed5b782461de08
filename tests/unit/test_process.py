"""That a process tells systemd it is ready (sd_notify(3))."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from controlplane import process


@pytest.mark.parametrize("abstract", [False, True])
def test_whoever_started_it_hears_that_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    name = f"{'@' if abstract else ''}{tmp_path}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + name[1:] if abstract else name)
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        process.ready()
        assert listener.recv(64) == b"READY=1"


def test_nobody_is_told_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    process.ready()
