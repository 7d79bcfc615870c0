"""The ingress of a service: takes requests over HTTP and gives them to replicas, as many at once as a batch holds."""

from __future__ import annotations

import asyncio
import hmac
import itertools
import logging
import pickle
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
from aiohttp import web

from raykit.engine.folder import RunFolder
from raykit.engine.reporter import Reporter
from raykit.engine.run import describe
from raykit.engine.service.handler import MOST_SAID, Answer, shortened
from raykit.errors import InputError
from raykit.events import RequestsSampled
from raykit.spec.json_text import PYTHON_JSON, from_json
from raykit.spec.service import MAX_BODY_BYTES, PORT_FILE

MAX_WAITING = 10_000
BACKLOG = 128  # connections that are not accepted yet, as many as aiohttp's own sites take
MAX_DEATHS = 3  # of replicas on one request, the last of them on it alone: it is to blame
WINDOW_S = 10.0
RATE_S = 4.0
SAMPLE_S = 0.5
TOGETHER_S = 0.01  # what changes within so long is told together
APART_S = 0.05  # so far apart it is told, but when replicas cannot take what came
SOURCE = "ingress"
UNREADABLE = "Check its Content-Length, Transfer-Encoding and Content-Encoding: the body has to be as they say."

logger = logging.getLogger(__name__)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(slots=True)
class _Request:
    """A row that waits for its answer. It is pickled when it comes, where one that does not pickle can be refused."""

    number: int
    row: bytes
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
        self._waiting: OrderedDict[int, _Request] = OrderedDict()  # by their numbers
        self._numbers = itertools.count()
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
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors_as_json])
        app.add_routes([web.post("/", self._take), web.get("/", self._health)])
        # A client that goes, after its own timeout for example, cancels its handler, and so its requests that wait.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True)
        await runner.setup()
        loop = asyncio.get_running_loop()

        def connected() -> web.RequestHandler:
            return _Connection(runner.server, loop=loop, access_log=None)  # type: ignore[arg-type]

        try:
            self._server = await loop.create_server(connected, "127.0.0.1", port, reuse_address=True, backlog=BACKLOG)
        except OSError:  # somebody else has the port that it had before
            self._server = await loop.create_server(connected, "127.0.0.1", 0, backlog=BACKLOG)
        port = self._server.sockets[0].getsockname()[1]
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
        if (request.content_length or 0) > MAX_BODY_BYTES:
            return _too_large()
        is_python = request.content_type == PYTHON_JSON
        asked = from_json(await request.read(), is_python=is_python)
        rows = _pickled(asked)
        if len(rows) > MAX_WAITING:
            return _error(413, f"The list has {len(rows):,} items; a service takes up to {MAX_WAITING:,}.", "Send shorter lists.")
        if len(self._waiting) + len(rows) > MAX_WAITING:
            return _error(503, f"{len(self._waiting):,} requests wait.", "Ask again later, or give the service more replicas.")
        answers = await self._answers(rows)
        is_list = isinstance(asked, list)
        if failed := next(((place, answer.error) for place, answer in enumerate(answers) if answer.error), None):
            place, error = failed
            return _error(500, f"Item {place} of the list: {error}" if is_list else error, "The replica's log has the traceback.")
        texts = [answer.python_json if is_python else answer.json for answer in answers]
        text = f"[{','.join(texts)}]" if is_list else texts[0]
        return web.Response(text=text, content_type=PYTHON_JSON if is_python else "application/json")

    async def _answers(self, rows: list[bytes]) -> list[Answer]:
        """Wait for the answers to all rows; when the client goes, those that no replica has yet are dropped."""
        now_s = self._last_s = time.monotonic()
        answer = asyncio.get_running_loop().create_future
        requests = [_Request(number=next(self._numbers), row=row, answer=answer(), come_s=now_s) for row in rows]
        self._arrivals.extend([now_s] * len(rows))
        self._num_open += len(rows)
        try:
            async with self._come:
                self._waiting.update((each.number, each) for each in requests)
                self._come.notify_all()
            if self._num_open > max(self._num_told, sum(seat.most for seat in self._seats.values())):
                self._is_pressed.set()
            self._has_changed.set()
            return await asyncio.gather(*(each.answer for each in requests))
        finally:
            self._num_open -= len(rows)
            for each in requests:
                self._waiting.pop(each.number, None)
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
                    said = describe(exc.cause if isinstance(exc, ray.exceptions.RayTaskError) and exc.cause else exc)
                    answers = [Answer(error=f"the replica could not answer: {said}")] * len(requests)
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
        """Take the next requests; one on which a replica died is called alone, so that it is known who is to blame."""
        taken: list[_Request] = []
        while self._waiting and len(taken) < most:
            each = next(iter(self._waiting.values()))
            if taken and each.deaths:
                break
            del self._waiting[each.number]
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
            for each in reversed(requests):
                if not each.answer.done():
                    self._waiting[each.number] = each
                    self._waiting.move_to_end(each.number, last=False)
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


