"""What raykit needs of Ray's inner parts to start a lean node, held on the version that is pinned."""

import subprocess
import sys
import time

import httpx

import raykit as rk
from raykit.cluster import record as records

CODE = """
import inspect, sys
from raykit.engine.node import OTHER_GROUPS
for module in OTHER_GROUPS:
    sys.modules[module] = None
from ray._private import ray_constants, services
from ray._private.node import Node
from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port
from ray.scripts import scripts

assert inspect.signature(Node.start_api_server).parameters.keys() == {"self", "include_dashboard", "raise_on_failure"}
assert callable(Node.start_ray_client_server)
assert inspect.signature(Node._prepare_socket_file).parameters.keys() == {"self", "socket_path", "default_prefix"}
assert inspect.signature(Node.kill_all_processes).parameters.keys() == {"self", "check_alive", "allow_graceful", "wait"}
assert "node.kill_all_processes(check_alive=False, allow_graceful=False)" in inspect.getsource(scripts.start.callback)
assert "self._sockets_dir" in inspect.getsource(Node._prepare_socket_file)
assert "services.get_node_ip_address(" in inspect.getsource(scripts.start.callback)
assert "get_node_ip_address(" in inspect.getsource(services.resolve_ip_for_localhost)
assert "ray_constants.ENABLE_RAY_CLUSTER" in inspect.getsource(scripts.start.callback)
assert callable(Node.start_raylet)
assert inspect.signature(persist_port).parameters.keys() == {"dir", "node_id", "port_name", "port"}
assert DASHBOARD_AGENT_LISTEN_PORT_NAME == "dashboard_agent_listen_port"
assert "ray._private.services.get_node(" in inspect.getsource(Node.__init__)
assert inspect.signature(services.get_node).parameters.keys() == {"gcs_address", "node_id"}
assert ray_constants.ENABLE_RAY_CLUSTER is not None
assert not {"serve", "job", "summary"} & set(scripts.cli.commands)
"""


def test_the_parts_of_ray_that_a_lean_node_leaves_out_are_there():
    # In a process of its own: this one stays without ray.
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=120)


def test_a_lean_head_has_neither_dashboard_nor_client_server(cluster):
    lines = [" ".join(process.cmdline()) for process in records.processes(cluster.name)]
    assert any("gcs_server" in line for line in lines)
    assert not [line for line in lines if "dashboard/dashboard.py" in line or "ray.util.client" in line]


def test_the_dashboard_comes_on_request_and_asks_for_the_token(own):
    record = own("watched", dashboard=True).record
    with httpx.Client(base_url=record.dashboard_url, trust_env=False) as http:
        assert http.get("/api/version").status_code == 401
        assert http.get("/api/version", headers={"Authorization": f"Bearer {record.token}"}).status_code == 200


def test_who_has_a_place_and_is_being_started_is_not_among_those_who_wait_for_one(cluster, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nwhile [ ! -e {tmp_path}/go ]; do sleep 0.1; done\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)

    def ask(go):
        import ray

        from raykit.engine.pipeline.nodes import free_nodes, unplaced
        from raykit.policy.balance import Resources

        def waiting():
            return sum(count for each, count in unplaced() if each.is_like(Resources(num_cpus=0.75)))

        @ray.remote(num_cpus=0.75, runtime_env={"py_executable": str(python)})
        class Slow:
            def say(self):
                return "here"

        slow = [Slow.remote() for _ in range(3)]
        deadline = time.monotonic() + 60
        while not (waiting() and max(each.num_cpus for each in free_nodes().values()) < 0.75):
            assert time.monotonic() < deadline
        before = waiting()
        go.touch()
        first, _ = ray.wait([each.say.remote() for each in slow], num_returns=2)
        return before, waiting(), ray.get(first)

    assert rk.run(ask, tmp_path / "go", cpus=0).wait().result == (1, 1, ["here", "here"])


def test_calls_of_actors_leave_nothing_in_the_memory_of_a_lean_head(cluster):
    def call(times):
        import ray

        @ray.remote(num_cpus=0)
        class Echo:
            def say(self):
                return None

        echo = Echo.remote()
        for _ in range(times // 100):
            ray.get([echo.say.remote() for _ in range(100)])

    (gcs,) = (process for process in records.processes(cluster.name) if "gcs_server" in process.cmdline()[0])
    rk.run(call, 100).wait()
    before = gcs.memory_full_info().uss
    rk.run(call, 5000).wait()
    assert gcs.memory_full_info().uss - before < 8_000_000  # with a record of each call it is 20 MB
