"""A run as it is seen from here: a viewer that may come and go."""

from __future__ import annotations

import difflib
import inspect
import math
import pickle
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from raykit.client import session
from raykit.client.capture import pack, with_extra
from raykit.client.cluster import Cluster
from raykit.client.edited import edited_modules
from raykit.client.environment import checked_variables
from raykit.client.near import NearFiles
from raykit.client.ray_train import is_trainer, parts_of
from raykit.client.sending import sent
from raykit.cluster.base import Told
from raykit.cluster.record import LocalRecord
from raykit.commands import Apply, Command, Drill, Resize, Stop
from raykit.errors import (
    ClusterLostError,
    InputError,
    OptionError,
    RunFailedError,
    RunLostError,
    RunNotFoundError,
    RunStoppedError,
    WaitTimeoutError,
)
from raykit.events import Record, RunAccepted, StepCommitted, StepMeasured
from raykit.spec import RunSpec, TaskSpec, TrainSpec
from raykit.spec.priority import Priority
from raykit.spec.training import ON_LOSS, interval
from raykit.views import RunView, fold_all
from raykit.views.why import WhyView
from raykit.wire.classes import keep_classes_one
from raykit.wire.door import DoorClosedError, address_of
from raykit.wire.loop import check_loop
from raykit.wire.payload import RAY_TRAIN, FunctionWork, Payload
from raykit.wire.place import Place, absolute

if TYPE_CHECKING:
    from raykit.client.quarantine import Quarantine

POLL_S = 10.0
REST_S = 0.25
NUM_COUNTS = 2  # epoch and rows, which a step has without metrics


