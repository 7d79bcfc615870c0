"""Which rows wait before which stage, and which spans of the source are through.

The source is cut into spans. A call of a replica takes rows of one span only, and a span is written when all that became
of its rows has come out, in one move: so each row is in the sink once, whoever dies, and a span can be done again from its
source alone. Nothing here knows Ray: a block is whatever the caller hands in.

Calls end in any order. Each row has a key that says where it stands in the order of the source (:mod:`.row_order`), and a span
that is through is handed out with its keys, so that it can be written in that order.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from raykit.engine.pipeline.row_order import Keys, Origins, keys_of, made_of

Made = tuple[Any, int, int]
"""A block that a call gave, its rows, its bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Rows ``[start, stop)`` of a block, all of one span, with the keys of their order.

    Of the span's rows none that lies between these is anywhere else.
    """

    block: Any
    start: int
    stop: int
    span: int
    row_bytes: float = 0.0
    keys: Keys = field(compare=False)

    @property
    def num_rows(self) -> int:
        return self.stop - self.start

    def part(self, start: int, stop: int) -> Piece:
        """Return some of its rows, by their numbers from 0 on."""
        return replace(self, start=self.start + start, stop=self.start + stop, keys=self.keys[start:stop])


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one call of a replica takes.

    ``deaths`` counts the replicas that died over it, ``strikes`` those of them that died at the row ``suspect``; ``bad`` are
    its rows that are left out since they killed them. ``checked``: what is made of each row is looked at before it is sent on.
    ``gaps`` are the numbers of its rows before which one is missing, which is elsewhere.
    """

    stage: int
    span: int
    life: int
    pieces: tuple[Piece, ...]
    deaths: int = 0
    bad: tuple[int, ...] = ()
    suspect: int | None = None
    strikes: int = 0
    checked: bool = False
    gaps: tuple[int, ...] = ()

    @property
    def num_rows(self) -> int:
        return sum(piece.num_rows for piece in self.pieces)

    @property
    def keys(self) -> Keys:
        """The keys of its rows."""
        return keys_of([piece.keys for piece in self.pieces])


