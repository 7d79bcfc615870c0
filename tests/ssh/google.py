"""A stand-in of Google's cloud on loopback: its tokens, and of Compute Engine what raykit asks of it.

What is asked of it is held against Google's own description of its API, which comes with its Python client: a field that
Google does not know is refused. Its instances are machines of :mod:`tests.ssh.hosts`.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from tests.ssh import hosts
from tests.ssh.hosts import Network
from tests.ssh.hypervisor import Hypervisor, Instance

PROJECT, ZONE, REGION = "alpha-1", "us-central1-a", "us-central1"
IMAGE = "projects/debian-cloud/global/images/family/debian-12"
TYPES: dict[str, dict[str, Any]] = {
    "n2-standard-4": {"guestCpus": 4, "memoryMb": 16384},
    "n2-standard-8": {"guestCpus": 8, "memoryMb": 32768},
    "g2-standard-4": {
        "guestCpus": 4,
        "memoryMb": 16384,
        "accelerators": [{"guestAcceleratorType": "nvidia-l4", "guestAcceleratorCount": 1}],
    },
}
SOLD_OUT = "a2-highgpu-1g"
TYPES[SOLD_OUT] = TYPES["g2-standard-4"]
ROUTES = [
    ("GET", r"", "_project"),
    ("POST", r"/setCommonInstanceMetadata", "_set_metadata"),
    ("GET", r"/regions/([^/]+)/subnetworks", "_subnets"),
    ("GET", r"/zones/[^/]+/machineTypes/([^/]+)", "_type"),
    ("GET", r"/(?:global|zones/[^/]+)/operations/([^/]+)", "_look_at"),
    ("GET", r"/zones/[^/]+/instances", "_list"),
    ("POST", r"/zones/[^/]+/instances", "_insert"),
    ("POST", r"/zones/[^/]+/instances/([^/]+)/stop", "_stop"),
    ("POST", r"/zones/[^/]+/instances/([^/]+)/start", "_start"),
    ("DELETE", r"/zones/[^/]+/instances/([^/]+)", "_delete"),
]
"""Who does what is asked of the project, by the end of its address."""

KINDS = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list}


def missing() -> str:
    """Say why there is no such cloud here; empty when there can be one."""
    if find_spec("googleapiclient") is None or find_spec("google_auth_httplib2") is None:
        return "needs Google's client: pip install google-api-python-client"
    return hosts.missing()


class RefusalError(Exception):
    """What Google does not do. Facts: the HTTP status, the reason, the sentence."""


class Google(Hypervisor):
    """The project's instances, by their names; what is asked is done by the hypervisor's next look."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.lock = threading.RLock()
        self.rights = True
        self._instances: dict[str, dict[str, Any]] = {}
        self._operations: dict[str, dict[str, Any]] = {}
        self._metadata: dict[str, Any] = {"fingerprint": "0"}
        self._numbers = count(2)

    def instances(self, *states: str) -> list[dict[str, Any]]:
        """Give the instances in these states, or all."""
        with self.lock:
            return [dict(each) for each in self._instances.values() if not states or each["status"] in states]

    def wanted(self) -> list[Instance]:
        return [
            Instance(
                name=each["name"],
                runs=each["status"] in ("PROVISIONING", "STAGING", "RUNNING"),
                addresses=(each["networkInterfaces"][0]["networkIP"], each["networkInterfaces"][0]["accessConfigs"][0]["natIP"]),
            )
            for each in self.instances()
        ]

    def running(self) -> list[str]:
        return [each["name"] for each in self.instances("RUNNING")]

    def stopped(self) -> list[str]:
        return [each["name"] for each in self.instances("TERMINATED")]

    def keys(self, name: str) -> list[str]:  # the project's keys are those of all its machines
        told = next((item["value"] for item in self._metadata.get("items", ()) if item["key"] == "ssh-keys"), "")
        return re.findall(r"ssh-(?:rsa|ed25519) \S+", told)

    def went_off(self, name: str) -> None:
        with self.lock:
            self._instances[name]["status"] = "STOPPING"

    def is_on(self, name: str) -> None:
        with self.lock:
            if self._instances.get(name, {}).get("status") in ("PROVISIONING", "STAGING"):
                self._instances[name]["status"] = "RUNNING"

    def is_off(self, name: str) -> None:
        with self.lock:
            instance = self._instances.get(name)
            if instance and instance.pop("is_deleted", False):
                del self._instances[name]
            elif instance:
                instance |= {"status": "TERMINATED", "lastStopTimestamp": datetime.now(UTC).isoformat(timespec="milliseconds")}

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> dict[str, Any]:
        """Do what is asked of Compute Engine: a body's fields are checked, and of a list only what its filter takes is given."""
        mine, _, asked = path.partition(f"/compute/v1/projects/{PROJECT}")
        if mine or not path.startswith("/compute/v1/projects/"):
            raise RefusalError(404, "notFound", f"The resource '{path}' was not found")
        if (zone := re.match(r"/zones/([^/]+)", asked)) and zone[1] != ZONE:
            raise RefusalError(400, "invalid", f"Invalid value for field 'zone': '{zone[1]}'. Unknown zone.")
        for way, pattern, verb in ROUTES:
            if way == method and (found := re.fullmatch(pattern, asked)):
                with self.lock:
                    done: dict[str, Any] = getattr(self, verb)(*found.groups(), *query.values(), *([body] if body else []))
                    return done
        raise AssertionError(f"nobody was thought to ask: {method} {path}")

    def _project(self) -> dict[str, Any]:
        return {"name": PROJECT, "commonInstanceMetadata": self._metadata}

    def _set_metadata(self, body: Any) -> dict[str, Any]:
        self._metadata = checked("Metadata", body)
        return self._operation("global", lambda: True)

    def _subnets(self, region: str) -> dict[str, Any]:
        return {"items": [{"name": "default", "selfLink": _link(f"regions/{region}/subnetworks/default")}]}

    def _list(self, wanted: str) -> dict[str, Any]:
        key, value = wanted.removeprefix("labels.").split(" = ")
        return {"items": [each for each in self.instances() if each["labels"].get(key) == value]}

    def _stop(self, name: str) -> dict[str, Any]:
        self._there(name)["status"] = "STOPPING"
        return self._operation("zone", lambda: self._instances[name]["status"] == "TERMINATED")

    def _start(self, name: str) -> dict[str, Any]:
        if self._there(name)["status"] != "TERMINATED":
            raise RefusalError(400, "resourceNotReady", f"The resource '{name}' is not ready")
        self._instances[name]["status"] = "STAGING"
        return self._operation("zone", lambda: self._instances[name]["status"] == "RUNNING")

    def _delete(self, name: str) -> dict[str, Any]:
        instance = self._there(name)
        if instance["status"] == "TERMINATED":
            del self._instances[name]
        else:
            instance |= {"status": "STOPPING", "is_deleted": True}
        return self._operation("zone", lambda: name not in self._instances)

    def _type(self, name: str) -> dict[str, Any]:
        if name not in TYPES:
            raise RefusalError(404, "notFound", f"The resource 'projects/{PROJECT}/zones/{ZONE}/machineTypes/{name}' was not found")
        return TYPES[name]

    def _there(self, name: str) -> dict[str, Any]:
        if name not in self._instances:
            raise RefusalError(404, "notFound", f"The resource 'projects/{PROJECT}/zones/{ZONE}/instances/{name}' was not found")
        return self._instances[name]

    def _insert(self, body: dict[str, Any]) -> dict[str, Any]:
        if not self.rights:
            raise RefusalError(403, "forbidden", f"Required 'compute.instances.create' permission for '{body['name']}'")
        machine_type = body["machineType"].rpartition("/")[2]
        has_gpus = "accelerators" in self._type(machine_type)
        (disk,) = body["disks"]
        if (image := disk["initializeParams"]["sourceImage"]) != IMAGE:
            raise RefusalError(404, "notFound", f"The resource '{image}' was not found")
        assert body["networkInterfaces"][0]["subnetwork"] == _link(f"regions/{REGION}/subnetworks/default")
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", body["name"]):
            raise RefusalError(400, "invalid", f"Invalid value for field 'resource.name': '{body['name']}'.")
        is_moved = body["scheduling"].get("onHostMaintenance") != "TERMINATE" and "provisioningModel" not in body["scheduling"]
        if has_gpus and is_moved:
            raise RefusalError(400, "invalid", "Instances with guest accelerators do not support live migration.")
        if machine_type == SOLD_OUT:
            error = {"code": "ZONE_RESOURCE_POOL_EXHAUSTED", "message": f"The zone '{ZONE}' does not have enough resources"}
            return self._operation("zone", lambda: True, error)
        number = next(self._numbers)
        interface = {"networkIP": f"10.128.0.{number}", "accessConfigs": [{"natIP": f"34.1.0.{number}"}]}
        self._instances[body["name"]] = body | {"status": "PROVISIONING", "networkInterfaces": [interface]}
        return self._operation("zone", lambda: self._instances[body["name"]]["status"] == "RUNNING")

    def _operation(self, kind: str, is_done: Callable[[], bool], error: dict[str, str] | None = None) -> dict[str, Any]:
        name = f"operation-{kind}-{len(self._operations)}"
        self._operations[name] = {"is_done": is_done, "error": error}
        return {"name": name, "status": "RUNNING"}

    def _look_at(self, name: str) -> dict[str, Any]:
        asked = self._operations[name]
        if asked["error"]:
            return {"name": name, "status": "DONE", "error": {"errors": [asked["error"]]}}
        return {"name": name, "status": "DONE" if asked["is_done"]() else "RUNNING"}


