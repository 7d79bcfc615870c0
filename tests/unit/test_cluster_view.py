"""A cluster's view and its face, of samples of its nodes."""

from raykit.codec import validate
from raykit.events import CLUSTER, GpuUse, NodeSampled, Record
from raykit.jupyter.table import Table
from raykit.render.nodes import NODE_HEADERS, node_rows
from raykit.views import ClusterView, NodeView, fold_cluster

GB = 1_000_000_000
VIEW = ClusterView(
    name="lab",
    simulated_gpus=False,
    nodes=(NodeView(node="a", alive=True, num_cpus=8, num_gpus=2), NodeView(node="b", alive=False, num_cpus=8, num_gpus=0)),
    num_cpus=8,
    num_cpus_free=5,
    num_gpus=2,
    num_gpus_free=1,
    object_store_bytes=GB,
)
BUSY = GpuUse(
    gpu="0",
    name="H100",
    utilization=0.87,
    memory_used_bytes=12 * GB,
    memory_bytes=80 * GB,
    power_w=310.4,
    temperature_c=64,
    throttled_by=("power cap",),
    users=("digits rank 0", "digits rank 1"),
)
LOST = GpuUse(gpu="1", name="H100", fault="GPU is lost")


def _sampled(*gpus, at_unix_s=10.0, node="a", num_cpus=3.25):
    sample = NodeSampled(node=node, num_cpus=num_cpus, memory_used_bytes=4 * GB, memory_bytes=16 * GB, gpus=gpus)
    return Record(number=1, at_unix_s=at_unix_s, run=CLUSTER, event=sample)


def _rows(view):
    return [dict(zip(NODE_HEADERS, row, strict=True)) for row in node_rows(view)]


def test_the_newest_sample_of_a_node_is_its_use():
    view = fold_cluster(fold_cluster(VIEW, _sampled(at_unix_s=20.0)), _sampled(at_unix_s=10.0, num_cpus=1.0))
    assert view.nodes[0].use.num_cpus == 3.25
    assert view.nodes[1].use is None


def test_each_gpu_has_a_row_with_its_use_and_its_users():
    node, busy, lost, _, whole = _rows(fold_cluster(VIEW, _sampled(BUSY, LOST)))
    assert (node["at work"], node["memory"], node["GPU slots"]) == ("3.25 cores", "4 GB of 16 GB", "2")
    assert (busy["node"], busy["state"], busy["at work"]) == ("  GPU 0 H100", "up, slowed by power cap", "87%")
    assert (busy["memory"], busy["power and heat"]) == ("12 GB of 80 GB", "310 W, 64 °C")
    assert busy["used by"] == "digits rank 0, digits rank 1"
    assert (lost["state"], lost["at work"], lost["used by"]) == ("GPU is lost", None, None)
    assert whole["state"] == "5 of 8 CPU slots free"


def test_a_node_that_was_not_sampled_is_unknown_and_so_are_gpus_without_a_driver():
    sample = NodeSampled(node="a", num_cpus=1.0, memory_used_bytes=0, memory_bytes=GB, gpus=None, fault="Driver Not Loaded")
    view = fold_cluster(VIEW, Record(number=1, at_unix_s=1.0, run=CLUSTER, event=sample))
    _, gpus, gone, _ = _rows(view)
    assert gpus["state"] == "unknown: Driver Not Loaded"
    assert (gone["state"], gone["at work"], gone["memory"]) == ("gone", None, None)
    assert "unknown" in repr(Table(NODE_HEADERS, list(node_rows(view)), empty=""))


def test_a_view_is_the_same_after_the_wire():
    import json
    from dataclasses import asdict

    view = fold_cluster(VIEW, _sampled(BUSY, LOST))
    assert validate(ClusterView, json.loads(json.dumps(asdict(view)))) == view
