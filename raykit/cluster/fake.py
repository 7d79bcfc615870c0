"""A cluster that is a record on disk and a door that runs nothing: for tests, and for trying a spec without a bill."""

from __future__ import annotations

import hmac
import json
import secrets
import time
from dataclasses import asdict, dataclass, fields, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

from raykit.cluster import record as records
from raykit.cluster.base import UP_TIMEOUT_S, Plan, Provider, Started, Status, Told, price_words, refuse_difference, versions_here
from raykit.cluster.home import private_folder, write_secret
from raykit.cluster.record import ClusterRecord, FakeRecord
from raykit.errors import ClusterError, to_wire
from raykit.spec import ClusterSpec
from raykit.spec.cluster import shown
from raykit.views import ClusterView, NodeView

POLL_S = 0.05


class Fake(Provider):
    """Nowhere. It takes every option, and all it makes is a file."""

    def plan(self, spec: ClusterSpec) -> Plan:
        options = [each for each in fields(spec) if getattr(spec, each.name) != each.default and each.name not in ("name", "place")]
        asked = tuple((each.metadata["option"][0][0], shown(getattr(spec, each.name))) for each in options)
        return Plan(name=spec.name, things=(("record", "a file; nothing runs"), *asked), price=price_words(spec))

    def up(self, spec: ClusterSpec, *, told: Told, timeout_s: float = UP_TIMEOUT_S) -> Started:  # noqa: ARG002  (up at once)
        with records.locked(spec.name):
            found = _find(spec.name)
            if found is not None:
                refuse_difference(found, spec, is_up=found.suspended_unix_s is None)
                if found.suspended_unix_s is None:
                    return found, "is up already"
                back = replace(found, spec=spec, suspended_unix_s=None)
                back.save()
                return back, "is up again"
            token_file = private_folder(records.cluster_folder(spec.name)) / "token"
            write_secret(token_file, secrets.token_hex(32))
            made = FakeRecord(spec=spec, token_file=str(token_file), **versions_here())
            made.save()
            return made, "is up: it runs nothing"

    def status(self, record: ClusterRecord) -> Status:
        found = _find(record.name)
        if found is None:
            return Status(state="gone", why="it was ended")
        if found.suspended_unix_s is None:
            return Status(state="up")
        return Status(state="suspended", why="it was asked to", since_unix_s=found.suspended_unix_s)

    def scale(self, record: ClusterRecord, num_nodes: int | tuple[int, int]) -> ClusterRecord:
        scaled = replace(record, spec=replace(record.spec, num_nodes=num_nodes))
        scaled.save()
        return scaled

    def suspend(self, record: ClusterRecord) -> None:
        assert isinstance(record, FakeRecord)
        replace(record, suspended_unix_s=time.time()).save()

    def down(self, name: str) -> bool:
        with records.locked(name):
            found = _find(name)
            if found is None:
                return False
            (found.folder / "token").unlink(missing_ok=True)
            found.remove()
            return True

    def logs(self, record: ClusterRecord, *, tail: int = 200) -> str:  # noqa: ARG002  (it says nothing)
        return ""

    def connect(self, record: ClusterRecord) -> FakeWay:
        found = _find(record.name)
        if found is None or found.suspended_unix_s is not None:
            raise ClusterError(f"The cluster {record.name} is not up.", f"Start it: %ray up {record.name} --on fake")
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Door)
        server.cluster = found  # type: ignore[attr-defined]
        Thread(target=server.serve_forever, args=(POLL_S,), name=f"door of {record.name}", daemon=True).start()
        return FakeWay(server)


@dataclass(frozen=True, slots=True)
class FakeWay:
    """A door of this process."""

    server: ThreadingHTTPServer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def _find(name: str) -> FakeRecord | None:
    found = records.find(name)
    return found if isinstance(found, FakeRecord) else None


class _Door(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        cluster: FakeRecord = self.server.cluster  # type: ignore[attr-defined]
        answers: dict[str, Any] = {
            "/ping": {"name": cluster.name, "pid": None, "started_unix_s": cluster.created_unix_s},
            "/status": asdict(_status(cluster.spec)),
            "/runs": {"runs": []},
        }
        path = self.path.partition("?")[0]
        self._answer(answers[path]) if path in answers else self._refuse(cluster)

    def do_POST(self) -> None:
        self._refuse(self.server.cluster)  # type: ignore[attr-defined]

    def _refuse(self, cluster: FakeRecord) -> None:
        error = ClusterError(f"The cluster {cluster.name} is a fake: it runs nothing.", "Use another one: %ray use NAME")
        self._answer(to_wire(error), status=409)

    def _answer(self, body: dict[str, Any], *, status: int = 200) -> None:
        given, token = self.headers.get("Authorization", ""), self.server.cluster.token  # type: ignore[attr-defined]
        if not hmac.compare_digest(given, f"Bearer {token}"):
            body, status = {"error": "RunError", "facts": ["The door asks for the cluster's token.", ""]}, 401
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: object) -> None:
        """Nobody reads it."""


def _status(spec: ClusterSpec) -> ClusterView:
    cpus = spec.num_cpus or 0
    gpus = spec.num_gpus or spec.num_simulated_gpus or (spec.gpus_per_node.count if spec.gpus_per_node else 0)
    nodes = tuple(
        NodeView(node=f"fake-{number}", alive=True, num_cpus=cpus, num_gpus=gpus) for number in range(1, spec.min_nodes + 1)
    )
    return ClusterView(
        name=spec.name,
        simulated_gpus=bool(gpus),
        nodes=nodes,
        num_cpus=cpus * len(nodes),
        num_cpus_free=0,
        num_gpus=gpus * len(nodes),
        num_gpus_free=0,
        object_store_bytes=0,
    )
