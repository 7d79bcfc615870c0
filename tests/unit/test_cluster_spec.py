import dataclasses

import pytest

from raykit.client import session
from raykit.cluster.base import price_words
from raykit.codec import validate
from raykit.errors import ClusterDiffersError, OptionError
from raykit.spec import ClusterSpec
from raykit.spec.cluster import NodeGpus
from raykit.spec.lines import ScaleLine
from raykit.spec.parse import HelpAsked, complete, parse


def _spec(line):
    return parse(ClusterSpec, line, command="%ray up")


def test_a_line_for_kubernetes_becomes_a_spec_and_survives_json():
    spec = _spec("lab --on k8s --nodes 0:8 --gpus-per-node A100:4 --idle 20m --labels team=vision")
    assert (spec.min_nodes, spec.max_nodes, spec.gpus_per_node, spec.idle_s) == (0, 8, NodeGpus(kind="A100", count=4), 1200)
    import json

    assert validate(ClusterSpec, json.loads(json.dumps(dataclasses.asdict(spec)))) == spec


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("lab --delete-after 7d", "--delete-after means nothing for --on local"),
        ("lab --on sky --delete-after 7d", "--delete-after means nothing for --on sky"),
        ("lab --on k8s --delete-after 0", "--delete-after is 0"),
        ("lab --image x", "--image means nothing for --on local"),
        ("lab --idle 5m", "--idle means nothing for --on local"),
        ("lab --on aws --infra gcp", "--infra means nothing for --on aws"),
        ("My_Lab --on gcp", "'My_Lab' cannot name a cluster in Google's cloud"),
        ("lab --on gcp --region us-central1", "--region us-central1 is no zone of Google's cloud"),
        ("lab --on gcp --nodes 1:2", "nodes of Google's cloud do not come and go by themselves"),
        ("lab --on sky --gpus-per-node 4", "names no type, and SkyPilot wants one"),
        ("lab --on sky --nodes 1:4", "do not come and go by themselves"),
        ("lab --on k8s --simulate-gpus 2", "--simulate-gpus means nothing for --on k8s"),
        ("lab --on k8s --profile small", "--profile means nothing for --on k8s"),
        ("lab --on moon", r"There is no place 'moon'"),
        ("lab --nodes 1:3", "do not come and go by themselves"),
        ("Lab_1 --on k8s", "Use small letters"),
        ("lab --on k8s --nodes 0", "--nodes is 0"),
        ("lab --on k8s --gpus-per-node A100:0", "--gpus-per-node is A100:0"),
        ("lab --on k8s --gpus-per-node :4", "names no GPU type"),
        ("lab --on k8s --labels team", "no list of KEY=VALUE"),
        ("lab --on k8s --idle 0", "--idle is 0"),
        ("lab --on k8s --idle-gpus 5%", "--idle-gpus was given, and not for how long"),
        ("lab --on k8s --budget 200", "--budget was given, and what a node costs is not known here"),
        ("lab --on k8s --price 4 --budget 0", "--budget is 0"),
    ],
)
def test_what_a_place_does_not_know_or_cannot_be_is_refused_with_a_sentence(line, words):
    with pytest.raises(OptionError, match=words):
        _spec(line)


def test_a_cap_on_cost_needs_a_price_and_holds_for_scaling_too():

    with pytest.raises(OptionError, match="what a node costs is not known here"):
        _spec("lab --on k8s --max-cost 30/h")
    with pytest.raises(OptionError, match="no rate: write it as 30/h"):
        _spec("lab --on k8s --max-cost 30")
    spec = _spec("lab --on k8s --nodes 0:7 --price 4 --max-cost 30/h")
    with pytest.raises(OptionError, match=r"8 nodes cost 32\.00 an hour, more than --max-cost 30/h\.\nIt pays for 7 nodes"):
        dataclasses.replace(spec, num_nodes=(0, 8))
    assert price_words(spec) == "By --price its workers cost 0.00 to 28.00 an hour; the head is not counted."


def test_the_help_says_which_places_know_an_option():
    with pytest.raises(HelpAsked) as asked:
        _spec("--help")
    assert "(k8s, fake)" in " ".join(str(asked.value).split())
    assert "--gpus-per-node" in complete((ClusterSpec,), "--gpus")


