"""A program: Ray Serve's autoscaling and an elastic run of Ray Train on the same slots, until its input has a line."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path

import ray
from ray import serve
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer


def train(settings):
    import time

    import torch
    from ray import train

    model = train.torch.prepare_model(torch.nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    context = train.get_context()
    while True:
        done_s = time.monotonic() + settings["step_gpu_s"] / context.get_world_size()
        model(torch.zeros(4, 8)).mean().backward()
        time.sleep(max(0.0, done_s - time.monotonic()))
        optimizer.step()
        optimizer.zero_grad()
        if context.get_world_rank() == 0:
            with Path(settings["folder"], "steps").open("a") as file:
                file.write("x")


@serve.deployment(
    autoscaling_config={"min_replicas": 1, "max_replicas": 4, "target_ongoing_requests": 1},
    max_ongoing_requests=1,
    ray_actor_options={"num_cpus": 0, "resources": {"slot": 1}},
)
class Work:
    async def __call__(self, request):
        row = await request.json()
        await asyncio.sleep(row["seconds"])
        return row


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    ray.init(num_cpus=8, resources={"slot": settings["slots"]}, object_store_memory=100_000_000, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": settings["port"]})
    serve.run(Work.bind())
    Path(settings["folder"], "serves").touch()
    trainer = TorchTrainer(
        train,
        train_loop_config=settings,
        scaling_config=ScalingConfig(num_workers=(1, settings["slots"]), resources_per_worker={"CPU": 0, "slot": 1}),
        run_config=RunConfig(storage_path=settings["folder"]),
    )
    threading.Thread(target=trainer.fit, daemon=True).start()
    sys.stdin.readline()
    serve.shutdown()
    ray.shutdown()
    os._exit(0)  # the trainer's thread has no other end
