"""What host and replicas say to each other: a call, what came of it, and where a careful replica is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raykit.engine.pipeline.row_order import Origins

Waited = Literal["starved", "blocked"]
Facts = tuple[str, str, str]
"""Where user code raised, its error in one line, its frames."""

CALL_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How the rows of a call are given to the user's code. ``num_threads`` None leaves its thread pools as they are."""

    batch_size: int | None
    concurrency: int
    num_threads: int | None = None

    @property
    def num_at_once(self) -> int:
        """Rows that the user's code has in hand at a time."""
        return self.batch_size or self.concurrency

    def rows_of_call(self, row_s: float | None) -> int:
        """Give the rows of one call: as many whole rounds of ``num_at_once`` as take about ``CALL_S``, and one at least.

        A call ends with its last row: of 26 rows, 16 at once, the second round would leave six places idle.

        Args:
            row_s: seconds of a replica for a row; None while that is not known.
        """
        if row_s is None:
            return self.batch_size or 1
        return self.num_at_once * max(1, int(CALL_S / max(row_s * self.num_at_once, 1e-5)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One call of a replica.

    ``cuts`` are the rows of each block. ``waited`` says why the host had nothing for the replica before. ``careful``: a
    replica died over these rows: take them one by one, and say which before each, without those that are ``bad``.
    ``checked``: something that was made of these rows could not be sent on: find out which row it was.
    """

    number: int
    cuts: tuple[tuple[int, int], ...]
    waited: Waited
    way: Way
    careful: bool = False
    checked: bool = False
    bad: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that is put aside: pickled, with the reason."""

    row: bytes
    error: str
    traceback_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """What a replica's process used in a call of ``taken_s``.

    ``cpu_s`` is the CPU time of its threads, ``wanted_s`` with the time for which they waited for a CPU; ``peak_bytes`` the
    most memory that it had since its start.
    """

    taken_s: float
    cpu_s: float
    wanted_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a call gave: (rows, bytes) of each of its blocks, and what it took. ``is_warm``: not the replica's first.

    ``origins`` says of each row that was given which of the call's rows it was made of; None: one of each, in their order.
    ``is_guess``: a batch gave another number of rows than it took, and its rows' origins are only in the right order.
    ``is_unsendable``: something that was made of them cannot be sent on, as a value that does not pickle.
    """

    blocks: tuple[tuple[int, int], ...]
    origins: Origins | None = None
    rows_in: int
    taken_s: float
    is_warm: bool
    use: Use | None = None
    bad: tuple[BadRow, ...] = ()
    failure: Facts | None = None
    is_guess: bool = False
    is_unsendable: bool = False

    @property
    def rows_out(self) -> int:
        return sum(rows for rows, _ in self.blocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A replica that is built, or the reason why it could not be."""

    node_id: str
    pid: int
    start_s: float = 0.0
    is_async: bool = False
    failure: Facts | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The row at which a careful replica is."""

    number: int
    row: int
