"""Items as people read them: in the words of ovs-ofctl(8) where there are such, and how two of them differ."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields, is_dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from agent.model.flow import (
    FIELD_BITS,
    FieldMatch,
    Flow,
    Group,
    Meter,
    Move,
    Output,
    PopVlan,
    PushVlan,
    Resubmit,
    SetField,
    ToController,
    ToGroup,
)
from agent.model.item import Item

_LONGEST = 400  # characters of a difference

_ADDRESSES = {"tun_src", "tun_dst", "ip_src", "ip_dst", "arp_spa", "arp_tpa", "ct_nw_src", "ct_nw_dst"}


def name(item: Item) -> str:
    """Which object of the host an item stands for, in one line."""
    match item:
        case Flow(table, priority, matched):
            return ",".join([f"table={table}", f"priority={priority}", *map(_field, matched)])
        case Group(group_id):
            return f"group_id={group_id}"
        case Meter(meter_id):
            return f"meter={meter_id}"
    return " ".join(str(part) for part in item.key[1:])


def contents(item: Item) -> str:
    """What an object does, where its name does not say it."""
    match item:
        case Flow(_, _, _, actions, cookie):
            return f"cookie={cookie:#x} actions={_actions(actions)}"
        case Group(_, buckets):
            return f"buckets={_shown('buckets', buckets)}"
        case Meter(_, rate, burst):
            return f"rate={rate} burst={burst}"
    return ""


def match_of(flow: Flow) -> str:
    """What a flow asks for."""
    return ",".join(map(_field, flow.match))


def actions_of(flow: Flow) -> tuple[str, ...]:
    """What a flow does, action by action."""
    return tuple(map(_action, flow.actions))


def difference(wanted: Item | None, found: Item | None) -> str:
    """What is wrong with what was found, in one line."""
    if found is None:
        return "it was missing"
    if wanted is None:
        return "it bears our mark, and nothing here asks for it"
    if not is_dataclass(wanted) or type(wanted) is not type(found):
        return "it was another object"
    told = []
    for field in fields(wanted):
        have, want = getattr(found, field.name), getattr(wanted, field.name)
        if field.name == "wrong" and have:
            told.insert(0, str(have))
        elif have != want:
            told.append(f"{field.name} was {_shown(field.name, have)}, must be {_shown(field.name, want)}")
    text = "; ".join(told)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _shown(field: str, value: Any) -> str:
    if field == "cookie":
        return f"{value:#x}"
    if field == "actions":
        return _actions(value)
    if field == "buckets":
        return " | ".join(map(_actions, value)) or "none"
    if isinstance(value, tuple):
        return " ".join("=".join(map(str, entry)) if isinstance(entry, tuple) else str(entry) for entry in value) or "none"
    text = str(value).strip().splitlines()
    return "empty" if not text else text[0] if len(text) == 1 else f"{len(text)} lines"


def _actions(actions: tuple[Hashable, ...]) -> str:
    return ",".join(map(_action, actions)) or "drop"


def _action(action: Hashable) -> str:
    match action:
        case Output(port):
            return f"output:{port}"
        case SetField(field, value, mask):
            return f"set_field:{shown(field, value, mask)}->{field}"
        case Move(source, target):
            return f"move:{source}->{target}"
        case Resubmit(table):
            return f"resubmit(,{table})"
        case ToGroup(group_id):
            return f"group:{group_id}"
        case PushVlan():
            return "push_vlan:0x8100"
        case PopVlan():
            return "pop_vlan"
        case ToController(meter_id, max_len):
            return f"controller(max_len={max_len},meter_id={meter_id})"
    return str(action)


def _field(matched: FieldMatch) -> str:
    return f"{matched[0]}={shown(*matched)}"


def shown(field: str, value: int, mask: int | None) -> str:
    """A value of a field, and its mask."""
    return _number(field, value) if mask is None else f"{_number(field, value)}/{_number(field, mask)}"


def _number(field: str, value: int) -> str:
    bits = FIELD_BITS.get(field, 0)
    if field in _ADDRESSES:
        return str(IPv4Address(value))
    if bits == 128 and not field.startswith("xxreg"):
        return str(IPv6Address(value))
    if bits == 48:
        return value.to_bytes(6, "big").hex(":")
    return str(value) if field == "in_port" else hex(value)