class Flow:
    """The rows of a pipeline of ``num_stages`` stages that are under way."""

    def __init__(self, num_stages: int) -> None:
        self._num_stages = num_stages
        self._waiting: list[dict[int, list[Piece]]] = [{} for _ in range(num_stages)]
        self._rows: list[Counter[int]] = [Counter() for _ in range(num_stages)]
        self._again: list[deque[Work]] = [deque() for _ in range(num_stages)]
        self._in_flight: list[dict[int, list[Work]]] = [defaultdict(list) for _ in range(num_stages)]
        self._sources: dict[int, list[Piece]] = {}
        self._closed: set[int] = set()
        self._out: dict[int, list[Piece]] = defaultdict(list)
        self._life: Counter[int] = Counter()
        self._unbroken: set[int] = set()
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

    def take(self, stage: int, *, most: int, batch: int, partial: bool = False, stalled: bool = False) -> Work | None:
        """Take rows for one call, of the earliest span that has enough of them.

        Args:
            stage: by its place.
            most: rows.
            batch: how many make a batch: fewer are taken only when the span has no more to come.
            partial: fewer are fine.
            stalled: no call of any stage is under way, so that a missing row between those that wait may never come.
        """
        if self._again[stage]:
            work = self._again[stage].popleft()
            self._in_flight[stage][work.span].append(work)
            return work
        for span, there in sorted(self._rows[stage].items()):
            has_all = self._has_all(stage, span)
            if there < batch and not partial and not has_all:
                continue
            gaps = self._gaps(stage, span)
            start, stop = _longest_run(gaps, there, batch) if stage in self._unbroken else (0, there)
            run = stop - start
            if run < batch and not (partial or stalled or has_all):
                continue
            wanted = min(run, most) if run < batch else min(run // batch * batch, max(batch, most // batch * batch))
            work = Work(
                stage=stage,
                span=span,
                life=self._life[span],
                pieces=tuple(self._cut(stage, span, start, wanted)),
                gaps=tuple(gap - start for gap in gaps if start < gap < start + wanted),
            )
            self._in_flight[stage][span].append(work)
            return work
        return None

    def done(self, work: Work, blocks: Iterable[Made], origins: Origins | None = None) -> bool:
        """Take what a call gave; False when its span was begun anew meanwhile.

        Args:
            work: what the call took.
            blocks: what it gave.
            origins: of all its rows, one block after the other; None where they are the rows it took, one for one.
        """
        if not self.is_current(work):
            return False
        self._landed(work)
        keys, at = made_of(work.keys, origins), 0
        borders = _borders(work.gaps, origins)
        for block, num_rows, num_bytes in blocks:
            cuts = [0, *(border - at for border in borders if at < border < at + num_rows), num_rows]
            for start, stop in itertools.pairwise(cuts):
                if start < stop:
                    piece = Piece(
                        block=block,
                        start=start,
                        stop=stop,
                        span=work.span,
                        row_bytes=num_bytes / num_rows,
                        keys=keys[at + start : at + stop],
                    )
                    self._put(work.stage + 1, piece)
            at += num_rows
        return True

    def again(self, work: Work, **changed: Any) -> None:
        """Have a call made again, before all others of its stage."""
        if self.is_current(work):
            self._landed(work)
            self._again[work.stage].append(replace(work, **changed))

    def again_unbroken(self, work: Work) -> None:
        """Have a call made again, as one call for each part of it in which no row is missing; so are the stage's calls from now on.

        What a stage makes of a batch cannot be told row from row, if it gives another number of them: where they came back, a
        row that comes later could not be put in between.
        """
        self._unbroken.add(work.stage)
        if self.is_current(work):
            self._landed(work)
            self._again[work.stage] += [replace(work, pieces=pieces, gaps=()) for pieces in _parts(work)]

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

    def through(self) -> list[tuple[int, list[Piece]]]:
        """Give the spans of which all has come out, the earliest first, each with its rows."""
        spans = [span for span in sorted(self._closed) if self._has_all(self._num_stages, span)]
        return [(span, list(self._out[span])) for span in spans]

    def forget(self, span: int) -> None:
        """Let a span go that is through."""
        self._closed.discard(span)
        self._drop_out(span)
        self._sources.pop(span)
        self._life.pop(span, None)

    def is_over(self, stage: int) -> bool:
        """Say whether nothing is under way at this stage or before it."""
        return not any(
            self._rows[each].total() or self._again[each] or any(self._in_flight[each].values()) for each in range(stage + 1)
        )

    def _has_all(self, stage: int, span: int) -> bool:
        """Say whether nothing of a span can still come to this stage."""
        return span in self._closed and not any(
            self._rows[each][span] or self._in_flight[each].get(span) or any(work.span == span for work in self._again[each])
            for each in range(stage)
        )

    def _put(self, stage: int, piece: Piece) -> None:
        self.num_bytes += piece.num_rows * piece.row_bytes
        if stage == self._num_stages:
            self._out[piece.span].append(piece)
            return
        waiting = self._waiting[stage].setdefault(piece.span, [])
        waiting.insert(bisect_right(waiting, piece.keys[0], key=lambda each: each.keys[0]), piece)
        self._rows[stage][piece.span] += piece.num_rows

    def _landed(self, work: Work) -> None:
        """Take a call from those in flight."""
        calls = self._in_flight[work.stage][work.span]
        calls[:] = [each for each in calls if each is not work]

    def _gaps(self, stage: int, span: int) -> list[int]:
        """Return the numbers of the waiting rows before which one is missing: between two pieces, if a row of another lies there."""
        waiting = self._waiting[stage][span]
        if len(waiting) == 1:
            return []
        others = [piece for each, of_stage in enumerate(self._waiting) if each != stage for piece in of_stage.get(span, ())]
        others += [piece for of_stage in self._in_flight for work in of_stage.get(span, ()) for piece in work.pieces]
        others += [piece for works in self._again for work in works if work.span == span for piece in work.pieces]
        others += self._out.get(span, ())
        firsts = sorted(piece.keys[0] for piece in others)
        ends = itertools.accumulate(piece.num_rows for piece in waiting)
        return [
            end
            for end, (one, next_one) in zip(ends, itertools.pairwise(waiting), strict=False)
            if bisect_right(firsts, one.keys[-1]) != bisect_right(firsts, next_one.keys[0])
        ]

    def _cut(self, stage: int, span: int, start: int, wanted: int) -> Iterable[Piece]:
        """Take ``wanted`` of the rows that wait, from the number ``start`` on."""
        left: list[Piece] = []
        stop, at = start + wanted, 0
        for piece in self._waiting[stage][span]:
            first, last = max(start - at, 0), min(stop - at, piece.num_rows)
            at += piece.num_rows
            if first >= last:
                left.append(piece)
                continue
            left += [piece.part(*cut) for cut in ((0, first), (last, piece.num_rows)) if cut[0] < cut[1]]
            self.num_bytes -= (last - first) * piece.row_bytes
            yield piece.part(first, last)
        self._rows[stage][span] -= wanted
        self._waiting[stage][span] = left
        if not left:
            del self._waiting[stage][span], self._rows[stage][span]

    def _drop_out(self, span: int) -> None:
        self.num_bytes -= sum(piece.num_rows * piece.row_bytes for piece in self._out.pop(span, []))


def _longest_run(gaps: Sequence[int], there: int, batch: int) -> tuple[int, int]:
    """Return (start, stop) of waiting rows between which none is missing: the first that make a batch, or the most there are."""
    runs = list(itertools.pairwise([0, *gaps, there]))
    return next((run for run in runs if run[1] - run[0] >= batch), max(runs, key=lambda run: run[1] - run[0]))


def _parts(work: Work) -> Iterator[tuple[Piece, ...]]:
    """Cut the pieces of a call at its gaps, which lie between pieces."""
    part: list[Piece] = []
    at = 0
    for piece in work.pieces:
        if at in work.gaps:
            yield tuple(part)
            part = []
        part.append(piece)
        at += piece.num_rows
    yield tuple(part)


def _borders(gaps: Sequence[int], origins: Origins | None) -> Sequence[int]:
    """Return the numbers of the rows that a call gave before which a row is missing."""
    if origins is None or not gaps:
        return gaps
    return np.searchsorted(origins, gaps).tolist()
