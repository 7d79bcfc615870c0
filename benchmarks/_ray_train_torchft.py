"""A program: one run of Ray Train with torchft, which replaces a lost worker and keeps the others."""

from __future__ import annotations

import json
import sys

import ray
from _loops import on_torchft
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2.torch.torchft_config import TorchftConfig

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    ray.init(num_cpus=settings["workers"] + 1, object_store_memory=150_000_000, _temp_dir=settings["temp"], logging_level="ERROR")
    trainer = TorchTrainer(
        on_torchft,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=settings["workers"]),
        torch_config=TorchftConfig(lighthouse_kwargs=settings["lighthouse"], backend="gloo"),
        run_config=RunConfig(storage_path=settings["storage"], failure_config=FailureConfig(max_failures=3)),
    )
    trainer.fit()
    ray.shutdown()
