"""What a training loop refuses, and what it reports; the ranks are threads of this process."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from raykit.errors import InputError
from raykit.events import StepCommitted, StepMeasured
from tests.unit.training.idioms import Rows, loader, loss_of, net, sgd
from tests.unit.training.ranks import run_on
from tests.unit.worlds import World


@pytest.fixture
def train(tmp_path):
    """Run a loop, which gets what makes its job, on so many ranks; return what each returned."""

    def run(function, num_ranks=1):
        world = World(*("w1", "w2")[:num_ranks])
        world.publish_next(tuple(world.members))
        return list(run_on(world, dict.fromkeys(world.members, function), tmp_path).values())

    return run


def _learn(rank, change, **options):
    """Train a small network; ``change`` is called in each step, between backward and the step."""
    model = net()
    optimizer = sgd(model)
    job = rank.job(model, optimizer, **options)
    for batch in job.batches(loader()):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        change(job, model, optimizer)
        optimizer.step()
    return model


def test_noise_that_differs_between_ranks_ends_the_run(train):
    def add_noise(job, model, _):
        for each in model.parameters():
            each.grad.add_(job.rank)

    with pytest.raises(InputError, match="were not the same on all ranks after the loop had changed them"):
        train(lambda rank: _learn(rank, add_noise), 2)


def test_a_parameter_that_is_replaced_after_elastic_is_refused(train):
    def replace(_, model, __):
        model[0].weight = nn.Parameter(torch.zeros_like(model[0].weight))

    with pytest.raises(InputError, match=r"parameter 0\.weight was replaced after rk\.elastic"):
        train(lambda rank: _learn(rank, replace))


def test_a_second_derivative_through_the_gradients_is_refused(train):
    def learn(rank):
        model = net()
        job = rank.job(model, sgd(model))
        for batch in job.batches(loader()):
            loss_of(model, batch).backward(create_graph=True)

    with pytest.warns(UserWarning, match="create_graph"), pytest.raises(InputError, match=r"Take torch\.autograd\.grad"):
        train(learn)


def test_a_step_during_backward_is_refused(train):
    def learn(rank):
        model = net()
        optimizer = sgd(model)
        job = rank.job(model, optimizer)

        def step(_):
            optimizer.step()

        for batch in job.batches(loader()):
            model[0].weight.register_post_accumulate_grad_hook(step)
            loss_of(model, batch).backward()

    with pytest.raises(InputError, match="was called during backward"):
        train(learn)


def test_a_scheduler_that_commit_steps_is_not_stepped_twice(train):
    def learn(rank):
        model = net()
        optimizer = sgd(model)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        job = rank.job(model, optimizer, scheduler=scheduler)
        for batch in job.batches(loader()):
            loss_of(model, batch).backward()
            job.commit()
            scheduler.step()

    with pytest.raises(InputError, match=r"job\.commit\(\) steps the schedulers"):
        train(learn)


def test_a_plateau_scheduler_of_commit_is_refused_with_what_to_do(train):
    def learn(rank):
        model = net()
        optimizer = sgd(model)
        job = rank.job(model, optimizer, scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))
        for batch in job.batches(loader()):
            loss_of(model, batch).backward()
            job.commit()

    with pytest.raises(InputError, match="cannot step a ReduceLROnPlateau"):
        train(learn)


def test_an_optimizer_stepped_after_commit_is_refused(train):
    def step_twice(job, _, __):
        job.commit()

    with pytest.raises(InputError, match=r"stepped after job\.commit"):
        train(lambda rank: _learn(rank, step_twice))


def test_ranks_that_do_not_do_the_same_end_with_a_sentence(train):
    def learn(rank):
        model = net()
        job = rank.job(model, sgd(model))
        for batch in job.batches(loader()):
            for _ in range(1 + job.rank):
                loss_of(model, batch).backward()
            job.commit()

    with pytest.raises(InputError, match="the ranks are not at one place of the loop"):
        train(learn, 2)


def test_clipping_a_micro_batch_is_refused_and_clipping_the_step_is_not(train):
    def learn(rank, *, sync):
        model = net()
        job = rank.job(model, sgd(model))
        for batch in job.batches(Rows(), batch_size=8, micro_batch=4):
            loss_of(model, batch).backward()
            if not sync or job.sync():
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            job.commit()
        return job.step

    with pytest.raises(InputError, match=r"if job\.sync\(\): clip_grad_norm_"):
        train(lambda rank: learn(rank, sync=False))
    assert train(lambda rank: learn(rank, sync=True)) == [3]


@pytest.mark.parametrize("value", [True, 3, 0.5, np.float32(0.5), np.int64(3), np.array([2.0]), torch.tensor([[0.25]]), math.inf])
def test_metrics_of_any_kind_are_means_over_the_rows(train, value):
    def learn(rank):
        model = net()
        job = rank.job(model, sgd(model))
        for batch in job.batches(loader()):
            loss_of(model, batch).backward()
            job.commit(it=value, weighted=float(batch["row"].double().mean()))
        return [each for each in rank.reporter.events if isinstance(each, StepMeasured)]

    measured = [*train(learn, 2)[0]]
    assert [each.metrics["it"] for each in measured] == [pytest.approx(float(np.asarray(value).item()))] * 3
    assert [each.metrics["weighted"] for each in measured] == pytest.approx([3.5, 11.5, 18.5])


@pytest.mark.parametrize("value", ["warm", None, torch.tensor([1.0, 2.0]), [1.0]])
def test_a_metric_that_is_no_number_is_refused_by_its_name(train, value):
    def learn(rank):
        model = net()
        job = rank.job(model, sgd(model))
        for batch in job.batches(loader()):
            loss_of(model, batch).backward()
            job.commit(accuracy=value)

    with pytest.raises(InputError, match="metric 'accuracy' is"):
        train(learn)


def test_steps_without_data_are_counted_and_average_over_ranks(train):
    def learn(rank):
        model = nn.Linear(1, 1, bias=False).double()
        nn.init.zeros_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        job = rank.job(model, optimizer)
        seen = []
        for step in job.steps(4):
            optimizer.zero_grad()
            (model(torch.ones(1, 1, dtype=torch.float64)) * (1 + job.rank)).sum().backward()
            optimizer.step()
            seen.append(step)
        return seen, job.step, model.weight.item()

    assert train(learn, 2) == [([0, 1, 2, 3], 4, -6.0)] * 2


def test_an_ordinary_loop_reports_each_step_once(train):
    def learn(rank):
        _learn(rank, lambda *_: None)
        return [each.step for each in rank.reporter.events if isinstance(each, StepCommitted)]

    assert train(learn, 2) == [[1, 2, 3], []]


def test_the_number_of_batches_is_known_before_the_first(train):
    def learn(rank):
        model = net()
        job = rank.job(model, sgd(model))
        known, stream = job.batches(loader(), epochs=2), job.batches(iter_of_rows(), batch_size=2)
        with pytest.raises(TypeError, match="not known"):
            len(stream)
        return len(known)

    class iter_of_rows:  # noqa: N801
        def __iter__(self):
            return iter([1, 2])

    assert train(learn) == [6]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: loader(sampler=torch.utils.data.DistributedSampler(Rows(), 2, 0)), "has a DistributedSampler"),
        (lambda: loader(batch_size=None), "without batches"),
        (lambda: loader(num_rows=3, drop_last=True), "gave no batches"),
    ],
)
def test_a_data_loader_that_cannot_be_divided_is_refused_at_once(train, make, words):
    def learn(rank):
        model = net()
        rank.job(model, sgd(model)).batches(make())

    with pytest.raises(InputError, match=words):
        train(learn)


def test_columns_of_arrays_are_stacked_and_ragged_ones_named(train, tmp_path):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"x": [np.arange(3.0) + n for n in range(4)], "y": [0, 1, 0, 1]})
    pd.DataFrame({"ids": [[1], [2, 3], [4, 5], [6, 7]]}).to_parquet(tmp_path / "ragged.parquet", row_group_size=2)

    def shapes(rank, data, **options):
        model = net()
        job = rank.job(model, sgd(model))
        return next(iter(job.batches(data, batch_size=4, **options)))

    [batch] = train(lambda rank: shapes(rank, frame))
    assert batch["x"].shape == (4, 3)
    with pytest.raises(InputError, match="column 'ids' have several shapes"):
        train(lambda rank: shapes(rank, str(tmp_path / "ragged.parquet")))
    [rows] = train(lambda rank: shapes(rank, str(tmp_path / "ragged.parquet"), collate_fn=list))
    assert sorted(row["ids"].tolist() for row in rows) == [[1], [2, 3], [4, 5], [6, 7]]


def test_a_rank_that_joins_at_the_commit_at_which_others_stop_stops_too(tmp_path, until):
    world = World("w1", "w2")
    world.publish_next(("w1",))
    model_of = {}

    def learn(name, rank):
        model_of[name] = model = net()
        optimizer = sgd(model)
        job = rank.job(model, optimizer)
        for batch in job.batches(loader(), epochs=1000):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            if name == "w1" and job.step == 2:
                world.publish_next(("w1", "w2"))
                until(lambda: world.has_met_newcomers("w1"))
                world.members["w1"].stop_asked = True
        return job.step

    steps = run_on(world, {name: partial(learn, name) for name in world.members}, tmp_path)
    assert steps["w1"] == steps["w2"] > 2
    assert all(torch.equal(mine, other) for mine, other in zip(*(each.parameters() for each in model_of.values()), strict=True))