def _link(place: str) -> str:
    return f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/{place}"


@cache
def _schemas() -> dict[str, Any]:
    import googleapiclient

    file = Path(googleapiclient.__path__[0]) / "discovery_cache/documents/compute.v1.json"
    schemas: dict[str, Any] = json.loads(file.read_text())["schemas"]
    return schemas


def checked(schema: str, body: Any) -> Any:
    """Give back a body that is as Google's description of it says.

    Raises:
        RefusalError: it has a field that there is not, or one of another type.
    """
    _check({"$ref": schema}, body, "resource")
    return body


def _check(schema: dict[str, Any], value: Any, where: str) -> None:
    schema = _schemas()[schema["$ref"]] if "$ref" in schema else schema
    if not isinstance(value, KINDS[schema["type"]]) or value not in (allowed := schema.get("enum", [value])):
        raise RefusalError(
            400,
            "invalid",
            f"Invalid value for field '{where}': '{value}'. Expected {allowed if 'enum' in schema else schema['type']}",
        )
    for name, part in value.items() if isinstance(value, dict) else ():
        each = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
        if each is None:
            raise RefusalError(400, "invalid", f"Invalid JSON payload received. Unknown name '{name}' at '{where}'")
        _check(each, part, f"{where}.{name}")
    for part in value if isinstance(value, list) else ():
        _check(schema["items"], part, where)


