"""`kumi apply` and `kumi export` against a real API: any order, all or nothing, and the same to the byte (C-03, A-22)."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.component.cloud import Cloud, consistent
from tests.component.kumi import Kumi

TOPOLOGY = """
- kind: port
  name: web1
  network: web
  ip: [10.0.0.5, backup]
  address_pair: ["10.0.0.200/32", "10.0.9.0/24,fa:16:3e:00:00:09"]
  security_group: front
- {kind: port, name: quiet, network: web, fixed_ips: [], description: "no\\naddress: yes #\\u00e9"}
- {kind: port, name: none, network: web, no_fixed_ips: true, tags: [b, a]}
- {kind: subnet, name: backup, network: web, cidr: 10.0.1.0/24, disable_gateway: true, dhcp: off}
- kind: Subnet
  name: main
  network: web
  cidr: 10.0.0.0/24
  pool: 10.0.0.4-10.0.0.99
  dns: [9.9.9.9, 1.1.1.1]
  route: 10.9.0.0/16=10.0.0.1
  dhcp_lease_duration: 1h30m
- {kind: network, name: web, tags: [no, "1"], mtu: 1400}
- {kind: subnet, name: of-pool, network: other, subnet_pool: pool, prefix_length: 26}
- {kind: subnet_pool, name: pool, prefixes: [10.64.0.0/12, 10.32.0.0/12], default_prefix_length: 25, address_scope: scope}
- {kind: AddressScope, name: scope, ip_version: ipv4}
- {kind: port, name: of-default, network: web}
- {kind: security-group-rule, name: http, security_group: front, direction: ingress, protocol: tcp, port_range_min: 80,
   port_range_max: 80, remote_group: back}
