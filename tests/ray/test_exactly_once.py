"""Three of the runs of benchmarks/exactly_once.py: replicas, nodes and the host are killed at random, and no row is lost."""

import pytest

import raykit as rk
from benchmarks._fire import stand, under_fire

pytestmark = pytest.mark.ray

NUM_ROWS = 10_000


@pytest.fixture(scope="module")
def fire(raykit_home):
    """The name of a cluster that each run finds with all of its nodes."""
    yield "fire"
    rk.down("fire")


@pytest.mark.slow
@pytest.mark.parametrize("seed", ["replicas", "hosts", "nodes"])
def test_every_row_is_once_in_the_sink_or_in_quarantine_whatever_is_killed(fire, seed):
    stand(fire)
    verdict = under_fire(f"fire-{seed}", NUM_ROWS, seed)
    assert verdict.holds, verdict
    assert sum(verdict.kills.values()), verdict
