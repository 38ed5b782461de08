"""Where nodes are measured: a cloud of two hosts, with a flow made by hand beside it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from deploy.lab import Lab
from tests.system.cloud import Cloud, Scene
from tests.system.control import ControlFlow


@contextlib.contextmanager
def measured() -> Iterator[tuple[Cloud, Scene, ControlFlow]]:
    """It is gone afterwards, with all that was made in it."""
    with Lab.anew("ktbench", hosts=2) as lab:
        os.environ["KUMI_CONFIG"] = str(lab.files.client)
        cloud = Cloud(lab)
        cloud.start()
        try:
            yield cloud, Scene(cloud), ControlFlow(*cloud.hosts)
        finally:
            cloud.close()
