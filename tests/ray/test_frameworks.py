"""The loops of docs/frameworks.md, as they stand there: a rank is killed, and they compute what they compute without raykit."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

import raykit as rk

pytestmark = pytest.mark.ray

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"


def recipe(name):
    """Return the code under a heading of the page."""
    return re.search(rf"## {name}\n.*?```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


def without_raykit(code):
    """Return the code without raykit's lines."""
    lines = [line for line in code.splitlines() if not re.search(r"import raykit|rk\.elastic", line)]
    return re.sub(r"job\.batches\((.*)\):", r"\1:", "\n".join(lines))


def learn(plain, code, gate):
    """Run a recipe without raykit, and with it; ranks wait for the file ``gate`` when they have seen half of their rows."""
    import time
    from pathlib import Path

    import torch

    def net():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).double()

    def bert():
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForSequenceClassification(BertConfig(vocab_size=30, max_position_embeddings=8, **sizes, **no_dropout)).double()

    class Gated(torch.utils.data.Dataset):
        def __init__(self, make):
            self.make, self.num_seen, self.is_gated = make, 0, False

        def __len__(self):
            return 320

        def __getitem__(self, at):
            self.num_seen += 1
            while self.is_gated and self.num_seen > 160 and not Path(gate).exists():
                time.sleep(0.02)
            return self.make(at)

    x = torch.randn(320, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    words = torch.randint(0, 30, (320, 6), generator=torch.Generator().manual_seed(1))
    learned = []
    for text, is_gated in ((plain, False), (code, True)):
        names = {
            "net": net,
            "bert": bert,
            "data": Gated(lambda at: {"x": x[at], "y": (x[at].sum() > 0).long()}),
            "tokens": Gated(lambda at: {"input_ids": words[at], "labels": words[at].sum() % 2}),
            "epochs": 3,
        }
        names["data"].is_gated = names["tokens"].is_gated = is_gated
        exec(text, names)
        learned.append([float(value) for each in names["model"].state_dict().values() for value in each.flatten()])
    return learned


RECIPES = [
    "A loop of plain torch",
    "Hugging Face Trainer",
    "Lightning Trainer",
    pytest.param("Accelerate", marks=pytest.mark.slow),
    pytest.param("Lightning Fabric", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_learns_what_plain_torch_learns_though_a_rank_is_killed(cluster, until, tmp_path, name):
    code, gate = recipe(name), tmp_path / "killed"
    run = rk.train(learn, without_raykit(code), code, str(gate), workers=2, name="recipe")
    until(lambda: run.refresh().step >= 5)
    os.kill(run.view.ranks[0].pid, signal.SIGKILL)
    gate.touch()
    run.wait()
    plain, ours = run.result
    assert run.view.step == 30
    assert ours == pytest.approx(plain, abs=1e-9)
    assert any("lost" in card.title for card in run.view.cards)
