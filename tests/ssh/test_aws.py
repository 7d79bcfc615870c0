"""What Amazon's cloud can refuse, and what its guards do; EC2 is moto's, its machines are namespaces of this one."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

import raykit as rk
from raykit.client import session
from raykit.cluster import record as records
from raykit.cluster.places import provider
from raykit.errors import ClusterDiffersError, ClusterError, MissingPackageError, RunStoppedError
from raykit.events import CLUSTER, CostCounted, Decided
from raykit.spec import ClusterSpec
from raykit.store.log import Log
from tests.ray import loops
from tests.ssh import hosts, moto
from tests.ssh.conftest import aws_options
from tests.ssh.moto import Ec2

AWS = provider("aws")

pytestmark = pytest.mark.ray


@pytest.fixture
def rented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ec2]:
    """A cloud without machines, and a home of this test's own."""
    if lacking := moto.missing():
        pytest.skip(lacking)
    monkeypatch.setenv("RAYKIT_HOME", str(tmp_path / "home"))
    with hosts.network(tmp_path / "net", 0) as network, moto.cloud(network, monkeypatch.setenv) as hypervisor:
        yield hypervisor


@pytest.fixture
def spec(rented: Ec2) -> ClusterSpec:
    return ClusterSpec(name="lab", **aws_options(rented))


def _refused(spec: ClusterSpec, words: str, kind: type[Exception] = ClusterError) -> None:
    with pytest.raises(kind, match=words):
        AWS.up(spec, told=print)
    assert records.find(spec.name) is None


def test_what_the_account_refuses_is_told_with_what_to_do_and_nothing_is_rented(
    rented: Ec2, spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refused(
        replace(spec, image="ami-00000000"), r"AWS refused: .*ami-00000000.*InvalidAMIID\.NotFound.*\nName an image of this region"
    )
    _refused(replace(spec, machine="m9.none"), "m9.none")
    with monkeypatch.context() as context:
        for name in moto.CREDENTIALS:
            context.delenv(name)
        context.setenv("AWS_EC2_METADATA_DISABLED", "true")
        _refused(spec, r"AWS was not asked: .*credentials.*\nLog in")
    with monkeypatch.context() as context:
        context.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        _refused(spec, r"AWS does not answer: .*\nIs this machine on the internet")
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "boto3", None)
        _refused(spec, r"pip install 'raykit\[aws\]'", MissingPackageError)
    assert rented.instances("pending", "running", "stopped") == []


def test_machines_that_lack_something_are_given_back(rented: Ec2, spec: ClusterSpec) -> None:
    _refused(replace(spec, python="/nowhere/python"), "has no program /nowhere/python")
    assert rented.instances("pending", "running", "stopped") == []


def test_an_up_that_fails_on_machines_that_were_stopped_keeps_them_known(rented: Ec2, spec: ClusterSpec) -> None:
    record, _ = AWS.up(spec, told=print)
    with pytest.raises(ClusterDiffersError, match="--region is us-west-2, asked eu-west-1"):
        AWS.up(replace(spec, region="eu-west-1"), told=print)
    AWS.suspend(record)
    with pytest.raises(ClusterError, match=r"given up waiting|ended while it started"):
        AWS.up(spec, told=print, timeout_s=-600)
    assert records.find("lab") is not None, "what is rented is known, so that it can be given back"
    assert len(rented.instances("running", "pending", "stopped")) == 1
    assert AWS.down("lab") is True
    assert rented.instances("pending", "running", "stopped") == []


def test_a_cluster_that_has_cost_its_budget_has_its_runs_save_and_shuts_down(rented: Ec2, spec: ClusterSpec) -> None:
    # It pays for two machines for 80 s: enough to come to a step.
    dear = replace(spec, num_nodes=2, price_per_node_h=720.0, budget=32.0)
    session.up_spec(dear)
    run = rk.train(loops.linear, 100_000, 0.05, workers=1, cpus=0.4, spares=0, name="dear")
    with pytest.raises(RunStoppedError):
        run.wait()
    assert run.view.checkpoint_step
    while len(rented.instances("stopped")) < 2:
        time.sleep(0.1)
    with closing(Log(records.cluster_folder("lab") / "log.sqlite")) as log:
        told = [record.event for record in log.read_all(kinds=(Decided, CostCounted)) if record.run == CLUSTER]
    assert told[-1].decision == "SuspendCluster"
    assert told[-1].reason.endswith("(--budget 32)")
    assert {view.name: view.state for view in session.runs("lab")} == {"dear": "stopped"}
    (lab,) = session.clusters()
    assert lab.health().why == f"{told[-1].reason}; its machines are stopped; their disks are kept"
    back = session.up("lab", place="aws", price_per_node_h=720.0, budget=1000.0)  # the rest as it was
    assert replace(back.record.spec, budget=32.0) == dear
    assert len(rented.instances("running")) == 2
    session.down("lab")
    assert rented.instances("pending", "running", "stopped") == []
