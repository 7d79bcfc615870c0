import os
import signal

import pytest
import torch

import raykit as rk
from raykit.errors import CapacityError, InputError, RunError, RunFailedError, RunStoppedError
from raykit.events import WorkerAside

from . import loops

pytestmark = pytest.mark.ray


def _recoveries(run):
    return [card for card in run.view.cards if "lost" in card.title and "host" not in card.title]


def test_two_ranks_learn_what_one_process_learns(cluster):
    run = rk.train(loops.linear, 3, workers=2).wait()
    assert run.result["step"] == 60
    assert run.result["rows"] == 3000
    assert run.result["weight"] == pytest.approx(loops.alone(3), abs=1e-5)


def test_a_model_can_be_copied_while_it_trains_and_comes_home_with_its_optimizer(cluster):
    def train():
        import copy

        import torch

        class Net(torch.nn.Linear):
            pass

        model = Net(3, 1)
        optimizer = torch.optim.Adam(model.parameters())
        job = rk.elastic(model=model, optimizer=optimizer)
        for batch in job.batches(torch.ones(8, 3), batch_size=4, epochs=1):
            model(batch).sum().backward()
            job.commit()
        return model, optimizer, copy.deepcopy(model)

    import torch

    model, optimizer, copied = rk.train(train, workers=2).wait().result
    x = torch.ones(1, 3)
    assert torch.equal(model(x), copied(x))
    before = model(x).item()
    model(x).sum().backward()
    optimizer.step()
    assert model(x).item() < before


def test_a_killed_rank_is_replaced_and_the_result_is_that_of_a_run_without_a_loss(cluster, until):
    run = rk.train(loops.linear, 30, 0.01, workers=(1, 2), name="killed")
    run.drill(after_s=0.5)
    until(lambda: _recoveries(run.refresh() and run))
    run.wait()
    assert run.result["step"] == 600
    assert run.result["rows"] == 30_000
    assert run.result["weight"] == pytest.approx(loops.alone(30), abs=1e-4)
    facts = dict(_recoveries(run)[0].facts)
    assert facts["lost"].startswith("0 committed steps")
    assert any(card.title == "Drill kill-worker: passed" for card in run.view.cards)


def test_a_rank_that_is_stopped_is_found_ended_and_replaced(cluster, until):
    run = rk.train(loops.linear, 60, 0.01, workers=(1, 2), name="stuck")
    run.drill("hang", after_s=0.5)
    until(lambda: _recoveries(run.refresh() and run))
    run.wait()
    assert run.result["weight"] == pytest.approx(loops.alone(60), abs=1e-4)
    facts = dict(_recoveries(run)[0].facts)
    assert facts["cause"] == "it hung: its process is stopped"
    assert facts["stood at"]
    assert any(card.title == "Drill hang: passed" for card in run.view.cards)


