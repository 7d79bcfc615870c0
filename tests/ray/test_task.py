import contextlib
import hashlib
import http.client
import io
import os
import signal
import subprocess
import tarfile
import time
import traceback
import urllib.parse
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

import raykit as rk
from raykit.client.capture import pack
from raykit.client.sending import sent
from raykit.errors import (
    CapacityError,
    RunError,
    RunFailedError,
    RunLostError,
    RunNameTakenError,
    RunNotFoundError,
    RunStoppedError,
)
from raykit.spec import TaskSpec
from raykit.wire.payload import FunctionWork

pytestmark = pytest.mark.ray


def test_a_function_runs_on_a_node_and_this_process_needs_no_ray(cluster):
    assert rk.run(lambda x: x + 1, 41).wait().result == 42


def test_the_user_s_own_traceback_comes_home_and_says_where(cluster):
    def divide(x):
        return 1 / x

    with pytest.raises(RunFailedError, match="ZeroDivisionError: division by zero") as caught:
        rk.run(divide, 0).wait()
    shown = "\n".join(caught.value._render_traceback_())
    assert "return 1 / x" in shown
    assert "ray/_private" not in shown


def test_what_a_function_prints_is_seen_and_kept_in_a_file(cluster):
    def talk():
        for number in range(500):
            print("line", number)

    run = rk.run(talk).wait()
    assert run.view.num_lines == 500
    assert run.logs(tail=500).count("line ") == 500


def test_what_a_terminal_would_show_is_seen_also_of_programs_and_children_and_while_it_is_written(cluster, until, tmp_path):
    def talk(seen):
        import multiprocessing
        import subprocess
        import time

        print("alpha\r\nbeta\r")
        print("10% done", end="\r")
        while not seen.exists():
            time.sleep(0.05)
        print("100% done", end="\r", flush=True)
        print()
        subprocess.run(["printf", "of a program\\n1%%\\r99%%\\n"], check=True)
        with multiprocessing.get_context("fork").Pool(1) as pool:
            pool.map(print, ["of a child"])
        for number in range(150):
            print("line", number)

    run = rk.run(talk, tmp_path / "seen", name="talks")
    until(lambda: "10% done" in run.logs() and "10% done" in [line.text for line in run.view.open_lines])
    (tmp_path / "seen").touch()
    run.wait()
    lines = ["alpha", "beta", "100% done", "of a program", "99%", "of a child", *(f"line {number}" for number in range(150))]
    assert run.logs().splitlines() == [f"cell | {line}" for line in lines]
    assert [line.text for line in run.view.lines] == lines
    assert not run.view.open_lines


def test_every_kind_of_run_stands_in_the_notebook_s_folder_with_its_variables(cluster, until, tmp_path, monkeypatch):
    (tmp_path / "config.txt").write_text("mine")
    monkeypatch.chdir(tmp_path)

    def see(row=None):
        from pathlib import Path

        return {"seen": Path("config.txt").read_text() + os.environ["WORD"] + (row or {}).get("seen", "")}

    def source():
        yield see()

    env = {"WORD": "!"}
    once, twice = {"seen": "mine!"}, {"seen": "mine!mine!"}
    assert rk.run(see, env=env).wait().result == once
    assert rk.Pipeline([see]).run(source, env=env).wait().result.to_pandas().to_dict("records") == [twice]
    assert rk.train(see, env=env).wait().result == once
    service = rk.serve(see, name="stands", env=env).wait()
    assert service(once) == twice
    service.stop()
    until(lambda: service.run.refresh().ended)

    def write():
        from pathlib import Path

        Path("written.txt").write_text("by a run")

    rk.run(write).wait()
    assert (tmp_path / "written.txt").read_text() == "by a run"


def test_a_worker_that_starts_has_no_more_of_the_cpus_than_one_that_works(cluster):
    assert rk.run(os.nice, 0).wait().result == os.nice(0)


