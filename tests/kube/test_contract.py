"""The contract of every provider of clusters: raykit/cluster/base.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from raykit.cluster import record as records
from raykit.cluster.base import Provider
from raykit.cluster.places import provider
from raykit.errors import ClusterDiffersError
from raykit.spec import ClusterSpec
from raykit.wire.door import Door
from tests.kube.conftest import operating
from tests.ssh import google, hosts, moto, sky
from tests.ssh.conftest import aws_options, gcp_options, sky_options
from tests.ssh.conftest import options as ssh_options

CLOUDS: dict[str, Any] = {"aws": (moto, aws_options), "gcp": (google, gcp_options), "sky": (sky, sky_options)}
"""What serves a cloud here, and gives the options by which a cluster is made in it."""


class Place:
    """A provider and the options by which it makes the smallest cluster here."""

    def __init__(self, provider: Provider, **options: Any) -> None:
        self.provider = provider
        self.options = options
        self.told: list[str] = []

    def spec(self, **more: Any) -> ClusterSpec:
        return ClusterSpec(**self.options | more)

    def up(self, **more: Any) -> Any:
        return self.provider.up(self.spec(**more), told=self.told.append)

    def ping(self, record: Any) -> dict[str, Any]:
        with closing(self.provider.connect(record)) as way, closing(Door(way.url, record.token)) as door:
            return door.ping()


@pytest.fixture(
    params=[
        "fake",
        "kuberay",
        pytest.param("kuberay-real", marks=pytest.mark.k8s),
        pytest.param("local", marks=pytest.mark.ray),
        pytest.param("ssh", marks=pytest.mark.ray),
        pytest.param("aws", marks=pytest.mark.ray),
        pytest.param("gcp", marks=pytest.mark.ray),
        pytest.param("sky", marks=pytest.mark.ray),
    ]
)
def place(request: pytest.FixtureRequest, home: Any, tmp_path: Path) -> Iterator[Place]:
    options: dict[str, Any] = {"place": "fake"}
    with ExitStack() as stack:
        if request.param.startswith("kuberay"):
            kind = "real" if request.param.endswith("real") else "strict"
            kubernetes = request.getfixturevalue(f"{kind}_kubernetes")
            stack.enter_context(operating(kubernetes))
            options = {"place": "k8s", "kubeconfig": kubernetes.kubeconfig, "num_nodes": 1}
        elif request.param == "local":
            options = {"place": "local", "num_cpus": 1, "object_store_bytes": 80_000_000}
        elif request.param == "ssh":
            if lacking := hosts.missing():
                pytest.skip(lacking)
            options = ssh_options(stack.enter_context(hosts.network(tmp_path / "net", 2)), num_nodes=1)
        elif request.param in CLOUDS:
            cloud, options_of = CLOUDS[request.param]
            if lacking := cloud.missing():
                pytest.skip(lacking)
            network = stack.enter_context(hosts.network(tmp_path / "net", 0))
            options = options_of(stack.enter_context(cloud.cloud(network, request.getfixturevalue("monkeypatch").setenv)))
        place = Place(provider(options["place"]), name="contract", **options)
        yield place
        place.provider.down("contract")


def test_a_cluster_lives_through_the_contract(place: Place) -> None:
    """One test for what costs a start; in the order in which a person would do it."""
    assert place.provider.plan(place.spec()).things
    assert records.find("contract") is None, "a plan makes nothing"

    record, word = place.up()
    assert word.startswith("is up")
    assert records.find("contract") == record
    assert place.provider.status(record).state == "up"
    assert place.ping(record)["name"] == "contract"
    assert place.provider.plan(place.spec()).things, "also of what is there"
    assert record.token not in (record.folder / "record.json").read_text()

    again, word = place.up()
    assert (again, word) == (record, "is up already")
    with pytest.raises(ClusterDiffersError, match="--cpus"):
        place.up(num_cpus=7)

    wider = place.provider.scale(record, 2)
    assert wider.spec.num_nodes == 2
    assert place.provider.scale(wider, 2) == wider
    assert records.find("contract") == wider
    assert place.ping(wider)["name"] == "contract"
    assert place.provider.scale(wider, 1).spec.num_nodes == 1

    assert isinstance(place.provider.logs(record), str)
    assert place.provider.down("contract") is True
    assert place.provider.down("contract") is False
    assert records.find("contract") is None
    assert place.provider.status(record).state == "gone"
    assert not (record.folder / "token").exists()


def test_a_cluster_that_is_suspended_is_brought_back_by_up(place: Place) -> None:
    if place.options["place"] in ("local", "ssh"):
        pytest.skip(
            "a person's own machines have nothing to give back: tests/unit/test_local_cluster.py, tests/ssh/test_refusals.py"
        )
    record, _ = place.up()
    place.provider.suspend(record)
    health = place.provider.status(record)
    assert health.state == "suspended"
    assert health.why
    if place.options["place"] != "sky":  # which tells no moment
        assert health.since_unix_s == pytest.approx(time.time(), abs=120)
    back, word = place.up()
    assert word.startswith("is up again")
    assert place.provider.status(back).state == "up"
