"""The one place where the agent starts other programs: argv list, deadline, captured output."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Sequence


class ExecError(Exception):
    """A program that could not be started, failed, or took too long. str() is one line.

    code is the exit code, negative for a signal; None when the program did not start or was ended at the deadline.
    """

    def __init__(self, program: str, code: int | None, line: str) -> None:
        super().__init__(f"{program}: {line}" if code is None else f"{program}: exit code {code}: {line}")
        self.program = program
        self.code = code
        self.line = line


async def run(argv: Sequence[str], timeout: float = 10.0, input: str | None = None) -> str:
    """Run a program to its end and return what it wrote to stdout.

    timeout in seconds; at the deadline, as on cancellation, the program is killed. Raises ExecError with argv[0], the
    exit code and the last line of stderr. A program that daemonises itself must close stdout and stderr.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=DEVNULL if input is None else PIPE, stdout=PIPE, stderr=PIPE
        )
    except OSError as error:
        raise ExecError(argv[0], None, error.strerror or str(error)) from error
    try:
        async with asyncio.timeout(timeout):
            out, err = await process.communicate(None if input is None else input.encode())
    except TimeoutError:
        raise ExecError(argv[0], None, f"not done after {timeout:g} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        lines = err.decode(errors="replace").strip().splitlines()
        raise ExecError(argv[0], process.returncode, lines[-1] if lines else "no message")
    return out.decode(errors="replace")
