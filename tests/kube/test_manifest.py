"""What is made on Kubernetes for a spec, by the schema of KubeRay."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace
from typing import Any

import jsonschema
import pytest

from raykit.cluster.code import zipped
from raykit.cluster.kuberay.manifest import DOOR_PORT, GpuLabel, objects, ray_cluster, scaling, toleration
from raykit.errors import OptionError
from raykit.spec import ClusterSpec
from raykit.spec.parse import parse
from tests.kube.strict import SCHEMA

VERSIONS = {"ray": "2.60.0", "python": "3.11", "raykit": "0.1.0"}
A100 = GpuLabel(key="nvidia.com/gpu.product", values=("NVIDIA-A100-SXM4-80GB",))
ALL = (
    "lab --on k8s --nodes 0:8 --gpus-per-node A100:4 --cpus 16 --memory 64G --image r/i:1 --namespace ml --service-account runner "
    "--tolerate gpu=yes:NoSchedule,spot --node-selector pool=big --together topology.kubernetes.io/zone --labels team=vision "
    "--volumes data=/data --idle 20m --object-store 2G"
)


def _spec(line: str) -> ClusterSpec:
    return parse(ClusterSpec, line, command="%ray up")


def _made(line: str, *, gpu: GpuLabel | None = None) -> dict[str, Any]:
    made = ray_cluster(_spec(line), gpu=gpu, versions=VERSIONS)
    jsonschema.Draft7Validator(SCHEMA["spec"]).validate(made["spec"])
    return made


def _worker(made: dict[str, Any]) -> dict[str, Any]:
    return made["spec"]["workerGroupSpecs"][0]["template"]["spec"]


@pytest.mark.parametrize("line", ["lab --on k8s", "lab --on k8s --nodes 3 --queue team-a", ALL])
def test_what_is_made_fits_kuberay_s_schema(line):
    _made(line, gpu=A100 if "A100" in line else None)


def test_the_schema_refuses_what_it_does_not_know():
    made = _made("lab --on k8s")
    made["spec"]["headGroupSpec"]["rayStartParam"] = {}
    with pytest.raises(jsonschema.ValidationError, match="rayStartParam"):
        jsonschema.Draft7Validator(SCHEMA["spec"]).validate(made["spec"])


def test_a_range_of_nodes_lets_ray_s_autoscaler_choose_and_a_number_does_not():
    ranged, fixed = _made("lab --on k8s --nodes 0:8")["spec"], _made("lab --on k8s --nodes 3")["spec"]
    group = ranged["workerGroupSpecs"][0]
    assert (ranged["enableInTreeAutoscaling"], group["replicas"], group["minReplicas"], group["maxReplicas"]) == (True, 0, 0, 8)
    assert (fixed["enableInTreeAutoscaling"], fixed["workerGroupSpecs"][0]["replicas"]) == (False, 3)
    assert "autoscalerOptions" not in fixed


def test_gpus_are_a_resource_of_the_worker_and_their_type_is_a_rule_on_nodes():
    made = _made(ALL, gpu=A100)
    pod = _worker(made)
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "16", "memory": "64000000000", "nvidia.com/gpu": "4"}
    rule = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"][0]
    assert rule["matchExpressions"][0]["values"] == ["NVIDIA-A100-SXM4-80GB"]
    assert made["spec"]["workerGroupSpecs"][0]["rayStartParams"]["num-gpus"] == "4"
    head = made["spec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert "nvidia.com/gpu" not in head["template"]["spec"]["containers"][0]["resources"]["limits"]


def test_places_tolerations_accounts_and_volumes_reach_the_pods():
    pod = _worker(_made(ALL, gpu=A100))
    assert pod["nodeSelector"] == {"pool": "big"}
    assert pod["tolerations"] == [
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"},
        {"key": "spot", "operator": "Exists"},
    ]
    assert pod["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][0]["topologyKey"].endswith("/zone")
    assert pod["serviceAccountName"] == "runner"
    assert {"name": "claim-data", "mountPath": "/data"} in pod["containers"][0]["volumeMounts"]


def test_an_effect_that_is_none_is_refused():
    with pytest.raises(OptionError, match="there is no effect Never"):
        toleration("gpu=yes:Never")


def test_kueue_s_label_is_on_the_raycluster_and_a_range_of_nodes_is_refused_with_it():
    assert _made("lab --on k8s --queue team-a")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    with pytest.raises(OptionError, match="Kueue admits a cluster whole"):
        _spec("lab --on k8s --queue team-a --nodes 0:8")


def test_the_token_stands_in_the_secret_alone_and_all_carries_the_cluster_s_label():
    made = objects(_spec(ALL), token="s3cr3t-token", code=b"zip", gpu=A100, versions=VERSIONS)
    assert [each["kind"] for each in made] == ["Secret", "ConfigMap", "Role", "RoleBinding", "RayCluster"]
    assert all(each["metadata"]["labels"]["raykit.io/cluster"] == "lab" for each in made)
    assert "s3cr3t-token" not in json.dumps(made)
    assert "czNjcjN0LXRva2Vu" in made[0]["data"]["auth_token"]


def test_the_hub_may_suspend_its_own_cluster_and_no_other():
    (role,) = (each for each in objects(_spec(ALL), token="t", code=b"", gpu=A100, versions=VERSIONS) if each["kind"] == "Role")
    assert role["rules"] == [{"apiGroups": ["ray.io"], "resources": ["rayclusters"], "resourceNames": ["lab"], "verbs": ["patch"]}]
    without = objects(_spec("lab --on k8s"), token="t", code=b"", gpu=None, versions=VERSIONS)
    assert [each["kind"] for each in without] == ["Secret", "ConfigMap", "RayCluster"]


def test_the_way_to_the_api_server_is_not_written_into_the_cluster():
    made = _made("lab --on k8s --namespace ml --context prod --kubeconfig /home/me/config")
    assert "/home/me" not in json.dumps(made)
    assert "prod" not in json.dumps(made)


def test_the_head_makes_the_hub_when_it_has_started():
    head = _made("lab --on k8s --idle 20m --idle-gpus 5% --price 4 --budget 200")["spec"]["headGroupSpec"]["template"]["spec"][
        "containers"
    ][0]
    command = head["lifecycle"]["postStart"]["exec"]["command"][-1]
    assert "raykit.engine.start" in command
    assert '"idle_s": 1200.0, "idle_gpu_utilization": 0.05, "budget": 200.0, "price_per_node_h": 4.0' in command
    assert command.endswith("&"), "the hook must not keep the head from starting"
    assert DOOR_PORT in [port["containerPort"] for port in head["ports"]]


def test_scaling_keeps_the_number_of_workers_where_it_is_within_the_range():
    spec = replace(_spec("lab --on k8s --nodes 4"), num_nodes=(2, 8))
    values = {step["path"].rpartition("/")[2]: step["value"] for step in scaling(spec, now=5)}
    assert (values["minReplicas"], values["maxReplicas"], values["replicas"], values["enableInTreeAutoscaling"]) == (2, 8, 5, True)


def test_the_code_that_travels_is_raykit_without_its_notebook_part_and_python_imports_from_it(tmp_path):
    file = tmp_path / "raykit.zip"
    file.write_bytes(zipped())
    names = zipfile.ZipFile(io.BytesIO(zipped())).namelist()
    assert not [name for name in names if name.startswith("raykit/jupyter")]
    assert len(zipped()) < 700_000, "a ConfigMap holds one MiB, in base64"
    code = "import raykit.engine.setting as s; from importlib.metadata import version; print(s.__file__, version('raykit'))"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env={"PYTHONPATH": str(file)}, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [f"{file}/raykit/engine/setting.py", "0.1.0"]
