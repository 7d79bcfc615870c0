"""What Ray's launcher does with machines of Google's cloud, run as a program.

Ray's own steps find or make the key pair and find the subnet, and create, start, stop and delete instances; its service
account for the head is left out, because no machine here starts others. All of it is private to Ray 2.60;
tests/ssh/test_launcher_contract.py holds the names.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

from raykit.engine.launchers.answer import NODE, RefusedError, answer, cluster_name

TIMEOUT_S = 30.0
LOOK_S, OPERATION_LOOKS, STOPPED_LOOKS = 1, 170, 85
NUM_KEYS = 10  # so many names Ray tries for the key's file
COMPUTE = "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE"  # gcloud's own variable
os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")  # who has no credentials is not looked for long on Google's own machines
os.environ.setdefault("GCE_METADATA_TIMEOUT", "1")
STATES = {
    "PROVISIONING": "pending",
    "STAGING": "pending",
    "REPAIRING": "pending",
    "RUNNING": "running",
    "PENDING_STOP": "stopping",
    "STOPPING": "stopping",
    "SUSPENDING": "stopping",
    "SUSPENDED": "stopped",
    "TERMINATED": "stopped",
}
"""What a machine's status is to raykit, by Google's words."""

NAME_WHAT_IS_THERE = (
    "Name what is there: a type (--machine), a zone (--region us-central1-a), an image (--image), a project (GOOGLE_CLOUD_PROJECT)."
)
REMEDIES = {
    "accessNotConfigured": "Switch it on: gcloud services enable compute.googleapis.com",
    "forbidden": "Ask whoever gives rights for it.",
    "IAM_PERMISSION_DENIED": "Ask whoever gives rights for it.",
    "notFound": NAME_WHAT_IS_THERE,
    "invalid": NAME_WHAT_IS_THERE,
    "authError": "Log in anew: gcloud auth application-default login",
    "quotaExceeded": "That is a quota of the project: ask for more, or for fewer or smaller machines.",
    "QUOTA_EXCEEDED": "That is a quota of the project: ask for more, or for fewer or smaller machines.",
    "ZONE_RESOURCE_POOL_EXHAUSTED": "Name another type (--machine) or zone (--region), or try later.",
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS": "Name another type (--machine) or zone (--region), or try later.",
}
"""What to do, by Google's reasons."""

LOG_IN = "Log in: gcloud auth application-default login, or set GOOGLE_APPLICATION_CREDENTIALS."


class Project:
    """The project that the credentials are of, or GOOGLE_CLOUD_PROJECT, and a cluster's zone in it."""

    def __init__(self, cloud: dict[str, Any]) -> None:
        import google.auth

        self.cloud, self.zone = cloud, cloud["region"]
        self.region = self.zone.rpartition("-")[0]
        credentials, self.name = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        self._credentials = credentials
        if not self.name:
            raise RefusedError("The credentials name no project of Google's cloud.", "Set GOOGLE_CLOUD_PROJECT.")

    @cached_property
    def compute(self) -> Any:
        from googleapiclient import discovery
        from ray.autoscaler._private.gcp import config as steps

        return discovery.build(
            "compute",
            "v1",
            credentials=self._credentials,
            requestBuilder=steps.build_request,
            cache_discovery=False,
            client_options={"api_endpoint": os.environ[COMPUTE]} if COMPUTE in os.environ else None,
        )

    @cached_property
    def instances(self) -> Any:
        from ray.autoscaler._private.gcp.node import GCPCompute

        return GCPCompute(self.compute, self.name, self.zone, cluster_name(self.cloud))

    @property
    def where(self) -> dict[str, str]:
        return {"project": self.name, "zone": self.zone}

    @property
    def config(self) -> dict[str, Any]:
        """What Ray's steps want to know."""
        return {
            "provider": {"type": "gcp", "project_id": self.name, "region": self.region, "availability_zone": self.zone},
            "auth": {"ssh_user": self.cloud["user"]},
            "available_node_types": {NODE: {"node_config": {}}},
        }

    @property
    def keys(self) -> Iterable[str]:
        """The files in which Ray keeps a private key for this user of the project, in its order."""
        from ray.autoscaler._private.util import generate_ssh_key_name, generate_ssh_key_paths

        for number in range(NUM_KEYS):
            name = generate_ssh_key_name("gcp", number, self.region, self.name, self.cloud["user"])
            yield generate_ssh_key_paths(name)[1]

    def machine_type(self) -> dict[str, Any]:
        found: dict[str, Any] = self.compute.machineTypes().get(**self.where, machineType=self.cloud["instance"]).execute()
        return found

    def found(self) -> list[dict[str, Any]]:
        """Give the instances of the cluster, those that are stopped too."""
        from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

        wanted = f"labels.{TAG_RAY_CLUSTER_NAME} = {cluster_name(self.cloud)}"
        all_, instances = list[dict[str, Any]](), self.compute.instances()
        request = instances.list(**self.where, filter=wanted)
        while request is not None:
            page = request.execute()
            all_ += page.get("items", [])
            request = instances.list_next(request, page)
        return all_

    def settle(self, operations: Sequence[dict[str, Any]]) -> None:
        """Wait until all are done."""
        for each in operations:
            self.instances.wait_for_operation(each, max_polls=OPERATION_LOOKS, poll_interval=LOOK_S)


def plan(cloud: dict[str, Any]) -> dict[str, Any]:
    """Say what a machine of the type has; nothing is made."""
    found = Project(cloud).machine_type()
    gpus = sum(each["guestAcceleratorCount"] for each in found.get("accelerators", ()))
    return {"resources": {"CPU": found["guestCpus"]} | ({"GPU": gpus} if gpus else {})}


