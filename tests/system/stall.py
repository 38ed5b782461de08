"""For how long this machine leaves a program that has something to do waiting, as a script: standard library alone.

It computes for a little while and pauses, again and again, and prints the longest time that it lost, in seconds, when it is
told to stop.
"""

from __future__ import annotations

import signal
import time

WORK, PAUSE = 0.001, 0.004  # seconds


def main() -> None:
    ended = False

    def end(*_: object) -> None:
        nonlocal ended
        ended = True

    signal.signal(signal.SIGTERM, end)
    print("ready", flush=True)
    longest = 0.0
    while not ended:
        last = time.monotonic()
        time.sleep(PAUSE)
        due = last + PAUSE
        while (now := time.monotonic()) < due + WORK:
            longest, last = max(longest, now - max(last, due)), now
        longest = max(longest, now - max(last, due))
    print(longest)


if __name__ == "__main__":
    main()
