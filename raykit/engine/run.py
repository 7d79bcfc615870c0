"""What a host and the three kinds of run share: the context of a run, and the two ways in which it can break off."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import ray

from raykit.commands import Command
from raykit.engine.folder import RunFolder
from raykit.engine.setting import NAMESPACE, ClusterSetting
from raykit.errors import RaykitError
from raykit.events import Event, OutputReady, RunAccepted
from raykit.policy.failure import Pulse
from raykit.store.log import Log
from raykit.views import RunView, fold_all
from raykit.wire.payload import Payload

OWN_NODE_GRACE_S = 5.0
HOST_PREFIX = "host:"


def find_host(run: str) -> ray.actor.ActorHandle:
    """Give the host of a run that goes on.

    Raises:
        ValueError: it has none.
    """
    return ray.get_actor(HOST_PREFIX + run, namespace=NAMESPACE)


Written = Callable[[int], None]
"""Called with the number of an event, from another thread, when the log has it."""


class Emit(Protocol):
    """Takes events in their order; returns before they are written. When they are, ``then`` is told the last one's number."""

    def __call__(self, *events: Event, then: Written | None = None) -> None: ...


class StoppedError(Exception):
    """The run ended early and can be taken up again: a person asked, or its policy, which gives the reason."""


class UserCodeError(Exception):
    """The user's code raised. Facts: where, the error's one line, the user's frames."""

    def __init__(self, where: str, error: str, traceback_text: str) -> None:
        super().__init__(where, error, traceback_text)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a kind of run gets from its host."""

    name: str
    spec: Any
    cluster: ClusterSetting
    emit: Emit
    attempt: int
    resumed: bool
    host: Any
    stop_asked: threading.Event = field(default_factory=threading.Event)

    @property
    def folder(self) -> Path:
        return self.cluster.run_folder(self.name)

    @property
    def run_folder(self) -> RunFolder:
        """The folder as workers have it on whatever machine."""
        return RunFolder.of(self.folder)

    def payload(self) -> Payload:
        """Read what travelled with the spec."""
        return self.run_folder.payload()

    def view(self) -> RunView:
        """Read the run's view from the log, from its last acceptance on: what earlier hosts left."""
        log, view = Log(self.cluster.log_path), RunView(name=self.name)
        try:
            for page in log.pages(run=self.name):  # never all at once: the log of a week is larger than its host
                begun = max((place for place, record in enumerate(page) if isinstance(record.event, RunAccepted)), default=None)
                view = fold_all(view if begun is None else RunView(name=self.name), page[begun:])
        finally:
            log.close()
        return view


class RunKind(Protocol):
    """A kind of run, as its host drives it."""

    def execute(self) -> None:
        """Run to the end, in a thread of the host; blocking. A stop may have been asked already, of an earlier host.

        Raises:
            StoppedError: a Stop was carried out.
            UserCodeError: the user's code raised.
        """

    def command(self, command: Command) -> None:
        """Take a command; returns at once.

        Raises:
            RunError: a run of this kind cannot do that.
        """

    def report(self, source: str, events: Sequence[Event], pulse: Pulse | None) -> Sequence[Event]:
        """Take what a worker reported, and give what of it is to be written to the log."""


def wake_at(ref: Any, wake: threading.Event) -> None:
    """Set an event when an actor has answered, or has died."""
    ref.future().add_done_callback(lambda _: wake.set())


def outlive_node_loss() -> None:
    """Wait for this process's own end, before the loss of a node is called a failure of the run.

    When the node is the host's own, the head is going down: then the run is lost with its cluster, and the next head
    says so.
    """
    time.sleep(OWN_NODE_GRACE_S)


def describe(error: BaseException) -> str:
    """Give an exception in one line, as Python's tracebacks end; of raykit's own also what to do."""
    try:
        said = str(error)
    except Exception:
        said = "<exception str() failed>"  # as in Python's tracebacks
    lines = said.strip().splitlines() or [""]
    text = " ".join(lines) if isinstance(error, RaykitError) else lines[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def is_end_of_process(error: BaseException) -> bool:
    """Return whether Ray raised it to end this process, on SIGTERM for example."""
    return hasattr(error, "ray_terminate_msg")


def as_user_error(error: BaseException, payload: Payload, where: str) -> UserCodeError:
    """Give the user's part of an exception, as plain text that crosses processes."""
    return UserCodeError(where, describe(error), payload.traceback_of(error))


def logged(error: UserCodeError, folder: RunFolder, source: str) -> UserCodeError:
    """Write the user's traceback at the end of a worker's log, where Python's own would go, and return the error."""
    folder.append(f"logs/{source}.log", error.args[2])
    return error


def save_outputs(namespace: dict[str, Any], names: Sequence[str], folder: RunFolder, where: str) -> list[OutputReady]:
    """Write the named values, on the CPU, as files of the run's folder, each in one move.

    Raises:
        UserCodeError: the cell never set the name, or its value does not pickle, or there is no room for it.
    """
    saved = []
    for name in names:
        if name not in namespace:
            raise UserCodeError(where, f"NameError: -o {name}: the cell did not set {name!r}", "")
        try:
            pickled = _pickled(namespace[name])
        except Exception as exc:
            kind = type(namespace[name]).__name__
            raise UserCodeError(where, f"-o {name}: a {kind} does not pickle ({describe(exc)})", "") from exc
        file = f"{name}.pkl"
        try:
            folder.write(f"outputs/{file}", pickled)
        except OSError as exc:
            raise UserCodeError(where, f"-o {name}: its {len(pickled):,} bytes cannot be written ({describe(exc)})", "") from exc
        saved.append(OutputReady(name=name, file=file, num_bytes=len(pickled)))
    return saved


def _pickled(value: Any) -> bytes:
    import cloudpickle

    if "torch" in sys.modules:
        import torch

        # A tensor's own pickling keeps its device; a kernel without that device could not read it.
        if isinstance(value, torch.nn.Module):
            value = value.to("cpu")
        elif isinstance(value, torch.Tensor):
            value = value.detach().cpu()
    return bytes(cloudpickle.dumps(value))
