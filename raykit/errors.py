"""What can go wrong, as one tree.

    RaykitError
    ├── InputError                what was asked cannot be done as it was written
    │   ├── OptionError           a magic's option or value
    │   ├── CellError             the text of a cell
    │   ├── CaptureError          a name of the notebook that cannot travel
    │   └── SourceError           the input of a pipeline
    ├── MissingPackageError       an optional package is not installed
    ├── ClusterError              a cluster cannot be made, found or reached
    │   ├── NoClusterError
    │   ├── ClusterLostError      it was there and is gone
    │   ├── ClusterDiffersError   `up` with other options than those it has
    │   └── CapacityError         more is asked than the whole cluster holds
    └── RunError                  a run
        ├── RunNotFoundError
        ├── RunNameTakenError
        ├── RunFailedError        the user's own code raised; carries the user's traceback
        │   └── UpdateRefusedError    that of a service's new version; the one before goes on
        ├── RunStoppedError
        ├── RequestError          a service answered a request with an error
        ├── WaitTimeoutError      it was not over in the time that was given to wait; it goes on
        └── RunLostError          its cluster went away under it

Every error says what was wanted, what was found, and what to do. Facts are the constructor's arguments, so that an
error survives pickling and the door's JSON; the sentence is made of them in ``__str__``.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any


class RaykitError(Exception):
    """The root: catch it to catch everything that raykit raises itself."""

    def _render_traceback_(self) -> list[str]:
        """Let IPython show the sentence alone: raykit's own frames help nobody who made a typing error."""
        return [f"{type(self).__name__}: {self}"]


class _SentenceError(RaykitError):
    """An error whose facts are ``problem`` (what was wanted and found) and ``remedy`` (what to do)."""

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)

    @property
    def problem(self) -> str:
        return str(self.args[0])

    @property
    def remedy(self) -> str:
        return str(self.args[1])

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}" if self.remedy else self.problem


class InputError(_SentenceError, ValueError):
    """What was asked cannot be done as it was written."""


class OptionError(InputError):
    """A magic's option or its value is not understood."""


class CellError(InputError):
    """The text of a cell cannot run: a syntax error, or a name that nobody defines."""


class CaptureError(InputError):
    """A name of the notebook that the cell uses cannot travel to the cluster."""


class SourceError(InputError):
    """The input of a pipeline is not there, is empty, or is of no known form."""


class MissingPackageError(RaykitError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str, why: str) -> None:
        super().__init__(package, extra, why)

    def __str__(self) -> str:
        package, extra, why = self.args
        return f"{package} is needed {why} and is not installed.\nInstall it with: pip install 'raykit[{extra}]'"


class ClusterError(_SentenceError):
    """A cluster cannot be made, found or reached."""


class NoClusterError(ClusterError):
    """No cluster of that name is up, or none at all."""


class ClusterLostError(ClusterError):
    """The cluster was there and is gone."""


class ClusterDiffersError(ClusterError):
    """``up`` was asked for a cluster that is up with other options."""


class CapacityError(ClusterError):
    """More is asked than the whole cluster holds; waiting would not help."""


class RunError(_SentenceError):
    """A run cannot be started, found or finished."""


class RunNotFoundError(RunError):
    """No run of that name is known."""


class RunNameTakenError(RunError):
    """A run of that name still goes on."""


class RunStoppedError(RunError):
    """The run was stopped before its end."""


class RunLostError(RunError):
    """The run's cluster went away under it."""


class RequestError(RunError):
    """A service answered a request with an error: the user's code raised, or too much waits."""


class WaitTimeoutError(RunError, TimeoutError):
    """What was waited for has not come in the time that was given; the run goes on."""


class RunFailedError(RunError):
    """The user's code raised in the cluster.

    ``traceback_text`` holds the user's frames only, with the cell's own lines.
    """

    def __init__(self, run: str, where: str, error: str, traceback_text: str) -> None:
        RaykitError.__init__(self, run, where, error, traceback_text)
        if traceback_text not in ("", error):  # a script, a log and a run around this one show it too
            self.add_note(traceback_text.rstrip())

    @property
    def error(self) -> str:
        """Type and message of the user's exception, as Python prints it."""
        return str(self.args[2])

    @property
    def traceback_text(self) -> str:
        return str(self.args[3])

    def __str__(self) -> str:
        run, where, error, _ = self.args
        return f"{run} failed in {where}: {error}"

    def _render_traceback_(self) -> list[str]:
        return [self.traceback_text.rstrip(), f"\n(raised in {self.args[1]} of run {self.args[0]})"]


class UpdateRefusedError(RunFailedError):
    """A new version of a service could not be built; the one before goes on."""

    def __str__(self) -> str:
        run, where, error, _ = self.args
        return f"{run} is not updated, and goes on as it was: {where}: {error}"

    def _render_traceback_(self) -> list[str]:
        return [self.traceback_text.rstrip(), f"\n({self.args[0]} is not updated, and goes on as it was)"]


def to_wire(error: RaykitError) -> dict[str, Any]:
    """Give ``error`` as JSON values for the door."""
    return {"error": type(error).__name__, "facts": list(error.args)}


def from_wire(message: dict[str, Any]) -> RaykitError:
    """Rebuild the error that :func:`to_wire` described; an unknown kind becomes a :class:`RunError`."""
    kind = globals().get(str(message.get("error")))
    facts = [str(fact) for fact in message.get("facts", [])]
    if isinstance(kind, type) and issubclass(kind, RaykitError):
        return kind(*facts)
    return RunError(f"the cluster answered: {message}")


def require(package: str, *, extra: str, why: str) -> ModuleType:
    """Import ``package``, or say which extra brings it and what it is needed for.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module(package)
    except ImportError as exc:
        raise MissingPackageError(package, extra, why) from exc
