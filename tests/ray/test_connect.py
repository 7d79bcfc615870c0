"""A kernel that becomes a Ray driver of a cluster of raykit's."""

import os
import subprocess
import sys
import tempfile

import pytest

pytestmark = pytest.mark.ray

CONNECT = """
import raykit as rk
rk.use("shared")
rk.connect()
import ray
assert ray.get(ray.remote(num_cpus=0)(lambda: 41 + 1).remote()) == 42
rk.connect()  # once more is no harm
print("connected")
"""

ELSEWHERE = """
import ray
import raykit as rk
from raykit.errors import ClusterError
ray.init(address="local", num_cpus=1, include_dashboard=False, object_store_memory=100_000_000)
rk.use("shared")
try:
    rk.connect()
except ClusterError as error:
    assert "ray.shutdown()" in str(error), error
    ray.shutdown()
    rk.connect()
    assert ray.cluster_resources()["CPU"] == 2
    print("connected")
"""


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(CONNECT, id="raykit first"),
        pytest.param(f"import ray\nimport ray.data\n{CONNECT}", id="Ray first"),
        pytest.param(ELSEWHERE, id="connected to another before", marks=pytest.mark.slow),
    ],
)
def test_a_process_becomes_a_driver_also_when_it_has_imported_ray(cluster, program):
    with tempfile.TemporaryDirectory(prefix="rt-") as folder:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.stdout.endswith("connected\n"), done.stdout + done.stderr
