"""What can be known of a local cluster without starting one."""

import dataclasses
import json
import os
import stat
import time
from pathlib import Path

import pytest

from raykit.client import session
from raykit.cluster import local
from raykit.cluster import record as records
from raykit.cluster.home import clusters_home, private_folder, write_secret
from raykit.cluster.local import Local
from raykit.cluster.record import LocalRecord, ProcessMark
from raykit.errors import ClusterDiffersError, ClusterError, ClusterLostError, NoClusterError
from raykit.spec import ClusterSpec


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _record(name="lab", **changes):
    folder = private_folder(records.cluster_folder(name))
    write_secret(folder / "token", "secret")
    given = {
        "spec": ClusterSpec(name=name, num_cpus=4),
        "head": ProcessMark.of(os.getpid()),
        "gcs_address": "127.0.0.1:1",
        "door_url": "http://127.0.0.1:1",
        "dashboard_url": None,
        "token_file": str(folder / "token"),
        "ray_temp": str(folder / "ray"),
        "created_unix_s": time.time(),
        "python_version": ".".join(map(str, __import__("sys").version_info[:2])),
        "ray_version": "2.60.0",
        "raykit_version": "0.1.0",
    }
    made = LocalRecord(**given | changes)
    made.save()
    return made


def test_folders_and_secrets_are_closed_to_others(home):
    _record()
    for path, mode in ((home, 0o700), (clusters_home() / "lab", 0o700), (clusters_home() / "lab" / "token", 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    assert stat.S_IMODE((clusters_home() / "lab" / "record.json").stat().st_mode) == 0o600


def test_the_token_stands_in_no_record(home):
    _record()
    assert "secret" not in (clusters_home() / "lab" / "record.json").read_text()


def test_a_folder_that_others_may_write_is_refused_or_closed(home):
    home.mkdir()
    home.chmod(0o777)
    private_folder(home)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


def test_a_record_that_cannot_be_read_counts_as_none(home):
    _record()
    (clusters_home() / "lab" / "record.json").write_text('{"half": ')
    assert records.find("lab") is None


def test_a_process_that_took_over_a_number_is_not_the_head(home):
    me = ProcessMark.of(os.getpid())
    assert me.is_alive()
    assert not dataclasses.replace(me, created_unix_s=me.created_unix_s - 100).is_alive()


def test_up_with_other_options_is_refused_with_the_difference(home):
    _record()
    with pytest.raises(ClusterDiffersError, match=r"--cpus is 4.*asked 8"):
        Local().up(ClusterSpec(name="lab", num_cpus=8), told=print)


def test_a_cluster_of_another_python_is_refused_with_what_to_do(home):
    _record(python_version="3.99")
    with pytest.raises(ClusterError, match=r"runs Python 3\.99"):
        Local().up(ClusterSpec(name="lab"), told=print)


def test_another_ray_is_refused_with_the_pip_line(monkeypatch):
    monkeypatch.setattr(local, "version", lambda _: "2.48.0")
    with pytest.raises(ClusterError, match=r"Ray 2\.48\.0 is installed.*\n.*pip install"):
        local.check_environment()


def test_no_cluster_names_those_that_are_up(home):
    _record("lab")
    with pytest.raises(NoClusterError, match="There are: lab"):
        session.get("other")
    private_folder(clusters_home() / "none")
    records.find("lab").remove()
    with pytest.raises(NoClusterError, match="%ray up"):
        session.get()


def test_a_current_cluster_whose_head_died_says_so(home, monkeypatch):
    dead = _record(head=dataclasses.replace(ProcessMark.of(os.getpid()), created_unix_s=1.0))
    monkeypatch.setattr(session, "_current", session.Cluster(dead))
    with pytest.raises(ClusterLostError, match="%ray up lab"):
        session.get()


def test_who_asks_a_cluster_that_somebody_else_ended_is_told_so(home):
    ended = session.Cluster(_record())
    Path(ended.record.token_file).unlink()
    with pytest.raises(ClusterLostError, match=r"lab is gone.*\n.*%ray up lab"):
        ended.status()


def test_ending_a_cluster_that_is_not_there_is_fine(home):
    assert "nothing to do" in session.down("nobody")


def test_a_cluster_of_this_machine_is_not_suspended_and_says_what_ends_it(home):
    _record()
    with pytest.raises(ClusterError, match=r"nothing is given back.*\n.*%ray down lab"):
        session.suspend("lab")


def test_other_nodes_are_refused_with_the_line_that_makes_them(home):
    _record()
    with pytest.raises(ClusterDiffersError, match="%ray scale lab 3"):
        Local().up(ClusterSpec(name="lab", num_nodes=3), told=print)


def test_a_plan_of_this_machine_makes_nothing(home):
    assert "costs nothing but this machine's time. Nothing was made." in repr(session.plan("lab", num_nodes=2))
    assert session.clusters() == []


def test_a_record_is_the_same_after_a_round_trip(home):
    made = _record()
    assert records.find("lab") == made
    assert json.loads((clusters_home() / "lab" / "record.json").read_text())["spec"]["num_cpus"] == 4