def test_scaling_needs_a_cluster_and_a_number():
    assert parse(ScaleLine, "lab 2:8", command="%ray scale").num_nodes == (2, 8)
    with pytest.raises(OptionError, match=r"%ray scale NAME 2:8"):
        parse(ScaleLine, "lab", command="%ray scale")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKIT_HOME", str(tmp_path / "home"))


def test_a_fake_cluster_takes_the_options_of_kubernetes_and_says_that_it_runs_nothing(home):
    from raykit.errors import ClusterError
    from raykit.spec import TaskSpec

    cluster = session.up("try", place="fake", num_nodes=(2, 8), gpus_per_node=NodeGpus(kind="A100", count=4), image="x")
    try:
        assert [node.num_gpus for node in session.status("try").nodes] == [4, 4]
        assert session.runs("try") == []
        with pytest.raises(ClusterError, match="is a fake: it runs nothing"):
            cluster.door.start(TaskSpec(name="x"), b"", key="1")
        assert session.scale("try", num_nodes=3).record.spec.num_nodes == 3
        assert "Its price is not known here" in repr(session.plan("try", place="fake", num_nodes=3))
    finally:
        session.down("try")


def test_a_cluster_elsewhere_comes_back_by_its_name_as_it_was(home):
    session.up("lab", place="fake", num_nodes=2, price_per_node_h=4.0, budget=100.0, image="x")
    try:
        session.scale("lab", num_nodes=3)
        session.suspend("lab")
        back = session.up("lab")
        assert (back.record.spec.place, back.record.spec.num_nodes, back.record.spec.image) == ("fake", 3, "x")
        assert session.up("lab", place="fake").record.spec.budget == 100.0
        line = parse(ClusterSpec, "lab --price 5 --budget 200", command="%ray up", make=session.spec_of)
        assert line == dataclasses.replace(back.record.spec, price_per_node_h=5.0, budget=200.0)
        here = parse(ClusterSpec, "lab --on local", command="%ray up", make=session.spec_of)
        assert here == ClusterSpec(name="lab"), "who says where means that place"
        with pytest.raises(ClusterDiffersError, match="--on is fake, asked local"):
            session.up_spec(here)
    finally:
        session.down("lab")
    assert session.plan("lab").things[0] != ("record", "a file; nothing runs"), "what was ended is known no more"


def test_a_cluster_that_was_suspended_for_too_long_is_ended_when_clusters_are_listed_and_told_of(home):
    asked = {"old": 1e-6, "young": 3600.0, "kept": None}
    made = {name: session.up(name, place="fake", delete_after_s=delete_after_s) for name, delete_after_s in asked.items()}
    for name in asked:
        session.suspend(name)
        assert ("it is ended from" in made[name].health().why) == (name != "kept")
    told = []
    try:
        session.up("old")
        session.end_overdue(told=told.append)
        assert told == [], "who brings it back wants it"
        session.suspend("old")
        session.end_overdue(told=told.append)
        assert told == ["Cluster old is down; its runs are kept. It was suspended for longer than its --delete-after."]
        assert {each.name for each in session.clusters()} == {"young", "kept"}
    finally:
        for name in ("old", "young", "kept"):
            session.down(name)


def test_a_cluster_that_has_cost_its_budget_comes_back_with_another_one(home):
    session.up("lab", place="fake", num_nodes=2, price_per_node_h=4.0, budget=100.0)
    try:
        with pytest.raises(ClusterDiffersError, match="lab is up with other options: --budget is 100, asked 200"):
            session.up("lab", place="fake", price_per_node_h=4.0, budget=200.0)
        session.suspend("lab")
        with pytest.raises(ClusterDiffersError, match="lab is known with other options: --nodes is 2, asked 5"):
            session.up("lab", place="fake", num_nodes=5, price_per_node_h=4.0, budget=200.0)
        spec = session.up("lab", place="fake", price_per_node_h=4.0, budget=200.0).record.spec
        assert (spec.num_nodes, spec.price_per_node_h, spec.budget) == (2, 4.0, 200.0)
    finally:
        session.down("lab")
