"""What the passes of several ranks come to, the ranks in threads of this process, over real gloo."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from raykit.engine.training.collective import Group
from raykit.engine.training.feed import Cut
from raykit.engine.training.rendezvous import open_store
from raykit.engine.training.state import Stateful, check_steps_by_itself
from raykit.engine.training.step import Step
from raykit.engine.training.tally import Tally
from raykit.errors import InputError

HOST = "127.0.0.1"
NUM_ROWS = 10
X = torch.randn(NUM_ROWS, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class _Heads(torch.nn.Module):
    """A model of which some passes use one head, some another, and none the third."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Linear(4, 3, dtype=torch.float64)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(3, 1, dtype=torch.float64) for _ in range(3))

    def forward(self, x, head=0):
        return self.heads[head](self.body(x))


FRESH = _Heads()


def _fresh():
    """Give a model with the same parameters each time; torch's generator is one for all threads."""
    return copy.deepcopy(FRESH)


@pytest.fixture
def on_all():
    """Give what runs a function of a group, a model and its step on two ranks at once, and gives what they give, by rank."""
    store, address = open_store(HOST)
    groups = []

    def of_rank(rank, function):
        group = Group(
            store=address,
            host=HOST,
            prefix="world",
            rank=rank,
            world_size=2,
            device=torch.device("cpu"),
            outdated=lambda: False,
            given_up=lambda: False,
        )
        groups.append(group)
        model = _fresh()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        step = Step(Stateful(model=model, optimizers=[optimizer], schedulers=[], scaler=None), group_size=1)
        return function(group, model, step)

    def run(function):
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(of_rank, range(2), [function] * 2))

    yield run
    for group in groups:
        group.close()
    del store


def _gradients(model):
    return {name: None if each.grad is None else each.grad.clone() for name, each in model.named_parameters()}


def _alone(*passes):
    """The gradients of one process over all rows."""
    model = _fresh()
    for rows, head in passes:
        (model(X[rows], head).pow(2).sum() / NUM_ROWS).backward()
    return _gradients(model)


def _is_same(ours, theirs):
    return all(
        one is None if other is None else one is not None and torch.allclose(one, other)
        for one, other in zip(ours.values(), theirs.values(), strict=True)
    )


def _do(step, model, rows, *, head=0, weight=None):
    """Run a loop's body, as people write it, on some rows of a step in parts."""
    step.runs_body = True
    step.weigh(float(len(X[rows])))
    if weight is not None:
        step.weigh(weight)
    model.zero_grad()
    loss = model(X[rows], head).pow(2).mean()
    loss.backward()
    step.end_part({"loss": loss})


def _summed(group, step):
    total = step.sum(group, {}, Tally())
    return total, step.average(group, total)


def _keep(step):
    step.keep(clear_gradients=True)
    step.end_unit()


def test_parts_of_unequal_rows_come_to_the_mean_over_all_though_each_pass_clears_the_gradients(on_all):
    def work(group, model, step):
        step.begin(group, Cut(rank=group.rank, world_size=2), range(NUM_ROWS), in_parts=True)
        for rows in (slice(0, 3), slice(3, 4)) if group.rank == 0 else (slice(4, 10),):
            _do(step, model, rows)
        total, means = _summed(group, step)
        return _gradients(model), total.weight, means["loss"]

    loss = float(_fresh()(X).detach().pow(2).mean())
    for gradients, weight, mean in on_all(work):
        assert _is_same(gradients, _alone((slice(None), 0)))
        assert (weight, mean) == (NUM_ROWS, pytest.approx(loss))


def test_a_part_that_counts_for_nothing_changes_nothing(on_all):
    def work(group, model, step):
        step.begin(group, Cut(rank=group.rank, world_size=2), range(NUM_ROWS), in_parts=True)
        _do(step, model, slice(0, 5) if group.rank == 0 else slice(5, 10))
        _do(step, model, slice(0, 2), head=1, weight=0.0)
        _summed(group, step)
        return _gradients(model)

    for gradients in on_all(work):
        assert _is_same(gradients, _alone((slice(None), 0)))


def test_one_rank_holds_what_all_did_and_the_step_goes_on(on_all):
    def work(group, model, step):
        held = []
        for rows in ((slice(0, 1), slice(1, 4)), (slice(4, 5), slice(5, 10))):
            step.begin(group, Cut(rank=group.rank, world_size=2), range(NUM_ROWS), in_parts=True)
            _do(step, model, rows[group.rank])
            if not held:
                step.leave_with(group, 1, 2)
            held.append(step.num_parts_held)
        _summed(group, step)
        return _gradients(model), held

    (one, held_by_one), (other, held_by_other) = on_all(work)
    assert _is_same(one, _alone((slice(None), 0)))
    assert _is_same(other, _alone((slice(None), 0)))
    assert (held_by_one, held_by_other) == ([0, 1], [2, 3])


