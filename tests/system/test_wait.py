"""C-06: when Wait has answered, the data plane is as it says."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from collections.abc import Callable

from deploy.lab import Host
from kumihimo.v1 import port_pb2
from tests.seeds import FULL, seed
from tests.system.cloud import Cloud, Scene, Vm, refused

ROUNDS = 300 if FULL else 30


class Trial:
    """A workload that probes, one on each host that always answers, and targets that are changed."""

    def __init__(self, scene: Scene, cloud: Cloud, h1: Host, h2: Host, chance: random.Random) -> None:
        self.scene = scene
        self.api = cloud.admin
        self.chance = chance
        self.network = scene.network()
        self.prober = scene.vm(self.network, h1)
        self.fences = {host.name: scene.vm(self.network, host) for host in (h1, h2)}
        self.hosts = (h1, h2)
        self.targets: list[Vm] = []
        self.down: set[str] = set()
        self.readdressed = 0

    def round(self) -> str:
        """Change one thing, wait, probe at once; what was changed."""
        changes: list[Callable[[], Vm]] = [self.create]
        if self.targets:
            changes += [self.toggle, self.toggle, self.readdress]
        if len(self.targets) > 1:
            changes.append(self.delete)
        change = self.chance.choice(changes if len(self.targets) < 4 else changes[1:])
        vm = change()
        expected = vm in self.targets and vm.id not in self.down
        answered = self.prober.sees(vm, fence=None if expected else self.fences[vm.host.name])
        assert answered == expected, f"{change.__name__}: Wait has answered, and {vm.ip} is reachable: {answered}"
        return change.__name__

    def create(self) -> Vm:
        vm = self.scene.vm(self.network, self.chance.choice(self.hosts), plug=False)
        vm.plug()
        vm.set_address()
        self.api.wait(vm.port.revision, vm.id, active=True)
        self.targets.append(vm)
        return vm

    def toggle(self) -> Vm:
        vm = self.chance.choice(self.targets)
        up = vm.id in self.down
        changed = self.api.update(port_pb2.Port(id=vm.id, admin_state_up=up), "admin_state_up")
        (self.down.discard if up else self.down.add)(vm.id)
        self.api.wait(changed.revision, vm.id)
        return vm

    def readdress(self) -> Vm:
        """A new address; the old one must be gone as the new one must be there."""
        vm = self.chance.choice(self.targets)
        old = vm.ip
        # By its subnet alone it would keep the one it has.
        self.readdressed += 1
        address = f"{old.rpartition('.')[0]}.{100 + self.readdressed % 100}"
        fresh = port_pb2.Port(id=vm.id, fixed_ips=[port_pb2.FixedIp(ip_address=address)])
        vm.workload.run("ip address flush dev eth0")
        changed = self.api.update(fresh, "fixed_ips")
        vm.port = changed
        assert vm.ip != old
        vm.workload.run(f"ip address add {vm.ip}/24 dev eth0; ip address add {old}/24 dev eth0")
        self.api.wait(changed.revision, vm.id)
        ghost = Ghost(vm, old)
        assert not self.prober.sees(ghost, fence=self.fences[vm.host.name]), f"{old} answers after it was given up"
        vm.workload.run(f"ip address del {old}/24 dev eth0")
        return vm

    def delete(self) -> Vm:
        vm = self.targets.pop(self.chance.randrange(len(self.targets)))
        self.down.discard(vm.id)
        revision = self.api.delete(vm.port, force=True)
        self.api.wait(revision, vm.id)
        return vm


def test_c_06_b_prt_15_an_active_port_is_known_on_the_other_nodes(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    """A node that stands still has not heard where the port is: until it has, waiting for the port is not over."""
    network = scene.network()
    prober = scene.vm(network, h1)
    target = scene.vm(network, h2, plug=False)
    cloud.admin.wait(0)
    assert h1.agent_pid is not None
    os.kill(h1.agent_pid, signal.SIGSTOP)
    try:
        target.plug()
        target.set_address()
        error = refused(cloud.admin.wait, target.port.revision, target.id, active=True, timeout=2)
        assert "node h1 has applied revision" in str(error)
    finally:
        os.kill(h1.agent_pid, signal.SIGCONT)
    cloud.admin.wait(target.port.revision, target.id, active=True)
    assert prober.sees(target)


class Ghost(Vm):
    """A workload by an address that its port has given up."""

    def __init__(self, vm: Vm, ip: str) -> None:
        self.port = vm.port
        self._old = ip

    @property
    def ip(self) -> str:
        return self._old


def test_c_06_b_prt_15_wait_does_not_lie(scene: Scene, cloud: Cloud, h1: Host, h2: Host) -> None:
    trial = Trial(scene, cloud, h1, h2, random.Random(seed()))
    done = Counter(trial.round() for _ in range(ROUNDS))
    print(f"{ROUNDS} rounds: {dict(done)}")
    assert done.total() == ROUNDS
    assert len(done) == 4, "every kind of change had its turn"
