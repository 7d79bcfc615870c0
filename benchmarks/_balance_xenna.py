"""A program: the emulated pipeline on cosmos-xenna at its defaults, in a cluster of its own; one sample is one batch.

What is not a default: it may use all of the CPUs (its default is 95 %, which would be 11 of the 12).
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
import ray
from _balance_marks import Emulated
from _balance_pipelines import MOST_REPLICAS, Stage
from cosmos_xenna.pipelines import v1 as xenna


def stage_of(stage: Stage, folder: str) -> xenna.Stage:
    """Make a stage; each has a class of its own name."""

    class Here(xenna.Stage):
        @property
        def required_resources(self) -> xenna.Resources:
            return xenna.Resources(cpus=1.0)

        def setup(self, worker_metadata: xenna.WorkerMetadata) -> None:  # noqa: ARG002
            self._work = Emulated(stage, folder)

        def process_data(self, in_data: list[Any]) -> list[Any]:
            return [list(self._work({"item": np.array(batch)})["item"]) for batch in in_data]

    Here.__name__ = stage.name
    return Here()


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    stages = [Stage(**each) for each in settings["stages"]]
    batch = stages[0].batch
    # As it sets them where it starts the cluster itself: its monitor asks for so many actors.
    os.environ |= {"RAY_MAX_LIMIT_FROM_API_SERVER": "40000", "RAY_MAX_LIMIT_FROM_DATA_SOURCE": "40000"}
    ray.init(
        num_cpus=MOST_REPLICAS,
        object_store_memory=150_000_000,
        _temp_dir=settings["temp"],
        include_dashboard=True,  # its monitor asks the dashboard for the actors
        logging_level="ERROR",
        log_to_driver=False,
    )
    xenna.run_pipeline(
        xenna.PipelineSpec(
            input_data=[list(range(batch)) for _ in range(settings["rows"] // batch)],
            stages=[stage_of(stage, settings["folder"]) for stage in stages],
            config=xenna.PipelineConfig(cpu_allocation_percentage=1.0),
        )
    )