def test_a_stopped_run_frees_its_slots_and_says_so(cluster, until):
    def sleep():
        import time

        print("begun")
        time.sleep(600)

    run = rk.run(sleep, name="sleeper")
    until(lambda: run.refresh().lines)
    run.stop()
    run.stop()
    with pytest.raises(RunStoppedError):
        run.wait()
    assert all(slot.released_at_unix_s for slot in run.view.slots)


def test_a_name_that_goes_on_is_refused_and_one_that_is_over_gets_a_number(cluster, until):
    def sleep():
        import time

        time.sleep(600)

    run = rk.run(sleep, name="again")
    with pytest.raises(RunNameTakenError, match="%ray stop again"):
        rk.run(sleep, name="again")
    run.stop()
    until(lambda: run.refresh().ended)
    second = rk.run(int, name="again").wait()
    assert second.name == "again#2"
    assert rk.watch("again").name == "again#2"


def test_a_process_that_dies_says_what_happened(cluster):
    def crash():
        import os

        os.kill(os.getpid(), 11)

    with pytest.raises(RunFailedError, match="process died"):
        rk.run(crash).wait()


def test_a_process_ends_with_its_run_and_the_next_finds_nothing_of_it(cluster, until):
    def litter():
        import os

        import ray

        @ray.remote(num_cpus=0)
        class Left:
            def pid(self):
                return os.getpid()

        left = Left.remote()
        ring = [left]
        ring.append(ring)
        os.environ["LITTER"] = "yes"
        return os.getpid(), ray.get(left.pid.remote())

    pids = rk.run(litter).wait().result
    for _ in range(3):
        assert rk.run(os.environ.get, "LITTER").wait().result is None
    until(lambda: not any(psutil.pid_exists(pid) for pid in pids))


def test_a_request_that_no_cluster_can_hold_is_refused_at_once_with_what_is_there(cluster):
    with pytest.raises(CapacityError, match=r"3 CPUs .* has 2 CPUs and 0 GPUs"):
        rk.run(int, cpus=3)
    with pytest.raises(CapacityError, match="--simulate-gpus"):
        rk.run(int, gpus=1)
    with pytest.raises(CapacityError, match="5 slots"):
        rk.train(int, workers=(5, 8))


def test_a_run_that_nobody_knows_names_those_that_are_there(cluster):
    rk.run(int, name="known").wait()
    with pytest.raises(RunNotFoundError, match="known"):
        rk.watch("unknown")


def test_large_captured_values_are_sent_once_and_let_go_when_no_run_needs_them(cluster):
    data = np.random.default_rng(0).random((23_000_000,))  # 184 MB
    store = cluster.record.folder / "buffers"
    before = {file.name for file in store.iterdir()} if store.exists() else set()

    def total():
        found = float(data.sum())
        data[0] = -1.0  # as in plain Python: a copy of the task's own
        return found, data.flags.writeable, float(data[0])

    for _ in range(2):
        run = rk.run(total, name="large").wait()
        assert run.result == (float(data.sum()), True, -1.0)
        assert [file.stat().st_size for file in store.iterdir() if file.name not in before] == [184_000_000]
        assert not list((cluster.record.folder / "runs" / run.name.replace("#", "-") / "buffers").iterdir())
    rows = rk.Pipeline([lambda row: {"n": len(row["item"]), "last": float(row["item"][-1])}]).run(list(data.reshape(23, -1)))
    table = rows.wait().result.to_pandas()
    assert sorted(table["last"]) == sorted(data.reshape(23, -1)[:, -1])
    assert list(table["n"]) == [1_000_000] * 23