class Run:
    """A run in a cluster. It is running whether this object exists or not.

    A name means the newest run of that name until the first news of it; from then on the object speaks for that run alone.
    """

    def __init__(self, cluster: Cluster, name: str, *, is_full_name: bool = False) -> None:
        """Store; ``is_full_name``: the name is that of one run, and not of all that were called so."""
        self.cluster = cluster
        self.name = name
        self.view = RunView(name=name)
        self._is_full_name = is_full_name

    @property
    def _address(self) -> str:
        """The name by which the cluster finds this run."""
        return address_of(self.name) if self._is_full_name else self.name

    def refresh(self, *, wait_s: float = 0.0) -> RunView:
        """Take in what has happened; wait up to ``wait_s`` for the first news. An interrupt ends the wait.

        Raises:
            RunLostError: the cluster is gone.
        """
        try:
            if wait_s and self._has_waited(wait_s):
                wait_s = 0.0
            while records := self.cluster.door.events(self._address, after=self.view.number, wait_s=wait_s):
                self.name, self._is_full_name = records[-1].run, True
                self.view = fold_all(RunView(name=self.name) if not self.view.number else self.view, records)
                wait_s = 0.0
        except DoorClosedError:
            try:
                self.cluster.wait_for_door()
            except ClusterLostError as exc:
                raise RunLostError(f"The run {self.name} went down with its cluster: {exc.problem}", exc.remedy) from exc
        return self.view

    def _has_waited(self, wait_s: float) -> bool:
        """Wait in Ray where this process is a task of the run's cluster: what it waits for may need its CPUs."""
        address = getattr(self.cluster.record, "gcs_address", None)
        if address is None or "ray" not in sys.modules:
            return False
        from raykit.engine.nested import wait_for_news

        return wait_for_news(address, self._address, after=self.view.number, wait_s=wait_s)

    def follow(self, *, poll_s: float = POLL_S, timeout_s: float | None = None) -> Iterator[RunView]:
        """Give the view when there is news, and every ``poll_s`` where there is none, until the run is over.

        Of a run that has gone on for some seconds news is taken four times a second, however often there is some.

        Raises:
            WaitTimeoutError: it was not over after ``timeout_s``; it goes on.
        """
        begun_s = time.monotonic()
        left_s = timeout_s = math.inf if timeout_s is None else timeout_s
        yield self.refresh()
        while not self.view.ended:
            if left_s <= 0:
                problem = f"The run {self.name} is {self.view.state} after {timeout_s:g} s of waiting, and goes on."
                raise WaitTimeoutError(problem, f"Wait again, or see it: %ray watch {self.name}")
            passed_s = time.monotonic() - begun_s
            time.sleep(min(REST_S, passed_s / 20, left_s))
            yield self.refresh(wait_s=min(poll_s, left_s))
            left_s = timeout_s - (time.monotonic() - begun_s)

    def wait(self, *, timeout_s: float | None = None) -> Run:
        """Wait for the end.

        Raises:
            RunFailedError: the user's code raised.
            RunStoppedError: it was stopped.
            RunLostError: the cluster went away.
            WaitTimeoutError: it was not over after ``timeout_s``; it goes on.
        """
        try:
            for _ in self.follow(timeout_s=timeout_s):
                pass
        except KeyboardInterrupt as exc:
            exc.add_note(f"The run {self.name} is still running. Stop it: %ray stop {self.name}, or run.stop()")
            raise
        self.raise_if_failed()
        return self

    def raise_if_failed(self) -> None:
        """Raise what ended the run, if it did not end well."""
        view = self.view
        if view.state == "failed":
            raise RunFailedError(self.name, view.error_where or "raykit", view.error, view.traceback_text or view.error)
        if view.state == "stopped":
            why = f": {view.error}" if view.error else ""
            raise RunStoppedError(f"The run {self.name} was stopped{_at(view)}{why}.", f"Take it up again: %ray resume {self.name}")
        if view.state == "lost":
            raise RunLostError(f"The run {self.name} is lost: {view.error}", f"Take it up again: %ray resume {self.name}")

    def stop(self) -> None:
        """Ask it to end at its next commit or batch; returns at once."""
        self.cluster.ask(lambda door: door.command(Stop(run=self._address)))

    def drill(self, action: Any = "kill-worker", *, after_s: float = 0.0) -> None:
        """Break something on purpose; the verdict becomes a card of the view."""
        self.command(Drill(run=self._address, action=action, after_s=after_s))

    def resize(self, workers: int | tuple[int, int]) -> None:
        """Let a training run go on with another number of ranks, or (least, most); no step is lost."""
        self.command(Resize(run=self._address, workers=(workers, workers) if isinstance(workers, int) else workers))

    def why(self) -> WhyView:
        """Give what it lacks of what it asks for, what is free, and who holds the rest.

        Raises:
            RunError: it is over.
        """
        return self.cluster.ask(lambda door: door.why(self._address))

    def advise(self) -> str:
        """Say what would make this pipeline faster, and what it would bring."""
        from raykit.render.face import advice_words

        advice = self.refresh().advice
        return "There is no advice yet, or none is needed." if advice is None else advice_words(advice)

    def apply(self) -> None:
        """Do what the newest advice says; what came of it becomes a card.

        Raises:
            RunError: there is none that can be carried out.
        """
        self.command(Apply(run=self._address))

    def command(self, command: Command) -> None:
        self.cluster.tell(lambda door: door.command(command))

    def output(self, name: str) -> Any:
        """Give a value that came back (``-o``).

        Raises:
            RunNotFoundError: the run has no output of that name.
        """
        value = self.cluster.ask(lambda door: door.output(self._address, name))
        keep_classes_one()
        return pickle.loads(value)  # noqa: S301  (our own cluster's, behind its token)

    @property
    def result(self) -> Any:
        """What the function returned (of ``rk.run``), or the table of rows (of a pipeline)."""
        if self.view.run_kind == "pipeline":
            from raykit.client.result import Result

            return Result(self.view, self._near())
        return self.output("result")

    @property
    def quarantine(self) -> Quarantine:
        """The rows that a pipeline put aside, as a table; ``retry()`` runs them again."""
        from raykit.client.quarantine import Quarantine

        return Quarantine(self.view, self._near())

    def state_dict(self) -> dict[str, Any]:
        """Give the trained model's state from the run's newest checkpoint, tensors on the CPU: what ``load_state_dict`` takes.

        Of a run that goes on it is as old as that checkpoint; at the end of a run its last committed step is saved.

        Raises:
            RunNotFoundError: the run has saved none.
        """
        from raykit.engine.training.checkpoint import Checkpoints

        self.refresh()
        path, near = self.view.checkpoint_path, self._near()  # held: a copy lasts as long as it
        state = Checkpoints(near.path(path).rpartition("/")[0], kept=1, told=lambda _: None).newest() if path else None
        if state is None:
            raise RunNotFoundError(
                f"The run {self.name} has saved no state.", "Wait for its first checkpoint (--checkpoint-every)."
            )
        model: dict[str, Any] = state["model"]
        return model

    def metrics(self) -> Any:
        """Return the metrics of committed steps as a ``pandas.DataFrame`` by step: of each, or of ten a second where they are quick."""
        import pandas as pd

        rows: dict[int, dict[str, Any]] = {}
        after = 0
        while records := self._events(after):
            after = records[-1].number
            for each in (record.event for record in records):
                if isinstance(each, RunAccepted) and not each.resumed:
                    rows.clear()
                if isinstance(each, StepCommitted | StepMeasured):
                    row = {"epoch": each.epoch, "rows": each.num_rows, **each.metrics}
                    rows[each.step] = rows.get(each.step, {}) | row
        measured = {step: row for step, row in rows.items() if len(row) > NUM_COUNTS}
        return pd.DataFrame.from_dict(measured or rows, orient="index").rename_axis("step").sort_index()

    def logs(self, *, source: str = "", tail: int = 200) -> str:
        """Return the last lines that its workers printed, and those that they are writing."""
        written = self.cluster.ask(lambda door: door.logs(self._address, source=source, tail=tail))
        writing = [f"{line.source} | {line.text}" for line in self.refresh().open_lines if source in ("", line.source)]
        return "\n".join([*([written] if written else []), *writing])

    def _events(self, after: int) -> list[Record]:
        return self.cluster.ask(lambda door: door.events(self._address, after=after, wait_s=0))

    def _near(self) -> NearFiles:
        return NearFiles(self.cluster, self.view)

    def __repr__(self) -> str:
        from raykit.render import to_text

        return to_text(self.view)

    def _repr_html_(self) -> str:
        from raykit.render import to_html

        return to_html(self.view)


