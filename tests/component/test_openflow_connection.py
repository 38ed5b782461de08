"""The OpenFlow driver and a switch that comes, goes, is silent, or is asked by its control socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from agent.drivers import unixctl
from agent.drivers.openflow import codec
from agent.drivers.openflow.connection import Connection, OpenFlowError
from agent.drivers.openflow.driver import OpenFlowDriver
from agent.model.flow import (
    Flow,
)
from tests.component.dummy_switch import MARKER, by_key, run
from tests.waiting import DEADLINE


async def test_a_new_connection_after_a_loss(rundir: Path) -> None:
    driver = OpenFlowDriver("br1", lambda _: True, rundir=rundir, **MARKER)
    with pytest.raises(OpenFlowError, match=r"no OpenFlow connection to .*br1.mgmt"):
        await driver.read_owned()
    flow = Flow(0, 1, (), (), 1)
    create = ("add-br", "br1", "--", "set", "bridge", "br1", "fail_mode=secure", "datapath_type=dummy")
    for _ in range(2):
        run(rundir, "ovs-vsctl", "--timeout=10", *create)
        assert not await driver.apply([flow], [])
        assert await driver.read_owned() == by_key([flow])
        run(rundir, "ovs-vsctl", "--timeout=10", "del-br", "br1")
        with pytest.raises(ConnectionError):
            await driver.apply([flow], [])
    run(rundir, "ovs-vsctl", "--timeout=10", *create, "protocols=OpenFlow13")
    with pytest.raises(OpenFlowError, match=r"br1.mgmt does not offer OpenFlow 1.5"):
        await driver.read_owned()
    run(rundir, "ovs-vsctl", "--timeout=10", "del-br", "br1")
    await driver.close()


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def false_switch(folder: Path, after_hello: Serve) -> AsyncIterator[OpenFlowDriver]:
    """A driver whose switch says hello and then does as told."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(codec.message(codec.HELLO, 1, codec.hello_body()))
        await reader.readexactly(16)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await after_hello(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / "br0.mgmt")
    driver = OpenFlowDriver("br0", lambda _: True, rundir=folder, timeout=0.2, **MARKER)
    try:
        yield driver
    finally:
        await driver.close()
        server.close()
        await server.wait_closed()


async def test_a_silent_switch_is_a_timeout(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read(-1)

    async with false_switch(tmp_path, silent) as driver:
        for _ in range(2):
            with pytest.raises(OpenFlowError, match=r"no answer within 0\.2\d+ s"):
                await driver.apply([Flow(0, 1, (), (), 1)], [])
        connection = await Connection.open(tmp_path / "br0.mgmt", 5)
        with connection.exchange() as exchange:
            for _ in range(200):
                exchange.send(codec.ECHO_REQUEST)
            with pytest.raises(OpenFlowError, match=r"no answer within 0\.5\d+ s"):
                await exchange.barrier(0.1)
        await connection.close()


async def test_a_switch_that_goes_away_ends_what_is_under_way(tmp_path: Path) -> None:
    async def leave(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)

    async with false_switch(tmp_path, leave) as driver:
        with pytest.raises(OpenFlowError, match="connection lost"):
            await driver.apply([Flow(0, 1, (), (), 1)], [])


async def test_echo_requests_are_answered(tmp_path: Path) -> None:
    echoed = SimpleNamespace(message=b"")

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = codec.message(codec.ECHO_REQUEST, 99, b"are you there")
        writer.write(request)
        async with asyncio.timeout(DEADLINE):
            while codec.parse_header(head := await reader.readexactly(8))[1] != codec.ECHO_REPLY:
                await reader.readexactly(codec.parse_header(head)[2] - 8)
            echoed.message = head + await reader.readexactly(13)

    async with false_switch(tmp_path, echo) as driver:
        with pytest.raises(OpenFlowError):
            await driver.read_owned()
    assert echoed.message == codec.message(codec.ECHO_REPLY, 99, b"are you there")


async def test_control_commands(rundir: Path, tmp_path: Path) -> None:
    async with unixctl.connect(rundir) as control:
        assert "ovs-vswitchd" in await control.call("version")
        assert len(await control.call("list-commands")) > 1000
        with pytest.raises(unixctl.UnixctlError, match=r"ovs-vswitchd: .*no-such-command"):
            await control.call("no-such-command")
    with pytest.raises(unixctl.UnixctlError, match="no control connection to ovs-vswitchd"):
        async with unixctl.connect(tmp_path):
            pass