def test_large_captured_values_go_through_the_door_in_pieces_where_files_are_not_shared(cluster):
    data = np.arange(2_000_000.0)
    spec = TaskSpec(name="far", outputs=("result",))

    def total():
        return float(data.sum())

    payload = sent(pack(FunctionWork(function=total), {"total": total}, {}), cluster.ask, here=None)
    assert payload.buffers == [hashlib.sha256(data).hexdigest()]
    assert cluster.door.missing({payload.buffers[0]: data.nbytes}) == []
    name = cluster.door.start(spec, payload.to_bytes(), key="far", buffers=payload.buffers)
    assert rk.watch(name).wait().result == float(data.sum())
    with pytest.raises(RunError, match="another content"):
        cluster.door.send("ab", 0, b"xyz", of=3)
    with pytest.raises(CapacityError, match=r"take 1e\+09 GB; the most memory that a node has free is"):
        cluster.door.missing({"ab": 10**18})


def test_a_run_that_waits_for_one_that_it_has_started_lends_it_its_cpus(cluster):
    def inner(n):
        return n * n

    def outer(n):
        import raykit as rk

        rk.use("shared")
        return rk.run(inner, n, name=f"inner-{n}").wait(timeout_s=100).result

    runs = [rk.run(outer, n, name=f"outer-{n}") for n in range(2)]  # on two CPUs
    assert [run.wait(timeout_s=100).result for run in runs] == [0, 1]


def test_a_script_shows_the_traceback_of_a_failed_run_with_its_cause_also_through_a_run_around_it(cluster):
    def load():
        try:
            return {"size": 3}["width"]
        except KeyError as exc:
            raise RuntimeError("the configuration is broken") from exc

    def around():
        import raykit as rk

        rk.use("shared")
        rk.run(load, name="within", cpus=0.5).wait()

    with pytest.raises(RunFailedError) as caught:
        rk.run(around, name="around", cpus=0.5).wait()
    shown = "".join(traceback.format_exception(caught.value))
    assert "KeyError: 'width'" in rk.watch("within").logs()
    for words in (
        "KeyError: 'width'",
        "direct cause",
        "RuntimeError: the configuration is broken",
        "RunFailedError: within failed",
    ):
        assert words in shown


def test_who_waits_for_a_while_is_told_that_the_run_goes_on_and_may_wait_again(cluster, tmp_path):
    def sleep(until):
        import time

        while not until.exists():
            time.sleep(0.05)
        return "done"

    run = rk.run(sleep, tmp_path / "ends", name="waited-for")
    for timeout_s in (0, 0.5):
        with pytest.raises(TimeoutError, match=rf"waited-for is \w+ after {timeout_s} s of waiting, and goes on"):
            run.wait(timeout_s=timeout_s)
    (tmp_path / "ends").touch()
    assert run.wait(timeout_s=60).result == "done"


def test_the_door_asks_for_its_token(cluster):
    import httpx

    url = cluster.record.door_url
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        assert httpx.get(f"{url}/runs", headers=headers, trust_env=False).status_code == 401


def test_up_twice_is_one_cluster(cluster):
    assert rk.up("shared", num_cpus=2, object_store_bytes=100_000_000).record.head == cluster.record.head


def test_simulated_gpus_are_labelled_and_the_device_is_the_cpu(own):
    own("simulated", num_simulated_gpus=2)
    run = rk.run(lambda: str(rk.device()), gpus=1).wait()
    assert run.result == "cpu"
    assert run.view.simulated_gpus
    assert "simulated" in repr(run)


def test_two_clusters_live_beside_each_other_and_further_nodes_are_nodes(cluster, own):
    own("pair", num_nodes=2)
    nodes = rk.status("pair").nodes
    assert {node.labels["raykit.io/rack"] for node in nodes} == {"rack-1", "rack-2"}
    assert rk.run(int, name="here").wait().result == 0
    assert rk.use("shared").status().name == "shared"


def test_the_doctor_finds_no_port_open_to_the_network(cluster, own):
    own("ports", num_nodes=2)
    findings = [each for each in rk.doctor().findings if ", port" in each.what]
    assert {each.what.partition(",")[0] for each in findings} >= {"shared", "ports"}
    assert len(findings) > 5
    assert all(each.good for each in findings), findings
    assert any("asks for a token" in each.found for each in findings)


