"""Pods as Ray nodes in processes of this machine: the stand-in of a container runtime.

What a pod sees as its own (the files that are mounted, the ports, the service account) is put into a folder and behind
free ports, and their names are replaced in its commands. A pod that is ended is killed at once, as by a node's loss.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from raykit.cluster.kuberay.api import PATHS, Kube
from raykit.cluster.kuberay.manifest import ACCOUNT_PATH, DOOR_PORT, GCS_PORT
from raykit.cluster.processes import free_ports
from tests.kube.kubelet import Kubelet

MARK = "RAYKIT_STAND_IN_POD"


class RayNodes:
    """Runs pods by name; ``trust`` is the file of the API server's certificate."""

    def __init__(self, kube: Kube, kubelet: Kubelet, trust: str) -> None:
        self._kube, self._kubelet, self._trust = kube, kubelet, trust
        self._folder = Path(tempfile.mkdtemp(prefix="rk-pods-"))
        self._processes: dict[str, list[subprocess.Popen[bytes]]] = {}
        self._gcs: dict[str, int] = {}

    def start(self, pod: dict[str, Any]) -> None:
        name, labels = pod["metadata"]["name"], pod["metadata"]["labels"]
        container = pod["spec"]["containers"][0]
        folder = self._folder / name
        names = self._mounted(pod, container, folder)
        ports = {each["containerPort"]: _free_port() for each in container.get("ports", [])}
        if labels["ray.io/node-type"] == "head":
            self._gcs[labels["ray.io/cluster"]] = ports[GCS_PORT]
        self._kubelet.ports[name] = {DOOR_PORT: ports.get(DOOR_PORT, 0)}
        self._kubelet.logs[name] = folder / "container.log"
        environment = self._environment(name, container, names)
        command = self._ray_start(labels, json.loads(pod["metadata"]["annotations"]["stand-in/ray-start"]))
        self._processes[name] = [self._spawn(command, environment, folder)]
        if hook := container.get("lifecycle", {}).get("postStart"):
            mapped = [_replaced(word, names, ports) for word in hook["exec"]["command"]]
            self._processes[name].append(self._spawn(mapped, environment, folder))

    def is_running(self, name: str) -> bool:
        return name in self._processes and self._processes[name][0].poll() is None

    def end(self, name: str) -> None:
        if name not in self._processes:
            return
        while left := processes(name):
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=1)
        for process in self._processes.pop(name):
            process.wait()
        self._kubelet.ports.pop(name, None)

    def remove(self) -> None:
        """Remove the folders of all pods."""
        shutil.rmtree(self._folder)

    def _mounted(self, pod: dict[str, Any], container: dict[str, Any], folder: Path) -> dict[str, str]:
        """Put what is mounted into folders and give them by the paths that the pod knows."""
        found = {}
        volumes = {each["name"]: each for each in pod["spec"]["volumes"]}
        for mount in container["volumeMounts"]:
            volume, place = volumes[mount["name"]], folder / mount["name"]
            place.mkdir(parents=True)
            if "secret" in volume:
                _written(place, self._kube.get("Secret", volume["secret"]["secretName"])["data"])
            elif "configMap" in volume:
                _written(place, self._kube.get("ConfigMap", volume["configMap"]["name"])["binaryData"])
            found[mount["mountPath"]] = str(place)
        if account := pod["spec"].get("serviceAccountName"):
            found[ACCOUNT_PATH] = str(self._account(account, pod["metadata"]["namespace"], folder / "account"))
        return found

    def _account(self, account: str, namespace: str, place: Path) -> Path:
        """Ask for a token of the service account, as a kubelet does."""
        place.mkdir()
        wanted = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}}
        path = f"{PATHS['ServiceAccount'].format(namespace=namespace)}/{account}/token"
        answer = json.loads(self._kube._request("POST", path, "token", body=wanted))
        (place / "token").write_text(answer["status"]["token"])
        (place / "namespace").write_text(namespace)
        shutil.copy(self._trust, place / "ca.crt")
        return place

    def _environment(self, name: str, container: dict[str, Any], names: dict[str, str]) -> dict[str, str]:
        host, port = re.match(r"https?://([^:]+):(\d+)", self._kube.client.configuration.host).groups()
        of_pod = {each["name"]: _replaced(each["value"], names, {}) for each in container["env"]}
        of_this_machine = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(self._folder),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
            "PYTHONSAFEPATH": "1",
            MARK: name,
        }
        return of_pod | of_this_machine | {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}

    def _ray_start(self, labels: dict[str, str], params: dict[str, str]) -> list[str]:
        ports, gcs = free_ports(), self._gcs[labels["ray.io/cluster"]]
        is_head = labels["ray.io/node-type"] == "head"
        here = {
            "dashboard-host": "127.0.0.1",
            "node-ip-address": "127.0.0.1",
            "dashboard-agent-listen-port": ports.agent_http,
            "dashboard-agent-grpc-port": ports.agent_grpc,
            "runtime-env-agent-port": ports.runtime_env,
            "object-manager-port": ports.object_manager,
            "node-manager-port": ports.node_manager,
            "metrics-export-port": ports.metrics,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "include-log-monitor": "false",
        }
        role = (
            {"port": gcs, "temp-dir": self._folder / "ray", "include-dashboard": "false"}
            if is_head
            else {"address": f"127.0.0.1:{gcs}"}
        )
        options = [f"--{key}={value}" for key, value in (params | here | role).items()]
        switches = ["--head", "--no-monitor"] if is_head else []
        return [sys.executable, "-m", "raykit.engine.node", "--block", "--disable-usage-stats", *switches, *options]

    def _spawn(self, command: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen[bytes]:
        with (folder / "container.log").open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=folder, start_new_session=True
            )


def processes(pod: str) -> list[psutil.Process]:
    """Give all processes of a pod; an empty name gives those of all pods."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            mark = process.environ().get(MARK)
            if mark is not None and pod in ("", mark):
                found.append(process)
    return found


def _written(place: Path, data: dict[str, str]) -> None:
    for key, value in data.items():
        (place / key).write_bytes(base64.b64decode(value))


def _replaced(text: str, names: dict[str, str], ports: dict[int, int]) -> str:
    for path, place in names.items():
        text = text.replace(path, place)
    for port, local in ports.items():
        text = re.sub(rf"(?<=[: ]){port}\b", str(local), text)
    return text


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
