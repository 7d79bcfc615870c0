"""The user's function or class behind a service: whatever it returns or raises becomes an answer."""

from __future__ import annotations

import asyncio
import inspect
import pickle
import sysconfig
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raykit.engine.pipeline.blocks import batch_of
from raykit.engine.run import describe, is_end_of_process
from raykit.engine.service.split import split
from raykit.spec.json_text import json_texts
from raykit.wire.payload import Payload

Row = dict[str, Any]
Outcome = tuple[Any, BaseException | None]

LIBRARIES = (str(Path(__file__).parents[2]), *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
MOST_SAID = 2_000  # characters of an error in an answer
MOST_LOGGED = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request is answered: JSON, standard and as Python writes it, or the error of the user's code."""

    json: str = ""
    python_json: str = ""
    error: str = ""


class Handler:
    """Calls the user's code with requests. Nothing that it raises, ``SystemExit`` neither, costs a replica or another request."""

    def __init__(self, call: Any, batch_size: int | None, payload: Payload) -> None:
        self._call, self._batch_size, self._payload = call, batch_size, payload
        method = call if inspect.isroutine(call) else type(call).__call__
        is_async = inspect.iscoroutinefunction(method) or inspect.isasyncgenfunction(method)
        self._loop = asyncio.new_event_loop() if is_async else None

    def answers(self, requests: Sequence[bytes]) -> list[Answer]:
        """Return an answer to each request, a pickled row.

        Raises:
            SystemExit: Ray ends this process.
        """
        rows = _rows(requests)
        if self._batch_size is not None:
            return self._batches(rows, requests)
        if self._loop is not None:
            outcomes = self._outcomes(self._loop, rows)
            return [self._failed(error) if error is not None else self._written(made) for made, error in outcomes]
        return [self._one(row) for row in rows]

    def close(self) -> None:
        """Close the event loop of an async function."""
        if self._loop is not None:
            self._loop.close()

    def _one(self, row: Row) -> Answer:
        try:
            made = self._call(row)
            return self._written(list(made) if inspect.isgenerator(made) else made)
        except BaseException as exc:
            return self._failed(exc)

    def _written(self, made: Any) -> Answer:
        try:
            standard, python = json_texts("the answer", made)
            return Answer(json=standard, python_json=python)
        except BaseException as exc:
            return self._failed(exc)

    def _batches(self, rows: list[Row], requests: Sequence[bytes]) -> list[Answer]:
        """Call the batch form with requests of the same names together: beside another's a name that is missing would be None."""
        places: dict[tuple[str, ...], list[int]] = {}
        for place, row in enumerate(rows):
            places.setdefault(tuple(row), []).append(place)
        answers: dict[int, Answer] = {}
        for names, together in places.items():
            for call in [together] if names else [[place] for place in together]:  # without columns a batch has no length
                made = self._batch([rows[place] for place in call], [requests[place] for place in call])
                answers |= zip(call, made, strict=True)
        return [answers[place] for place in range(len(rows))]

    def _batch(self, rows: list[Row], requests: Sequence[bytes]) -> list[Answer]:
        """Call the batch form; a batch that fails is halved, so that only those requests fail that fail alone.

        Each call gets rows of its own: the one that failed may have changed its rows.
        """
        try:
            batch = batch_of([(rows, 0, len(rows))])
            made = split(self._call(batch) if self._loop is None else self._awaited(self._loop, batch), len(rows))
        except BaseException as exc:
            if len(rows) == 1 or is_end_of_process(exc):
                return [self._failed(exc)]
            half = len(rows) // 2
            return [answer for part in (requests[:half], requests[half:]) for answer in self._batch(_rows(part), part)]
        return [self._written(each) for each in made]

    def _awaited(self, loop: asyncio.AbstractEventLoop, batch: Any) -> Any:
        ((made, error),) = self._outcomes(loop, [batch])
        if error is not None:
            raise error
        return made

    def _outcomes(self, loop: asyncio.AbstractEventLoop, items: Sequence[Any]) -> list[Outcome]:
        """Call an async function with all items at once."""
        tasks = [loop.create_task(_outcome(self._call, item)) for item in items]
        return [self._outcome_of(loop, task) for task in tasks]

    def _outcome_of(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task[Outcome]) -> Outcome:
        while True:
            try:
                return loop.run_until_complete(task)
            except (SystemExit, KeyboardInterrupt) as exc:  # of a task that the user's code started; who awaits it gets it too
                self._log(exc)
            except (asyncio.CancelledError, RuntimeError) as exc:  # cancelled before it began, or the loop was stopped
                return None, exc

    def _failed(self, error: BaseException) -> Answer:
        """Return what a request is answered on which the user's code raised, also to leave the process as by ``sys.exit``."""
        not_logged = self._log(error)
        said = shortened(describe(error), MOST_SAID)
        if not isinstance(error, Exception):
            said = f"{said} ({self._line_of(error)})"
        return Answer(error=f"{said} {not_logged}".strip())

    def _log(self, error: BaseException) -> str:
        """Print a traceback, which takes it to the replica's log, and return why it could not, if so.

        Raises:
            BaseException: the error, with which Ray ends this process.
        """
        if is_end_of_process(error):
            raise error
        # A lone surrogate is text in Python, and in no file.
        frames = self._payload.traceback_of(error).encode(errors="backslashreplace").decode()
        try:
            print(shortened(frames, MOST_LOGGED))  # noqa: T201
        except (OSError, ValueError) as exc:  # the disk is full, or the user's code closed stdout
            return f"(its traceback could not be logged: {describe(exc)})"
        return ""

    def _line_of(self, error: BaseException) -> str:
        """Return the user's line that raised, or that called the library that raised, such as argparse."""
        frames = traceback.extract_tb(error.__traceback__)
        texts = self._payload.texts
        own = (each for each in reversed(frames) if each.filename in texts or not each.filename.startswith(LIBRARIES))
        frame = next(own, frames[-1])
        source = texts.get(frame.filename)
        title, line = (source.title, source.line(frame.lineno)) if source else (frame.filename, frame.line)
        return f"{title}, line {frame.lineno}: {line}"


def shortened(text: str, most: int) -> str:
    """Return a text of at most ``most`` characters, and how many it had."""
    return text if len(text) <= most else f"{text[:most]}... ({len(text):,} characters)"


def _rows(requests: Sequence[bytes]) -> list[Row]:
    return [pickle.loads(each) for each in requests]  # noqa: S301  (the ingress pickled them)


async def _outcome(call: Any, row: Any) -> Outcome:
    try:
        made = call(row)
        return ([each async for each in made] if inspect.isasyncgen(made) else await made), None
    except BaseException as exc:  # SystemExit would end the event loop, and with it the other requests
        return None, exc
