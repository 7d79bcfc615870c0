"""A cluster's map and rows, and what its widget tells a page."""

import json
from dataclasses import replace

import pytest

from raykit.errors import ClusterLostError
from raykit.jupyter import cluster_widget
from raykit.jupyter.cluster_widget import ClusterWidget
from raykit.render.cluster import NOBODY, cluster_face
from raykit.render.nodes import FAULT, UNKNOWN
from raykit.views.examples import cluster

MAX_BYTES = 64_000


def _cells(face, node):
    first = 0
    for domain in face.domains:
        for block in domain.nodes:
            if block.name == node:
                return slice(first, first + block.num_cells)
            first += block.num_cells
    raise LookupError(node)


def test_each_gpu_has_a_cell_with_its_use_and_its_owner():
    view = cluster()
    face = cluster_face(view)
    node = view.nodes[4]
    where = _cells(face, node.node)
    assert face.percents[where] == tuple(round(100 * gpu.utilization) for gpu in node.use.gpus)
    owners = [face.owners[owner] for owner in face.owner_of[where]]
    assert owners == [gpu.users[0].split()[0] if gpu.users else NOBODY for gpu in node.use.gpus]
    assert face.owners[0] == NOBODY


def test_racks_stand_in_their_order_whatever_the_order_of_the_nodes():
    view = cluster(num_nodes=88)
    face = cluster_face(replace(view, nodes=view.nodes[::-1]))
    assert [domain.name for domain in face.domains] == [f"rack {number}" for number in range(11)]
    assert sorted(node.name for domain in face.domains for node in domain.nodes) == sorted(node.node for node in view.nodes)


def test_what_is_gone_broken_or_unknown_is_no_zero():
    view = cluster()
    face = cluster_face(view)
    assert set(face.percents[_cells(face, "n001")]) == {FAULT}
    assert face.percents[_cells(face, "n002")][3] == FAULT
    unseen = replace(view, nodes=tuple(replace(node, use=None) for node in view.nodes))
    face = cluster_face(unseen)
    assert set(face.percents) == {UNKNOWN, FAULT}
    assert dict(face.figures)["GPUs at work"] == "unknown"
    assert {face.owners[owner] for owner in face.owner_of[_cells(face, "n000")]} == {"unknown"}


def test_a_node_without_gpus_has_one_cell_for_its_cpus():
    face = cluster_face(cluster())
    where = _cells(face, "n019")
    assert where.stop - where.start == 1
    assert face.percents[where][0] > 0
    assert not face.domains[-1].nodes[-1].has_gpus


def test_many_nodes_are_told_by_rack_and_one_by_its_gpus():
    view = cluster(num_nodes=40)
    assert [row[0] for row in cluster_face(view).rows] == ["rack 0", "rack 1", "rack 2", "rack 3", "rack 4"]
    rows = cluster_face(view, "n007").rows
    assert rows[0][:2] == ("n007", "up")
    assert len(rows) == 9


def test_who_waits_is_named_with_the_reason():
    assert cluster_face(cluster()).waiting == (("pretrain", "training", "32 ranks wait for GPUs: 24 are free"),)


def test_a_look_at_8000_gpus_is_one_message_without_the_shape_of_the_map(sent, click, monkeypatch):
    monkeypatch.setattr(cluster_widget, "LEAST_S", 0)
    seconds = iter(range(1, 10))
    widget = ClusterWidget(cluster(num_nodes=1001), lambda: cluster(num_nodes=1001, second=next(seconds)))
    sent.clear()
    click(widget, command="look")
    states = [json.loads(message)["state"] for message in sent]
    assert [set(state) for state in states if "now" in state] == [{"now"}]
    assert len(states[0]["now"]["percents"]) == 8001
    assert sum(map(len, sent)) <= MAX_BYTES
    assert widget.looks == 1


def test_two_pages_that_look_at_once_make_one_look(sent, click):
    looks = []
    widget = ClusterWidget(cluster(), lambda: looks.append(1) or cluster())
    click(widget, command="look")
    click(widget, command="look")
    assert looks == []  # the widget was made a moment ago
    assert widget.looks == 2


def test_a_cluster_that_goes_away_says_so_and_its_last_state_stays(sent, click, monkeypatch):
    monkeypatch.setattr(cluster_widget, "LEAST_S", 0)

    def look():
        raise ClusterLostError("Nobody answers at the door.", "See %ray doctor.")

    widget = ClusterWidget(cluster(), look)
    before = widget.now
    click(widget, command="look")
    assert "Nobody answers" in widget.said
    assert widget.now == before
    assert widget.looks == 1


def test_the_chosen_node_fills_the_rows(sent, click):
    widget = ClusterWidget(cluster(num_nodes=40), cluster)
    click(widget, command="choose", node="n003")
    assert widget.now["node"] == "n003"
    assert widget.now["rows"][0][0] == "n003"
    click(widget, command="choose", node="")
    assert widget.now["rows"][0][0] == "rack 0"


@pytest.mark.parametrize("mime", ["text/html", "text/plain"])
def test_without_a_kernel_its_racks_stay(sent, mime):
    assert "rack 4" in ClusterWidget(cluster(num_nodes=40), cluster).static()[mime]
