"""A program: the emulated pipeline on Ray Data, in a cluster of its own; one block is one batch."""

from __future__ import annotations

import json
import sys

import ray
from _balance_marks import Emulated
from _balance_pipelines import MOST_REPLICAS, Stage

if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    stages = [Stage(**each) for each in settings["stages"]]
    ray.init(num_cpus=MOST_REPLICAS, object_store_memory=150_000_000, _temp_dir=settings["temp"], logging_level="ERROR")
    rows = list(range(settings["rows"]))
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows) // stages[0].batch)
    for stage in stages:
        dataset = dataset.map_batches(
            Emulated,
            fn_constructor_args=(stage, settings["folder"]),
            batch_size=stage.batch,
            num_cpus=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=MOST_REPLICAS),
        )
    for _ in dataset.iter_batches(batch_size=None):
        pass
