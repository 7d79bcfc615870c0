"""What runs use, seen by the samplers of a cluster that loads the stand-in of NVIDIA's library."""

import os
import re
import signal
import time
from urllib.request import ProxyHandler, build_opener

import psutil
import pytest

import raykit as rk
from raykit.client.session import get
from raykit.cluster.record import cluster_folder, processes
from raykit.events import CLUSTER, NodeSampled, RunEnded, UseSampled
from raykit.store.log import Log
from tests.nvml.standin import COMPILER, StandIn, gpu

from . import loops

pytestmark = [pytest.mark.ray, pytest.mark.skipif(COMPILER is None, reason="there is no C compiler to build the stand-in with")]

GB = 1_000_000_000
NAME = "sampled"
SAMPLER = "ray::NodeSampler"


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    return StandIn(tmp_path_factory.mktemp("nvml"))


@pytest.fixture(scope="module")
def sampled_cluster(stand_in):
    """A cluster that finds two GPUs, has a slot for one of them, and looks at them often."""
    stand_in.tell(gpu(0), gpu(1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        for name, value in stand_in.environment.items():
            patch.setenv(name, value)
        rk.up(NAME, num_cpus=2, num_gpus=1, object_store_bytes=100_000_000, sample_s=0.25)
    yield
    rk.down(NAME)


@pytest.fixture
def sampled(sampled_cluster, stand_in):
    stand_in.tell(gpu(0), gpu(1))
    return rk.use(NAME)


def _samplers():
    return [process for process in processes(NAME) if process.name().startswith(SAMPLER)]


def _log():
    return Log(cluster_folder(NAME) / "log.sqlite")


@rk.stage(cpus=0.5)
def burn(row):
    begun_s = time.process_time()
    while time.process_time() - begun_s < 0.05:
        pass
    return row


def test_a_cluster_and_a_short_cell_start_no_sampler(sampled):
    assert rk.run(lambda: 7).wait().result == 7
    assert _samplers() == []


def test_status_shows_the_machine_and_its_gpus_though_nothing_runs(sampled, stand_in):
    stand_in.tell(gpu(0, 87, 12 * GB), gpu(1), "fails 1 * 15")
    (node,) = rk.status().nodes
    assert 0 <= node.use.num_cpus <= os.cpu_count()
    assert 0 < node.use.memory_used_bytes <= node.use.memory_bytes
    busy, lost = node.use.gpus
    assert (busy.utilization, busy.memory_used_bytes) == (0.87, 12 * GB)
    assert lost.fault == "GPU is lost"
    assert len(_samplers()) == 1


@rk.stage(cpus=0.25, gpus=1, replicas=(1, 3))
def look_at(row):
    time.sleep(0.05)
    return row


def test_a_stage_that_leaves_most_of_its_gpu_alone_is_advised_to_hold_a_fraction_and_gets_it(sampled, stand_in, until):
    run = rk.Pipeline([look_at]).run(range(100_000), name="fraction")
    replica = until(lambda: run.refresh().stages and run.view.stages[0].replicas and run.view.stages[0].replicas[0])
    stand_in.tell(gpu(0, 20, 8 * GB), gpu(1), f"process 0 {replica.pid} {8 * GB} 20")
    advice = until(lambda: (said := run.refresh().advice) and said.changes and said)
    (change,) = advice.changes
    assert change.num_gpus in (0.25, 0.3)  # what is used while it works, and a quarter more
    assert "holds 1 GPUs and keeps" in advice.reason
    run.apply()
    until(lambda: run.refresh().stages[0].num_replicas == 3)
    assert {slot.num_gpus for slot in run.view.slots if slot.released_at_unix_s is None} == {change.num_gpus}
    run.stop()


def test_a_stage_shows_what_it_uses_until_it_ends(sampled, stand_in, until):
    run = rk.Pipeline([burn]).run(range(100_000), name="burning")
    replica = until(lambda: run.refresh().stages and run.view.stages[0].replicas and run.view.stages[0].replicas[0])
    stand_in.tell(gpu(0, 60, 2 * GB), gpu(1), f"process 0 {replica.pid} {GB} 60")
    use = until(lambda: (use := run.refresh().stages[0].use) and use.num_cpus and use.gpu_memory_bytes and use)
    assert use.memory_bytes > 10_000_000
    assert (use.num_gpus, use.gpu_memory_bytes) == (0.6, GB)
    assert until(lambda: rk.status().nodes[0].use.gpus[0].users == (f"burning {replica.replica}",))
    tags = {"run": "burning", "stage": "burn", "rank": ""}
    until(lambda: any(tags.items() <= series.items() for series in _exported("ray_raykit_process_gpu_memory_bytes")))
    run.stop()
    until(lambda: run.refresh().ended)
    until(lambda: not any(tags.items() <= series.items() for series in _exported("ray_raykit_process_gpu_memory_bytes")))
    assert not any(isinstance(record.event, UseSampled) for record in _after_the_end("burning"))
    assert run.view.stages[0].use is None


def test_ranks_show_what_they_use_and_a_sampler_that_is_killed_comes_back(sampled, until):
    run = rk.train(loops.linear, 2000, 0.01, workers=2, name="learning")
    until(lambda: {rank.rank for rank in run.refresh().ranks if rank.use and rank.use.num_cpus} >= {0, 1})
    (sampler,) = _samplers()
    os.kill(sampler.pid, signal.SIGKILL)
    last = _log().read(run="learning", kinds=(UseSampled,))[-1].number
    until(lambda: _log().read(run="learning", kinds=(UseSampled,), after=last))
    assert [each.pid for each in _samplers()] != [sampler.pid]
    run.stop()
    until(lambda: run.refresh().ended)


def test_a_hub_that_is_killed_samples_again_when_it_is_back(sampled, until):
    run = rk.Pipeline([burn]).run(range(100_000), name="watched")
    until(lambda: run.refresh().stages and run.view.stages[0].use and run.view.stages[0].use.num_cpus)
    os.kill(get(NAME).door.ping()["pid"], signal.SIGKILL)
    last = _log().read(run="watched", kinds=(UseSampled,))[-1].number
    until(lambda: _log().read(run="watched", kinds=(UseSampled,), after=last))
    assert len(_samplers()) == 1
    get(NAME).wait_for_door()
    run.stop()
    until(lambda: run.refresh().ended)


def test_the_log_keeps_few_samples_and_the_runs_know_nothing_of_the_cluster_s(sampled):
    samples = _log().read(run=CLUSTER)
    assert samples
    assert {type(record.event) for record in samples} == {NodeSampled}
    lived_s = samples[-1].at_unix_s - samples[0].at_unix_s
    assert len(samples) <= lived_s / 60 + 2 + 2  # the newest, and what two hubs and a first minute each leave
    assert CLUSTER not in {view.name for view in rk.runs()}


def _after_the_end(run):
    records = _log().read(run=run)
    end = next(record.number for record in records if isinstance(record.event, RunEnded))
    view_end = rk.watch(run).view.ended_at_unix_s
    assert rk.watch(run).view.updated_at_unix_s == view_end
    return [record for record in records if record.number > end]


def _exported(name):
    """Give the tags of each series of a metric that is a number, as Prometheus would scrape it."""
    ours = processes(NAME)
    lines = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]) if process in ours]
    ports = set(re.findall(r"--metrics-export-port=(\d+)", " ".join(lines)))
    opener = build_opener(ProxyHandler({}))
    text = "\n".join(opener.open(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode() for port in ports)
    lines = re.findall(rf"^{name}{{(.*)}} (\S+)$", text, re.MULTILINE)
    return [dict(re.findall(r'(\w+)="([^"]*)"', tags)) for tags, value in lines if value != "NaN"]
