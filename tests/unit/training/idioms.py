"""Training loops as people write them for one process, each against plain torch.

An idiom gets ``batches``, which gives out what it trains on. In plain torch that is a DataLoader's batches; on raykit it is the
two added lines, ``rk.elastic`` and ``job.batches``. What it returns is compared.
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

torch.sparse.check_sparse_tensor_invariants.disable()  # torch warns if nobody has said so
NUM_ROWS, BATCH, EPOCHS = 22, 8, 2  # the last batch of an epoch is short
IDIOMS = {}


def idiom(function):
    """Add a loop to the table."""
    IDIOMS[function.__name__] = function
    return function


class Rows(torch.utils.data.Dataset):
    """Rows of four numbers, with a target and a class."""

    def __init__(self, num_rows=NUM_ROWS):
        random = torch.Generator().manual_seed(1)
        self.x = torch.randn(num_rows, 4, generator=random, dtype=torch.float64)
        self.y = torch.randn(num_rows, 1, generator=random, dtype=torch.float64) * 30
        self.word = torch.randint(0, 6, (num_rows,), generator=random)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, at):
        return {"x": self.x[at], "y": self.y[at], "word": self.word[at], "row": at}


def loader(num_rows=NUM_ROWS, **options):
    """Return a DataLoader that gives the rows in their order."""
    return torch.utils.data.DataLoader(Rows(num_rows), **{"batch_size": BATCH} | options)


def _seeded(make):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().double()


FRESH = {
    "net": _seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))),
    "maker": _seeded(lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4))),
    "words": _seeded(lambda: nn.Sequential(nn.Embedding(7, 3, padding_idx=6), nn.Linear(3, 1))),
    "sparse": _seeded(lambda: nn.Sequential(nn.Embedding(50, 3, sparse=True), nn.Linear(3, 1))),
    "recurrent": _seeded(lambda: nn.LSTM(1, 5, batch_first=True)),
    "of_five": _seeded(lambda: nn.Linear(5, 1)),
    "complex": nn.Linear(4, 2, dtype=torch.complex128),
}


def net(kind="net"):
    """Return a small network with the same parameters each time: torch's generator is one for all threads."""
    return copy.deepcopy(FRESH[kind])


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.5} | options)


def loss_of(model, batch):
    return functional.mse_loss(model(batch["x"]), batch["y"])


@idiom
def clipping_by_norm(batches):
    model = net()
    optimizer, norms = sgd(model), []
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()
    return model, torch.stack(norms)


@idiom
def clipping_by_value(batches):
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        loss_of(model, batch).backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
    return model


@idiom
def gradients_changed_by_hand(batches):
    model = net()
    optimizer, random = sgd(model), torch.Generator().manual_seed(3)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        model[0].bias.grad.zero_()
        model[0].weight.grad[0] = 0
        model[2].weight.grad.add_(torch.randn(1, 5, generator=random, dtype=torch.float64))
        model[2].bias.grad = model[2].bias.grad.sign()
        optimizer.step()
    return model


@idiom
def two_backwards(batches):
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        (model(batch["x"] * 2).abs().mean() * 0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
    return model


@idiom
def two_backwards_of_one_graph(batches):
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        out = model(batch["x"])
        functional.mse_loss(out, batch["y"]).backward(retain_graph=True)
        out.abs().mean().backward()
        optimizer.step()
    return model


def _tripled(parameter):
    parameter.grad.mul_(3)


@idiom
def hooks_on_parameters(batches):
    model = net()
    optimizer, sizes = sgd(model), []
    for each in model.parameters():
        each.register_hook(lambda grad: grad * 0.5)
        each.register_post_accumulate_grad_hook(_tripled)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        sizes.append(sum(each.grad.abs().sum() for each in model.parameters()))
        optimizer.step()
    return model, torch.stack(sizes)


@idiom
def frozen_then_unfrozen(batches):
    model = net()
    model[0].requires_grad_(requires_grad=False)
    optimizer = sgd(model)
    for number, batch in enumerate(batches(model, optimizer)):
        if number == 2:
            model[0].requires_grad_()
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@idiom
def tied_weights(batches):
    model = net()
    for each in (nn.Linear(1, 4), nn.Linear(4, 5), nn.Linear(5, 1)):
        for parameter in each.parameters():
            nn.init.constant_(parameter, 0.1)
        model.append(each.double())
    model[4].weight = model[0].weight
    optimizer = sgd(model, lr=0.01)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@idiom
def parameter_groups_with_decoupled_weight_decay(batches):
    model = net()
    groups = [{"params": model[0].parameters(), "lr": 0.1, "weight_decay": 0.5}, {"params": model[2].parameters()}]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@idiom
def sparse_embedding(batches):
    model = net("sparse")
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.1)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        functional.mse_loss(model(batch["word"]), batch["y"]).backward()
        optimizer.step()
    return model


