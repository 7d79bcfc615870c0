"""The provider of clusters on Kubernetes.

The RayCluster in the namespace is the truth; the record here says which namespace that is, and holds the token. Each
step of ``up`` makes one object or finds it made, so one that was cut off is taken up where it stopped.
"""

from __future__ import annotations

import json
import secrets
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path

from raykit.cluster import record as records
from raykit.cluster.base import Plan, Provider, Started, Status, Told, price_words, refuse_difference, versions_here
from raykit.cluster.code import zipped
from raykit.cluster.home import private_folder, write_secret
from raykit.cluster.kuberay import manifest
from raykit.cluster.kuberay.api import MADE, Kube, RefusedError, label_of, pod_named, pods_of, reach
from raykit.cluster.kuberay.manifest import (
    CLUSTER_LABEL,
    SINCE_NOTE,
    SPEC_NOTE,
    TOKEN_KEY,
    VERSION_NOTE,
    WHY_NOTE,
    GpuLabel,
    Object,
    object_name,
)
from raykit.cluster.kuberay.tunnel import Tunnel
from raykit.cluster.kuberay.waiting import GPU_LABELS, Reason, gpu_label, reasons
from raykit.cluster.record import ClusterRecord, KubeRecord
from raykit.codec import validate
from raykit.errors import ClusterDiffersError, ClusterError
from raykit.spec import ClusterSpec
from raykit.wire.door import Door, DoorClosedError

LOOK_S = 0.5
MACHINES_TIMEOUT_S = 1800.0  # a cloud may have to make the machine first, and the image has gigabytes
GONE_TIMEOUT_S = 60.0


class KubeRay(Provider):
    """Kubernetes, where KubeRay's operator is installed."""

    look_s = LOOK_S

    def plan(self, spec: ClusterSpec) -> Plan:
        """Say what ``up`` would make; the API server checks each object as if it was made."""
        with _kube(spec) as kube:
            things = [("place", f"the context {kube.context}, namespace {kube.namespace}; its API server agrees to each object")]
            for each in _objects(spec, kube, token="0" * 64):
                there = "" if _ensure(kube, each, dry_run=True) else "; it is there already"
                things.append((f"{each['kind']} {each['metadata']['name']}", _words(each) + there))
        return Plan(name=spec.name, things=tuple(things), price=price_words(spec))

    def up(self, spec: ClusterSpec, *, told: Told, timeout_s: float = MACHINES_TIMEOUT_S) -> Started:
        deadline = time.monotonic() + timeout_s
        with records.locked(spec.name), _kube(_as_found(spec)) as kube:
            _refuse_second_place(spec.name, kube)
            found = kube.get("RayCluster", spec.name)
            if found is None:
                return _make(spec, kube, deadline, told), "is up"
            record = _adopt(found, kube, spec)
            refuse_difference(record, spec)
            word = "is up already"
            if found["spec"].get("suspend") and not spec.queue:
                kube.patch("RayCluster", spec.name, manifest.return_from_suspension())
                word = "is up again; the runs that it had are lost"
            _wait(record, kube, deadline, told)
            return record, word

    def status(self, record: ClusterRecord) -> Status:
        with _kube_of(record) as kube:
            found = kube.get("RayCluster", record.name)
            if found is None:
                return Status(state="gone", why=f"the namespace {kube.namespace} has no RayCluster of that name")
            pods = kube.find("Pod", pods_of(record.name))
            waiting = reasons(found, pods, kube.events())
        why = waiting[0].text if waiting else ""
        if found["spec"].get("suspend"):
            notes = found["metadata"].get("annotations") or {}
            since = notes.get(SINCE_NOTE)
            return Status(
                state="suspended",
                why=notes.get(WHY_NOTE) or why or "nobody wrote down why",
                since_unix_s=float(since) if since else None,
            )
        return Status(state="up", why=why) if pod_named(pods, "head") else Status(state="starting", why=why)

    def scale(self, record: ClusterRecord, num_nodes: int | tuple[int, int]) -> ClusterRecord:
        wanted = replace(record.spec, num_nodes=num_nodes)
        with _kube_of(record) as kube:
            found = kube.get("RayCluster", record.name)
            if found is None:
                raise ClusterError(
                    f"The namespace {kube.namespace} has no RayCluster {record.name}.", f"Make it: %ray up {record.name} --on k8s"
                )
            now = found["spec"]["workerGroupSpecs"][0].get("replicas", 0)
            kube.patch("RayCluster", record.name, manifest.scaling(wanted, now=now))
        scaled = replace(record, spec=wanted)
        scaled.save()
        return scaled

    def suspend(self, record: ClusterRecord) -> None:
        with _kube_of(record) as kube:
            kube.patch("RayCluster", record.name, manifest.suspension("a person asked for it", now_unix_s=time.time()))

    def down(self, name: str) -> bool:
        with records.locked(name):
            record = records.find(name)
            if not isinstance(record, KubeRecord):
                return False
            with _kube_of(record) as kube:
                was_there = _delete_all(kube, record.spec)
                _wait_for_end(kube, name)
            (record.folder / "token").unlink(missing_ok=True)
            record.remove()
            return was_there

    def logs(self, record: ClusterRecord, *, tail: int = 200) -> str:
        lines = []
        with _kube_of(record) as kube:
            for pod in kube.find("Pod", pods_of(record.name)):
                for container in pod["spec"]["containers"]:
                    name = f"{pod['metadata']['name']} {container['name']}"
                    try:
                        text = kube.log(pod["metadata"]["name"], container["name"], tail=tail)
                    except RefusedError as refused:
                        text = f"cannot be read: {refused.problem}"
                    lines += [f"{name} | {line}" for line in text.splitlines()]
        return "\n".join(lines)

    def connect(self, record: ClusterRecord) -> Tunnel:
        return Tunnel(partial(_kube_of, record), record.name)


