"""What raykit needs of the inner parts of Ray's launcher, held on the version that is pinned."""

import subprocess
import sys

import pytest

CODE = """
import inspect
from ray.autoscaler._private import providers, util
from ray.autoscaler._private.aws import config
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler import tags

for step in (config._configure_key_pair, config._configure_subnet, config._configure_security_group, config._check_ami):
    assert list(inspect.signature(step).parameters) == ["config"], step
assert list(inspect.signature(util.prepare_config).parameters) == ["config"]
assert list(inspect.signature(providers._get_node_provider).parameters)[:2] == ["provider_config", "cluster_name"]
assert providers._get_node_provider_cls({"type": "aws", "region": "us-west-2"}) is AWSNodeProvider
assert list(inspect.signature(AWSNodeProvider.create_node).parameters) == ["self", "node_config", "tags", "count"]
assert callable(AWSNodeProvider.fillout_available_node_types_resources)
assert "self.ec2 = " in inspect.getsource(AWSNodeProvider.__init__)
assert 'expanduser("~/.ssh/{}.pem".format(key_pair_name))' in inspect.getsource(config.key_pair)
assert tags.TAG_RAY_CLUSTER_NAME and tags.TAG_RAY_NODE_KIND and tags.TAG_RAY_NODE_NAME and tags.TAG_RAY_USER_NODE_TYPE
"""


GOOGLE = """
import inspect
from ray.autoscaler import tags
from ray.autoscaler._private import util
from ray.autoscaler._private.gcp import config
from ray.autoscaler._private.gcp.node import GCPCompute

for step in (config._configure_key_pair, config._configure_subnet):
    assert list(inspect.signature(step).parameters) == ["config", "compute"], step
assert callable(config.build_request)
assert list(inspect.signature(GCPCompute.__init__).parameters)[1:] == ["resource", "project_id", "availability_zone", "cluster_name"]
assert list(inspect.signature(GCPCompute.create_instance).parameters)[1:] == ["base_config", "labels", "wait_for_operation"]
for verb in (GCPCompute.start_instance, GCPCompute.stop_instance, GCPCompute.delete_instance):
    assert list(inspect.signature(verb).parameters)[1:] == ["node_id", "wait_for_operation"], verb
assert list(inspect.signature(GCPCompute.wait_for_operation).parameters)[1:] == ["operation", "max_polls", "poll_interval"]
assert list(inspect.signature(util.generate_ssh_key_name).parameters) == ["provider", "i", "region", "identifier", "ssh_user"]
assert list(inspect.signature(util.generate_ssh_key_paths).parameters) == ["key_name"]
assert "range(10)" in inspect.getsource(config._configure_key_pair)
assert tags.TAG_RAY_CLUSTER_NAME and tags.TAG_RAY_NODE_KIND and tags.TAG_RAY_NODE_NAME and tags.TAG_RAY_USER_NODE_TYPE
"""


def test_the_parts_of_ray_s_launcher_are_there():
    pytest.importorskip("boto3", reason="needs boto3: pip install boto3")
    # In a process of its own: this one stays without ray.
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=120)


def test_the_parts_of_ray_s_launcher_for_google_are_there():
    pytest.importorskip("googleapiclient", reason="needs Google's client: pip install google-api-python-client")
    subprocess.run([sys.executable, "-c", GOOGLE], check=True, timeout=120)