@idiom
def sparse_adam(batches):
    model = net("sparse")
    optimizers = [torch.optim.SparseAdam(model[0].parameters(), lr=0.1), sgd(model[1])]
    for batch in batches(model, optimizers):
        for each in optimizers:
            each.zero_grad()
        functional.mse_loss(model(batch["word"]), batch["y"]).backward()
        for each in optimizers:
            each.step()
    return model


@idiom
def missing_gradients(batches):
    model = nn.ModuleList([net(), net(), net()])
    optimizer, unused = sgd(model, weight_decay=0.1), 0
    for number, batch in enumerate(batches(model, optimizer)):
        optimizer.zero_grad()
        loss_of(model[number % 2], batch).backward()
        unused += sum(each.grad is None for each in model.parameters())
        optimizer.step()
    return model, torch.tensor(unused)


@idiom
def complex_weights(batches):
    model = net("complex")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        model(batch["x"].to(torch.complex128)).abs().pow(2).mean().backward()
        optimizer.step()
    return model


def _checkpointed(batches, *, use_reentrant):
    model = net()
    shared = nn.Linear(5, 5).double()
    nn.init.constant_(shared.weight, 0.1)
    nn.init.constant_(shared.bias, 0.1)
    whole = nn.ModuleList([model, shared])
    optimizer = sgd(whole)
    for batch in batches(whole, optimizer):
        optimizer.zero_grad()
        hidden = model[0](batch["x"]).tanh()
        for _ in range(2):  # one layer used twice: reentrant passes give it a gradient each
            hidden = checkpoint(shared, hidden, use_reentrant=use_reentrant).tanh()
        functional.mse_loss(model[2](hidden), batch["y"]).backward()
        optimizer.step()
    return whole


@idiom
def gradient_checkpointing(batches):
    return _checkpointed(batches, use_reentrant=False)


@idiom
def reentrant_gradient_checkpointing(batches):
    return _checkpointed(batches, use_reentrant=True)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return -grad * x.sign()


@idiom
def custom_autograd_function(batches):
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        functional.mse_loss(model[2](_Reversed.apply(model[0](batch["x"]))), batch["y"]).backward()
        optimizer.step()
    return model


@idiom
def gradients_by_autograd_grad(batches):
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        given = torch.autograd.grad(loss_of(model, batch), list(model.parameters()))
        for parameter, grad in zip(model.parameters(), given, strict=True):
            parameter.grad = grad
        optimizer.step()
    return model


@idiom
def schedulers_by_step(batches):
    model = net()
    optimizer = sgd(model)
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=4)
    scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[3])
    for batch in batches(model, optimizer, scheduler=scheduler):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        scheduler.step()
    return model, torch.tensor(scheduler.get_last_lr())


@idiom
def scheduler_by_plateau(batches):
    model = net()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    held_out = next(iter(loader()))
    for batch in batches(model, optimizer, scheduler=scheduler):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        with torch.no_grad():
            scheduler.step(loss_of(model, held_out))
    return model, torch.tensor(scheduler.get_last_lr())


@idiom
def scheduler_by_epoch(batches):
    model = net()
    optimizer = sgd(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.3)
    take = batches.each_epoch(model, optimizer, scheduler=scheduler)
    for _ in range(EPOCHS):
        for batch in take():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        scheduler.step()
    return model, torch.tensor(scheduler.get_last_lr())


