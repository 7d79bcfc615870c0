import os
import signal
import subprocess
import sys
import threading
import tracemalloc

import pytest

from raykit.client.session import views_in_log
from raykit.engine.run import RunContext
from raykit.engine.setting import ClusterSetting
from raykit.events import CLUSTER, NodeSampled, RunAccepted, RunEnded, RunStarted, StepCommitted, StopAsked, UseSampled
from raykit.store.log import Log, LogError
from raykit.store.samples import KEPT_EVERY_S, Samples


def test_records_are_numbered_over_all_runs_and_read_by_run(tmp_path):
    log = Log(tmp_path / "log.sqlite")
    log.append("a", [RunStarted(), StopAsked()])
    log.append("b", [RunStarted()])
    assert [record.number for record in log.read(run="a")] == [1, 2]
    assert [record.run for record in log.read(after=1)] == ["a", "b"]
    assert [type(record.event) for record in log.read_all(kinds=(StopAsked,))] == [StopAsked]


def test_a_log_is_there_again_after_it_was_closed(tmp_path):
    Log(tmp_path / "log.sqlite").append("a", [RunEnded(state="done")])
    assert Log(tmp_path / "log.sqlite").read()[0].event == RunEnded(state="done")


def test_a_reader_sees_that_another_process_has_written(tmp_path):
    reader, writer = Log(tmp_path / "log.sqlite"), Log(tmp_path / "log.sqlite")
    before = reader.version()
    assert reader.version() == before
    writer.append("a", [RunStarted()])
    assert reader.version() != before


