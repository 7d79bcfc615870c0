"""Whom the host suspects to hang, and whom it leaves alone."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

from raykit.engine.training.watch import Watch
from raykit.policy.failure import STILL_S, Heard, Pulse, limit_s, suspects

SPIN = [sys.executable, "-c", "while True: pass"]


def _rank(worker, phase, phase_s=0.0, *, silent_s=0.1, still_s=0.0, busy_with=""):
    pulse = Pulse(phase=phase, phase_s=phase_s, progress=(0, 0), busy_with=busy_with)
    return Heard(worker=worker, pulse=pulse, silent_s=silent_s, still_s=still_s)


def _suspected(*world, hang_after_s=300.0):
    found = suspects(world, median_step_s=0.1, hang_after_s=hang_after_s)
    return [(each.worker, each.certain) for each in found]


def test_the_limit_is_four_median_steps_and_at_least_a_second():
    assert limit_s(0.01) == 1.0
    assert limit_s(2.0) == 8.0


def test_a_silent_rank_is_looked_at_from_outside_before_anything_is_done():
    assert _suspected(_rank("w1", "waiting", 0.5), _rank("w2", "computing", silent_s=1.2)) == [("w2", False)]


def test_a_rank_that_computes_while_others_wait_is_left_alone_as_long_as_it_moves():
    assert _suspected(_rank("w1", "waiting", 200), _rank("w2", "computing", 200)) == []


def test_a_rank_that_stands_still_while_others_wait_is_suspected_and_without_them_it_is_not():
    still = _rank("w2", "computing", 20, still_s=STILL_S + 1)
    assert _suspected(_rank("w1", "waiting", 20), still) == [("w2", True)]
    assert _suspected(_rank("w1", "computing", 20), still) == []


def test_a_rank_that_evaluates_is_not_taken_for_a_hang_before_the_long_limit():
    evaluates = _rank("w1", "computing", 100, still_s=100, busy_with="evaluate (score)")
    assert _suspected(evaluates, _rank("w2", "waiting", 100)) == []
    assert _suspected(evaluates, _rank("w2", "waiting", 100), hang_after_s=60) == [("w1", True)]


def test_all_waiting_for_each_other_or_between_worlds_suspects_nobody():
    assert _suspected(_rank("w1", "waiting", 50), _rank("w2", "waiting", 50), _rank("w3", "idle", 50, still_s=50)) == []


@pytest.fixture
def process():
    """A process that sleeps in its main thread, as user code does, beside another thread."""
    code = (
        "import threading, time\n"
        "def stuck():\n    print('up', flush=True)\n    time.sleep(600)\n"
        "threading.Thread(target=time.sleep, args=(600,), name='ray-tasks', daemon=True).start()\nstuck()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout.readline() == "up\n"
        yield started
        started.kill()


def test_a_look_from_outside_tells_stopped_from_still_from_working_from_gone(process):
    watch = Watch()
    assert watch.condition(process.pid) == "still"
    os.kill(process.pid, signal.SIGSTOP)
    assert watch.condition(process.pid) == "stopped"
    watch.kill(process.pid)
    process.wait()
    assert watch.condition(process.pid) == "gone"
    watch.kill(process.pid)


def test_a_process_that_uses_its_cpu_works():
    with contextlib.ExitStack() as spinning:
        busy = spinning.enter_context(subprocess.Popen(SPIN))
        spinning.callback(busy.kill)
        assert Watch().condition(busy.pid) == "works"


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="there is no idle class of processes here")
def test_a_process_that_waits_for_a_cpu_works():
    with contextlib.ExitStack() as spinning:
        for _ in range(2):
            process = spinning.enter_context(subprocess.Popen(SPIN))
            spinning.callback(process.kill)
            os.sched_setaffinity(process.pid, {min(os.sched_getaffinity(0))})
        os.sched_setscheduler(process.pid, os.SCHED_IDLE, os.sched_param(0))
        assert {Watch().condition(process.pid) for _ in range(5)} == {"works"}


def test_a_stack_shows_where_the_training_thread_stands(process):
    shown = Watch().stack(process.pid)
    assert "stuck" in shown or "ermission" in shown, shown
    assert "\x1b" not in shown
