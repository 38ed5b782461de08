"""Items of Open vSwitch's database and of the host's network stack.

`wrong` is never desired: an object that is read back and is not whole says there what no other field can say.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.model.item import Key

INTEGRATION_BRIDGE = "br-int"  # of workloads and tunnels


@dataclass(frozen=True, slots=True)
class Bridge:
    """An Open vSwitch bridge that the agent makes, with OpenFlow 1.5 on its management socket.

    fail_mode "secure": it forwards by our flows alone; "standalone": like a plain switch that learns addresses.
    Ours when its external_ids has `kumihimo=bridge`; br-int of that name made by somebody else is adopted.
    """

    name: str
    datapath_type: str
    fail_mode: str = "secure"
    wrong: str = ""

    @property
    def key(self) -> Key:
        return ("bridge", self.name)


@dataclass(frozen=True, slots=True)
class OvsPort:
    """A port with one interface that the agent adds to a bridge. Ours when external_ids of the Port has `kumihimo`.

    type is "" for a system device (veth), else the interface type, for example "vxlan".
    external_ids holds at least ("kumihimo", PURPOSE); options and external_ids are sorted pairs.
    """

    bridge: str
    name: str
    type: str
    options: tuple[tuple[str, str], ...]
    external_ids: tuple[tuple[str, str], ...]
    wrong: str = ""

    @property
    def key(self) -> Key:
        return ("ovs-port", self.bridge, self.name)


@dataclass(frozen=True, slots=True)
class ServiceNamespace:
    """A network namespace with one veth to the host: `outer` in the host, `inner` with mac and addresses inside.

    Ours when the namespace's name begins with `kumi-`. Checksum offload is off at both ends (the userspace datapath
    passes frames on as they are). addresses are `ip/length`, sorted. mtu in bytes.
    """

    name: str
    outer: str
    inner: str
    mac: str
    addresses: tuple[str, ...]
    mtu: int
    wrong: str = ""

    @property
    def key(self) -> Key:
        return ("namespace", self.name)


@dataclass(frozen=True, slots=True)
class Uplink:
    """An interface of the host by which we reach a wire: it is up. It is not ours, and stays as it is when it is not wanted."""

    name: str
    wrong: str = ""

    @property
    def key(self) -> Key:
        return ("uplink", self.name)


NOT_RUNNING = "dnsmasq was not running"


@dataclass(frozen=True, slots=True)
class DhcpServer:
    """A dnsmasq in a service namespace, detached: it outlives the agent.

    config is the whole configuration file less what the driver adds about its own folder (pid, lease, hosts, names and
    log files). hosts are (name, dhcp-host line) for the ports that this node serves, sorted; the name is the port's id, with
    `.6` behind for DHCPv6. wrong is `NOT_RUNNING` when there is no process.
    """

    network_id: str
    namespace: str
    config: str
    hosts: tuple[tuple[str, str], ...]
    wrong: str = ""

    @property
    def key(self) -> Key:
        return ("dhcp", self.network_id)


@dataclass(frozen=True, slots=True)
class PortName:
    """What DNS says of a port, wherever the port is: lines of hosts(5), one for each address."""

    network_id: str
    port_id: str
    lines: tuple[str, ...]

    @property
    def key(self) -> Key:
        return ("name", self.network_id, self.port_id)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another node's tunnel address, kept resolved. Ours by the protocol number of its neighbour entry."""

    address: str

    @property
    def key(self) -> Key:
        return ("peer", self.address)
