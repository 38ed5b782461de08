"""Workloads: network namespaces inside a host that stand for virtual machines and containers.

A workload starts without a link; `kumi attach` gives it one. What a guest's own network scripts do (ask for a lease,
set what it says) is done here by udhcpc with a script of ours, so that nothing touches the machine's files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.lab.place import Place
from deploy.lab.process import Background

if TYPE_CHECKING:
    from deploy.lab.host import Host

LEASE_SCRIPT = """\
#!/bin/sh
# Called by udhcpc with the event; what the server said is in the environment. Sets the address, the MTU and the routes.
echo "event=$1"
case "$1" in
deconfig)
    ip -4 address flush dev "$interface"
    ip link set "$interface" up
    ;;
bound | renew)
    for name in ip mask subnet router staticroutes mtu dns domain hostname lease serverid; do
        eval "value=\\${$name-}"
        [ -z "$value" ] || echo "$name=$value"
    done
    [ -z "$mtu" ] || ip link set "$interface" mtu "$mtu"
    ip -4 address replace "$ip/$mask" dev "$interface"
    # RFC 3442: where classless routes are given, the router option is not to be used.
    if [ -n "$staticroutes" ]; then set -- $staticroutes; else set -- ${router:+0.0.0.0/0 ${router%% *}}; fi
    while [ $# -ge 2 ]; do
        if [ "$2" = 0.0.0.0 ]; then
            ip -4 route replace "$1" dev "$interface" scope link
        else
            ip -4 route replace "$1" via "$2" dev "$interface" onlink
        fi
        shift 2
    done
    ;;
esac
"""


class Workload(Place):
    """A network namespace `name` of a host."""

    def __init__(self, host: Host, name: str) -> None:
        self.host = host
        self.name = name

    def enter(self) -> list[str]:
        return [*self.host.enter(), "ip", "netns", "exec", self.name]

    def dhcp(self, interface: str = "eth0", tries: int = 15) -> dict[str, str]:
        """Ask for a lease once a second up to `tries` times, set what it says, and return it.

        The names are udhcpc's: ip, mask (prefix length), router, staticroutes, mtu, dns, domain, lease (seconds),
        serverid. LabError when no server answers.
        """
        argv = [*self._udhcpc(interface), "-n", "-q", "-t", str(tries)]
        return lease(self.run(argv, timeout=tries + 10))

    def start_dhcp(self, interface: str = "eth0") -> Background:
        """Start a client that keeps its lease until it is stopped; SIGUSR1 makes it renew. `lease` reads its text."""
        return self.popen(self._udhcpc(interface))

    def _udhcpc(self, interface: str) -> list[str]:
        options = ["-O", "staticroutes", "-O", "mtu"]
        return ["udhcpc", "-f", "-i", interface, "-s", str(self.host.lab.lease_script), "-T", "1", "-A", "1", *options]


def lease(text: str) -> dict[str, str]:
    """The last lease in what udhcpc printed, empty when there is none."""
    found: dict[str, str] = {}
    reading = False
    for name, value in (line.split("=", 1) for line in text.splitlines() if "=" in line):
        if name == "event":
            reading = value in ("bound", "renew")
            found = {} if reading else found
        elif reading:
            found[name] = value
    return found