def _kube(spec: ClusterSpec) -> Kube:
    return reach(kubeconfig=spec.kubeconfig, context=spec.context, namespace=spec.namespace)


def _kube_of(record: ClusterRecord) -> Kube:
    assert isinstance(record, KubeRecord)
    return reach(kubeconfig=record.spec.kubeconfig, context=record.context, namespace=record.namespace)


def _as_found(spec: ClusterSpec) -> ClusterSpec:
    """Look where the cluster was made, unless another place is named: the current context may be another by now."""
    record = records.find(spec.name)
    if not isinstance(record, KubeRecord):
        return spec
    return replace(spec, context=spec.context or record.context, namespace=spec.namespace or record.namespace)


def _refuse_second_place(name: str, kube: Kube) -> None:
    """Let no name stand for clusters in two namespaces.

    Raises:
        ClusterDiffersError: it is in another one.
    """
    record = records.find(name)
    if not isinstance(record, KubeRecord) or (record.context, record.namespace) == (kube.context, kube.namespace):
        return
    with _kube_of(record) as other:
        is_there = other.get("RayCluster", name) is not None
    if is_there:
        raise ClusterDiffersError(
            f"The cluster {name} is in the context {record.context}, namespace {record.namespace}; "
            f"asked for the context {kube.context}, namespace {kube.namespace}.",
            f"Use it as it is (%ray use {name}), give the new one another name, or end it first: %ray down {name}",
        )


def _objects(spec: ClusterSpec, kube: Kube, *, token: str) -> list[Object]:
    here = versions_here()
    versions = {what: str(here[f"{what}_version"]) for what in ("ray", "python", "raykit")}
    return manifest.objects(spec, token=token, code=zipped(), gpu=_gpu(spec, kube), versions=versions)