def start(
    spec: RunSpec, payload: Payload, *, on: str | None = None, env: Mapping[str, str] | None = None, told: Told = print
) -> Run:
    """Start a run in the cluster ``on`` (the current one if not given) and return its viewer.

    Its processes stand where this one does: they have its folder, where that is on their machine, and the variables ``env``.
    ``told`` is called with a sentence for each module that was edited after this process imported it.

    Raises:
        InputError: a variable's name or value is no text.
        CapacityError: the cluster cannot hold it, or has no memory or disk for what it captures.
        RunNameTakenError: a run of its name is running.
    """
    cluster = session.get(on)
    is_near = isinstance(cluster.record, LocalRecord)
    if is_near and isinstance(spec, TrainSpec):
        spec = replace(spec, checkpoint_to=absolute(spec.checkpoint_to), from_checkpoint=absolute(spec.from_checkpoint))
    place = Place.of_this_process(checked_variables(env or {}), is_near=is_near)
    for sentence in edited_modules(payload.modules):
        told(sentence)
    here = cluster.record.folder if cluster.record.spec.place == "local" else None
    brought = sent(replace(payload, place=place), cluster.ask, here=here)
    packed, key = brought.to_bytes(), uuid.uuid4().hex
    try:
        name = cluster.ask(lambda door: door.start(spec, packed, key=key, buffers=brought.buffers))
    except KeyboardInterrupt as exc:
        exc.add_note(f"The run {spec.name} may have been started: see %ray runs.")
        raise
    return Run(cluster, name, is_full_name=True)


