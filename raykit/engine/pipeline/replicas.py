"""The replicas of one stage, as the host sees them: started, given work, heard, retired, lost."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import ray

from raykit.engine.losses import cause_of
from raykit.engine.pipeline.calls import Order, Ready, Report, Waited, Way
from raykit.engine.pipeline.flow import Work
from raykit.engine.pipeline.stages import StageWorker
from raykit.engine.run import RunContext, describe
from raykit.events import ReplicaEnded, ReplicaLost, SlotsHeld, SlotsReleased
from raykit.policy.balance import Resources
from raykit.spec import StageSpec

PLACING_S = 10.0  # a process that has its place is heard by then
AHEAD_S = 1.0  # a replica has a second call waiting when its calls are shorter than this
MAX_START_DEATHS = 3


@dataclass(slots=True)
class Call:
    """Work that a replica has."""

    number: int
    work: Work
    generator: Any
    over: Any
    begun_s: float = 0.0
    is_trial: bool = False


@dataclass(slots=True)
class Member:
    """A replica: being built (``ready`` is the answer that is waited for), at work, or leaving.

    One that is ``outdated`` holds what the stage held before a change. Who was ``heard`` has its place on a node, also while
    it is built.
    """

    name: str
    handle: Any
    ready: Any
    started_s: float
    node_id: str = ""
    pid: int = 0
    calls: deque[Call] = field(default_factory=deque)
    leaving: bool = False
    outdated: bool = False
    heard: bool = False

    @property
    def is_careful(self) -> bool:
        """Whether it looks for a row that kills: no other call may come after, whose crash could be laid to that row."""
        return any(call.work.deaths for call in self.calls)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A call that is over: with its report and blocks, or with what broke it."""

    work: Work
    replica: str = ""
    is_trial: bool = False
    report: Report | None = None
    blocks: tuple[Any, ...] = ()
    cause: str = ""
    suspect: int | None = None
    is_guilty: bool = False
    lost_input: str = ""
    unsendable: str = ""