def test_many_writers_lose_nothing(tmp_path):
    def write(run):
        log = Log(tmp_path / "log.sqlite")
        for _ in range(50):
            log.append(run, [RunStarted(), StopAsked()])

    threads = [threading.Thread(target=write, args=(f"run{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.number for record in Log(tmp_path / "log.sqlite").read_all()] == list(range(1, 401))


WRITER = """
import sys
from pathlib import Path
from raykit.events import StepCommitted
from raykit.store.log import Log
log, step = Log(Path(sys.argv[1])), 0
while True:
    step += 1
    log.append("a", [StepCommitted(step=step, epoch=0, num_rows=1, total_steps=None)])
    print(step, flush=True)
"""


def test_what_a_killed_writer_had_written_is_there_and_the_next_writer_goes_on(tmp_path):
    path = tmp_path / "log.sqlite"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    for _ in range(20):
        last = int(writer.stdout.readline())
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    log = Log(path)
    assert log.append("a", [StepCommitted(step=0, epoch=0, num_rows=0, total_steps=None)]) > last
    steps = [record.event.step for record in log.read()][:-1]
    assert steps == list(range(1, len(steps) + 1))


def test_a_log_that_is_none_says_its_path(tmp_path):
    (tmp_path / "log.sqlite").write_text("no database at all, but long enough to be taken for one" * 20)
    with pytest.raises(LogError, match=r"log\.sqlite cannot be used"):
        Log(tmp_path / "log.sqlite").read()


def _sampled(num_cpus, node="a"):
    return NodeSampled(node=node, num_cpus=num_cpus, memory_used_bytes=0, memory_bytes=1, gpus=())


def _kept(log, run):
    return [(record.event.node, record.event.num_cpus) for record in log.read(run=run)]


def test_of_samples_the_newest_stays_and_one_a_minute(tmp_path):
    log = Log(tmp_path / "log.sqlite")
    samples = Samples(log)
    for second in range(3 * int(KEPT_EVERY_S) + 5):
        samples.write([(CLUSTER, _sampled(float(second)))], second)
    assert _kept(log, CLUSTER) == [("a", 0), ("a", 60), ("a", 120), ("a", 180), ("a", 184)]


def test_samples_of_each_node_and_run_are_thinned_for_themselves(tmp_path):
    log = Log(tmp_path / "log.sqlite")
    log.append("digits", [RunStarted()])
    samples, used = Samples(log), UseSampled(node="a", uses=())
    for second in range(4):
        samples.write([(CLUSTER, _sampled(second, "a")), (CLUSTER, _sampled(second, "b")), ("digits", used)], second)
    assert sorted(_kept(log, CLUSTER)) == [("a", 0), ("a", 3), ("b", 0), ("b", 3)]
    assert [type(record.event) for record in log.read(run="digits")] == [RunStarted, UseSampled, UseSampled]


def test_a_reader_sees_each_sample_that_it_comes_in_time_for(tmp_path):
    log, reader = Log(tmp_path / "log.sqlite"), Log(tmp_path / "log.sqlite")
    samples, after, seen = Samples(log), 0, []
    for second in range(5):
        samples.write([(CLUSTER, _sampled(float(second)))], second)
        for record in reader.read(after=after):
            after = record.number
            seen.append(record.event.num_cpus)
    assert seen == [0, 1, 2, 3, 4]


def _context(folder):
    setting = ClusterSetting(name="c", address="", port=0, token_file="", folder=str(folder))
    return RunContext(name="a", spec=None, cluster=setting, emit=lambda *events: None, attempt=2, resumed=False, host=None)


def _steps(first, count):
    return [StepCommitted(step=step, epoch=0, num_rows=step, total_steps=None) for step in range(first, first + count)]


def test_a_host_that_comes_back_sees_the_run_since_it_was_last_accepted(tmp_path):
    log = Log(tmp_path / "log.sqlite")
    accepted = RunAccepted(run_kind="training", folder="/f", resumed=False)
    log.append("a", [accepted, *_steps(1, 5), RunEnded(state="stopped")])
    log.append("a", [RunAccepted(run_kind="training", folder="/f", resumed=True), *_steps(5, 3)])
    view = _context(tmp_path).view()
    assert (view.state, view.step, view.resumed, [point for _, point in view.work.points]) == ("running", 7, True, [5, 6, 7])


def test_what_a_host_that_comes_back_reads_does_not_grow_with_the_log(tmp_path):
    log = Log(tmp_path / "log.sqlite")
    log.append("a", [RunAccepted(run_kind="training", folder="/f"), *_steps(1, 4000)])
    peaks = []
    for _ in range(2):
        tracemalloc.start()
        _context(tmp_path).view()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        log.append("a", _steps(4001, 20_000))
    assert peaks[1] < 1.5 * peaks[0]


def test_what_another_log_has_is_kept_once_and_after_what_was_here(tmp_path):
    ours, theirs, later = (Log(tmp_path / f"{name}.sqlite") for name in ("ours", "theirs", "later"))
    theirs.append("a", [RunStarted(), RunEnded(state="done")])
    assert ours.kept_up_to(theirs.life) == 0
    ours.keep(theirs.life, theirs.read(limit=1))
    assert ours.kept_up_to(theirs.life) == 1
    for _ in range(2):  # a second mirror brings the same
        ours.keep(theirs.life, theirs.read())
    later.append("b", [RunStarted()])
    assert later.life != theirs.life
    ours.keep(later.life, later.read())
    assert [(record.number, record.run, record.event) for record in ours.read()] == [
        (1, "a", RunStarted()),
        (2, "a", RunEnded(state="done")),
        (3, "b", RunStarted()),
    ]
    assert Log(tmp_path / "theirs.sqlite").life == theirs.life


def test_a_name_that_a_later_log_has_too_is_another_run(tmp_path):
    ours = Log(tmp_path / "ours.sqlite")
    for name, state in (("one", "failed"), ("two", "done")):
        theirs = Log(tmp_path / f"{name}.sqlite")
        theirs.append("digits", [RunAccepted(run_kind="task", folder=name), RunEnded(state=state)])
        ours.keep(theirs.life, theirs.read())
    assert [(view.name, view.state) for view in views_in_log(ours.path)] == [("digits", "done"), ("digits", "failed")]
