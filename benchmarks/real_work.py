"""Pipelines of real models over real files: raykit beside Ray Data at its defaults and hand-tuned.

- documents: PDF, drawn, read by OCR, its language told, its text made a vector (Debian's reference card in five languages);
- recordings: decoded to 16 kHz, searched for speech, 80 mel bands (51 files of Debian's packages);
- pictures: frames of three films and three pictures, classified by EfficientNet-lite0.

All sides run the same functions and classes (``_real_stages.py``) in clusters of their own with as many CPUs and the same
object store, and write Parquet. A trial is the whole job, from its call to the last file: start of replicas and loading
of models included, start of the cluster not. What each side made is judged against what is known of the files, and a
trial with a wrong result ends the benchmark. Sides take turns; each trial is kept in out/real_work.jsonl, and a benchmark
that was interrupted goes on with those that are missing (``--fresh`` begins again).

What was tuned of Ray Data is told in ``_real_ray_data.py``. raykit is given what each stage holds and how many replicas it
may have; the rest is its own to find.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import _real_data as data
import _real_stages as work
import pyarrow.dataset
from _measure import Figure, end_in_order, report

import raykit as rk

RUNS = 5
CPUS = 2
OBJECT_STORE_BYTES = 400_000_000
OUT = Path(__file__).parent.parent / "out"
KEPT, FILES = OUT / "real_work.jsonl", OUT / "real_work"
GOAL = ">= 0.97"
RAYKIT, DEFAULT, TUNED = "raykit", "ray data", "ray data, tuned"

STAGES: dict[str, list[Any]] = {
    "documents": [
        rk.stage(cpus=0.25)(work.render),
        rk.stage(cpus=0.5, replicas=(1, 2))(work.Read),
        rk.stage(cpus=0.25)(work.Tell),
        rk.stage(cpus=0.25, batch=32)(work.Embed),
    ],
    "recordings": [
        rk.stage(cpus=0.25)(work.decode_sound),
        rk.stage(cpus=0.5, replicas=(1, 2))(work.Listen),
        rk.stage(cpus=0.25)(work.Spectrum),
    ],
    "pictures": [rk.stage(cpus=0.5)(work.frames), rk.stage(cpus=0.5, batch=16, replicas=(1, 2))(work.Classify)],
}
JUDGES: dict[str, Callable[[data.Rows, data.Rows], data.Judged]] = {
    "documents": data.judge_documents,
    "recordings": data.judge_recordings,
    "pictures": data.judge_pictures,
}


def main() -> None:
    end_in_order()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="each side once over few files: only whether it runs")
    parser.add_argument("--runs", type=int, default=RUNS, metavar="N", help=f"of each side ({RUNS})")
    parser.add_argument("--fresh", action="store_true", help="forget the trials of earlier runs")
    parser.add_argument("--pipeline", choices=STAGES, action="append", metavar="NAME", help="documents, recordings or pictures")
    arguments = parser.parse_args()
    if arguments.fresh:
        KEPT.unlink(missing_ok=True)
    folder = data.unpacked(FILES)
    rows = {
        "documents": data.documents(folder, 1 if arguments.quick else 4),
        "recordings": data.recordings(folder, 1 if arguments.quick else 3),
        "pictures": data.pictures(1 if arguments.quick else 2),
    }
    sides = {RAYKIT: on_raykit, DEFAULT: partial(on_ray_data, tuned=False), TUNED: partial(on_ray_data, tuned=True)}
    pipelines = arguments.pipeline or list(STAGES)
    for number in range(1 if arguments.quick else arguments.runs):
        for pipeline in pipelines:
            for side, run in sides.items():
                if arguments.quick or len(kept(pipeline, side)) <= number:
                    trial(pipeline, side, run, rows[pipeline], is_kept=not arguments.quick)
    report("real_work", {} if arguments.quick else figures(pipelines))


def trial(pipeline: str, side: str, run: Callable[[str, data.Rows, Path], float], rows: data.Rows, *, is_kept: bool) -> None:
    """Run a pipeline once, judge what it made, and keep how fast it was."""
    with tempfile.TemporaryDirectory(prefix="rk-") as folder:
        output = Path(folder) / "output"
        took_s = run(pipeline, rows, output)
        judged = JUDGES[pipeline](pyarrow.dataset.dataset(output).to_table().to_pylist(), rows)
    print(f"{pipeline}, {side}: {took_s:.1f} s, {judged.right} of {judged.known} right", flush=True)
    if judged.wrong:
        raise SystemExit(f"{side} made wrong results: {judged.wrong[:5]}")
    if is_kept:
        OUT.mkdir(exist_ok=True)
        with KEPT.open("a") as file:
            file.write(json.dumps({"pipeline": pipeline, "side": side, "rows_s": len(rows) / took_s}) + "\n")


def on_raykit(pipeline: str, rows: data.Rows, output: Path) -> float:
    os.environ["RAYKIT_HOME"] = str(output.parent / "home")
    rk.up("bench", num_cpus=CPUS, object_store_bytes=OBJECT_STORE_BYTES)
    try:
        begun_s = time.monotonic()
        rk.Pipeline(STAGES[pipeline]).run(rows, name=pipeline, output=str(output)).wait()
        return time.monotonic() - begun_s
    finally:
        rk.down("bench")


def on_ray_data(pipeline: str, rows: data.Rows, output: Path, *, tuned: bool) -> float:
    asked = {
        "pipeline": pipeline,
        "rows": rows,
        "tuned": tuned,
        "output": str(output),
        "temp": str(output.parent / "ray"),
        "took_s": str(output.parent / "took_s"),  # not printed: what Ray passes on of its workers may come after it
        "cpus": CPUS,
        "object_store_bytes": OBJECT_STORE_BYTES,
    }
    program = Path(__file__).parent / "_real_ray_data.py"
    done = subprocess.run([sys.executable, str(program), json.dumps(asked)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"Ray Data failed:\n{done.stderr[-3000:]}")
    return float((output.parent / "took_s").read_text())


def figures(pipelines: list[str]) -> dict[str, Figure]:
    """Compare medians; all values are printed."""
    found: dict[str, Figure] = {}
    for pipeline in pipelines:
        rates = {side: kept(pipeline, side) for side in (RAYKIT, DEFAULT, TUNED)}
        for side, values in rates.items():
            each = ", ".join(f"{value:.3g}" for value in values)
            print(f"{pipeline}, {side}: median {statistics.median(values):.3g} rows/s, worst {min(values):.3g}, all {each}")
        ours = statistics.median(rates[RAYKIT])
        found[f"{pipeline}, raykit / {TUNED}"] = Figure(value=ours / statistics.median(rates[TUNED]), goal=GOAL)
        found[f"{pipeline}, raykit / {DEFAULT}"] = Figure(value=ours / statistics.median(rates[DEFAULT]))
    return found


def kept(pipeline: str, side: str) -> list[float]:
    """Give the rates of a side's trials so far."""
    lines = KEPT.read_text().splitlines() if KEPT.exists() else []
    trials = [json.loads(line) for line in lines]
    return [each["rows_s"] for each in trials if (each["pipeline"], each["side"]) == (pipeline, side)]


if __name__ == "__main__":
    main()