def test_what_a_run_gave_is_read_though_the_hub_is_killed_just_then(cluster):
    run = rk.run(lambda: print("six times seven") or 42).wait()
    os.kill(cluster.door.ping()["pid"], signal.SIGKILL)
    assert run.result == 42
    os.kill(cluster.door.ping()["pid"], signal.SIGKILL)
    assert "six times seven" in run.logs()


def test_what_is_asked_while_the_hub_is_killed_is_done_once_it_is_back(cluster, until):
    run = rk.run(lambda: time.sleep(600))
    until(lambda: run.refresh().held)
    os.kill(cluster.door.ping()["pid"], signal.SIGKILL)
    run.stop()
    with pytest.raises(RunStoppedError):
        run.wait()
    os.kill(cluster.door.ping()["pid"], signal.SIGKILL)
    assert rk.run(lambda: 42).wait().result == 42


def test_a_start_that_is_asked_twice_begins_once(cluster):
    payload = pack(FunctionWork(function=lambda: 42, args=(), kwargs={}), {}, {}).to_bytes()
    spec = TaskSpec(name="once", outputs=("result",))
    assert cluster.door.start(spec, payload, key="first") == cluster.door.start(spec, payload, key="first") == "once"
    rk.watch("once").wait()
    assert cluster.door.start(spec, payload, key="first") == "once"
    assert cluster.door.start(spec, payload, key="second") == "once#2"
    assert rk.watch("once#2").wait().result == 42


def test_a_connection_is_of_use_when_files_have_come_over_it(cluster):
    run = rk.run(lambda: 42).wait()
    door = urllib.parse.urlsplit(cluster.door.url)
    token = {"Authorization": f"Bearer {cluster.record.token}"}
    with contextlib.closing(http.client.HTTPConnection(door.hostname, door.port)) as connection:
        connection.connect()
        near = connection.sock.getsockname()
        for _ in range(20):
            connection.request("GET", f"/files/{urllib.parse.quote(run.name)}?path=spec.json", headers=token)
            with tarfile.open(fileobj=io.BytesIO(connection.getresponse().read())) as archive:
                assert archive.getnames() == ["spec.json"]
        assert connection.sock.getsockname() == near


def test_a_run_whose_head_dies_is_lost_and_not_failed(own, until):
    def sleep():
        import time

        print("begun")
        time.sleep(600)

    record = own("mortal").record
    run = rk.run(sleep)
    until(lambda: run.refresh().lines)
    os.kill(record.head.pid, signal.SIGKILL)
    with pytest.raises(RunLostError, match="The cluster mortal is gone: its head died"):
        run.wait()
    rk.down("mortal")
    assert _in_session(record.head.pid) == []


def test_a_head_whose_gcs_dies_takes_all_of_its_processes_along(own, until):
    record = own("headless").record
    (gcs,) = [each for each in _in_session(record.head.pid) if "gcs_server" in each.name()]
    gcs.kill()
    until(lambda: _in_session(record.head.pid) == [])
    rk.down("headless")


def test_who_reads_a_log_of_a_cluster_outlives_its_end(own):
    record = own("read").record
    log = next(Path(record.ray_temp).rglob("raylet.out"))
    reader = subprocess.Popen(["tail", "-f", log], stdout=subprocess.DEVNULL)
    try:
        rk.down("read")
        assert reader.poll() is None
    finally:
        reader.kill()
        reader.wait()


def _in_session(leader):
    """Give all processes of a head: its agents, which overwrite their environment, are in its session too."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_down_leaves_no_process_and_the_runs_are_still_known(own):
    from raykit.cluster import record as records

    own("brief")
    rk.run(int, name="kept").wait()
    rk.down("brief")
    assert records.processes("brief") == []
    assert [view.name for view in rk.runs("brief")] == ["kept"]