def look(cloud: dict[str, Any]) -> dict[str, Any]:
    """Give the cluster's machines by their numbers, those that are stopped too."""
    from ray.autoscaler.tags import TAG_RAY_NODE_NAME

    project = Project(cloud)
    key = newest_of(project.keys)
    machines = [
        {
            "id": each["name"],
            "number": int(each["labels"][TAG_RAY_NODE_NAME].rpartition("-")[2]),
            "state": STATES.get(each["status"], each["status"].lower()),
            "address": _address(each),
            "key": key,
            "since_unix_s": moment_in(each.get("lastStopTimestamp", "")),
        }
        for each in project.found()
    ]
    return {"machines": sorted(machines, key=lambda each: each["number"])}


def rent(cloud: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """Start new machines of these numbers."""
    from ray.autoscaler._private.gcp import config as steps
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

    project = Project(cloud)
    has_gpus = bool(project.machine_type().get("accelerators"))
    config = steps._configure_key_pair(project.config, project.compute)  # noqa: SLF001
    try:
        config = steps._configure_subnet(config, project.compute)  # noqa: SLF001
    except KeyError as exc:
        raise RefusedError(
            f"The project {project.name} has no subnet in {project.region}.",
            "Make them: gcloud compute networks create default --subnet-mode auto",
        ) from exc
    wanted = config["available_node_types"][NODE]["node_config"] | {
        "machineType": cloud["instance"],
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": cloud["image"]}}],
        "scheduling": _scheduling(cloud, has_gpus=has_gpus),
    }
    begun = []
    for number in numbers:
        labels = {TAG_RAY_NODE_KIND: NODE, TAG_RAY_USER_NODE_TYPE: NODE, TAG_RAY_NODE_NAME: f"{cluster_name(cloud)}-{number}"}
        operation, _ = project.instances.create_instance(wanted, labels, wait_for_operation=False)
        begun.append(operation)
    project.settle(begun)
    return look(cloud)


def start(cloud: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Start machines that are stopped, or are about to be."""
    project = Project(cloud)
    for _ in range(STOPPED_LOOKS):
        if not [each for each in project.found() if each["name"] in ids and STATES.get(each["status"]) == "stopping"]:
            break
        time.sleep(LOOK_S)
    project.settle([project.instances.start_instance(each, wait_for_operation=False) for each in ids])
    return look(cloud)


def stop(cloud: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Stop machines, which keep their disks."""
    project = Project(cloud)
    for each in ids:
        project.instances.stop_instance(each, wait_for_operation=False)
    return look(cloud)


def end(cloud: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Give machines back, and wait until they are gone."""
    project = Project(cloud)
    project.settle([project.instances.delete_instance(each, wait_for_operation=False) for each in ids])
    return look(cloud)


VERBS: dict[str, Any] = {"plan": plan, "look": look, "rent": rent, "start": start, "stop": stop, "end": end}


def newest_of(keys: Iterable[str]) -> str:
    """Give the last that is there, empty for none: Ray makes a further one where the project knows none of this user any more."""
    return ([""] + [key for key in keys if os.path.exists(key)])[-1]


def moment_in(stamp: str) -> float | None:
    """Read ``2026-11-28T20:11:14.000-07:00`` as seconds since the epoch."""
    return datetime.fromisoformat(stamp).timestamp() if stamp else None


def _address(instance: dict[str, Any]) -> str:
    """Give where ssh finds a machine; one that does not run has no address in the world."""
    interface = _first(instance, "networkInterfaces")
    address: str = _first(interface, "accessConfigs").get("natIP") or interface.get("networkIP", "")
    return address


def _first(facts: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(iter(facts.get(name, ())), {})
    return found


def _scheduling(cloud: dict[str, Any], *, has_gpus: bool) -> dict[str, Any]:
    """Say what becomes of a machine when its host is mended, or wanted by another: no GPU moves with one."""
    if cloud["spot"]:
        return {"provisioningModel": "SPOT", "instanceTerminationAction": "STOP", "automaticRestart": False}
    return {"onHostMaintenance": "TERMINATE", "automaticRestart": True} if has_gpus else {}


def _refusal(error: BaseException) -> list[str]:
    """Give what Google, or Ray of it, refused, and what to do."""
    import google.auth.exceptions as auth
    import httplib2
    from googleapiclient.errors import HttpError

    if isinstance(error, auth.DefaultCredentialsError):
        return [f"Google was not asked: {error}", LOG_IN]
    if isinstance(error, auth.RefreshError):
        return [f"Google took no credentials: {error.args[0] if error.args else error}", LOG_IN]
    if isinstance(error, HttpError):
        said = json.loads(error.content)["error"] if error.content.lstrip().startswith(b"{") else {"message": error.reason}
        reason = _first(said, "errors").get("reason", "")
        return [f"Google refused: {said['message']} ({reason or error.status_code})", REMEDIES.get(reason, "")]
    if isinstance(error, httplib2.HttpLib2Error | auth.TransportError | OSError):
        return [f"Google does not answer: {error}", "Is this machine on the internet?"]
    if error.args and isinstance(error.args[0], dict) and (errors := error.args[0].get("errors")):  # of an operation
        return [f"Google refused: {errors[0].get('message', '')} ({errors[0]['code']})", REMEDIES.get(errors[0]["code"], "")]
    return [f"Ray's launcher gave up: {error or type(error).__name__}", ""]


if __name__ == "__main__":
    socket.setdefaulttimeout(TIMEOUT_S)
    answer(VERBS, _refusal)
