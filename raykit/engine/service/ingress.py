"""The ingress of a service: takes requests over HTTP and gives them to replicas, as many at once as a batch holds."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from aiohttp import web

from raykit.engine.folder import RunFolder
from raykit.engine.reporter import Reporter
from raykit.engine.service.replica import Answer, Row
from raykit.events import RequestsSampled
from raykit.spec.service import PORT_FILE

MAX_WAITING = 10_000
MAX_BODY_BYTES = 64 * 2**20
MAX_DEATHS = 3  # of replicas on one request, the last of them on it alone: it is to blame
WINDOW_S = 10.0
RATE_S = 4.0
SAMPLE_S = 0.5
TOGETHER_S = 0.01  # what changes within so long is told together
APART_S = 0.05  # so far apart it is told, but when replicas cannot take what came
SOURCE = "ingress"

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Request:
    row: Row
    answer: asyncio.Future[Answer]
    come_s: float
    deaths: int = 0


@dataclass(slots=True)
class _Seat:
    """A replica that takes requests."""

    handle: Any
    most: int
    task: asyncio.Task[None] | None = None
    leaving: asyncio.Event = field(default_factory=asyncio.Event)


@ray.remote(num_cpus=0, max_restarts=-1, max_concurrency=1000)
class Ingress:
    """Serves from its constructor on, also after a restart, at the same address; replicas are told to it by the host."""

    def __init__(self, host: Any, folder: Path, name: str, token: str) -> None:
        self._folder, self._name, self._token = folder, name, token
        self._reporter = Reporter(host, SOURCE, RunFolder.of(folder)).start()
        self._waiting: deque[_Request] = deque()
        self._come = asyncio.Condition()
        self._seats: dict[str, _Seat] = {}
        self._num_again: dict[str, int] = {}
        self._arrivals: deque[float] = deque()
        self._answered: deque[tuple[float, float]] = deque()
        self._num_open = self._num_done = self._num_failed = 0
        self._last_s: float | None = None
        self._closing = False
        self._has_changed, self._is_pressed = asyncio.Event(), asyncio.Event()
        self._num_told = 0
        loop = asyncio.get_event_loop()
        self._serving = loop.create_task(self._serve())
        self._telling = loop.create_task(self._tell())

    async def url(self) -> str:
        """Wait until requests are taken, and say where."""
        return await self._serving

    async def seated(self) -> set[str]:
        """Name the replicas that it knows."""
        return set(self._seats)

    async def admit(self, name: str, handle: Any, most: int) -> None:
        """Give requests to a replica, so many at once."""
        if name not in self._seats:
            seat = self._seats[name] = _Seat(handle=handle, most=most)
            seat.task = asyncio.create_task(self._feed(name, seat))

    async def dismiss(self, name: str) -> int:
        """Give no more requests to a replica, and wait until it has answered those that it has, or has died of them.

        Says how many were given to others.
        """
        seat = self._seats.get(name)
        if seat is not None and seat.task is not None:
            seat.leaving.set()
            async with self._come:
                self._come.notify_all()
            await seat.task
        return self._num_again.pop(name, 0)

    async def close(self) -> None:
        """Take no more requests, and wait until those that were taken are answered."""
        self._closing = True
        async with self._come:
            await self._come.wait_for(lambda: not self._num_open)

    async def _serve(self) -> str:
        file = self._folder / PORT_FILE
        port = int(file.read_text()) if file.exists() else 0
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.add_routes([web.post("/", self._take), web.get("/", self._health)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
        except OSError:  # somebody else has the port that it had before
            await web.TCPSite(runner, "127.0.0.1", 0).start()
        port = runner.addresses[0][1]
        file.write_text(str(port))
        return f"http://127.0.0.1:{port}/"

    def _refuses(self, request: web.Request) -> web.Response | None:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            return _error(401, "This service asks for its token.", "Send it as Authorization: Bearer TOKEN.")
        if self._closing:
            return _error(503, "The service is ending.", "Ask again when it is up.")
        return None

    async def _health(self, request: web.Request) -> web.Response:
        return self._refuses(request) or web.json_response({"service": self._name, "replicas": len(self._seats)})

    async def _take(self, request: web.Request) -> web.Response:
        if refused := self._refuses(request):
            return refused
        try:
            asked = json.loads(await request.read())
        except ValueError as exc:
            return _error(400, f"The request is no JSON: {exc}.", "Send an object, or a list of objects.")
        rows = asked if isinstance(asked, list) else [asked]
        if not rows or not all(isinstance(row, dict) for row in rows):
            return _error(400, "The request is no object and no list of objects.", 'Send one, as {"text": "..."}.')
        if len(self._waiting) + len(rows) > MAX_WAITING:
            return _error(503, f"{len(self._waiting):,} requests wait.", "Ask again later, or give the service more replicas.")
        answers = await self._answers(rows)
        if failed := next((answer for answer in answers if answer.error), None):
            return _error(500, failed.error, "The replica's log has the traceback.")
        text = f"[{','.join(answer.json for answer in answers)}]" if isinstance(asked, list) else answers[0].json
        return web.Response(text=text, content_type="application/json")

    async def _answers(self, rows: list[Row]) -> list[Answer]:
        """Wait for the answers of all rows; of who does not wait any more those that were not begun are dropped."""
        now_s = self._last_s = time.monotonic()
        loop = asyncio.get_running_loop()
        requests = [_Request(row=row, answer=loop.create_future(), come_s=now_s) for row in rows]
        self._arrivals.extend([now_s] * len(rows))
        self._num_open += len(rows)
        async with self._come:
            self._waiting.extend(requests)
            self._come.notify_all()
        if self._num_open > max(self._num_told, sum(seat.most for seat in self._seats.values())):
            self._is_pressed.set()
        self._has_changed.set()
        try:
            return await asyncio.gather(*(each.answer for each in requests))
        finally:
            self._num_open -= len(rows)
            self._has_changed.set()
            async with self._come:
                self._come.notify_all()

    async def _feed(self, name: str, seat: _Seat) -> None:
        """Give a replica what waits, until it leaves or dies."""
        try:
            while requests := await self._next(seat):
                try:
                    answers = await seat.handle.answer.remote([each.row for each in requests])
                except ray.exceptions.RayActorError:
                    self._num_again[name] = len(requests)
                    await self._put_back(requests)
                    return
                except ray.exceptions.RayError as exc:
                    answers = [Answer(error=f"the replica did not answer: {exc}")] * len(requests)
                for each, answer in zip(requests, answers, strict=True):
                    self._answer(each, answer)
        finally:
            del self._seats[name]

    async def _next(self, seat: _Seat) -> list[_Request]:
        """Wait for requests; none for who leaves."""
        async with self._come:
            while True:
                await self._come.wait_for(lambda: self._waiting or seat.leaving.is_set())
                if seat.leaving.is_set():
                    return []
                if taken := self._taken(seat.most):
                    return taken

    def _taken(self, most: int) -> list[_Request]:
        """Take what nobody has given up; one on which a replica died is called alone, so that it is known who is to blame."""
        taken: list[_Request] = []
        while self._waiting and len(taken) < most:
            if taken and self._waiting[0].deaths:
                break
            each = self._waiting.popleft()
            if not each.answer.done():
                taken.append(each)
            if each.deaths:
                break
        return taken

    async def _put_back(self, requests: list[_Request]) -> None:
        """Have the requests of a dead replica answered by another; one on which several died is answered with an error."""
        for each in requests:
            each.deaths += 1
        guilty = [each for each in requests if each.deaths >= MAX_DEATHS and len(requests) == 1]
        for each in guilty:
            self._answer(each, Answer(error=f"{MAX_DEATHS} replicas died while they answered this request"))
        async with self._come:
            self._waiting.extendleft(each for each in reversed(requests) if each not in guilty)
            self._come.notify_all()

    def _answer(self, request: _Request, answer: Answer) -> None:
        now_s = time.monotonic()
        self._answered.append((now_s, now_s - request.come_s))
        self._num_done += not answer.error
        self._num_failed += bool(answer.error)
        if not request.answer.done():
            request.answer.set_result(answer)

    async def _tell(self) -> None:
        """Tell the host each ``SAMPLE_S`` how it stands, soon when that changes, also again when replicas cannot take what came."""
        told_s = 0.0
        while True:
            has_changed = await _is_set_within(self._has_changed, SAMPLE_S)
            if has_changed:
                await _is_set_within(self._is_pressed, told_s + APART_S - TOGETHER_S - time.monotonic())
                await asyncio.sleep(TOGETHER_S)
            self._has_changed.clear()
            self._is_pressed.clear()
            self._num_told, told_s = self._num_open, time.monotonic()
            self._reporter.sample("requests", self._sample(told_s), at_once=has_changed)

    def _sample(self, now_s: float) -> RequestsSampled:
        while self._arrivals and self._arrivals[0] < now_s - RATE_S:
            self._arrivals.popleft()
        while self._answered and self._answered[0][0] < now_s - WINDOW_S:
            self._answered.popleft()
        took = [took_s for _, took_s in self._answered]
        p50, p95, p99 = map(float, np.quantile(took, (0.5, 0.95, 0.99))) if took else (None, None, None)
        return RequestsSampled(
            rate_s=len(self._arrivals) / RATE_S,
            p50_s=p50,
            p95_s=p95,
            p99_s=p99,
            num_waiting=len(self._waiting),
            num_open=self._num_open,
            num_done=self._num_done,
            num_failed=self._num_failed,
            idle_s=None if self._last_s is None else now_s - self._last_s,
        )


def _error(status: int, error: str, hint: str) -> web.Response:
    return web.json_response({"error": error, "hint": hint}, status=status)


async def _is_set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event up to ``timeout_s``, and say whether it has come."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
