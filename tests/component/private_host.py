"""Runs test functions on a private host: own network, mounts and processes, with Open vSwitch running.

A module marks its tests with `@on_private_host`. In the outer run the first of them starts pytest once more for the
whole module, inside `unshare`; each test then reports its own outcome of that run. When the inner run ends, or the outer
one, the kernel ends every process and namespace of the host, so nothing can be left behind.
"""

import functools
import inspect
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.mortal import MORTAL

INSIDE = os.environ.get("KUMIHIMO_PRIVATE_HOST") == "1"
UNSHARE = [*MORTAL, "unshare", "-m", "-n", "-p", "-u", "-f", "--kill-child"]
SECONDS = 1800 if os.environ.get("KUMI_FULL") else 900  # for a whole module, which alone takes less than 60


def on_private_host(test):
    """Decorator of a test function; its fixtures are made inside only."""
    if INSIDE:
        return test

    def outer():
        outcome = _outcomes(inspect.getsourcefile(test)).get(test.__name__, "the inner run did not reach it")
        if outcome:
            pytest.fail(outcome, pytrace=False)

    outer.__name__, outer.__doc__ = test.__name__, test.__doc__
    return pytest.mark.timeout(SECONDS + 30)(outer)


@functools.cache
def _outcomes(module: str) -> dict[str, str]:
    """Name of each test of the module to what went wrong, "" for a pass."""
    with tempfile.TemporaryDirectory(prefix="hdct-") as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [*UNSHARE, sys.executable, "-m", __spec__.name, module, str(report)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
        if not report.exists():
            pytest.fail(f"the private host failed\n{done.stdout}{done.stderr}", pytrace=False)
        cases = ElementTree.parse(report).getroot().iter("testcase")  # written by ourselves
        return {case.get("name", ""): "\n".join(child.text or "" for child in case) for case in cases}


def sh(command: str, check: bool = True) -> str:
    """A shell line on this host; its output without the final newline."""
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, timeout=60)
    assert not check or not done.returncode, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
    return done.stdout.strip()


def processes(name: str) -> list[str]:
    """Command lines of the processes of that name. One that has ended and waits for PID 1 to reap it is none."""
    return sh(f"pgrep -a -r D,R,S,T,t,I {name} | cut -d' ' -f2- | sort").splitlines()


def start_ovsdb() -> None:
    sh(
        "ovsdb-server /run/conf.db --remote=punix:/run/openvswitch/db.sock --pidfile --detach "
        "--log-file=/run/openvswitch/ovsdb-server.log -vconsole:off"
    )


def _host(module: str, report: str) -> int:
    """PID 1 of the host: set up, run pytest, reap orphans until it ends."""
    sh("mount --make-rprivate /; mount -t proc proc /proc; mount -t sysfs sysfs /sys; hostname hdct; ip link set lo up")
    sh("for d in /run /var/lib /var/log; do mount -t tmpfs -o mode=755 tmpfs $d; done")
    sh("mkdir -p /run/netns /run/openvswitch /var/log/openvswitch")
    sh("ovsdb-tool create /run/conf.db /usr/share/openvswitch/vswitch.ovsschema")
    start_ovsdb()
    sh("ovs-vsctl --no-wait init")
    sh("ovs-vswitchd --pidfile --detach --log-file=/run/openvswitch/ovs-vswitchd.log -vconsole:off")
    environment = {**os.environ, "KUMIHIMO_PRIVATE_HOST": "1", "PYTHONPATH": os.getcwd()}
    options = [
        "-p",
        "no:cacheprovider",
        f"--junitxml={report}",
        "-o",
        "junit_family=xunit1",
        *os.environ.get("PRIVATE_HOST_PYTEST", "").split(),
    ]
    tests = subprocess.Popen([sys.executable, "-m", "pytest", module, *options], env=environment)
    while True:
        pid, status = os.wait()
        if pid == tests.pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(_host(*sys.argv[1:]))
