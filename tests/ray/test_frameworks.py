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


def test_a_trainer_of_ray_train_learns_the_same_though_a_worker_is_killed(own, until, tmp_path):
    def rows():
        import ray

        return ray.data.from_items([{"x": n / 64, "y": n / 32 + 1} for n in range(128)])

    def train_loop_per_worker(config):
        import tempfile
        import time
        from pathlib import Path

        import ray.train
        import torch
        from ray.train.torch import prepare_model

        shard, context = ray.train.get_dataset_shard("train"), ray.train.get_context()
        torch.manual_seed(0)
        model = prepare_model(torch.nn.Linear(1, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=config["lr"])
        first = 0
        if (checkpoint := ray.train.get_checkpoint()) is not None:
            with checkpoint.as_directory() as folder:
                first, state = torch.load(Path(folder) / "state.pt")
            model.load_state_dict(state)
        for epoch in range(first, 6):
            while config["gate"] and epoch == 3 and not Path(config["gate"]).exists():
                time.sleep(0.05)
            # All rows of a rank at once: which of them a rank has is Ray Data's to say.
            for batch in shard.iter_torch_batches(batch_size=None, dtypes=torch.float32):
                optimizer.zero_grad()
                (model(batch["x"][:, None]) - batch["y"][:, None]).pow(2).mean().backward()
                optimizer.step()
            with tempfile.TemporaryDirectory() as folder:
                torch.save((epoch + 1, model.state_dict()), Path(folder) / "state.pt")
                kept = ray.train.Checkpoint.from_directory(folder) if context.get_world_rank() == 0 else None
                weight, bias = (each.detach().item() for each in model.parameters())
                ray.train.report({"weight": weight, "bias": bias}, checkpoint=kept)

    own("ray-train", num_cpus=3)
    learned = []
    for gate in ("", str(tmp_path / "killed")):
        names = {"train_loop_per_worker": train_loop_per_worker, "rows": rows}
        exec(recipe("Ray Train").replace('{"lr": 1e-2}', repr({"lr": 0.3, "gate": gate})), names)
        run = names["run"]
        if gate:
            until(lambda run=run: run.refresh().step == 3)
            os.kill(run.view.ranks[0].pid, signal.SIGKILL)
            Path(gate).touch()
        run.wait()
        learned.append((run.result["weight"], run.result["bias"]))
    assert learned[0] == pytest.approx(learned[1], rel=1e-5)