def _gpu(spec: ClusterSpec, kube: Kube) -> GpuLabel | None:
    if spec.gpus_per_node is None or not spec.gpus_per_node.kind:
        return None
    try:
        return gpu_label(spec.gpus_per_node.kind, kube.find("Node"))
    except RefusedError as refused:
        if refused.status != HTTPStatus.FORBIDDEN:
            raise
        # Who may not list nodes has to know the label's exact value.
        return GpuLabel(key=GPU_LABELS[0], values=(spec.gpus_per_node.kind,))


def _make(spec: ClusterSpec, kube: Kube, deadline: float, told: Told) -> KubeRecord:
    """Make what is not there yet and wait until it is up; on an error or an interrupt what was made is deleted."""
    token = _token(spec.name, kube) or secrets.token_hex(32)
    objects = _objects(spec, kube, token=token)
    # Written before anything is made: so `down` finds what a killed one leaves.
    _write_down(spec, kube, token, {what: str(value) for what, value in versions_here().items() if what.endswith("_version")})
    made: list[Object] = []
    with _deleted_on_error(kube, spec.name, made):
        for each in objects:
            if _ensure(kube, each):
                made.append(each)  # noqa: PERF401  (what was made is known when a later one fails)
        found = kube.get("RayCluster", spec.name)
        if found is None:
            raise ClusterError(f"The RayCluster {spec.name} was deleted while it was made.", "Is somebody else at it?")
        record = _adopt(found, kube, spec)
        refuse_difference(record, spec)
        _wait(record, kube, deadline, told)
    return record


def _ensure(kube: Kube, wanted: Object, *, dry_run: bool = False) -> bool:
    """Make an object, and say whether it was not there."""
    try:
        kube.create(wanted, dry_run=dry_run)
    except RefusedError as refused:
        if refused.status != HTTPStatus.CONFLICT:
            raise
        return False
    return True


def _token(name: str, kube: Kube) -> str | None:
    """Give the token that the cluster has, so that `up` after a crash, or from another machine, finds its door open."""
    secret = kube.get("Secret", object_name(name))
    return None if secret is None else b64decode(secret["data"][TOKEN_KEY]).decode()


def _adopt(found: Object, kube: Kube, asked: ClusterSpec) -> KubeRecord:
    """Write down a RayCluster that is there as a cluster of this person's, reached as this person reaches it.

    Raises:
        ClusterError: raykit did not make it.
    """
    meta = found["metadata"]
    name, notes = str(meta["name"]), meta.get("annotations") or {}
    token = _token(name, kube)
    if (meta.get("labels") or {}).get(CLUSTER_LABEL) != name or SPEC_NOTE not in notes or token is None:
        raise ClusterError(
            f"The namespace {kube.namespace} has a RayCluster {name} that raykit did not make, or whose Secret is gone.",
            "Give yours another name.",
        )
    written: ClusterSpec = validate(ClusterSpec, json.loads(notes[SPEC_NOTE]))
    spec = replace(written, kubeconfig=asked.kubeconfig, context=asked.context, namespace=asked.namespace)
    versions = json.loads(notes[VERSION_NOTE])
    return _write_down(spec, kube, token, {f"{what}_version": versions[what] for what in ("ray", "python", "raykit")})


def _write_down(spec: ClusterSpec, kube: Kube, token: str, versions: dict[str, str]) -> KubeRecord:
    token_file = private_folder(records.cluster_folder(spec.name)) / "token"
    write_secret(token_file, token)
    known = records.find(spec.name)
    record = KubeRecord(
        spec=spec,
        token_file=str(token_file),
        created_unix_s=known.created_unix_s if known else time.time(),
        context=kube.context,
        namespace=kube.namespace,
        **versions,
    )
    record.save()
    return record


