"""How a cluster gives its own machines back: what its place bills ends, and what it wrote down stays."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import urllib.request
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raykit.cluster.kuberay import manifest
from raykit.engine.setting import ClusterSetting

TIMEOUT_S = 10.0
SHUT_DOWN = ("sudo", "-n", "shutdown", "-h", "now")


def suspend_pods(setting: ClusterSetting, reason: str) -> None:
    """Suspend the RayCluster of which this process is a part, with the rights of its pod's service account.

    Raises:
        OSError: the API server cannot be reached, or refuses.
        LookupError: this is no pod.
    """
    account = Path(setting.account_folder)
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    namespace = (account / "namespace").read_text().strip()
    request = urllib.request.Request(
        f"https://{host}:{port}/apis/{manifest.API_VERSION}/namespaces/{namespace}/rayclusters/{setting.name}",
        data=json.dumps(manifest.suspension(suspended=True, why=reason)).encode(),
        headers={
            "Authorization": f"Bearer {(account / 'token').read_text().strip()}",
            "Content-Type": "application/merge-patch+json",
        },
        method="PATCH",
    )
    trust = ssl.create_default_context(cafile=str(account / "ca.crt"))
    with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=trust):  # noqa: S310
        pass


def shut_down() -> None:
    """Shut the cluster's machines down, this one last: to their cloud they are stopped then, and their disks are kept.

    Raises:
        OSError: this machine does not let its user do so.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    asked = [_shut_down.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in others]
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=TIMEOUT_S)  # one that is quick takes its answer along
    done = subprocess.run(SHUT_DOWN, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(SHUT_DOWN)}: {done.stderr.strip()}")


@ray.remote(num_cpus=0, max_retries=0)
def _shut_down() -> None:
    subprocess.run(SHUT_DOWN, check=True, capture_output=True)