def run(
    function: Callable[..., Any],
    *args: Any,
    name: str = "cell",
    cpus: float = 1,
    gpus: float = 0,
    priority: Priority = "normal",
    on: str | None = None,
    env: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> Run:
    """Run ``function(*args, **kwargs)`` on a node; ``.wait().result`` is what it returns.

    On this machine it runs in the folder of this process. Elastic training of a lower priority lends what it waits for.

    Args:
        function: what is called.
        args: given to it, as ``kwargs`` are.
        name: how the run is called.
        cpus: CPU slots that it holds.
        gpus: GPUs that it holds.
        priority: ``"low"``, ``"normal"`` or ``"high"``.
        on: the cluster; the current one if not given.
        env: variables of its process's environment, set before the function's modules are imported.
        kwargs: see ``args``.

    Raises:
        InputError: the function cannot be called so.
    """
    _check_call(run, function, args, kwargs)
    spec = TaskSpec(name=name, num_cpus=cpus, num_gpus=gpus, outputs=("result",), priority=priority)
    work = FunctionWork(function=function, args=args, kwargs=kwargs)
    named = {getattr(function, "__name__", "function"): function, **{f"argument {n}": arg for n, arg in enumerate(args)}, **kwargs}
    return start(spec, pack(work, named, {}), on=on, env=env)


def train(
    function: Callable[..., Any],
    *args: Any,
    workers: int | tuple[int, int] = 1,
    name: str = "train",
    cpus: float = 1,
    gpus: float = 0,
    spares: int | None = None,
    group: int = 1,
    on_loss: str | Callable[[RunView], Any] = "shrink",
    max_losses: int | Mapping[str, int] | None = None,
    checkpoint_every: str | float = "60s",
    checkpoint_to: str = "",
    checkpoints_kept: int = 2,
    from_checkpoint: str = "",
    hang_after_s: float = 300.0,
    lend_within_s: float = 30.0,
    engine: Any = "raykit",
    datasets: Mapping[str, Any] | None = None,
    priority: Priority = "normal",
    on: str | None = None,
    env: Mapping[str, str] | None = None,
    **kwargs: Any,
) -> Run:
    """Run an elastic training function on every worker; rank 0's result is ``.wait().result``.

    With ``engine="ray-train"`` the function is a ``train_loop_per_worker`` of Ray Train, unchanged, and takes its config
    or nothing. ``.wait().result`` is then what it reported last, ``.output("checkpoint")`` the path of its newest
    checkpoint, or None. The same for a whole ``TorchTrainer`` in place of the function.

    Args:
        function: a loop over ``rk.elastic(...).batches(...)``, as in a ``%%ray train`` cell.
        args: given to each worker's call, as ``kwargs`` are.
        workers: how many ranks, or (least, most).
        name: how the run is called.
        cpus: CPU slots of each rank.
        gpus: GPUs of each rank.
        spares: warm spares; 1 if not given, 0 on a small cluster.
        group: ranks that hold one model together (FSDP, tensor parallel), and come and go together.
        on_loss: when a rank is lost: ``"shrink"`` (go on with fewer), ``"wait"`` (until a spare has its place), ``"stop"``
            (save and end), or a function that is given the run's view and answers with one of these.
        max_losses: give up after more losses; a number, or numbers by cause (``died``, ``hung``, ``node``, ``memory``).
        checkpoint_every: ``"60s"``, ``"500steps"``, or a number of seconds.
        checkpoint_to: folder or fsspec URL of the checkpoints; the run's own folder if not given. One that has another run's
            checkpoints is refused.
        checkpoints_kept: how many checkpoints are kept.
        from_checkpoint: begin with the model of another run's checkpoint (``run.view.checkpoint_path``, or a folder of them: the
            newest). Optimizer, schedulers and the number of steps are this run's own.
        hang_after_s: end a rank that works, but keeps the others waiting for so long.
        lend_within_s: end a rank that has not come to a commit so long after a run that comes first wanted its slot; the
            others do the step again without it.
        engine: ``raykit``, or ``ray-train``.
        datasets: what Ray Train's ``get_dataset_shard`` gives to the loop, by name: functions that make a Ray Dataset, Datasets,
            DataFrames, lists of rows, paths, or ``rk.files`` of them.
        priority: ``"low"``, ``"normal"`` or ``"high"``: it lends what it can spare to runs of a higher one that wait, and
            takes what it asks for from elastic training of a lower one.
        on: the cluster; the current one if not given.
        env: variables of the environment of each rank's process, set before the function's modules are imported.
        kwargs: see ``args``.

    Raises:
        CellError: Ray Train could not call the function.
        InputError: the function cannot be called so; Ray Train's loop is given more than a config.
        OptionError: a value that cannot be, with those that can.
    """
    run_config = None
    if is_trainer(function):
        parts = parts_of(function)
        engine, workers, cpus, gpus = "ray-train", parts.workers, parts.cpus, parts.gpus
        function, args, datasets, run_config = parts.loop, (parts.config,) if parts.config else (), parts.datasets, parts.run_config
    if datasets and engine != "ray-train":
        raise OptionError("datasets were given to raykit's own engine.", "Give them to job.batches, or engine='ray-train'.")
    if not callable(on_loss) and on_loss not in ON_LOSS:
        raise OptionError(f"on_loss is {on_loss!r}.", f"Give {', '.join(ON_LOSS)}, or a function.")
    spec = TrainSpec(
        name=name,
        workers=(workers, workers) if isinstance(workers, int) else workers,
        cpus_per_worker=cpus,
        gpus_per_worker=gpus,
        num_spares=spares,
        group=group,
        on_loss="function" if callable(on_loss) else on_loss,
        max_losses=_by_cause(max_losses),
        checkpoint_every=interval(checkpoint_every),
        checkpoint_to=checkpoint_to,
        checkpoints_kept=checkpoints_kept,
        from_checkpoint=from_checkpoint,
        hang_after_s=hang_after_s,
        lend_within_s=lend_within_s,
        engine=engine,
        priority=priority,
        outputs=("result", "checkpoint") if engine == "ray-train" else ("result",),
    )
    if engine == "ray-train":
        check_loop(function)
        if len(args) > 1 or kwargs:
            raise InputError("A loop of Ray Train takes its config and nothing else.", "Put it all into the config.")
    else:
        _check_call(train, function, args, kwargs)
    work = FunctionWork(function=function, args=args, kwargs=kwargs)
    payload = pack(work, {getattr(function, "__name__", "function"): function, **kwargs}, {})
    if callable(on_loss):
        payload = with_extra(payload, "on_loss", on_loss)
    if datasets or run_config:
        payload = with_extra(payload, RAY_TRAIN, {"datasets": dict(datasets or {}), "run_config": run_config}, called="datasets")
    return start(spec, payload, on=on, env=env)


def _check_call(caller: Callable[..., Any], function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse arguments that the function would refuse on every worker; some are misspelt options of the caller's own.

    Raises:
        InputError: what does not fit.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as exc:
        options = list(inspect.signature(caller).parameters)
        near = [
            f"{name} (rk.{caller.__name__} has {meant[0]})"
            for name in kwargs
            if (meant := difflib.get_close_matches(name, options))
        ]
        name = getattr(function, "__name__", "The function")
        raise InputError(
            f"{name}{signature} cannot be called so: {exc}.", f"Correct {', '.join(near) or 'its arguments'}."
        ) from exc


def _by_cause(max_losses: int | Mapping[str, int] | None) -> tuple[tuple[str, int], ...]:
    if max_losses is None:
        return ()
    return (("", max_losses),) if isinstance(max_losses, int) else tuple(max_losses.items())


def _at(view: RunView) -> str:
    return f" at step {view.step}" if view.run_kind == "training" else ""
