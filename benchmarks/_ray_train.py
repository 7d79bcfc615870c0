"""A program: one run of Ray Train in a cluster of its own, from ``ray.init`` to the end of ``fit``."""

from __future__ import annotations

import json
import sys

import ray
from _loops import on_ray_train
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    ray.init(num_cpus=settings["workers"], object_store_memory=150_000_000, _temp_dir=settings["temp"], logging_level="ERROR")
    trainer = TorchTrainer(
        on_ray_train,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=settings["workers"]),
        run_config=RunConfig(storage_path=settings["storage"], failure_config=FailureConfig(max_failures=3)),
    )
    trainer.fit()
    ray.shutdown()
