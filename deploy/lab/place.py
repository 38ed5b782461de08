"""Places where programs run: hosts, workloads, namespaces; and what a user does in all of them, such as ping."""

from __future__ import annotations

import itertools
import re
import signal
from dataclasses import dataclass, replace
from typing import Self

from deploy.lab.process import Background, Command, argv_of, run

UNDER_WAY = 0.5  # seconds that an answer may take on a machine that has much else to do


class Place:
    """Somewhere to run programs. A subclass says how to get in."""

    name: str

    def enter(self) -> list[str]:
        """The argv prefix that runs a program here; LabError when the place is not there."""
        raise NotImplementedError

    def run(
        self,
        command: Command,
        *,
        check: bool = True,
        timeout: float = 30.0,
        env: dict[str, str] | None = None,
        input: str | None = None,
    ) -> str:
        """Run a program here to its end and return its output; as `process.run`."""
        return run([*self.enter(), *argv_of(command)], check=check, timeout=timeout, env=env, input=input)

    def popen(self, command: Command) -> Background:
        """Start a program here that keeps running until it is stopped."""
        return Background([*self.enter(), *argv_of(command)])

    def ping(self, address: str, count: int = 3, interval: float = 0.2, size: int | None = None) -> Pings:
        """Send `count` echo requests, one each `interval` seconds; `size` payload bytes, not to be fragmented."""
        argv = ["ping", "-n", "-c", str(count), "-i", str(interval), "-W", "1"]
        argv += [] if size is None else ["-M", "do", "-s", str(size)]
        pings = Pings.parse(self.run([*argv, address], check=False, timeout=count * interval + 15), interval)
        late = pings.sent - pings.answered[-1] if pings.answered else 0
        if 0 < late * interval < UNDER_WAY:
            # For the last answers ping waits but twice as long as the others took: what may be under way is asked again.
            again = self.ping(address, late, interval, size)
            answered = (*pings.answered, *(pings.answered[-1] + number for number in again.answered))
            return Pings(pings.sent, pings.received + again.received, interval, answered, (*pings.times, *again.times))
        return pings

    def start_ping(self, address: str, interval: float = 0.005) -> RunningPing:
        """Start a ping that goes on until it is stopped."""
        return RunningPing([*self.enter(), "ping", "-n", "-i", str(interval), address], interval)

    def reaches(self, address: str) -> bool:
        """Whether one of up to three pings is answered."""
        return any(self.ping(address, count=1).received for _ in range(3))


class Namespace(Place):
    """A named network namespace of the machine itself."""

    def __init__(self, name: str) -> None:
        self.name = name

    def enter(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]


@dataclass(frozen=True, slots=True)
class Pings:
    """What came of a ping. `answered` holds sequence numbers from 1, `times` the round trips in ms, both in order."""

    sent: int
    received: int
    interval: float
    answered: tuple[int, ...]
    times: tuple[float, ...]

    @classmethod
    def parse(cls, text: str, interval: float) -> Self:
        """Read what iputils' ping printed."""
        replies = re.findall(r"icmp_seq=(\d+) ttl=\d+ time=([\d.]+) ms(?! \(DUP)", text)
        summary = re.search(r"(\d+) packets transmitted, (\d+) received", text)
        sent, received = map(int, summary.groups()) if summary else (0, 0)
        return cls(sent, received, interval, _whole([int(n) for n, _ in replies]), tuple(float(t) for _, t in replies))

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self.sent - self.received

    @property
    def gap(self) -> float:
        """The longest time without an answered request, in seconds; the interval when nothing was lost."""
        edges = (0, *self.answered, self.sent + 1)
        return max(after - before for before, after in itertools.pairwise(edges)) * self.interval


def _whole(numbers: list[int]) -> tuple[int, ...]:
    """Sequence numbers as counted, of which a packet carries the last 16 bits."""
    found: list[int] = []
    for number in numbers:
        near = found[-1] if found else 0
        # Of all that end in these bits, the one that is nearest to its neighbour.
        found.append(near + (number - near + 0x8000) % 0x10000 - 0x8000)
    return tuple(found)


class RunningPing(Background):
    """A ping that goes on; `result` ends it."""

    stop_signal = signal.SIGINT  # upon which ping prints its summary

    def __init__(self, argv: list[str], interval: float) -> None:
        super().__init__(argv)
        self._interval = interval

    @property
    def received(self) -> int:
        """Answers so far."""
        return self.text().count(" time=")

    def result(self) -> Pings:
        """End the ping and return what came of it. The last requests may still be under way: they count as not sent."""
        pings = Pings.parse(self.stop(), self._interval)
        if pings.answered and (pings.sent - pings.answered[-1]) * self._interval < UNDER_WAY:
            return replace(pings, sent=pings.answered[-1])
        return pings
