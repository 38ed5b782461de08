"""One cloud for all system tests: three hosts with an agent each, etcd and the API as real processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.lab import Host, Lab
from tests.component import release
from tests.system.cloud import Cloud, Scene
from tests.system.control import ControlFlow

# Two runs on one machine need two names.
NAME = os.environ.get("KUMI_TEST_LAB", "ktsys")
NEXT = "0.2.0"


@contextlib.contextmanager
def running(lab: Lab, ip_version: int = 4) -> Iterator[Cloud]:
    """A lab as a cloud, with $KUMI_CONFIG set to it."""
    before = os.environ.get("KUMI_CONFIG")
    os.environ["KUMI_CONFIG"] = str(lab.files.client)
    cloud = Cloud(lab)
    try:
        cloud.start(ip_version)
        yield cloud
    finally:
        cloud.close()
        if before is None:
            del os.environ["KUMI_CONFIG"]
        else:
            os.environ["KUMI_CONFIG"] = before


@pytest.fixture(scope="session")
def cloud() -> Iterator[Cloud]:
    with Lab.anew(NAME, hosts=3, tracing=True) as lab, running(lab) as cloud:
        yield cloud


@pytest.fixture(scope="module")
def cloud6() -> Iterator[Cloud]:
    """Another cloud, of two hosts, whose underlay is IPv6; it ends with the module."""
    with Lab.anew(f"{NAME}6", hosts=2) as lab, running(lab, 6) as cloud:
        yield cloud


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of the next release."""
    folder = tmp_path_factory.mktemp("next")
    return release.install(release.wheel(folder / "wheel", NEXT), folder / "kumihimo")


@pytest.fixture
def restored(cloud: Cloud) -> Iterator[None]:
    """The cloud runs the tree's release again, whatever became of the test."""
    services = [cloud.lab.api, *(host.agent for host in cloud.hosts)]
    before = [service.unit for service in services]
    yield
    for service, unit in zip(services, before, strict=True):
        if service.unit != unit:
            service.replace(unit)


@pytest.fixture
def scene(cloud: Cloud) -> Iterator[Scene]:
    """What a test makes; taken away after it, and nothing may be left."""
    cloud.ensure()
    scene = Scene(cloud)
    yield scene
    scene.close()


@pytest.fixture
def h1(cloud: Cloud) -> Host:
    return cloud.hosts[0]


@pytest.fixture
def h2(cloud: Cloud) -> Host:
    return cloud.hosts[1]


@pytest.fixture
def h3(cloud: Cloud) -> Host:
    return cloud.hosts[2]


@pytest.fixture(scope="module")
def control(cloud: Cloud) -> Iterator[ControlFlow]:
    """A flow made by hand between h1 and h2."""
    flow = ControlFlow(*cloud.hosts[:2])
    yield flow
    flow.remove()