class Replicas:
    """All replicas of one stage.

    Raises from its methods:
        StageFailedError: the user's class could not be built.
    """

    def __init__(self, context: RunContext, spec: StageSpec, numbers: Iterator[int], *, is_last: bool) -> None:
        self.spec = spec
        self.is_async = False
        self._is_last = is_last
        self._rows_timed = 1 if spec.max_cost else spec.batch_size or 1  # for these, or less, the user has set the timeout
        self.start_s = 0.0
        self._context, self._numbers = context, numbers
        self._members: dict[str, Member] = {}
        self._positions: dict[int, int] = {}
        self._num_named = 0
        self._start_deaths = 0
        self._call_s = 0.0
        self._actor = _actor_of(spec)

    @property
    def members(self) -> list[Member]:
        return list(self._members.values())

    @property
    def num_alive(self) -> int:
        """Replicas that are there or being built, without those that leave."""
        return sum(not member.leaving for member in self._members.values())

    @property
    def num_starting(self) -> int:
        return sum(member.ready is not None and not member.leaving for member in self._members.values())

    def num_unplaced(self, unplaced: Iterable[tuple[Resources, int]]) -> int:
        """Say how many have been waiting for a place for a while: ``unplaced`` is what Ray finds no place for, and how often."""
        needs = needs_of(self.spec)
        num_waiting = sum(count for each, count in unplaced if each.is_like(needs))
        late_s = time.monotonic() - PLACING_S
        waiting = [each for each in self._members.values() if not (each.ready is None or each.heard or each.leaving)]
        return min(num_waiting, sum(each.started_s < late_s for each in waiting))

    @property
    def has_outdated(self) -> bool:
        """Whether some still hold what the stage held before a change."""
        return any(member.outdated for member in self._members.values())

    @property
    def has_idle(self) -> bool:
        return any(member.ready is None and not member.calls and not member.leaving for member in self._members.values())

    @property
    def has_calls(self) -> bool:
        return any(member.calls for member in self._members.values())

    @property
    def waits(self) -> list[Any]:
        """What to wait for: answers of those being built, and the ends of calls."""
        built = [member.ready for member in self._members.values() if member.ready is not None]
        return built + [call.over for member in self._members.values() for call in member.calls]

    def scale(self, count: int) -> None:
        """Start replicas, or let the newest and least busy leave when their calls are over."""
        while self.num_alive < count:
            self._start()
        staying = sorted(
            (member for member in self._members.values() if not member.leaving),
            key=lambda member: (member.ready is None, len(member.calls)),
        )
        for member in staying[: max(0, self.num_alive - count)]:
            member.leaving = True
        self._let_go()

    def change(self, spec: StageSpec) -> None:
        """Work otherwise from now on; replicas that hold something else than the stage does are replaced."""
        before, self.spec = self.spec, spec
        if _held(before) != _held(spec):
            self._actor = _actor_of(spec)
            for member in self.members:
                member.outdated = True

    def renew(self) -> None:
        """Replace outdated replicas, up to half of all at once."""
        outdated = [member for member in self.members if member.outdated and not member.leaving]
        if not outdated or self.num_starting or any(member.leaving for member in self.members):
            return
        count = self.num_alive
        for member in outdated[: max(1, count // 2)]:
            member.leaving = True
        self._let_go()
        self.scale(count)

    def free(self) -> Member | None:
        """Give the replica to which the next call should go, None when all have enough."""
        depth = 2 if self._call_s < AHEAD_S else 1
        able = [member for member in self._members.values() if member.ready is None and not member.leaving]
        open_ = [member for member in able if len(member.calls) < depth and not member.is_careful]
        return min(open_, key=lambda member: len(member.calls), default=None)

    def submit(self, member: Member, work: Work, waited: Waited, way: Way, *, is_trial: bool) -> None:
        """Make a call."""
        number = next(self._numbers)
        order = Order(
            number=number,
            cuts=tuple((piece.start, piece.stop) for piece in work.pieces),
            waited=waited,
            way=way,
            careful=work.deaths > 0,
            checked=work.checked,
            bad=work.bad,
        )
        generator = member.handle.run.options(num_returns="streaming").remote(order, *(piece.block for piece in work.pieces))
        begun_s = 0.0 if member.calls else time.monotonic()
        over = generator.completed()
        is_usual = not (order.careful or order.checked)  # row by row it says nothing of a change that is tried
        call = Call(number=number, work=work, generator=generator, over=over, begun_s=begun_s, is_trial=is_trial and is_usual)
        member.calls.append(call)

    def hear_of(self, replica: str) -> None:
        """Know that the process of a replica is there."""
        if (member := self._members.get(replica)) is not None:
            member.heard = True

    def note(self, number: int, row: int) -> None:
        """Remember which row a careful replica takes now."""
        self._positions[number] = row

    def hear(self, over: set[Any]) -> Iterator[Outcome]:
        """Take in those of the waits that are over."""
        for member in self.members:
            if member.ready is not None and member.ready in over:
                yield from self._built(member)
            while member.calls and member.calls[0].over in over:
                outcome = self._ended(member.calls[0])
                if outcome is None:
                    yield from self._lost(member, "its process was killed, or crashed in native code")
                    break
                member.calls.popleft()
                if member.calls:
                    member.calls[0].begun_s = time.monotonic()
                yield replace(outcome, replica=member.name)
        self._let_go()

    def overdue(self) -> Iterator[Outcome]:
        """End replicas whose call takes longer than the stage allows."""
        if self.spec.timeout_s is None:
            return
        for member in self.members:
            if member.calls and time.monotonic() - member.calls[0].begun_s > self._limit_s(member.calls[0]):
                ray.kill(member.handle)
                yield from self._lost(member, f"a call took longer than {self.spec.timeout_s:g} s")

    def end(self) -> None:
        """End all now."""
        for member in self.members:
            ray.kill(member.handle)
            self._gone(member)

    def _start(self) -> None:
        self._num_named += 1
        earlier = "" if self._context.attempt == 1 else f"{self._context.attempt}."  # an earlier host's names stay theirs
        name = f"{self.spec.name}-{earlier}{self._num_named}"
        handle = self._actor.remote(self._context.host, self._context.run_folder, self.spec, name, is_last=self._is_last)
        self._members[name] = Member(name=name, handle=handle, ready=handle.ready.remote(), started_s=time.monotonic())

    def _built(self, member: Member) -> Iterator[Outcome]:
        try:
            ready: Ready = ray.get(member.ready)
        except ray.exceptions.RayActorError as exc:
            self._start_deaths += cause_of(exc)[1] != "node"  # which says nothing of the user's code
            if self._start_deaths >= MAX_START_DEATHS:
                raise StageFailedError(
                    self.spec.name, f"its replicas died {self._start_deaths} times while they were built", str(exc)
                ) from exc
            yield from self._lost(member, "its process died while it was built")
            return
        if ready.failure is not None:
            raise StageFailedError(*ready.failure)
        self._start_deaths = 0
        self.start_s, self.is_async = time.monotonic() - member.started_s, ready.is_async
        member.ready, member.node_id, member.pid = None, ready.node_id, ready.pid
        spec = self.spec
        self._context.emit(SlotsHeld(holder=member.name, num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, node=ready.node_id[:8]))

    def _ended(self, call: Call) -> Outcome | None:
        """Give what a call came to; None when its replica is dead."""
        try:
            ray.get(call.over)
            *blocks, last = list(call.generator)
            report: Report = ray.get(last)
        except ray.exceptions.RayActorError:
            return None
        except ray.exceptions.ObjectLostError as exc:
            return Outcome(work=call.work, lost_input=type(exc).__name__)
        except ray.exceptions.RayTaskError as exc:
            if not isinstance(exc.cause, ray.exceptions.ObjectLostError):  # such as a result that does not pickle
                return Outcome(work=call.work, unsendable=describe(exc.cause))
            return Outcome(work=call.work, lost_input=type(exc.cause).__name__)
        if report.is_unsendable:
            return Outcome(work=call.work, is_trial=call.is_trial, unsendable="something that it gave cannot be written")
        if report.is_warm or not self._call_s:
            self._call_s = report.taken_s
        self._positions.pop(call.number, None)
        return Outcome(work=call.work, is_trial=call.is_trial, report=report, blocks=tuple(blocks))

    def _limit_s(self, call: Call) -> float:
        """Give how long a call may take: the user's limit for each of the calls of user code that it would be made of."""
        return (self.spec.timeout_s or 0.0) * -(-call.work.num_rows // self._rows_timed)

    def _lost(self, member: Member, cause: str) -> Iterator[Outcome]:
        """Have the calls of a dead replica made again.

        Where it was careful, the row at which it was is known. Else any of its calls may have killed it: the first may have
        been over already, and its answer lost with the process.
        """
        again = sum(call.work.num_rows for call in member.calls)
        self._context.emit(ReplicaLost(stage=self.spec.name, replica=member.name, cause=cause, num_rows_again=again))
        suspects = [self._positions.pop(call.number, None) for call in member.calls]
        is_known = any(suspect is not None for suspect in suspects)
        for call, suspect in zip(member.calls, suspects, strict=True):
            is_guilty = suspect is not None or not is_known
            yield Outcome(work=call.work, is_trial=call.is_trial, cause=cause, is_guilty=is_guilty, suspect=suspect)
        member.calls.clear()
        self._gone(member, told=True)

    def _let_go(self) -> None:
        for member in self.members:
            if member.leaving and not member.calls:
                ray.kill(member.handle)
                self._gone(member)

    def _gone(self, member: Member, *, told: bool = False) -> None:
        del self._members[member.name]
        if not told:
            self._context.emit(ReplicaEnded(stage=self.spec.name, replica=member.name))
        if member.node_id:
            self._context.emit(SlotsReleased(holder=member.name))


class StageFailedError(Exception):
    """The user's code raised in a stage. Facts: where, the error's one line, the user's frames."""


def needs_of(spec: StageSpec) -> Resources:
    """Give what a replica holds."""
    return Resources(num_cpus=spec.num_cpus, num_gpus=spec.num_gpus, memory_bytes=spec.memory_bytes)


def _held(spec: StageSpec) -> tuple[float, float, int]:
    return spec.num_cpus, spec.num_gpus, spec.memory_bytes


def _actor_of(spec: StageSpec) -> Any:
    """Give the actor class of a stage's replicas, with what each holds."""
    options: dict[str, Any] = {"num_cpus": spec.num_cpus, "num_gpus": spec.num_gpus, "max_restarts": 0, "max_task_retries": 0}
    if spec.memory_bytes:
        options["memory"] = spec.memory_bytes
    if spec.runtime_env:
        options["runtime_env"] = spec.runtime_env
    return ray.remote(**options)(StageWorker)
