"""A real Kubernetes API server with its etcd on loopback, where both programs are at hand."""

from __future__ import annotations

import json
import os
import shutil
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

CRD = Path(__file__).parent / "rayclusters.json"
DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
START_TIMEOUT_S = 60


def missing() -> str:
    """Say what is not at hand, or nothing."""
    lacking = [name for name, found in (("etcd", shutil.which("etcd")), ("kube-apiserver", _apiserver())) if not found]
    where = "on the PATH; RAYKIT_KUBE_APISERVER may name the API server's file"
    return f"no {' and no '.join(lacking)} {where}" if lacking else ""


def _apiserver() -> str | None:
    return os.environ.get("RAYKIT_KUBE_APISERVER") or shutil.which("kube-apiserver")


class RealApi:
    """Both programs as processes, KubeRay's definition loaded, RBAC on."""

    def __init__(self, folder: Path, users: dict[str, str]) -> None:
        self._folder = folder
        self._users = users
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = ""

    def start(self) -> RealApi:
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            for each in (one, two, three):
                each.bind(("127.0.0.1", 0))
            etcd, peer, api = (each.getsockname()[1] for each in (one, two, three))
        groups = {user: "system:masters" if user == "admin" else "guests" for user in self._users}
        tokens = "".join(f'{token},{user},{user},"{groups[user]}"\n' for user, token in self._users.items())
        (self._folder / "tokens.csv").write_text(tokens)
        key = self._folder / "sa.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        self._spawn(
            *("etcd", "--data-dir", f"{self._folder}/etcd", "--listen-client-urls", f"http://127.0.0.1:{etcd}"),
            *("--advertise-client-urls", f"http://127.0.0.1:{etcd}", "--listen-peer-urls", f"http://127.0.0.1:{peer}"),
            *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}", "--initial-cluster", f"default=http://127.0.0.1:{peer}"),
        )
        self._spawn(
            *(str(_apiserver()), f"--etcd-servers=http://127.0.0.1:{etcd}", "--bind-address=127.0.0.1", f"--secure-port={api}"),
            *("--advertise-address=127.0.0.1", "--insecure-port=0", f"--cert-dir={self._folder}/certs"),
            *(
                f"--token-auth-file={self._folder}/tokens.csv",
                "--authorization-mode=RBAC",
                "--service-cluster-ip-range=10.96.0.0/24",
            ),
            *("--service-account-issuer=https://kubernetes.local", f"--service-account-signing-key-file={key}"),
            *(f"--service-account-key-file={key}", "--disable-admission-plugins=ServiceAccount"),
        )
        self.url = f"https://127.0.0.1:{api}"
        self._until(lambda: self.ask("GET", "/readyz") == b"ok")
        self.install_kuberay()
        return self

    def install_kuberay(self) -> None:
        """Load KubeRay's definition."""
        self.ask("POST", DEFINITIONS, json.loads(CRD.read_text()))
        self._until(lambda: bool(self.ask("GET", "/apis/ray.io/v1/namespaces/default/rayclusters")))

    def remove_kuberay(self) -> None:
        """Take KubeRay's definition away again, with all RayClusters."""
        self.ask("DELETE", f"{DEFINITIONS}/rayclusters.ray.io")
        self._until(lambda: not self._knows_rayclusters())

    def _knows_rayclusters(self) -> bool:
        try:
            return bool(self.ask("GET", "/apis/ray.io/v1/namespaces/default/rayclusters"))
        except urllib.error.HTTPError:
            return False

    def stop(self) -> None:
        """Kill both: asked to end, the API server waits a long time for its watchers."""
        for process in reversed(self._processes):
            process.kill()
        for process in self._processes:
            process.wait()

    def ask(self, method: str, path: str, body: Any = None) -> bytes:
        """Ask as the administrator."""
        headers = {"Authorization": f"Bearer {self._users['admin']}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        trust = ssl._create_unverified_context()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
        with opener.open(request, timeout=10) as answer:
            return answer.read()

    def _spawn(self, *command: str) -> None:
        with (self._folder / f"{Path(command[0]).name}.log").open("wb") as log:
            self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    def _until(self, ready: Any) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(OSError):
                if ready():
                    return
            assert all(process.poll() is None for process in self._processes), f"ended while it started: see {self._folder}"
            time.sleep(0.1)
        raise TimeoutError(f"the API server is not ready: see {self._folder}")
