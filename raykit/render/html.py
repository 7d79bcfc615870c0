"""A run as static HTML without script or style: what GitHub, nbviewer and a reopened notebook show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from raykit.render.blocks import SPENT, bar, curve, spent_bar, timeline
from raykit.render.face import Card, Face, face_of
from raykit.render.past import Chart, Past
from raykit.views import RunView

LANE_WIDTH = 16


def to_html(view: RunView) -> str:
    """Draw a view with tables and text alone; everything that a user wrote is escaped."""
    face = face_of(view)
    title = ", ".join((face.kind, face.state, *(f"{name} {value}" for name, value in face.figures)))
    parts = [f"<p><strong>{escape(face.name)}</strong>: {escape(title)}</p>"]
    parts += [f"<p><em>{escape(said)}</em></p>" for said in (*face.labels, face.advice) if said]
    if face.progress_words:
        parts.append(f"<p><code>{bar(face.progress)}</code> {escape(face.progress_words)}</p>")
    if face.lanes:
        parts.append(_lanes(face))
    parts += [_chart(chart) for chart in face.past.charts]
    if face.metrics:
        parts.append(f"<p>{escape(', '.join(f'{name} {value}' for name, value in face.metrics))}</p>")
    if len(face.past.spans) > 1:
        parts.append(_timeline(face.past))
    parts += [_card(card) for card in face.cards]
    parts += [f"<p>{escape(said)}</p>" for said in (face.held, f"came back: {face.outputs}" if face.outputs else "") if said]
    if face.error:
        parts.append(f"<p><strong>error</strong> in {escape(face.error)}</p>")
    if face.lines:
        parts.append(_lines(face))
    return "\n".join(parts)


def _lanes(face: Face) -> str:
    """Give the lanes as a table, with the bar and the curve of each where it has them."""
    headers, rows = list(face.headers), [list(lane.cells) for lane in face.lanes]
    if any(lane.spent for lane in face.lanes):
        headers.append(f"{SPENT[0]} busy {SPENT[1]} starved {SPENT[2]} blocked")
        rows = [[*row, spent_bar(lane.spent)] for row, lane in zip(rows, face.lanes, strict=True)]
    if any(face.past.rates):
        headers.append("rate so far")
        rows = [[*row, curve(rates, LANE_WIDTH)] for row, rates in zip(rows, face.past.rates, strict=True)]
    return _table(headers, rows)


def _chart(chart: Chart) -> str:
    first, last = chart.points[0][1], chart.points[-1][1]
    return f"<p>{escape(chart.name)} <code>{curve(chart.points)}</code> {first:.4g} → {last:.4g}</p>"


def _timeline(past: Past) -> str:
    marks = "".join(f"<li>at {mark.at_s:.1f} s: {escape(mark.words)}</li>" for mark in past.marks)
    return f"<p>timeline <code>{timeline(past)}</code> {past.to_s:.1f} s</p>" + (f"<ul>{marks}</ul>" if marks else "")


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in headers)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _card(card: Card) -> str:
    facts = "".join(
        f"<tr><th>{escape(name)}</th><td>{escape(fact).replace(chr(10), '<br>')}</td></tr>" for name, fact in card.facts
    )
    head = f"<tr><th>{'✔' if card.good else '✘'}</th><th>{escape(card.title)}</th></tr>"
    return f"<table><thead>{head}</thead><tbody>{facts}</tbody></table>"


def _lines(face: Face) -> str:
    more = f" ({face.num_lines_hidden} more: %ray logs {face.name})" if face.num_lines_hidden else ""
    text = "\n".join(face.lines)
    return f"<details><summary>printed{escape(more)}</summary><pre>{escape(text)}</pre></details>"
