"""Text of the command line <-> values of fields, in both directions.

Nothing here asks the API: a field that refers to another object keeps the text it was given, id or name. Text that
cannot be a value raises ValueError with a sentence that says what would be accepted.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from cli.kinds import is_map, option_name

_LIMITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_UNITS_MS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
INFINITE = "infinite"


def parse(field: FieldDescriptor, text: str) -> Any:
    """One value of a field (of its entries, where it is repeated). A map's entry comes as (key, value)."""
    if field.message_type is not None and is_map(field):
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise ValueError(f"'{text}' is not KEY=VALUE")
        entry = field.message_type.fields_by_name
        return parse(entry["key"], key), parse(entry["value"], value)
    if field.message_type is not None:
        return _parse_message(field.message_type, text)
    if field.enum_type is not None:
        return _parse_enum(field.enum_type, text)
    if field.cpp_type in _LIMITS:
        return _parse_int(text, *_LIMITS[field.cpp_type])
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _parse_bool(text)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return float(text)
    return text


def assign(message: Message, field: FieldDescriptor, value: Any) -> None:
    """Set a field to a parsed value; to a sequence of them where it is repeated."""
    if is_map(field):
        getattr(message, field.name).update(dict(value))
    elif field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def text(field: FieldDescriptor, value: Any) -> str:
    """A value of a message as people read it, repeated ones joined by commas; a short form reads as it is typed."""
    if field.message_type is not None and is_map(field):
        entry = field.message_type.fields_by_name["value"]
        return ", ".join(f"{key}={_one(entry, value[key])}" for key in sorted(value))
    if field.is_repeated:
        return ", ".join(_one(field, entry) for entry in value)
    return _one(field, value)


def choices(enum: EnumDescriptor) -> list[str]:
    """What an enum's option accepts: lower case, without the prefix, without UNSPECIFIED."""
    return [_short(enum, value.name) for value in enum.values if value.number != 0]


def milliseconds(text: str) -> int:
    """`24h`, `1h30m`, `120s`, `500ms`, `90` (seconds); `-1s` and `infinite` give -1000."""
    if text in ("-1s", "-1", INFINITE):
        return -1000
    bare = text + "s" if re.fullmatch(r"\d+(\.\d+)?", text) else text
    found = _QUANTITY.findall(bare)
    if not found or "".join(number + unit for number, unit in found) != bare:
        raise ValueError(f"'{text}' is not a duration such as 24h, 1h30m, 120s, 500ms or -1s (infinite)")
    return round(sum(float(number) * _UNITS_MS[unit] for number, unit in found))


def duration_text(milli: int) -> str:
    """The shortest text that `milliseconds` reads as the same duration."""
    if milli < 0:
        return INFINITE
    parts = []
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        number, milli = divmod(milli, size)
        if number:
            parts.append(f"{number}{unit}")
    return "".join(parts) or "0s"


def short_form(message: Descriptor) -> str:
    """How a nested message is typed, for help: its short form if it has one, and the one that always works."""
    long = ",".join(f"{_alias(field)}=..." for field in message.fields)
    return f"{_SHORT[message.name][0]} or {long}" if message.name in _SHORT else long


def _short(enum: EnumDescriptor, name: str) -> str:
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return name.removeprefix(prefix).lower()


def _parse_enum(enum: EnumDescriptor, text: str) -> int:
    wanted = text.lower().replace("-", "_")
    for value in enum.values:
        if value.number != 0 and wanted in (_short(enum, value.name), value.name.lower()):
            return value.number
    raise ValueError(f"'{text}' is not one of {', '.join(choices(enum))}")


def _parse_int(text: str, low: int, high: int) -> int:
    try:
        number = int(text)
    except ValueError:
        raise ValueError(f"'{text}' is not a whole number") from None
    if not low <= number <= high:
        raise ValueError(f"{number} is not between {low} and {high}")
    return number


def _parse_bool(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"'{text}' is neither true nor false")
    return text.lower() in _TRUE


def _alias(field: FieldDescriptor) -> str:
    return field.name.removesuffix("_id")


def _parse_message(descriptor: Descriptor, text: str) -> Message:
    message: Message = GetMessageClass(descriptor)()
    if isinstance(message, Duration):
        milli = milliseconds(text)
        # Towards zero in both parts: seconds and nanos of a Duration must not differ in sign.
        message.seconds, message.nanos = int(milli / 1000), (abs(milli) % 1000) * 1_000_000 * (-1 if milli < 0 else 1)
        return message
    if isinstance(message, Timestamp):
        try:
            message.FromJsonString(text)
        except ValueError:
            raise ValueError(f"'{text}' is not a time such as 2027-01-31T12:00:00Z") from None
        return message
    for name, value in _pairs(descriptor, text).items():
        field = descriptor.fields_by_name[name]
        parsed = [parse(field, entry) for entry in value]
        if len(parsed) > 1 and not field.is_repeated:
            raise ValueError(f"'{text}' gives {name} more than once")
        assign(message, field, parsed if field.is_repeated else parsed[0])
    return message


