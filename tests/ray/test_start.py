"""A node of this machine that takes long to start, or does not."""

import threading
import time
from contextlib import contextmanager, suppress

import psutil
import pytest

import raykit as rk
from raykit.cluster import record as records
from raykit.errors import ClusterError

RAYLET, AGENT = "raylet/raylet", "dashboard/agent.py"
RAYS_PATIENCE_S = 30.0


@contextmanager
def beside(act):
    thread = threading.Thread(target=act)
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def process_of(name, program):
    """Give the process of a cluster that runs a program; none of Ray's has another program's path among its first words."""
    for process in records.processes(name):
        with suppress(psutil.NoSuchProcess):
            if any(word.endswith(program) for word in process.cmdline()[:3]):
                return process
    return None


def test_a_raylet_that_ends_at_its_start_is_told_of_and_leaves_nothing(until):
    with (
        beside(lambda: until(lambda: process_of("broken", RAYLET)).kill()),
        pytest.raises(ClusterError, match="broken ended while it started"),
    ):
        rk.up("broken", num_cpus=1, object_store_bytes=100_000_000)
    assert not records.processes("broken")


def test_a_node_is_there_before_its_agent(own, until):
    held = []

    def hold():
        held.append(until(lambda: process_of("early", AGENT)))
        held[0].suspend()

    with beside(hold):
        own("early")
    assert held[0].status() == psutil.STATUS_STOPPED
    assert rk.run(lambda: "up", cpus=0).wait().result == "up"
    held[0].resume()


@pytest.mark.slow
def test_a_raylet_that_takes_longer_than_ray_waits_is_waited_for(own, until):
    def hold():
        raylet = until(lambda: process_of("slow", RAYLET))
        raylet.suspend()
        time.sleep(RAYS_PATIENCE_S + 5)
        raylet.resume()

    with beside(hold) as holding:
        own("slow")
        assert not holding.is_alive()
    assert rk.run(lambda: "up", cpus=0).wait().result == "up"
