"""What Ray's launcher does with machines of Amazon's cloud, run as a program.

Ray's own steps find or make the key pair, the subnet and the security group, and start, tag and end instances;
its role for the head is left out, because no machine here starts others. All of it is private to Ray 2.60;
tests/ssh/test_launcher_contract.py holds the names.
"""

from __future__ import annotations

import os
import re
from datetime import datetime
from typing import Any

from raykit.engine.launchers.answer import NODE, answer, cluster_name

os.environ.setdefault("BOTO_MAX_RETRIES", "3")  # Ray's own are 12, which take half a minute to say that nobody answers
ALIVE = ["pending", "running", "stopping", "stopped"]
REMEDIES = {
    "AuthFailure": "They are wrong, or of another account: see aws sts get-caller-identity.",
    "InvalidClientTokenId": "They are wrong, or of another account: see aws sts get-caller-identity.",
    "SignatureDoesNotMatch": "The secret key is wrong.",
    "ExpiredToken": "Log in anew: aws sso login, or new keys.",
    "RequestExpired": "They have expired, or this machine's clock is wrong.",
    "UnauthorizedOperation": "Ask whoever gives rights for it.",
    "InvalidAMIID.NotFound": "Name an image of this region: --image ami-...",
    "InvalidAMIID.Malformed": "Name an image: --image ami-...",
    "InsufficientInstanceCapacity": "Name another type (--instance) or region (--region), or try later.",
    "VcpuLimitExceeded": "That is a quota of the account: ask for more, or for fewer or smaller machines.",
    "InstanceLimitExceeded": "That is a quota of the account: ask for more, or for fewer or smaller machines.",
    "MaxSpotInstanceCountExceeded": "That is a quota of the account: without --spot, or fewer.",
}
"""What to do, by AWS's codes of errors."""

NO_CREDENTIALS = "Log in (aws configure, aws sso login), or set AWS_PROFILE."


def plan(cloud: dict[str, Any]) -> dict[str, Any]:
    """Say what a machine of the type has; nothing is made."""
    return {"resources": _configured(cloud)["available_node_types"][NODE]["resources"]}


def look(cloud: dict[str, Any]) -> dict[str, Any]:
    """Give the cluster's machines by their numbers, those that are stopped too."""
    from ray.autoscaler.tags import TAG_RAY_CLUSTER_NAME

    provider = _provider(_config(cloud))
    filters = [
        {"Name": f"tag:{TAG_RAY_CLUSTER_NAME}", "Values": [cluster_name(cloud)]},
        {"Name": "instance-state-name", "Values": ALIVE},
    ]
    machines = [
        {
            "id": each.id,
            "number": int(next(tag["Value"] for tag in each.tags if tag["Key"] == "Name").rpartition("-")[2]),
            "state": each.state["Name"],
            "address": each.public_ip_address or each.private_ip_address,
            "key": os.path.expanduser(f"~/.ssh/{each.key_name}.pem"),
            "since_unix_s": moment_in(each.state_transition_reason or ""),
        }
        for each in provider.ec2.instances.filter(Filters=filters)
    ]
    return {"machines": sorted(machines, key=lambda each: each["number"])}


def rent(cloud: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """Start new machines of these numbers."""
    from ray.autoscaler._private.aws import config as steps
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

    config = _configured(cloud)
    config["head_node"] = {}
    for step in (steps._configure_key_pair, steps._configure_subnet, steps._configure_security_group):  # noqa: SLF001
        config = step(config)
    steps._check_ami(config)  # noqa: SLF001
    provider = _provider(config)
    for number in numbers:
        tags = {TAG_RAY_NODE_KIND: NODE, TAG_RAY_USER_NODE_TYPE: NODE, TAG_RAY_NODE_NAME: f"{cluster_name(cloud)}-{number}"}
        provider.create_node(dict(config["available_node_types"][NODE]["node_config"]), tags, 1)
    return look(cloud)


def start(cloud: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Start machines that are stopped, or are about to be."""
    provider = _provider(_config(cloud))
    provider.ec2.meta.client.get_waiter("instance_stopped").wait(InstanceIds=ids, WaiterConfig={"Delay": 2})
    provider.ec2.meta.client.start_instances(InstanceIds=ids)
    return look(cloud)


def stop(cloud: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Stop machines, which keep their disks."""
    _provider(_config(cloud)).ec2.meta.client.stop_instances(InstanceIds=ids)
    return look(cloud)


def end(cloud: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Give machines back."""
    _provider(_config(cloud)).ec2.meta.client.terminate_instances(InstanceIds=ids)
    return look(cloud)


VERBS: dict[str, Any] = {"plan": plan, "look": look, "rent": rent, "start": start, "stop": stop, "end": end}


def moment_in(reason: str) -> float | None:
    """Find when a machine changed its state, in seconds since the epoch; EC2 may write ``User initiated (2026-11-28 20:11:14 GMT)``."""
    found = re.search(r"\((\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?:GMT|UTC)\)", reason)
    return datetime.strptime(f"{found[1]} +0000", "%Y-%m-%d %H:%M:%S %z").timestamp() if found else None


def _config(cloud: dict[str, Any]) -> dict[str, Any]:
    spot = {"InstanceMarketOptions": {"MarketType": "spot"}} if cloud["spot"] else {}
    image = {"ImageId": cloud["image"]} if cloud["image"] else {}
    return {
        "cluster_name": cluster_name(cloud),
        "max_workers": 0,
        "provider": {"type": "aws", "region": cloud["region"], "cache_stopped_nodes": False},
        "auth": {"ssh_user": cloud["user"]},
        "available_node_types": {NODE: {"node_config": {"InstanceType": cloud["instance"], **image, **spot}, "resources": {}}},
        "head_node_type": NODE,
    }


def _configured(cloud: dict[str, Any]) -> dict[str, Any]:
    """Fill Ray's defaults in, and what AWS says of the type of machine."""
    from ray.autoscaler._private.providers import _get_node_provider_cls
    from ray.autoscaler._private.util import prepare_config

    config: dict[str, Any] = prepare_config(_config(cloud))
    filled: dict[str, Any] = _get_node_provider_cls(config["provider"]).fillout_available_node_types_resources(config)
    return filled


def _provider(config: dict[str, Any]) -> Any:
    from ray.autoscaler._private.providers import _get_node_provider

    return _get_node_provider(config["provider"], config["cluster_name"])


def _refusal(error: BaseException) -> list[str]:
    """Give what AWS, or Ray of it, refused, and what to do."""
    import botocore.exceptions as aws

    if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError | aws.TokenRetrievalError | aws.ProfileNotFound):
        return [f"AWS was not asked: {error}", NO_CREDENTIALS]
    code = getattr(error, "category", "") or getattr(error, "response", {}).get("Error", {}).get("Code", "")
    said = getattr(error, "description", "") or str(error)
    if code:
        return [f"AWS refused: {said} ({code})", REMEDIES.get(code, "")]
    if isinstance(error, aws.BotoCoreError):
        return [f"AWS does not answer: {said}", "Is this machine on the internet, and the region right (--region)?"]
    return [f"Ray's launcher gave up: {said or type(error).__name__}", ""]


if __name__ == "__main__":
    answer(VERBS, _refusal)
