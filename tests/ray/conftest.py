"""One small cluster for all tests that need one; tests that break a cluster make their own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import raykit as rk

WAIT_S = 60.0


@pytest.fixture(scope="session")
def shared(raykit_home: Any) -> Iterator[Any]:
    """A cluster of two CPUs that lives as long as the session."""
    yield rk.up("shared", num_cpus=2, object_store_bytes=100_000_000, profile="small")  # trainings that ask for no spare start none
    rk.down("shared")


@pytest.fixture
def cluster(shared: Any) -> Any:
    """The shared cluster as the current one."""
    return rk.use("shared")


@pytest.fixture
def own() -> Iterator[Callable[..., Any]]:
    """Make clusters that end with the test."""
    made = []

    def up(name: str, **options: Any) -> Any:
        made.append(name)
        return rk.up(name, num_cpus=2, object_store_bytes=100_000_000, **options)

    yield up
    for name in made:
        rk.down(name)


@pytest.fixture
def until() -> Callable[[Callable[[], Any]], Any]:
    """Wait for a condition of the cluster to hold, and give its value; fail when it does not."""

    def wait(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {timeout_s} s in vain"
            time.sleep(0.02)
        return value

    return wait
