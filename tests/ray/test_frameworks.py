"""The recipes of docs/frameworks.md, as they stand there, with a rank killed on the way."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

import raykit as rk

pytestmark = pytest.mark.ray

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
PLAIN = """
import torch
import raykit as rk
model = net()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
job = rk.elastic(model=model, optimizer=optimizer)
for batch in job.batches(data, batch_size=32, epochs=epochs):
    torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"]).backward()
    if job.sync():
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    job.commit()
"""


def recipe(name):
    """Give the code under a heading of the page."""
    return re.search(rf"## {name}\n+```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


def learn(code, gate=""):
    """Run a recipe on a small problem; with a ``gate``, wait at step 20 for that file."""
    import time
    from pathlib import Path

    import torch

    def net():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))

    class Gated(torch.utils.data.Dataset):
        def __init__(self):
            self.x = torch.randn(640, 8, generator=torch.Generator().manual_seed(1))

        def __len__(self):
            return len(self.x)

        def __getitem__(self, at):
            while gate and names["job"].step == 20 and not Path(gate).exists():
                time.sleep(0.02)
            return {"x": self.x[at], "y": (self.x[at].sum() > 0).long()}

    names = {"net": net, "data": Gated(), "epochs": 3}
    exec(code, names)
    return [float(value) for each in names["model"].state_dict().values() for value in each.flatten()], names["job"].step


@pytest.mark.parametrize("name", [pytest.param("Accelerate", marks=pytest.mark.slow), "Lightning Fabric"])
def test_a_recipe_learns_what_plain_torch_learns_although_a_rank_is_killed(cluster, until, tmp_path, name):
    undisturbed = rk.train(learn, PLAIN, workers=1, spares=0).wait()
    gate = tmp_path / "killed"
    run = rk.train(learn, recipe(name), str(gate), workers=2, name="recipe")
    until(lambda: run.refresh().step == 20)
    os.kill(run.view.ranks[0].pid, signal.SIGKILL)
    gate.touch()
    run.wait()
    parameters, steps = run.result
    assert steps == 60
    assert parameters == pytest.approx(undisturbed.result[0], abs=1e-5)
    assert any("lost" in card.title for card in run.view.cards)
