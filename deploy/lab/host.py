"""Hosts: a network, mount, pid and uts namespace each, with Open vSwitch started as on a real machine.

Default paths (/run, /etc/openvswitch, /var/lib/kumihimo ...) are the host's own, so everything runs in it exactly as on
a real host. What a disk would keep lies in the host's directory and outlives its power-off. A host is found by the
command line of its process 1: there is no other record of it.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deploy.lab import init
from deploy.lab.network import LINKS, MTU, no_offload
from deploy.lab.place import Place
from deploy.lab.process import (
    LabError,
    argv_at,
    detach,
    kill,
    last_lines,
    pid_namespace,
    processes,
    wait_until,
)
from deploy.lab.service import Service, Unit
from deploy.lab.workload import Workload

if TYPE_CHECKING:
    from deploy.lab.lab import Lab

UNDERLAY = "192.168.50."
UNDERLAY6 = "fd50::"
MANAGEMENT = "192.168.49."

OVS = """
[ -e /etc/openvswitch/conf.db ] ||
    ovsdb-tool create /etc/openvswitch/conf.db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server /etc/openvswitch/conf.db --remote=punix:/run/openvswitch/db.sock \
    --remote=db:Open_vSwitch,Open_vSwitch,manager_options \
    --pidfile --detach --log-file -vconsole:off
ovs-vsctl --no-wait -- init -- set Open_vSwitch . external_ids:system-id={name} external_ids:hostname={name} \
    -- --may-exist add-br br-phy -- set bridge br-phy datapath_type={datapath} fail_mode=standalone \
       other_config:hwaddr=02:50:00:00:00:{number:02x} -- --may-exist add-port br-phy phy0
