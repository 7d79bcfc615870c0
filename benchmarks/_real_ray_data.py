"""A program: one pipeline of real models on Ray Data, in a cluster of its own. It writes into a file how long the job took.

``default`` is what a user writes first: the functions and classes, one after the other. ``tuned`` is what one writes who
knows Ray Data and these models: one row a block, so that long rows are spread; threads of each model bound to its CPU;
two actors for the stage that takes nearly all of the time and one for each other, all of them fixed, with shares of CPUs
that fit two cores; a batch of 16 pictures.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import _real_stages as work
import ray


def documents(rows: list[dict[str, Any]], *, tuned: bool) -> Any:
    if not tuned:
        first = ray.data.from_items(rows).map(work.render)
        return first.map(work.Read).map(work.Tell).map_batches(work.Embed, batch_size=32)
    first = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work.render, num_cpus=0.25)
    read = first.map(work.Read, fn_constructor_args=(1,), num_cpus=0.5, concurrency=2)
    told = read.map(work.Tell, num_cpus=0.25, concurrency=1)
    return told.map_batches(work.Embed, batch_size=8, num_cpus=0.25, concurrency=1)


def recordings(rows: list[dict[str, Any]], *, tuned: bool) -> Any:
    if not tuned:
        return ray.data.from_items(rows).map(work.decode_sound).map(work.Listen).map(work.Spectrum)
    first = ray.data.from_items(rows, override_num_blocks=len(rows)).map(work.decode_sound, num_cpus=0.25)
    heard = first.map(work.Listen, fn_constructor_args=(1,), num_cpus=0.5, concurrency=2)
    return heard.map(work.Spectrum, fn_constructor_args=(1,), num_cpus=0.25, concurrency=1)


def pictures(rows: list[dict[str, Any]], *, tuned: bool) -> Any:
    if not tuned:
        return ray.data.from_items(rows).flat_map(work.frames_listed).map_batches(work.Classify, batch_size=16)
    first = ray.data.from_items(rows, override_num_blocks=len(rows)).flat_map(work.frames_listed, num_cpus=0.5)
    return first.map_batches(work.Classify, fn_constructor_args=(1,), batch_size=16, num_cpus=0.5, concurrency=2)


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    tuned = settings["tuned"]
    if tuned:
        os.environ["OMP_NUM_THREADS"] = "1"
    ray.init(
        num_cpus=settings["cpus"],
        object_store_memory=settings["object_store_bytes"],
        _temp_dir=settings["temp"],
        include_dashboard=False,
        logging_level="ERROR",
    )
    begun_s = time.monotonic()
    made = {"documents": documents, "recordings": recordings, "pictures": pictures}[settings["pipeline"]]
    made(settings["rows"], tuned=tuned).write_parquet(settings["output"])
    Path(settings["took_s"]).write_text(f"{time.monotonic() - begun_s}")
