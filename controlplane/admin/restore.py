"""`kumi restore`: makes a data directory for etcd out of a backup, by `etcdctl snapshot restore`.

The new directory is another cluster, by a token that was never used: so everybody who remembers revisions of the former one
(agents, API replicas, clients who wait) can tell that they mean nothing any more (controlplane/store/restored.py).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from pathlib import Path

import click

from controlplane.admin.backup import checked
from controlplane.admin.common import Failure

PATIENCE = 600  # seconds
PEER = "http://localhost:2380"


@click.command(
    epilog="\b\nExample:\n"
    "  systemctl stop etcd; mv /var/lib/etcd/default /var/lib/etcd/before\n"
    "  kumi restore kumihimo.db --data-dir /var/lib/etcd/default; systemctl start etcd\n\n"
    "Of several members each is restored on its own host, from the same file, with its own --name and --peer-url, the same\n"
    "--initial-cluster and the same --token."
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--data-dir", type=click.Path(path_type=Path), required=True, help="The directory to make; it must not exist.")
@click.option("--name", default="default", show_default=True, help="The member's name (etcd's --name).")
@click.option("--peer-url", default=PEER, show_default=True, help="Its address for the others (--initial-advertise-peer-urls).")
@click.option("--initial-cluster", metavar="NAME=URL,...", help="All members; without it, this one alone.")
@click.option("--token", help="Names the new cluster; one that was never used. Without it, one is made.")
def restore(file: Path, data_dir: Path, name: str, peer_url: str, initial_cluster: str | None, token: str | None) -> None:
    """Make etcd's data directory from a backup. The data plane goes on meanwhile, and follows when etcd is started."""
    if data_dir.exists():
        raise Failure(f"{data_dir} exists; move it away first, so that nothing is lost")
    if not data_dir.parent.is_dir():
        raise Failure(f"{data_dir.parent} is no directory; make it first")
    if initial_cluster and not token:
        raise Failure("--initial-cluster needs --token: the members of one cluster must be restored with the same one")
    checked(file)
    program = shutil.which("etcdctl")
    if program is None:
        raise Failure("there is no etcdctl on this host; it is in the package etcd-client")
    part = data_dir.with_name(data_dir.name + ".part")
    if part.exists():
        raise Failure(f"{part} exists: another restoration is under way, or was cut off; remove it then")
    options = {
        "data-dir": str(part),
        "name": name,
        "initial-advertise-peer-urls": peer_url,
        "initial-cluster": initial_cluster or f"{name}={peer_url}",
        "initial-cluster-token": token or f"kumihimo-{uuid.uuid4()}",
    }
    argv = [program, "snapshot", "restore", str(file), *(f"--{option}={value}" for option, value in options.items())]
    try:
        _run(argv)
        _give(part, data_dir.parent)
        part.rename(data_dir)
    except OSError as error:
        raise Failure(f"{data_dir} could not be made: {error.strerror}") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    click.echo(f"{data_dir}: restored from {file}; start etcd on it")


def _run(argv: list[str]) -> None:
    try:
        done = subprocess.run(
            argv, env={**os.environ, "ETCDCTL_API": "3"}, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"etcdctl did not end within {PATIENCE} s") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it did not say why"]
        raise Failure(f"etcdctl could not restore it: {lines[-1]}")


def _give(folder: Path, like: Path) -> None:
    """To the owner of the folder it comes to: etcd's user, where etcd was installed as a package."""
    if os.geteuid() != 0:
        return
    owner = like.stat()
    for place, _, names in os.walk(folder):
        for path in [place, *(os.path.join(place, name) for name in names)]:
            os.chown(path, owner.st_uid, owner.st_gid)
