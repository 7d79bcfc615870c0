"""Runs that this kernel executes itself: their records lie in its memory, where those of other runs lie behind a door."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

from raykit.client.cluster import Cluster
from raykit.client.run import Run
from raykit.commands import Command
from raykit.errors import NoClusterError, RunError, RunLostError, RunStoppedError
from raykit.events import Event, Record

if TYPE_CHECKING:
    from raykit.client.quarantine import Quarantine

T = TypeVar("T")


class Journal:
    """The records of one run, with the door's way of asking for them."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._records: list[Record] = []
        self._news = threading.Condition()

    def tell(self, event: Event) -> None:
        """Append an event; from any thread."""
        with self._news:
            record = Record(number=len(self._records) + 1, at_unix_s=time.time(), run=self._run, event=event)
            self._records.append(record)
            self._news.notify_all()

    def events(self, run: str, *, after: int = 0, wait_s: float = 0.0) -> list[Record]:  # noqa: ARG002  (it has one run)
        """Give the records after number ``after``; wait up to ``wait_s`` for the first."""
        with self._news:
            self._news.wait_for(lambda: len(self._records) > after, wait_s)
            return self._records[after:]

    def command(self, _: Command) -> None:
        """Refuse, as the run belongs to the cell that executes it."""
        raise RunError("This run is plain Ray Data code, which takes no commands.", "Interrupt the cell that executes it.")

    def logs(self, *_: Any, **__: Any) -> str:
        """Refuse, as Ray itself prints in the cell what its workers print."""
        raise RunError("This run is plain Ray Data code, whose lines raykit does not keep.", "Look at the cell that executed it.")

    def output(self, *_: Any) -> bytes:
        """Refuse, as the rows go to who consumes the dataset."""
        raise RunError("This run is plain Ray Data code: its rows went to the cell.", "Take them from the dataset itself.")


class Here:
    """This kernel, in place of a cluster."""

    def __init__(self, door: Journal) -> None:
        self.door = door

    def ask(self, question: Callable[[Journal], T]) -> T:
        """Ask the journal, which does not go away."""
        return question(self.door)

    tell = ask


class ObservedRun(Run):
    """An execution of plain Ray Data code. It has a view; what would need a cluster's folder is refused."""

    def __init__(self, name: str, journal: Journal) -> None:
        super().__init__(cast("Cluster", Here(journal)), name)

    def raise_if_failed(self) -> None:
        """Raise what ended the execution, if it did not end well; it cannot be resumed."""
        if self.view.state == "lost":
            raise RunLostError(f"{self.name} is seen no more: {self.view.error}", "Its cell goes on.")
        if self.view.state == "stopped":
            raise RunStoppedError(f"{self.name} was left before all its rows came out.", "Consume the dataset again.")
        super().raise_if_failed()

    @property
    def quarantine(self) -> Quarantine:
        """Refuse: Ray Data puts no rows aside."""
        raise RunError("This run is plain Ray Data code, which puts no rows aside.", "A raykit pipeline does: rk.Pipeline.")

    def state_dict(self) -> dict[str, Any]:
        """Refuse: nothing was trained."""
        raise RunError("This run is plain Ray Data code, which trains no model.", "A training run has a state: rk.train.")


def observe(show: Callable[[Run], Callable[[], None]]) -> None:
    """Show each execution of Ray Data in this kernel: ``show`` is given its run, and what it gives is called at each news.

    Raises:
        NoClusterError: this kernel is no Ray driver.
    """
    if "ray" not in sys.modules:
        raise NoClusterError(
            "This kernel is no Ray driver, so no Ray Data code can run in it.", "First: %ray connect, or ray.init()"
        )
    from raykit.engine import observe as engine

    def begin(name: str) -> Callable[[Event], None]:
        journal = Journal(name)
        news = show(ObservedRun(name, journal))

        def tell(event: Event) -> None:
            journal.tell(event)
            news()

        return tell

    engine.observe(begin)


def leave() -> bool:
    """Observe no more, and say whether anything was observed."""
    engine = sys.modules.get("raykit.engine.observe")
    return bool(engine is not None and engine.leave())