@idiom
def moving_average_of_weights(batches):
    model = net()
    optimizer = sgd(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for batch in batches(model, optimizer, extra_state=average):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        average.update_parameters(model)
    return nn.ModuleList([model, average])


@idiom
def stochastic_weight_averaging(batches):
    model = net()
    optimizer = sgd(model)
    average, scheduler = AveragedModel(model), torch.optim.swa_utils.SWALR(optimizer, swa_lr=0.01, anneal_epochs=2)
    take = batches.each_epoch(model, optimizer, scheduler=scheduler, extra_state=average)
    for _ in range(EPOCHS):
        for batch in take():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        average.update_parameters(model)
        scheduler.step()
    return nn.ModuleList([model, average])


@idiom
def adversarial_networks(batches):
    maker, judge = net("maker"), net()
    of_maker, of_judge = torch.optim.Adam(maker.parameters(), lr=0.01), torch.optim.Adam(judge.parameters(), lr=0.02)
    for batch in batches(nn.ModuleList([maker, judge]), [of_maker, of_judge]):
        of_judge.zero_grad()
        made = maker(batch["x"].flip(1))
        functional.softplus(-judge(batch["x"])).mean().backward()
        functional.softplus(judge(made.detach())).mean().backward()
        of_judge.step()
        of_maker.zero_grad()
        functional.softplus(-judge(made)).mean().backward()
        of_maker.step()
    return nn.ModuleList([maker, judge])


@idiom
def gradient_penalty(batches):
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        x = batch["x"].clone().requires_grad_()
        out = model(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        (functional.mse_loss(out, batch["y"]) + (slope.norm(dim=1) - 1).pow(2).mean()).backward()
        optimizer.step()
    return model


@idiom
def accumulation_over_batches(batches):
    model = net()
    optimizer = sgd(model)
    for number, batch in enumerate(batches(model, optimizer)):
        (loss_of(model, batch) / 3).backward()
        if (number + 1) % 3 == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return model


@idiom
def accumulation_that_the_epoch_leaves_open(batches):
    model = net()
    optimizer = sgd(model)
    take = batches.each_epoch(model, optimizer)
    for _ in range(EPOCHS):
        for number, batch in enumerate(take()):
            (loss_of(model, batch) / 2).backward()
            if (number + 1) % 2 == 0:
                optimizer.step()
                optimizer.zero_grad()
    return model


@idiom
def never_zeroed(batches):
    model = net()
    optimizer = sgd(model, lr=0.001)
    for batch in batches(model, optimizer):
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@idiom
def autocast(batches):
    model = net().float()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(batch["x"].float())
        functional.mse_loss(out.float(), batch["y"].float()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model


@idiom
def scaled_gradients(batches):
    model = net()
    optimizer = sgd(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=2)
    for number, batch in enumerate(batches(model, optimizer, scaler=scaler)):
        optimizer.zero_grad()
        loss = loss_of(model, batch) * (float("inf") if number == 1 else 1.0)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    return model, torch.tensor(scaler.get_scale())


@idiom
def batch_that_is_left_out(batches):
    model = net()
    optimizer = sgd(model)
    for number, batch in enumerate(batches(model, optimizer)):
        if number == 1:
            continue
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@idiom
def loop_left_by_break(batches):
    model = net()
    optimizer, number = sgd(model), 0
    take = batches.each_epoch(model, optimizer)
    for _ in range(EPOCHS):
        for batch in take():
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
            number += 1
            if number == 4:
                break
    return model


@idiom
def compiled_model(batches):
    model = net()
    optimizer = sgd(model)
    compiled = torch.compile(model, backend="aot_eager")
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(compiled, batch).backward()
        optimizer.step()
    return model


@idiom
def fewer_rows_than_ranks(batches):
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer, data=loader(2)):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@idiom
def dropped_last_batch(batches):
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer, data=loader(drop_last=True)):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@idiom
def shuffled_by_a_generator(batches):
    model = net()
    optimizer, random = sgd(model), torch.Generator().manual_seed(5)
    for batch in batches(model, optimizer, data=loader(shuffle=True, generator=random)):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


def _padded(rows):
    words = [torch.arange(row["row"] % 3 + 1) for row in rows]
    return {
        "words": nn.utils.rnn.pad_sequence(words, batch_first=True, padding_value=6),
        "y": torch.stack([row["y"] for row in rows]),
    }


@idiom
def ragged_rows_padded_by_collate_fn(batches):
    model = net("words")
    optimizer = sgd(model, lr=0.001)
    for batch in batches(model, optimizer, data=loader(collate_fn=_padded)):
        optimizer.zero_grad()
        functional.mse_loss(model[1](model[0](batch["words"]).sum(1)), batch["y"]).backward()
        optimizer.step()
    return model


class _Masked(nn.Module):
    """Attention with a causal mask of -inf, a table made at the first forward pass, and a running mean."""

    def __init__(self):
        super().__init__()
        self.inner = net()
        self.register_buffer("mask", torch.full((4, 4), float("-inf"), dtype=torch.float64).triu(1))
        self.register_buffer("narrow", torch.full((2,), 0.1, dtype=torch.float16))
        self.register_buffer("running", torch.zeros(4, dtype=torch.float64))
        self.register_buffer("num_seen", torch.tensor(0))

    def forward(self, x):
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.linspace(0, 1, 4, dtype=torch.float64))
        if self.training:
            self.running = 0.9 * self.running + 0.1 * x.detach().mean(0)
            self.num_seen += 1
        return self.inner(x @ (self.mask + self.table).softmax(1).T)


