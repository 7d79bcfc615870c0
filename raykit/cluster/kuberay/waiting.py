"""Why a cluster's pods wait, in sentences: what the API server knows of them, to reasons, pure.

Pods, events and the RayCluster are as the API gives them in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raykit.cluster.kuberay.manifest import GpuLabel
from raykit.errors import OptionError

Object = dict[str, Any]

GPU_LABELS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "k8s.amazonaws.com/accelerator", "gpu.nvidia.com/model")
NO_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
BAD_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CrashLoopBackOff")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why something waits. ``hopeless`` is what no waiting mends; ``remedy`` says what does."""

    text: str
    remedy: str = ""
    hopeless: bool = False

    @property
    def cause(self) -> str:
        """The text without what Kubernetes adds to the names of pods: the same for each pod that waits so."""
        return re.sub(r"-[a-z0-9]{5}\b", "", self.text)


def reasons(cluster: Object, pods: Sequence[Object], events: Sequence[Object]) -> list[Reason]:
    """Say why a RayCluster is not whole yet, the gravest reason first.

    Args:
        cluster: the RayCluster.
        pods: those that are its own.
        events: of the namespace; those of its pods and of itself are taken.
    """
    found = [reason for pod in pods for reason in _of_pod(pod, events)]
    found += _of_cluster(cluster, pods, events)
    unique = {reason.cause: reason for reason in found}
    return sorted(unique.values(), key=lambda reason: not reason.hopeless)


def _of_pod(pod: Object, events: Sequence[Object]) -> list[Reason]:
    name, status = pod["metadata"]["name"], pod.get("status") or {}
    if status.get("phase") in ("Running", "Succeeded") and _is_ready(status):
        return []
    found = []
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        why, message = waiting.get("reason", ""), waiting.get("message", "")
        if why in NO_IMAGE:
            text = f"The image {container.get('image', '')} cannot be pulled for {name} ({why}: {message})."
            found.append(Reason(text=text, remedy="Name one that exists and that this namespace may pull: --image", hopeless=True))
        elif why in BAD_CONTAINER:
            ended = ((container.get("lastState") or {}).get("terminated")) or {}
            last = f" It ended with {ended['reason']} ({ended.get('exitCode')})." if ended.get("reason") else ""
            found.append(Reason(text=f"The container {container['name']} of {name} does not start ({why}: {message}).{last}"))
        elif why:
            found.append(Reason(text=f"{name}: {why}."))
    found += [
        Reason(text=f"No node takes {name}: {condition.get('message') or condition.get('reason')}")
        for condition in status.get("conditions") or []
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False"
    ]
    return found or [Reason(text=f"{name}: {message}") for message in _messages(name, events)[-1:]]


def _of_cluster(cluster: Object, pods: Sequence[Object], events: Sequence[Object]) -> list[Reason]:
    """What keeps pods from being made at all: quota, admission, a queue, or no operator."""
    name, status = cluster["metadata"]["name"], cluster.get("status") or {}
    found = []
    for message in _messages(name, events):
        if "exceeded quota" in message:
            found.append(
                Reason(text=f"The namespace's quota does not allow it: {message}", remedy="Ask for less, or for more quota.")
            )
        elif "denied" in message or "forbidden" in message:
            found.append(Reason(text=f"Admission refuses its pods: {message}"))
    if status.get("reason"):
        found.append(Reason(text=f"KubeRay says: {status['reason']}"))
    queue = (cluster["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    if queue and (cluster["spec"].get("suspend")):
        found.append(Reason(text=f"Kueue has not admitted it yet from the queue {queue}."))
    if not found and not pods and not status:
        text = "No pod of it was made yet: KubeRay's operator has said nothing."
        found.append(Reason(text=text, remedy="Is the operator installed and does it watch this namespace?"))
    return found


def _messages(name: str, events: Sequence[Object]) -> list[str]:
    """Warnings about an object, the newest last."""
    about = [each for each in events if each.get("involvedObject", {}).get("name") == name and each.get("type") == "Warning"]
    about.sort(key=lambda each: each.get("lastTimestamp") or each.get("eventTime") or "")
    return [f"{each.get('reason', '')}: {each.get('message', '')}" for each in about]


def _is_ready(status: Object) -> bool:
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in status.get("conditions") or [])


def gpu_label(kind: str, nodes: Sequence[Object]) -> GpuLabel:
    """Find the label and the values by which nodes tell that they have GPUs of a type: ``A100`` is in ``NVIDIA-A100-SXM4-80GB``.

    Raises:
        OptionError: no node has such a GPU; the types that are there are named.
    """
    types: dict[str, set[str]] = {}
    for node in nodes:
        for key, value in (node["metadata"].get("labels") or {}).items():
            if key in GPU_LABELS:
                types.setdefault(key, set()).add(value)
    for key, values in types.items():
        fitting = sorted(value for value in values if kind.lower() in re.split(r"[^a-z0-9]+", value.lower()) or kind == value)
        if fitting:
            return GpuLabel(key=key, values=tuple(fitting))
    there = ", ".join(sorted(set().union(*types.values()))) if types else "none that say so by a label"
    raise OptionError(
        f"--gpus-per-node {kind}: no node of this Kubernetes has a GPU of that type; there are: {there}.",
        "Name one of these; for nodes that a cloud makes when they are asked for: --gpus-per-node N --node-selector KEY=VALUE",
    )
