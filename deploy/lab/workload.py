"""Workloads: network namespaces inside a host that stand for virtual machines and containers.

A workload starts without a link; `kumi attach` gives it one. What a guest's own network scripts do (ask for a lease,
set what it says) is done here by udhcpc with a script of ours, so that nothing touches the machine's files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.lab.place import Place
from deploy.lab.process import Background, wait_until

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
    for name in ip mask subnet router staticroutes mtu dns domain search hostname ntpsrv tftp bootfile lease serverid; do
        eval "value=\\${$name-}"
        [ -z "$value" ] || echo "$name=$value"
    done
    env | grep '^opt[0-9]*=' || true # what udhcpc has no name for: code and hex
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

LEASE6_SCRIPT = """\
#!/bin/sh
# Called by dhclient -6 with the event in $reason; what the server said is in the environment. Sets the address.
echo "event=$reason"
case "$reason" in
BOUND6 | RENEW6 | REBIND6)
    for name in ip6_address dhcp6_name_servers dhcp6_domain_search dhcp6_sntp_servers max_life dhcp6_server_id; do
        eval "value=\\${new_$name-}"
        [ -z "$value" ] || echo "$name=$value"
    done
    [ -z "$new_ip6_address" ] || ip -6 address replace "$new_ip6_address/128" dev "$interface" nodad
    echo "told=all"
    ;;
EXPIRE6 | RELEASE6 | STOP6 | DEPREF6)
    [ -z "$old_ip6_address" ] || ip -6 address delete "$old_ip6_address/128" dev "$interface" 2>/dev/null || true
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

        The names are udhcpc's: ip, mask (prefix length), router, staticroutes, mtu, dns, domain, search, lease (seconds),
        serverid, opt224 (hex) and so on. LabError when no server answers.
        """
        argv = [*self._udhcpc(interface), "-n", "-q", "-t", str(tries)]
        return lease(self.run(argv, timeout=tries + 10))

    def start_dhcp(self, interface: str = "eth0") -> Background:
        """Start a client that keeps its lease until it is stopped; SIGUSR1 makes it renew. `lease` reads its text."""
        return self.popen(self._udhcpc(interface))

    def speak6(self, interface: str = "eth0") -> None:
        """Switch IPv6 on, as guests have it."""
        self.run(f"sysctl -qw net.ipv6.conf.{interface}.accept_ra=1 net.ipv6.conf.{interface}.disable_ipv6=0")

    def slaac(self, interface: str = "eth0", timeout: float = 30.0) -> list[str]:
        """Switch IPv6 on and wait until an advertisement has given the workload an address; its addresses."""
        self.speak6(interface)
        wait_until(lambda: bool(self.addresses6(interface)), f"{self.name} forms an address", timeout)
        return self.addresses6(interface)

    def link_local(self, interface: str = "eth0", timeout: float = 30.0) -> str:
        """Switch IPv6 on and wait until the link-local address may be used."""
        self.speak6(interface)
        wait_until(lambda: bool(self.addresses6(interface, "link")), f"{self.name} has a link-local address", timeout)
        return self.addresses6(interface, "link")[0]

    def addresses6(self, interface: str = "eth0", scope: str = "global") -> list[str]:
        """IPv6 addresses of the interface that may be used."""
        text = self.run(["ip", "-6", "-o", "address", "show", "dev", interface, "scope", scope, "-tentative"])
        return [line.split()[3].split("/")[0] for line in text.splitlines() if "dadfailed" not in line]

    def dhcp6(self, interface: str = "eth0", information: bool = False, timeout: float = 30.0) -> dict[str, str]:
        """Ask for an address by DHCPv6, set it, and return what was told; with `information` ask for that alone.

        The names are dhclient's: ip6_address, dhcp6_name_servers, dhcp6_domain_search, dhcp6_sntp_servers, max_life
        (seconds), dhcp6_server_id (a DUID). LabError when no server answers.
        """
        self.link_local(interface)
        folder = self.host.lab.directory / "dhclient"
        folder.mkdir(exist_ok=True)
        # What the client would remember is left to nobody: each time it asks as a guest does that boots.
        files = [str(folder / f"{self.host.name}-{self.name}.{kind}") for kind in ("leases", "pid")]
        self.run(["rm", "-f", *files])
        argv = ["dhclient", "-6", "-d", "-D", "LL", *(["-S"] if information else []), "-cf", "/dev/null"]
        argv += ["-lf", files[0], "-pf", files[1], "-sf", str(self.host.lab.lease6_script), interface]
        with self.popen(argv) as client:
            client.wait_for("told=", timeout)
            return lease(client.text())

    def _udhcpc(self, interface: str) -> list[str]:
        options = ["-O", "staticroutes", "-O", "mtu", "-O", "search"]
        return ["udhcpc", "-f", "-i", interface, "-s", str(self.host.lab.lease_script), "-T", "1", "-A", "1", *options]


def lease(text: str) -> dict[str, str]:
    """The last lease in what udhcpc or dhclient printed, empty when there is none."""
    found: dict[str, str] = {}
    reading = False
    for name, value in (line.split("=", 1) for line in text.splitlines() if "=" in line):
        if name == "event":
            reading = value in ("bound", "renew", "BOUND6", "RENEW6", "REBIND6")
            found = {} if reading else found
        elif reading:
            found[name] = value
    return found
