"""A run as static HTML without script or style: what GitHub, nbviewer and a reopened notebook show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from raykit.render.blocks import bar, curve
from raykit.render.face import Card, Face, face_of
from raykit.views import RunView


def to_html(view: RunView) -> str:
    """Draw a view with tables and text alone; everything that a user wrote is escaped."""
    face = face_of(view)
    title = ", ".join(filter(None, (face.kind, face.state, face.elapsed)))
    parts = [f"<p><strong>{escape(face.name)}</strong>: {escape(title)}</p>"]
    parts += [f"<p><em>{escape(label)}</em></p>" for label in face.labels]
    if face.progress_words:
        parts.append(f"<p><code>{bar(face.progress)}</code> {escape(face.progress_words)}</p>")
    if face.lanes:
        parts.append(_table(face.headers, [lane.cells for lane in face.lanes]))
    if face.curve:
        first, last = face.curve[0][1], face.curve[-1][1]
        parts.append(f"<p>{escape(face.curve_name)} <code>{curve(face.curve)}</code> {first:.4g} → {last:.4g}</p>")
    if face.metrics:
        parts.append(f"<p>{escape(', '.join(f'{name} {value}' for name, value in face.metrics))}</p>")
    parts += [_card(card) for card in face.cards]
    parts += [f"<p>{escape(said)}</p>" for said in (face.held, f"came back: {face.outputs}" if face.outputs else "") if said]
    if face.error:
        parts.append(f"<p><strong>error</strong> in {escape(face.error)}</p>")
    if face.lines:
        parts.append(_lines(face))
    return "\n".join(parts)


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
