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

from raykit.engine.folder import RunFolder
from raykit.engine.imports import uncollected
from raykit.engine.main_thread import run_in_main_thread
from raykit.engine.reporter import Reporter, captured
from raykit.engine.run import UserCodeError, as_user_error, logged, save_outputs
from raykit.engine.setting import NAMESPACE
from raykit.engine.threads import limit_threads
from raykit.engine.training.world import Address, Generation
from raykit.errors import RaykitError
from raykit.events import OutputReady, WorkerAside, WorkerReady, WorkerStarted, WorldBroken, WorldFormed
from raykit.policy.failure import Pulse
from raykit.spec import TrainSpec

HOST_LOOK_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a host must know of a worker."""

    store: Address
    slot: int | None
    assigned: Generation | None
    entered: int
    pid: int
    node_id: str


@ray.remote(num_cpus=0, max_restarts=0, max_concurrency=100)
class Worker:
    """Runs the user's code from its constructor on, in its process's main thread, for which it is started with ``SETUP``.

    Torch is imported here, not where the host imports this class.
    """

    def __init__(self, host: Any, folder: RunFolder, spec: TrainSpec, worker: str, *, slot: int | None, leader: Any = None) -> None:
        """Begin.

        Args:
            host: the run's host.
            folder: the run's.
            spec: the run's.
            worker: this one's name.
            slot: the number of the slot that it holds, None for a spare.
            leader: the first worker of its replica, None where it is that itself.
        """
        self._leader, self._payload = leader, folder.payload()  # first: torch is to be imported with the user's variables
        with uncollected():
            from raykit.engine.device import device
            from raykit.engine.training.member import Member
            from raykit.engine.training.rendezvous import open_store

        self._host, self._folder, self._spec, self._worker, self._slot = host, folder, spec, worker, slot
        self._node_id = ray.get_runtime_context().get_node_id()
        address = ray.util.get_node_ip_address()
        self._member = Member(worker, device(), address, self)
        self._thread: threading.Thread | None = None
        self._reporter = Reporter(host, worker, folder, pulse=self._pulse).start()
        self._store, self._store_address = open_store(address)  # it serves as long as it is held
        self._loop = asyncio.get_event_loop()
        self._is_ready, self._is_over, self._has_left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._error: UserCodeError | None = None
        self._namespace: dict[str, Any] = {}
        node = self._node_id[:8]
        started = WorkerStarted(
            worker=worker,
            pid=os.getpid(),
            node=node,
            device=str(self._member.device),
            num_cpus=spec.cpus_per_worker,
            num_gpus=spec.gpus_per_worker,
        )
        self._reporter.emit(started)
        self._thread = run_in_main_thread(self._train)

    async def describe(self) -> Description:
        return Description(
            store=self._store_address,
            slot=self._slot,
            assigned=self._member.assigned,
            entered=self._member.generation,
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

    async def stand_by(self) -> None:
        """Know that the slot is given back."""
        self._slot = None

    async def leave(self) -> None:
        """Do what the user wants before a voluntary leave; answers when it is done."""
        self._member.leave()
        await self._has_left.wait()

    async def save_state(self) -> bool:
        """Keep the state as of the last commit; answers when it is on disk, and False where that is full."""
        from raykit.engine.training.elastic import loop_here

        loop = loop_here()
        if loop is None:
            return True
        await asyncio.to_thread(loop.save)
        return await asyncio.to_thread(loop.around.checkpoints.finish)

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

    def stands_aside(self, generation: int) -> None:
        self._reporter.emit(WorkerAside(worker=self._worker, generation=generation))

    def has_left(self) -> None:
        self._loop.call_soon_threadsafe(self._has_left.set)

    def _pulse(self) -> Pulse:
        """Say where the training thread is, from the reporter's thread."""
        member = self._member
        thread = self._thread or threading.main_thread()
        frame = sys._current_frames().get(thread.ident or 0)  # noqa: SLF001  (the only way to see another thread)
        at = hash((frame.f_code, frame.f_lasti)) if frame else 0
        return Pulse(
            phase=member.phase,
            phase_s=time.monotonic() - member.phase_since_s,
            progress=(at, _cpu_time_ns(thread.native_id)),
            busy_with=member.busy_with,
        )

    def _train(self) -> None:
        limit_threads(self._spec.cpus_per_worker)
        with captured(self._reporter, programs=False):  # gloo's C++ tells of each connection
            try:
                self._surround()
                self._namespace = self._payload.open().run()
            except BaseException as exc:  # a cell may also leave by sys.exit
                self._error = logged(as_user_error(exc, self._payload, self._worker), self._folder, self._worker)
        self._reporter.flush()
        self._loop.call_soon_threadsafe(self._is_ready.set)
        self._loop.call_soon_threadsafe(self._is_over.set)

    def _surround(self) -> None:
        from raykit.engine.training.checkpoint import Checkpoints
        from raykit.engine.training.elastic import surround
        from raykit.engine.training.loop_state import Surroundings
        from raykit.engine.training.replica import join_replica

        together = None
        if self._spec.group > 1:
            leader = self._store_address if self._leader is None else self._ask(self._leader.describe).store
            together = join_replica(leader, place_of(self._worker), self._spec.group, self._member)
        place = self._spec.checkpoint_to or self._folder.place("checkpoints")
        surroundings = Surroundings(
            member=self._member,
            checkpoints=Checkpoints(place, kept=self._spec.checkpoints_kept, told=self._reporter.emit, group=together),
            checkpoint_every=self._spec.checkpoint_every,
            reporter=self._reporter,
            group_size=self._spec.group,
            stored_dataset=self._stored_dataset,
            from_checkpoint=self._spec.from_checkpoint,
        )
        surround(surroundings)

    def _stored_dataset(self, number: int, make: Any) -> str:
        """Have the host store the rows of a Ray Dataset, and give their path; a host that restarts is asked again."""
        import cloudpickle

        made = cloudpickle.dumps(make)
        with self._member.within("idle"):
            while True:
                try:
                    return self._folder.fetched(str(self._ask(self._host.stored_dataset, number, made)))
                except ray.exceptions.ActorUnavailableError:
                    time.sleep(HOST_LOOK_S)
                except ray.exceptions.RayTaskError as exc:
                    raise (exc.cause if isinstance(exc.cause, RaykitError) else exc) from None

    @staticmethod
    def _ask(method: Any, *arguments: Any) -> Any:
        # By its future: a plain ray.get warns in the processes of async actors.
        return method.remote(*arguments).future().result()


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


def replica_of(worker: str) -> str:
    """Give ``w3`` for ``w3`` and for ``w3.1``, the second worker of a replica of several."""
    return worker.partition(".")[0]


def place_of(worker: str) -> int:
    """Give the place of a worker in its replica, from zero on."""
    return int(worker.partition(".")[2] or 0)


def number_of(worker: str) -> tuple[int, int]:
    """Give (3, 1) for ``w3.1``."""
    return int(replica_of(worker).removeprefix("w")), place_of(worker)
