"""What a terminal would show of a stream of text: whole lines as they come, and the line that is still being written.

Bars return to the start of their line and write over it, or go up to an earlier line. A line is given away as soon as the
next one begins; once a text has gone up, lines are given away at the next look only, since it may go up again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

CONTROL = re.compile(r"(\n|\r|\x08|\x1b\[\d*[ABK])")
MAX_ROWS = 50  # which a text can go up to
ESCAPE = "\x1b"


def shown(line: str) -> str:
    """Return what a terminal shows of a line that may be written over itself."""
    if "\r" not in line and "\x08" not in line:
        return line
    screen = Screen()
    screen.write(line)
    return "".join(screen.open_lines())


class Screen:
    """One stream's. Not for several threads at once."""

    def __init__(self) -> None:
        self._rows: list[_Row] = [_Row()]
        self._at = 0
        self._goes_up = False

    def write(self, text: str) -> list[str]:
        """Return the lines that this text completes."""
        if "\r" not in text and "\x08" not in text and ESCAPE not in text and len(self._rows) == 1:
            return self._plain(text)
        done: list[str] = []
        for part in CONTROL.split(text):
            if part == "\n":
                done += self._next_row()
            elif part == "\r":
                self._rows[self._at].column = 0
            elif part == "\x08":
                self._rows[self._at].column = max(0, self._rows[self._at].column - 1)
            elif CONTROL.fullmatch(part):
                self._move(part[-1], int(part[2:-1] or 0))
            elif part:
                self._rows[self._at].write(part)
        return done

    def settle(self) -> list[str]:
        """Return the lines above the one that is being written, which were kept."""
        if not self._goes_up:
            return []
        done, self._rows, self._at = self._rows[: self._at], self._rows[self._at :], 0
        return _texts(done)

    def open_lines(self) -> tuple[str, ...]:
        """Return what stands on the lines that are not complete."""
        return tuple(text for row in self._rows if (text := row.text))

    def close(self) -> list[str]:
        """Return what is left, as lines."""
        texts = _texts(self._rows)
        while texts and not texts[-1]:
            texts.pop()
        self._rows, self._at = [_Row()], 0
        return texts

    def _plain(self, text: str) -> list[str]:
        first, *rest = text.split("\n")
        row = self._rows[0]
        if first:
            row.write(first)
        if not rest:
            return []
        done = [row.text, *rest[:-1]]
        self._rows[0] = _Row()
        if rest[-1]:
            self._rows[0].write(rest[-1])
        return done

    def _next_row(self) -> list[str]:
        self._at += 1
        if self._at == len(self._rows):
            self._rows.append(_Row())
        self._rows[self._at].column = 0
        num_done = self._at if not self._goes_up else max(0, self._at - MAX_ROWS)
        done, self._rows = self._rows[:num_done], self._rows[num_done:]
        self._at -= num_done
        return _texts(done)

    def _move(self, how: str, count: int) -> None:
        row = self._rows[self._at]
        if how == "K":
            row.erase(whole=count == 2)  # noqa: PLR2004  (the terminal's word for it)
            return
        self._goes_up = True
        target = self._at + max(1, count) * (1 if how == "B" else -1)
        gone = [_Row(is_given=True) for _ in range(min(MAX_ROWS, -target))]  # what is written there is a line once more
        self._rows = [*gone, *self._rows]
        self._at = min(max(0, target), len(self._rows) - 1)
        self._rows[self._at].column = row.column


def _texts(rows: Iterable[_Row]) -> list[str]:
    return [row.text for row in rows if not row.is_given]


class _Row:
    """A line, and the column at which the next text is written over what stands there; or one that was given away."""

    def __init__(self, *, is_given: bool = False) -> None:
        self.is_given = is_given
        self._parts: list[str] = []
        self._length = 0
        self._is_over = False
        self.column = 0

    @property
    def text(self) -> str:
        """What stands there; spaces at the end that were written over something are nothing."""
        return self._whole().rstrip(" ") if self._is_over else self._whole()

    def _whole(self) -> str:
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def write(self, text: str) -> None:
        self.is_given = False
        if self.column == self._length:
            self._parts.append(text)
        else:
            before, self._is_over = self._whole(), True
            if not self.column and (ESCAPE in before or ESCAPE in text):  # colours have no width: nothing would stand below
                self._parts = [text]
            else:
                self._parts = [before[: self.column].ljust(self.column) + text + before[self.column + len(text) :]]
            self._length = len(self._parts[0])
            self.column += len(text)
            return
        self._length += len(text)
        self.column = self._length

    def erase(self, *, whole: bool) -> None:
        self._parts = ["" if whole else self._whole()[: self.column]]
        self._length = len(self._parts[0])
