"""A stand-in of KubeRay's operator, a scheduler and a kubelet: it gives RayClusters and their pods a life.

It is none of these: it looks at the API server ten times a second, makes a head's and the workers' pods, says by their
status what a kubelet would say, and has a runtime run them. ``Doors`` runs a head as a thread that answers at the door;
``RayNodes`` runs each pod as a Ray node in processes of this machine. It has no autoscaler: replicas stay as they are set.
"""

from __future__ import annotations

import base64
import hmac
import json
import threading
import uuid
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from raykit.cluster.kuberay.api import Kube, RefusedError
from raykit.cluster.kuberay.manifest import DOOR_PORT, TOKEN_KEY
from tests.kube.kubelet import Kubelet

NODE = "stand-in"
LOOK_S = 0.1


class Runtime(Protocol):
    """What runs a pod that a node has taken."""

    def start(self, pod: dict[str, Any]) -> None: ...
    def is_running(self, name: str) -> bool: ...
    def end(self, name: str) -> None: ...


class Doors:
    """A head is a door that says who is there; a worker is nothing."""

    def __init__(self, kube: Kube, kubelet: Kubelet) -> None:
        self._kube, self._kubelet = kube, kubelet
        self._servers: dict[str, ThreadingHTTPServer] = {}
        self._running: set[str] = set()

    def start(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        self._running.add(name)
        if pod["metadata"]["labels"]["ray.io/node-type"] != "head":
            return
        volume = next(each for each in pod["spec"]["volumes"] if "secret" in each)
        secret = self._kube.get("Secret", volume["secret"]["secretName"])
        token = base64.b64decode(secret["data"][TOKEN_KEY]).decode()
        cluster = pod["metadata"]["labels"]["ray.io/cluster"]

        class Answering(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_known = hmac.compare_digest(self.headers.get("Authorization", ""), f"Bearer {token}")
                body = json.dumps({"name": cluster} if is_known else {"error": "RunError", "facts": ["no token", ""]}).encode()
                self.send_response(200 if is_known else 401)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        self._servers[name] = server
        self._kubelet.ports[name] = {DOOR_PORT: server.server_port}

    def is_running(self, name: str) -> bool:
        return name in self._running

    def end(self, name: str) -> None:
        self._running.discard(name)
        self._kubelet.ports.pop(name, None)
        if server := self._servers.pop(name, None):
            server.shutdown()
            server.server_close()


class StandIn:
    """Looks and acts in a thread, until it is stopped; then every pod that it runs is ended."""

    def __init__(self, kube: Kube, runtime: Runtime) -> None:
        self._kube, self._runtime = kube, runtime
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._told: set[str] = set()
        self.failure: BaseException | None = None

    def start(self) -> StandIn:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
        for pod in self._kube.find("Pod"):
            self._remove(pod)
        if self.failure is not None:
            raise self.failure

    def _live(self) -> None:
        try:
            while not self._stopping.wait(LOOK_S):
                self.look()
        except BaseException as exc:
            self.failure = exc

    def look(self) -> None:
        """Do what has to be done now."""
        clusters = {each["metadata"]["name"]: each for each in self._kube.find("RayCluster")}
        pods = self._kube.find("Pod")
        for pod in pods:
            cluster = clusters.get(pod["metadata"]["labels"].get("ray.io/cluster"))
            if cluster is None or cluster["spec"].get("suspend") or pod["metadata"].get("deletionTimestamp"):
                self._remove(pod)
        for cluster in clusters.values():
            self._tend(cluster, [each for each in self._kube.find("Pod") if _is_of(each, cluster)])

    def _tend(self, cluster: dict[str, Any], pods: list[dict[str, Any]]) -> None:
        if not cluster["spec"].get("suspend"):
            group = cluster["spec"]["workerGroupSpecs"][0]
            workers = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "worker"]
            if len(workers) == len(pods):
                self._make(cluster, "head", "headgroup", cluster["spec"]["headGroupSpec"])
            for _ in range(group["replicas"] - len(workers)):
                self._make(cluster, "worker", group["groupName"], group)
            for pod in workers[group["replicas"] :]:
                self._remove(pod)
            for pod in pods:
                self._run(pod)
        running = sum((pod.get("status") or {}).get("phase") == "Running" for pod in pods)
        state = "suspended" if cluster["spec"].get("suspend") and not pods else "ready" if running and running == len(pods) else ""
        if state and (cluster.get("status") or {}).get("state") != state:
            self._say("RayCluster", cluster, {"state": state})

    def _make(self, cluster: dict[str, Any], kind: str, group: str, spec: dict[str, Any]) -> None:
        name = cluster["metadata"]["name"]
        template = spec["template"]
        labels = {"ray.io/cluster": name, "ray.io/node-type": kind, "ray.io/group": group, "ray.io/is-ray-node": "yes"}
        meta = {
            "name": f"{name}-{kind}-{uuid.uuid4().hex[:5]}",
            "labels": template["metadata"].get("labels", {}) | labels,
            "annotations": {"stand-in/ray-start": json.dumps(spec["rayStartParams"])},
        }
        refusal = self._unfit(template["spec"])
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": template["spec"] | ({} if refusal else {"nodeName": NODE}),
        }
        try:
            made = self._kube.create(pod)
        except RefusedError as refused:
            self._tell(cluster, refused)
            return
        if refusal:
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": refusal}
            self._say("Pod", made, {"phase": "Pending", "conditions": [condition]})

    def _unfit(self, spec: dict[str, Any]) -> str:
        """Say as the scheduler would why no node takes a pod."""
        nodes = self._kube.find("Node")
        selector = spec.get("nodeSelector", {})
        fitting = [node for node in nodes if selector.items() <= node["metadata"].get("labels", {}).items()]
        return (
            ""
            if fitting
            else f"0/{len(nodes)} nodes are available: {len(nodes)} node(s) didn't match Pod's node affinity/selector."
        )

    def _run(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if not pod["spec"].get("nodeName") or (pod.get("status") or {}).get("phase") == "Running":
            if pod["spec"].get("nodeName") and not self._runtime.is_running(name):
                self._remove(pod)  # its processes have ended: the operator makes another
            return
        container = pod["spec"]["containers"][0]
        if "missing" in container["image"]:
            waiting = {"reason": "ErrImagePull", "message": "manifest unknown"}
            status = {"name": container["name"], "image": container["image"], "imageID": "", "ready": False, "restartCount": 0}
            self._say("Pod", pod, {"phase": "Pending", "containerStatuses": [status | {"state": {"waiting": waiting}}]})
            return
        self._runtime.start(pod)
        self._say("Pod", pod, {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})

    def _remove(self, pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        self._runtime.end(name)
        with suppress(RefusedError):
            self._kube._json("DELETE", "Pod", name, query={"gracePeriodSeconds": 0})

    def _say(self, kind: str, about: dict[str, Any], status: dict[str, Any]) -> None:
        with suppress(RefusedError):  # deleted meanwhile
            self._kube.patch(kind, f"{about['metadata']['name']}/status", {"status": status})

    def _tell(self, cluster: dict[str, Any], refused: RefusedError) -> None:
        if refused.problem in self._told:
            return
        self._told.add(refused.problem)
        meta, name = cluster["metadata"], f"{cluster['metadata']['name']}.{uuid.uuid4().hex[:8]}"
        about = {"kind": "RayCluster", "name": meta["name"], "namespace": meta["namespace"], "uid": meta["uid"]}
        event = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": name}, "involvedObject": about, "type": "Warning"}
        self._kube.create(
            event
            | {"reason": "FailedToCreateHeadPod", "message": refused.problem.partition(": ")[2], "source": {"component": NODE}}
        )


def _is_of(pod: dict[str, Any], cluster: dict[str, Any]) -> bool:
    return pod["metadata"]["labels"].get("ray.io/cluster") == cluster["metadata"]["name"] and not pod["metadata"].get(
        "deletionTimestamp"
    )
