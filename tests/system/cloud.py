"""The cloud that the system tests look at: a lab with etcd, API and agents as real processes, and what tests do in it.

`Cloud` is the lab with its services; it outlives a test. `Scene` is what one test made, and takes it away again: after it
no host holds anything but the base, which `leftovers` checks. `Vm` is a port with a workload, `Guest` a helper inside it.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.field_mask_pb2 import FieldMask

from cli.client import Client, CliError, connect
from cli.kinds import kind_of
from cli.settings import Settings
from controlplane.services import quota
from deploy.lab import Host, Lab, LabError, Workload, wait_until
from kumihimo.v1 import network_pb2, node_pb2, port_pb2, security_pb2, settings_pb2
from tests.system import frames

PATIENCE = 30.0  # seconds for what usually takes less than one
DUMP = "ovs-ofctl -O OpenFlow15"
# Cookies of flows that belong to a network, port, group or rule (agent/model/pipeline.py); all others are the node's own.
NOT_BASE = ("cookie=0x4d", "cookie=0x4e", "cookie=0x50", "cookie=0x51")
# A project's default security group, whose id is a uuid of version 5, stays with its rules; its members go with their ports.
_DEFAULT = "[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f-]{21}"
_GROUP = f"secgroup/{_DEFAULT}/(?!member/)|claim/rule/{_DEFAULT}/|claim/group-key/|index/securitygroup/{_DEFAULT}"
KEPT_KEYS = re.compile(
    r"/kumihimo/(meta/|node/|physical_network/|settings/|status/[^/]+/(agent|nodes|counters|rules|drift)$|alive/|controller/|change/"
    rf"|request/|apply/|claim/(node-key|tunnel-ip)/|{_GROUP}|index/securitygrouprule/)"
)


class Api:
    """One caller. Every change names its request: repeated while the API restarts, it acts once."""

    def __init__(self, profile: str) -> None:
        self.profile = profile
        self.client: Client = connect(Settings(profile_name=profile))

    def create(self, message: Any) -> Any:
        return self._change("Create", message, resource=message)

    def update(self, message: Any, *paths: str) -> Any:
        return self._change("Update", message, resource=message, update_mask=FieldMask(paths=paths))

    def delete(self, message: Any, force: bool = False) -> int:
        """The store revision of the removal."""
        return int(self._change("Delete", message, id=message.id, force=force, allow_missing=True).revision)

    def get(self, message: Any) -> Any:
        return self.client.get(kind_of(message), message.id)

    def list(self, kind: type[Any]) -> list[Any]:
        """Every object of a kind, as this caller sees them."""
        known = kind_of(kind())
        assert known is not None
        return list(self.client.pages(known))

    def wait(self, revision: int, *ids: str, active: bool = False, timeout: float = PATIENCE) -> Any:
        return self.client.wait(revision, ids, active, timeout)

    def _change(self, verb: str, message: Any, **fields: Any) -> Any:
        kind = kind_of(message)
        assert kind is not None
        request = type(kind.request(verb))(request_id=str(uuid.uuid4()), **fields)
        return self.client.call(kind.service.full_name, verb, request)


class Cloud:
    """A lab, its services, and callers. `ensure` brings back whatever a test has taken down."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.hosts = list(lab.hosts.values())
        self.numbers = itertools.count(1)
        self._callers: list[Api] = []

    def start(self, ip_version: int = 4) -> None:
        """Everything from nothing: services, nodes with tunnel addresses of that family, callers."""
        self.ensure()
        self._callers = [Api(name) for name in ("admin", "alice", "bob")]
        self.admin, self.alice, self.bob = self._callers
        unlimited = dict.fromkeys(quota.COUNTED, quota.UNLIMITED)
        self.admin.update(settings_pb2.Settings(id="installation", quotas=unlimited), "quotas")
        if ip_version == 6:
            self.admin.update(
                settings_pb2.Settings(id="installation", underlay_ip_version="IP_VERSION_IPV6"), "underlay_ip_version"
            )
        for host in self.hosts:
            self.admin.create(node_pb2.Node(id=host.name, tunnel_ip=host.underlay if ip_version == 4 else host.underlay6))
        self.admin.wait(0)
        wait_until(lambda: all("br-int" in bridges(host) for host in self.hosts), "every node has its bridge", PATIENCE)

    def close(self) -> None:
        """Close the callers' connections."""
        for caller in self._callers:
            caller.client.__exit__()

    def ensure(self) -> None:
        """Every host on, every cable plugged, every service running."""
        for host in self.hosts:
            host.power_on()
            for link in host.pulled:
                host.plug(link)
        self.lab.start_etcd()
        self.lab.start_api()
        for host in self.hosts:
            host.start_agent()

    def is_alive(self, host: Host) -> bool:
        return bool(self.admin.get(node_pb2.Node(id=host.name)).agent.alive)

    def wait_alive(self, host: Host) -> None:
        wait_until(lambda: self.is_alive(host), f"node {host.name} is heard of", PATIENCE)

    def wait_unbound(self, port: Any) -> None:
        """Wait until the port is on no node."""
        wait_until(lambda: not self.admin.get(port).binding, "the port is unbound", PATIENCE)

    def etcd_keys(self) -> list[str]:
        return self.lab.ctl.run([*self.lab.etcdctl, "get", "/", "--prefix", "--keys-only"]).split()

    def leftovers(self) -> list[str]:
        """What should not be there when no resource but nodes exists."""
        found = [key for key in self.etcd_keys() if not KEPT_KEYS.match(key)]
        for host in self.hosts:
            found += [f"{host.name}: {line}" for line in _left_on(host)]
        return found


