"""The log of a cluster: every event, numbered, in one SQLite file on the head's local disk.

Hosts append and the door reads, each from its own process: SQLite's write-ahead log orders them. There is no other
channel between a host and the door, so a door that is killed loses nothing and a host never waits for one.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from raykit.codec import decode, encode
from raykit.errors import RaykitError
from raykit.events import Event, Record

_SCHEMA = """
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, at_unix_s REAL NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_of_run ON events (run, number);
CREATE INDEX IF NOT EXISTS events_of_kind ON events (kind, number);
CREATE TABLE IF NOT EXISTS life (place INTEGER PRIMARY KEY, id TEXT NOT NULL);
INSERT OR IGNORE INTO life VALUES (1, lower(hex(randomblob(8))));
CREATE TABLE IF NOT EXISTS mirrored (life TEXT PRIMARY KEY, begun_after INTEGER NOT NULL, kept_up_to INTEGER NOT NULL);
"""


TIMEOUT_S = 30.0


class LogError(RaykitError):
    """The log cannot be read or written; the facts are its path and SQLite's words."""

    def __str__(self) -> str:
        path, why = self.args
        return f"The log {path} cannot be used: {why}.\nCheck the disk's free space and the folder's owner."


class Log:
    """One process's hold on a log. Threads may share it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def append(self, run: str, events: Sequence[Event], *, instead_of: Sequence[int] = ()) -> int:
        """Write events through, in one transaction, and give the number of the last.

        Args:
            run: whose they are.
            events: in their order; their numbers follow one another.
            instead_of: numbers of earlier ones that go.
        """
        now = time.time()
        rows = [(now, run, type(event).__name__, _packed(event)) for event in events]
        with self._session() as connection, connection:
            connection.executemany("DELETE FROM events WHERE number = ?", [(number,) for number in instead_of])
            connection.executemany("INSERT INTO events (at_unix_s, run, kind, body) VALUES (?, ?, ?, ?)", rows)
            return int(connection.execute("SELECT last_insert_rowid()").fetchone()[0])

    def read(self, *, after: int = 0, run: str | None = None, kinds: Sequence[type] = (), limit: int = 2000) -> list[Record]:
        """Give up to ``limit`` records with a number above ``after``, in their order."""
        conditions, values = ["number > ?"], [after]
        if run is not None:
            conditions.append("run = ?")
            values.append(run)  # type: ignore[arg-type]
        if kinds:
            conditions.append(f"kind IN ({', '.join('?' * len(kinds))})")
            values.extend(kind.__name__ for kind in kinds)  # type: ignore[misc]
        query = f"SELECT number, at_unix_s, run, body FROM events WHERE {' AND '.join(conditions)} ORDER BY number LIMIT ?"  # noqa: S608
        with self._session() as connection:
            rows = connection.execute(query, [*values, limit]).fetchall()
        return [
            Record(number=number, at_unix_s=at_unix_s, run=name, event=decode(Event, json.loads(body)))
            for number, at_unix_s, name, body in rows
        ]

    def read_all(self, *, run: str | None = None, kinds: Sequence[type] = ()) -> Iterator[Record]:
        """Give all records of a run, or of all runs."""
        for page in self.pages(run=run, kinds=kinds):
            yield from page

    def pages(self, *, run: str | None = None, kinds: Sequence[type] = (), after: int = 0) -> Iterator[list[Record]]:
        """Give all records of a run, or of all runs, with a number above ``after``, as many at a time as one read gives."""
        while page := self.read(after=after, run=run, kinds=kinds):
            yield page
            after = page[-1].number

    @property
    def life(self) -> str:
        """What tells this log from every other, also from a later one at the same place."""
        with self._session() as connection:
            return str(connection.execute("SELECT id FROM life").fetchone()[0])

    def kept_up_to(self, life: str) -> int:
        """Give the number up to which another log's records are in this one."""
        with self._session() as connection:
            row = connection.execute("SELECT kept_up_to FROM mirrored WHERE life = ?", (life,)).fetchone()
        return int(row[0]) if row else 0

    def keep(self, life: str, records: Sequence[Record]) -> None:
        """Write another log's records down, after what was here when its first ones came; each once, whoever brings it."""
        with self._session() as connection, connection:
            connection.execute("INSERT OR IGNORE INTO mirrored SELECT ?, coalesce(max(number), 0), 0 FROM events", (life,))
            (begun_after,) = connection.execute("SELECT begun_after FROM mirrored WHERE life = ?", (life,)).fetchone()
            rows = [
                (begun_after + each.number, each.at_unix_s, each.run, type(each.event).__name__, _packed(each.event))
                for each in records
            ]
            connection.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?)", rows)
            newest = max((each.number for each in records), default=0)
            connection.execute("UPDATE mirrored SET kept_up_to = max(kept_up_to, ?) WHERE life = ?", (newest, life))

    def version(self) -> int:
        """Give a number that changes when another process has appended; a look costs microseconds."""
        with self._session() as connection:
            return int(connection.execute("PRAGMA data_version").fetchone()[0])

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    @contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = _opened(self.path)
                yield self._connection
            except sqlite3.Error as exc:
                raise LogError(str(self.path), str(exc)) from exc


def _packed(event: Event) -> str:
    return json.dumps(encode(event), separators=(",", ":"))


def _opened(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=TIMEOUT_S, check_same_thread=False)
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            # SQLite does not wait here while another process makes the same file, whatever the timeout says.
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.executescript(_SCHEMA)
    return connection
