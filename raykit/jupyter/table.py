"""A small table with the three faces' two that need no page: text and static HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence


class Table:
    """Rows of words under headers; ``None`` is shown as unknown."""

    def __init__(self, headers: Sequence[str], rows: Sequence[Sequence[object]], *, empty: str, title: str = "") -> None:
        self.headers = list(headers)
        self.rows = [["unknown" if cell is None else str(cell) for cell in row] for row in rows]
        self.empty, self.title = empty, title

    def __repr__(self) -> str:
        if not self.rows:
            return self.empty
        widths = [max(len(line.partition("\n")[0]) for line in column) for column in zip(self.headers, *self.rows, strict=True)]
        lines = [self.headers, *self.rows]
        told = [self.title] if self.title else []
        return "\n".join(
            [*told, *("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)]
        )

    def _repr_html_(self) -> str:
        if not self.rows:
            return f"<p>{html.escape(self.empty)}</p>"
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self.headers)
        body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        title = f"<p>{html.escape(self.title)}</p>" if self.title else ""
        return f"{title}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
