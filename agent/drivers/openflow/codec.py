"""OpenFlow 1.5 messages (wire version 6) as bytes, and back.

Sources: OpenFlow Switch Specification 1.5.1, section 7, and for Open vSwitch's own actions (resubmit, ct, controller), group
command (add-or-mod), handling of fragments and flush of a zone ovs-actions(7), ovs-ofctl(8) and lib/ofp-actions.c. What was
encoded, sent and read back decodes to an equal value.

Version 1.5 and not 1.4: only 1.5 has set-field with a mask and copy-field. Over 1.4 Open vSwitch answers a masked
set-field as NXAST_REG_LOAD, one for each run of bits in the mask, from which the original action cannot be told. The
price is that 1.5 answers matches on registers as 64 bit pairs (OXM_OF_PKT_REGn): they are split into reg2n and reg2n+1.

A value outside what the field takes, or in another form than `agent.model.flow.match` gives, is a ValueError: it would
read back as a different value, and the reconcile loop would never come to rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct, error, unpack_from

from agent.drivers.openflow import fields
from agent.model.flow import (
    Action,
    FieldMatch,
    Flow,
    Group,
    InPort,
    Match,
    Meter,
    Move,
    Opaque,
    Output,
    PopVlan,
    PushVlan,
    Resubmit,
    SetField,
    ToController,
    ToGroup,
    Track,
)

VERSION = 0x06

# Message types (1.5.1, section 7.1.1).
HELLO, ERROR, ECHO_REQUEST, ECHO_REPLY, EXPERIMENTER, SET_CONFIG, PACKET_IN = 0, 1, 2, 3, 4, 9, 10
PACKET_OUT, FLOW_MOD, GROUP_MOD, MULTIPART_REQUEST, MULTIPART_REPLY = 13, 14, 15, 18, 19
BARRIER_REQUEST, BARRIER_REPLY, BUNDLE_CONTROL, BUNDLE_ADD, METER_MOD = 20, 21, 33, 34, 29

# Bundle control requests; the reply of each is one more. Flags: all or nothing, and in the order given.
OPEN, COMMIT, DISCARD = 0, 4, 6
_BUNDLE_FLAGS = 1 | 2

_FLOW_DESC, _PORT_STATS, _GROUP_DESC, _METER_CONFIG, FLOW_MONITOR = 1, 4, 7, 10, 16
_ADD, _DELETE_STRICT = 0, 4
_ALL_BUT_THE_LAST = (1 << 64) - 2
_GROUP_DELETE, _GROUP_ADD_OR_MODIFY, _ALL = 2, 0x8000, 0
_METER_ADD, _METER_MODIFY, _METER_DELETE, _PACKETS_AND_BURST, _BAND_DROPS = 0, 1, 2, 1 << 1 | 1 << 2, 1
_OUTPUT, _GROUP, _SET_FIELD, _COPY_FIELD, _VENDOR_ACTION = 0, 22, 25, 28, 0xFFFF
_PUSH_VLAN, _POP_VLAN, _TAGGED = 17, 18, 0x8100
_APPLY_ACTIONS = 4
_NICIRA, _RESUBMIT_TABLE, _CT, _FLUSH_ZONE = 0x2320, 14, 35, 29
_CONTROLLER, _MAX_LEN, _METERED = 37, 0, 5
_CT_COMMIT, _CT_STAYS, _REGISTER_ZONE = 1, 0xFF, 15  # 16 bits of a register, from its first: offset << 6 | bits - 1
_FRAGMENTS_BY_FIELD, _UNTAKEN = 3, 64
_OXS_PACKETS, _OXS_BYTES = 0x8002_0008 | 4 << 9, 0x8002_0008 | 5 << 9

PORT_IN_PORT = 0xFFFF_FFF8
_PORT_IN_PORT_16 = 0xFFF8  # the 16 bit form, in resubmit
_TO_TABLES = 0xFFFF_FFF9
_ANY = _NO_BUFFER = 0xFFFF_FFFF
ALL_TABLES = 0xFF
_MOST = 0xFFFF - 64  # bytes of a message, less what is around match and actions

_HEADER = Struct("!BBHI")
_PACKET_OUT_HEAD = Struct("!IH2x")
_FLOW_MOD_HEAD = Struct("!QQBBHHHIIIHH")
_GROUP_MOD_HEAD = Struct("!HBxIH2xI")
_BUCKET = Struct("!HHI")
_BUNDLE_CONTROL = Struct("!IHH")
_BUNDLE_ADD = Struct("!I2xH")
_MULTIPART = Struct("!HH4x")
_FLOW_REQUEST = Struct("!B3xII4xQQ")
_FLOW_ENTRY = Struct("!H2xBxHHHHHQ")
_LENGTH = Struct("!H")
_GROUP_ENTRY = Struct("!HBxIH6x")
_MONITOR_REQUEST = Struct("!IIIHBB")
_PORT_REQUEST = Struct("!I4x")
_PORT_ENTRY = Struct("!H2xI8xQQQQ")
_TYPE_LENGTH = Struct("!HH")
_INSTRUCTION = Struct("!HH4x")
_OUTPUT_ACTION = Struct("!HHIH6x")
_GROUP_ACTION = Struct("!HHI")
_VLAN_ACTION = Struct("!HHH2x")
_COPY_ACTION = Struct("!HHHHH2x")
_RESUBMIT_ACTION = Struct("!HHIHHB3x")
_CT_ACTION = Struct("!HHIHHIHB3xH")
_CONTROLLER_ACTION = Struct("!HHIH6xHHH2xHHI")
_PACKET_IN = Struct("!4xH2xQ")
_METER = Struct("!HHI")
_BAND = Struct("!HHII4x")
_ZONE_REQUEST = Struct("!II6xH")
_CONFIG = Struct("!HH")

_UNMATCHED = (fields.OXM, 44)  # packet_type: Open vSwitch says "Ethernet" for a match that names no Ethernet field


@dataclass(frozen=True, slots=True)
class FlowStats:
    """A flow as the switch describes it, with its counters."""

    flow: Flow
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class PacketIn:
    """The first bytes of a packet that a flow has sent here, how long it is, and the fields of it that were not 0."""

    cookie: int
    fields: Mapping[str, int]
    data: bytes
    length: int


@dataclass(frozen=True, slots=True)
class PortStats:
    """What a port of the switch has received and sent."""

    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int


def message(kind: int, xid: int, body: bytes = b"") -> bytes:
    """A whole message."""
    return _HEADER.pack(VERSION, kind, 8 + len(body), xid) + body


def parse_header(data: bytes) -> tuple[int, int, int, int]:
    """Version, type, length of the whole message and xid, from its first 8 bytes."""
    version, kind, length, xid = _HEADER.unpack(data)
    return version, kind, length, xid


def hello_body() -> bytes:
    """The version bitmap that has 1.5 alone (section 7.5.1)."""
    return _TYPE_LENGTH.pack(1, 8) + (1 << VERSION).to_bytes(4, "big")


def hello_offers(version: int, body: bytes) -> bool:
    """Whether a peer's hello offers our version."""
    offset = 0
    while offset + 8 <= len(body):
        kind, length, bitmap = unpack_from("!HHI", body, offset)
        if kind == 1:
            return bool(bitmap >> VERSION & 1)
        offset += max(8, (length + 7) // 8 * 8)
    return bool(version >= VERSION)


def config_body() -> bytes:
    """The body of a message after which fragments can be told apart by ip_frag (nx-match of ovs-ofctl(8)): a later fragment,
    which has no ports, does not pass for a packet of port 0, nor a first one. And what flows send to the controller comes
    here: the length asked for is that of packets that no flow takes, but with 0 nothing comes."""
    return _CONFIG.pack(_FRAGMENTS_BY_FIELD, _UNTAKEN)


def flush_zone(zone: int) -> bytes:
    """The body of an experimenter message after which no connection is known in a zone."""
    return _ZONE_REQUEST.pack(_NICIRA, _FLUSH_ZONE, zone)


def bundle_control(bundle: int, kind: int) -> bytes:
    """The body of a request to open, commit or discard a bundle."""
    return _BUNDLE_CONTROL.pack(bundle, kind, _BUNDLE_FLAGS)


def bundle_add(bundle: int, xid: int, kind: int, body: bytes) -> bytes:
    """A whole message that adds another to a bundle. Both bear the same xid (section 7.3.9.6)."""
    return message(BUNDLE_ADD, xid, _BUNDLE_ADD.pack(bundle, _BUNDLE_FLAGS) + message(kind, xid, body))


def flow_put(flow: Flow) -> bytes:
    """The body of a flow-mod that adds the flow, or replaces the one with the same table, priority and match."""
    actions = encode_actions(flow.actions)
    head = _flow_mod(flow, _ADD, 0)
    if len(head) + len(actions) > _MOST:
        raise ValueError(f"{len(flow.actions)} actions do not fit into one message")
    return head + _INSTRUCTION.pack(_APPLY_ACTIONS, 8 + len(actions)) + actions if actions else head


def flow_delete(flow: Flow) -> bytes:
    """The body of a flow-mod that deletes the flow with this very table, priority, match and cookie, but for the last bit of
    the cookie. Asked for a whole cookie, Open vSwitch looks for the flow among all that have it (collect_rules_strict of
    ofproto.c), as all members of a group have; otherwise by the match."""
    return _flow_mod(flow, _DELETE_STRICT, _ALL_BUT_THE_LAST)


def _flow_mod(flow: Flow, command: int, cookie_mask: int) -> bytes:
    try:
        head = _FLOW_MOD_HEAD.pack(flow.cookie, cookie_mask, flow.table, command, 0, 0, flow.priority, _ANY, _ANY, _ANY, 0, 0)
    except error as wrong:
        raise ValueError(f"table, priority or cookie out of range: {wrong}") from None
    return head + encode_match(flow.match)


def group_put(group: Group) -> bytes:
    """The body of a group-mod that adds the group, or gives it these buckets."""
    buckets = b""
    for number, bucket in enumerate(group.buckets):
        actions = encode_actions(bucket)
        buckets += _BUCKET.pack(8 + len(actions), len(actions), number) + actions
    return _GROUP_MOD_HEAD.pack(_GROUP_ADD_OR_MODIFY, _ALL, group.group_id, len(buckets), _ANY) + buckets


def group_delete(group: Group) -> bytes:
    """The body of a group-mod that deletes the group, and with it every flow that still uses it."""
    return _GROUP_MOD_HEAD.pack(_GROUP_DELETE, _ALL, group.group_id, 0, _ANY)


def meter_put(meter: Meter, there: bool) -> bytes:
    """The body of a meter-mod that adds the meter, or changes one that is there."""
    band = _BAND.pack(_BAND_DROPS, _BAND.size, meter.rate, meter.burst)
    return _METER.pack(_METER_MODIFY if there else _METER_ADD, _PACKETS_AND_BURST, meter.meter_id) + band


def meter_delete(meter: Meter) -> bytes:
    """The body of a meter-mod that deletes the meter. Flows that name it stay, and are held back by nothing."""
    return _METER.pack(_METER_DELETE, 0, meter.meter_id)


def flows_request(
    table: int = ALL_TABLES, match: Match = (), cookie: int = 0, cookie_mask: int = 0, group: int = _ANY
) -> bytes:
    """The body of a multipart request for the flows that have all of these."""
    head = _MULTIPART.pack(_FLOW_DESC, 0) + _FLOW_REQUEST.pack(table, _ANY, group, cookie, cookie_mask)
    return head + encode_match(match)


def groups_request() -> bytes:
    """The body of a multipart request for all groups."""
    return _MULTIPART.pack(_GROUP_DESC, 0) + _GROUP_ACTION.pack(0xFFFF, 0xFFFC, 0)


def meters_request() -> bytes:
    """The body of a multipart request for all meters."""
    return _MULTIPART.pack(_METER_CONFIG, 0) + _PORT_REQUEST.pack(_ANY)


def packet_out(in_port: int, data: bytes) -> bytes:
    """The body of a message that has the switch take a frame for one that came by a port."""
    actions = encode_action(Output(_TO_TABLES))
    return _PACKET_OUT_HEAD.pack(_NO_BUFFER, len(actions)) + encode_match((("in_port", in_port, None),)) + actions + data


def ports_request() -> bytes:
    """The body of a multipart request for the counters of all ports."""
    return _MULTIPART.pack(_PORT_STATS, 0) + _PORT_REQUEST.pack(_ANY)


# Of a flow monitor (1.5.1, section 7.3.5.19): what is told of, and the update that stands for a change of our own.
_MONITOR_CHANGES = 1 << 1 | 1 << 2 | 1 << 3
_ABBREVIATED = 4


def monitor_request() -> bytes:
    """The body of a multipart request to be told of every change of the tables from now on; own ones in short."""
    head = _MULTIPART.pack(FLOW_MONITOR, 0) + _MONITOR_REQUEST.pack(1, _ANY, _ANY, _MONITOR_CHANGES, ALL_TABLES, 0)
    return head + encode_match(())


def tells_of_others(body: bytes) -> bool:
    """Whether a multipart reply is a monitor's and holds a change that is not our own."""
    kind, _ = _MULTIPART.unpack_from(body)
    if kind != FLOW_MONITOR:
        return False
    offset = _MULTIPART.size
    while offset < len(body):
        length, event = _TYPE_LENGTH.unpack_from(body, offset)
        if event != _ABBREVIATED:
            return True
        offset += max(length, 8)
    return False


def more_follow(body: bytes) -> bool:
    """Whether a multipart reply is followed by another of the same xid."""
    return bool(body[3] & 1)


def encode_match(match: Match) -> bytes:
    """An ofp_match, padded. The model sorts fields by name; prerequisites go first here."""
    ranks = fields.RANK
    ordered = sorted(match, key=lambda field: ranks.get(field[0], fields.RANK_OF_OTHERS))
    oxm = b"".join([encode_field(*field) for field in ordered])
    length = 4 + len(oxm)
    return _TYPE_LENGTH.pack(1, length) + oxm + bytes(-length % 8)


@lru_cache(maxsize=1024)
def encode_field(name: str, value: int, mask: int | None) -> bytes:
    """One OXM entry. ValueError when the value does not fit, or its mask is not in the one form."""
    field = fields.by_name(name)
    full = (1 << field.bits) - 1
    allowed = full if mask is None else mask
    if value & ~allowed or allowed & ~full or mask in (0, full):
        raise ValueError(f"{name}: {value:#x}/{allowed:#x} does not fit, or the mask is not in its one form")
    size = field.size
    if mask is None:
        return field.header + value.to_bytes(size, "big")
    return field.masked_header + value.to_bytes(size, "big") + mask.to_bytes(size, "big")


def encode_actions(actions: Iterable[Action]) -> bytes:
    """A list of actions, each padded to 8 bytes."""
    return b"".join([encode_action(action) for action in actions])


def encode_action(action: Action) -> bytes:
    """One action, padded to 8 bytes. ValueError when it cannot be said."""
    match action:
        case Output(port):
            if port == PORT_IN_PORT:
                raise ValueError("Output to the in_port: write InPort, which is what it reads back as")
            return _OUTPUT_ACTION.pack(_OUTPUT, 16, port, 0xFFFF)
        case InPort():
            return _OUTPUT_ACTION.pack(_OUTPUT, 16, PORT_IN_PORT, 0xFFFF)
        case SetField(name, value, mask):
            entry = encode_field(name, value, mask)
            padding = -(4 + len(entry)) % 8
            return _TYPE_LENGTH.pack(_SET_FIELD, 4 + len(entry) + padding) + entry + bytes(padding)
        case Move(source, target, bits, source_offset, target_offset):
            ids = fields.by_name(source).header + fields.by_name(target).header
            padding = -(_COPY_ACTION.size + len(ids)) % 8
            length = _COPY_ACTION.size + len(ids) + padding
            head = _COPY_ACTION.pack(_COPY_FIELD, length, bits, source_offset, target_offset)
            return head + ids + bytes(padding)
        case Resubmit(table):
            return _RESUBMIT_ACTION.pack(_VENDOR_ACTION, 16, _NICIRA, _RESUBMIT_TABLE, _PORT_IN_PORT_16, table)
        case ToGroup(group_id):
            return _GROUP_ACTION.pack(_GROUP, 8, group_id)
        case PushVlan():
            return _VLAN_ACTION.pack(_PUSH_VLAN, 8, _TAGGED)
        case PopVlan():
            return _VLAN_ACTION.pack(_POP_VLAN, 8, 0)
        case Track(zone, table, commit, actions):
            nested = encode_actions(actions)
            register = int.from_bytes(fields.by_name(zone).header, "big") if isinstance(zone, str) else 0
            number = _REGISTER_ZONE if isinstance(zone, str) else zone
            flags, onward = _CT_COMMIT if commit else 0, _CT_STAYS if table is None else table
            length = _CT_ACTION.size + len(nested)
            return _CT_ACTION.pack(_VENDOR_ACTION, length, _NICIRA, _CT, flags, register, number, onward, 0) + nested
        case ToController(meter_id, max_len):
            return _CONTROLLER_ACTION.pack(
                *(_VENDOR_ACTION, _CONTROLLER_ACTION.size, _NICIRA, _CONTROLLER),
                *(_MAX_LEN, 8, max_len, _METERED, 8, meter_id),
            )
    raise ValueError(f"cannot be written: {action}")


def flows_known(
    body: bytes, known: Mapping[bytes, Flow], same: Callable[[Flow], Flow] = lambda flow: flow
) -> Iterator[tuple[bytes, Flow]]:
    """The flows in one multipart reply, each with a digest of what is the same as long as it is. What is known is not
    decoded again: most of a table is as it was when it was last looked at. same: what is taken in place of one that is."""
    offset = _MULTIPART.size
    while offset < len(body):
        (length,) = _LENGTH.unpack_from(body, offset)
        position = offset + _FLOW_ENTRY.size
        _, match_length = _TYPE_LENGTH.unpack_from(body, position)
        stats = position + (match_length + 7) // 8 * 8
        _, stats_length = _TYPE_LENGTH.unpack_from(body, stats)
        lasting = hashlib.blake2b(body[offset:stats], digest_size=16)
        lasting.update(body[stats + (stats_length + 7) // 8 * 8 : offset + length])
        digest = lasting.digest()
        flow = known.get(digest)
        if flow is None:
            flow = same(next(decode_flows(body[: _MULTIPART.size] + body[offset : offset + length])).flow)
        yield digest, flow
        offset += max(length, 8)


def decode_flows(body: bytes, idle: bool = True) -> Iterator[FlowStats]:
    """The flows in one multipart reply; without idle, only those that have seen a packet."""
    offset = _MULTIPART.size
    while offset < len(body):
        length, table, priority, _idle, _hard, _flags, _importance, cookie = _FLOW_ENTRY.unpack_from(body, offset)
        end, position = offset + length, offset + _FLOW_ENTRY.size
        matched, (_, match_length) = position + 4, _TYPE_LENGTH.unpack_from(body, position)
        matched_end = position + match_length
        position += (match_length + 7) // 8 * 8
        _, stats_length = _TYPE_LENGTH.unpack_from(body, position)
        packets, octets = _decode_counters(body, position + 4, position + stats_length)
        position += (stats_length + 7) // 8 * 8
        if packets or idle:
            actions = decode_instructions(body[position:end])
            yield FlowStats(Flow(table, priority, decode_match(body[matched:matched_end]), actions, cookie), packets, octets)
        offset += max(length, 8)


def decode_ports(body: bytes) -> Iterator[tuple[int, PortStats]]:
    """(number of the port, its counters) for the ports in one multipart reply."""
    offset = _MULTIPART.size
    while offset < len(body):
        length, number, rx_packets, tx_packets, rx_bytes, tx_bytes = _PORT_ENTRY.unpack_from(body, offset)
        yield number, PortStats(rx_packets, tx_packets, rx_bytes, tx_bytes)
        offset += max(length, 8)


def decode_groups(body: bytes) -> Iterator[Group]:
    """The groups in one multipart reply. One of a type other than `all` gets an Opaque bucket: it equals none of ours."""
    offset = _MULTIPART.size
    while offset < len(body):
        length, kind, group_id, buckets_length = _GROUP_ENTRY.unpack_from(body, offset)
        position = offset + _GROUP_ENTRY.size
        buckets: list[tuple[Action, ...]] = [(Opaque(bytes([kind])),)] if kind != _ALL else []
        end = position + buckets_length
        while position < end:
            bucket_length, actions_length, _number = _BUCKET.unpack_from(body, position)
            start = position + _BUCKET.size
            buckets.append(decode_actions(body[start : start + actions_length]))
            position += max(bucket_length, 8)
        yield Group(group_id, tuple(buckets))
        offset += max(length, 8)


def decode_meters(body: bytes) -> Iterator[Meter]:
    """The meters in one multipart reply. One of another kind than ours lets nothing through: it equals none of ours."""
    offset = _MULTIPART.size
    while offset < len(body):
        length, flags, meter_id = _METER.unpack_from(body, offset)
        rate = burst = 0
        if (flags, length) == (_PACKETS_AND_BURST, _METER.size + _BAND.size):
            kind, _, limit, at_once = _BAND.unpack_from(body, offset + _METER.size)
            rate, burst = (limit, at_once) if kind == _BAND_DROPS else (0, 0)
        yield Meter(meter_id, rate, burst)
        offset += max(length, 8)


def packet_cookie(body: bytes) -> int:
    """The cookie of the flow that has sent a packet here."""
    cookie: int = _PACKET_IN.unpack_from(body)[1]
    return cookie


def cut_packet(body: bytes, most: int) -> bytes:
    """The same message with so many bytes of the packet at most: Open vSwitch 3.1 sends all, whatever max_len says."""
    _, match_length = _TYPE_LENGTH.unpack_from(body, _PACKET_IN.size)
    return body[: _PACKET_IN.size + (match_length + 7) // 8 * 8 + 2 + most]


def decode_packet(body: bytes) -> PacketIn:
    """A packet that a flow has sent here."""
    length, cookie = _PACKET_IN.unpack_from(body)
    start = _PACKET_IN.size
    _, match_length = _TYPE_LENGTH.unpack_from(body, start)
    matched = decode_match(body[start + 4 : start + match_length])
    data = body[start + (match_length + 7) // 8 * 8 + 2 :]
    return PacketIn(cookie, {name: value for name, value, _ in matched}, data, length)


def decode_match(data: bytes) -> Match:
    """The fields of an ofp_match, without its head and padding, in the form of the model."""
    result: list[FieldMatch] = []
    offset = 0
    while offset < len(data):
        field, value, mask, offset = _decode_field(data, offset)
        if field.oxm_class == fields.PACKET_REGISTERS:
            result += _register_pair(field.number, value, mask)
        elif (field.oxm_class, field.number) != _UNMATCHED or value:
            result.append((field.name, value, mask))
    return tuple(sorted(result))


def _decode_field(data: bytes, offset: int) -> tuple[fields.Field, int, int | None, int]:
    """Field, value, mask and the offset of what follows."""
    oxm_class, rest, length = unpack_from("!HBB", data, offset)
    start, end = offset + 4, offset + 4 + length
    vendor = None
    if oxm_class == fields.EXPERIMENTER:
        vendor = int.from_bytes(data[start : start + 4], "big")
        start += 4
    if not rest & 1:
        field = fields.by_header(oxm_class, rest >> 1, end - start, vendor)
        return field, int.from_bytes(data[start:end], "big"), None, end
    middle = (start + end) // 2
    field = fields.by_header(oxm_class, rest >> 1, middle - start, vendor)
    return field, int.from_bytes(data[start:middle], "big"), int.from_bytes(data[middle:end], "big"), end


def _register_pair(number: int, value: int, mask: int | None) -> Iterator[FieldMatch]:
    """OXM_OF_PKT_REGn as reg2n (its upper half) and reg2n+1."""
    word = (1 << 32) - 1
    for register, shift in ((2 * number, 32), (2 * number + 1, 0)):
        part = word if mask is None else mask >> shift & word
        if part:
            yield (f"reg{register}", value >> shift & word, None if part == word else part)


@lru_cache(maxsize=1024)
def decode_instructions(data: bytes) -> tuple[Action, ...]:
    """The actions of apply-actions; any other instruction is one Opaque."""
    result: list[Action] = []
    offset = 0
    while offset < len(data):
        kind, length = _TYPE_LENGTH.unpack_from(data, offset)
        if kind == _APPLY_ACTIONS:
            result += decode_actions(data[offset + 8 : offset + length])
        else:
            result.append(Opaque(data[offset : offset + length]))
        offset += max(length, 8)
    return tuple(result)


def decode_actions(data: bytes) -> tuple[Action, ...]:
    """A list of actions; what we do not know is Opaque."""
    result: list[Action] = []
    offset = 0
    while offset < len(data):
        _, length = _TYPE_LENGTH.unpack_from(data, offset)
        length = max(length, 8)
        result.append(_decode_action(data[offset : offset + length]))
        offset += length
    return tuple(result)


def _decode_action(data: bytes) -> Action:
    kind, _ = _TYPE_LENGTH.unpack_from(data)
    if kind == _OUTPUT:
        port: int = unpack_from("!I", data, 4)[0]
        return InPort() if port == PORT_IN_PORT else Output(port)
    if kind == _GROUP:
        return ToGroup(unpack_from("!I", data, 4)[0])
    if kind in (_PUSH_VLAN, _POP_VLAN) and len(data) == _VLAN_ACTION.size:
        tag: int = _VLAN_ACTION.unpack(data)[2]
        if (kind, tag) in ((_PUSH_VLAN, _TAGGED), (_POP_VLAN, 0)):
            return PushVlan() if kind == _PUSH_VLAN else PopVlan()
    if kind == _SET_FIELD:
        field, value, mask, _ = _decode_field(data, 4)
        return SetField(field.name, value, mask)
    if kind == _COPY_FIELD:
        _, _, bits, source_offset, target_offset = _COPY_ACTION.unpack_from(data)
        source, following = _decode_id(data, _COPY_ACTION.size)
        target, _ = _decode_id(data, following)
        return Move(source, target, bits, source_offset, target_offset)
    if kind == _VENDOR_ACTION and len(data) == _RESUBMIT_ACTION.size:
        _, _, vendor, subtype, port, table = _RESUBMIT_ACTION.unpack(data)
        if (vendor, subtype, port) == (_NICIRA, _RESUBMIT_TABLE, _PORT_IN_PORT_16):
            return Resubmit(table)
    if kind == _VENDOR_ACTION and len(data) == _CONTROLLER_ACTION.size:
        _, _, *form, first, first_length, max_len, second, second_length, meter_id = _CONTROLLER_ACTION.unpack(data)
        if (*form, first, first_length, second, second_length) == (_NICIRA, _CONTROLLER, _MAX_LEN, 8, _METERED, 8):
            return ToController(meter_id, max_len)
    if kind == _VENDOR_ACTION and len(data) >= _CT_ACTION.size:
        return _decode_ct(data)
    return Opaque(data)


def _decode_ct(data: bytes) -> Action:
    """A ct action of the forms that we write; any other action is Opaque."""
    _, _, vendor, subtype, flags, register, number, table, helper = _CT_ACTION.unpack_from(data)
    if (vendor, subtype, helper) != (_NICIRA, _CT, 0) or flags & ~_CT_COMMIT:
        return Opaque(data)
    zone: int | str = number
    if register:
        if number != _REGISTER_ZONE:
            return Opaque(data)
        zone, _ = _decode_id(register.to_bytes(4, "big"), 0)
    nested = decode_actions(data[_CT_ACTION.size :])
    known = tuple(action for action in nested if isinstance(action, SetField | Move))
    if known != nested:
        return Opaque(data)
    return Track(zone, None if table == _CT_STAYS else table, bool(flags), known)


def _decode_id(data: bytes, offset: int) -> tuple[str, int]:
    """The name of the field whose header stands there without a value, and the offset of what follows."""
    oxm_class, rest, length = unpack_from("!HBB", data, offset)
    if oxm_class != fields.EXPERIMENTER:
        return fields.by_header(oxm_class, rest >> 1, length, None).name, offset + 4
    vendor: int = unpack_from("!I", data, offset + 4)[0]
    return fields.by_header(oxm_class, rest >> 1, length - 4, vendor).name, offset + 8


def _decode_counters(data: bytes, offset: int, end: int) -> tuple[int, int]:
    """Packets and bytes out of the OXS list (section 7.2.4.1)."""
    packets = octets = 0
    while offset < end:
        header: int = unpack_from("!I", data, offset)[0]
        if header == _OXS_PACKETS:
            packets = unpack_from("!Q", data, offset + 4)[0]
        elif header == _OXS_BYTES:
            octets = unpack_from("!Q", data, offset + 4)[0]
        offset += 4 + (header & 0xFF)
    return packets, octets
