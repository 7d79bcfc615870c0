"""Every touch of Ray Data by ``%ray observe data``: its execution callback, whose samples become events of a pipeline's view.

Ray Data reads the variable ``RAY_DATA_EXECUTION_CALLBACKS`` when it plans an execution, so datasets made before and after are
observed alike, whatever copies of ``DataContext`` they hold. tests/ray/test_raydata_contract.py pins the inner parts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import ray
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.interfaces import PhysicalOperator
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
from ray.data._internal.execution.operators.limit_operator import LimitOperator
from ray.exceptions import UserCodeException

from raykit.engine.run import describe
from raykit.errors import NoClusterError
from raykit.events import Event, RunAccepted, RunEnded, RunStarted, StageSampled, StageWord, UserFailed
from raykit.policy.bottleneck import StageTimes, words

Tell = Callable[[Event], None]
Begin = Callable[[str], Tell]
"""Opens the view of an execution, by its name, and gives what takes its events."""

VARIABLE = "RAY_DATA_EXECUTION_CALLBACKS"
SAMPLE_S = 0.5
NUM_SAMPLES = 8  # that a word rests on: four seconds
LEAST_SAMPLES = 3
CAUSED = "The above exception was the direct cause of the following exception:"  # of Python's tracebacks

_log = logging.getLogger(__name__)
_begin: Begin | None = None


def observe(begin: Begin) -> None:
    """Open a view for each execution of Ray Data in this process, from now on. A second call takes the first one's place.

    Raises:
        NoClusterError: this process is no Ray driver.
    """
    global _begin  # noqa: PLW0603
    if not ray.is_initialized():
        raise NoClusterError(
            "This kernel is no Ray driver, so no Ray Data code can run in it.", "First: %ray connect, or ray.init()"
        )
    _begin = begin
    if (mine := _path()) not in (paths := _paths()):
        os.environ[VARIABLE] = ",".join([*paths, mine])


def leave() -> bool:
    """Observe no more executions and say whether any were observed; those that go on end their views."""
    global _begin
    was, _begin = _begin is not None, None
    if left := [each for each in _paths() if each != _path()]:
        os.environ[VARIABLE] = ",".join(left)
    else:
        os.environ.pop(VARIABLE, None)
    return was


class Observer(ExecutionCallback):
    """One execution. What fails in it is told once in the log and ends the observation, never the execution."""

    def __init__(self) -> None:
        self._execution: _Execution | None = None

    def before_execution_starts(self, executor: Any) -> None:
        begin = _begin
        if begin is not None:
            self._carefully(lambda: self._open(executor, begin))

    def on_execution_step(self, executor: Any) -> None:  # noqa: ARG002  (Ray Data's signature)
        if self._execution is not None:
            self._carefully(self._execution.step)

    def after_execution_succeeds(self, executor: Any) -> None:  # noqa: ARG002
        if self._execution is not None:
            self._carefully(self._execution.end)

    def after_execution_fails(self, executor: Any, error: BaseException) -> None:  # noqa: ARG002
        if (execution := self._execution) is not None:
            self._carefully(lambda: execution.end(error))

    def _open(self, executor: Any, begin: Begin) -> None:
        operators = [each for each in executor._topology.items() if not isinstance(each[0], InputDataBuffer)]  # noqa: SLF001
        if operators:
            self._execution = _Execution(operators, begin(executor._dataset_id))  # noqa: SLF001

    def _carefully(self, do: Callable[[], None]) -> None:
        try:
            do()
        except Exception:
            execution, self._execution = self._execution, None
            if execution is not None:
                with contextlib.suppress(Exception):  # the view's own failure may be why
                    execution.lose()
            _log.warning("raykit observes this execution of Ray Data no more; the execution goes on.", exc_info=True)


class _Execution:
    """Samples the operators of an execution, in its own thread between two of its steps."""

    def __init__(self, operators: list[tuple[Any, Any]], tell: Tell) -> None:
        self._names = [f"{place}. {operator.name}" for place, (operator, _) in enumerate(operators, 1)]
        self._operators, self._tell = operators, tell
        self._times: list[deque[StageTimes]] = [deque(maxlen=NUM_SAMPLES) for _ in operators]
        self._sampled_s = 0.0
        self._is_through = self._has_ended = False
        tell(RunAccepted(run_kind="observed", folder="", stages=tuple(self._names)))
        tell(RunStarted())

    def step(self) -> None:
        if self._has_ended:  # Ray Data waits two seconds for its thread, then shuts down beside it
            return
        self._is_through = _is_through([operator for operator, _ in self._operators])
        if time.monotonic() - self._sampled_s >= SAMPLE_S:
            self._sampled_s = time.monotonic()
            self._take_times()
            self._sample()

    def end(self, error: BaseException | None = None) -> None:
        """Tell the last counts and how it ended. The consumer left early when nothing failed and rows were still to come."""
        self._has_ended = True
        try:
            self._sample()
        finally:
            if isinstance(error, Exception):
                said, traceback_text = _told(error)
                self._tell(UserFailed(where="Ray Data", error=said, traceback_text=traceback_text))
                self._tell(RunEnded(state="failed", error=said))
            else:
                self._tell(RunEnded(state="done" if self._is_through and error is None else "stopped"))

    def lose(self) -> None:
        """Tell that what becomes of the execution is not known."""
        self._tell(RunEnded(state="lost", error="raykit observes it no more; the log of this process says why"))

    def _take_times(self) -> None:
        """An operator that is through keeps the times of its work: it does not starve."""
        for (operator, state), times in zip(self._operators, self._times, strict=True):
            if not operator.has_execution_finished():
                times.append(_times(operator, state))

    def _sample(self) -> None:
        said = words([_mean(times) for times in self._times])
        for name, (operator, _), word, times in zip(self._names, self._operators, said, self._times, strict=True):
            known = len(times) >= LEAST_SAMPLES and _tells_tasks(operator)
            self._tell(_sampled(name, operator, word if known else ""))


def _is_through(operators: list[Any]) -> bool:
    """Say whether all rows came out; of a limit, also where Ray Data moved it before operators that keep the number of rows.

    ``take`` leaves at its last row, which may be before the last task is known to have ended.
    """
    last = operators[-1]
    if last.has_completed():
        return True
    for operator in reversed(operators):
        if isinstance(operator, LimitOperator):
            return bool(last.metrics.row_outputs_taken >= operator._limit)  # noqa: SLF001
        if any(getattr(each, "can_modify_num_rows", True) for each in operator._logical_operators):  # noqa: SLF001
            return False
    return False


def _sampled(name: str, operator: Any, word: StageWord | Literal[""]) -> StageSampled:
    metrics, reads, tells_tasks = operator.metrics, _reads(operator), _tells_tasks(operator)
    held = operator.running_logical_usage() if tells_tasks else None
    return StageSampled(
        stage=name,
        num_replicas=operator.get_actor_info().running if _says(operator, "get_actor_info") else None,
        rows_waiting=None if reads else _rows_waiting(operator),
        rows_in=None if reads else metrics.num_row_inputs_received,
        rows_out=metrics.row_outputs_taken,
        word=word,
        num_failed_tasks=metrics.num_tasks_failed if tells_tasks else None,
        num_cpus=None if held is None else held.cpu,
        num_gpus=None if held is None else held.gpu,
        held_by=_held_by(operator),
    )


def _tells_tasks(operator: Any) -> bool:
    """Say whether it counts its tasks and what they hold: one that shuffles all at once does not."""
    return _says(operator, "current_logical_usage")


def _says(operator: Any, method: str) -> bool:
    """Say whether an operator answers itself: the answer of the class below all is zero, whatever it does."""
    return getattr(type(operator), method) is not getattr(PhysicalOperator, method)


def _reads(operator: Any) -> bool:
    """Say whether it takes tasks that read, not rows: then the buffer before it stems from the same part of the user's code."""
    return any(
        isinstance(each, InputDataBuffer) and any(part in operator._logical_operators for part in each._logical_operators)  # noqa: SLF001
        for each in operator.input_dependencies
    )