def test_what_is_left_of_one_step_is_not_in_the_next(on_all):
    def work(group, model, step):
        for end in (step.discard, lambda: _keep(step)):
            for in_parts in (True, False):
                step.begin(group, Cut(rank=group.rank, world_size=2), range(NUM_ROWS), in_parts=in_parts)
                step.runs_body = True
                mine = slice(group.rank, None, 2)
                if in_parts:
                    _do(step, model, mine)
                    _summed(group, step)
                    gradients = _gradients(model)
                else:
                    model(X[mine]).pow(2).mean().backward()
                    step.reduce(group, Tally())
                    assert _is_same(_gradients(model), gradients)
                end()
        return gradients

    for gradients in on_all(work):
        assert _is_same(gradients, _alone((slice(None), 0)))


@pytest.mark.parametrize("in_parts", [False, True])
def test_a_parameter_that_some_ranks_use_is_averaged_and_one_that_none_uses_has_no_gradient(on_all, in_parts):
    def work(group, model, step):
        step.begin(group, Cut(rank=group.rank, world_size=2), range(NUM_ROWS), in_parts=in_parts)
        rows = slice(0, 5) if group.rank == 0 else slice(5, 10)
        if in_parts:
            _do(step, model, rows, head=group.rank)
            _summed(group, step)
        else:
            model(X[rows], group.rank).pow(2).mean().backward()
            step.reduce(group, Tally())
        return _gradients(model)

    alone = _alone((slice(0, 5), 0), (slice(5, 10), 1))
    assert alone["heads.2.weight"] is None
    for gradients in on_all(work):
        assert _is_same(gradients, alone)


def test_a_rank_that_counts_for_nothing_uses_nothing(on_all):
    def work(group, model, step):
        step.begin(group, Cut(rank=group.rank, world_size=2), range(NUM_ROWS), in_parts=False)
        if group.rank == 1:
            step.weigh(0.0)
        model(X[slice(0, 5)], group.rank).pow(2).mean().backward()
        step.reduce(group, Tally())
        return _gradients(model)

    model = _fresh()
    model(X[:5]).pow(2).mean().backward()
    for gradients in on_all(work):
        assert _is_same(gradients, _gradients(model))


def test_gradients_of_a_sparse_embedding_are_summed(on_all):
    def work(group, _, __):
        model = torch.nn.Embedding(6, 2, sparse=True, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = Step(Stateful(model=model, optimizers=[optimizer], schedulers=[], scaler=None), group_size=1)
        given = []
        for in_parts in (False, True):
            step.begin(group, Cut(rank=group.rank, world_size=2), range(4), in_parts=in_parts)
            step.runs_body = True
            step.weigh(2.0)
            model(torch.tensor([group.rank, 3])).sum().div(2).backward()
            if in_parts:
                step.end_part({})
                _summed(group, step)
            else:
                step.reduce(group, Tally())
            given.append(model.weight.grad.to_dense())
            _keep(step)
        return given

    for whole, parts in on_all(work):
        assert whole.tolist() == parts.tolist() == [[0.25] * 2, [0.25] * 2, [0.0] * 2, [0.5] * 2, [0.0] * 2, [0.0] * 2]


def test_a_parameter_unfrozen_later_is_averaged(on_all):
    def work(group, model, _):
        model.body.requires_grad_(requires_grad=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        step = Step(Stateful(model=model, optimizers=[optimizer], schedulers=[], scaler=None), group_size=1)
        for _ in range(2):
            step.begin(group, Cut(rank=group.rank, world_size=2), range(NUM_ROWS), in_parts=False)
            model(X[group.rank :: 2]).pow(2).mean().backward()
            step.reduce(group, Tally())
            gradients = _gradients(model)
            _keep(step)
            model.body.requires_grad_()
        return gradients

    for gradients in on_all(work):
        assert _is_same(gradients, _alone((slice(None), 0)))


def test_an_optimizer_that_steps_what_is_not_the_model_s_is_refused():
    model, head = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr=0.1)
    with pytest.raises(InputError, match="steps 2 of 4 tensors that are no parameters of the model"):
        Stateful(model=model, optimizers=[optimizer], schedulers=[], scaler=None)


def test_an_optimizer_that_needs_a_closure_is_refused_before_the_first_batch():
    model = torch.nn.Linear(2, 1)
    with pytest.raises(InputError, match=r"cannot step a LBFGS: .* 'closure'"):
        Stateful(model=model, optimizers=[torch.optim.LBFGS(list(model.parameters()))], schedulers=[], scaler=None)


def test_a_scheduler_that_needs_a_metric_is_refused_with_what_to_do():
    optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    with pytest.raises(InputError, match="cannot step a ReduceLROnPlateau: missing a required argument: 'metrics'"):
        check_steps_by_itself(plateau, plateau.step)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)
    check_steps_by_itself(cosine, cosine.step)
