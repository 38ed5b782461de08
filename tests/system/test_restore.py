"""A-44, C-07: the store is put back to a backup under traffic. Nobody who was not touched notices; the rest follows."""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cli.client import CliError
from deploy.lab import Host, wait_until
from kumihimo.v1 import network_pb2, node_pb2, port_pb2
from tests.system.cloud import PATIENCE, Cloud, Scene, dump
from tests.system.control import ControlFlow, Watch
from tests.system.test_outages import durations

KUMI = str(Path(sys.prefix) / "bin" / "kumi")


def restore(cloud: Cloud, file: Path) -> None:
    """What an operator does on the host of etcd."""
    data = cloud.lab.directory / "etcd" / "data"
    cloud.lab.kill_etcd()
    shutil.rmtree(data)
    cloud.lab.ctl.run([KUMI, "restore", str(file), "--data-dir", str(data), "--name", "ctl"])
    cloud.lab.start_etcd()


def objects(cloud: Cloud) -> dict[str, list[str]]:
    """Every object as operators see it, less what nodes make of it."""
    found = {}
    for message in (network_pb2.Network, network_pb2.Subnet, port_pb2.Port, node_pb2.Node):
        items = cloud.admin.list(message)
        for item in items:
            for name in ("state", "conditions", "realization", "agent", "binding", "counters"):
                if name in item.DESCRIPTOR.fields_by_name:
                    item.ClearField(name)
        found[message.DESCRIPTOR.name] = sorted(str(item) for item in items)
    return found


def wait_for_all(cloud: Cloud) -> Any:
    """Wait for the data plane, asked as soon as the API has found etcd."""
    answers: list[Any] = []

    def answered() -> bool:
        try:
            answers.append(cloud.admin.wait(0))
        except CliError as error:
            if error.reason != "STORE_UNAVAILABLE":
                raise
        return bool(answers)

    wait_until(answered, "the API answers", PATIENCE)
    return answers[0]


@pytest.mark.parametrize("api_lives", [True, False], ids=["api-lives", "api-restarts"])
def test_a_44_c_07_back_to_a_backup_without_a_lost_packet(
    api_lives: bool, scene: Scene, cloud: Cloud, control: ControlFlow, h1: Host, h2: Host
) -> None:
    kept = scene.network()
    pair = scene.vm(kept, h1), scene.vm(kept, h2)
    changed = scene.vm(kept, h2)
    assert pair[0].sees(changed)
    file = cloud.lab.directory / "backup.db"
    cloud.lab.ctl.run([KUMI, "backup", str(file)])
    backed_up = objects(cloud)
    try:
        # A life that the backup knows nothing of.
        down = cloud.admin.update(port_pb2.Port(id=changed.id, admin_state_up=False), "admin_state_up")
        late = scene.network(cidr="10.7.0.0/24")
        guests = scene.vm(late, h1), scene.vm(late, h2)
        assert guests[0].sees(guests[1])
        cloud.admin.wait(down.revision, changed.id)
        assert not pair[0].sees(changed, fence=pair[1])
        for number in range(80):
            cloud.admin.update(port_pb2.Port(id=changed.id, description=str(number)), "description")
        before = cloud.admin.wait(0).revision
        touched = [digits(item) for item in (changed.id, late.id, guests[0].id, guests[1].id)]
        # Addresses of members that are gone; and of each port what has the mark of its connections, which is of one life of the
        # store: they are asked about once more.
        touched += ["nw_src=10.7.0.", "table=21 ", "table=22 ", "table=71 "]
        ages = {host.name: (untouched(host, touched), time.monotonic()) for host in (h1, h2)}

        with Watch(control, *pair) as watch:
            if not api_lives:
                cloud.lab.kill_api()
            restore(cloud, file)
            cloud.lab.start_api()
            after = wait_for_all(cloud)
            assert after.revision < before
            assert not after.dead
            for host in (h1, h2):
                assert f"kumi-{late.id}" not in host.workloads, "Wait has answered: what was made after the backup is gone"
                assert not [line for line in dump(host, "flows") if any(item in line for item in touched[1:5])]
            cloud.admin.wait(0, changed.id, active=True)
            assert pair[0].sees(changed), "Wait has answered: what was switched off after the backup is on again"
            assert objects(cloud) == backed_up
            watch.more()
        for host in (h1, h2):
            flows, began = ages[host.name]
            passed, now = time.monotonic() - began, untouched(host, touched)
            assert [flow for flow, age in flows.items() if now.get(flow, 0) < age + passed - 1] == [], "none is another one"
        assert watch.lost.ours <= watch.lost.control, watch.lost
        # The numbers of revisions are used again: Wait still means what it says.
        for up in (False, True):
            again = cloud.admin.update(port_pb2.Port(id=changed.id, admin_state_up=up), "admin_state_up")
            assert again.revision < before
            cloud.admin.wait(again.revision, changed.id)
            assert pair[0].sees(changed, fence=None if up else pair[1]) == up
        third = scene.vm(kept, h1)
        assert third.sees(pair[1])
        for guest in guests:
            guest.unplug()
        wait_until(lambda: healthy(cloud), "the doctor finds nothing", PATIENCE)
    finally:
        file.unlink(missing_ok=True)


def digits(object_id: str) -> str:
    """What cookies of an object's flows end with."""
    return object_id.replace("-", "")[-14:]


def untouched(host: Host, touched: list[str]) -> dict[str, float]:
    """Flows of other objects than these: how long each has been there, in seconds."""
    return {flow: age for flow, age in durations(host).items() if not any(item in flow for item in touched)}


def healthy(cloud: Cloud) -> bool:
    """LabError, with what it printed, is the doctor's exit code 1."""
    return "healthy" in cloud.lab.ctl.run(f"{KUMI} doctor || true")
