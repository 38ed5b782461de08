"""C-09: `kumi doctor` finds what is broken, says where and what to do, and touches nothing."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from controlplane.admin import certificates
from controlplane.admin.examination import Report, look_at_certificates
from controlplane.audit import CALLS_FOR, FAMILIES, audit, family_of
from controlplane.registry import KINDS
from controlplane.store import client, keys
from controlplane.store.client import Entry
from kumihimo.v1 import port_pb2, store_pb2
from tests.component.cloud import CONTROLLERS, Cloud, alive, everything
from tests.waiting import until

KUMI = str(Path(sys.executable).parent / "kumi")


@dataclass(frozen=True)
class Installation:
    """Two networks, a port in the first that is bound to the living node h1, in its project's default security group."""

    cloud: Cloud
    network: str
    other: str
    subnet: str
    port: str
    group: str

    @property
    def member(self) -> str:
        return keys.members(self.group) + self.port


@pytest.fixture(scope="module")
async def installation() -> AsyncIterator[Installation]:
    async with Cloud() as cloud:
        network = await cloud.api.create("Network", name="one")
        other = await cloud.api.create("Network", name="two")
        subnet = await cloud.api.create("Subnet", network_id=network.id, cidr="10.0.0.0/24")
        port = await cloud.api.create("Port", network_id=network.id)
        await cloud.api.create("Node", id="h1", tunnel_ip="192.0.2.1")
        about = store_pb2.AgentStatus(version=version("kumihimo")).SerializeToString()
        seen = store_pb2.PortStatus(interface="tap0", wired=True).SerializeToString()
        await cloud.write(
            alive("h1"), client.put(keys.agent_status("h1"), about), client.put(keys.port_status("h1", port.id), seen)
        )

        async def bound() -> bool:
            entries = await cloud.everything()
            held = all(keys.controller(name) in entries for name in (*CONTROLLERS, "compactor"))
            return held and keys.bindings(network.id) + port.id in entries

        await until(bound, "the port is bound")
        yield Installation(cloud, network.id, other.id, subnet.id, port.id, port.security_group_ids[0])


async def doctor(cloud: Cloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [KUMI, "doctor", "--config", str(cloud.folder / "api0.toml"), *arguments]
    return await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60, check=False)


async def test_a_healthy_installation_has_no_finding(installation: Installation) -> None:
    before = await installation.cloud.store.revision()
    done = await doctor(installation.cloud)
    # The certificate of the tests is of two days.
    assert done.returncode == 1
    assert "\n1 finding\n" in done.stdout
    assert "its certificate runs out at" in done.stdout
    assert "etcd_certificate" in done.stdout
    assert "objects: 2 Network, 1 Node, 1 Port, 3 Quota, 1 SecurityGroup, 4 SecurityGroupRule, 1 Subnet\n" in done.stdout
    assert "format: 1\n" in done.stdout
    assert not await installation.cloud.written_since(before)


Change = Callable[[Installation, dict[str, Entry]], list[Any]]


def _put(key: str, message: Any) -> Any:
    return client.put(key, message if isinstance(message, bytes) else message.SerializeToString())


def _claim(owner: str, releasing: bool = False) -> store_pb2.Claim:
    return store_pb2.Claim(owner=owner, releasing=releasing)


def _first(entries: dict[str, Entry], prefix: str) -> str:
    return min(key for key in entries if key.startswith(prefix))


def _swap(entries: dict[str, Entry], prefix: str, **fields: Any) -> list[Any]:
    key = _first(entries, prefix)
    found = family_of(key)
    assert found is not None
    assert found[0].message is not None
    message: Any = found[0].message.FromString(entries[key].value)
    for name, value in fields.items():
        message.ClearField(name)
        message.MergeFrom(type(message)(**{name: value}))
    return [_put(key, message)]