def _left_on(host: Host) -> list[str]:
    text = host.run(
        """
        ip netns list | sed -n 's/^kumi-/namespace kumi-/p'
        ip -o link | grep -E ': (kd|tap)' || true
        ls /var/lib/kumihimo/dhcp /run/kumihimo/dhcp 2>/dev/null | grep -v : || true
        pgrep -a dnsmasq || true
        ip neigh show proto 75 | grep managed || true
        ovs-vsctl list-ports br-int | grep -Ev '^(int-br-.*|kumi-(vxlan|geneve|gre))$' || true
        """
    )
    flows = [line for line in dump(host, "flows") if any(mark in line for mark in NOT_BASE)]
    return [*filter(None, map(str.strip, text.splitlines())), *flows, *dump(host, "groups"), *dump(host, "meters")]


def bridges(host: Host) -> list[str]:
    """Names of the host's bridges."""
    return host.run("ovs-vsctl list-br").split()


def dump(host: Host, what: str, options: str = "--no-stats --no-names") -> list[str]:
    """Flows, groups or meters of br-int, sorted; the marker, which comes and goes, is left out."""
    given = f"{options} dump-{what}" if what == "flows" else f"dump-{what}"
    lines = host.run(f"{DUMP} {given} br-int").splitlines()
    return sorted(
        line.strip() for line in lines if not line.startswith(("OFPST_", "NXST_")) and "table=253," not in line.replace(" ", "")
    )


SENT, RECEIVED = "reg14", "reg15"


def drops(host: Host, ofport: int, way: str = SENT) -> dict[int, int]:
    """Packets from (or to) a local port that were dropped, by reason; reasons with none are left out."""
    found: dict[int, int] = {}
    for line in host.run(f"{DUMP} --no-names dump-flows br-int table=99").splitlines():
        hit = re.search(rf"n_packets=(\d+).*reg11=(0x[0-9a-f]+|\d+),{way}=(0x[0-9a-f]+|\d+)", line)
        if hit and int(hit[3], 0) == ofport and int(hit[1]):
            found[int(hit[2], 0)] = int(hit[1])
    return found


class Guest:
    """The helper inside a workload (guest.py), on one of its interfaces."""

    def __init__(self, workload: Workload, interface: str = "eth0") -> None:
        script = Path(__file__).with_name("guest.py")
        argv = [*workload.enter(), sys.executable, "-I", "-S", str(script), interface]
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
        self._text = b""
        if self._line() != b"ready":
            self.close()
            raise LabError(f"the helper in {workload.name} does not start: {self._text.decode(errors='replace')}")

    def send(self, *frames: bytes) -> None:
        self._ask(frames=[frame.hex() for frame in frames])

    def repeat(self, *frames: bytes, period: float = 0.002) -> None:
        """Send the frames every period (seconds), in place of those before; none: no more."""
        self._ask(repeat=[frame.hex() for frame in frames], period=period)

    def probe(
        self,
        sent: Sequence[bytes],
        expect: dict[str, list[tuple[int, str]]],
        until: Iterable[str] | None = None,
        timeout: float = 10.0,
        grace: float = 0.0,
    ) -> dict[str, bool]:
        """See guest.py; until: all that is expected, when not given."""
        wanted = list(expect if until is None else until)
        hexes = [frame.hex() for frame in sent]
        answer: dict[str, bool] = self._ask(frames=hexes, expect=expect, until=wanted, timeout=timeout, grace=grace)
        return answer

    def seen(self) -> list[bytes]:
        """Frames that have arrived."""
        return [bytes.fromhex(frame) for frame in self._ask(seen=True)]

    def sent(self) -> list[bytes]:
        """Frames that the workload itself has sent."""
        return [bytes.fromhex(frame) for frame in self._ask(sent=True)]

    def has(self, marker: bytes) -> bool:
        """Whether a frame with these bytes has arrived."""
        return any(marker in frame for frame in self.seen())

    def wait_for(self, marker: bytes) -> None:
        """Wait until a frame with these bytes has arrived."""
        wait_until(lambda: self.has(marker), "the frame arrives")

    def clear(self) -> None:
        self._ask(clear=True)

    def close(self) -> None:
        if self._process.stdin is not None and not self._process.stdin.closed:
            self._process.stdin.close()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        return json.loads(self._line())

    def _line(self, timeout: float = PATIENCE) -> bytes:
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        while b"\n" not in self._text:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                raise LabError("the helper in the workload does not answer")
            data = os.read(self._process.stdout.fileno(), 1 << 20)
            if not data:
                raise LabError(f"the helper in the workload ended: {self._text.decode(errors='replace')}")
            self._text += data
        line, _, self._text = self._text.partition(b"\n")
        return line


