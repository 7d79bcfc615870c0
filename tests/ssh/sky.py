"""SkyPilot, on the cloud of :mod:`tests.ssh.moto`: its machines have a root of their own, which it may change as it likes.

SkyPilot is another environment's, as it is a user's, and its machines' image brings what it installs on them, because they
reach no network; tests/ssh/sky_image.sh makes both. Its catalog, which it would load from the internet, is a few lines here.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.ssh import moto
from tests.ssh.hosts import Network
from tests.ssh.moto import IMAGE, REGION, Ec2

SERVER_PORT = 46580  # SkyPilot's own
WAIT_S, FORGOTTEN_S = 60, 90
ROLE = "skypilot-v1"

CONFIG = """aws:
  remote_identity: LOCAL_CREDENTIALS
  ssh_proxy_command: {python} {folder}/proxy.py {folder}/addresses %h
"""
VMS = """InstanceType,AcceleratorName,AcceleratorCount,vCPUs,MemoryGiB,GpuInfo,Price,SpotPrice,Region,AvailabilityZone,Arch
m6i.large,,,2.0,8.0,,0.096,0.04,{region},usw2-az2,x86_64
m6i.xlarge,,,4.0,16.0,,0.192,0.08,{region},usw2-az2,x86_64
g5.xlarge,A10G,1.0,4.0,16.0,"{{'Gpus': [{{'Name': 'A10G', 'Count': 1.0, 'MemoryInfo': {{'SizeInMiB': 22888}}}}]}}",1.006,0.4,{region},usw2-az2,x86_64
"""
IMAGES = """Tag,Region,OS,OSVersion,ImageId,CreationDate,BaseImageId
skypilot:custom-cpu-ubuntu,{region},ubuntu,22.04,{image},20240101,{image}
skypilot:custom-gpu-ubuntu-cuda13,{region},ubuntu,22.04,{image},20240101,{image}
"""
QUOTAS = """InstanceType,QuotaCode,SpotQuotaCode
m6i.large,L-1216C47A,L-34B43A08
"""
ACCELERATORS = """AcceleratorName,Clouds
A10G,['AWS']
"""
SSH = """Include {folder}/.sky/generated/ssh/*
Host *
  IdentityFile {folder}/key
"""
CATALOG = {
    "aws/vms": VMS,
    "aws/images": IMAGES,
    "aws/instance_quota_mapping": QUOTAS,
    "common/accelerators": ACCELERATORS,
}


def missing() -> str:
    """Say why there is no SkyPilot here; empty when there is."""
    if not os.environ.get("RAYKIT_SKY") or not os.environ.get("RAYKIT_SKY_IMAGE"):
        return "needs SkyPilot and an image of its machines: tests/ssh/sky_image.sh FOLDER says how they are named"
    if lacking := [name for name in ("rsync", "sudo") if not shutil.which(name)]:
        return f"needs {' and '.join(lacking)}"
    with suppress(OSError), socket.create_connection(("127.0.0.1", SERVER_PORT), timeout=1):
        return f"a server of SkyPilot runs here already, at port {SERVER_PORT}"
    return moto.missing()


@contextmanager
def cloud(network: Network, setenv: Callable[[str, str], None]) -> Iterator[Ec2]:
    """Serve EC2 and SkyPilot for the block; ``setenv`` is given what reaches them."""
    home = network.folder
    for name, text in CATALOG.items():
        file = home / ".sky/catalogs/v8" / f"{name}.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(region=REGION, image=IMAGE))
    (home / ".sky/config.yaml").write_text(CONFIG.format(python=sys.executable, folder=home))
    (home / "sky-config").write_text(SSH.format(folder=home))
    setenv("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
    _wait_for_port()
    with moto.cloud(network, setenv, Path(os.environ["RAYKIT_SKY_IMAGE"])) as hypervisor:
        _lead_out(hypervisor)
        _give_role()
        try:
            yield hypervisor
        finally:
            subprocess.run([os.environ["RAYKIT_SKY"], "api", "stop"], capture_output=True, timeout=WAIT_S, check=True)


def _wait_for_port() -> None:
    """Wait until the connections of a server that has ended are forgotten: a minute, until which the next one does not start."""
    deadline = time.monotonic() + FORGOTTEN_S
    while time.monotonic() < deadline:
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", SERVER_PORT))
            return
        time.sleep(0.5)
    raise TimeoutError(f"port {SERVER_PORT} is taken")


def _lead_out(hypervisor: Ec2) -> None:
    """Have the network of moto's account lead out, as that of each real one does: SkyPilot looks for a way."""
    ec2 = hypervisor.ec2
    (vpc,) = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc["VpcId"])
    for table in ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [vpc["VpcId"]]}])["RouteTables"]:
        ec2.create_route(RouteTableId=table["RouteTableId"], DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)


def _give_role() -> None:
    """Have the account know SkyPilot's role, as where it was used before: moto does not take the one that it would make."""
    import boto3

    iam = boto3.client("iam", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
    iam.create_role(RoleName=ROLE, AssumeRolePolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": []}))
    iam.create_instance_profile(InstanceProfileName=ROLE)
    iam.add_role_to_instance_profile(InstanceProfileName=ROLE, RoleName=ROLE)
