"""A Kubernetes for tests: an API server, strict or real, with the stand-in operator beside it."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from raykit.cluster.kuberay.api import Kube, reach
from tests.kube import real
from tests.kube.kubelet import Kubelet
from tests.kube.standin import NODE, Doors, StandIn
from tests.kube.strict import StrictApi

LABELS = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}


@dataclass
class Kubernetes:
    """What a test needs to know of it. ``admin`` may do everything, ``guest`` nothing, ``expired`` is nobody."""

    kind: str
    kubeconfig: str
    admin: Kube
    kubelet: Kubelet
    api: Any
    tokens: dict[str, str]

    def objects(self, namespace: str = "default") -> list[str]:
        """Name all that is left in a namespace, but what the API server has made itself."""
        kinds = ("RayCluster", "Pod", "Secret", "ConfigMap", "ServiceAccount", "Role", "RoleBinding")
        here = Kube(self.admin.client, self.admin.context, namespace)
        found = [f"{kind} {each['metadata']['name']}" for kind in kinds for each in here.find(kind)]
        return [each for each in found if each not in ("ConfigMap kube-root-ca.crt", "ServiceAccount default")]


def kubeconfig_text(url: str, tokens: dict[str, str], trust: str) -> str:
    users = tokens | {"expired": "no-such-token"}
    contexts = dict.fromkeys(users, "test") | {"nowhere": "nowhere"}
    servers = {"test": url, "nowhere": "http://127.0.0.1:9"}
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "admin",
            "clusters": [
                {
                    "name": name,
                    "cluster": {"server": server} | ({"certificate-authority": trust} if server[:5] == "https" else {}),
                }
                for name, server in servers.items()
            ],
            "users": [{"name": user, "user": {"token": token}} for user, token in users.items()],
            "contexts": [
                {"name": name, "context": {"cluster": server, "user": name if name in users else "admin", "namespace": "default"}}
                for name, server in contexts.items()
            ],
        }
    )


@contextmanager
def serving(api: Any, kind: str, folder: Path, kubelet: Kubelet, tokens: dict[str, str]) -> Iterator[Kubernetes]:
    """Serve an API server's objects until the end of the block."""
    with ExitStack() as stack:
        stack.callback(kubelet.stop)
        stack.callback(api.stop)
        api.start()
        kubeconfig = folder / "config"
        kubeconfig.write_text(kubeconfig_text(api.url, tokens, f"{folder}/certs/apiserver.crt"))
        admin = stack.enter_context(reach(kubeconfig=str(kubeconfig)))
        _make_node(admin, kubelet)
        yield Kubernetes(kind, str(kubeconfig), admin, kubelet, api, tokens)


@pytest.fixture(scope="session")
def strict_kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    """The strict stand-in of an API server."""
    folder, tokens = tmp_path_factory.mktemp("strict"), _tokens()
    api, kubelet = StrictApi(), Kubelet(folder)
    api.kubelet = kubelet
    api.rights = {tokens["admin"]: lambda verb, kind: True, tokens["guest"]: lambda verb, kind: False}
    with serving(api, "strict", folder, kubelet, tokens) as found:
        yield found


@pytest.fixture(scope="session")
def real_kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubernetes]:
    """A real API server, which reaches the stand-in of a kubelet by TLS."""
    if lacking := real.missing():
        pytest.skip(lacking)
    folder, tokens = tmp_path_factory.mktemp("real"), _tokens()
    kubelet = Kubelet(folder)
    kubelet.serve()
    with serving(real.RealApi(folder, tokens), "real", folder, kubelet, tokens) as found:
        yield found


@pytest.fixture(params=["strict", pytest.param("real", marks=pytest.mark.k8s)])
def kubernetes(request: pytest.FixtureRequest) -> Kubernetes:
    """Both, by parameter; the operator's stand-in is the test's to start."""
    found: Kubernetes = request.getfixturevalue(f"{request.param}_kubernetes")
    return found


def _tokens() -> dict[str, str]:
    return {user: secrets.token_hex(16) for user in ("admin", "guest")}


def _make_node(admin: Kube, kubelet: Kubelet) -> None:
    admin.create({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": LABELS}})
    address = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}]}
    ports = {"daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet.port}}} if kubelet.port else {}
    admin.patch("Node", f"{NODE}/status", {"status": address | ports})


@contextmanager
def operating(kubernetes: Kubernetes) -> Iterator[StandIn]:
    """Have a stand-in operator, whose heads are doors, until the end of the block."""
    standin = StandIn(kubernetes.admin, Doors(kubernetes.admin, kubernetes.kubelet)).start()
    try:
        yield standin
    finally:
        standin.stop()


@pytest.fixture
def operator(kubernetes: Kubernetes) -> Iterator[StandIn]:
    """The stand-in operator, whose heads are doors."""
    with operating(kubernetes) as standin:
        yield standin