- {kind: security_group_rule, name: reverse, security_group: back, direction: ingress, ethertype: ipv6, remote_group: front}
- {kind: SecurityGroupRule, name: office, security_group: front, direction: egress, remote_address_group: offices}
- {kind: address-group, name: offices, address: [10.0.0.0/8, "fd00::1-fd00::9"]}
- {kind: security-group, name: front, stateful: no}
- {kind: security-group, name: back, mode: observe}
- {kind: network, key: other, name: "off", admin_state_up: false, port_security_enabled: no, deletion_protection: true}
"""
OPERATORS = """
- {kind: network, id: 0192F0C4-7A3E-7C1D-8F2A-00000000000A, name: wire, type: vxlan, segment: 4711, project_id: acme}
- {kind: port, network: 0192f0c4-7a3e-7c1d-8f2a-00000000000a, name: p, mac: fa:16:3e:11:11:11, project_id: acme}
- {kind: quota, id: acme, limits: {ports: 1, networks: 1, subnets: 0}}
- {kind: quota, id: Mixed-Case, limits: {ports: -1}}
- {kind: settings, id: installation, mac_base: "02:00:5e", quotas: {subnet_pools: 7, networks: 0}}
- {kind: physical-network, id: rack1, mtu: 9000}
- {kind: network-segment-range, name: high, type: vxlan, minimum: 70000, maximum: 80000}
- {kind: network, name: ranged, type: vxlan, segment: 70001, project_id: demo}
- {kind: node, id: h1, role: [gateway, compute], tunnel_ip: 192.0.2.1, availability_zone: z1, weight: 0}
- {kind: node, id: h2, description: "2", admin_state_up: no}
"""


@pytest.fixture
async def whole() -> AsyncIterator[Cloud]:
    """An installation of which everything may be changed."""
    async with Cloud() as cloud:
        yield cloud


@pytest.fixture
async def other() -> AsyncIterator[Cloud]:
    """An installation in which nothing is."""
    async with Cloud() as cloud:
        yield cloud


@pytest.fixture
def kumi(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kumi:
    return Kumi(cloud, tmp_path, monkeypatch, capsys)


@pytest.fixture
def there(other: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Kumi:
    return Kumi(other, tmp_path, monkeypatch, capsys)


async def test_c03_export_of_everything_applies_to_an_empty_installation_and_is_the_same(
    whole: Cloud, there: Kumi, other: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kumi = Kumi(whole, tmp_path, monkeypatch, capsys)
    await kumi.done("--project", "demo", "apply", "-f", kumi.file(TOPOLOGY))
    await kumi.done("--project", "other", "apply", "-f", kumi.file(TOPOLOGY), by="bob")
    assert "7 created, 3 updated" in await kumi.done("apply", "-f", kumi.file(OPERATORS))
    exported = await kumi.done("export", "--all")
    objects = yaml.safe_load(exported)
    assert (
        len([item for item in objects if item["kind"] != "quota"]) == 2 * (17 + 5) + 8
    )  # with the default group and its rules
    assert {"acme", "Mixed-Case"} <= {item["id"] for item in objects if item["kind"] == "quota"}
    assert not {"revision", "etag", "create_time", "key", "state"} & {name for item in objects for name in item}
    for order in range(3):
        shuffled = list(objects)
        random.Random(order).shuffle(shuffled)
        await there.done("apply", "-f", "-", stdin=yaml.safe_dump(shuffled).encode() if order else exported.encode())
        assert await there.done("export", "--all") == exported
        assert "0 created, 0 updated, 0 deleted" in await there.done("apply", "-f", "-", stdin=exported.encode())
        as_json = await there.done("export", "--all", "-o", "json")
        assert json.loads(as_json) == objects
        assert "0 created, 0 updated, 0 deleted" in await there.done("apply", "-f", "-", stdin=as_json.encode())
        await consistent(other.store)
        await other.clear()


async def test_c03_a_tenant_exports_and_applies_his_own(kumi: Kumi, there: Kumi) -> None:
    await kumi.done("apply", "-f", kumi.file(TOPOLOGY), by="alice")
    await kumi.done("apply", "-f", kumi.file(TOPOLOGY), by="bob")
    exported = await kumi.done("export", by="alice")
    objects = yaml.safe_load(exported)
    assert (len(objects), {item["project_id"] for item in objects}) == (17 + 5, {"demo"})
    assert not {"network_type", "segmentation_id"} & {name for item in objects for name in item}
    random.Random(1).shuffle(objects)
    await there.done("apply", "-f", "-", by="alice", stdin=yaml.safe_dump(objects).encode())
    assert await there.done("export", by="alice") == exported
    assert await there.done("export", by="bob") == exported.partition("\n")[0] + "\n[]\n"
    of_operator = yaml.safe_load(await kumi.done("--project", "demo", "export"))
    kinds = {"network", "subnet", "port", "quota", "subnet-pool", "address-scope"}
    assert {item["kind"] for item in of_operator} == kinds | {"security-group", "security-group-rule", "address-group"}
    assert all("segmentation_id" in item for item in of_operator if item["kind"] == "network")
    assert (await kumi("export")).code == 2, "an operator says whose"
    refused = await kumi("export", "--all", by="alice")
    assert (refused.code, refused.out) == (5, "")
    assert refused.err.startswith("kumi: --all is for operators: ")


async def test_an_export_shows_one_moment(kumi: Kumi, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is made after the first list was read is in none of the others."""
    from cli import client

    await kumi.done("--project", "demo", "apply", "-f", kumi.file(TOPOLOGY))
    before = await kumi.done("--project", "demo", "export")
    asked: list[int] = []
    pages = client.Client.pages

    def slower(self: client.Client, kind: Any, **options: Any) -> Any:
        asked.append(options["at"])
        if len(asked) == 1:
            name = f"late-{len(asked)}"
            self.call("Networks", "Create", _create("Networks", name))
        return pages(self, kind, **options)

    monkeypatch.setattr(client.Client, "pages", slower)
    assert await kumi.done("--project", "demo", "export") == before
    assert len(set(asked)) == 1
    assert len(asked) > 3
    monkeypatch.undo()


