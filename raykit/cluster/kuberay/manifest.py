"""What is made on Kubernetes for a cluster: a ClusterSpec to objects, pure.

All objects carry the cluster's label, by which they are found and deleted, whoever made them and wherever it stopped.
"""

from __future__ import annotations

import json
import shlex
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from raykit.cluster.code import python_path
from raykit.errors import OptionError
from raykit.spec import ClusterSpec

Object = dict[str, Any]

API_VERSION = "ray.io/v1"
CLUSTER_LABEL = "raykit.io/cluster"
SPEC_NOTE = "raykit.io/spec"  # the spec, so that `up` from another machine can tell a difference
WHY_NOTE = "raykit.io/suspended-because"
SINCE_NOTE = "raykit.io/suspended-at-unix-s"
VERSION_NOTE = "raykit.io/made-by"  # versions of Python and raykit
GCS_PORT = 6379
DOOR_PORT = 8700
GROUP = "workers"
TOKEN_KEY = "auth_token"  # noqa: S105  (the key under which KubeRay looks for Ray's token)
CODE_KEY = "raykit.zip"
ACCOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
SECRET_PATH, CODE_PATH, DATA_PATH = "/raykit/secret", "/raykit/code", "/raykit/data"
IMAGE = "rayproject/ray:{ray}-py{python}"
WORKER_CPUS, WORKER_MEMORY_BYTES = 4, 16_000_000_000
HEAD_CPUS, HEAD_MEMORY_BYTES = 1, 4_000_000_000  # the head runs hub and hosts, and none of the user's slots
WORKER_IDLE_S = 120  # a machine takes minutes to come: one that has just become idle is kept for the next stage


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuLabel:
    """The label by which nodes tell their type of GPU, and the values that are of the type that was asked for."""

    key: str
    values: tuple[str, ...]


def object_name(cluster: str) -> str:
    """Give the name of all objects of a cluster but the RayCluster, which has the cluster's own."""
    return f"raykit-{cluster}"


def objects(spec: ClusterSpec, *, token: str, code: bytes, gpu: GpuLabel | None, versions: Mapping[str, str]) -> list[Object]:
    """Give everything that is made for a cluster, in the order in which it is made.

    Args:
        spec: what is wanted.
        token: the cluster's.
        code: raykit itself, as a zip file.
        gpu: how nodes with the type of GPU are told; None where no type is asked for.
        versions: of ``ray``, ``python`` and ``raykit``.
    """
    name = object_name(spec.name)
    secret = _object("v1", "Secret", name, spec, type="Opaque", data={TOKEN_KEY: b64encode(token.encode()).decode()})
    config = _object("v1", "ConfigMap", name, spec, binaryData={CODE_KEY: b64encode(code).decode()})
    return [secret, config, *_rights(spec), ray_cluster(spec, gpu=gpu, versions=versions)]


def ray_cluster(spec: ClusterSpec, *, gpu: GpuLabel | None, versions: Mapping[str, str]) -> Object:
    """Give the RayCluster; see :func:`objects`."""
    image = spec.image or IMAGE.format(ray=versions["ray"], python=versions["python"].replace(".", ""))
    wanted: Object = {
        "rayVersion": versions["ray"],
        "authOptions": {"mode": "token", "secretName": object_name(spec.name)},
        "enableInTreeAutoscaling": spec.min_nodes != spec.max_nodes,
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0", **_object_store(spec)},  # noqa: S104  (KubeRay's probes)
            "template": _template(spec, _head_container(spec, image)),
        },
        "workerGroupSpecs": [
            {
                "groupName": GROUP,
                "replicas": spec.min_nodes,
                "minReplicas": spec.min_nodes,
                "maxReplicas": spec.max_nodes,
                "rayStartParams": _worker_slots(spec) | _object_store(spec),
                "labels": {"raykit.io/group": GROUP},
                "template": _template(spec, _worker_container(spec, image), gpu=gpu, is_worker=True),
            }
        ],
    }
    if wanted["enableInTreeAutoscaling"]:
        wanted["autoscalerOptions"] = {"idleTimeoutSeconds": WORKER_IDLE_S}
    made = _object(API_VERSION, "RayCluster", spec.name, spec) | {"spec": wanted}
    made["metadata"]["annotations"] = {SPEC_NOTE: _note(spec), VERSION_NOTE: json.dumps(dict(versions))}
    if spec.queue:
        made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] = spec.queue
    return made


