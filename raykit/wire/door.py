"""A client of a cluster's door: plain HTTP with a token, to an address on loopback (a tunnel's end, where it is far).

GET  /ping                          who is there
GET  /status?wait_s=                the cluster's view; waits for a new look at its nodes
GET  /runs                          views of all runs, newest first
GET  /runs/why?run=                 what a run lacks, and who holds it
POST /buffers                       which of these large buffers (bytes by name) the cluster has not yet
PUT  /buffers/NAME?at=&of=          a piece of one, from a byte on, of so many bytes
POST /runs                          start: multipart of `spec` (JSON), `payload` (bytes) and `buffers` (names, JSON)
POST /runs/resume                   start a run again from its folder
POST /commands                      a Command
GET  /events?run=&after=&wait_s=    records by number, of all runs without one; waits for the first
GET  /outputs/RUN/NAME              the bytes of an output
GET  /logs/RUN?source=&tail=        what workers printed, whole
GET  /files/RUN?path=               a file or a folder of the run's, as a tar
POST /services/RUN                  a request to a service, and its answer
"""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from raykit.codec import encode, validate
from raykit.commands import Command
from raykit.errors import ClusterLostError, from_wire
from raykit.events import Record, record_from_json
from raykit.spec import RunSpec
from raykit.views import ClusterView, RunView
from raykit.views.why import WhyView

REQUEST_TIMEOUT_S = 30.0
FETCH_TIMEOUT_S = 600.0


def address_of(run: str) -> str:
    """Return the name by which a cluster finds this one run by its full name: ``digits`` alone is the newest so called."""
    return run if "#" in run else f"{run}#1"


class DoorClosedError(ClusterLostError):
    """Nobody answers at the door's address: the hub restarts (a second or two), or the cluster is gone."""


class NobodyThereError(DoorClosedError):
    """There was nobody to connect to: what was asked was not heard, and can be asked again."""