@idiom
def buffers_of_all_kinds(batches):
    model = _Masked()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@idiom
def recurrent_network(batches):
    """pytorch/pytorch#37079: an LSTM did not train as in one process."""
    model = nn.ModuleList([copy.deepcopy(FRESH["recurrent"]), net("of_five")])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        out, _ = model[0](batch["x"][:, :, None])
        functional.mse_loss(model[1](out[:, -1]), batch["y"]).backward()
        optimizer.step()
    return model


@idiom
def spectral_and_weight_norm(batches):
    """pytorch/pytorch#61470, Lightning-AI/pytorch-lightning#1550."""
    model = net()
    nn.utils.parametrizations.spectral_norm(model[0])
    nn.utils.parametrizations.weight_norm(model[2])
    model[0].parametrizations.weight[0]._u.copy_(torch.ones(5) / 5**0.5)
    model[0].parametrizations.weight[0]._v.copy_(torch.ones(4) / 2)
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


@idiom
def penalty_that_leaves_a_bias_out(batches):
    """pytorch/pytorch#47562: the last bias has no second derivative."""
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        x = batch["x"].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        (slope.norm(dim=1) - 1).pow(2).mean().backward()
        optimizer.step()
    return model


@idiom
def sharpness_aware_minimization(batches):
    """davda54/sam#18: two passes a step, of which the first moves the weights."""
    model = net()
    optimizer = sgd(model, lr=0.01)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        norm = torch.stack([each.grad.norm() for each in model.parameters()]).norm()
        with torch.no_grad():
            moves = [each.grad * (0.05 / norm) for each in model.parameters()]
            for each, move in zip(model.parameters(), moves, strict=True):
                each.add_(move)
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        with torch.no_grad():
            for each, move in zip(model.parameters(), moves, strict=True):
                each.sub_(move)
        optimizer.step()
    return model


@idiom
def critic_whose_weights_are_clipped(batches):
    """The critic is stepped twice for each step of the maker, and its weights are clipped by hand."""
    maker, critic = net("maker"), net()
    of_maker, of_critic = torch.optim.RMSprop(maker.parameters(), lr=0.01), torch.optim.RMSprop(critic.parameters(), lr=0.01)
    for batch in batches(nn.ModuleList([maker, critic]), [of_maker, of_critic]):
        for _ in range(2):
            of_critic.zero_grad()
            (critic(maker(batch["x"].flip(1)).detach()).mean() - critic(batch["x"]).mean()).backward()
            of_critic.step()
            with torch.no_grad():
                for each in critic.parameters():
                    each.clamp_(-0.3, 0.3)
        of_maker.zero_grad()
        (-critic(maker(batch["x"].flip(1))).mean()).backward()
        of_maker.step()
    return nn.ModuleList([maker, critic])