class Vm:
    """A port and, on a host, a workload for it."""

    def __init__(self, api: Api, port: Any, host: Host, name: str, mtu: int) -> None:
        self.api = api
        self.port = port
        self.host = host
        self.mtu = mtu
        self.workload = host.add_workload(name)
        # Guests that are silent until told otherwise: no router solicitations of their own.
        self.workload.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1 net.ipv6.conf.all.disable_ipv6=1")
        self._guest: Guest | None = None

    @property
    def id(self) -> str:
        return str(self.port.id)

    @property
    def ip(self) -> str:
        return str(self.port.fixed_ips[0].ip_address)

    @property
    def mac(self) -> str:
        return str(self.port.mac_address)

    @property
    def tap(self) -> str:
        return "tap" + self.id.replace("-", "")[-11:]  # its first digits are the time of its making

    @property
    def ofport(self) -> int:
        return int(self.host.run(["ovs-vsctl", "get", "interface", self.tap, "ofport"]))

    @property
    def guest(self) -> Guest:
        """The helper inside, started when it is first asked for."""
        if self._guest is None:
            self._guest = Guest(self.workload)
        return self._guest

    def link(self) -> None:
        """Give the workload its interface, whose other end nobody has yet."""
        tap, name = self.tap, self.workload.name
        self.host.run(f"""
            ip link add {tap} mtu {self.mtu} type veth peer name eth0 mtu {self.mtu} address {self.mac} netns {name}
            echo 1 >/proc/sys/net/ipv6/conf/{tap}/disable_ipv6
            ip link set {tap} up
            ip -n {name} link set eth0 up
            ethtool -K {tap} tx off >/dev/null
            ip netns exec {name} ethtool -K eth0 tx off >/dev/null
        """)

    def plug(self) -> None:
        """What libvirt and os-vif do: an interface on br-int that names the port."""
        if self._guest is None:
            self.link()
        self.host.run(f"""
            ovs-vsctl --may-exist add-port br-int {self.tap} -- set interface {self.tap} external_ids:iface-id={self.id} \
                external_ids:attached-mac='"{self.mac}"'
        """)

    def unplug(self) -> None:
        """Take away interface and link; nothing when there is none."""
        self.stop()
        self.host.run(f"ovs-vsctl --if-exists del-port br-int {self.tap}\nip link delete {self.tap} 2>/dev/null || true")

    def active(self) -> Any:
        """Wait until the port is wired; the port as it is then."""
        self.port = self.api.get(self.port)
        self.api.wait(self.port.revision, self.id, active=True)
        self.port = self.api.get(self.port)
        return self.port

    def drops(self, reason: int) -> int:
        """Packets from or to the port that were dropped for a reason."""
        return sum(drops(self.host, self.ofport, way).get(reason, 0) for way in (SENT, RECEIVED))

    def set_address(self, length: int = 24) -> None:
        """What DHCP would have set."""
        self.workload.run(["ip", "address", "replace", f"{self.ip}/{length}", "dev", "eth0"])

    def echo(self, other: Vm, marker: bytes, ip: str = "") -> bytes:
        return frames.echo(self.mac, other.mac, self.ip, ip or other.ip, marker)

    def sees(self, other: Vm, fence: Vm | None = None) -> bool:
        """Send one echo request and one ARP request to `other`, at once: whether both are answered.

        Neither depends on what the kernel remembers. With `fence`, a workload that is known to answer: the answer is
        final when the fence's has come back and nothing else within a short time; without, a silence takes 10 s.
        LabError when only one of the two is answered.
        """
        marker = os.urandom(16)
        sent = [self.echo(other, marker), frames.arp(self.mac, self.ip, other.ip)]
        expect = {"echo": frames.expect_echo(marker), "arp": frames.expect_arp(other.ip)}
        until = list(expect)
        if fence is not None:
            last = os.urandom(16)
            sent.append(self.echo(fence, last))
            expect["fence"] = frames.expect_echo(last)
            until = ["fence"]
        found = self.guest.probe(sent, expect, until, grace=0.0 if fence is None else 0.05)
        if fence is not None and not found["fence"]:
            raise LabError("the fence does not answer")
        if found["echo"] != found["arp"]:
            raise LabError(f"{other.ip}: {found}")
        return found["echo"]

    def stop(self) -> None:
        if self._guest is not None:
            self._guest.close()
            self._guest = None