def _rows_waiting(operator: Any) -> int | None:
    """Give what the operators before it gave less what it took; None of a buffer, which counts no rows."""
    before = operator.input_dependencies
    if any(isinstance(each, InputDataBuffer) for each in before):
        return None
    return max(0, sum(each.metrics.row_outputs_taken for each in before) - int(operator.metrics.num_row_inputs_received))


def _held_by(operator: Any) -> str:
    held = {
        "task submission": operator._in_task_submission_backpressure,  # noqa: SLF001
        "task output": operator._in_task_output_backpressure,  # noqa: SLF001
    }
    return "" if operator.has_execution_finished() else ", ".join(name for name, holds in held.items() if holds)


def _times(operator: Any, state: Any) -> StageTimes:
    """What an operator does at this instant, as a share of 0 or 1."""
    waiting = state.has_pending_bundles()
    blocked = operator._in_task_output_backpressure  # noqa: SLF001
    starved = not blocked and not waiting and not operator.num_active_tasks()
    return StageTimes(busy=not blocked and not starved, starved=starved, blocked=blocked, has_waiting=waiting)


def _mean(times: deque[StageTimes]) -> StageTimes:
    if not times:
        return StageTimes(busy=0.0, starved=1.0, blocked=0.0, has_waiting=False)
    count = len(times)
    return StageTimes(
        busy=sum(each.busy for each in times) / count,
        starved=sum(each.starved for each in times) / count,
        blocked=sum(each.blocked for each in times) / count,
        has_waiting=times[-1].has_waiting,
    )


def _told(error: Exception) -> tuple[str, str]:
    """Give the user's own exception in a line, and its traceback.

    Ray Data raises its own exception from the user's, of which Ray brings back the traceback's text alone.
    """
    root: BaseException = error
    while isinstance(inner := getattr(root, "cause", None) or root.__cause__, BaseException):
        root = inner
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if not isinstance(root, UserCodeException):
        return describe(root), text
    users = text.rpartition(CAUSED)[0].strip()
    said = re.search(r"^\S.*", users[users.rfind("\n  File ") + 1 :], re.MULTILINE)  # the first line below the last frame
    return (describe(root), text) if said is None else (said.group(), users)


def _path() -> str:
    return f"{Observer.__module__}.{Observer.__qualname__}"


def _paths() -> list[str]:
    return [each for each in os.environ.get(VARIABLE, "").split(",") if each]
