"""The wires of a lab: three bridges in a namespace of their own, the outside network, captures.

The underlay carries tunnels between hosts, the provider link is the way to the outside network, the management link
leads to etcd and the API. Each is a Linux bridge in the namespace NAME-net; a host's cable to it is a veth pair whose
end here is called HOST-NIC, so that a cable is pulled by setting that end down: the host sees its NIC lose carrier.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from deploy.lab.place import Namespace
from deploy.lab.process import Background, LabError, run, wait_until

MTU = 1600
"""Of underlay and provider links, bytes: an inner packet of 1500 fits any tunnel header over IPv4."""

OUTSIDE_ADDRESS = "203.0.113.1/24"


@dataclass(frozen=True, slots=True)
class Link:
    """One of the lab's networks: its bridge and, on hosts, the NIC that leads to it."""

    bridge: str
    nic: str
    number: int


LINKS = {
    "underlay": Link("ul", "phy0", 0),
    "provider": Link("ext", "phy1", 1),
    "management": Link("mgmt", "mgmt0", 2),
}


def link(name: str) -> Link:
    """The link of that name; LabError when there is none."""
    if name not in LINKS:
        raise LabError(f"no link {name!r}: there are {', '.join(LINKS)}")
    return LINKS[name]


def no_offload(nic: str) -> str:
    """Shell that makes a NIC fill in checksums and send no oversized frames: the userspace datapath needs both."""
    return f"ethtool -K {nic} tx off sg off tso off gso off gro off >/dev/null 2>&1 || true"


class Network:
    """The namespaces NAME-net (bridges) and NAME-out (the outside network)."""

    def __init__(self, name: str) -> None:
        self.middle = Namespace(f"{name}-net")
        self.outside = Namespace(f"{name}-out")

    def up(self) -> None:
        """Make what is missing of both namespaces."""
        present = namespaces()
        if self.middle.name not in present:
            run(["ip", "netns", "add", self.middle.name])
            lines = [
                f"ip link add {each.bridge} mtu {MTU} type bridge stp_state 0 mcast_snooping 0\nip link set {each.bridge} up"
                for each in LINKS.values()
            ]
            self.middle.run("\n".join(["ip link set lo up", *lines]))
        if self.outside.name not in present:
            run(["ip", "netns", "add", self.outside.name])
            run(
                f"ip -n {self.middle.name} link add outside mtu {MTU} type veth"
                f" peer name eth0 mtu {MTU} netns {self.outside.name}"
            )
            self.middle.run(f"ip link set outside master {LINKS['provider'].bridge} up\n{no_offload('outside')}")
            self.outside.run(
                f"ip link set lo up\n{no_offload('eth0')}\nip address add {OUTSIDE_ADDRESS} dev eth0\nip link set eth0 up"
            )

    def down(self) -> None:
        """Remove both namespaces and end what runs in them."""
        for place in (self.outside, self.middle):
            if place.name in namespaces():
                for pid in run(["ip", "netns", "pids", place.name], check=False).split():
                    with contextlib.suppress(LabError):
                        run(["kill", "-KILL", pid])
                run(["ip", "netns", "delete", place.name])

    def connect(self, host: str, number: int, pid: int, links: list[str], pulled: set[str]) -> None:
        """Give the host whose process 1 is `pid` its NICs; the cables in `pulled` are not plugged."""
        lines = []
        for name in links:
            each = link(name)
            end = f"{host}-{each.nic}"
            mac = f"02:4b:{each.number:02x}:00:00:{number:02x}"
            lines += [
                f"ip link delete {end} 2>/dev/null || true",  # of before a power-off, if the kernel has not yet
                f"ip link add {end} mtu {MTU} type veth peer name {each.nic} mtu {MTU} address {mac} netns {pid}",
                f"ip link set {end} master {each.bridge} {'down' if name in pulled else 'up'}",
                no_offload(end),
            ]
        self.middle.run("\n".join(lines))

    def plug(self, host: str, name: str, state: str) -> None:
        """Plug (`up`) or pull (`down`) a host's cable to a link."""
        self.middle.run(["ip", "link", "set", f"{host}-{link(name).nic}", state])

    def capture(self, name: str, expression: str = "", write: Path | None = None) -> Capture:
        """Capture what passes a link, from the moment this returns; `expression` is tcpdump's."""
        argv = [*self.middle.enter(), "tcpdump", "-i", link(name).bridge, "-nn", "-e", "-l", "--immediate-mode"]
        argv += [] if write is None else ["-Z", "root", "-U", "-w", str(write)]
        return Capture([*argv, expression] if expression else argv)


class Capture(Background):
    """A running tcpdump. `text` is what it printed so far, `stop` ends it and returns all."""

    def __init__(self, argv: list[str]) -> None:
        super().__init__(argv)
        try:
            self.wait_for("listening on")
        except LabError:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    @property
    def packets(self) -> list[str]:
        """One line a packet, as `tcpdump -e` prints it."""
        return [line for line in self.text().splitlines() if line[:2].isdigit() and line[2:3] == ":"]

    def wait_packets(self, count: int = 1, timeout: float = 10.0) -> list[str]:
        """Wait until that many packets were seen and return them."""
        wait_until(lambda: len(self.packets) >= count, f"{count} packets captured", timeout)
        return self.packets


def namespaces() -> set[str]:
    """Names of the machine's own network namespaces."""
    return {line.split()[0] for line in run(["ip", "netns", "list"]).splitlines() if line.strip()}
