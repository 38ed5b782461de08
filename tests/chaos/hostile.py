"""Requests that no friend would send: what is legal but absurd, what is nearly right, and what is no message at all.

Owns: values for every type of field (`Absurd.message` walks any descriptor), damage done to good requests, and bodies that are
broken on the wire. Everything follows from one seeded source of chance. Nothing here calls anybody.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from controlplane.registry import KINDS, OPERATIONS, rules
from kumihimo.v1 import operations_pb2

LARGEST = 8 << 20  # bytes of a request that the server reads
LONG = 1 << 20
DEEPEST = 4  # messages in messages that are filled

SERVICES: tuple[Any, ...] = (*(kind.service for kind in KINDS.values()), OPERATIONS)


@dataclass(frozen=True)
class Method:
    """One method of the API. path: as HTTP/2 names it."""

    path: str
    input: Any
    output: Any
    streams: bool


METHODS = [
    Method(f"/{service.full_name}/{method.name}", method.input_type, method.output_type, method.server_streaming)
    for service in SERVICES
    for method in service.methods
]

TEXTS = [
    "",
    " ",
    "*",
    "\x00",
    "a\x00b",
    'x\nlevel=error event=defect exc="Traceback"',
    "\r\n\r\n",
    "../../etc/passwd",
    "a/b",
    ".change",
    ".",
    "%2F%00%",
    "%s%n{0}{}",
    "é" * 255,
    "𝒳" * 300,
    "\u202egnp.exe",
    "\ufffe\U0010ffff",
    "a" * 64,
    "a" * 65,
    "a" * 5000,
    "\U0001f600" * 2000,
    "-1",
    "9" * 400,
    "9" * 5000,
    "NaN",
    "true",
    "null",
    "0192f0c1-7c1e-7b3a-9d4e-5f60718293a4",
    "0192F0C1-7C1E-7B3A-9D4E-5F60718293A4",
    "{0192f0c1-7c1e-7b3a-9d4e-5f60718293a4}",
    "urn:uuid:0192f0c1-7c1e-7b3a-9d4e-5f60718293a4",
    str(IPv4Address(0)),
    "255.255.255.255",
    "010.0.0.1",
    "10.0.0.1\n",
    "::",
    "::ffff:10.0.0.1",
    "fe80::1%eth0",
    "fe80::1%" + "z" * 3000,
    "0.0.0.0/0",
    "10.0.0.0/33",
    "10.0.0.0/-1",
    "10.0.0.0/255.255.255.0",
    "10.0.0.0/" + "0" * 4000 + "8",
    "10.0.0.0/٢٤",
    "::/0",
    "::/129",
    "fe80::%1/64",
    "10.0.0.0/31",
    "10.0.0.0/32",
    "10.0.0.0/8",
    "fd00::/64",
    "fa:16:3e:00:00:01",
    "FA-16-3E-00-00-01",
    "ff:ff:ff:ff:ff:ff",
    "00:00:00:00:00:00",
    "fa:16-3e:00:00:01",
    "a." * 127 + "a",
    "xn--" + "a" * 60,
    "İ",  # longer in lower case
]
FILTERS = [
    "(" * 19 + 'name = "a"' + ")" * 19,
    "(" * 5000,
    "(" * 2000 + "name = a" + ")" * 2000,
    "NOT " * 1000 + "name = a",
    "NOT " * 400 + "name = a",
    'name = "a" OR ' * 280 + "name = a",
    "name = " + "a" * LONG,
    'name = "' + "\\" * 4001,
    'name in_cidr "10.0.0.0/' + "0" * 4000 + '8"',
    "id in_cidr 0.0.0.0/0",
    "mtu = " + "9" * 4000,
    "mtu > ١٢٣",
    "mtu < 1e400",
    "create_time < 0001-01-01T00:00:00+23:59",
    "create_time >= 9999-12-31T23:59:59-23:59",
    "create_time = 2026-W01",
    "create_time : *",
    "tags : x",
    "tags < x",
    "tags = x*",
    "state = \x00",
    "state != ACTIVE AND NOT state = 99",
    "realization.lagging.node : x",
    "realization.lagging : *",
    "realization = x",
    "fixed_ips.subnet_id.x = 1",
    "fixed_ips.ip_address in_cidr ::/0",
    "limits.ports > 1",
    "name" + ".name" * 900 + " = a",
    "deletion_protection < true",
    "name : \U0010ffff",
    "= = =",
    ") (",
    '"',
    "name = a AND",
    "!",
]
ORDERS = [
    "name",
    "name desc, id",
    "create_time desc",
    "name," * 300 + "id",
    "name," * 20000 + "id",
    "tags",
    "state",
    "realization",
    "name desc asc",
    ",,,",
    "\x00",
    "admin_state_up",
    "id," * 3,
    "limits",
]
PATHS = ["*", "name", "id", "nothing", "a.b.c", "", "\x00", "name.name", "tags", "etag", "state", "x" * 5000, "*.*", "revision"]
DURATIONS = [(0, 0), (1, 0), (-1, 0), (315_576_000_001, 0), (1 << 62, 0), (-(1 << 63), -(1 << 31)), (1, -1), (0, (1 << 31) - 1)]


def _token(place: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode()


TOKENS: list[str] = [
    "x",
    "====",
    "é",
    _token([]),
    _token({}),
    _token(None),
    _token([1]),
    _token([None, "a"]),
    _token(["\ud800"]),
    _token(["a", "b"]),
    _token([{}, "b"]),
    _token([float("nan"), "b"]),
    _token([1e308, "b"]),
    _token(["a" * 100_000]),
    _token([0] * 100_000),
    base64.urlsafe_b64encode(b"[" * 100_000).decode(),
    base64.urlsafe_b64encode(b"[" + b"9" * 5000 + b"]").decode(),
    base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    base64.urlsafe_b64encode(b"12 /kumihimo/").decode(),
    base64.urlsafe_b64encode(b"-5 x").decode(),
    base64.urlsafe_b64encode(b"9223372036854775808 x").decode(),
    base64.urlsafe_b64encode(b"9" * 5000 + b" x").decode(),
]
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
_SPECIAL = {"filter": FILTERS, "order_by": ORDERS, "page_token": TOKENS}


class Absurd:
    """Makes hostile bodies. known: ids of objects that were made on the way; they are what reaches deep."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._room = LARGEST  # bytes that repetitions may still add to a body: unbounded, they multiply to gigabytes
        self.known: dict[str, list[str]] = {name: [] for name in KINDS}

    def body(self, method: Method) -> bytes:
        """One request of a method, in whatever state."""
        self._room = LARGEST
        turn = self._chance.random()
        if turn < 0.25:
            return self.serialized(self.message(method.input))
        if turn < 0.4:
            return self.serialized(self.good(method))
        if turn < 0.7:
            return self.serialized(self.bent(self.good(method)))
        if turn < 0.85:
            return self.damaged(self.serialized(self.good(method)))
        return self._chance.choice(BROKEN)(self._chance)

    @staticmethod
    def serialized(message: Any) -> bytes:
        return bytes(message.SerializeToString())

    # -- legal and absurd ---------------------------------------------------------------------------------------------

    def message(self, descriptor: Any, depth: int = 0) -> Any:
        """A message of any type with nasty values."""
        message = GetMessageClass(descriptor)()
        share = self._chance.choice((0.1, 0.3, 0.7)) if depth else self._chance.choice((0.3, 0.6, 1.0))
        if descriptor.full_name == "google.protobuf.Any":
            return self.any(depth)
        for field in descriptor.fields:
            if self._chance.random() < share:
                self._set(message, field, depth)
        return message

    def any(self, depth: int) -> AnyMessage:
        """A type url and a value that may not have to do with each other."""
        kind = KINDS[self._chance.choice(list(KINDS))]
        urls = [f"type.googleapis.com/kumihimo.v1.{kind.name}"] * 6
        urls += ["", "/", kind.name, "x" * 5000, "type.googleapis.com/google.protobuf.Any", "a.\x00Port", "Network/"]
        value = self.serialized(self.message(kind.descriptor, depth + 1))
        if self._chance.random() < 0.2:
            value = self._chance.choice(BROKEN)(self._chance)
        return AnyMessage(type_url=self._chance.choice(urls), value=value)

    def _set(self, message: Any, field: Any, depth: int) -> None:
        try:
            if field.is_repeated:
                self._repeat(message, field, depth)
            elif field.message_type is None:
                setattr(message, field.name, self._scalar(field))
            elif depth < DEEPEST:
                getattr(message, field.name).CopyFrom(self._inner(field.message_type, depth))
        except ValueError:
            return  # text that protobuf itself does not take

    def _repeat(self, message: Any, field: Any, depth: int) -> None:
        number = self._chance.choice((1, 1, 2, 3, 17, 65, 501 if depth else 3, 5000 if self._chance.random() < 0.02 else 1))
        items = getattr(message, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            for _ in range(number):
                items[self._scalar(key)] = self._scalar(value)
        elif entry is None:
            items.extend(self._scalar(field) for _ in range(number))
        elif depth < DEEPEST:
            few = [self._inner(entry, depth) for _ in range(min(number, 4))]
            size = sum(item.ByteSize() for item in few) // len(few) + 1
            number = min(number, self._room // size)
            self._room -= number * size
            items.extend(few[turn % len(few)] for turn in range(number))

    def _inner(self, descriptor: Any, depth: int) -> Any:
        found = GetMessageClass(descriptor)()
        match descriptor.full_name:
            case "google.protobuf.Duration" | "google.protobuf.Timestamp":
                found.seconds, found.nanos = self._chance.choice(DURATIONS)
            case "google.protobuf.FieldMask":
                found.paths.extend(self._chance.choices(PATHS, k=self._chance.choice((1, 2, 5, 2000))))
            case _:
                found = self.message(descriptor, depth + 1)
        return found

    def _scalar(self, field: Any) -> Any:
        chance = self._chance
        if field.enum_type is not None:
            return chance.choice((0, 1, 2, 3, 4, 6, 99, -1, (1 << 31) - 1, -(1 << 31)))
        if field.cpp_type in _BITS:
            low, high = _BITS[field.cpp_type]
            return chance.choice((low, high, 0, 1, max(low, -1), 2, 1500, 4095, chance.randint(low, high)))
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        if field.cpp_type in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
            return chance.choice((float("nan"), float("inf"), -0.0, 1e308, 5e-324))
        if field.type == FieldDescriptor.TYPE_BYTES:
            return chance.randbytes(chance.choice((0, 1, 100, 5000)))
        return self._text(field)

    def _text(self, field: Any) -> str:
        chance = self._chance
        if field.name in _SPECIAL and chance.random() < 0.9:
            return chance.choice(_SPECIAL[field.name])
        kind = rules(field).reference or chance.choice(list(KINDS))
        if (field.name == "id" or rules(field).reference) and self.known.get(kind) and chance.random() < 0.6:
            return chance.choice(self.known[kind])
        if chance.random() < 0.002:
            return chance.choice(("a", "\U0001f600")) * (LONG // 4)
        return chance.choice(TEXTS)

    # -- nearly right -------------------------------------------------------------------------------------------------

    def good(self, method: Method) -> Any:
        """A request as a friend might send it."""
        service, _, verb = method.path[1:].rpartition("/")
        if service.endswith(".Operations"):
            return self._operation(verb)
        kind = next(kind for kind in KINDS.values() if kind.service.full_name == service)
        known = self.known[kind.name]
        request = GetMessageClass(method.input)()
        match verb:
            case "Create" | "Update":
                request.resource.CopyFrom(self.resource(kind.name))
                if verb == "Update" and known:
                    request.resource.id = self._chance.choice(known)
            case "Get" | "Delete":
                request.id = self._chance.choice(known) if known else ""
            case "ReplaceRules":
                request.id = self._chance.choice(known) if known else ""
                for _ in range(self._chance.choice((0, 1, 5, 50))):
                    request.rules.add().CopyFrom(self.resource("SecurityGroupRule"))
            case "List":
                request.page_size = self._chance.choice((0, 1, 10, 1000))
                request.filter = self._chance.choice(("", 'name = "x"', "name : a AND NOT tags : x"))
                request.order_by = self._chance.choice(("", "name desc"))
        return request

    def bent(self, message: Any) -> Any:
        """A good request with one or two fields, somewhere in it, of which nobody could make sense."""
        for _ in range(self._chance.choice((1, 1, 2))):
            inner, depth = message, 0
            while True:
                within = [
                    item
                    for field, value in inner.ListFields()
                    if field.message_type is not None and not field.message_type.GetOptions().map_entry
                    for item in (value if field.is_repeated else [value])
                ]
                if not within or self._chance.random() < 0.2:
                    break
                inner, depth = self._chance.choice(within), depth + 1
            if isinstance(inner, AnyMessage) and inner.type_url.rpartition(".")[2] in KINDS:
                with contextlib.suppress(DecodeError):  # it may have been broken in the turn before
                    packed = KINDS[inner.type_url.rpartition(".")[2]].new(inner.value)
                    inner.value = self.serialized(self.bent(packed))
            else:
                field = self._chance.choice(inner.DESCRIPTOR.fields)
                inner.ClearField(field.name)
                self._set(inner, field, depth)
        return message

    def resource(self, kind: str) -> Any:
        chance = self._chance
        message = KINDS[kind].message(name=f"h{chance.randrange(1000)}")
        match kind:
            case "Subnet":
                message.cidr = f"10.{chance.randrange(256)}.{chance.randrange(256)}.0/24"
            case "Node" | "Quota":
                message.id = f"h{chance.randrange(40)}"
            case "SecurityGroupRule":
                message.direction = chance.choice((1, 2))
                message.port_range_min = message.port_range_max = chance.randrange(1, 65536)
                message.protocol = chance.choice(("tcp", "17", "sctp"))
        parent = KINDS[kind].parent
        if parent and self.known[KINDS[kind].parent_kind]:
            setattr(message, parent, chance.choice(self.known[KINDS[kind].parent_kind]))
        return message

    def _operation(self, verb: str) -> Any:
        chance = self._chance
        match verb:
            case "Wait":
                request = operations_pb2.WaitRequest(ids=chance.choices(self.known["Port"] or ["x"], k=2))
                request.timeout.FromMilliseconds(chance.choice((0, 10, 100)))
                return request
            case "ListChanges":
                return operations_pb2.ListChangesRequest(page_size=chance.choice((0, 1, 50)))
        request = operations_pb2.ApplyRequest(validate_only=chance.random() < 0.5)
        # Objects that mean each other by name in a circle, or themselves.
        names = [f"c{chance.randrange(1 << 30)}" for _ in range(chance.choice((1, 3, 20)))]
        for number, name in enumerate(names):
            kind = chance.choice(list(KINDS))
            message = self.resource(kind)
            message.name = name
            if KINDS[kind].parent:
                setattr(message, KINDS[kind].parent, names[(number + 1) % len(names)])
            item = request.objects.add(key=name)
            item.resource.Pack(message)
        return request

    def damaged(self, body: bytes) -> bytes:
        """A good body with bits turned, pieces cut out, repeated or put elsewhere."""
        chance, found = self._chance, bytearray(body or b"\x0a\x00")
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(found) + 1)
            match chance.randrange(5):
                case 0 if at < len(found):
                    found[at] ^= 1 << chance.randrange(8)
                case 1:
                    del found[at : at + chance.randrange(1, 9)]
                case 2:
                    found[at:at] = chance.randbytes(chance.randrange(1, 9))
                case 3:
                    found[at:at] = found[: chance.randrange(1, 40)]
                case _:
                    del found[at:]
            found = found or bytearray(b"\x00")
        return bytes(found)


# -- no message at all ------------------------------------------------------------------------------------------------


def _noise(chance: random.Random) -> bytes:
    return chance.randbytes(chance.choice((1, 2, 10, 100, 5000)))


def _bad_text(chance: random.Random) -> bytes:
    """Bytes that are no UTF-8, in the first fields."""
    bad = chance.choice((b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\x80"))
    return b"".join(bytes([field << 3 | 2, len(bad)]) + bad for field in chance.sample(range(1, 8), 3))


def _endless_number(chance: random.Random) -> bytes:
    return b"\x08" + b"\xff" * chance.choice((1, 9, 10, 11, 1000))


def _cut_length(chance: random.Random) -> bytes:
    return bytes([chance.randrange(1, 16) << 3 | 2]) + chance.choice(
        (b"\x7f", b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\xff\x7f")
    )


def _groups(chance: random.Random) -> bytes:
    depth = chance.choice((1, 50, 99, 101, 100_000))
    return b"\x0b" * depth + (b"\x0c" * depth if chance.random() < 0.5 else b"")


def _nested(chance: random.Random) -> bytes:
    """A message in a message in a message, of a field that is there or is not."""
    tag = bytes([chance.choice((1, 2, 7, 15)) << 3 | 2])
    found = b""
    for _ in range(chance.choice((20, 99, 101, 400))):
        size, length = len(found), b""
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        found = tag + length + bytes([size]) + found
    return found


def _wrong_types(chance: random.Random) -> bytes:
    return b"".join(
        bytes([field << 3 | chance.choice((0, 1, 5, 6, 7))]) + chance.randbytes(8) for field in chance.sample(range(1, 15), 5)
    )


def _many_entries(chance: random.Random) -> bytes:
    """An empty message, or an empty text, very often."""
    return bytes([chance.randrange(1, 4) << 3 | 2, 0]) * chance.choice((600, 5000, 50_000))


def _unknown(chance: random.Random) -> bytes:
    """Fields with numbers that nobody has given out."""
    return b"\xfa\xff\x7f\x64" + chance.randbytes(100) + b"\xf8\xff\xff\xff\x0f\x01" * chance.choice((1, 1000))


def _large(chance: random.Random) -> bytes:
    """Seldom: as much as is read, or a little more."""
    size = chance.choice((1000, 1000, 1000, 100_000)) if chance.random() < 0.98 else LARGEST + chance.choice((-64, 0, 1, 4096))
    length = size - 8
    varint = bytes([length & 127 | 128, length >> 7 & 127 | 128, length >> 14 & 127 | 128, length >> 21])
    return bytes([chance.randrange(1, 6) << 3 | 2]) + varint + b"a" * length


BROKEN: list[Callable[[random.Random], bytes]] = [
    _noise,
    _bad_text,
    _endless_number,
    _cut_length,
    _groups,
    _nested,
    _wrong_types,
    _many_entries,
    _unknown,
    _large,
]

METADATA: list[tuple[tuple[str, str | bytes], ...]] = [
    (("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"),),
    (("traceparent", "x" * 4000),),
    (("traceparent", "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-zz"), ("tracestate", "a=b," * 900)),
    (("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"), ("tracestate", "=,=,;")),
    (("x-huge", "y" * 7000),),
    (("x-huger", "y" * 60_000),),
    (("x-bin", b"\x00\xff" * 500),),
    tuple((f"x-{number}", "z") for number in range(200)),
    (("authorization", "Bearer"), ("authorization", "Basic Og==")),
    (("grpc-accept-encoding", "nonsense"),),
    (("baggage", "a=" + "b" * 3000),),
]
AUTHORIZATION = ["", "Bearer", "Bearer ", "bearer x.y.z", "Basic cm9vdA==", "Bearer " + "a" * 6000, "Bearer a b c", "Bearer .."]
