"""SkyPilot's clusters: what it plans, refuses and gives back; its machines are namespaces of this one."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from raykit.cluster import record as records
from raykit.cluster.places import provider
from raykit.errors import ClusterError
from raykit.spec import ClusterSpec
from raykit.spec.cluster import NodeGpus
from tests.ssh import hosts, sky
from tests.ssh.conftest import interrupted_once, sky_options
from tests.ssh.hosts import Network
from tests.ssh.moto import Ec2

SKY = provider("sky")
CODE = "from raykit.cluster.places import provider; from raykit.spec import ClusterSpec; provider('sky').up({spec!r}, told=print)"
THERE = ("pending", "running", "stopped")

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def rented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Network, Ec2]]:
    """A cloud without machines, and SkyPilot's server, for a module."""
    if lacking := sky.missing():
        pytest.skip(lacking)
    folder = tmp_path_factory.mktemp("sky")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYKIT_HOME", str(folder / "home"))
        with hosts.network(folder / "net", 0) as network, sky.cloud(network, patch.setenv) as hypervisor:
            yield network, hypervisor


@pytest.fixture
def spec(rented: tuple[Network, Ec2]) -> ClusterSpec:
    return ClusterSpec(name="lab", **sky_options(rented[1]))


@pytest.fixture
def instances(rented: tuple[Network, Ec2]) -> Callable[..., list[dict[str, object]]]:
    return rented[1].instances


def test_a_plan_names_what_skypilot_would_choose_and_its_price(spec: ClusterSpec, instances: Callable[..., list]) -> None:
    plan = repr(SKY.plan(replace(spec, num_nodes=2)))
    assert "m6i.large" in plan
    assert "0.19" in plan
    gpus = repr(SKY.plan(replace(spec, gpus_per_node=NodeGpus(kind="A10G"), spot=True)))
    assert "g5.xlarge" in gpus
    assert "0.40" in gpus
    assert instances() == []
    assert records.find("lab") is None


def test_what_skypilot_refuses_is_told_with_what_to_do_and_nothing_is_rented(
    spec: ClusterSpec, instances: Callable[..., list], monkeypatch: pytest.MonkeyPatch
) -> None:
    for asked, words in (
        (replace(spec, gpus_per_node=NodeGpus(kind="H900")), r"(?s)H900.*\nAsk for others"),
        (replace(spec, infra="gcp"), "sky check gcp"),
        (replace(spec, infra="nowhere"), "nowhere"),
    ):
        with pytest.raises(ClusterError, match=words):
            SKY.up(asked, told=print)
        assert records.find("lab") is None
    monkeypatch.setenv("RAYKIT_SKY", "/nowhere/sky")
    with pytest.raises(ClusterError, match=r"no program /nowhere/sky.*\nSkyPilot wants an environment of its own"):
        SKY.up(spec, told=print)
    assert instances(*THERE) == []


def test_an_interrupt_gives_back_what_was_rented(spec: ClusterSpec, instances: Callable[..., list]) -> None:
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt), interrupted_once(lambda: instances("running")):
        SKY.up(spec, told=told.append)
    assert told[-1] == "lab gives back what it has rented."
    assert records.find("lab") is None
    assert instances(*THERE) == []


def test_an_up_that_was_killed_is_taken_up_with_the_machines_that_it_rented(
    spec: ClusterSpec, instances: Callable[..., list]
) -> None:
    asking = subprocess.Popen([sys.executable, "-c", CODE.format(spec=spec)])
    while not instances("running"):
        assert asking.poll() is None
        time.sleep(0.02)
    asking.kill()
    asking.wait()
    (before,) = instances("running")
    SKY.up(spec, told=print)
    assert [each["InstanceId"] for each in instances(*THERE)] == [before["InstanceId"]]
    assert SKY.down("lab") is True
    assert instances(*THERE) == []


def test_machines_that_lack_something_are_given_back(spec: ClusterSpec, instances: Callable[..., list]) -> None:
    with pytest.raises(ClusterError, match="has no program /nowhere/python"):
        SKY.up(replace(spec, python="/nowhere/python"), told=print)
    assert instances(*THERE) == []