@pytest.mark.slow
def test_a_rank_that_is_slow_or_evaluates_is_waited_for(cluster):
    def patient():
        import time

        import torch

        model = torch.nn.Linear(4, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
        for batch in job.batches({"x": torch.ones(40, 4)}, batch_size=8):
            model(batch["x"]).mean().backward()
            if job.rank == 1 and job.step == 1:
                end = time.monotonic() + 3
                while time.monotonic() < end:
                    pass
            job.commit()
            if job.step == 3:
                job.evaluate(lambda: time.sleep(3))
        return job.step

    run = rk.train(patient, workers=2).wait()
    assert run.result == 5
    assert run.view.cards == ()


def test_a_run_is_made_smaller_and_larger_and_loses_no_step(cluster, until):
    run = rk.train(loops.linear, 60, 0.01, workers=2, name="resized")
    until(lambda: run.refresh().step > 20)
    run.resize(1)
    until(lambda: run.refresh().world_size == 1 and len([slot for slot in run.view.slots if not slot.released_at_unix_s]) == 1)
    run.resize((1, 2))
    until(lambda: run.refresh().world_size == 2)
    run.wait()
    assert run.result["weight"] == pytest.approx(loops.alone(60), abs=1e-4)
    assert run.view.cards == ()


def test_a_world_that_is_replaced_before_it_is_entered_costs_nobody_a_step(cluster, until, tmp_path):
    def gated(gate):
        import time
        from pathlib import Path

        import torch

        model = torch.nn.Linear(2, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        for batch in job.batches({"x": torch.ones(16, 2)}, batch_size=4):
            print("step", job.step)
            while job.step == 2 and not Path(gate).exists():
                time.sleep(0.02)
            model(batch["x"]).mean().backward()
            job.commit()

    gate = tmp_path / "gate"
    run = rk.train(gated, str(gate), workers=1, spares=1, name="gated")

    def worlds():
        records = cluster.door.events(run.name, after=0, wait_s=0)
        return [record.event.about for record in records if getattr(record.event, "decision", "") == "Form"]

    until(lambda: run.refresh().step == 2 and any(rank.worker == "w2" for rank in run.view.ranks))
    run.resize(2)
    until(lambda: worlds() == [("w1",), ("w1", "w2")])
    run.resize(1)
    until(lambda: any(isinstance(record.event, WorkerAside) for record in cluster.door.events(run.name, after=0, wait_s=0)))
    gate.touch()
    run.wait()
    assert worlds() == [("w1",), ("w1", "w2"), ("w1",)]
    assert [line.text for line in run.view.lines] == [f"step {step}" for step in range(4)]


def test_a_size_that_cannot_be_is_refused_and_the_run_goes_on(cluster, until):
    run = rk.train(loops.linear, 20, 0.01, workers=(1, 2), name="sized")
    until(lambda: run.refresh().step > 0)
    with pytest.raises(CapacityError, match="5 slots"):
        run.resize((5, 8))
    with pytest.raises(InputError, match="write 1:2"):
        run.resize((2, 1))
    assert run.wait().result["step"] == 400


@pytest.mark.slow
def test_a_host_that_comes_back_goes_on_without_a_rank_that_is_stopped(cluster, until):
    run = rk.train(loops.linear, 60, 0.01, workers=(1, 2), spares=0, name="twice-hit")
    until(lambda: run.refresh().step > 20)
    os.kill(next(rank.pid for rank in run.view.ranks if rank.rank == 1), signal.SIGSTOP)
    run.drill("kill-host")
    until(lambda: run.refresh().host_attempts == 2)
    run.wait()
    assert run.result["weight"] == pytest.approx(loops.alone(60), abs=1e-4)


@pytest.mark.slow
def test_kill_9_from_outside_of_rank_0_costs_no_committed_step(cluster, until):
    run = rk.train(loops.linear, 30, 0.01, workers=2, name="outside")
    until(lambda: run.refresh().step > 20)
    os.kill(next(rank.pid for rank in run.view.ranks if rank.rank == 0), signal.SIGKILL)
    run.wait()
    assert run.result["weight"] == pytest.approx(loops.alone(30), abs=1e-4)
    assert all(card.good for card in run.view.cards)


def test_a_host_that_is_killed_comes_back_and_the_workers_do_not_notice(cluster, until):
    run = rk.train(loops.linear, 40, 0.01, workers=2, name="hostless")
    until(lambda: run.refresh().step > 20)
    before = {rank.pid for rank in run.view.ranks if rank.rank is not None}
    run.drill("kill-host")
    until(lambda: run.refresh().host_attempts == 2)
    run.wait()
    assert {rank.pid for rank in run.view.ranks if rank.rank is not None} == before
    assert run.result["weight"] == pytest.approx(loops.alone(40), abs=1e-4)
    assert not _recoveries(run)


def test_a_stopped_run_is_resumed_where_it_was(cluster, until):
    run = rk.train(loops.linear, 40, 0.01, workers=(1, 2), name="halved")
    until(lambda: run.refresh().step > 20)
    run.stop()
    with pytest.raises(RunStoppedError, match="%ray resume halved"):
        run.wait()
    stopped_at = run.view.step
    resumed = rk.resume("halved")
    first = until(lambda: resumed.refresh().step)
    assert first >= stopped_at
    resumed.wait()
    assert resumed.result["step"] == 800
    assert resumed.result["weight"] == pytest.approx(loops.alone(40), abs=1e-4)


def test_an_error_in_a_rank_fails_the_run_with_the_user_s_traceback(cluster):
    def broken():
        import torch

        model = torch.nn.Linear(1, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        for batch in job.batches({"x": torch.ones(8, 1)}, batch_size=4):
            raise KeyError(f"no column, but {sorted(batch)}")

    with pytest.raises(RunFailedError, match="KeyError"):
        rk.train(broken, workers=2).wait()


def test_an_optimizer_stepped_outside_of_batches_is_refused_at_once(cluster):
    def by_hand():
        import torch

        model = torch.nn.Linear(1, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rk.elastic(model=model, optimizer=optimizer)
        for _ in range(10):
            model(torch.ones(4, 1)).sum().backward()
            optimizer.step()

    with pytest.raises(RunFailedError, match=r"optimizer.step\(\) was called outside of job\.batches.*job\.steps"):
        rk.train(by_hand).wait()


def test_a_loop_without_a_step_is_refused(cluster):
    def forgotten():
        import torch

        model = torch.nn.Linear(1, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        for batch in job.batches({"x": torch.ones(8, 1)}, batch_size=4):
            model(batch["x"]).sum().backward()

    with pytest.raises(RunFailedError, match=r"without optimizer\.step\(\) or job\.commit"):
        rk.train(forgotten).wait()


def test_clipping_and_micro_batches_and_a_stop_from_inside(cluster):
    def careful():
        import torch

        torch.manual_seed(0)
        model = torch.nn.Linear(4, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        norms = []
        for batch in job.batches({"x": torch.randn(64, 4) * 100}, batch_size=16, epochs=10):
            half = len(batch["x"]) // 2
            with job.accumulate():
                (model(batch["x"][:half]).pow(2).sum() / len(batch["x"])).backward()
            (model(batch["x"][half:]).pow(2).sum() / len(batch["x"])).backward()
            if job.sync():
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                norms.append(float(torch.cat([each.grad.flatten() for each in model.parameters()]).norm()))
            job.commit()
            if job.step == 6:
                job.stop()
        return job.step, max(norms)

    step, norm = rk.train(careful, workers=2).wait().result
    assert step == 7
    assert norm == pytest.approx(1.0, abs=1e-4)


def test_batches_in_micro_batches_learn_what_whole_batches_do(cluster, tmp_path):
    def learn(micro_batch, folder):
        import torch

        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        job = rk.elastic(model=model, optimizer=optimizer)
        passes, taken = 0, []
        for batch in job.batches({"x": torch.randn(70, 4)}, batch_size=16, epochs=4, micro_batch=micro_batch):
            optimizer.zero_grad()  # as people write it; what earlier passes gave is not lost by it
            loss = model(batch["x"]).pow(2).mean()
            loss.backward()
            passes += 1
            if job.sync(loss=loss):
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            taken.append(job.commit())
        (folder / str(job.rank)).write_text(str(passes))
        parameters = [float(value) for each in model.parameters() for value in each.detach().flatten()]
        return parameters, (job.step, job.num_rows), sum(taken)

    runs, passes = [], []
    for micro_batch, workers in ((None, 2), (3, 2), (5, 1)):
        (folder := tmp_path / str(micro_batch)).mkdir()
        runs.append(rk.train(learn, micro_batch, folder, workers=workers, name=f"in-parts-of-{micro_batch}-by-{workers}").wait())
        passes.append([int(file.read_text()) for file in folder.iterdir()])
    whole, parts, alone = runs
    for run in (parts, alone):
        assert run.result[0] == pytest.approx(whole.result[0], rel=1e-9)
        assert run.result[1] == whole.result[1] == (20, 280)
    assert [len(each) for each in passes] == [2, 2, 1]
    assert [sum(each) for each in passes] == [40, 104, 72]  # an epoch has 5 steps; 26 micro-batches; 18 of them
    assert whole.result[2] == alone.result[2] == 20
    assert 0 < parts.result[2] <= 20  # a step of which the other rank does all is taken without the loop's body
    assert parts.metrics()["loss"][1] == pytest.approx(whole.metrics()["loss"][1])  # of later steps some are told


def test_micro_batches_refuse_what_does_not_go_with_them(cluster):
    def wrong(with_accumulate, **options):
        import torch

        model = torch.nn.Linear(4, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        for batch in job.batches({"x": torch.ones(8, 4)}, batch_size=4, **options):
            if with_accumulate:
                with job.accumulate():
                    model(batch["x"]).sum().backward()
            job.commit()

    for flag, options, error in (
        (False, {"micro_batch": 0}, "micro_batch is 0"),
        (False, {"micro_batch": 2, "num_workers": 1}, "with 1 num_workers"),
        (True, {"micro_batch": 2}, "where batches gives micro-batches"),
    ):
        with pytest.raises(RunFailedError, match=error):
            rk.train(wrong, flag, workers=1, spares=0, **options).wait()


def test_several_optimizers_and_schedulers_step_together(cluster):
    def two():
        import torch

        body, head = torch.nn.Linear(4, 4), torch.nn.Linear(4, 1)
        model = torch.nn.Sequential(body, head)
        optimizers = [torch.optim.SGD(body.parameters(), lr=0.1), torch.optim.Adam(head.parameters(), lr=0.1)]
        schedulers = [torch.optim.lr_scheduler.StepLR(each, 5, gamma=0.5) for each in optimizers]
        job = rk.elastic(model=model, optimizer=optimizers, scheduler=schedulers)
        before = [each.detach().clone() for each in (body.weight, head.weight)]
        for batch in job.batches({"x": torch.ones(40, 4)}, batch_size=8):
            model(batch["x"]).pow(2).mean().backward()
            job.commit()
        moved = [bool((each != was).any()) for each, was in zip((body.weight, head.weight), before, strict=True)]
        return moved, [each.get_last_lr()[0] for each in schedulers]

    assert rk.train(two, workers=2).wait().result == ([True, True], [0.05, 0.05])


@pytest.mark.slow
def test_a_scaler_with_clipping_and_several_optimizers_learns_what_is_learned_without_it(cluster):
    def scaled(with_scaler):
        import torch

        torch.manual_seed(0)
        parts = [torch.nn.Linear(10, 8), torch.nn.Linear(8, 2)]
        model = torch.nn.Sequential(*parts)
        optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in parts]
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=with_scaler)
        job = rk.elastic(model=model, optimizer=optimizers, scaler=scaler)
        x = torch.randn(200, 10)
        for batch in job.batches({"x": x, "y": (x.sum(1) > 0).long()}, batch_size=20, epochs=3):
            loss = torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"])
            scaler.scale(loss).backward()
            if job.sync(loss=loss):
                for each in optimizers:
                    scaler.unscale_(each)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            job.commit()
        return [float(value) for each in model.parameters() for value in each.detach().flatten()]

    plain, ours = (rk.train(scaled, flag, workers=2).wait().result for flag in (False, True))
    assert ours == pytest.approx(plain, abs=1e-6)


@pytest.mark.parametrize(("num_rows", "micro_batch"), [pytest.param(17, None, marks=pytest.mark.slow), (32, 16)])
def test_a_rank_on_which_the_body_did_not_run_takes_the_step_as_the_body_has_made_it(cluster, tmp_path, num_rows, micro_batch):
    def learn(num_rows, micro_batch, folder):
        import torch

        class Average:
            def __init__(self, averaged):
                self.averaged, self.mean = averaged, averaged.detach().clone()

            def step(self):
                self.mean.lerp_(self.averaged.detach(), 0.1)

            def state_dict(self):
                return {"mean": self.mean}

            def load_state_dict(self, state):
                self.mean = state["mean"].clone()

        torch.manual_seed(0)
        torch.set_default_dtype(torch.float64)
        model = torch.nn.Linear(4, 1)
        average = Average(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        job = rk.elastic(model=model, optimizer=optimizer, scheduler=average, scaler=scaler)
        for batch in job.batches({"x": torch.randn(num_rows, 4)}, batch_size=16, epochs=4, micro_batch=micro_batch):
            optimizer.param_groups[0]["lr"] = 0.1 / (1 + job.step)
            scaler.scale(model(batch["x"]).pow(2).mean()).backward()
            if job.sync():
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            job.commit()
        torch.save((model.weight.detach(), average.mean, scaler.state_dict()), folder / f"{job.world_size}-{job.rank}")

    for workers in (1, 2):
        rk.train(learn, num_rows, micro_batch, tmp_path, workers=workers, name=f"rows-{num_rows}-by-{workers}").wait()
    (weight, mean, scale), *both = (torch.load(tmp_path / name) for name in ("1-0", "2-0", "2-1"))
    for weight_of_rank, mean_of_rank, scale_of_rank in both:
        assert weight_of_rank.flatten().tolist() == pytest.approx(weight.flatten().tolist(), rel=1e-9)
        assert mean_of_rank.flatten().tolist() == pytest.approx(mean.flatten().tolist(), rel=1e-9)
        assert scale_of_rank == scale


@pytest.mark.slow
def test_autocast_is_what_it_is_in_one_process(cluster):
    def mixed():
        import torch

        torch.manual_seed(0)
        model = torch.nn.Linear(10, 2)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        x, kinds, losses = torch.randn(200, 10), set(), []
        for batch in job.batches({"x": x, "y": (x.sum(1) > 0).long()}, batch_size=20, epochs=10):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                logits = model(batch["x"])
                loss = torch.nn.functional.cross_entropy(logits, batch["y"])
            kinds.add(str(logits.dtype))
            loss.backward()
            job.commit(loss=loss)
            losses.append(float(loss))
        return kinds, str(model.weight.dtype), losses[0], losses[-1]

    kinds, dtype, first, last = rk.train(mixed, workers=2).wait().result
    assert (kinds, dtype) == ({"torch.bfloat16"}, "torch.float32")
    assert last < first


@pytest.mark.slow
def test_a_loss_over_other_counts_than_rows_is_weighed_by_them(cluster):
    def tokens():
        import torch

        torch.set_default_dtype(torch.float64)
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=1.0))
        x = torch.arange(1.0, 13.0)
        for batch in job.batches({"x": x}, batch_size=4):
            counted = batch["x"] % 3 != 0
            job.weight(int(counted.sum()))
            values = model(batch["x"].reshape(-1, 1)).flatten()[counted]
            (-values.sum() / max(1, len(values))).backward()
            job.commit()
        return float(model.weight)

    one, two = (rk.train(tokens, workers=workers).wait().result for workers in (1, 2))
    assert two == pytest.approx(one)


def test_a_rank_without_rows_of_a_short_last_batch_takes_part(cluster):
    def short():
        import torch

        model = torch.nn.Linear(1, 1)
        job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.0))
        for batch in job.batches({"x": torch.ones(5, 1)}, batch_size=4):
            model(batch["x"]).mean().backward()
            job.commit()
        return job.num_rows

    assert rk.train(short, workers=2).wait().result == 5


def test_runs_of_one_name_keep_what_is_theirs(cluster, tmp_path):
    def learn(target, fails_at):
        import asyncio
        import os
        import signal
        import threading

        import torch

        asyncio.get_event_loop()
        came = []
        signal.signal(signal.SIGUSR1, lambda *_: came.append(threading.current_thread() is threading.main_thread()))
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        job = rk.elastic(model=model, optimizer=optimizer)
        first = []
        for batch in job.batches({"x": torch.ones(16, 1)}, batch_size=4):
            first.append(model.weight.item())
            if job.step == fails_at:
                raise KeyError("gone")
            os.kill(os.getpid(), signal.SIGUSR1)
            (model(batch["x"]) - target).pow(2).mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        return first[0], model.weight.item(), came

    place = str(tmp_path / "kept")
    failed = rk.train(learn, 8.0, 2, workers=2, spares=0, name="same", checkpoint_to=place)
    with pytest.raises(RunFailedError, match="KeyError: 'gone'"):
        failed.wait()
    other = rk.train(learn, 1.0, -1, workers=1, spares=0, name="same", checkpoint_to=place)
    with pytest.raises(RunFailedError, match="has the checkpoints of the run same"):
        other.wait()
    begun = rk.train(learn, 1.0, -1, workers=1, spares=0, name="same", from_checkpoint=place).wait()
    assert failed.state_dict()["weight"].item() == 8.0  # its two committed steps
    assert begun.result == (8.0, 1.0, [True] * 4)
    assert (failed.refresh().name, failed.view.state, begun.view.name) == ("same", "failed", "same#3")


def test_elastic_outside_of_a_run_says_where_it_belongs():
    import subprocess
    import sys

    code = "import torch, raykit as rk\nm = torch.nn.Linear(1, 1)\n"
    code += "try: rk.elastic(model=m, optimizer=torch.optim.SGD(m.parameters(), lr=1))\nexcept rk.RaykitError as e: print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "%%ray train" in done.stdout


def test_a_drill_of_a_run_that_has_no_worker_says_so(cluster, until):
    def sleep():
        import time

        print("begun")
        time.sleep(600)

    run = rk.run(sleep, name="undrilled")
    until(lambda: run.refresh().lines)
    with pytest.raises(RunError, match="no worker to lose, none to add"):
        run.drill()
    run.stop()
    until(lambda: run.refresh().ended)
