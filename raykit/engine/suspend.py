"""How a cluster gives its own machines back: what its place bills ends, and what it wrote down stays."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import time
import urllib.request
from contextlib import suppress
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
        data=json.dumps(manifest.suspension(reason, now_unix_s=time.time())).encode(),
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
        OSError: one of them does not let its user do so; this one stays on then.
    """
    here = ray.get_runtime_context().get_node_id()
    others = [node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    asked = [_shut_down.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote() for node in others]
    answered, _ = ray.wait(asked, num_returns=len(asked), timeout=TIMEOUT_S) if asked else ([], [])
    for each in answered:
        with suppress(ray.exceptions.WorkerCrashedError, ray.exceptions.NodeDiedError):  # one that is quick takes its answer along
            _refuse(ray.get(each))
    _refuse(_this_machine())


def _refuse(why: str) -> None:
    if why:
        raise OSError(why)


def _this_machine() -> str:
    """Shut it down, and say why it does not."""
    done = subprocess.run(SHUT_DOWN, capture_output=True, text=True, check=False)
    return f"{' '.join(SHUT_DOWN)}: {done.stderr.strip()}" if done.returncode else ""


_shut_down = ray.remote(num_cpus=0, max_retries=0)(_this_machine)
