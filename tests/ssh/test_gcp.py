"""What Google's cloud can refuse; Compute Engine is a stand-in, its machines namespaces of this one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from raykit.cluster import record as records
from raykit.cluster.places import provider
from raykit.errors import ClusterError, MissingPackageError
from raykit.spec import ClusterSpec
from tests.ssh import google, hosts
from tests.ssh.conftest import gcp_options
from tests.ssh.google import Google, RefusalError, checked

GCP = provider("gcp")

pytestmark = pytest.mark.ray


@pytest.fixture
def rented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Google]:
    """A cloud without machines, and a home of this test's own."""
    if lacking := google.missing():
        pytest.skip(lacking)
    monkeypatch.setenv("RAYKIT_HOME", str(tmp_path / "home"))
    with hosts.network(tmp_path / "net", 0) as network, google.cloud(network, monkeypatch.setenv) as hypervisor:
        yield hypervisor


@pytest.fixture
def spec(rented: Google) -> ClusterSpec:
    return ClusterSpec(name="lab", **gcp_options(rented))


def _refused(spec: ClusterSpec, words: str, kind: type[Exception] = ClusterError) -> None:
    with pytest.raises(kind, match=words):
        GCP.up(spec, told=print)
    assert records.find(spec.name) is None


def test_what_the_project_refuses_is_told_with_what_to_do_and_nothing_is_rented(
    rented: Google, spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refused(
        replace(spec, image="projects/none/global/images/none"), r"Google refused: .*images/none.*\(notFound\)\nName what is there"
    )
    _refused(replace(spec, machine="m9-none"), r"machineTypes/m9-none.*\nName what is there")
    _refused(replace(spec, region="us-nowhere1-a"), r"Unknown zone.*\nName what is there")
    _refused(
        replace(spec, machine=google.SOLD_OUT), r"not have enough resources \(ZONE_RESOURCE_POOL_EXHAUSTED\)\nName another type"
    )
    rented.rights = False
    _refused(spec, r"Required 'compute.instances.create' permission.*\nAsk whoever gives rights")
    with monkeypatch.context() as context:
        context.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE", "http://127.0.0.1:9/compute/v1/")
        _refused(spec, r"Google does not answer: .*\nIs this machine on the internet")
    with monkeypatch.context() as context:
        context.delenv("GOOGLE_APPLICATION_CREDENTIALS")
        _refused(spec, r"Google was not asked: .*\nLog in: gcloud auth application-default login")
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "googleapiclient", None)
        _refused(spec, r"pip install 'raykit\[gcp\]'", MissingPackageError)
    assert rented.instances() == []


def test_credentials_that_google_does_not_take_are_told_apart_from_none(
    rented: Google, spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Path(os.environ["GOOGLE_APPLICATION_CREDENTIALS"])
    account.write_text(account.read_text().replace("/token", "/compute/v1/projects/none"))
    _refused(spec, r"Google took no credentials: .*\nLog in: gcloud auth application-default login")


@pytest.mark.parametrize("spot", [False, True])
def test_a_machine_with_gpus_is_asked_for_as_google_wants_it(rented: Google, spec: ClusterSpec, spot: bool) -> None:
    record, _ = GCP.up(replace(spec, machine="g2-standard-4", spot=spot), told=print)
    (machine,) = rented.instances("RUNNING")
    assert machine["scheduling"].get("provisioningModel") == ("SPOT" if spot else None)
    assert GCP.down(record.name) is True
    assert rented.instances() == []


def test_the_stand_in_refuses_what_google_does_not_know() -> None:
    if lacking := google.missing():
        pytest.skip(lacking)
    assert checked("Instance", {"name": "a", "disks": [{"boot": True}]})
    for wrong in ({"nome": "a"}, {"disks": [{"boot": "yes"}]}, {"scheduling": {"provisioningModel": "CHEAP"}}):
        with pytest.raises(RefusalError, match=r"Unknown name|Invalid value"):
            checked("Instance", wrong)