class Door:
    """The near end of a cluster's door. Not a driver: it needs neither ray nor an open port."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token
        self._http: httpx.Client | None = None

    def ping(self, *, timeout_s: float = REQUEST_TIMEOUT_S) -> dict[str, Any]:
        """Say who serves the door: process id, versions, start, and the life of its log."""
        answer: dict[str, Any] = self._json("GET", "/ping", timeout_s=timeout_s)
        return answer

    def status(self, *, wait_s: float = 0.0) -> ClusterView:
        """Give the cluster's nodes and slots; wait up to ``wait_s`` for a new look at what the nodes use."""
        answer = self._json("GET", "/status", params={"wait_s": wait_s}, timeout_s=wait_s + REQUEST_TIMEOUT_S)
        view: ClusterView = validate(ClusterView, answer)
        return view

    def runs(self) -> list[RunView]:
        """Give the view of every run, newest first."""
        return [validate(RunView, view) for view in self._json("GET", "/runs")["runs"]]

    def why(self, run: str) -> WhyView:
        """Give what a run lacks and who holds it.

        Raises:
            RunError: it is over.
        """
        view: WhyView = validate(WhyView, self._json("GET", "/runs/why", params={"run": run}))
        return view

    def missing(self, sizes: Mapping[str, int]) -> list[str]:
        """Return the names of the large buffers that the cluster does not have yet; ``sizes`` are in bytes.

        Raises:
            CapacityError: it has no memory for all of them, or no disk for those that are missing.
        """
        answer = self._json("POST", "/buffers", json={"sizes": dict(sizes)})
        return [str(name) for name in answer["missing"]]

    def send(self, name: str, at: int, piece: bytes, *, of: int) -> None:
        """Send a piece of a large buffer, from byte ``at`` on, ``of`` so many; may be done twice."""
        self._json("PUT", f"/buffers/{name}", params={"at": at, "of": of}, content=piece, timeout_s=FETCH_TIMEOUT_S)

    def start(self, spec: RunSpec, payload: bytes, *, key: str, buffers: Sequence[str] = ()) -> str:
        """Start a run and give its name, which gains a number when the name was used before.

        Args:
            spec: what is asked of it.
            payload: its code and its values.
            key: what tells this start from any other: the same key again starts nothing, and gives the same name.
            buffers: the names of the payload's large buffers, which the cluster has.

        Raises:
            CapacityError: the whole cluster could not hold it.
            RunNameTakenError: a run of that name goes on.
        """
        files = {"spec": json.dumps(encode(spec)).encode(), "payload": payload, "buffers": json.dumps(buffers).encode()}
        return str(self._json("POST", "/runs", files=files, headers={"Idempotency-Key": key}, timeout_s=120)["run"])

    def resume(self, run: str, *, folder: str = "") -> str:
        """Start a run that is over again, from its last checkpoint or its first row, and give its name.

        Args:
            run: its name.
            folder: the run's folder where it is another cluster's.
        """
        return str(self._json("POST", "/runs/resume", json={"run": run, "folder": folder}, timeout_s=120)["run"])

    def command(self, command: Command) -> None:
        """Ask something of a run that goes on."""
        self._json("POST", "/commands", json=encode(command))

    def events(self, run: str | None, *, after: int, wait_s: float = 20.0) -> list[Record]:
        """Give a run's records above ``after``, or those of all runs; wait up to ``wait_s`` for the first.

        An interrupt ends the wait.
        """
        query = {"after": after, "wait_s": wait_s} | ({"run": run} if run is not None else {})
        answer = self._json("GET", "/events", params=query, timeout_s=wait_s + REQUEST_TIMEOUT_S)
        return [record_from_json(record) for record in answer["records"]]

    def output(self, run: str, name: str) -> bytes:
        """Give the pickled value of an output."""
        return self._request("GET", f"/outputs/{_quoted(run)}/{name}", timeout_s=300).content

    def logs(self, run: str, *, source: str = "", tail: int = 200) -> str:
        """Give the last lines that the run's workers printed, or those of one ``source``."""
        query = {"source": source, "tail": tail}
        return self._request("GET", f"/logs/{_quoted(run)}", params=query).text

    def fetch(self, run: str, path: str, file: Path) -> None:
        """Write what lies at a path of the run's folder, a file or a folder, into a file, as a tar.

        Raises:
            RunNotFoundError: nothing lies there.
        """
        asked = self._client().stream("GET", f"/files/{_quoted(run)}", params={"path": path}, timeout=FETCH_TIMEOUT_S)
        with _translated(self.url), asked as answer:
            if answer.status_code != httpx.codes.OK:
                answer.read()
                raise _refusal(self.url, answer)
            with file.open("wb") as out:
                for part in answer.iter_bytes():
                    out.write(part)

    def service_url(self, run: str) -> str:
        """Give where requests to a service are taken with the cluster's token, wherever it is."""
        return f"{self.url}/services/{_quoted(run)}"

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def _json(self, method: str, path: str, **request: Any) -> Any:
        return self._request(method, path, **request).json()

    def _request(self, method: str, path: str, *, timeout_s: float = REQUEST_TIMEOUT_S, **request: Any) -> httpx.Response:
        with _translated(self.url):
            answer = self._client().request(method, path, timeout=httpx.Timeout(timeout_s, connect=5.0), **request)
        if answer.status_code != httpx.codes.OK:
            raise _refusal(self.url, answer)
        return answer

    def _client(self) -> httpx.Client:
        if self._http is None:
            headers = {"Authorization": f"Bearer {self._token}"}
            # The environment's proxies are not asked: the address is always on this machine.
            self._http = httpx.Client(base_url=self.url, headers=headers, trust_env=False)
            weakref.finalize(self, self._http.close)
        return self._http


def _refusal(url: str, answer: httpx.Response) -> Exception:
    if answer.headers.get("content-type", "").startswith("application/json"):
        return from_wire(answer.json())
    return ClusterLostError(f"The door at {url} answered {answer.status_code}: {answer.text[:200]}", "See %ray doctor.")


@contextmanager
def _translated(url: str) -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as exc:
        closed = NobodyThereError if isinstance(exc, httpx.ConnectError) else DoorClosedError
        raise closed(f"Nobody answers at the door {url} ({type(exc).__name__}).", "See %ray doctor.") from exc


def _quoted(run: str) -> str:
    return run.replace("#", "%23")
