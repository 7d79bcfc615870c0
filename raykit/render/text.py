"""A run as plain text, for terminals and for whoever reads a notebook without a page."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap

from raykit.render.blocks import SPENT, bar, curve, spent_bar, timeline
from raykit.render.face import Face, face_of
from raykit.views import RunView

WIDTH = 100
NO_BREAK = "\N{NO-BREAK SPACE}"
BAR_WIDTH = 48
SHORT = 60  # a label up to this stands in the first line


def to_text(view: RunView) -> str:
    """Draw a view in lines of at most ``WIDTH`` characters."""
    face = face_of(view)
    lines = _head(face)
    if face.progress_words:
        lines.append(f"  {bar(face.progress)} {face.progress_words}")
    lines += _lanes(face) if face.lanes else []
    for chart in face.past.charts:
        lines.append(f"  {chart.name} {curve(chart.points)} {chart.points[0][1]:.4g} → {chart.points[-1][1]:.4g}")
    if face.metrics:
        lines.append("  " + ", ".join(f"{name} {value}" for name, value in face.metrics))
    if len(face.past.spans) > 1:
        lines.append(f"  timeline {timeline(face.past)} {face.past.to_s:.1f} s")
        lines += [f"    at {mark.at_s:.1f} s: {mark.words}" for mark in face.past.marks]
    for card in face.cards:
        lines.append(f"  ┌ {card.title}")
        for name, fact in card.facts:
            first, *rest = fact.splitlines() or [""]
            lines += [f"  │ {name}: {first}", *(f"  │   {line}" for line in rest)]
    if face.held:
        lines.append(f"  {face.held}")
    if face.outputs:
        lines.append(f"  came back: {face.outputs}")
    if face.error:
        lines.append(f"  error in {face.error}")
    return "\n".join(line[:WIDTH].rstrip() for line in lines)


def _head(face: Face) -> list[str]:
    """Give the first line, and a sentence that is too long for it in lines of its own."""
    labels = [*face.labels, *([face.advice] if face.advice else [])]
    short = [label for label in labels if len(label) <= SHORT]
    first = ", ".join((f"{face.name}: {face.kind}", face.state, *(f"{name} {value}" for name, value in face.figures), *short))
    long = [label for label in labels if label not in short]
    return [
        *wrap(first, WIDTH, subsequent_indent="  "),
        *(line for label in long for line in wrap(label, WIDTH, initial_indent="  ", subsequent_indent="    ")),
    ]


def _lanes(face: Face) -> list[str]:
    """Give a table, or each lane in lines of its own where a table would be cut."""
    table = _columns([face.headers, *(lane.cells for lane in face.lanes)])
    if all(len(line.rstrip()) <= WIDTH for line in table):
        return table + _bars(face)
    lines = []
    for lane in face.lanes:
        lines.append(f"  {lane.cells[0]}")
        said = [f"{header} {cell}".replace(" ", NO_BREAK) for header, cell in zip(face.headers[1:], lane.cells[1:], strict=True)]
        wrapped = wrap(", ".join(said), WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
        lines += [line.replace(NO_BREAK, " ") for line in wrapped]
    return lines + _bars(face)


def _bars(face: Face) -> list[str]:
    """Give what the stages' time went to, under their table."""
    counted = [lane for lane in face.lanes if lane.spent]
    if not counted:
        return []
    width = max(len(lane.cells[0]) for lane in counted)
    bars = [f"  {lane.cells[0].ljust(width)}  {spent_bar(lane.spent, BAR_WIDTH)}" for lane in counted]
    return [f"  {''.ljust(width)}  {SPENT[0]} busy  {SPENT[1]} starved  {SPENT[2]} blocked", *bars]


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
