"""The runs of a cluster: their names, folders and views, as the log has them."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from raykit.codec import decode, encode
from raykit.engine.buffers import Buffers
from raykit.engine.setting import ClusterSetting
from raykit.engine.versions import Versions
from raykit.errors import RunError, RunNameTakenError, RunNotFoundError
from raykit.events import CLUSTER, NodeSampled, Record, RunAccepted, UpdateAsked
from raykit.spec import PipelineSpec, RunSpec, ServiceSpec, TaskSpec, TrainSpec
from raykit.store.log import Log
from raykit.views import RunView, WaitingView, fold

FIRST = "#1"  # at the end of a name: the first run of that name, whose full name has no number

Check = Callable[[RunSpec], None]

RUN_KINDS = {TaskSpec: "task", PipelineSpec: "pipeline", TrainSpec: "training", ServiceSpec: "service"}


class Registry:
    """Views of all runs, kept up by folding what the log has gained."""

    def __init__(self, setting: ClusterSetting) -> None:
        self.log = Log(setting.log_path)
        self._setting = setting
        self._views: dict[str, RunView] = {}
        self._sampled: dict[str, Record] = {}
        self._number = 0
        self._reading = threading.Lock()

    def views(self) -> list[RunView]:
        """Give all runs as they stand, newest first."""
        self._read()
        return sorted(self._views.values(), key=lambda view: view.accepted_at_unix_s or 0, reverse=True)

    def sampled(self) -> list[Record]:
        """Give the newest sample of each node."""
        self._read()
        return list(self._sampled.values())

    def waiting(self) -> tuple[WaitingView, ...]:
        """Give the runs that wait and say for what, the oldest first."""
        waiting = [view for view in reversed(self.views()) if view.reason and not view.ended]
        return tuple(WaitingView(run=view.name, run_kind=view.run_kind, reason=view.reason) for view in waiting)

    def _read(self) -> None:
        with self._reading:
            while records := self.log.read(after=self._number):
                views, sampled = dict(self._views), dict(self._sampled)
                for record in records:
                    if isinstance(record.event, NodeSampled):
                        sampled[record.event.node] = record
                    elif record.run != CLUSTER:
                        views[record.run] = fold(views.get(record.run) or RunView(name=record.run), record)
                self._views, self._sampled, self._number = views, sampled, records[-1].number

    def newest(self, name: str) -> str:
        """Return the full name: ``digits`` means the newest of ``digits``, ``digits#2``, ..., and ``digits#1`` the first of them.

        Raises:
            RunNotFoundError: there is none; those that are there are named.
        """
        views = self.views()
        if name.endswith(FIRST) and any(view.name == name.removesuffix(FIRST) for view in views):
            return name.removesuffix(FIRST)
        for view in views:
            if name in (view.name, _base(view.name)):
                return view.name
        known = ", ".join(view.name for view in views[:8])
        raise RunNotFoundError(f"There is no run {name}.", f"There are: {known}." if known else "No run was started yet.")

    def asked(self, spec: RunSpec, key: str) -> str | None:
        """Give the run that a start with this key has begun, if one has: its answer was lost, and it was asked again."""
        base = _base(spec.name)
        names = (view.name for view in self.views() if _base(view.name) == base)
        return next((name for name in names if self._key(name) == key), None)

    def _key(self, run: str) -> str:
        file = self._setting.run_folder(run) / "key"
        return file.read_text() if file.exists() else ""

    def accept(self, spec: RunSpec, payload: bytes, key: str, buffers: Sequence[str] = ()) -> str:
        """Write a new run down and return its name. It keeps the large ``buffers`` of its payload.

        Raises:
            RunError: a buffer is gone.
            RunNameTakenError: a run of that name goes on; a name that was not chosen gets a number instead.
        """
        base = _base(spec.name)
        same = [view for view in self.views() if _base(view.name) == base]
        going_on = next((view.name for view in same if not view.ended), None)
        if going_on and base != type(spec)().name:
            raise RunNameTakenError(
                f"The run {going_on} goes on.", f"Stop it (%ray stop {going_on}), or give this one another name."
            )
        run = self._unused(base)
        folder = self._setting.run_folder(run)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        (folder / "spec.json").write_text(json.dumps(encode(spec)))
        (folder / "payload").write_bytes(payload)
        (folder / "key").write_text(key)
        Buffers(self._setting).keep(buffers, folder)
        self._write_accepted(run, spec, resumed=False)
        return run

    def accept_update(self, spec: RunSpec, payload: bytes, buffers: Sequence[str] = ()) -> str | None:
        """Write down how a service that goes on shall be from now on, and give its name; None if none of that name goes on.

        Raises:
            RunError: its replicas would need other slots.
        """
        base = _base(spec.name)
        same = [view for view in self.views() if _base(view.name) == base and not view.ended and view.state != "stopping"]
        if not isinstance(spec, ServiceSpec) or base == ServiceSpec().name or not same or same[0].run_kind != "service":
            return None
        run, service = same[0].name, same[0].service
        first = self.spec(run)
        assert isinstance(first, ServiceSpec)
        held, asked = ((each.stage.num_cpus, each.stage.num_gpus) for each in (first, spec))
        if held != asked:
            raise RunError(
                f"A replica of {run} holds {held[0]:g} CPUs and {held[1]:g} GPUs, and cannot be updated to one that holds "
                f"{asked[0]:g} and {asked[1]:g}.",
                f"Stop it (%ray stop {run}) and serve it again.",
            )
        Buffers(self._setting).keep(buffers, self._setting.run_folder(run))
        versions = Versions(self._setting.run_folder(run))
        number = 1 + max(versions.current, *versions.asked, service.asked if service else 1)
        # A stage keeps the name that it has in the views, whatever the function is called now.
        versions.add(number, replace(spec, stage=replace(spec.stage, name=first.stage.name)), payload)
        self.log.append(run, [UpdateAsked(version=number)])
        return run

    def accept_again(self, name: str, check: Check) -> tuple[str, RunSpec]:
        """Open a run that is over again and give its name and its spec.

        Args:
            name: the run's.
            check: raises where the cluster cannot hold it; nothing is written then.

        Raises:
            RunNameTakenError: it still goes on.
            RunError: it is done, or cannot be taken up again.
        """
        run = self.newest(name)
        view = self._views[run]
        if not view.ended:
            raise RunNameTakenError(f"The run {run} goes on.", f"See it: %ray watch {run}")
        if view.state == "done":
            raise RunError(f"The run {run} is done; there is nothing to resume.", "Run its cell again for a new one.")
        spec = self.spec(run)
        check(spec)
        self._write_accepted(run, spec, resumed=True)
        return run, spec

    def accept_from(self, folder: Path, check: Check) -> tuple[str, RunSpec]:
        """Take over a run of another cluster with what it has saved, and give its name here and its spec.

        Args:
            folder: the run's, which stays as it is.
            check: raises where this cluster cannot hold it; nothing is copied then.

        Raises:
            RunError: no run lies there.
        """
        if not (folder / "spec.json").is_file():
            raise RunError(f"No run lies in {folder}.", "Run its cell again.")
        asked: RunSpec = decode(RunSpec, json.loads((folder / "spec.json").read_text()))
        check(asked)
        run = self._unused(_base(asked.name))
        mine = self._setting.run_folder(run)
        shutil.rmtree(mine, ignore_errors=True)
        shutil.copytree(folder, mine, ignore=shutil.ignore_patterns("logs", "outputs", "*.new"))
        spec = self.spec(run)
        self._write_accepted(run, spec, resumed=True)
        return run, spec

    def _unused(self, base: str) -> str:
        """Give a name that no run had yet: ``digits``, else ``digits#2``, ..."""
        same = [view for view in self.views() if _base(view.name) == base]
        return base if not same else f"{base}#{1 + max(_number(view.name) for view in same)}"

    def spec(self, run: str) -> RunSpec:
        """Give what was asked of a run.

        Raises:
            RunError: its folder is gone.
        """
        folder = self._setting.run_folder(run)
        versions = Versions(folder)
        try:
            return replace(versions.spec(versions.current), name=run)
        except FileNotFoundError as exc:
            raise RunError(f"The folder of {run} is gone: {folder}.", "Run its cell again.") from exc

    def _write_accepted(self, run: str, spec: RunSpec, *, resumed: bool) -> None:
        stages = (spec.stage,) if isinstance(spec, ServiceSpec) else spec.stages if isinstance(spec, PipelineSpec) else ()
        accepted = RunAccepted(
            run_kind=RUN_KINDS[type(spec)],  # type: ignore[arg-type]
            folder=str(self._setting.run_folder(run)),
            stages=tuple(stage.name for stage in stages),
            resumed=resumed,
            simulated_gpus=self._setting.simulated_gpus,
            priority=spec.priority,
        )
        self.log.append(run, [accepted])


def _base(name: str) -> str:
    return name.partition("#")[0]


def _number(name: str) -> int:
    return int(name.partition("#")[2] or 1)