GONE = "01900000-0000-7000-8000-000000000000"
# what is done to the store → what the doctor must say, word by word, of which key
DAMAGES: dict[str, tuple[Change, list[str]]] = {
    "claim without owner": (
        lambda made, _: [_put(keys.claim("vxlan", 4711), _claim(GONE))],
        [f"{keys.claim('vxlan', 4711)}: nothing that {GONE} is calls for it"],
    ),
    "a claim that is being released is no leak": (
        lambda made, _: [_put(keys.claim("vxlan", 4711), _claim(GONE, releasing=True)), _hold(made)],
        [],
    ),
    "claim lost": (lambda made, _: [client.delete(keys.claim("node-key", 1))], [f"{keys.claim('node-key', 1)}: missing"]),
    "claim of another": (
        lambda made, _: [_put(keys.claim("node-key", 1), _claim("h2"))],
        [f"{keys.claim('node-key', 1)}: owned by h2, releasing False, wanted by h1"],
    ),
    "one value twice": (
        lambda made, entries: (
            _swap(entries, keys.network(max(made.network, made.other)), segmentation_id=1)
            + _swap(entries, keys.network(min(made.network, made.other)), segmentation_id=1)
        ),
        ["claim/vxlan/1: wanted by Network"],
    ),
    "index lost": (lambda made, _: [client.delete(keys.index("Port", made.port))], ["index/port/", "claim/quota/"]),
    "quota slot lost": (
        lambda made, entries: [client.delete(_first(entries, keys.claim("quota/admin/ports")))],
        ["claim/quota/admin/ports/1: missing"],
    ),
    "quota slot of nothing": (
        lambda made, _: [_put(keys.claim("quota/demo/ports", 3), _claim(GONE))],
        [f"{keys.claim('quota/demo/ports', 3)}: nothing that {GONE} is calls for it"],
    ),
    "index without object": (
        lambda made, _: [_put(keys.index("Subnet", GONE), store_pb2.Index(parent_id=made.network))],
        [f"{keys.index('Subnet', GONE)}: nothing calls for it"],
    ),
    "index elsewhere": (
        lambda made, entries: _swap(entries, keys.index("Port", made.port), parent_id=made.other),
        ["it says network"],
    ),
    "binding without index": (lambda made, _: [client.delete(keys.bound_to("h1", made.port))], ["does not list the port"]),
    "index without binding": (
        lambda made, _: [_put(keys.bound_to("h1", GONE), port_pb2.Binding(node="h1"))],
        [f"{keys.bound_to('h1', GONE)}: its port is gone"],
    ),
    "reference to nothing": (
        lambda made, entries: _swap(entries, keys.ports(made.network), network_id=GONE),
        [f"its network_id is {GONE}", f"network_id names Network {GONE}, which is gone"],
    ),
    "member lost": (lambda made, _: [client.delete(made.member)], [": missing"]),
    "member of nothing": (
        lambda made, _: [_put(keys.members(made.group) + GONE, store_pb2.Member())],
        [f"member/{GONE}: nothing calls for it"],
    ),
    "member of a group that the port does not have": (
        lambda made, _: [_put(keys.members(GONE) + made.port, store_pb2.Member())],
        [f"{keys.members(GONE)}"],
    ),
    "member with another's addresses": (
        lambda made, entries: _swap(entries, made.member, addresses=["10.0.0.77"]),
        ["it is not what the port sends from"],
    ),
    "cut of nothing": (
        lambda made, _: [_put(keys.cut_of(keys.scope(GONE, folder)), store_pb2.Cut()) for folder in ("secgroup", "addrgroup")],
        [f"{keys.cut_of(keys.scope(GONE, folder))}: its group is gone" for folder in ("secgroup", "addrgroup")],
    ),
    "what a rule says lost": (
        lambda made, entries: [client.delete(_first(entries, keys.claim(keys.rule_pool(made.group))))],
        [":egress-4----0.0.0.0_0: missing"],
    ),
    "what no rule says": (
        lambda made, _: [
            _put(keys.claim(keys.rule_pool(made.group), f"{made.group}:egress-4-tcp-1-1-0.0.0.0_0"), _claim(GONE))
        ],
        [f"nothing that {GONE} is calls for it"],
    ),
    "number of a group lost": (lambda made, _: [client.delete(keys.claim("group-key", 1))], ["claim/group-key/1: missing"]),
    "no key of ours": (lambda made, _: [_put(keys.ROOT + "mischief/1", b"x")], ["no key of this release looks like it"]),
    "scope without network": (
        lambda made, _: [_put(keys.change_of(keys.scope(GONE)), store_pb2.ChangeRecord())],
        [f"{keys.change_of(keys.scope(GONE))}: nothing calls for it"],
    ),
    "value that cannot be parsed": (
        lambda made, _: [_put(keys.ports(made.network) + made.port, b"\xff\xff")],
        ["its value cannot be parsed as Port"],
    ),
    "status that cannot be parsed": (
        lambda made, _: [_put(keys.scope_status("h1", ""), b"\xff")],
        ["its value cannot be parsed as Applied"],
    ),
    "format": (lambda made, _: [_put(keys.FORMAT, store_pb2.StoreFormat(version=2))], ["the store's format is 2"]),
    "node of nobody": (lambda made, _: [_put(keys.scope_status("h9", ""), store_pb2.Applied())], ["there is no such node"]),
    "node dead": (lambda made, _: [client.delete(keys.alive("h1"))], ["node h1 is not heard of; its traffic goes on"]),
    "agent of another release": (
        lambda made, _: [_put(keys.agent_status("h1"), store_pb2.AgentStatus(version="9.9"))],
        [f"its agent is of release 9.9, this is {version('kumihimo')}"],
    ),
    "node that fails": (
        lambda made, _: [
            _put(
                keys.scope_status("h1", ""),
                store_pb2.Applied(errors=[store_pb2.ObjectError(object="flow 1", reason="OVS", message="too many")]),
            )
        ],
        ["node h1 could not bring about flow 1: too many [OVS]"],
    ),
    "port of nobody": (
        lambda made, _: [
            _put(keys.port_status("h1", GONE), store_pb2.PortStatus(interface="tap9", reason="PORT_UNKNOWN", message="no port"))
        ],
        ["node h1: no port"],
    ),
}