@idiom
def group_added_later(batches):
    """A head that is made, and given to the optimizer, after the first steps."""
    model = nn.ModuleList([net("maker")])
    optimizer = sgd(model)
    for number, batch in enumerate(batches(model, optimizer)):
        if number == 2:
            model.append(net())
            optimizer.add_param_group({"params": model[1].parameters(), "lr": 0.02})
        optimizer.zero_grad()
        out = model[0](batch["x"])
        functional.mse_loss(model[1](out) if len(model) > 1 else out.mean(1, keepdim=True), batch["y"]).backward()
        optimizer.step()
    return model


@idiom
def gradients_zeroed_in_place(batches):
    model = net()
    optimizer = sgd(model, weight_decay=0.1)
    for number, batch in enumerate(batches(model, optimizer)):
        optimizer.zero_grad(set_to_none=False)
        loss_of(model, batch).backward()
        if number % 2:
            model[0].bias.grad = None
        optimizer.step()
    return model


@idiom
def loss_over_tokens(batches):
    """OpenNMT/OpenNMT-py#293: each row counts by its number of tokens; the loss is their sum, normalized by the batch's."""
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        tokens = batch["word"] + 1
        batches.weigh(float(tokens.sum()))
        ((model(batch["x"]) - batch["y"]).pow(2).flatten() * tokens).sum().div(tokens.sum()).backward()
        optimizer.step()
    return model


@idiom
def rows_that_are_no_numbers(batches):
    """Of three ranks the first gets such rows only in the first batch."""
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        x = batch["x"].clone()
        x[torch.isin(batch["row"], torch.tensor([0, 3, 6, 10]))] = float("nan")
        good = x.isfinite().all(1)
        batches.weigh(float(good.sum()))
        (model(x[good]) - batch["y"][good]).pow(2).sum().div(good.sum()).backward()
        optimizer.step()
    return model


@idiom
def functional_call(batches):
    model = net()
    optimizer = sgd(model)
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        scaled = {name: each * 1.5 for name, each in model.named_parameters()}
        functional.mse_loss(torch.func.functional_call(model, scaled, (batch["x"],)), batch["y"]).backward()
        optimizer.step()
    return model


@idiom
def two_scaled_optimizers(batches):
    """huggingface/accelerate#439: one scaler for several optimizers and losses."""
    models = nn.ModuleList([net(), net()])
    optimizers = [sgd(each) for each in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    for batch in batches(models, optimizers, scaler=scaler):
        for each, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            scaler.scale(loss_of(each, batch)).backward()
        for optimizer in optimizers:
            scaler.step(optimizer)
        scaler.update()
    return models


@idiom
def step_skipped_where_the_gradients_are_large(batches):
    """Haian-Jin/LVSM#19: a step that is not taken, decided after backward."""
    model = net()
    optimizer, norms = sgd(model), []
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 40.0))
        if norms[-1] < 100:
            optimizer.step()
    return model, torch.stack(norms)


@idiom
def batches_of_a_sampler(batches):
    """horovod/horovod#2297: an order of the user's own, another one in each epoch."""
    model = net()
    optimizer = sgd(model)
    sampler = torch.utils.data.BatchSampler(_Turned(NUM_ROWS), batch_size=6, drop_last=False)
    data = torch.utils.data.DataLoader(Rows(), batch_sampler=sampler)
    for batch in batches(model, optimizer, data=data):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
    return model


class _Turned(torch.utils.data.Sampler):
    """Gives the rows from another one on in each epoch."""

    def __init__(self, num_rows):
        self.num_rows, self.num_epochs = num_rows, 0

    def __len__(self):
        return self.num_rows

    def __iter__(self):
        self.num_epochs += 1
        return iter([(row + 5 * self.num_epochs) % self.num_rows for row in range(self.num_rows)])


@idiom
def model_copied_while_it_trains(batches):
    model = net()
    optimizer, copies = sgd(model), []
    for batch in batches(model, optimizer):
        optimizer.zero_grad()
        loss_of(model, batch).backward()
        optimizer.step()
        copies.append(copy.deepcopy(model))
    return nn.ModuleList(copies)
