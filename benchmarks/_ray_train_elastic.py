"""A program: one elastic run of Ray Train at its defaults, in a cluster of as many nodes of one CPU as it may have workers."""

from __future__ import annotations

import json
import sys

import ray
from _loops import on_ray_train
from ray.cluster_utils import Cluster
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    cluster = Cluster()  # its folder is RAY_TMPDIR's; ``temp_dir`` would still write to the one that all users share
    for _ in range(settings["workers"]):
        cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    ray.init(address=cluster.address, logging_level="ERROR")
    trainer = TorchTrainer(
        on_ray_train,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=(1, settings["workers"])),
        run_config=RunConfig(storage_path=settings["storage"], failure_config=FailureConfig(max_failures=3)),
    )
    trainer.fit()
    ray.shutdown()
    cluster.shutdown()
