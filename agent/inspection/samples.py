"""What of a port was dropped last: the headers of a few packets, kept in memory and nowhere else.

The switch sends them, so many of a port as its meter lets (compile/port.py). They are kept as they come and read when somebody
asks: a flood costs nothing more. Bounded: `KEPT` of each port, and those `PORTS` that lost something last.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from agent.drivers.openflow import codec
from agent.inspection import header, words
from agent.model.pipeline import REASON, REASONS_OF_RECEIVER, SAMPLE_BYTES, SAMPLES_AT_ONCE, SOURCE, TARGET, CookieKind, cookie
from kumihimo.v1 import inspect_pb2 as pb

KEPT = SAMPLES_AT_ONCE
PORTS = 1024


class Samples:
    """See the module."""

    def __init__(self) -> None:
        # By cookie of the port, the port that lost something last at the end; (nanoseconds since the epoch, packet-in).
        self._kept: dict[int, deque[tuple[int, bytes]]] = {}

    def take(self, body: bytes) -> None:
        """The switch has sent a packet."""
        mark = codec.packet_cookie(body)
        if mark >> 56 != CookieKind.PORT:
            return  # of no flow that we have asked to send it
        self._kept[mark] = kept = self._kept.pop(mark, None) or deque(maxlen=KEPT)
        kept.append((time.time_ns(), codec.cut_packet(body, SAMPLE_BYTES)))
        if len(self._kept) > PORTS:
            del self._kept[next(iter(self._kept))]

    def of(self, port_id: str, ofport: int) -> Iterator[pb.DroppedPacket]:
        """Those of a port, the newest first. A cookie has but a part of its id, so the number must be the port's as well."""
        for when, body in reversed(self._kept.get(cookie(CookieKind.PORT, port_id), ())):
            packet = codec.decode_packet(body)
            reason, target = packet.fields.get(REASON, 0), packet.fields.get(TARGET, 0)
            received = bool(target) and reason in REASONS_OF_RECEIVER
            if (target if received else packet.fields.get(SOURCE, 0)) != ofport:
                continue
            name, message = words.why(reason)
            told = pb.DroppedPacket(reason=name, message=message, received=received, length=packet.length)
            told.packet.CopyFrom(header.read(packet.data))
            told.time.FromNanoseconds(when)
            yield told