class Scene:
    """What one test makes. `close` removes it and checks that nothing is left."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.vms: list[Vm] = []
        self.networks: list[tuple[Api, Any]] = []
        self.groups: list[tuple[Api, Any]] = []  # security groups and address groups
        self._open: Any = None

    def network(
        self, api: Api | None = None, cidr: str = "10.0.0.0/24", subnet: dict[str, Any] | None = None, **fields: Any
    ) -> Any:
        """A network with one subnet."""
        api = api or self.cloud.admin
        network = api.create(network_pb2.Network(name=f"n{next(self.cloud.numbers)}", **fields))
        self.networks.append((api, network))
        api.create(network_pb2.Subnet(network_id=network.id, cidr=cidr, **(subnet or {})))
        return network

    def vm(self, network: Any, host: Host, *, api: Api | None = None, ip: str = "", plug: bool = True, **fields: Any) -> Vm:
        """A port and a workload for it, plugged, ACTIVE and with its address unless told otherwise."""
        api = api or next(made for made, each in self.networks if each.id == network.id)
        if ip:
            fields["fixed_ips"] = [port_pb2.FixedIp(ip_address=ip)]
        port = api.create(port_pb2.Port(network_id=network.id, **fields))
        vm = Vm(api, port, host, f"v{next(self.cloud.numbers)}", network.mtu)
        self.vms.append(vm)
        if plug:
            vm.plug()
            vm.active()
            vm.set_address()
            assert vm.guest, "started now, so that it sees everything from here on"
        return vm

    def group(self, *rules: dict[str, Any], api: Api | None = None, **fields: Any) -> Any:
        """A security group with these rules and no others."""
        api = api or self.cloud.admin
        group = api.create(security_pb2.SecurityGroup(name=f"g{next(self.cloud.numbers)}", **fields))
        self.groups.append((api, group))
        given = [security_pb2.SecurityGroupRule(**rule) for rule in rules]
        request = security_pb2.ReplaceSecurityGroupRulesRequest(id=group.id, rules=given)
        return api.client.call("SecurityGroups", "ReplaceRules", request)

    def address_group(self, *addresses: str, api: Api | None = None) -> Any:
        """An address group."""
        api = api or self.cloud.admin
        group = api.create(security_pb2.AddressGroup(name=f"a{next(self.cloud.numbers)}", addresses=addresses))
        self.groups.append((api, group))
        return group

    def open(self) -> dict[str, list[str]]:
        """Fields of a port that may send anything, and that anything may be sent to."""
        if self._open is None:
            ways, families = ("DIRECTION_INGRESS", "DIRECTION_EGRESS"), ("IP_VERSION_IPV4", "IP_VERSION_IPV6")
            self._open = self.group(*({"direction": way, "ethertype": family} for way in ways for family in families))
        return {"security_group_ids": [self._open.id]}

    def move(self, vm: Vm, host: Host) -> Vm:
        """Another workload, on another host, for the same port; not plugged."""
        other = Vm(vm.api, vm.port, host, f"v{next(self.cloud.numbers)}", vm.mtu)
        self.vms.append(other)
        return other

    def remove(self, vm: Vm) -> None:
        """Unplug and delete; removing again is fine."""
        vm.unplug()
        vm.api.delete(vm.port, force=True)
        if vm.workload.name in vm.host.workloads:
            vm.host.remove_workload(vm.workload.name)

    def close(self) -> None:
        self.cloud.ensure()
        for vm in self.vms:
            self.remove(vm)
        for api, network in self.networks:
            api.delete(network, force=True)
        for api, group in self.groups:
            if isinstance(group, security_pb2.SecurityGroup):
                api.client.call("SecurityGroups", "ReplaceRules", security_pb2.ReplaceSecurityGroupRulesRequest(id=group.id))
        for api, group in self.groups:
            api.delete(group)
        self.assert_bare()

    def assert_bare(self) -> None:
        """Nothing is left of any network, on any host and in etcd; LabError says what is."""
        left: list[str] = []

        def bare() -> bool:
            left[:] = self.cloud.leftovers()
            return not left

        try:
            wait_until(bare, "nothing is left", PATIENCE, interval=0.1)
        except LabError as error:
            raise LabError("\n".join([str(error), *left[:40]])) from error


def refused(call: Any, *arguments: Any, **named: Any) -> CliError:
    """The error that a call ends with."""
    try:
        call(*arguments, **named)
    except CliError as error:
        return error
    raise AssertionError("it was not refused")
