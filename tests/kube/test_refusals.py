"""What a Kubernetes can refuse, each with its sentence, and nothing left behind."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from raykit.client import session
from raykit.cluster import record as records
from raykit.cluster.kuberay.provider import KubeRay, check_python
from raykit.errors import ClusterDiffersError, ClusterError, MissingPackageError, NoClusterError, OptionError
from raykit.spec import ClusterSpec
from raykit.spec.cluster import NodeGpus
from tests.kube.conftest import Kubernetes
from tests.kube.standin import StandIn

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture
def spec(kubernetes: Kubernetes) -> ClusterSpec:
    return ClusterSpec(name="lab", place="k8s", kubeconfig=kubernetes.kubeconfig, num_nodes=1)


def _up(spec: ClusterSpec, *, timeout_s: float = 60, told: Callable[[str], None] = print) -> Any:
    return KubeRay().up(spec, told=told, timeout_s=timeout_s)


def _refused(spec: ClusterSpec, words: str, kind: type[Exception] = ClusterError, **options: Any) -> None:
    with pytest.raises(kind, match=words):
        _up(spec, **options)
    assert records.find(spec.name) is None


def test_a_context_that_is_not_there_is_refused_with_those_that_are(spec: ClusterSpec) -> None:
    _refused(replace(spec, context="prod"), r"no context prod\.\nThere are: .*admin")


def test_a_kubeconfig_that_is_not_there_is_named(spec: ClusterSpec) -> None:
    _refused(replace(spec, kubeconfig="/nowhere/config"), "/nowhere/config")


def test_a_machine_that_knows_no_kubernetes_says_what_to_name(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    _refused(ClusterSpec(name="lab", place="k8s"), r"no kubeconfig, and this is no pod of one\.\n.*--kubeconfig FILE")


def test_credentials_that_have_expired_say_so(spec: ClusterSpec) -> None:
    _refused(replace(spec, context="expired"), "have expired or are wrong")


def test_a_server_that_does_not_answer_is_named(spec: ClusterSpec) -> None:
    _refused(replace(spec, context="nowhere"), r"nowhere does not answer at http://127\.0\.0\.1:9")


def test_a_missing_right_is_told_with_its_verb_and_its_resource(spec: ClusterSpec) -> None:
    _refused(replace(spec, context="guest"), r'cannot get resource "rayclusters"')


ALL_BUT = {
    "secrets": ("get", "create", "list", "delete"),
    "configmaps": ("get", "create", "list", "delete"),
    "pods": ("get", "list"),
    "events": ("list",),
    "rayclusters": ("get", "create", "list", "patch", "delete"),
    "pods/portforward": ("get", "create"),
}
"""What up and down need, as docs/kubernetes.md says it."""


@pytest.mark.parametrize(("resource", "verb"), [("rayclusters", "create"), ("pods/portforward", "create"), ("pods", "list")])
def test_a_right_that_is_missing_in_the_middle_of_up_is_told_and_leaves_nothing(
    kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec, resource: str, verb: str
) -> None:
    lacking = () if resource == "pods/portforward" else tuple(each for each in ALL_BUT[resource] if each != verb)
    with granted(kubernetes, ALL_BUT | {resource: lacking}):
        _refused(replace(spec, context="guest"), rf'cannot \w+ resource "{resource}"')
    _wait_until(lambda: kubernetes.objects() == [])


def test_the_rights_that_are_written_down_are_enough(kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec) -> None:
    with granted(kubernetes, ALL_BUT):
        _up(replace(spec, context="guest"))
        assert KubeRay().down("lab") is True
    assert [left for left in kubernetes.objects() if "guests" not in left] == []


def test_a_type_of_gpu_that_no_node_has_is_refused_with_those_that_are_there(kubernetes: Kubernetes, spec: ClusterSpec) -> None:
    _refused(replace(spec, gpus_per_node=NodeGpus(kind="H300", count=8)), "there are: NVIDIA-A100-SXM4-80GB", OptionError)
    assert kubernetes.objects() == []


def test_an_image_that_does_not_exist_ends_up_at_once(kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec) -> None:
    _refused(replace(spec, image="example.com/missing:1"), r"The image example.com/missing:1 cannot be pulled .*ErrImagePull")
    operator.look()
    assert [left for left in kubernetes.objects() if not left.startswith("Pod")] == []


def test_pods_that_no_node_takes_are_told_with_the_scheduler_s_words(
    kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec
) -> None:
    cluster = session.Cluster(_up(replace(spec, node_selector=(("disk", "none"),)))[0])
    try:
        _wait_until(lambda: "didn't match Pod's node affinity" in cluster.health().why)
        assert cluster.health().state == "up", "the head has no selector: only workers wait"
        assert "No node takes lab-worker" in repr(cluster)
    finally:
        KubeRay().down("lab")


def test_a_quota_that_allows_no_pod_is_told_and_nothing_is_left(
    kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec
) -> None:
    told: list[str] = []
    with _no_quota(kubernetes):
        _refused(spec, "given up waiting.*quota does not allow it.*exceeded quota", timeout_s=2, told=told.append)
        # Before the quota is lifted: the operator may be at work on what was there a moment ago.
        assert kubernetes.objects() == []
    assert sum("exceeded quota" in sentence for sentence in told) == 2, "once for the head, once for the worker"


def test_a_kubernetes_without_kuberay_is_refused_with_what_to_install(kubernetes: Kubernetes, spec: ClusterSpec) -> None:
    kubernetes.api.remove_kuberay()
    try:
        _refused(spec, r"(?s)knows no RayCluster.*KubeRay has to be installed")
    finally:
        kubernetes.api.install_kuberay()


def test_the_package_that_is_missing_is_named_with_its_pip_line(spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kubernetes", None)
    _refused(spec, r"pip install 'raykit\[kuberay\]'", MissingPackageError)


def test_an_image_of_another_python_is_refused_with_both_versions() -> None:
    with pytest.raises(ClusterError, match=r"has Python 3\.8; this kernel is Python 3"):
        check_python({"python": "3.8"}, "lab")


def test_a_plan_is_checked_by_the_api_server_and_makes_nothing(kubernetes: Kubernetes, spec: ClusterSpec) -> None:
    plan = session.plan_spec(replace(spec, num_nodes=(0, 8), num_cpus=2, idle_s=60))
    assert "0 to 8 workers of cpu 2" in repr(plan)
    assert "Its price is not known here. Nothing was made." in repr(plan)
    assert kubernetes.objects() == []
    with pytest.raises(ClusterError, match="not allowed"):
        session.plan_spec(replace(spec, context="guest"))


def test_a_raycluster_of_somebody_else_is_left_alone(kubernetes: Kubernetes, spec: ClusterSpec) -> None:
    body = {"headGroupSpec": {"rayStartParams": {}, "template": {"spec": {"containers": [{"name": "h", "image": "i"}]}}}}
    kubernetes.admin.create({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "lab"}, "spec": body})
    try:
        _refused(spec, "raykit did not make")
        assert kubernetes.objects() == ["RayCluster lab"]
    finally:
        kubernetes.admin.delete("RayCluster", "lab")


def test_an_interrupt_in_the_middle_of_up_leaves_nothing(kubernetes: Kubernetes, spec: ClusterSpec) -> None:
    """Without an operator the cluster waits, and says why; the sentence is when a person has had enough."""

    def interrupted(_: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _up(spec, told=interrupted)
    assert kubernetes.objects() == []
    assert records.find("lab") is None


def test_an_up_that_was_killed_in_the_middle_is_taken_up_by_the_next(
    kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec
) -> None:
    """What a killed one leaves is some of its objects; the Secret among them holds the token."""
    _up(spec)
    kubernetes.admin.delete("RayCluster", "lab")
    assert KubeRay().down("lab") is False
    assert kubernetes.objects() == [], "down finds what is left without a RayCluster"
    record, _ = _up(spec)
    token = record.token
    kubernetes.admin.delete("RayCluster", "lab")
    kubernetes.admin.delete("ConfigMap", "raykit-lab")
    record.remove()
    _wait_until(lambda: not kubernetes.admin.find("Pod"))
    again, word = _up(spec)
    assert (again.token, word) == (token, "is up")
    assert KubeRay().down("lab") is True
    assert kubernetes.objects() == []


def test_two_that_start_the_same_cluster_at_once_get_one(kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec) -> None:
    words: list[str] = []
    threads = [threading.Thread(target=lambda: words.append(_up(spec)[1])) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(words) == ["is up", "is up already"]
    assert len(kubernetes.admin.find("RayCluster")) == 1
    KubeRay().down("lab")


def test_another_machine_finds_the_cluster_by_its_name_and_its_token(
    kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec, home: Any
) -> None:
    first, _ = _up(spec)
    home("elsewhere")
    assert records.find("lab") is None
    second, word = _up(spec)
    assert (word, second.token) == ("is up already", first.token)
    with pytest.raises(ClusterDiffersError, match="--cpus"):
        _up(replace(spec, num_cpus=3))
    KubeRay().down("lab")
    home("home")
    assert KubeRay().status(first).state == "gone"
    with pytest.raises(NoClusterError, match="has no RayCluster of that name"):
        session.get("lab")


def test_a_name_stands_for_one_place(kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec) -> None:
    _up(spec)
    try:
        with pytest.raises(ClusterDiffersError, match=r"namespace default; asked for .*namespace kube-system"):
            _up(replace(spec, namespace="kube-system"))
        with pytest.raises(ClusterDiffersError, match="--on is k8s, asked fake"):
            session.up("lab", place="fake")
    finally:
        KubeRay().down("lab")


def test_the_tunnel_reaches_a_new_head_without_being_made_anew(
    kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec
) -> None:
    record, _ = _up(spec)
    cluster = session.Cluster(record)
    try:
        assert cluster.door.ping()["name"] == "lab"
        (head,) = (pod for pod in kubernetes.admin.find("Pod") if pod["metadata"]["labels"]["ray.io/node-type"] == "head")
        kubernetes.admin.delete("Pod", head["metadata"]["name"])
        _wait_until(lambda: head["metadata"]["name"] not in [pod["metadata"]["name"] for pod in kubernetes.admin.find("Pod")])
        _wait_until(lambda: cluster.is_alive)
        cluster.wait_for_door()
        assert cluster.door.ping()["name"] == "lab"
    finally:
        cluster.close()
        KubeRay().down("lab")


def test_a_suspended_cluster_says_who_suspended_it_and_up_brings_it_back(
    kubernetes: Kubernetes, operator: StandIn, spec: ClusterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = session.up_spec(spec)
    assert "suspended" in session.suspend()
    with pytest.raises(ClusterError, match="suspended: a person asked for it"):
        session.get("lab")
    assert session.up_spec(spec).found.startswith("is up again")
    cluster.close()
    assert "is down" in session.down()
    assert kubernetes.objects() == []


def _wait_until(ready: Callable[[], bool], timeout_s: float = 30) -> None:
    import time

    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@contextmanager
def granted(kubernetes: Kubernetes, rights: dict[str, tuple[str, ...]]) -> Iterator[None]:
    """Give the guest these rights in the namespace and no others."""
    if kubernetes.kind == "strict":
        before = kubernetes.api.rights[kubernetes.tokens["guest"]]
        kubernetes.api.rights[kubernetes.tokens["guest"]] = lambda verb, kind: verb in rights.get(kind, ())
        try:
            yield
        finally:
            kubernetes.api.rights[kubernetes.tokens["guest"]] = before
        return
    rules = [{"apiGroups": ["", "ray.io"], "resources": [kind], "verbs": list(verbs)} for kind, verbs in rights.items() if verbs]
    group = "rbac.authorization.k8s.io"
    role = {"apiVersion": f"{group}/v1", "kind": "Role", "metadata": {"name": "guests"}, "rules": rules}
    binding = {
        "apiVersion": f"{group}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": "guests"},
        "subjects": [{"kind": "User", "name": "guest", "apiGroup": group}],
        "roleRef": {"kind": "Role", "name": "guests", "apiGroup": group},
    }
    kubernetes.admin.create(role)
    kubernetes.admin.create(binding)
    try:
        yield
    finally:
        kubernetes.admin.delete("RoleBinding", "guests")
        kubernetes.admin.delete("Role", "guests")


class _no_quota:  # noqa: N801  (reads as a block)
    """A namespace whose quota of pods is used up."""

    def __init__(self, kubernetes: Kubernetes) -> None:
        self._kubernetes = kubernetes

    def __enter__(self) -> None:
        if self._kubernetes.kind == "strict":
            self._kubernetes.api.quota_of_pods = 0
            return
        path = "/api/v1/namespaces/default/resourcequotas"
        quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": {"pods": "0"}}}
        self._kubernetes.api.ask("POST", path, quota)
        status = quota | {"status": {"hard": {"pods": "0"}, "used": {"pods": "0"}}}
        self._kubernetes.api.ask("PUT", f"{path}/small/status", status)

    def __exit__(self, *_: object) -> None:
        if self._kubernetes.kind == "strict":
            self._kubernetes.api.quota_of_pods = None
        else:
            self._kubernetes.api.ask("DELETE", "/api/v1/namespaces/default/resourcequotas/small")
