"""A training worker: an actor of its own life, in which the user's code runs in a thread.

It belongs to no host's process: a host that dies costs it nothing, and the next one finds it by its name. When no host
comes back, its reporter ends it.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from raykit.engine.reporter import Reporter, captured
from raykit.engine.run import UserCodeError, as_user_error, limit_threads, save_outputs
from raykit.engine.setting import NAMESPACE
from raykit.engine.training.world import Generation
from raykit.events import OutputReady, WorkerReady, WorkerStarted, WorldBroken, WorldFormed
from raykit.policy.failure import Pulse
from raykit.spec import TrainSpec
from raykit.wire.payload import Payload


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a host that comes back must know of a worker."""

    store_port: int
    slot: int | None
    assigned: Generation | None
    pid: int
    node_id: str


@ray.remote(num_cpus=0, max_restarts=0, max_concurrency=100)
class Worker:
    """Runs the user's code from its constructor on. Torch is imported here, not where the host imports this class."""

    def __init__(self, host: Any, folder: Path, spec: TrainSpec, worker: str, slot: int | None) -> None:
        from raykit.engine.device import device
        from raykit.engine.training.collective import open_store
        from raykit.engine.training.member import Member

        self._folder, self._spec, self._worker, self._slot = folder, spec, worker, slot
        self._node_id = ray.get_runtime_context().get_node_id()
        self._thread = threading.Thread(target=self._train, name="raykit-train", daemon=True)
        self._member = Member(worker, device(), self)
        self._reporter = Reporter(host, worker, folder / "logs" / f"{worker}.log", pulse=self._pulse).start()
        self._store, self._store_port = open_store()  # the store serves as long as it is held
        self._loop = asyncio.get_event_loop()
        self._is_ready = asyncio.Event()
        self._is_over = asyncio.Event()
        self._error: UserCodeError | None = None
        self._namespace: dict[str, Any] = {}
        node = self._node_id[:8]
        self._reporter.emit(WorkerStarted(worker=worker, pid=os.getpid(), node=node, device=str(self._member.device)))
        self._thread.start()

    async def describe(self) -> Description:
        return Description(
            store_port=self._store_port,
            slot=self._slot,
            assigned=self._member.assigned,
            pid=os.getpid(),
            node_id=self._node_id,
        )

    async def ready(self) -> Description:
        """Wait for the first step, or for the end of code that has none."""
        await self._is_ready.wait()
        return await self.describe()

    async def outcome(self) -> tuple[str, str, str] | None:
        """Wait for the end of the user's code; give the facts of its :class:`UserCodeError`, or None."""
        await self._is_over.wait()
        return self._error.args if self._error else None

    async def assign(self, generation: Generation) -> None:
        self._member.assign(generation)

    async def stop(self) -> None:
        """End with the others after the next commit."""
        self._member.stop_asked = True

    async def save_outputs(self, names: tuple[str, ...]) -> list[OutputReady]:
        return await asyncio.to_thread(save_outputs, self._namespace, names, self._folder, "rank 0")

    async def names_set(self) -> frozenset[str]:
        """Give the names that the user's code has set."""
        return frozenset(self._namespace)

    async def die(self) -> None:
        """Be killed: a drill wants it, or the run went on without this worker."""
        os.kill(os.getpid(), signal.SIGKILL)

    async def hang(self) -> None:
        """Stop without a word, as a drill wants it."""
        os.kill(os.getpid(), signal.SIGSTOP)

    def is_ready(self) -> None:
        self._reporter.emit(WorkerReady(worker=self._worker))
        self._loop.call_soon_threadsafe(self._is_ready.set)

    def has_formed(self, generation: Generation, step: int) -> None:
        if generation.workers[0] == self._worker:
            self._reporter.emit(WorldFormed(generation=generation.number, workers=generation.workers, step=step))

    def has_broken(self, generation: int, reason: str) -> None:
        self._reporter.emit(WorldBroken(worker=self._worker, generation=generation, reason=reason))

    def _pulse(self) -> Pulse:
        """Say where the training thread is, from the reporter's thread."""
        member = self._member
        frame = sys._current_frames().get(self._thread.ident or 0)  # noqa: SLF001  (the only way to see another thread)
        at = hash((frame.f_code, frame.f_lasti)) if frame else 0
        return Pulse(
            phase=member.phase,
            phase_s=time.monotonic() - member.phase_since_s,
            progress=(at, _cpu_time_ns(self._thread.native_id)),
            busy_with=member.busy_with,
        )

    def _train(self) -> None:
        from raykit.engine.training.checkpoint import Checkpoints
        from raykit.engine.training.job import Surroundings, surround

        checkpoints = Checkpoints(self._folder / "checkpoints", self._reporter.emit)
        surround(
            Surroundings(
                member=self._member,
                checkpoints=checkpoints,
                checkpoint_every_s=self._spec.checkpoint_every_s,
                reporter=self._reporter,
            )
        )
        payload = Payload.from_bytes((self._folder / "payload").read_bytes())
        limit_threads(self._spec.cpus_per_worker)
        with captured(self._reporter):
            try:
                self._namespace = payload.open().run()
                checkpoints.finish()
            except BaseException as exc:  # a cell may also leave by sys.exit
                self._error = as_user_error(exc, payload, self._worker)
        self._reporter.flush()
        self._loop.call_soon_threadsafe(self._is_ready.set)
        self._loop.call_soon_threadsafe(self._is_over.set)


def _cpu_time_ns(thread_id: int | None) -> int:
    """Give a thread's CPU time; where it cannot be known, a value that always grows: unknown is not held against it."""
    try:
        return int(Path(f"/proc/self/task/{thread_id}/schedstat").read_text().split()[0])
    except (OSError, ValueError):
        return time.monotonic_ns()


def name_of(run: str, worker: str) -> str:
    """Give the name by which a host finds a worker in Ray."""
    return f"worker:{run}:{worker}"


def find_workers(run: str) -> dict[str, Any]:
    """Give the workers of a run that live, by Ray's list of names: a host may have died before it wrote one down."""
    prefix = name_of(run, "")
    found = {}
    for each in ray.util.list_named_actors(all_namespaces=True):
        if each["namespace"] == NAMESPACE and each["name"].startswith(prefix):
            with suppress(ValueError):  # it died in between
                found[each["name"].removeprefix(prefix)] = ray.get_actor(each["name"], namespace=NAMESPACE)
    return dict(sorted(found.items(), key=lambda item: number_of(item[0])))


def number_of(worker: str) -> int:
    """Give 3 for ``w3``."""
    return int(worker.removeprefix("w"))