def _create(service: str, name: str) -> Any:
    from kumihimo.v1 import network_pb2

    return network_pb2.CreateNetworkRequest(resource=network_pb2.Network(name=name, project_id="demo"))


async def test_a22_any_order_in_one_step_and_the_second_time_nothing(kumi: Kumi, cloud: Cloud) -> None:
    path = kumi.file(TOPOLOGY)
    plan = await kumi.done("apply", "-f", path, "--dry-run", by="alice")
    assert plan.splitlines()[-1] == "17 created, 0 updated, 0 deleted, 0 unchanged (dry run: nothing was done)"
    assert "    + cidr: 10.0.0.0/24" in plan.splitlines()
    assert not (await cloud.api.list("Network")).items
    done = await kumi.done("apply", "-f", path, by="alice")
    assert done.splitlines()[-1] == "17 created, 0 updated, 0 deleted, 0 unchanged"
    assert (await kumi.done("apply", "-f", path, by="alice")) == "0 created, 0 updated, 0 deleted, 17 unchanged\n"
    # A field that is stated empty becomes empty, one that is not stated stays.
    changed = kumi.file("- {kind: port, name: web1, network: web, address_pair: [], description: x}")
    plan = await kumi.done("apply", "-f", changed, "--dry-run", by="alice")
    assert "    ~ description: unset -> x" in plan.splitlines()
    assert [line for line in plan.splitlines() if line.startswith("    ~ allowed_address_pairs: [{")]
    assert "fixed_ips" not in plan
    told = await kumi.told("apply", "-f", changed, by="alice")
    assert [(item["action"], item["kind"], item["name"]) for item in told["objects"]] == [("updated", "port", "web1")]
    assert {item["path"] for item in told["objects"][0]["fields"]} == {"description", "allowed_address_pairs"}
    assert told["revision"] == (await cloud.api.get("Port", told["objects"][0]["id"])).revision


FAULTY = """\
- kind: subnet
  name: small
  network: web
  cidr: 10.0.0.0/99
  dns:
    - 9.9.9.9
    - nowhere
- kind: network
  name: web
  mtu: many
  segment: 5
- {kind: port, name: p, network: nowhere, mac: x}
- {kind: port, name: q, network: web, fixed_ips: [{ip_address: 10.0.0.5}, {ip_address: 10.0.0.5}]}
"""


async def test_every_fault_at_once_with_its_place(kumi: Kumi, cloud: Cloud) -> None:
    path = kumi.file(FAULTY)
    result = await kumi("apply", "-f", path, by="alice")
    assert (result.code, result.out) == (1, "")
    lines = result.err.splitlines()
    assert [line.removeprefix(f"kumi: {path}:").partition(":")[0] for line in lines] == ["4", "7", "10", "11", "12", "12", "13"]
    assert lines[0].startswith(f'kumi: {path}:4: subnet "small": cidr: ')
    assert lines[0].endswith("[CIDR_INVALID]")
    assert "dns_nameservers[1]" in lines[1]
    assert lines[2].endswith("network \"web\": mtu: 'many' is not a whole number")
    assert lines[3].endswith("[FIELD_FORBIDDEN]")
    assert lines[4].endswith("[REFERENCE_NOT_FOUND]")
    assert lines[5].endswith("[MAC_INVALID]")
    assert lines[6].endswith("[DUPLICATE_VALUE]")
    assert not (await cloud.api.list("Network")).items


async def test_a_child_of_a_faulty_parent_has_no_fault_of_its_own(kumi: Kumi) -> None:
    path = kumi.file(
        "- {kind: subnet, name: s, network: web, cidr: 10.0.0.0/24}\n"
        "- {kind: port, name: p, network: web, ip: s}\n- {kind: network, name: web, mtu: 1}\n"
    )
    result = await kumi("apply", "-f", path, by="alice")
    assert [line.partition(": ")[2] for line in result.err.splitlines()] == [
        f'{path}:3: network "web": mtu is 1; 68 to 1450 is accepted for VXLAN over this underlay [VALUE_OUT_OF_RANGE]'
    ]


