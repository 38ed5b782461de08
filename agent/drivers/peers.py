"""Keeps the way to other nodes' tunnel addresses resolved, so that the first packet between two hosts is not lost.

Open vSwitch resolves a tunnel's next hop when the first packet needs it, and that packet is gone. A *managed* neighbour
entry (NTF_EXT_MANAGED, Linux 5.16; ip-neighbour(8)) has the kernel resolve it beforehand and keep it resolved, agent or no
agent; in the userspace datapath the switch learns from the same answers, which pass through its bridge. The first time it is
told by us: where the peer asked before we did, the kernel knows it from the question, and there is no answer to learn from.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from agent.drivers import unixctl
from agent.drivers.exec import ExecError, run
from agent.faults import point
from agent.model.host import Peer
from agent.model.item import Failure, Item, Key

PROTOCOL = "75"  # marks our entries, as route protocols mark routes (NDA_PROTOCOL)
PATIENCE = 1.0  # seconds for the first answer; a peer that is down must not hold up others for longer
POLL = 0.01
_LOOK = 4.0  # seconds between two looks

_log = structlog.get_logger("kumihimo.agent")


class PeerDriver:
    """Driver (agent.model.item) of the kind "peer"."""

    kinds = frozenset({"peer"})

    def __init__(self, rundir: Path = Path("/var/run/openvswitch")) -> None:
        self._rundir = rundir
        self._hops: dict[str, tuple[str, str]] = {}  # (next hop, device) of each peer that this process has put
        # (address, device) of our entries, as last read; None: some were put or removed since.
        self._seen: set[tuple[str, str]] | None = None

    async def changed(self) -> None:
        """Return when our entries are not what they were. A next hop that the switch has forgotten it is told again."""
        while True:
            await asyncio.sleep(_LOOK)
            try:
                entries = await _neighbours()
            except ExecError as error:
                raise OSError(str(error)) from error
            if {(entry["dst"], entry["dev"]) for entry in entries} != self._seen:
                return
            resolved = {(str(entry["dst"]), str(entry["dev"])): entry["lladdr"] for entry in entries if "lladdr" in entry}
            async with unixctl.connect(self._rundir) as control:
                known = (await control.call("tnl/neigh/show")).split()
            for (hop, device), mac in resolved.items():
                if hop not in known:
                    with contextlib.suppress(unixctl.UnixctlError):
                        await self._tell_switch(device, hop, str(mac))

    async def read_owned(self) -> Mapping[Key, Item]:
        """Peers whose next hop has an entry of ours and is known to the switch, unless it does not answer.

        Behind a gateway several peers share one entry; those that a former process put are put anew, harmlessly.
        """
        try:
            entries = await _neighbours()
        except ExecError as error:
            raise OSError(str(error)) from error
        async with unixctl.connect(self._rundir) as control:
            known = (await control.call("tnl/neigh/show")).split()
        whole = {
            (str(entry["dst"]), str(entry["dev"])) for entry in entries if "lladdr" not in entry or str(entry["dst"]) in known
        }
        self._seen = {(entry["dst"], entry["dev"]) for entry in entries}
        peers = [Peer(address) for address, hop in self._hops.items() if hop in whole]
        peers += [Peer(hop) for hop, _ in sorted(whole - set(self._hops.values()))]
        return {peer.key: peer for peer in peers}

    async def read_foreign(self) -> Sequence[Item]:
        """Nothing: entries of others have other protocol numbers, and concern other addresses."""
        return ()

    async def apply(self, put: Sequence[Item], delete: Sequence[Item]) -> Mapping[Key, Failure]:
        """Resolve and keep; or let go. A peer that does not answer is no failure: it may be down, and comes when it comes."""
        failures: dict[Key, Failure] = {}
        for work, items in ((self._delete, delete), (self._put, put)):
            peers = [item for item in items if isinstance(item, Peer)]
            found = await asyncio.gather(*map(work, peers))
            failures.update((peer.key, failure) for peer, failure in zip(peers, found, strict=True) if failure is not None)
        self._seen = None
        return failures

    async def _put(self, peer: Peer) -> Failure | None:
        try:
            hop, device = self._hops[peer.address] = await _next_hop(peer.address)
            await run(["ip", "neigh", "replace", hop, "dev", device, "managed", "protocol", PROTOCOL])
            point("peer: entry made")
            async with asyncio.timeout(PATIENCE):
                while not (mac := await _resolved(hop, device)):
                    await asyncio.sleep(POLL)
            await self._tell_switch(device, hop, mac)
            point("peer: switch told")
        except TimeoutError:
            _log.warning("peer does not answer", address=peer.address)
        except ExecError as error:
            return Failure("NO_ROUTE", f"tunnel address {peer.address}: {error.line}")
        except unixctl.UnixctlError as error:
            _log.warning("the switch is not told of a peer", address=peer.address, detail=str(error))
        return None

    async def _tell_switch(self, device: str, hop: str, mac: str) -> None:
        async with unixctl.connect(self._rundir) as control:
            await control.call("tnl/neigh/set", device, hop, mac)

    async def _delete(self, peer: Peer) -> Failure | None:
        hop, _ = shared = self._hops.pop(peer.address, (peer.address, ""))
        if shared in self._hops.values():
            return None
        try:
            for entry in await _neighbours():
                if entry["dst"] == hop:
                    await run(["ip", "neigh", "del", hop, "dev", str(entry["dev"])])
                    point("peer: entry removed")
        except ExecError as error:
            return Failure("NEIGHBOUR", f"tunnel address {peer.address}: {error.line}")
        return None


async def _next_hop(address: str) -> tuple[str, str]:
    """(address, device) of the next hop towards an address."""
    route = json.loads(await run(["ip", "-json", "route", "get", address]))[0]
    return str(route.get("gateway", address)), str(route["dev"])


async def _neighbours() -> list[dict[str, Any]]:
    entries = json.loads(await run(["ip", "-json", "neigh", "show", "proto", PROTOCOL]) or "[]")
    return [entry for entry in entries if entry.get("protocol", PROTOCOL) == PROTOCOL and "managed" in entry]


async def _resolved(hop: str, device: str) -> str:
    """The MAC of a neighbour, empty while it is not known."""
    found = json.loads(await run(["ip", "-json", "neigh", "show", "to", hop, "dev", device]) or "[]")
    return next((str(entry["lladdr"]) for entry in found if "lladdr" in entry), "")