def _hold(made: Installation) -> Any:
    """Keeps the release controller from freeing anything: a living node that lags."""
    return _put(keys.scope_status("h1", ""), store_pb2.Applied())


@pytest.mark.parametrize("damage", DAMAGES)
async def test_c_09_each_damage_is_found_and_nothing_else(damage: str, installation: Installation) -> None:
    """Looked at in a copy of the store: the controllers of the real one would set to work at once."""
    change, expected = DAMAGES[damage]
    entries = await installation.cloud.everything()
    for operation in change(installation, dict(entries)):
        if put := operation.get("request_put"):
            entries[put["key"].decode()] = Entry(put["value"], 1, 1)
        else:
            del entries[operation["request_delete_range"]["key"].decode()]
    report = Report()
    from controlplane.admin.examination import look_at_keys

    look_at_keys(report, entries, 3600)
    found = [f"{item} {item.todo}" for item in report.findings]
    for text in expected:
        assert [line for line in found if text in line], (text, found)
    if damage not in ("one value twice", "reference to nothing"):
        assert len(found) == len(expected), found
    assert all(item.what and item.key and item.todo for item in report.findings)


async def test_findings_as_json_with_key_object_and_what_to_do(installation: Installation) -> None:
    cloud = installation.cloud
    key = keys.claim("vxlan", 4712)
    await cloud.write(_put(key, _claim(GONE)))
    done = await doctor(cloud, "-o", "json")
    await cloud.write(client.delete(key))
    assert done.returncode == 1
    told = json.loads(done.stdout)
    assert told["healthy"] is False
    groups = {"SecurityGroup": 1, "SecurityGroupRule": 4}
    assert told["about"]["objects"] == {"Network": 2, "Node": 1, "Port": 1, "Quota": 3, "Subnet": 1, **groups}
    finding = next(item for item in told["findings"] if item["key"] == key)
    assert finding["object"] == GONE
    assert f"`etcdctl del {key}`" in finding["todo"]


async def test_what_is_wrong_with_etcd_is_found(installation: Installation) -> None:
    cloud = installation.cloud
    config = cloud.folder / "two.toml"
    text = (cloud.folder / "api0.toml").read_text()
    config.write_text(text.replace("etcd = [", "etcd = ['unix:/nowhere/etcd', ") + "[store]\nquota_bytes = 1\n")
    argv = [KUMI, "doctor", "--config", str(config)]
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60, check=False)
    assert "no etcd answers: etcd at unix:/nowhere/etcd" in done.stdout
    assert "etcd: 1 of 2 answer, version 3." in done.stdout
    assert "etcd's database has 0 of 0 MiB" in done.stdout
    config.write_text(text.replace(cloud.etcd.endpoint, "unix:/nowhere/etcd"))
    done = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 6
    assert done.stderr.startswith("kumi: etcd at unix:/nowhere/etcd: ")
    assert done.stderr.count("\n") == 1


async def test_a_store_that_nobody_uses_is_told(installation: Installation) -> None:
    report = Report()
    from controlplane.admin.examination import look_at_keys

    look_at_keys(report, {}, 3600)
    assert "the store is empty" in [item.what for item in report.findings]
    assert "no API replica runs the compactor" in [item.what for item in report.findings]


async def test_every_key_of_a_living_store_has_its_family(installation: Installation) -> None:
    entries = await everything(installation.cloud.store)
    families = {found[0].pattern for key in entries if (found := family_of(key))}
    assert len(families) > 12
    assert audit(entries) == []
    assert set(CALLS_FOR) <= set(KINDS) == {family.kind for family in FAMILIES if family.kind}


@pytest.mark.parametrize(("days", "told"), [(5, "its certificate runs out at"), (40, "")])
async def test_certificates(days: int, told: str, tmp_path: Path) -> None:
    file = tmp_path / "some.pem"
    new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=x"]
    argv = [*new, "-keyout", str(file.with_suffix(".key")), "-out", str(file), "-days", str(days)]
    await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True, timeout=30)
    now = datetime.now(UTC)
    assert abs(certificates.ends(file) - now - timedelta(days=days)) < timedelta(minutes=1)
    report = Report()
    settings = {"tls": {"certificate": str(file), "key": str(file.with_suffix(".key"))}, "other": "/nowhere"}
    look_at_certificates(report, tmp_path / "api.toml", settings, now)
    assert [item.key for item in report.findings] == ([f"{tmp_path}/api.toml: tls.certificate"] if told else [])
    assert all(told in item.what for item in report.findings)
    late = Report()
    look_at_certificates(late, tmp_path / "api.toml", settings, now + timedelta(days=days, hours=1))
    assert ["ran out" in item.what for item in late.findings] == [True]