def _pairs(descriptor: Descriptor, text: str) -> dict[str, list[str]]:
    """Sub-field -> its texts. A comma that no known key follows belongs to the value before it."""
    keys = {key: field.name for field in descriptor.fields for key in (field.name, _alias(field), option_name(field))}
    pattern = "|".join(re.escape(key) for key in sorted(keys, key=len, reverse=True))
    before, *rest = re.split(rf"(?:^|,)({pattern})=", text)
    if rest and not before:
        found: dict[str, list[str]] = {}
        for key, value in zip(rest[::2], rest[1::2], strict=True):
            found.setdefault(keys[key], []).append(value)
        return found
    if descriptor.name in _SHORT:
        short = _SHORT[descriptor.name][1](text)
        if short:
            return {key: [value] for key, value in short.items()}
    raise ValueError(f"'{text}' is not {short_form(descriptor)}")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _fixed_ip(text: str) -> dict[str, str]:
    return {"ip_address" if _is_address(text) else "subnet_id": text} if "=" not in text else {}


def _split(separator: str, first: str, second: str) -> Callable[[str], dict[str, str]]:
    def split(text: str) -> dict[str, str]:
        left, found, right = text.partition(separator)
        return {first: left, second: right} if found and left and right else {}

    return split


def _address_pair(text: str) -> dict[str, str]:
    address, _, mac = text.partition(",")
    if not address or "=" in text:
        return {}
    return {"ip_address": address, "mac_address": mac} if mac else {"ip_address": address}


OPTION6 = "option6:"  # begins an option of DHCPv6, as in dnsmasq's configuration


def _dhcp_option(text: str) -> dict[str, str]:
    found = _split("=", "name", "value")(text)
    if found.get("name", "").startswith(OPTION6):
        return {**found, "name": found["name"].removeprefix(OPTION6), "ip_version": "ipv6"}
    return found


# Message -> how its short form reads, and the reading of it: sub-field -> text, nothing when it is not the short form.
_SHORT: dict[str, tuple[str, Callable[[str], dict[str, str]]]] = {
    "FixedIp": ("ADDRESS or SUBNET", _fixed_ip),
    "IpRange": ("START-END", _split("-", "start", "end")),
    "HostRoute": ("DESTINATION=NEXTHOP", _split("=", "destination", "nexthop")),
    "AddressPair": ("ADDRESS[,MAC]", _address_pair),
    "DhcpOption": ("NAME=VALUE or option6:NAME=VALUE", _dhcp_option),
}


def _one(field: FieldDescriptor, value: Any) -> str:
    if field.message_type is not None:
        return _message_text(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        if known is None:
            return str(value)
        return _short(field.enum_type, known.name) if value else ""
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "yes" if value else "no"
    return str(value)


def _message_text(value: Any) -> str:
    match value.DESCRIPTOR.name:
        case "Duration":
            return duration_text(value.seconds * 1000 + value.nanos // 1_000_000)
        case "Timestamp":
            return str(value.ToJsonString())
        case "FixedIp":
            return str(value.ip_address or value.subnet_id)
        case "IpRange":
            return f"{value.start}-{value.end}"
        case "HostRoute":
            return f"{value.destination}={value.nexthop}"
        case "AddressPair":
            return f"{value.ip_address},{value.mac_address}".rstrip(",")
        case "DhcpOption":
            version = text(value.DESCRIPTOR.fields_by_name["ip_version"], value.ip_version)
            return f"{OPTION6 if version == 'ipv6' else ''}{value.name}={value.value}"
        case "DnsAssignment":
            return f"{value.fqdn} {value.ip_address}"
        case "PortCounters":
            drops = text(value.DESCRIPTOR.fields_by_name["drops"], value.drops)
            said = f"received {value.rx_packets} packets ({value.rx_bytes} bytes), sent {value.tx_packets} ({value.tx_bytes})"
            return f"{said}, dropped {drops}" if drops else said
        case "RuleCounters":
            last = f", last at {value.last_hit_time.ToJsonString()}" if value.HasField("last_hit_time") else ""
            return f"{value.packets} packets ({value.bytes} bytes){last}"
        case "Binding":
            return str(value.node) if value.active or value.interface else f"{value.node} (asked)"
        case "Condition":
            stated = f"{value.type}={'yes' if value.status else 'no'}"
            return stated if value.status or not value.message else f"{stated}: {value.message} [{value.reason}]"
        case "Realization":
            behind = ", ".join(lag.node for lag in value.lagging)
            reached = f"{value.realized_revision} of {value.desired_revision}"
            return f"{reached}, behind: {behind}" if behind else reached
        case _:
            return ",".join(f"{field.name}={text(field, sub)}" for field, sub in value.ListFields())
