"""Processes that are followed: what they and those that they start use."""

import subprocess
import sys

import psutil
import pytest

from raykit.engine.telemetry.metrics import series
from raykit.engine.telemetry.processes import LIST_S, Processes
from raykit.engine.telemetry.sampler import Followed
from raykit.events import ProcessUse, UseSampled

# Starts a child that burns CPU time and stays until it is told; then another, which ends by itself.
PROGRAM = """
import subprocess, sys
BURN = "import sys, time\\nwhile time.process_time() < 0.3: pass\\nprint(flush=True)\\nsys.stdin.readline()"
def burn():
    child = subprocess.Popen([sys.executable, "-c", BURN], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    return child
child = burn()
print(child.pid, flush=True)
sys.stdin.readline()
child.communicate()
burn().communicate()
print(flush=True)
sys.stdin.readline()
"""


class _Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return _Clock()


@pytest.fixture
def program():
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.communicate()


def _spent_s(*pids):
    return sum(sum(psutil.Process(pid).cpu_times()[:4]) for pid in pids)


def test_what_a_process_starts_counts_as_its_own(program, clock):
    processes = Processes(clock)
    first = processes.look([program.pid])[program.pid]
    assert (first.num_cpus, first.pids) == (None, first.pids | {program.pid})
    child = int(program.stdout.readline())
    clock.now_s += LIST_S
    use = processes.look([program.pid])[program.pid]
    assert use.pids == {program.pid, child}
    assert 0.2 / LIST_S < use.num_cpus <= _spent_s(program.pid, child) / LIST_S
    assert use.memory_bytes > psutil.Process(child).memory_info().rss / 2


def test_what_children_spent_that_have_ended_is_not_lost(program, clock):
    processes = Processes(clock)
    child = int(program.stdout.readline())
    processes.look([program.pid])
    before_s = _spent_s(program.pid, child)
    program.stdin.write("\n")
    program.stdin.flush()
    program.stdout.readline()
    clock.now_s += 1
    use = processes.look([program.pid])[program.pid]
    assert child not in use.pids
    assert 0.2 < use.num_cpus <= _spent_s(program.pid) - before_s + 0.1


def test_a_process_that_is_gone_is_unknown(program, clock):
    processes = Processes(clock)
    processes.look([program.pid])
    program.communicate()
    use = processes.look([program.pid])[program.pid]
    assert (use.num_cpus, use.memory_bytes, use.pids) == (None, None, frozenset())


def test_a_process_that_cannot_be_seen_is_unknown(clock):
    use = Processes(clock).look([4_000_000_000])[4_000_000_000]
    assert (use.num_cpus, use.memory_bytes) == (None, None)


def test_a_look_a_minute_gives_use_too(program, clock):
    processes = Processes(clock)
    processes.look([program.pid])
    program.stdout.readline()
    for _ in range(2):
        clock.now_s += 60
        assert processes.look([program.pid])[program.pid].num_cpus is not None


def test_the_replicas_of_a_stage_on_a_node_are_one_series_whatever_their_names():
    def told(*names):
        uses = tuple(ProcessUse(worker=name, num_cpus=0.5, memory_bytes=10) for name in names)
        followed = [Followed(run="r", stage="decode", worker=name, pid=1) for name in names]
        return dict(series([("r", UseSampled(node="n", uses=uses))], followed))

    first, later = told("decode-1", "decode-2"), told("decode-3", "decode-4")
    assert first == later
    assert first["raykit_process_cpus", ("r", "decode", "", "n")] == 1.0
    assert first["raykit_process_memory_bytes", ("r", "decode", "", "n")] == 20
    assert first["raykit_process_gpus", ("r", "decode", "", "n")] is None