def _wait(record: KubeRecord, kube: Kube, deadline: float, told: Told) -> None:
    """Wait until the door answers, and say why it does not yet.

    Raises:
        ClusterError: something that no waiting mends, or the time is over.
    """
    said: set[str] = set()
    seen: set[str] = set()  # a reason is told at its second sight: most that are there at first are gone half a second later
    with closing(Tunnel(partial(_kube_of, record), record.name)) as way, closing(Door(way.url, record.token)) as door:
        while True:
            with suppress(DoorClosedError):
                check_python(door.ping(timeout_s=5), record.name)
                return
            if isinstance(way.failure, RefusedError) and way.failure.status == HTTPStatus.FORBIDDEN:
                raise way.failure
            waiting = _reasons(kube, record.name)
            for reason in waiting:
                if reason.hopeless:
                    raise ClusterError(reason.text, reason.remedy)
                if reason.cause in seen - said:
                    said.add(reason.cause)
                    told(f"{record.name} waits. {reason.text} {reason.remedy}".rstrip())
            seen = {reason.cause for reason in waiting}
            if time.monotonic() > deadline:
                why = " ".join(reason.text for reason in waiting) or "Its head runs, and its hub does not answer."
                raise ClusterError(f"The cluster {record.name} was given up waiting. {why}", f"See %ray up {record.name} --help.")
            time.sleep(LOOK_S)


def _reasons(kube: Kube, name: str) -> list[Reason]:
    found = kube.get("RayCluster", name)
    if found is None:
        raise ClusterError(f"The RayCluster {name} was deleted while it started.", f"Make it again: %ray up {name} --on k8s")
    return reasons(found, kube.find("Pod", pods_of(name)), kube.events())


def check_python(ping: Object, name: str) -> None:
    """Refuse a cluster whose image has another Python than this kernel.

    Raises:
        ClusterError: with both versions.
    """
    here = versions_here()["python_version"]
    there = ping.get("python", here)
    if there != here:
        raise ClusterError(
            f"The image of {name} has Python {there}; this kernel is Python {here}, whose pickled code it cannot read.",
            f"Name an image with Python {here}: --image, or use a kernel of Python {there}.",
        )


@contextmanager
def _deleted_on_error(kube: Kube, name: str, made: list[Object]) -> Iterator[None]:
    try:
        yield
    except BaseException:  # an interrupt too must leave nothing behind
        for each in reversed(made):
            kube.delete(each["kind"], each["metadata"]["name"])
        if (record := records.find(name)) is not None:
            record.remove()
            Path(record.token_file).unlink(missing_ok=True)
        raise


def _delete_all(kube: Kube, spec: ClusterSpec) -> bool:
    """Delete everything with the cluster's label, and say whether the RayCluster was there."""
    was_there = False
    # Who has no rights on roles could not ask for them: only what `up` makes of this spec is looked for.
    for kind in MADE if spec.guards else ("RayCluster", "ConfigMap", "Secret"):
        for each in kube.find(kind, label_of(spec.name)):
            kube.delete(kind, each["metadata"]["name"])
            was_there |= kind == "RayCluster"
    return was_there


def _wait_for_end(kube: Kube, name: str) -> None:
    """Wait until the cluster's pods are gone.

    Raises:
        ClusterError: some stay; they are named.
    """
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while pods := kube.find("Pod", pods_of(name)):
        if time.monotonic() > deadline:
            left = ", ".join(pod["metadata"]["name"] for pod in pods)
            raise ClusterError(
                f"The cluster {name} is deleted, but its pods are still there after {GONE_TIMEOUT_S:.0f} s: {left}.",
                f"See what holds them: kubectl -n {kube.namespace} describe pod {pods[0]['metadata']['name']}",
            )
        time.sleep(LOOK_S)


def _words(made: Object) -> str:
    if made["kind"] != "RayCluster":
        return {"Secret": "Ray's token", "ConfigMap": "raykit's code"}.get(made["kind"], "lets the hub suspend this cluster")
    group = made["spec"]["workerGroupSpecs"][0]
    container = group["template"]["spec"]["containers"][0]
    amounts = ", ".join(f"{what} {amount}" for what, amount in container["resources"]["limits"].items())
    least, most = group["minReplicas"], group["maxReplicas"]
    nodes = f"{least}" if least == most else f"{least} to {most}"
    return f"a head, and {nodes} workers of {amounts}; image {container['image']}"
