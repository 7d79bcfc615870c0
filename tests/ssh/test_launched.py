"""What is given back of what a cloud rents to raykit, whatever becomes of who asked for it.

The clouds are stand-ins, Amazon's is moto's, and their machines are namespaces of this one.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from raykit.cluster import record as records
from raykit.cluster.places import provider
from raykit.cluster.rented.cloud import Rented
from raykit.cluster.rented.launched import Launched
from raykit.cluster.rented.provider import OnRented
from raykit.errors import ClusterDiffersError
from raykit.spec import ClusterSpec
from tests.ssh import google, hosts, moto
from tests.ssh.conftest import aws_options, gcp_options, interrupted_once
from tests.ssh.hypervisor import Hypervisor

pytestmark = pytest.mark.ray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """How a cloud is stood in for; another type of machine than the one that is asked for by itself, and what a plan says of it."""

    missing: Callable[[], str]
    serve: Callable[..., AbstractContextManager[Any]]
    options: Callable[[Any], dict[str, Any]]
    other: str
    planned: str


CLOUDS = {
    "aws": Cloud(
        missing=moto.missing,
        serve=moto.cloud,
        options=aws_options,
        other="g4dn.xlarge",
        planned="spot g4dn.xlarge in us-west-2: 4 CPU, 1 GPU",
    ),
    "gcp": Cloud(
        missing=google.missing,
        serve=google.cloud,
        options=gcp_options,
        other="g2-standard-4",
        planned="spot g2-standard-4 in us-central1-a: 4 CPU, 1 GPU",
    ),
}


@pytest.fixture(params=CLOUDS)
def cloud(request: pytest.FixtureRequest) -> Cloud:
    chosen = CLOUDS[request.param]
    if lacking := chosen.missing():
        pytest.skip(lacking)
    return chosen


@pytest.fixture
def rented(cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hypervisor]:
    """A cloud without machines, and a home of this test's own."""
    monkeypatch.setenv("RAYKIT_HOME", str(tmp_path / "home"))
    with hosts.network(tmp_path / "net", 0) as network, cloud.serve(network, monkeypatch.setenv) as hypervisor:
        yield hypervisor


@pytest.fixture
def spec(cloud: Cloud, rented: Hypervisor) -> ClusterSpec:
    return ClusterSpec(name="lab", **cloud.options(rented))


@pytest.fixture
def place(spec: ClusterSpec) -> OnRented:
    found = provider(spec.place)
    assert isinstance(found, OnRented)
    return found


def _killed_when_it_has_rented(rented: Hypervisor, spec: ClusterSpec) -> str:
    """Begin to make a cluster, kill who makes it once its machine runs, and give the machine's name."""
    code = f"from raykit.cluster.places import provider; from raykit.spec import ClusterSpec; provider({spec.place!r}).up({spec!r}, told=print)"
    asking = subprocess.Popen([sys.executable, "-c", code])
    while not rented.running():
        assert asking.poll() is None
        time.sleep(0.02)
    asking.kill()
    asking.wait()
    (machine,) = rented.running()
    return machine


def test_a_plan_rents_nothing_and_knows_what_a_machine_has(
    cloud: Cloud, rented: Hypervisor, spec: ClusterSpec, place: OnRented
) -> None:
    plan = repr(place.plan(replace(spec, num_nodes=2, machine=cloud.other, price_per_node_h=0.5, spot=True)))
    assert cloud.planned in plan
    assert "By --price it costs 1.00 an hour. Nothing was made." in plan
    assert rented.wanted() == []


def test_an_interrupt_gives_back_what_was_rented(rented: Hypervisor, spec: ClusterSpec, place: OnRented) -> None:
    with pytest.raises(KeyboardInterrupt), interrupted_once(rented.running):
        place.up(spec, told=print)
    assert records.find("lab") is None
    assert rented.wanted() == []


def test_an_up_that_was_killed_is_taken_up_with_the_machines_that_it_rented(
    cloud: Cloud, rented: Hypervisor, spec: ClusterSpec, place: OnRented
) -> None:
    before = _killed_when_it_has_rented(rented, spec)
    record, _ = place.up(spec, told=print)
    assert rented.running() == [before]
    with pytest.raises(ClusterDiffersError, match=rf"--machine is .*, asked {cloud.other}"):
        place.up(replace(spec, machine=cloud.other), told=print)
    assert place.down("lab") is True
    assert rented.wanted() == []
    assert place.status(record).state == "gone"


def test_an_up_that_was_killed_can_be_given_back_without_taking_it_up(
    rented: Hypervisor, spec: ClusterSpec, place: OnRented
) -> None:
    _killed_when_it_has_rented(rented, spec)
    assert place.down("lab") is True
    assert rented.wanted() == []


def test_machines_that_nobody_uses_shut_themselves_down(rented: Hypervisor, spec: ClusterSpec, place: OnRented) -> None:
    idle = replace(spec, num_nodes=2, idle_s=12)  # longer than `up` takes
    record, _ = place.up(idle, told=print)
    while len(rented.stopped()) < 2:
        time.sleep(0.1)
    health = place.status(record)
    assert (health.state, health.why) == ("suspended", "its machines are stopped; their disks are kept")
    _, word = place.up(idle, told=print)
    assert word == "is up again, on the machines that it had"
    assert place.down("lab") is True
    assert rented.wanted() == []


def test_what_is_up_already_is_looked_at_once(spec: ClusterSpec, place: OnRented, monkeypatch: pytest.MonkeyPatch) -> None:
    place.up(spec, told=print)
    looks, look = [], Launched.look

    def counted(cloud: Launched) -> list[Rented]:
        looks.append(cloud)
        return look(cloud)

    monkeypatch.setattr(Launched, "look", counted)
    _, word = place.up(spec, told=print)
    assert word == "is up already"
    assert len(looks) == 1