class _Connection(web.RequestHandler):
    """A client's connection; what aiohttp itself answers, to a request that it cannot read, is JSON here, too."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)  # logs it
        reason = (message or "").partition("\n")[0].rstrip(":")
        answer = _error(status, f"The request cannot be read: {type(exc).__name__} ({reason}).", UNREADABLE)
        answer.force_close()
        return answer


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer whatever is wrong with a request, or goes wrong with it, in JSON."""
    try:
        return await handler(request)
    except InputError as exc:
        return _error(400, exc.problem, exc.remedy)
    except web.HTTPRequestEntityTooLarge:
        return _too_large()
    except web.HTTPException as exc:  # aiohttp's own answers, such as 404
        answer = _error(exc.status, f"{request.method} {request.path}: {exc.reason}.", 'Send requests as POST to "/".')
        answer.headers.update({name: value for name, value in exc.headers.items() if name == "Allow"})
        return answer
    except web.RequestPayloadError as exc:
        return _error(400, f"The request's body cannot be read: {describe(exc)}.", UNREADABLE)
    except ConnectionError:  # the client has gone
        raise
    except Exception as exc:
        logger.exception("a request")
        return _error(500, f"The ingress could not answer: {describe(exc)}", "This is a fault of raykit's: please report it.")


def _pickled(asked: Any) -> list[bytes]:
    """Return the rows of a request.

    Raises:
        InputError: it is no object and no list of objects, or is nested too deeply.
    """
    rows = asked if isinstance(asked, list) else [asked]
    if not rows:
        raise InputError("The request is an empty list.", 'Send an object, as {"text": "..."}, or a list of them.')
    for place, row in enumerate(rows):
        if not isinstance(row, dict):
            what = f"Item {place} of the list" if isinstance(asked, list) else "The request"
            raise InputError(
                f"{what} is {_KINDS[type(row)]}, not an object.", 'Send an object, as {"text": "..."}, or a list of them.'
            )
    try:
        return [pickle.dumps(row) for row in rows]
    except RecursionError:
        raise InputError("The request is nested too deeply.", "Nest lists and objects less than 200 deep.") from None


_KINDS = {list: "a list", str: "text", int: "a number", float: "a number", bool: "true or false", type(None): "null"}


def _error(status: int, error: str, hint: str) -> web.Response:
    return web.json_response({"error": shortened(error, 2 * MOST_SAID), "hint": hint}, status=status)


def _too_large() -> web.Response:
    most = f"{MAX_BODY_BYTES // 2**20} MiB"
    return _error(
        413,
        f"The request is larger than {most}, the most that a service takes.",
        "Send less at once, or send the path or URL of the data.",
    )


async def _is_set_within(event: asyncio.Event, timeout_s: float) -> bool:
    """Wait for an event up to ``timeout_s``, and say whether it has come."""
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()
    return event.is_set()