def scaling(spec: ClusterSpec, *, now: int) -> list[Object]:
    """Give the JSON patch that lets a RayCluster with ``now`` workers have the nodes of ``spec``."""
    group = "/spec/workerGroupSpecs/0"
    wanted: dict[str, Any] = {
        f"/metadata/annotations/{SPEC_NOTE.replace('/', '~1')}": _note(spec),
        "/spec/enableInTreeAutoscaling": spec.min_nodes != spec.max_nodes,
        f"{group}/minReplicas": spec.min_nodes,
        f"{group}/maxReplicas": spec.max_nodes,
        f"{group}/replicas": min(max(now, spec.min_nodes), spec.max_nodes),
    }
    return [{"op": "add", "path": path, "value": value} for path, value in wanted.items()]


def suspension(why: str, *, now_unix_s: float) -> Object:
    """Give the patch that suspends a RayCluster."""
    return {"metadata": {"annotations": {WHY_NOTE: why, SINCE_NOTE: f"{now_unix_s:.0f}"}}, "spec": {"suspend": True}}


def return_from_suspension() -> Object:
    """Give the patch that brings it back."""
    return {"metadata": {"annotations": {WHY_NOTE: None, SINCE_NOTE: None}}, "spec": {"suspend": False}}


def node_slots(spec: ClusterSpec) -> tuple[float, float]:
    """CPU and GPU slots of each worker."""
    return spec.num_cpus or WORKER_CPUS, spec.gpus_per_node.count if spec.gpus_per_node else 0


def _note(spec: ClusterSpec) -> str:
    """Write the spec down without the way by which this person reaches the API server."""
    return json.dumps(asdict(replace(spec, kubeconfig="", context="", namespace="")))


def _object(version: str, kind: str, name: str, spec: ClusterSpec, **parts: Any) -> Object:
    labels = {**dict(spec.labels), "app.kubernetes.io/managed-by": "raykit", CLUSTER_LABEL: spec.name}
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "labels": labels}, **parts}


def _rights(spec: ClusterSpec) -> list[Object]:
    """Let the hub suspend its own cluster, and nothing else: so a closed laptop does not burn money."""
    if not spec.guards:
        return []
    name, account = object_name(spec.name), spec.service_account or object_name(spec.name)
    rule = {"apiGroups": ["ray.io"], "resources": ["rayclusters"], "resourceNames": [spec.name], "verbs": ["patch"]}
    group = "rbac.authorization.k8s.io"
    subjects = [{"kind": "ServiceAccount", "name": account}]
    role = {"apiGroup": group, "kind": "Role", "name": name}
    return [
        *([] if spec.service_account else [_object("v1", "ServiceAccount", name, spec)]),
        _object(f"{group}/v1", "Role", name, spec, rules=[rule]),
        _object(f"{group}/v1", "RoleBinding", name, spec, subjects=subjects, roleRef=role),
    ]


def _template(spec: ClusterSpec, container: Object, *, gpu: GpuLabel | None = None, is_worker: bool = False) -> Object:
    name = object_name(spec.name)
    account = spec.service_account or (name if spec.guards and not is_worker else "")
    volumes: list[Object] = [
        {"name": "raykit-secret", "secret": {"secretName": name}},
        {"name": "raykit-code", "configMap": {"name": name}},
        {"name": "raykit-data", "emptyDir": {}},
        *({"name": f"claim-{claim}", "persistentVolumeClaim": {"claimName": claim}} for claim, _ in spec.volumes),
    ]
    pod: Object = {"containers": [container], "volumes": volumes}
    if account:
        pod["serviceAccountName"] = account
    if spec.tolerations:
        pod["tolerations"] = [toleration(each) for each in spec.tolerations]
    if is_worker:
        pod |= _places(spec, gpu)
    return {"metadata": {"labels": {**dict(spec.labels), CLUSTER_LABEL: spec.name}}, "spec": pod}


