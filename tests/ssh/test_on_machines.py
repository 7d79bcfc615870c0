"""Runs on several machines whose links are cut, slow, or whose head is lost; the machines are namespaces of this one.

They share this machine's files but for what lies below ``/mnt``, so a folder of the test is a place that all of them reach.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

import raykit as rk
from raykit.client import session
from raykit.errors import RequestError, RunError, RunLostError
from tests.ray import loops
from tests.ssh.conftest import options
from tests.ssh.hosts import Network

pytestmark = pytest.mark.ray

CUT_S = 60.0


@pytest.fixture
def wait_s() -> float:
    return 120.0


@pytest.fixture(scope="module")
def made(machines: Network) -> Iterator[Any]:
    yield rk.up("far", **options(machines))
    rk.down("far")
    for host in machines.hosts:
        assert host.left() == []


@pytest.fixture
def far(made: Any, until: Any) -> Any:
    """A cluster of two machines, as the current one, when both are there."""
    cluster = rk.use("far")
    until(lambda: sum(node.alive for node in cluster.status().nodes) == 2)
    return cluster


def until_enough(enough: str) -> dict[str, object]:
    """The fit of ``loops.linear``, until a file is there."""
    import time
    from pathlib import Path

    import torch
    from torch.nn import functional

    import raykit as rk

    torch.manual_seed(0)
    model = torch.nn.Linear(10, 2)
    x = torch.randn(1000, 10)
    y = (x.sum(1) > 0).long()
    job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
    for batch in job.batches({"x": x, "y": y}, batch_size=50, epochs=1000):
        loss = functional.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        time.sleep(0.02)
        job.commit(loss=loss)
        if Path(enough).exists():
            job.stop()
    return {"step": job.step, "weight": model.weight.detach().flatten().tolist()}


def test_what_a_run_leaves_is_found_whichever_machine_it_ran_on(machines: Network, far: Any, until: Any) -> None:
    def learn() -> dict[str, object]:
        import torch

        import raykit as rk

        model = torch.nn.Linear(4, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

        def rows() -> Any:
            import ray

            return ray.data.from_items([{"x": [float(number)] * 4} for number in range(32)])

        seen = []
        for batch in job.batches(rows, batch_size=8):
            model(batch["x"].float()).pow(2).mean().backward()
            seen += batch["x"][:, 0].tolist()
            job.commit()
        print(f"rank {job.rank} has seen {len(seen)} rows")
        return {"step": job.step, "weight": model.weight.detach().flatten().tolist()}

    session.scale("far", num_nodes=2)
    run = rk.train(learn, workers=2, cpus=0.4, spares=0, checkpoint_every="1steps", name="leaves").wait()
    assert run.result["step"] == 4
    assert run.state_dict()["weight"].flatten().tolist() == pytest.approx(run.result["weight"])
    logs = session.get("far").door.logs("leaves", tail=100)
    assert {f"rank {rank} has seen 16 rows" for rank in (0, 1)} <= {line.rpartition("| ")[2] for line in logs.splitlines()}
    nodes = {rank.node for rank in run.view.ranks if rank.rank is not None}
    assert len(nodes) == 2


def test_a_service_is_asked_through_the_door_updated_and_asked_while_hub_and_ingress_are_killed(
    machines: Network, far: Any, until: Any
) -> None:
    @rk.stage(cpus=0.4, batch=4)
    def double(batch: Any) -> Any:
        return {"y": 2 * batch["x"]}

    service = rk.serve(double, name="doubler", replicas=2).wait()
    until(lambda: {replica.node for replica in service.run.refresh().stages[0].replicas if not replica.gone})
    assert service([{"x": number} for number in range(20)]) == [{"y": 2 * number} for number in range(20)]
    assert service.url.startswith(far.door.url)
    assert httpx.post(service.url, json={"x": 1}).status_code == 401
    known = {"Authorization": f"Bearer {service.token}"}
    assert httpx.post(service.url, json={"x": 3}, headers=known).json() == {"y": 6}
    with pytest.raises(RequestError, match="KeyError: 'x'"):
        service({"z": 1})
    for part in ("ray::Hub", "ray::Ingress"):
        assert len(machines.hosts[0].processes(part)) == 1
        machines.hosts[0].strike(part)
        assert service({"x": 5}) == {"y": 10}
    rk.serve(rk.stage(cpus=0.4)(lambda row: {"y": 3 * row["x"]}), name="doubler", replicas=2).wait()
    assert service({"x": 1}) == {"y": 3}
    service.stop()
    until(lambda: service.run.refresh().ended)
    with pytest.raises(RunError, match="doubler is stopped"):
        rk.service("doubler")({"x": 1})


def test_a_link_that_is_cut_costs_a_training_no_step_and_it_grows_back_when_the_link_is_healed(
    machines: Network, far: Any, until: Any, tmp_path: Path
) -> None:
    enough = tmp_path / "enough"
    run = rk.train(until_enough, str(enough), workers=(1, 2), spares=0, name="cut")
    until(lambda: run.refresh().world_size == 2 and run.view.step > 10)
    machines.hosts[1].cut()
    try:
        until(lambda: run.refresh().world_size == 1)
        alone_at = run.view.step
        until(lambda: run.refresh().step > alone_at + 10)
    finally:
        machines.hosts[1].heal()
    until(lambda: run.refresh().world_size == 2)
    together_at = run.view.step
    until(lambda: run.refresh().step > together_at + 10)
    enough.touch()
    result = run.wait().result
    assert result["weight"] == pytest.approx(loops.alone_for(result["step"]), abs=1e-4)
    (card,) = [card for card in run.view.cards if "lost" in card.title]
    assert dict(card.facts)["lost"].startswith("0 committed steps")


def test_a_link_that_is_cut_costs_a_pipeline_no_row_and_writes_none_twice(
    machines: Network, far: Any, until: Any, tmp_path: Path
) -> None:
    @rk.stage(cpus=0.4, replicas=4)
    def square(row: dict[str, int]) -> dict[str, int]:
        import time

        time.sleep(0.02)
        return {"x": row["item"], "y": row["item"] ** 2}

    run = rk.Pipeline([square]).run(range(2000), output=str(tmp_path / "out"), name="cut-rows")
    until(lambda: len({replica.node for stage in run.refresh().stages for replica in stage.replicas if not replica.gone}) == 2)
    until(lambda: sum(stage.rows_out for stage in run.refresh().stages) > 100)
    machines.hosts[1].cut()
    try:
        until(lambda: any("lost" in card.title for card in run.refresh().cards))
    finally:
        machines.hosts[1].heal()
    run.wait()
    table = pq.read_table(tmp_path / "out").to_pydict()
    assert sorted(zip(table["x"], table["y"], strict=True)) == [(x, x * x) for x in range(2000)]


def test_a_run_goes_on_while_this_machine_is_cut_off_and_who_waits_for_it_sees_what_was_missed(
    machines: Network, far: Any, until: Any, tmp_path: Path
) -> None:
    enough = tmp_path / "enough"
    run = rk.train(until_enough, str(enough), workers=2, spares=0, name="away")
    until(lambda: run.refresh().step > 5)
    machines.driver.set("down")
    healing = threading.Timer(CUT_S, machines.driver.set, ["up"])
    healing.start()
    before = run.view.step
    for view in run.follow():  # blocks for as long as this machine is cut off
        if healing.finished.is_set() and view.step > before + 200:
            enough.touch()
    healing.join()
    assert run.view.state == "done"
    assert run.view.cards == ()
    result = run.result
    assert result["weight"] == pytest.approx(loops.alone_for(result["step"]), abs=1e-4)


def test_a_slow_link_makes_a_pipeline_slower_and_loses_nothing(machines: Network, far: Any, until: Any, tmp_path: Path) -> None:
    @rk.stage(cpus=0.4, replicas=2)
    def fat(row: dict[str, int]) -> dict[str, object]:
        return {"x": row["item"], "data": bytes(20_000)}

    machines.hosts[1].slow("2mbit")
    try:
        rk.Pipeline([fat]).run(range(100), output=str(tmp_path / "out"), name="slow-rows").wait()
    finally:
        machines.hosts[1].fast()
    assert sorted(pq.read_table(tmp_path / "out").to_pydict()["x"]) == list(range(100))


def test_what_a_cluster_told_is_here_when_it_is_gone(machines: Network, far: Any, until: Any) -> None:
    rk.run(lambda: 1, name="before").wait()
    machines.driver.set("down")
    heal = threading.Timer(5, machines.driver.set, ["up"])
    heal.start()
    heal.join()
    rk.run(lambda: 2, name="after").wait()
    told = {view.name: view.state for view in rk.runs("far")}
    rk.down("far")
    assert {view.name: view.state for view in rk.runs("far")} == told
    assert (told["before"], told["after"]) == ("done", "done")
    rk.up("far", **options(machines))
    until(lambda: {view.name for view in rk.runs("far")} >= {"before", "after"})


def test_the_head_s_loss_is_told_and_up_makes_the_cluster_anew(machines: Network, far: Any, until: Any) -> None:
    run = rk.train(loops.linear, 1000, 0.02, workers=2, spares=0, name="headless")
    until(lambda: run.refresh().step > 5)
    machines.hosts[0].strike("gcs_server")
    with pytest.raises(RunLostError, match=r"(?s)far is gone: its head on 10\.\S+ has ended.*%ray up far, then %ray resume"):
        run.wait()
    again = rk.up("far")  # as it says; what is not asked is as it was
    assert "anew" in repr(again)
    until(lambda: sum(node.alive for node in again.status().nodes) == 2)
    assert all(len(host.processes("raylet/raylet")) == 1 for host in machines.hosts)


def test_nodes_leave_and_join_by_scale(machines: Network, far: Any, until: Any) -> None:
    def num_alive() -> int:
        return sum(node.alive for node in rk.use("far").status().nodes)

    session.scale("far", num_nodes=1)
    until(lambda: num_alive() == 1)
    assert machines.hosts[1].left() == []
    assert "is up already" in repr(rk.up("far", **options(machines))), "with as many nodes as it has now"
    session.scale("far", num_nodes=2)
    until(lambda: num_alive() == 2)
