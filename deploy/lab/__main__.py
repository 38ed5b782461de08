"""`python -m deploy.lab`: start, look into and end a lab by hand."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from deploy.lab import Lab, LabError, labs
from deploy.lab.place import Place


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says and return the exit status. `sh` and `vmsh` become the program they start."""
    options = _parser().parse_args(arguments)
    try:
        return _do(options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def _do(options: argparse.Namespace) -> int:
    if options.command == "down" and options.prefix:
        for name in labs(options.prefix):
            Lab(name).down()
            print(f"lab {name} is down")
        return 0
    lab = Lab(options.name, hosts=getattr(options, "hosts", 2))
    match options.command:
        case "up":
            lab.up(print)
        case "down":
            lab.down()
            print(f"lab {lab.name} is down")
        case "status":
            print(lab.status())
        case "workload":
            lab.place(options.host).add_workload(options.workload)
        case "sh":
            _become(lab.place(options.host), options.program)
        case "vmsh":
            _become(lab.place(options.host).workload(options.workload), options.program)
        case "outside":
            _become(lab.outside, options.program)
    return 0


def _become(place: Place, program: list[str]) -> None:
    """Replace this process by a program in a place; a shell when none is given."""
    argv = [*place.enter(), *(program or ["bash"])]
    # Inside a host the profiles are those of the host, not what the caller's shell has exported.
    os.environ["KUMI_CONFIG"] = "/etc/kumihimo/client.toml"
    os.environ["PATH"] = f"{os.path.join(sys.prefix, 'bin')}:{os.environ.get('PATH', '/usr/sbin:/usr/bin:/sbin:/bin')}"
    try:
        os.execvp(argv[0], argv)  # noqa: S606 - no shell is wanted
    except OSError as error:
        raise LabError(f"{argv[0]}: {error.strerror}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.lab", description="A lab of hosts on one machine.")
    parser.add_argument("--name", default="kumi", help="name of the lab (default: kumi)")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("up", help="start hosts, links and files, no service").add_argument(
        "hosts", type=int, nargs="?", default=2
    )
    commands.add_parser("down", help="end everything").add_argument(
        "--prefix", default="", help="every lab whose name begins so"
    )
    commands.add_parser("status", help="say what runs")
    workload = commands.add_parser("workload", help="make a workload: a namespace inside a host")
    workload.add_argument("host")
    workload.add_argument("workload")
    shell = commands.add_parser("sh", help="run a program in a host")
    shell.add_argument("host")
    shell.add_argument("program", nargs=argparse.REMAINDER)
    inner = commands.add_parser("vmsh", help="run a program in a workload")
    inner.add_argument("host")
    inner.add_argument("workload")
    inner.add_argument("program", nargs=argparse.REMAINDER)
    commands.add_parser("outside", help="run a program in the outside network").add_argument(
        "program", nargs=argparse.REMAINDER
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
