"""The picker of clusters, at the place that runs nothing."""

import threading

import pytest

from raykit.client import session
from raykit.cluster import record as records
from raykit.jupyter.picker import ClusterPicker
from raykit.spec import ClusterSpec
from raykit.spec.cluster import PLACES


@pytest.fixture
def picker(sent):
    yield (made := ClusterPicker())
    made.wait(timeout_s=10)
    for cluster in session.clusters():
        session.down(cluster.name)


def _rows(picker):
    return {row["name"]: row for row in picker.now["clusters"]}


def test_its_form_has_every_option_of_the_spec_and_every_place(picker):
    flags = {field["flag"] for field in picker.form["fields"]}
    options = {each.metadata["option"][0][0] for each in ClusterSpec.__dataclass_fields__.values()}
    assert flags == options - {"NAME", "--on"}
    assert dict(picker.form["places"]) == PLACES


def test_a_plan_shows_what_would_be_made_with_its_price_and_makes_nothing(picker, click):
    options = {"--nodes": "1:8", "--gpus-per-node": "A100:4", "--price": "4.10"}
    click(picker, command="plan", name="lab", place="fake", options=options)
    assert picker.now["line"] == "%ray up lab --on fake --nodes 1:8 --gpus-per-node A100:4 --price 4.10"
    assert ("--gpus-per-node", "A100:4") in map(tuple, picker.now["plan"])
    assert "4.10 to 32.80 an hour" in picker.now["price"]
    assert session.clusters() == []


def test_a_cluster_is_started_scaled_used_and_ended_by_clicks(picker, click):
    click(picker, command="start", name="lab", place="fake", options={"--nodes": "2"})
    picker.wait()
    assert picker.said.startswith("Cluster lab is up")
    assert (_rows(picker)["lab"]["state"], _rows(picker)["lab"]["current"]) == ("up", True)
    click(picker, command="scale", name="lab", nodes="2:6")
    picker.wait()
    assert _rows(picker)["lab"]["nodes"] == "2:6"
    session.up("other", place="fake")
    click(picker, command="use", name="lab")
    assert session.get().name == "lab"
    click(picker, command="suspend", name="lab")
    picker.wait()
    assert _rows(picker)["lab"]["state"] == "suspended"
    click(picker, command="stop", name="lab")
    picker.wait()
    assert picker.said == "Cluster lab is down; its runs are kept."
    assert set(_rows(picker)) == {"other"}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"command": "start", "name": "a b", "place": "fake", "options": {}}, "cannot name a cluster"),
        ({"command": "start", "name": "lab", "place": "fake", "options": {"--nodes": "two"}}, "is not a whole number"),
        ({"command": "plan", "name": "lab", "place": "local", "options": {"--queue": "q"}}, "means nothing for --on local"),
        ({"command": "plan", "name": "lab", "place": "fake", "options": {"--labels": "a"}}, "is no list of KEY=VALUE"),
        ({"command": "scale", "name": "lab", "nodes": "8:2"}, "goes from more to less"),
        ({"command": "scale", "name": "lab", "nodes": "2"}, "No cluster lab is up"),
        ({"command": "use", "name": "lab"}, "No cluster lab is up"),
        ({"command": "launch"}, "another version"),
    ],
)
def test_what_cannot_be_is_answered_with_a_sentence_and_makes_nothing(picker, click, message, words):
    click(picker, **message)
    picker.wait()
    assert words in picker.said
    assert session.clusters() == []


def test_a_second_start_waits_for_the_end_of_the_first(picker, click):
    with records.locked("lab"):  # as another notebook would hold it that starts the same cluster
        click(picker, command="start", name="lab", place="fake", options={})
        click(picker, command="start", name="other", place="fake", options={})
        assert picker.said.startswith("Not yet: lab starts.")
        assert picker.now["doing"] == "lab starts"
    picker.wait()
    assert set(_rows(picker)) == {"lab"}


def test_looks_see_what_a_cell_has_changed(picker, click):
    session.up("lab", place="fake")
    click(picker, command="look")
    assert set(_rows(picker)) == {"lab"}
    assert picker.looks == 1


def test_its_work_ends_with_no_thread_of_its_own(picker, click):
    click(picker, command="start", name="lab", place="fake", options={})
    picker.wait()
    assert "lab starts" not in {thread.name for thread in threading.enumerate()}


def test_without_a_kernel_it_is_the_list_of_clusters(picker):
    assert "No cluster is up" in picker.static()["text/plain"]
    session.up("lab", place="fake")
    assert "lab" in picker.static()["text/html"]
