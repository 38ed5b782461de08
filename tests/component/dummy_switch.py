"""An Open vSwitch with the dummy datapath, for tests of the OpenFlow driver: fixtures `rundir` and `driver` of conftest.py.

The daemons run in a network and process namespace that ends with the test run, and keep their files in one folder.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from agent.model.item import Item, Key

OURS = 5 << 60
MARKER = {"marker_table": 250, "marker_cookie": OURS | 0xFFFF}

# Started with its end tied to its input: when the test process is gone, `read` returns, and with process 1 of the
# namespace every daemon ends.
START = """
set -e
ip link set lo up
ovsdb-tool create $1/conf.db /usr/share/openvswitch/vswitch.ovsschema
ovsdb-server $1/conf.db --remote=punix:$1/db.sock --pidfile --detach --no-chdir --log-file -vconsole:off
ovs-vsctl --timeout=20 --no-wait init
ovs-vswitchd unix:$1/db.sock --enable-dummy=override --pidfile --detach --no-chdir --log-file -vconsole:off
ovs-vsctl --timeout=20 add-br br0 -- set bridge br0 fail_mode=secure datapath_type=dummy \
    -- add-port br0 p1 -- set interface p1 type=dummy ofport_request=1 \
    -- add-port br0 p2 -- set interface p2 type=dummy ofport_request=2
echo ready
read _
"""


def run(rundir: Path, *command: str) -> str:
    """An Open vSwitch tool that talks to this switch."""
    done = subprocess.run(command, env=os.environ | {"OVS_RUNDIR": str(rundir)}, timeout=60, capture_output=True)
    assert not done.returncode, done.stderr.decode()
    return done.stdout.decode()


def by_key(items: Iterable[Item]) -> dict[Key, Item]:
    return {item.key: item for item in items}
