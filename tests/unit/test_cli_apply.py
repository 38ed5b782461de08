"""Files of `kumi apply`: what they may say, how it is told, and what is sent."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from cli import documents, manifest
from cli.kinds import kinds, writable
from cli.render import structured
from kumihimo.v1 import operations_pb2 as pb
from kumihimo.v1 import port_pb2
from tests.fakes.api import FakeApi, Fault, Kumi

pytest_plugins = ("tests.fakes.api",)


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def write(text: str | bytes, name: str = "a.yaml") -> str:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def _read(text: str, file: Any) -> manifest.Manifest:
    return manifest.read([file(text)])


def test_a_word_means_what_its_field_takes(file: Any) -> None:
    """No value is guessed from its looks: a name may be no, a MAC no number in base 60."""
    found = _read(
        "- {kind: port, name: no, device_id: 1e3, mac: 11:22:33:44:55:66, tags: [1, ~x, yes], admin_state_up: on}\n"
        "- {kind: Subnet, name: '', dhcp_lease_duration: 1h30m, ip_version: ipv4, pool: 10.0.0.2-10.0.0.9, gateway_ip: null}\n"
        "- {kind: quota, id: x, limits: {ports: -1, networks: 5}}\n",
        file,
    )
    assert not found.faults
    port, subnet, quota = (entry.message for entry in found.entries)
    assert (port.name, port.device_id, port.mac_address) == ("no", "1e3", "11:22:33:44:55:66")
    assert (list(port.tags), port.admin_state_up) == (["1", "~x", "yes"], True)
    assert (subnet.dhcp_lease_duration.seconds, subnet.ip_version) == (5400, 4)
    assert [(pool.start, pool.end) for pool in subnet.allocation_pools] == [("10.0.0.2", "10.0.0.9")]
    assert dict(quota.limits) == {"ports": -1, "networks": 5}
    assert found.entries[1].fields == ["name", "dhcp_lease_duration", "ip_version", "allocation_pools", "gateway_ip"]


def test_fields_go_by_their_name_or_their_options(file: Any) -> None:
    text = (
        "- {kind: port, network: web, ip: [10.0.0.5, {subnet: lan, ip_address: 10.0.0.6}, lan]}\n"
        "- {kind: port, network_id: web, fixed_ips: [{ip_address: 10.0.0.5}, {subnet_id: lan, ip_address: 10.0.0.6}, "
        "{subnet_id: lan}]}\n"
    )
    found = _read(text.replace("subnet: lan", "subnet_id: lan"), file)
    assert not found.faults
    assert found.entries[0].message == found.entries[1].message
    assert found.entries[0].fields == found.entries[1].fields == ["network_id", "fixed_ips"]
    assert found.entries[0].message.fixed_ips[2] == port_pb2.FixedIp(subnet_id="lan")


def test_no_field_is_hidden_by_what_a_file_says_of_an_object() -> None:
    for kind in kinds().values():
        for field in kind.descriptor.fields:
            assert field.name not in manifest.RESERVED or not writable(field), field.full_name


@pytest.mark.parametrize(
    ("text", "line", "sentence"),
    [
        ("a: b: c", 1, "it is not YAML: mapping values are not allowed"),
        ("- kind: network\n  name: 'x", 2, "it is not YAML: while scanning a quoted scalar found unexpected end"),
        (b"- kind: network\n- \xff", 2, "it is not UTF-8"),
        (b"- kind: network\n\x01", 2, "it is not YAML: "),
        ("\n" + "[" * 100_000, 2, "it is nested more than 100 levels deep"),
        ("- &a [*a]", 1, "it is not YAML: *a stands for nothing"),
        ("", 0, "it holds no object"),
        ("---\n---\n# nothing", 0, "it holds no object"),
        ("- name: x", 1, "this is no object with a kind; accepted: kind: network, "),
        ("- 7", 1, "this is no object with a kind"),
        ("\n- kind: cloud", 2, "'cloud' is no kind of this API; it has: network, "),
        ("- kind: network\n  colour: red", 2, 'network "": colour is no field of Network; accepted: id, project_id, name'),
        ("- kind: network\n  name: x\n  key: k\n  revision: 4", 4, 'network "x": revision is set by the server; leave it out'),
        ("- kind: port\n  network: a\n  network_id: b", 3, "network_id is stated twice"),
        ("- kind: network\n  name: a\n  mtu:\n    - 5\n    - 6", 4, "mtu is no single value"),
        ("- kind: network\n  name: a\n  type: pigeon", 3, "network_type: 'pigeon' is not one of vlan, vxlan"),
        ("- kind: port\n  ip:\n  - 10.0.0.1\n  - {address: 10.0.0.5}", 4, "fixed_ips[1].address is no field of FixedIp"),
        ("- kind: port\n  ip:\n  - 10.0.0.1\n  - null", 4, "fixed_ips[1] is no single value"),
        ("- kind: quota\n  id: a\n  limits: 5", 3, "limits is no mapping"),
        ("- kind: quota\n  id: a\n  limits:\n    ports: many", 4, "limits: 'many' is not a whole number"),
        ("- kind: quota\n  id: a\n  limits:\n    ports: 1\n    ports: 2", 5, "limits states ports twice"),
    ],
)
def test_a_fault_of_the_file_is_one_line_with_its_place(
    text: str | bytes, line: int, sentence: str, file: Any, kumi: Kumi, api: FakeApi
) -> None:
    path = file(text)
    result = kumi("apply", "-f", path)
    assert (result.code, result.out) == (1, "")
    place = f"{path}:{line}" if line else path
    assert result.err.startswith(f"kumi: {place}: "), result.err
    assert sentence in result.err.splitlines()[0]
    assert result.err.count("\n") == 1
    assert not [request for request in api.requests("Operations/Apply") if not request.validate_only]


def test_every_file_tells_its_faults(file: Any, kumi: Kumi, api: FakeApi, tmp_path: Path) -> None:
    one, two = file("- kind: network\n  mtu: x\n  foo: y\n", "one.yaml"), file("a: [", "two.yaml")
    result = kumi("apply", "-f", one, "-f", two, "-f", str(tmp_path), "-f", str(tmp_path / "nothing"))
    assert result.err.splitlines() == [
        f"kumi: {one}:2: network \"\": mtu: 'x' is not a whole number",
        f'kumi: {one}:3: network "": foo is no field of Network; accepted: {_accepted("network")}',
        f"kumi: {two}:1: it is not YAML: while parsing a flow node did not find expected node content",
        f"kumi: {tmp_path}: it cannot be read: Is a directory",
        f"kumi: {tmp_path}/nothing: it cannot be read: No such file or directory",
    ]
    assert not api.calls


def _accepted(noun: str) -> str:
    return ", ".join(field.name for field in kinds()[noun].descriptor.fields if writable(field))


def test_json_of_several_documents_and_of_stdin(kumi: Kumi, api: FakeApi, file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file('[{"kind": "network",\n\t"name": "\\ud83e\\udea2"}]\n')
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"kind: network\nname: b\n---\n- {kind: network, key: c}\n")))
    assert kumi("apply", "-f", path, "-f", "-").code == 0
    asked, done = api.requests("Operations/Apply")
    assert (asked.validate_only, asked.request_id, done.validate_only) == (True, "", False)
    assert len(done.request_id) == 36
    networks = []
    for item in done.objects:
        network = kinds()["network"].new()
        assert item.resource.Unpack(network)
        networks.append((network.name, item.key, list(item.fields.paths)))
    assert networks == [("🪢", "", ["name"]), ("b", "", ["name"]), ("", "c", [])]
    assert kumi("apply", "-f", "-", "-f", "-").code == 2


def test_text_survives_what_is_written_and_read_again(file: Any) -> None:
    for text in (
        "no",
        "1.0",
        "~",
        "null",
        "a: b",
        "- x",
        "# x",
        "a\nb\n",
        " x ",
        "é🪢",
        "'\"\\",
        "*a",
        "{{",
        "2026-01-01",
        "",
        "\t",
    ):
        path = file(structured([{"kind": "network", "description": text}], "yaml"))
        assert manifest.read([path]).entries[0].message.description == text
        path = file(json.dumps({"kind": "network", "description": text}))
        assert manifest.read([path]).entries[0].message.description == text


def _reply(**more: Any) -> pb.ApplyResponse:
    network = {"kind": "Network", "id": "n1", "name": "web"}
    return pb.ApplyResponse(
        objects=[
            {"index": -1, "action": "ACTION_DELETE", "kind": "Port", "id": "p1", "fields": [{"path": "name", "before": "old"}]},
            {"action": "ACTION_CREATE", **network, "fields": [{"path": "mtu", "after": "1400"}]},
            {"index": 1, "action": "ACTION_UPDATE", **network, "fields": [{"path": "tags", "before": "", "after": '["a"]'}]},
            {"index": 2, "action": "ACTION_NONE", **network},
        ],
        **more,
    )


def test_dry_run_shows_what_differs(kumi: Kumi, api: FakeApi, file: Any) -> None:
    path = file("kind: network\nname: x")
    api.replies["Operations/Apply"] = [_reply(), _reply()]
    result = kumi("apply", "-f", path, "--dry-run", "--prune", "t")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        "- port p1",
        "    - name: old",
        '+ network "web" (n1)',
        "    + mtu: 1400",
        '~ network "web" (n1)',
        '    ~ tags: unset -> ["a"]',
        "1 created, 1 updated, 1 deleted, 1 unchanged (dry run: nothing was done)",
    ]
    told = json.loads(kumi("apply", "-f", path, "--dry-run", "-o", "json").out)
    assert [item["action"] for item in told["objects"]] == ["deleted", "created", "updated", "unchanged"]
    assert told["objects"][1]["fields"] == [{"path": "mtu", "before": "", "after": "1400"}]
    assert all(request.validate_only for request in api.requests("Operations/Apply"))


def test_the_diff_is_coloured_on_a_terminal_only(kumi: Kumi, api: FakeApi, file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file("kind: network\nname: x")
    monkeypatch.setattr("cli.apply.sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("cli.apply.click.echo", lambda text, **_: seen.append(text))
    for no_color, colored in (("", True), ("1", False)):
        seen: list[str] = []
        if no_color:
            monkeypatch.setenv("NO_COLOR", no_color)
        else:
            monkeypatch.delenv("NO_COLOR", raising=False)
        api.replies["Operations/Apply"] = [_reply()]
        assert kumi("apply", "-f", path, "--dry-run").code == 0
        assert (seen[0] == "\x1b[31m- port p1\x1b[0m") is colored


def test_deleting_is_asked_for(kumi: Kumi, api: FakeApi, file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = file("kind: network\nname: x")
    told = "kumi: --prune t deletes these 1 objects; --yes says that it may\n"
    for answer, terminal, words, code in (
        (b"", False, (), 2),
        (b"y\n", False, (), 2),
        (b"n\n", True, (), 130),
        (b"y\n", True, (), 0),
        (b"", False, ("--yes",), 0),
    ):
        api.clear()
        api.replies["Operations/Apply"] = [_reply(), _reply(revision=7)]
        stdin = io.TextIOWrapper(io.BytesIO(answer))
        monkeypatch.setattr(stdin, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr("sys.stdin", stdin)
        result = kumi("apply", "-f", path, "--prune", "t", *words)
        assert result.code == code, result
        assert len(api.requests("Operations/Apply")) == (2 if code == 0 else 1)
        assert ("- port p1" in result.err) is (words == ())
        assert result.err.endswith(told) is (code == 2)
    assert api.requests("Operations/Apply")[1].prune_tag == "t"


def test_faults_of_server_and_file_come_together(kumi: Kumi, api: FakeApi, file: Any) -> None:
    path = file("- kind: network\n  name: a\n  mtu: x\n- kind: port\n  name: b\n  ip:\n  - 10.0.0.5\n  - 10.0.0.6\n")
    faults = [
        pb.ApplyFault(index=1, field="fixed_ips[1].ip_address", reason="IP_NOT_IN_SUBNET", message="it is\nelsewhere"),
        pb.ApplyFault(index=1, field="network_id", reason="MISSING_FIELD", message="network_id is missing"),
        pb.ApplyFault(index=0, field="mtu", reason="MISSING_FIELD", message="follows from what could not be sent"),
        pb.ApplyFault(index=-1, reason="RESOURCE_IN_USE", message="Network c is in use"),
    ]
    api.replies["Operations/Apply"] = [pb.ApplyResponse(faults=faults)]
    result = kumi("apply", "-f", path, "--dry-run")
    assert (result.code, result.out) == (1, "")
    assert result.err.splitlines() == [
        f"kumi: {path}:3: network \"a\": mtu: 'x' is not a whole number",
        f'kumi: {path}:4: port "b": network_id is missing [MISSING_FIELD]',
        f'kumi: {path}:8: port "b": fixed_ips[1].ip_address: it is elsewhere [IP_NOT_IN_SUBNET]',
        "kumi: --prune: Network c is in use [RESOURCE_IN_USE]",
    ]
    api.faults["Operations/Apply"] = [Fault(grpc.StatusCode.PERMISSION_DENIED, "ROLE_REQUIRED", "no")]
    result = kumi("apply", "-f", path)
    assert result.code == 5
    assert result.err.splitlines()[1] == "kumi: no [ROLE_REQUIRED]"


def test_a_refusal_after_the_plan_has_its_place_too(kumi: Kumi, api: FakeApi, file: Any) -> None:
    path = file("- kind: network\n  name: a\n  segment: 5\n")
    at = "objects[0].segmentation_id"
    fault = Fault(grpc.StatusCode.ALREADY_EXISTS, "SEGMENT_TAKEN", "x", [(at, "SEGMENT_TAKEN", f"{at}: segment 5 is taken")])
    api.replies["Operations/Apply"] = [pb.ApplyResponse(), fault]
    result = kumi("apply", "-f", path)
    assert (result.code, result.out) == (1, "")
    told = f'kumi: {path}:3: network "a": segmentation_id: segment 5 is taken [SEGMENT_TAKEN]\n'
    assert result.err == told


def test_wait_is_for_the_revision_and_the_result_is_shown_whatever_it_comes_to(kumi: Kumi, api: FakeApi, file: Any) -> None:
    path = file("kind: network\nname: x")
    made = pb.ApplyResponse(revision=77, objects=[{"action": "ACTION_CREATE", "kind": "Network", "id": "n1", "name": "x"}])
    api.replies["Operations/Apply"] = [made, made, pb.ApplyResponse(), pb.ApplyResponse()]
    api.faults["Operations/Wait"] = [Fault(grpc.StatusCode.DEADLINE_EXCEEDED, "WAIT_TIMEOUT", "node h2 lags")]
    result = kumi("apply", "-f", path, "--wait", "--request-id", "mine")
    assert (result.code, result.err) == (7, "kumi: node h2 lags [WAIT_TIMEOUT]\n")
    assert result.out == 'created network "x" (n1)\n1 created, 0 updated, 0 deleted, 0 unchanged\n'
    assert api.requests("Operations/Wait")[0].revision == 77
    assert api.requests("Operations/Apply")[1].request_id == "mine"
    assert kumi("apply", "-f", path, "--wait").code == 0
    assert len(api.requests("Operations/Wait")) == 1, "nothing changed: there is nothing to wait for"


def test_more_than_500_are_told_by_number(kumi: Kumi, api: FakeApi, file: Any) -> None:
    path = file(yaml.safe_dump([{"kind": "network", "name": str(number)} for number in range(501)]))
    result = kumi("apply", "-f", path)
    assert (result.code, result.err) == (2, "kumi: the files hold 501 objects; at most 500 are applied in one step\n")
    assert not api.calls


def test_documents_keep_their_lines() -> None:
    (node,) = documents._documents("# x\n- a: 1\n  b:\n    - c\n")
    assert node.items is not None
    assert [(key.text, key.line, value.line) for key, value in node.items[0].pairs or []] == [("a", 2, 2), ("b", 3, 4)]
