"""From cells: a cluster on Kubernetes whose pods are Ray nodes of this machine, from up to down.

The API server is the real one where it is at hand, else the strict stand-in. Operator, scheduler and kubelet are the
stand-ins of standin.py, kubelet.py and raynodes.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell

from raykit.client import session
from raykit.jupyter.magics import register
from tests.kube import raynodes, real
from tests.kube.conftest import Kubernetes
from tests.kube.raynodes import RayNodes
from tests.kube.standin import StandIn

pytestmark = pytest.mark.ray

PIPELINE = """%%ray pipeline squares --source numbers
@rk.stage(cpus=0.4, replicas=2)
def square(row):
    return {"squared": row["x"] ** 2}
"""

SERVE = """%%ray serve greeter
@rk.stage(cpus=0.4)
def greet(row):
    return {"said": "hello " + row["name"]}
"""

TRAIN = """%%ray train digits --workers 1:2 --spares 0 --checkpoint-every 1000steps -o steps --detach
import time, torch
model = torch.nn.Linear(4, 1)
job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
for batch in job.batches({"x": torch.randn(640, 4)}, batch_size=32, epochs=10):
    loss = model(batch["x"]).pow(2).mean()
    loss.backward()
    time.sleep(0.05)
    job.commit(loss=loss)
steps = job.step"""


class Cells:
    """A shell in this process, as a notebook's kernel has one."""

    def __init__(self) -> None:
        self.shell = InteractiveShell()
        register(self.shell)
        self.run("import raykit as rk")

    def run(self, cell: str) -> Any:
        done = self.shell.run_cell(cell)
        done.raise_error()
        return done.result


@pytest.fixture(scope="module")
def kubernetes(request: pytest.FixtureRequest) -> Kubernetes:
    found: Kubernetes = request.getfixturevalue("strict_kubernetes" if real.missing() else "real_kubernetes")
    return found


@pytest.fixture
def operator(kubernetes: Kubernetes, home: Any) -> Iterator[StandIn]:
    trust = str(Path(kubernetes.kubeconfig).parent / "certs" / "apiserver.crt")
    nodes = RayNodes(kubernetes.admin, kubernetes.kubelet, trust)
    standin = StandIn(kubernetes.admin, nodes).start()
    yield standin
    standin.stop()
    nodes.remove()
    assert raynodes.processes("") == []


def test_a_pipeline_and_a_training_that_loses_a_pod_run_on_kubernetes_and_nothing_is_left(
    kubernetes: Kubernetes, operator: StandIn
) -> None:
    cells = Cells()
    place = f"--on k8s --kubeconfig {kubernetes.kubeconfig}"
    try:
        cluster = cells.run(f"%ray up kr {place} --nodes 2 --cpus 1 --object-store 80M")
        assert cluster.is_alive
        _until(lambda: _num_workers(cluster) == 2)

        cells.run("numbers = [{'x': x} for x in range(200)]")
        cells.run(PIPELINE)
        (view,) = (view for view in session.runs() if view.name == "squares")
        assert (view.state, view.stages[-1].rows_out) == ("done", 200)
        assert session.watch("squares").result.count() == 200, "the rows come through the door"

        cells.run(SERVE)
        assert cells.run("rk.service('greeter')({'name': 'you'})") == {"said": "hello you"}
        cells.run("%ray stop greeter")
        _until(lambda: session.watch("greeter").refresh().ended)

        cells.run(TRAIN)
        run = session.watch("digits")
        _until(lambda: run.refresh().world_size == 2 and run.view.step > 5)
        worker = next(pod for pod in kubernetes.admin.find("Pod") if pod["metadata"]["labels"]["ray.io/node-type"] == "worker")
        kubernetes.admin.delete("Pod", worker["metadata"]["name"])
        run.wait()
        assert run.output("steps") == 200
        assert any("lost" in card.title for card in run.view.cards), run.view.cards

        cells.run("%ray scale kr 3")
        _until(lambda: _num_workers(session.get("kr")) == 3)
        assert "kr-head" in cluster.logs()
    finally:
        cells.run("%ray down kr")
    assert {view.name: view.state for view in session.runs("kr")} == {
        "squares": "done",
        "greeter": "stopped",
        "digits": "done",
    }, "told here, too"
    assert kubernetes.objects() == []
    assert raynodes.processes("") == []


def test_a_cluster_that_nobody_uses_suspends_itself_and_says_why(kubernetes: Kubernetes, operator: StandIn) -> None:
    if kubernetes.kind == "strict":
        pytest.skip(f"the strict server gives no service account's token: {real.missing()}")
    cells = Cells()
    try:
        cluster = cells.run(
            f"%ray up idler --on k8s --kubeconfig {kubernetes.kubeconfig} --nodes 1 --cpus 1 --object-store 80M --idle 4s"
        )
        _until(lambda: cluster.health().state == "suspended")
        assert cluster.health().why == "nothing ran for 4 s (--idle)"
        _until(lambda: raynodes.processes("") == [])
    finally:
        cells.run("%ray down idler")
    assert kubernetes.objects() == []


def _num_workers(cluster: session.Cluster) -> int:
    return sum(node.alive and node.num_cpus > 0 for node in cluster.status().nodes)


def _until(ready: Callable[[], bool], timeout_s: float = 180) -> None:
    deadline = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