ovs-vswitchd --pidfile --detach --log-file -vconsole:off
# The kernel sees phy0's frames too, and must not answer ARP for br-phy's address there with another MAC.
echo 8 > /proc/sys/net/ipv4/conf/phy0/arp_ignore
ip address replace {underlay}{number}/24 dev br-phy
ip address replace {underlay6}{number}/64 dev br-phy nodad
ip link set br-phy mtu {mtu} up
"""


def host_of(argv: list[str], directory: Path) -> str | None:
    """The host of the lab in `directory` this command line starts or is, None when it has to do with none."""
    if len(argv) < 3 or not argv[-3].endswith("/deploy/lab/init.py") or argv[-2] != str(directory):
        return None
    return argv[-1]


def running(directory: Path) -> dict[str, int]:
    """The hosts of the lab in `directory` that are on, with the number of their process 1."""
    return {name: pid for pid, argv in processes() if _is_init(argv) and (name := host_of(argv, directory))}


def _is_init(argv: list[str]) -> bool:
    """Whether this is process 1 of a host itself, not a program that is about to start it or waits for its end."""
    return Path(argv[0]).name not in ("setsid", "unshare") if argv else False


def end_all(directory: Path) -> None:
    """End every host of the lab in `directory`, one that is just being started too."""

    def gone() -> bool:
        # Looked for again until none is left: what is being started turns from one process into the next.
        left = [pid for pid, argv in processes() if host_of(argv, directory)]
        kill(left)
        return not left

    wait_until(gone, "all hosts are off")


class Host(Place):
    """Host `name`, the `number` of which is the last part of its addresses, with a cable to each of `links`."""

    def __init__(self, lab: Lab, name: str, number: int, links: list[str]) -> None:
        self.lab = lab
        self.name = name
        self.number = number
        self.links = links
        self.directory = lab.directory / "hosts" / name
        self.etc = self.directory / "etc-kumihimo"
        self.underlay = f"{UNDERLAY}{number}"
        self.underlay6 = f"{UNDERLAY6}{number}"
        self.management = f"{MANAGEMENT}{number}"
        self.log = lab.directory / "log" / f"{name}.log"
        self.agent = Service(self, "agent", Unit.read("kumihimo-agent"), lab.directory / "log" / f"{name}-agent.log")
        self._pid = 0

    # Power

    @property
    def pid(self) -> int | None:
        """Number of this host's process 1, None when it is off."""
        argv = argv_at(self._pid) if self._pid else []
        if not _is_init(argv) or host_of(argv, self.lab.directory) != self.name:
            self._pid = running(self.lab.directory).get(self.name, 0)
        return self._pid or None

    @property
    def is_on(self) -> bool:
        """Whether the host runs."""
        return self.pid is not None

    def power_on(self) -> None:
        """Start the host from what its disk holds: links, Open vSwitch. The agent is started by its own call.

        Nothing is done when it runs. LabError when it does not start.
        """
        if self.is_on:
            return
        self.make_directories()
        # setsid --fork: the host is no child of this process and lives on without it.
        unshare = ["unshare", "--mount", "--net", "--pid", "--uts", "--fork", "--kill-child"]
        one = [sys.executable, "-I", "-S", init.__file__, str(self.lab.directory), self.name]
        detach(["setsid", "--fork", *unshare, *one], self.log)
        try:
            wait_until(self._ready, f"host {self.name} starts")
            assert self.pid is not None
            self.lab.network.connect(self.name, self.number, self.pid, self.links, self.pulled)
            self._boot()
        except LabError as error:
            self.power_off()
            raise LabError(f"host {self.name} does not start: {error}\n{last_lines(self.log)}".rstrip()) from error

    def make_directories(self) -> None:
        """Make the host's disk: a folder for each place that survives a power-off."""
        for folder in init.PERSISTENT:
            (self.directory / folder).mkdir(parents=True, exist_ok=True)

    @property
    def datapath(self) -> str:
        """Type of the bridges that are not the agent's: the one that it takes too."""
        # Not at the top: a lab is ended with the standard library alone.
        from agent.facts.capability import usable_datapaths

        return usable_datapaths(["netdev", "system"])[-1]

    def _ready(self) -> bool:
        return self.pid is not None and Path(f"/proc/{self.pid}/root{init.READY}").exists()

    def _boot(self) -> None:
        lines = []
        for name in self.links:
            nic = LINKS[name].nic
            lines += [no_offload(nic), f"ip link set {nic} up"]
        lines.append(f"ip address add {self.management}/24 dev {LINKS['management'].nic}")
        self.run("\n".join(lines))
        if "underlay" in self.links:
            addresses = {"underlay": UNDERLAY, "underlay6": UNDERLAY6, "mtu": MTU}
            text = OVS.format(name=self.name, number=self.number, datapath=self.datapath, **addresses)
            self.run(f"{text}\n{no_offload('br-phy')}")

    def power_off(self) -> None:
        """Pull the plug: every process of the host ends at once, its disk stays as it is."""
        if self.pid is not None:
            kill([self.pid])
        self._pid = 0

    # Cables and the data plane

    @property
    def pulled(self) -> set[str]:
        """Names of the links whose cable is pulled; it stays so over a power-off."""
        return {path.name.removeprefix("pulled-") for path in self.directory.glob("pulled-*")}

    def cut(self, link: str) -> None:
        """Pull the cable to `link` (underlay, management, provider): the NIC loses its carrier."""
        self.lab.network.plug(self.name, link, "down")
        (self.directory / f"pulled-{link}").touch()

    def plug(self, link: str) -> None:
        """Plug the cable to `link` in again."""
        self.lab.network.plug(self.name, link, "up")
        (self.directory / f"pulled-{link}").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop the data plane without closing anything: peers see silence. `thaw` resumes it."""
        self.run("kill -STOP $(cat /run/openvswitch/ovs-vswitchd.pid)")

    def thaw(self) -> None:
        """Resume the data plane."""
        self.run("kill -CONT $(cat /run/openvswitch/ovs-vswitchd.pid)")

    # Programs

    def enter(self) -> list[str]:
        if self.pid is None:
            raise LabError(f"host {self.name} is off")
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-u", "--wd=/"]

    def find(self, argv: list[str]) -> list[int]:
        """Numbers, as the machine counts, of the host's processes whose command line ends with `argv`; oldest first."""
        if self.pid is None:
            return []
        here = pid_namespace(self.pid)
        return sorted(pid for pid, have in processes() if have[-len(argv) :] == argv and pid_namespace(pid) == here)

    def start_agent(self) -> None:
        """Start the agent as its unit file says; LabError with the last lines of its log when it ends at once."""
        self.agent.start()

    def kill_agent(self) -> None:
        """kill -9 the agent and nothing else: the daemons it started live on."""
        self.agent.kill()

    def stop_agent(self) -> None:
        """End the agent by SIGTERM, as `systemctl stop` with KillMode=process."""
        self.agent.kill(signal.SIGTERM)

    @property
    def agent_pid(self) -> int | None:
        """Number, as the machine counts, of the agent's process, None when it is not running."""
        return self.agent.pid

    # Workloads

    def add_workload(self, name: str) -> Workload:
        """The workload of that name, made when it is not there: a network namespace with nothing but loopback."""
        self.run(f"[ -e /run/netns/{name} ] || ip netns add {name}\nip -n {name} link set lo up")
        return self.workload(name)

    def workload(self, name: str) -> Workload:
        """The workload of that name."""
        return Workload(self, name)

    def remove_workload(self, name: str) -> None:
        """End what runs in a workload and remove it; one that is gone, with the host's power for example, is fine."""
        self.run(f"[ -e /run/netns/{name} ] || exit 0\nip netns pids {name} | xargs -r kill -KILL\nip netns delete {name}")

    @property
    def workloads(self) -> list[str]:
        """Names of the host's network namespaces, workloads among them."""
        with contextlib.suppress(LabError):
            return [line.split()[0] for line in self.run(["ip", "netns", "list"]).splitlines() if line.strip()]
        return []