def _places(spec: ClusterSpec, gpu: GpuLabel | None) -> Object:
    """Say where workers may go: labels of nodes, their type of GPU, and together in one domain."""
    affinity: Object = {}
    if gpu is not None:
        rule = {"key": gpu.key, "operator": "In", "values": list(gpu.values)}
        terms = {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}
        affinity["nodeAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": terms}
    if spec.together:
        mates = {"matchLabels": {CLUSTER_LABEL: spec.name, "ray.io/group": GROUP}}
        near = [{"labelSelector": mates, "topologyKey": spec.together}]
        affinity["podAffinity"] = {"requiredDuringSchedulingIgnoredDuringExecution": near}
    found: Object = {"affinity": affinity} if affinity else {}
    return found | ({"nodeSelector": dict(spec.node_selector)} if spec.node_selector else {})


def _head_container(spec: ClusterSpec, image: str) -> Object:
    """The head's container makes the hub when it has started, and again whenever it starts anew."""
    cpus, gpus = node_slots(spec)
    setting = {
        "name": spec.name,
        "address": f"127.0.0.1:{GCS_PORT}",
        "port": DOOR_PORT,
        "token_file": f"{SECRET_PATH}/{TOKEN_KEY}",
        "folder": DATA_PATH,
        "further_node": [cpus, gpus],
        **spec.guards,
        "sample_s": spec.sample_s,
        "elsewhere": True,
        "account_folder": ACCOUNT_PATH,
    }
    start = f"python -m raykit.engine.start {shlex.quote(json.dumps(setting))}"
    hook = {"exec": {"command": ["/bin/sh", "-c", f"{start} > {DATA_PATH}/hub.log 2>&1 &"]}}
    ports = [{"containerPort": GCS_PORT, "name": "gcs"}, {"containerPort": DOOR_PORT, "name": "raykit-door"}]
    resources = _resources(HEAD_CPUS, HEAD_MEMORY_BYTES)
    return _container("ray-head", spec, image, resources) | {"ports": ports, "lifecycle": {"postStart": hook}}


def _worker_container(spec: ClusterSpec, image: str) -> Object:
    cpus, gpus = node_slots(spec)
    resources = _resources(cpus, spec.memory_bytes or WORKER_MEMORY_BYTES)
    if gpus:
        resources["limits"]["nvidia.com/gpu"] = resources["requests"]["nvidia.com/gpu"] = f"{gpus:g}"
    return _container("ray-worker", spec, image, resources)


def _container(name: str, spec: ClusterSpec, image: str, resources: Object) -> Object:
    environment = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": f"{SECRET_PATH}/{TOKEN_KEY}",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "PYTHONPATH": python_path(f"{CODE_PATH}/{CODE_KEY}"),
    }
    mounts = [
        {"name": "raykit-secret", "mountPath": SECRET_PATH, "readOnly": True},
        {"name": "raykit-code", "mountPath": CODE_PATH, "readOnly": True},
        {"name": "raykit-data", "mountPath": DATA_PATH},
        *({"name": f"claim-{claim}", "mountPath": path} for claim, path in spec.volumes),
    ]
    variables = [{"name": key, "value": value} for key, value in environment.items()]
    return {"name": name, "image": image, "resources": resources, "env": variables, "volumeMounts": mounts}


def _resources(cpus: float, memory_bytes: int) -> Object:
    amounts = {"cpu": f"{cpus:g}", "memory": str(memory_bytes)}
    return {"limits": dict(amounts), "requests": dict(amounts)}


def _worker_slots(spec: ClusterSpec) -> dict[str, str]:
    """Name the slots: of several limits KubeRay takes any one for the GPUs."""
    cpus, gpus = node_slots(spec)
    return {"num-cpus": f"{cpus:g}", **({"num-gpus": f"{gpus:g}"} if gpus else {})}


def _object_store(spec: ClusterSpec) -> dict[str, str]:
    return {} if spec.object_store_bytes is None else {"object-store-memory": str(spec.object_store_bytes)}


def toleration(text: str) -> Object:
    """Read ``KEY``, ``KEY=VALUE`` or ``KEY=VALUE:EFFECT`` as a toleration.

    Raises:
        OptionError: no such effect.
    """
    rest, _, effect = text.partition(":")
    key, equals, value = rest.partition("=")
    if effect not in ("", "NoSchedule", "PreferNoSchedule", "NoExecute"):
        raise OptionError(
            f"--tolerate {text}: there is no effect {effect}.", "There are NoSchedule, PreferNoSchedule and NoExecute."
        )
    found: Object = {"key": key, "operator": "Equal", "value": value} if equals else {"key": key, "operator": "Exists"}
    return found | ({"effect": effect} if effect else {})
