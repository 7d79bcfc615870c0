"""Whatever happens to the ranks, the model is that of an undisturbed run: the promise of elastic training.

In float64, so that what is left of a difference is the order of sums and nothing else.
"""

from __future__ import annotations

import os
import random
import signal
from contextlib import suppress

import pytest

import raykit as rk

pytestmark = pytest.mark.ray

STEPS = 260
DISTURBANCES = 8
GATES = (50, 100, 150)


def learn(kind: str, pause_s: float, gates: str = "") -> tuple[list[float], int, int]:
    """Train one of four models; give its parameters, the steps and the rows.

    ``gates`` is a folder: at the steps of ``GATES`` the ranks wait until a file of that number is there.
    """
    import time
    from pathlib import Path

    import torch
    from torch import nn
    from torch.nn import functional

    import raykit as rk

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(50, 16), nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
            self.unused, self.last = nn.Linear(3, 3), nn.Linear(16, 4)

        def forward(self, x):
            return self.last(self.layer(self.embed(x)).mean(1))

    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    generator = torch.Generator().manual_seed(1)
    y = torch.randint(0, 4, (330,), generator=generator)
    if kind == "mlp":
        x = torch.randn(330, 20, generator=generator)
        model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    elif kind == "cnn":
        x = torch.randn(330, 1, 8, 8, generator=generator)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    elif kind == "norm":
        x = torch.randn(330, 20, generator=generator)
        model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.Dropout(0.3), nn.Tanh(), nn.Linear(32, 4))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    else:
        x = torch.randint(0, 50, (330, 6), generator=generator)
        model = Words()
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 260)
    job = rk.elastic(model=model, optimizer=optimizer, scheduler=schedule)
    # 330 rows in batches of 33, which no world but one and three divides.
    for batch in job.batches({"x": x, "y": y}, batch_size=33, epochs=26):
        loss = functional.cross_entropy(model(batch["x"]), batch["y"])
        loss.backward()
        time.sleep(pause_s)
        while gates and job.step in GATES and not Path(gates, str(job.step)).exists():
            time.sleep(0.02)
        if job.sync(loss=loss):
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        job.commit()
    state = [float(value) for each in model.state_dict().values() for value in each.detach().flatten()]
    return state, job.step, job.num_rows


@pytest.fixture(scope="module")
def wide(raykit_home):
    """A cluster with slots for four ranks, whatever the machine has."""
    yield rk.up("wide", num_cpus=4, object_store_bytes=100_000_000)
    rk.down("wide")


def disturb(run, rng):
    """Do one thing to the run that may happen to it."""
    ranks = [rank for rank in run.refresh().ranks if not rank.lost and rank.ready]
    action = rng.choice(["kill", "kill", "kill two", "resize"])
    if action == "resize":
        run.resize((1, rng.randint(1, 4)))
        return
    for rank in rng.sample(ranks, min(len(ranks), 2 if action == "kill two" else 1)):
        with suppress(ProcessLookupError):
            os.kill(rank.pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", ["mlp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("cnn", "words"))])
def test_random_kills_joins_and_resizes_leave_no_trace_in_the_model(wide, until, kind):
    rk.use("wide")
    undisturbed = rk.train(learn, kind, 0.0, workers=1, spares=0, name=f"{kind}-alone").wait()
    rng = random.Random(kind)
    run = rk.train(learn, kind, 0.03, workers=(1, 3), name=f"{kind}-disturbed")
    for number in range(1, 1 + DISTURBANCES):
        until(lambda number=number: run.refresh().ended or run.view.step >= number * STEPS // (DISTURBANCES + 2))
        if not run.view.ended:
            disturb(run, rng)
    run.wait()
    parameters, steps, rows = run.result
    assert (steps, rows) == (STEPS, 26 * 330)
    assert parameters == pytest.approx(undisturbed.result[0], rel=1e-9, abs=1e-11)
    assert run.view.cards, "nothing happened to the run"


@pytest.mark.slow
def test_statistics_of_batches_and_dropout_are_those_of_an_undisturbed_run_when_spares_take_lost_places(wide, until, tmp_path):
    rk.use("wide")
    undisturbed = rk.train(learn, "norm", 0.0, workers=2, spares=0, name="norm-alone").wait()
    run = rk.train(learn, "norm", 0.0, str(tmp_path), workers=2, name="norm-disturbed")
    for number, gate in enumerate(GATES, 1):
        # Without a gate a run on a quick machine is over before the next spare is warm.
        until(lambda: any(rank.rank is None and rank.ready and not rank.lost for rank in run.refresh().ranks))
        until(lambda gate=gate: run.refresh().step == gate)
        victim = next(rank for rank in run.view.ranks if rank.rank == number % 2)
        (tmp_path / str(gate)).touch()
        os.kill(victim.pid, signal.SIGKILL)
        until(lambda number=number: len(run.refresh().cards) == number)
    run.wait()
    assert run.result[1:] == (STEPS, 26 * 330)
    assert run.result[0] == pytest.approx(undisturbed.result[0], rel=1e-9, abs=1e-11)
    assert all(card.good for card in run.view.cards)
