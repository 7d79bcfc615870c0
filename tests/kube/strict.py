"""A small, strict stand-in of a Kubernetes API server, where the real one is not at hand.

It knows the objects that raykit and KubeRay make, validates RayClusters by KubeRay's schema, and refuses unknown fields,
which the real one would drop in silence. Its refusals have the real one's words, as far as raykit reads them.
"""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
from aiohttp import web

from tests.kube.kubelet import Kubelet, forward

CRD = json.loads((Path(__file__).parent / "rayclusters.json").read_text())
KINDS = {
    "secrets": "Secret", "configmaps": "ConfigMap", "serviceaccounts": "ServiceAccount", "pods": "Pod", "events": "Event",
    "roles": "Role", "rolebindings": "RoleBinding", "rayclusters": "RayCluster", "nodes": "Node",
}  # fmt: skip


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: _strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        found["additionalProperties"] = False
    return found


SCHEMA = {
    name: _strict(part)
    for name, part in CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].items()
    if name == "spec"
}


class StrictApi:
    """Serves on loopback in a thread. ``rights`` maps a token to a test of (verb, plural)."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], dict[str, Any]] = {}
        self.rights: dict[str, Callable[[str, str], bool]] = {}
        self.kubelet: Kubelet | None = None
        self.quota_of_pods: int | None = None
        self._has_kuberay = True
        self.url = ""
        self._lock = threading.RLock()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> StrictApi:
        self._thread.start()
        self._started.wait()
        return self

    def install_kuberay(self) -> None:
        self._has_kuberay = True

    def remove_kuberay(self) -> None:
        self._has_kuberay = False

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)

        async def serve() -> None:
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"

        self._loop.run_until_complete(serve())
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        words = request.path.strip("/").split("/")
        words = words[2:] if words[0] == "api" else words[3:]
        namespace = words[1] if words[0] == "namespaces" else ""
        plural, name, sub = [*(words[2:] if namespace else words), "", ""][:3]
        verb = {"GET": "get" if name else "list", "POST": "create", "PATCH": "patch", "DELETE": "delete"}[request.method]
        resource = f"{plural}/{sub}" if sub else plural
        token = request.headers.get("Authorization", "").removeprefix("Bearer ").removeprefix("bearer ")
        if token not in self.rights:
            return _status(401, "Unauthorized")
        if not self.rights[token]("create" if sub == "portforward" else verb, resource):
            of = f'in API group "" in the namespace "{namespace}"' if namespace else 'in API group "" at the cluster scope'
            return _status(403, f'{plural} is forbidden: User "guest" cannot {verb} resource "{resource}" {of}')
        if plural not in KINDS or (plural == "rayclusters" and not self._has_kuberay):
            return _status(404, "the server could not find the requested resource")
        if sub == "portforward":
            socket = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
            await socket.prepare(request)
            assert self.kubelet is not None
            await forward(socket, int(request.query["ports"]), self.kubelet.local_port(name, int(request.query["ports"])))
            return socket
        if sub == "log":
            assert self.kubelet is not None
            return web.Response(text=self.kubelet.log(name, request.query["container"]))
        body = json.loads(await request.read() or b"null")
        with self._lock:
            return self._do(verb, (plural, namespace, name), sub, body, request)

    def _do(self, verb: str, key: tuple[str, str, str], sub: str, body: Any, request: web.Request) -> web.Response:
        plural, namespace, name = key
        if verb == "list":
            wanted = dict(part.split("=") for part in request.query.get("labelSelector", "").split(",") if part)
            items = [
                each
                for (kind, where, _), each in self.objects.items()
                if (kind, where) == (plural, namespace) and wanted.items() <= each["metadata"].get("labels", {}).items()
            ]
            return web.json_response({"kind": "List", "items": items})
        if verb == "create":
            return self._create(plural, namespace, body, dry_run="dryRun" in request.query)
        if key not in self.objects:
            return _status(404, f'{plural} "{name}" not found')
        if verb == "delete":
            grace = int(request.query.get("gracePeriodSeconds", (body or {}).get("gracePeriodSeconds", 30)))
            if plural == "pods" and grace and self.objects[key]["spec"].get("nodeName"):
                self.objects[key]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
            else:
                del self.objects[key]
            return web.json_response({"kind": "Status", "status": "Success"})
        if verb == "patch":
            changed = _json_patched(self.objects[key], body) if isinstance(body, list) else _merged(self.objects[key], body)
            if said := _faults(plural, changed):
                return _status(422, said)
            self.objects[key] = changed
        return web.json_response(self.objects[key])

    def _create(self, plural: str, namespace: str, made: dict[str, Any], *, dry_run: bool) -> web.Response:
        key = (plural, namespace, made["metadata"].get("name") or made["metadata"]["generateName"] + uuid.uuid4().hex[:5])
        if key in self.objects:
            return _status(409, f'{plural} "{key[2]}" already exists')
        if said := _faults(plural, made):
            return _status(422, said)
        num_pods = sum(kind == "pods" for kind, _, _ in self.objects)
        if plural == "pods" and self.quota_of_pods is not None and num_pods >= self.quota_of_pods:
            limits = f"requested: pods=1, used: pods={num_pods}, limited: pods={self.quota_of_pods}"
            return _status(403, f'pods "{key[2]}" is forbidden: exceeded quota: small, {limits}')
        meta = made["metadata"] | {"name": key[2], "namespace": namespace, "uid": str(uuid.uuid4()), "generation": 1}
        whole = made | {"metadata": meta | {"creationTimestamp": f"2026-01-01T00:00:00.{len(self.objects):06d}Z"}}
        if not dry_run:
            self.objects[key] = whole
        return web.json_response(whole, status=201)


def _faults(plural: str, made: dict[str, Any]) -> str:
    if plural != "rayclusters":
        return ""
    validator = jsonschema.Draft7Validator(SCHEMA["spec"])
    faults = [
        f"spec.{'.'.join(map(str, each.absolute_path))}: {each.message[:200]}" for each in validator.iter_errors(made["spec"])
    ]
    return f'RayCluster.ray.io "{made["metadata"].get("name")}" is invalid: {"; ".join(faults)}' if faults else ""


def _status(code: int, message: str) -> web.Response:
    return web.json_response({"kind": "Status", "status": "Failure", "message": message, "code": code}, status=code)


def _merged(old: Any, patch: Any) -> Any:
    if not isinstance(patch, dict):
        return patch
    found = dict(old) if isinstance(old, dict) else {}
    for key, value in patch.items():
        if value is None:
            found.pop(key, None)
        else:
            found[key] = _merged(found.get(key), value)
    return found


def _json_patched(old: dict[str, Any], patch: list[dict[str, Any]]) -> dict[str, Any]:
    found = json.loads(json.dumps(old))
    for step in patch:
        assert step["op"] in ("add", "replace"), step
        *way, last = [part.replace("~1", "/").replace("~0", "~") for part in step["path"].strip("/").split("/")]
        place = found
        for part in way:
            place = place[int(part)] if isinstance(place, list) else place[part]
        place[last] = step["value"]
    return found
