"""The capability probe: the one place that asks which datapaths this host can really run.

Open vSwitch lists `system` among its datapath types whenever it was built with it, kernel module or not; a bridge of that
type then simply does not come up. The kernel says the truth: with the module there is a generic netlink family
`ovs_datapath` (linux/openvswitch.h).
"""

from __future__ import annotations

from collections.abc import Iterable

from pyroute2.netlink import genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

FAMILY = "ovs_datapath"


def usable_datapaths(offered: Iterable[str]) -> tuple[str, ...]:
    """The datapath types of those offered that bridges can have here, sorted. Blocks for a millisecond; call it in a thread."""
    return tuple(sorted(kind for kind in offered if kind != "system" or _kernel_has_it()))


def _kernel_has_it() -> bool:
    socket = GenericNetlinkSocket()
    try:
        socket.bind(FAMILY, genlmsg)
    except (NetlinkError, OSError):
        return False
    finally:
        socket.close()
    return True
