"""A lab of hosts on one machine, for the demo, tests and benchmarks. `Lab` is the way in."""

from deploy.lab.config import IDENTITIES
from deploy.lab.host import Host
from deploy.lab.lab import Lab, labs
from deploy.lab.network import Capture
from deploy.lab.place import Namespace, Pings, RunningPing
from deploy.lab.process import Background, LabError, wait_until
from deploy.lab.workload import Workload, lease

__all__ = [
    "IDENTITIES",
    "Background",
    "Capture",
    "Host",
    "Lab",
    "LabError",
    "Namespace",
    "Pings",
    "RunningPing",
    "Workload",
    "labs",
    "lease",
    "wait_until",
]
