"""Why pods wait, from what the API server knows of them."""

import pytest

from raykit.cluster.kuberay.waiting import gpu_label, reasons
from raykit.errors import OptionError


def _pod(name="lab-head-abcde", **status):
    return {"metadata": {"name": name, "labels": {}}, "spec": {}, "status": status}


def _cluster(*, labels=None, suspend=False, status=None):
    return {"metadata": {"name": "lab", "labels": labels or {}}, "spec": {"suspend": suspend}, "status": status or {}}


def _event(about, message, *, reason="Failed", at="2026-01-01T00:00:00Z"):
    return {"involvedObject": {"name": about}, "type": "Warning", "reason": reason, "message": message, "lastTimestamp": at}


def _texts(*args):
    return [reason.text for reason in reasons(*args)]


def test_pods_that_are_ready_wait_for_nothing():
    ready = _pod(phase="Running", conditions=[{"type": "Ready", "status": "True"}])
    assert reasons(_cluster(), [ready], []) == []


def test_an_image_that_cannot_be_pulled_is_hopeless_and_comes_first():
    waiting = {"name": "ray-head", "image": "x:1", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
    late = _pod(
        "lab-worker-aaaaa", phase="Pending", conditions=[{"type": "PodScheduled", "status": "False", "message": "0/3 nodes"}]
    )
    found = reasons(_cluster(), [late, _pod(phase="Pending", containerStatuses=[waiting])], [])
    assert [reason.hopeless for reason in found] == [True, False]
    assert "x:1 cannot be pulled" in found[0].text
    assert "--image" in found[0].remedy


def test_pods_that_wait_for_the_same_are_one_reason():
    unfit = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]}
    assert len(_texts(_cluster(), [_pod("lab-worker-aaaaa", **unfit), _pod("lab-worker-bbbbb", **unfit)], [])) == 1


def test_a_container_that_falls_says_how_it_ended():
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    status = {"name": "ray-head", "state": state, "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
    assert "ended with OOMKilled (137)" in _texts(_cluster(), [_pod(phase="Running", containerStatuses=[status])], [])[0]


def test_quota_admission_queue_and_a_silent_operator_are_told_apart():
    quota = _event("lab", 'pods "x" is forbidden: exceeded quota: small')
    assert "quota does not allow" in _texts(_cluster(), [], [quota])[0]
    hook = _event("lab", 'admission webhook "policy" denied the request: no GPUs on Fridays')
    assert "Admission refuses" in _texts(_cluster(), [], [hook])[0]
    queued = _cluster(labels={"kueue.x-k8s.io/queue-name": "team-a"}, suspend=True)
    assert "Kueue has not admitted it yet from the queue team-a" in _texts(queued, [], [])[0]
    assert "operator has said nothing" in _texts(_cluster(), [], [])[0]


def test_without_a_status_the_newest_warning_about_the_pod_speaks():
    old = _event("lab-head-abcde", "old", at="2026-01-01T00:00:00Z")
    new = _event("lab-head-abcde", "MountVolume failed", reason="FailedMount", at="2026-01-01T00:01:00Z")
    assert _texts(_cluster(), [_pod(phase="Pending")], [new, old]) == ["lab-head-abcde: FailedMount: MountVolume failed"]


def test_a_short_name_finds_the_label_of_its_gpus_and_takes_no_other_for_it():
    nodes = [
        {"metadata": {"name": "a", "labels": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}}},
        {"metadata": {"name": "b", "labels": {"nvidia.com/gpu.product": "NVIDIA-A10"}}},
    ]
    assert gpu_label("A10", nodes).values == ("NVIDIA-A10",)
    assert gpu_label("a100", nodes).values == ("NVIDIA-A100-SXM4-80GB",)
    with pytest.raises(OptionError, match="NVIDIA-A10, NVIDIA-A100-SXM4-80GB"):
        gpu_label("H100", nodes)
    with pytest.raises(OptionError, match="none that say so by a label"):
        gpu_label("H100", [{"metadata": {"name": "c"}}])
