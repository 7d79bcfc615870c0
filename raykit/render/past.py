"""What a run was up to now: its timeline, its curves and what was printed. Times are seconds since the run was accepted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from raykit.views import LineView, RunView, SeriesView

MAX_LOGS = 8
MAX_LOG_LINES = 24
MAX_MARKS = 60
MAX_LANE_POINTS = 60

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A state, and when the run was in it."""

    state: str
    from_s: float
    to_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A moment of the timeline: a failure and how it went, or what a person asked for."""

    at_s: float
    words: str
    good: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A figure over time."""

    name: str
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """What one stage or rank printed last. A line that came several times in a row stands once, with its count."""

    source: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """A run's past. ``steps`` says which step was committed when; ``rates`` are rows a second of each lane."""

    to_s: float
    spans: tuple[Span, ...]
    marks: tuple[Mark, ...]
    steps: tuple[tuple[float, float], ...]
    charts: tuple[Chart, ...]
    rates: tuple[tuple[tuple[float, float], ...], ...]
    logs: tuple[Log, ...]


def past_of(view: RunView) -> Past:
    """Give the past of a view."""
    begun = view.accepted_at_unix_s or 0.0
    to_s = _rounded(view.elapsed_s or 0.0)
    return Past(
        to_s=to_s,
        spans=tuple(_spans(view, begun, to_s)),
        marks=tuple(_marks(view, begun))[-MAX_MARKS:],
        steps=_points(view.work, begun) if view.run_kind == "training" else (),
        charts=tuple(_charts(view, begun)),
        rates=tuple(_thinned(_points(stage.rate.past, begun)) for stage in view.stages) if view.run_kind != "training" else (),
        logs=tuple(_logs((*view.lines, *view.open_lines))),
    )


def _spans(view: RunView, begun: float, to_s: float) -> Iterator[Span]:
    starts = [max(0.0, _rounded(span.from_unix_s - begun)) for span in view.spans]
    for span, from_s, until_s in zip(view.spans, starts, [*starts[1:], to_s], strict=True):
        if until_s > from_s:
            yield Span(state=span.state, from_s=from_s, to_s=until_s)


def _marks(view: RunView, begun: float) -> list[Mark]:
    """Give the cards and what was asked for, in their order; cards of before a resume lie outside the timeline."""
    cards = [Mark(at_s=_rounded(card.at_unix_s - begun), words=card.title, good=card.good) for card in view.cards]
    asked = [Mark(at_s=_rounded(mark.at_unix_s - begun), words=mark.words, good=True) for mark in view.marks]
    return sorted((mark for mark in cards + asked if mark.at_s >= 0), key=lambda mark: mark.at_s)


def _charts(view: RunView, begun: float) -> Iterator[Chart]:
    rate = view.stages[-1].rate if view.stages else view.rate
    for name, series in (*view.curves, ("rows/s", rate.past)):
        points = _points(series, begun)
        if len(points) > 1:
            yield Chart(name=name, points=points)


def _points(series: SeriesView, begun: float) -> Points:
    """Give a series as it is drawn: what is no number, or infinite, leaves a gap."""
    return tuple((_rounded(at - begun), float(f"{value:.4g}")) for at, value in series.points if math.isfinite(value))


def _thinned(points: Points) -> Points:
    return points[:: -(-len(points) // MAX_LANE_POINTS)] if points else points


def _rounded(seconds: float) -> float:
    return round(seconds, 2)


def _logs(lines: Iterable[LineView]) -> Iterator[Log]:
    sources: dict[str, list[tuple[str, int]]] = {}
    for line in lines:
        said = sources.setdefault(line.source, [])
        if said and said[-1][0] == line.text:
            said[-1] = (line.text, said[-1][1] + 1)
        else:
            said.append((line.text, 1))
    for source, said in list(sources.items())[:MAX_LOGS]:
        shown = tuple(text if times == 1 else f"{text}  ({times} times)" for text, times in said[-MAX_LOG_LINES:])
        yield Log(source=source, lines=shown)