async def test_prune_deletes_in_safe_order_and_only_when_told_so(kumi: Kumi, cloud: Cloud) -> None:
    path = kumi.file(TOPOLOGY.replace("deletion_protection: true", "tags: [b]"))
    await kumi.done("apply", "-f", path, "--prune", "mine", by="alice")
    await kumi.done("network", "create", "bystander", by="alice")
    less = kumi.file("- {kind: network, name: extra}\n", "less.yaml")
    refused = await kumi("apply", "-f", less, "--prune", "mine", by="alice")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.count("\n- ") + refused.err.startswith("- ") == 17
    assert refused.err.endswith("kumi: --prune mine deletes these 17 objects; --yes says that it may\n")
    plan = await kumi.done("apply", "-f", less, "--prune", "mine", "--dry-run", by="alice")
    order = [line.split()[1] for line in plan.splitlines() if line.startswith("- ")]
    last = {noun: len(order) - order[::-1].index(noun) for noun in order}
    assert last["port"] <= order.index("subnet"), "what refers goes before what it refers to"
    assert last["subnet"] <= min(order.index("network"), order.index("subnet-pool"))
    assert last["subnet-pool"] <= order.index("address-scope")
    assert max(last["port"], last["security-group-rule"]) <= order.index("security-group")
    assert last["security-group-rule"] <= order.index("address-group")
    assert len((await cloud.api.list("Port")).items) == 4
    done = await kumi.done("apply", "-f", less, "--prune", "mine", "--yes", "--wait", by="alice")
    assert done.splitlines()[-1] == "1 created, 0 updated, 17 deleted, 0 unchanged"
    assert {item.name for item in (await cloud.api.list("Network")).items} == {"extra", "bystander"}
    await consistent(cloud.store)


async def test_b_sg_a_file_may_name_the_default_group_before_there_is_one(kumi: Kumi, cloud: Cloud) -> None:
    path = kumi.file(
        "- {kind: security-group-rule, name: ssh, security_group: default, direction: ingress, protocol: tcp,"
        " port_range_min: 22, port_range_max: 22}\n"
        "- {kind: port, name: p, network: web, security_group: default}\n"
        "- {kind: network, name: web}\n- {kind: subnet, name: s, network: web, cidr: 10.0.0.0/24}\n"
        "- {kind: security-group, name: default, description: ours}\n"
    )
    assert (await kumi.done("apply", "-f", path, by="alice")).splitlines()[-1].startswith("4 created, 1 updated")
    (own,) = (await cloud.api.list("SecurityGroup", by="alice")).items
    assert (own.name, own.is_default, own.description, own.member_count) == ("default", True, "ours", 1)
    assert len((await cloud.api.list("SecurityGroupRule", by="alice")).items) == 4 + 1
    assert (await kumi.done("apply", "-f", path, by="alice")) == "0 created, 0 updated, 0 deleted, 5 unchanged\n"
    await consistent(cloud.store)


async def test_500_objects_at_once_and_no_more(kumi: Kumi, cloud: Cloud) -> None:
    ports = [{"kind": "port", "name": f"p{number}", "network": "web"} for number in range(498)]
    base = [
        {"kind": "network", "name": "web"},
        {"kind": "subnet", "name": "s", "network": "web", "cidr": "10.0.0.0/22"},
    ]
    path = kumi.file(json.dumps([*ports, *base]))
    assert (await kumi.done("apply", "-f", path, by="alice")).splitlines()[-1].startswith("500 created")
    more = kumi.file("kind: network\nname: one-more", "more.yaml")
    result = await kumi("apply", "-f", path, "-f", more)
    assert (result.code, result.err) == (2, "kumi: the files hold 501 objects; at most 500 are applied in one step\n")
    assert len(yaml.safe_load(await kumi.done("export", by="alice"))) == 500 + 5
