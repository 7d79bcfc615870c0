"""Which rows wait before which stage, and which spans of the source are through.

The source is cut into spans. A call of a replica takes rows of one span only, and a span is written when all that became
of its rows has come out, in one move: so each row is in the sink once, whoever dies, and a span can be done again from its
source alone. Nothing here knows Ray: a block is whatever the caller hands in.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows ``[start, stop)`` of a block, all of one span."""

    block: Any
    start: int
    stop: int
    span: int
    row_bytes: float = 0.0

    @property
    def num_rows(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one call of a replica takes.

    ``deaths`` counts the replicas that died over it, ``strikes`` those of them that died at the row ``suspect``; ``bad`` are
    its rows that are left out since they killed them.
    """

    stage: int
    span: int
    life: int
    pieces: tuple[Piece, ...]
    deaths: int = 0
    bad: tuple[int, ...] = ()
    suspect: int | None = None
    strikes: int = 0

    @property
    def num_rows(self) -> int:
        return sum(piece.num_rows for piece in self.pieces)


class Flow:
    """The rows of a pipeline of ``num_stages`` stages that are under way."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._waiting: list[dict[int, deque[Piece]]] = [{} for _ in range(num_stages)]
        self._rows: list[Counter[int]] = [Counter() for _ in range(num_stages)]
        self._again: list[deque[Work]] = [deque() for _ in range(num_stages)]
        self._in_flight: list[Counter[int]] = [Counter() for _ in range(num_stages)]
        self._sources: dict[int, list[Piece]] = {}
        self._closed: set[int] = set()
        self._out: dict[int, list[Piece]] = defaultdict(list)
        self._life: Counter[int] = Counter()
        self.num_bytes = 0.0

    def add(self, piece: Piece) -> None:
        """Take rows of the source, in the order of their spans."""
        self._sources.setdefault(piece.span, []).append(piece)
        self._put(0, piece)

    def close(self, span: int) -> None:
        """Know that a span has all its rows."""
        self._closed.add(span)
        self._sources.setdefault(span, [])  # a span may be empty

    @property
    def num_spans(self) -> int:
        """Spans under way."""
        return len(self._sources)

    def rows_waiting(self, stage: int) -> int:
        """Rows that wait before a stage; those which are out, for the number of stages."""
        return self._rows[stage].total() + sum(work.num_rows for work in self._again[stage])

    def take(self, stage: int, *, most: int, batch: int, partial: bool = False) -> Work | None:
        """Take rows for one call, of the earliest span that has enough of them.

        Args:
            stage: by its place.
            most: rows.
            batch: how many make a batch: fewer are taken only when the span has no more to come.
            partial: fewer are fine.
        """
        if self._again[stage]:
            work = self._again[stage].popleft()
            self._in_flight[stage][work.span] += 1
            return work
        for span, there in sorted(self._rows[stage].items()):
            if there < batch and not partial and not self._has_all(stage, span):
                continue
            wanted = min(there, most) if there < batch else min(there // batch * batch, max(batch, most // batch * batch))
            self._in_flight[stage][span] += 1
            return Work(stage=stage, span=span, life=self._life[span], pieces=tuple(self._cut(stage, span, wanted)))
        return None

    def done(self, work: Work, blocks: Iterable[tuple[Any, int, int]]) -> bool:
        """Take what a call gave, as (block, rows, bytes); False when its span was begun anew meanwhile."""
        if not self.is_current(work):
            return False
        self._in_flight[work.stage][work.span] -= 1
        for block, num_rows, num_bytes in blocks:
            if num_rows:
                piece = Piece(block=block, start=0, stop=num_rows, span=work.span, row_bytes=num_bytes / num_rows)
                self._put(work.stage + 1, piece)
        return True

    def again(self, work: Work, **changed: Any) -> None:
        """Have a call made again, before all others of its stage."""
        if self.is_current(work):
            self._in_flight[work.stage][work.span] -= 1
            self._again[work.stage].append(replace(work, **changed))

    def is_current(self, work: Work) -> bool:
        """Say whether a call still counts: its span is under way, and was not begun anew since."""
        return work.span in self._sources and work.life == self._life[work.span]

    def restart(self, span: int) -> None:
        """Begin a span that is under way anew from its source: something of it is lost."""
        self._life[span] += 1
        for stage in range(self._num_stages):
            for piece in self._waiting[stage].pop(span, ()):
                self.num_bytes -= piece.num_rows * piece.row_bytes
            self._rows[stage].pop(span, None)
            self._in_flight[stage].pop(span, None)
            self._again[stage] = deque(work for work in self._again[stage] if work.span != span)
        self._drop_out(span)
        for piece in self._sources[span]:
            self._put(0, piece)

    def through(self) -> list[tuple[int, list[Any]]]:
        """Give the spans of which all has come out, each with its blocks, the earliest first."""
        spans = [span for span in sorted(self._closed) if self._has_all(self._num_stages, span)]
        return [(span, [piece.block for piece in self._out[span]]) for span in spans]

    def forget(self, span: int) -> None:
        """Let a span go that is through."""
        self._closed.discard(span)
        self._drop_out(span)
        self._sources.pop(span)
        self._life.pop(span, None)

    def is_over(self, stage: int) -> bool:
        """Say whether nothing is under way at this stage or before it."""
        return not any(self._rows[each].total() or self._again[each] or self._in_flight[each].total() for each in range(stage + 1))

    def _has_all(self, stage: int, span: int) -> bool:
        """Say whether nothing of a span can still come to this stage."""
        return span in self._closed and not any(
            self._rows[each][span] or self._in_flight[each][span] or any(work.span == span for work in self._again[each])
            for each in range(stage)
        )

    def _put(self, stage: int, piece: Piece) -> None:
        self.num_bytes += piece.num_rows * piece.row_bytes
        if stage == self._num_stages:
            self._out[piece.span].append(piece)
            return
        self._waiting[stage].setdefault(piece.span, deque()).append(piece)
        self._rows[stage][piece.span] += piece.num_rows

    def _cut(self, stage: int, span: int, wanted: int) -> Iterable[Piece]:
        waiting = self._waiting[stage][span]
        self._rows[stage][span] -= wanted
        while wanted:
            piece = waiting.popleft()
            if piece.num_rows > wanted:
                waiting.appendleft(replace(piece, start=piece.start + wanted))
                piece = replace(piece, stop=piece.start + wanted)
            wanted -= piece.num_rows
            self.num_bytes -= piece.num_rows * piece.row_bytes
            yield piece
        if not waiting:
            del self._waiting[stage][span], self._rows[stage][span]

    def _drop_out(self, span: int) -> None:
        self.num_bytes -= sum(piece.num_rows * piece.row_bytes for piece in self._out.pop(span, []))
