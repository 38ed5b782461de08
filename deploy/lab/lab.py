"""The lab: hosts, their cables, a control host with etcd and the API, and everything's files, on one machine.

A lab is known by its name. All it has is in its namespaces NAME-net and NAME-out, in its directory below
/var/lib/kumihimo-lab and in the processes of its hosts. Nothing is remembered elsewhere, so any process may use
or end a lab that another one made. No traffic leaves the lab's own namespaces.
"""

from __future__ import annotations

import contextlib
import http.client
import shutil
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

from deploy.lab import preflight
from deploy.lab.config import Files
from deploy.lab.host import MANAGEMENT, Host, end_all, running
from deploy.lab.network import LINKS, Capture, Network, namespaces
from deploy.lab.place import Namespace
from deploy.lab.process import LabError, run
from deploy.lab.service import Service, Unit
from deploy.lab.workload import LEASE6_SCRIPT, LEASE_SCRIPT

CONTROL = 254
"""Number of the control host: the last part of its management address."""


class Lab:
    """A lab of hosts h1, h2 ... and the control host `ctl`.

    `hosts` is a number or names; a lab that is up keeps those it has. `tracing`: see config.Files.
    """

    def __init__(self, name: str = "kumi", hosts: int = 2, tracing: bool = False) -> None:
        self.name = name
        self.directory = preflight.BASE / name
        self.network = Network(name)
        self.outside: Namespace = self.network.outside
        self.control = f"{MANAGEMENT}{CONTROL}"
        self.files = Files(self.directory, self.control, tracing)
        self.lease_script = self.directory / "lease-script"
        self.lease6_script = self.directory / "lease6-script"
        # A lab that is up is taken as it is, whatever number was asked for.
        count = len(list(self.directory.glob("hosts/h[0-9]*"))) or hosts
        self.hosts = {f"h{n}": Host(self, f"h{n}", n, list(LINKS)) for n in range(1, count + 1)}
        self.ctl = Host(self, "ctl", CONTROL, ["management"])
        log = self.directory / "log"
        self.etcd = Service(self.ctl, "etcd", self._etcd_unit(), log / "etcd.log", self._etcd_ready)
        self.api = Service(self.ctl, "api", Unit.read("kumihimo-api"), log / "api.log", self._api_ready)

    @classmethod
    @contextlib.contextmanager
    def anew(cls, name: str, hosts: int = 2, tracing: bool = False) -> Iterator[Self]:
        """A lab that is made from nothing and gone after. What a killed run has left by that name goes first."""
        preflight.check(name)
        cls(name).down()
        lab = cls(name, hosts, tracing)
        try:
            lab.up()
            yield lab
        finally:
            lab.down()

    # The whole

    @property
    def is_up(self) -> bool:
        """Whether every part is there: bridges, control host, hosts. Services are asked for their own."""
        if not {self.network.middle.name, self.outside.name} <= namespaces():
            return False
        return {"ctl", *self.hosts} <= running(self.directory).keys()

    def up(self, report: Callable[[str], None] = lambda _: None) -> None:
        """Start what is missing: files, bridges, hosts; no service. `report` is told each step that is done.

        LabError with one clear line, and the last lines of a log, when something fails; `down` cleans up.
        """
        preflight.check(self.name)
        if self.is_up:
            report(f"the lab {self.name} is up already")
            return
        preflight.borrow()
        for host in (self.ctl, *self.hosts.values()):
            host.make_directories()
        self.files.write(self.ctl.etc, {name: host.etc for name, host in self.hosts.items()})
        for script, text in ((self.lease_script, LEASE_SCRIPT), (self.lease6_script, LEASE6_SCRIPT)):
            script.write_text(text)
            script.chmod(0o755)
        report("certificates, tokens and configuration are written")
        self.network.up()
        report("underlay, provider and management networks are up")
        for host in (self.ctl, *self.hosts.values()):
            host.power_on()
            report(f"host {host.name} is up, management {host.management}")

    def down(self) -> None:
        """End every process of the lab and remove all it has. Nothing to end is fine; so is half a lab."""
        end_all(self.directory)
        if shutil.which("ip"):
            self.network.down()
        shutil.rmtree(self.directory, ignore_errors=True)
        preflight.give_back()

    # etcd and the API

    @property
    def etcdctl(self) -> list[str]:
        """The beginning of a command line, for any host: etcdctl as the user root."""
        files = {"cacert": "ca.crt", "cert": "root.crt", "key": "root.key"}
        options = [f"--{name}={self.files.tls(file)}" for name, file in files.items()]
        return ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints=https://{self.control}:2379", *options]

    @property
    def _etcd_socket(self) -> Path:
        return self.directory / "etcd" / "localhost:2379"

    def _etcd_unit(self) -> Unit:
        client = f"https://{self.control}:2379"
        folder = self.directory / "etcd"
        # etcd takes a unix socket only as unix://HOST:PORT, and makes a file of that name where it runs.
        options = {
            "name": "ctl",
            "data-dir": str(folder / "data"),
            "listen-client-urls": f"{client},unixs://localhost:2379",
            "advertise-client-urls": client,
            "listen-peer-urls": "unix://localhost:2380",
            "initial-advertise-peer-urls": "http://localhost:2380",
            "initial-cluster": "ctl=http://localhost:2380",
            "max-txn-ops": "40000",
            "max-request-bytes": str(10 << 20),
            "experimental-watch-progress-notify-interval": "2s",
            # One member elects itself after this many milliseconds; nothing else depends on them.
            "heartbeat-interval": "20",
            "election-timeout": "200",
            "logger": "zap",
            "log-level": "warn",
        }
        options |= {
            "cert-file": str(self.files.tls("etcd.crt")),
            "key-file": str(self.files.tls("etcd.key")),
            "trusted-ca-file": str(self.files.ca),
            # Users are known by their certificates, which the gateway could not tell.
            "client-cert-auth": "true",
            "enable-grpc-gateway": "false",
        }
        argv = ("etcd", *(f"--{name}={value}" for name, value in options.items()))
        return Unit(argv, (str(folder),), str(folder))

    def _etcd_ready(self) -> bool:
        context = ssl.create_default_context(cafile=self.files.ca)
        context.load_cert_chain(self.files.tls("root.crt"), self.files.tls("root.key"))
        connection = _UnixHTTPSConnection(self._etcd_socket, context)
        try:
            connection.request("GET", "/health")
            return b'"true"' in connection.getresponse().read()
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _api_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            try:
                client.connect(str(self.files.api_socket))
            except OSError:
                return False
            return True

    def start_etcd(self) -> None:
        """Start etcd and wait until it is healthy; nothing when it runs."""
        if self.etcd.pid is None:
            for socket_left in self._etcd_socket.parent.glob("localhost:*"):
                socket_left.unlink()  # of a killed etcd, which does not replace it
        self.etcd.start()

    def kill_etcd(self) -> None:
        """kill -9 etcd; its data stays."""
        self.etcd.kill()

    def start_api(self) -> None:
        """Start the API as its unit file says and wait until it accepts connections; nothing when it runs."""
        self.api.start()

    def kill_api(self) -> None:
        """kill -9 the API, all its processes."""
        self.api.kill()

    def kumi(self, *arguments: str, env: dict[str, str] | None = None, timeout: float = 30.0) -> str:
        """Run `kumi` outside the hosts with the lab's profiles and return its output; LabError when it fails."""
        argv = [str(Path(sys.prefix) / "bin" / "kumi"), *arguments]
        return run(argv, env={"KUMI_CONFIG": str(self.files.client), **(env or {})}, timeout=timeout)

    # Looking in

    def place(self, host: str) -> Host:
        """The host of that name, `ctl` included; LabError when there is none."""
        known = {**self.hosts, "ctl": self.ctl}
        if host not in known:
            raise LabError(f"no host {host!r}: there are {', '.join(known)}")
        return known[host]

    def capture(self, link: str, expression: str = "", write: Path | None = None) -> Capture:
        """Capture what passes a link (underlay, provider, management); see Network.capture."""
        return self.network.capture(link, expression, write)

    def status(self) -> str:
        """What runs, a line each."""

        def shown(service: Service) -> str:
            return f"{service.name} {f'runs, pid {service.pid}' if service.pid else 'is not running'}"

        if not self.directory.exists():
            return f"lab {self.name}: down"
        lines = [f"lab {self.name}: {self.directory}"]
        for host in (self.ctl, *self.hosts.values()):
            services = (self.etcd, self.api) if host is self.ctl else (host.agent,)
            parts = [f"on, management {host.management}", *map(shown, services)] if host.is_on else ["off"]
            parts += [f"{link} pulled" for link in sorted(host.pulled)]
            if host.is_on and host.workloads:
                parts.append(f"namespaces {' '.join(host.workloads)}")
            lines.append(f"  {host.name}: {', '.join(parts)}")
        return "\n".join(lines)


class _UnixHTTPSConnection(http.client.HTTPSConnection):
    """HTTPS over a unix socket."""

    def __init__(self, path: Path, context: ssl.SSLContext) -> None:
        super().__init__("localhost", timeout=2, context=context)
        self._path = path
        self._tls = context

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(2)
        self.sock.connect(str(self._path))
        self.sock = self._tls.wrap_socket(self.sock, server_hostname="localhost")


def labs(prefix: str = "") -> list[str]:
    """Names of the labs on this machine that begin with `prefix`, half-made or half-gone ones too."""
    names = {path.name for path in preflight.BASE.glob(f"{prefix}*") if path.is_dir()}
    ends = ("-net", "-out")
    names |= {name[:-4] for name in namespaces() if name.startswith(prefix) and name.endswith(ends)}
    return sorted(names)
