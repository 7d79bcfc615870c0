"""One small cluster for all tests that need one; tests that break a cluster make their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

import raykit as rk


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
        return rk.up(name, **{"num_cpus": 2, "object_store_bytes": 100_000_000} | options)

    yield up
    for name in made:
        rk.down(name)
