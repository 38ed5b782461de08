"""Packets cut into fragments by hand (RFC 791, RFC 8200), also as no kernel would cut them."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.system.frames import checksum

FRAGMENT, DESTINATION_OPTIONS = 44, 60  # headers of IPv6
SKIPPED = 0x1E  # an option for experiments (RFC 4727)
_numbers = itertools.count(0x4B550000)


@dataclass(frozen=True, slots=True)
class Piece:
    """What one fragment carries: bytes that begin at an offset (a multiple of 8); whether more come behind it."""

    offset: int
    data: bytes
    more: bool = True


def body(frame: bytes) -> bytes:
    """What an IPv4 or IPv6 packet without options carries."""
    at = 34 if frame[12:14] == b"\x08\x00" else 54
    length = struct.unpack("!H", frame[16:18])[0] - 20 if at == 34 else struct.unpack("!H", frame[18:20])[0]
    return frame[at : at + length]


def pieces(data: bytes, *cuts: int) -> list[Piece]:
    """Honest fragments that are divided at these offsets."""
    ends = [*cuts, len(data)]
    return [Piece(begin, data[begin:end], end < len(data)) for begin, end in zip([0, *cuts], ends, strict=True)]


def behind_options(data: bytes, protocol: int, size: int = 8) -> bytes:
    """The same behind a header of destination options, of so many bytes, that nobody knows and everybody skips."""
    first = bytes([protocol, size // 8 - 1, SKIPPED, 4, 0, 0, 0, 0])
    return first + bytes([SKIPPED, 6, 0, 0, 0, 0, 0, 0]) * (size // 8 - 1) + data


def fragments(frame: bytes, parts: list[Piece], protocol: int = 0) -> Iterator[bytes]:
    """Frames with the addresses of a whole one. protocol: what the fragments say that they carry, if it is not the frame's."""
    number = next(_numbers)
    for part in parts:
        flags = part.offset | part.more if frame[12:14] != b"\x08\x00" else part.offset // 8 | part.more << 13
        if frame[12:14] == b"\x08\x00":
            length = struct.pack("!HHH", 20 + len(part.data), number & 0xFFFF, flags)
            head = frame[14:16] + length + frame[22:23] + bytes([protocol or frame[23], 0, 0]) + frame[26:34]
            head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
            made = frame[:14] + head + part.data
        else:
            said = struct.pack("!BBHI", protocol or frame[20], 0, flags, number)
            head = frame[14:18] + struct.pack("!HB", len(said) + len(part.data), FRAGMENT) + frame[21:54]
            made = frame[:14] + head + said + part.data
        yield made.ljust(60, b"\0")
