"""The demo: two workloads on two hosts, one VXLAN network, in the six steps of `kumi`.

Everything is typed as a user would type it and shown with what it printed. Run again, it starts what is missing and
shows what is there. It leaves the cloud up; `./deploy/demo down` ends it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from pathlib import Path

from deploy.lab import Host, Lab, LabError, Workload, wait_until
from deploy.lab.process import succeeds

WORKLOADS = {"h1": "web1", "h2": "web2"}


class Demo:
    """One run of the demo on `lab`."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._env = {"KUMI_CONFIG": str(lab.files.client)}
        self._programs = Path(sys.prefix) / "bin"
        self._number = 0
        self._bold, self._plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")

    def run(self) -> None:
        """Start the lab, go through the steps, say what to type next; LabError at the first that fails."""
        self._start()
        self._step("Profile: where the API is, and who we are")
        self._kumi("profile show")
        self._step("A network; choosing type and segment needs the operator's role, which this profile has")
        self._once("network testnet", "--type vxlan --segment 100")
        self._step("A subnet: its range, from which ports get their addresses")
        self._once("subnet testnet_subnet", typed="subnet create testnet 10.0.0.0/24 --name testnet_subnet")
        self._step("Two ports; an address is chosen when none is given")
        for name in WORKLOADS.values():
            self._once(f"port {name}", typed=f"port create testnet --name {name}")
        self._step("A workload on each host: a network namespace, which stands for a virtual machine")
        for host, name in WORKLOADS.items():
            self._show(f"{host}#", f"ip netns add {name}", "")
            self._lab.place(host).add_workload(name)
        self._step("Attach each port to its workload, on the workload's host")
        for host, name in WORKLOADS.items():
            self._attach(self._lab.place(host), name)
        self._prove()

    def _start(self) -> None:
        lab = self._lab
        self._title(f"Lab {lab.name}: two hosts on this machine")
        began = time.monotonic()

        def report(text: str) -> None:
            nonlocal began
            now = time.monotonic()
            print(f"  {text} ({now - began:.1f} s)", flush=True)
            began = now

        lab.up(report)
        lab.start_etcd()
        report("etcd serves")
        lab.start_api()
        report("the API serves")
        for host in lab.hosts.values():
            host.start_agent()
            report(f"agent of {host.name} runs")
        self._title("Nodes: the hosts that take part, and where their tunnels end")
        for host in lab.hosts.values():
            self._once(f"node {host.name}", f"--tunnel-ip {host.underlay}")

    def _attach(self, host: Host, name: str) -> None:
        """Give a workload its port, unless it has a link by now."""
        if "eth0" in host.workload(name).run("ip -brief link"):
            print(f"  # {name} is attached already")
            return
        host.agent.require()
        command = f"kumi attach {name} --netns {name}"
        env = {"KUMI_CONFIG": "/etc/kumihimo/client.toml"}
        self._show(f"{host.name}#", command, host.run(self._argv(command), env=env, timeout=60))

    def _prove(self) -> None:
        """Show that it works: status, leases, a ping and what it looks like between the hosts."""
        self._title("What came of it")
        first, second = (self._lab.place(host).workload(name) for host, name in WORKLOADS.items())
        for workload in (first, second):
            self._wired(workload.name)
        self._lease(first)
        address = self._lease(second)
        with self._lab.capture("underlay", "udp port 4789 and greater 120") as capture:
            command = f"ping -c 3 -i 0.2 {address}"
            output = first.run(shlex.split(command), check=False)
            self._show(f"{first.host.name}/{first.name}#", command, output)
            if " 0 received" in output or "received" not in output:
                raise LabError(f"{first.name} cannot reach {second.name} at {address}")
            print("  # and so it looks on the wire between the hosts:")
            print(f"    {capture.wait_packets(1)[0].partition(' ')[2]}", *_inner(capture.text()), sep="\n    ")
        self._kumi("port list")

    def _wired(self, name: str) -> None:
        """Wait a while for a port to be wired and show its status; when it is not wired the status says why."""
        argv = self._argv(f"kumi status {name}")
        with contextlib.suppress(LabError):
            wait_until(lambda: succeeds(argv, env=self._env), f"port {name} is wired", timeout=30, interval=0.2)
        self._kumi(f"status {name}")

    def _lease(self, workload: Workload) -> str:
        """Get an address by DHCP and return it."""
        lease = workload.dhcp()
        text = ", ".join(f"{key} {lease[key]}" for key in ("ip", "router", "dns", "mtu", "lease") if key in lease)
        self._show(f"{workload.host.name}/{workload.name}#", "udhcpc -i eth0", text)
        return lease["ip"]

    def _once(self, what: str, options: str = "", typed: str | None = None) -> None:
        """Create `what` ("KIND NAME"), or show it when it is there."""
        kind, name = what.split()
        try:
            self._lab.kumi(kind, "show", name)
        except LabError:
            self._kumi(typed or f"{kind} create {name} {options}")
        else:
            print(f"  # {kind} {name} is there already")
            self._kumi(f"{kind} show {name}")

    def _kumi(self, arguments: str) -> None:
        """Type a command of `kumi` and show what it prints."""
        self._show("$", f"kumi {arguments}", self._lab.kumi(*shlex.split(arguments)))

    def _argv(self, command: str) -> list[str]:
        program, *arguments = shlex.split(command)
        return [str(self._programs / program), *arguments]

    def _show(self, prompt: str, command: str, output: str) -> None:
        print(f"  {self._bold}{prompt} {command}{self._plain}")
        for line in output.splitlines():
            print(f"    {line}")
        sys.stdout.flush()

    def _title(self, text: str) -> None:
        print(f"\n{self._bold}{text}{self._plain}", flush=True)

    def _step(self, text: str) -> None:
        self._number += 1
        self._title(f"{self._number}. {text}")


def _inner(text: str) -> list[str]:
    """The decoded inner frame that follows the first VXLAN header in what tcpdump printed."""
    lines = text.splitlines()
    at = next((n for n, line in enumerate(lines) if "VXLAN" in line), len(lines))
    return [line.strip() for line in lines[at + 1 : at + 2]]


def main() -> int:
    """Run the demo and return the exit status."""
    began = time.monotonic()
    lab = Lab()
    log = lab.directory / "log"
    try:
        Demo(lab).run()
    except LabError as error:
        sys.stdout.flush()
        print(f"\ndemo: {error}", file=sys.stderr)
        if log.exists():
            print(f"Logs are in {log}; look into it, then end it by `./deploy/demo down`.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted; `./deploy/demo down` ends what runs", file=sys.stderr)
        return 130
    kumi = os.path.relpath(Path(sys.prefix) / "bin" / "kumi")
    print(
        f"""
Done in {time.monotonic() - began:.1f} s; the cloud stays up. What to type next:

  export KUMI_CONFIG={lab.files.client}
  {kumi} network list
  {kumi} status web2
  ./deploy/demo sh h1 ovs-vsctl show          a program on a host (h1, h2, ctl)
  ./deploy/demo vmsh h1 web1 ip address       a program in a workload
  ./deploy/demo status                        what runs; logs are in {log}
  ./deploy/demo down                          end it all"""
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