class _Desk(BaseHTTPRequestHandler):
    """Takes what comes over HTTP to the project; whoever has no token of ours is refused."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        self._do()

    def do_POST(self) -> None:
        self._do()

    def do_DELETE(self) -> None:
        self._do()

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""

    def _do(self) -> None:
        said = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        url = urllib.parse.urlsplit(self.path)
        try:
            if url.path == "/token":
                self._tell(200, {"access_token": "ours", "expires_in": 3600, "token_type": "Bearer"})
                return
            if self.headers.get("Authorization") != "Bearer ours":
                raise RefusalError(401, "authError", "Request had invalid authentication credentials.")
            body = json.loads(said) if said else None
            self._tell(
                200,
                self.server.google.answer(
                    self.command,
                    url.path,
                    {name: value for name, value in urllib.parse.parse_qsl(url.query) if name == "filter"},
                    body,
                ),
            )
        except RefusalError as exc:
            status, reason, sentence = exc.args
            self._tell(
                status, {"error": {"code": status, "message": sentence, "errors": [{"reason": reason, "message": sentence}]}}
            )

    def _tell(self, status: int, told: dict[str, Any]) -> None:
        content = json.dumps(told).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, google: Google) -> None:
        super().__init__(("127.0.0.1", 0), _Desk)
        self.google = google


@contextmanager
def cloud(network: Network, setenv: Callable[[str, str], None]) -> Iterator[Google]:
    """Serve the cloud on loopback for the block; ``setenv`` is given what reaches it."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    google = Google(network)
    server = _Server(google)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    account = {
        "type": "service_account",
        "project_id": PROJECT,
        "private_key": key.decode(),
        "client_email": f"tests@{PROJECT}.iam.gserviceaccount.com",
        "token_uri": f"{url}/token",
    }
    credentials = network.folder / "account.json"
    credentials.write_text(json.dumps(account))
    reached = {
        "HOME": str(network.folder),
        "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{url}/compute/v1/",
        "GOOGLE_CLOUD_PROJECT": PROJECT,
        "NO_GCE_CHECK": "true",
    }
    for name, value in reached.items():
        setenv(name, value)
    thread = threading.Thread(target=server.serve_forever, name="google")
    thread.start()
    google.start()
    try:
        yield google
    finally:
        google.stop()
        server.shutdown()
        server.server_close()
        thread.join()
