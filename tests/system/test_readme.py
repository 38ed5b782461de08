"""Every shell block of README runs, as typed, in the order in which it stands there.

In namespaces of its own, so that it meets neither a demo that is up nor other tests. `./tests/run` is the run that this is
part of: that CI calls it is checked, not repeated.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 280  # seconds
PRIVATE = """
set -euo pipefail
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /var/lib/kumihimo-lab
mount -t tmpfs -o mode=755 tmpfs /var/lib/kumihimo-lab
HOME=$(mktemp -d -p /run) && mkdir -p /root && mount -t tmpfs -o mode=700 tmpfs /root
ip link set lo up
cd "$1"
"""


def blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


def test_a85_readme_names_its_two_commands_on_the_first_screen() -> None:
    first_screen = "\n".join((ROOT / "README.md").read_text().splitlines()[:25])
    assert "./deploy/demo\n" in first_screen
    assert "./tests/run\n" in first_screen
    assert "./tests/run" in (ROOT / ".ci/run").read_text()


def test_a85_every_shell_block_of_readme_runs_as_typed(tmp_path: Path) -> None:
    typed = [block for block in blocks() if block != "./tests/run\n"]
    assert len(typed) >= 3
    script = tmp_path / "readme"
    script.write_text(PRIVATE + "set -x\n" + "".join(typed))
    private = ["unshare", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
    done = subprocess.run(
        [*private, "bash", str(script), str(ROOT)], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "0% packet loss" in done.stdout
