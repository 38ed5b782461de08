"""Runs inside a workload and does there what a test says: sends frames as they are given, and keeps what arrives.

    guest.py INTERFACE

One JSON object a line on stdin, one answer a line on stdout. It ends when stdin does. Only the standard library: it is
started without the environment of the tests.

    {"frames": [HEX, ...], "expect": {NAME: [[OFFSET, HEX], ...]}, "until": [NAME, ...], "timeout": S, "grace": S}
        Sends the frames; answers {NAME: true or false} once every name in `until` has come, or after the timeout. A frame
        that has each HEX at its OFFSET is what is expected. What comes within `grace` after that counts too.
    {"repeat": [HEX, ...], "period": S}
        Sends the frames again and again, all of them each period, until it is told to repeat others, or none.
    {"seen": true}
        All frames that have arrived so far: [HEX, ...]. {"clear": true} forgets them.
"""

import json
import os
import select
import socket
import sys
import time

EVERY_PROTOCOL = 0x0003
KEPT = 20000
SO_RCVBUFFORCE, BUFFER = 33, 1 << 24  # socket(7); bytes


class Guest:
    def __init__(self, interface):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self.socket.bind((interface, 0))
        self.frames = []
        self.sent = []
        self.repeated = []
        self.period = 0
        self.next = 0

    def repeat(self):
        """Send what is to be repeated, if it is time; seconds until it is, or None when there is nothing."""
        if not self.repeated:
            return None
        now = time.monotonic()
        if now >= self.next:
            self.next = max(self.next + self.period, now)
            for frame in self.repeated:
                self.socket.send(frame)
        return max(self.next - time.monotonic(), 0)

    def receive(self, timeout):
        """Take in what has arrived, waiting for the first; False when nothing came."""
        if not select.select([self.socket], [], [], max(timeout, 0))[0]:
            return False
        try:
            frame, (_, _, kind, _, _) = self.socket.recvfrom(65536)
        except OSError:  # the link went down
            return True
        kept = self.sent if kind == socket.PACKET_OUTGOING else self.frames
        if len(kept) < KEPT:
            kept.append(frame)
        return True

    def probe(self, request):
        first = len(self.frames)
        for frame in request["frames"]:
            self.socket.send(bytes.fromhex(frame))
        expected = {
            name: [(offset, bytes.fromhex(part)) for offset, part in parts] for name, parts in request.get("expect", {}).items()
        }
        deadline = time.monotonic() + request.get("timeout", 0)
        found = dict.fromkeys(expected, False)
        until = set(request.get("until", ()))
        ended = False
        while True:
            for frame in self.frames[first:]:
                for name, parts in expected.items():
                    found[name] |= all(frame[offset : offset + len(part)] == part for offset, part in parts)
            first = len(self.frames)
            if not ended and all(found[name] for name in until):
                ended, deadline = True, time.monotonic() + request.get("grace", 0)
            left = deadline - time.monotonic()
            if left <= 0:
                return found
            self.receive(left)

    def answer(self, request):
        if "frames" in request:
            return self.probe(request)
        if "repeat" in request:
            self.repeated = [bytes.fromhex(frame) for frame in request["repeat"]]
            self.period, self.next = request["period"], 0
            return True
        while self.receive(0):
            pass
        if "seen" in request:
            return [frame.hex() for frame in self.frames]
        if "sent" in request:
            return [frame.hex() for frame in self.sent]
        self.frames.clear()
        self.sent.clear()
        return True


def main():
    guest = Guest(sys.argv[1])
    print("ready", flush=True)
    text = b""
    while True:
        ready, _, _ = select.select([0, guest.socket], [], [], guest.repeat())
        if guest.socket in ready:
            guest.receive(0)
        if 0 in ready:
            data = os.read(0, 1 << 20)
            if not data:
                return
            text += data
            while b"\n" in text:
                line, _, text = text.partition(b"\n")
                print(json.dumps(guest.answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
