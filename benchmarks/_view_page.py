"""What a page costs and how fresh it is: a real JupyterLab in headless Chromium beside the cluster, on the same cores.

Chromium draws without a GPU here, so frames take longer than on a person's machine.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from _measure import Figure

import raykit as rk

sys.path.append(str(Path(__file__).parents[1]))  # the laboratory is the tests'
from raykit.cluster.record import cluster_folder
from raykit.events import Record, StageSampled, StepCommitted
from raykit.store.log import Log
from tests.ui.lab import Lab, Notebook, browser

NAME = "bench"
BESIDE = ("chrom", "jupyter", "ipykernel", "playwright")
UP = f"import raykit as rk\n%load_ext raykit\n%ray up {NAME} --cpus 2 --object-store 100M"
ROWS = """%%ray pipeline {name} --source rows {detach}
rows = [{{"n": n}} for n in range({num_rows})]

@rk.stage(cpus=1, replicas=1)
def burn(row):
    import time
    end_s = time.thread_time() + 0.004
    while time.thread_time() < end_s:
        pass
    return row"""
STAGES = """%%ray pipeline many --source numbers
def numbers():
    import time
    for n in range(100_000):
        time.sleep(0.02)
        yield {"n": n}

""" + "\n\n".join(f"@rk.stage(cpus=0.05)\ndef stage_{place}(row):\n    return row" for place in range(20))
STEPS = """%%ray train steps --workers 1
import time, torch
model = torch.nn.Linear(4, 1)
job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
for batch in job.batches({{"x": torch.randn(32 * {num_steps}, 4)}}, batch_size=32):
    time.sleep(0.1)
    loss = model(batch["x"]).pow(2).mean()
    loss.backward()
    job.commit(loss=loss)"""
MAP = """from raykit.jupyter.cluster_widget import ClusterWidget
from raykit.views.examples import cluster
seconds = iter(range(1, 10_000))
ClusterWidget(cluster(num_nodes=1001), lambda: cluster(num_nodes=1001, second=next(seconds)))"""

SEEN = """() => {
  window.seen = [];
  const bar = document.querySelector('.raykit-run .raykit-progress');
  const painted = (text) => { const port = new MessageChannel(); port.port1.onmessage = () =>
    window.seen.push([(performance.timeOrigin + performance.now()) / 1000, text]); port.port2.postMessage(0); };
  new MutationObserver(() => { const text = bar.textContent; requestAnimationFrame(() => painted(text)); })
    .observe(bar, {subtree: true, childList: true, characterData: true});
}"""
FRAMES = """
window.mapFrames = [];
let mapDrawn = false;
const clear = CanvasRenderingContext2D.prototype.clearRect;
CanvasRenderingContext2D.prototype.clearRect = function (...box) {
  if (this.canvas.className === 'raykit-map') mapDrawn = true;
  return clear.apply(this, box);
};
const request = window.requestAnimationFrame;
window.requestAnimationFrame = (draw) => request((time) => {
  mapDrawn = false;
  const begun = performance.now();
  draw(time);
  if (!mapDrawn) return;
  // A message is delivered after the frame's style, layout and paint.
  const channel = new MessageChannel();
  channel.port1.onmessage = () => window.mapFrames.push(performance.now() - begun);
  channel.port2.postMessage(0);
});
"""


def page_figures(rounds: int, seconds: float) -> dict[str, Figure]:
    """Give the cost of a view, its traffic, its freshness, and the time of a large map's frame."""
    home = Path(tempfile.mkdtemp(prefix="rk-"))
    os.environ["RAYKIT_HOME"] = str(home)
    lab = Lab(home / "lab")
    try:
        with lab.served(), browser() as chromium:
            page = chromium.new_page(viewport={"width": 1280, "height": 1600})
            page.add_init_script(FRAMES)
            frames = _Frames(page)
            figures = _throughput(lab, page, rounds, seconds)
            figures |= _traffic(lab, page, frames, seconds)
            figures |= _freshness(lab, page, seconds)
            return figures | _large_map(lab, page, seconds)
    finally:
        rk.down(NAME)
        shutil.rmtree(home)


class _Frames:
    """Counts what the page receives over its websockets."""

    def __init__(self, page: Any) -> None:
        self.received: list[tuple[float, int]] = []
        page.on("websocket", lambda socket: socket.on("framereceived", self._take))

    def _take(self, payload: bytes | str) -> None:
        self.received.append((time.monotonic(), len(payload)))


def _throughput(lab: Lab, page: Any, rounds: int, seconds: float) -> dict[str, Figure]:
    """Run one pipeline with its view in the page and without, in turns; its stage takes one of the two cores.

    A row takes 4 ms of a core's time rather than so much work: how fast the core is goes up and down by a third here.
    """
    num_rows = round(seconds * 250)
    cells = [UP]
    for number in range(rounds):
        for name, detach in ((f"seen-{number}", ""), (f"unseen-{number}", "--detach")):
            cells.append(ROWS.format(name=name, detach=detach, num_rows=num_rows))
    notebook = Notebook(page, lab.url(lab.write("throughput.ipynb", cells)))
    assert notebook.run(0)
    _keep_to_one_core()
    ratios = []
    for number in range(rounds):
        rates = {}
        sides = [("seen", 1 + 2 * number), ("unseen", 2 + 2 * number)]
        for side, index in sides if number % 2 else sides[::-1]:
            assert notebook.run(index, timeout_s=20 * seconds + 60), notebook.cell(index).inner_text()
            rates[side] = _rate(page, f"{side}-{number}")
        ratios.append(rates["seen"] / rates["unseen"])
        print(
            f"round {number + 1} of {rounds}:", ", ".join(f"{side} {rate:.1f} rows/s" for side, rate in rates.items()), flush=True
        )
    return {
        "throughput, with the view / without, median": Figure(value=statistics.median(ratios), goal=">= 0.99"),
        "throughput, with the view / without, worst": Figure(value=min(ratios)),
    }


def _keep_to_one_core() -> None:
    """Keep browser, Jupyter and kernel to the last core: a person has them on another machine. The cluster may use all."""
    last = {max(os.sched_getaffinity(0))}
    for process in psutil.Process().children(recursive=True):
        if any(word in " ".join(process.cmdline()) for word in BESIDE):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, last)


def _rate(page: Any, name: str) -> float:
    """Wait for the end of a run, and give the rows a second between its first and its last sample that has rows."""
    run = rk.watch(name)
    while not run.refresh().ended:
        page.wait_for_timeout(500)
    assert run.view.state == "done", run.view.error
    samples = [
        (record.at_unix_s, record.event.rows_out)
        for record in _records(name)
        if isinstance(record.event, StageSampled) and record.event.rows_out
    ]
    (begun_s, first), (ended_s, last) = samples[0], samples[-1]
    return (last - first) / (ended_s - begun_s)


def _traffic(lab: Lab, page: Any, frames: _Frames, seconds: float) -> dict[str, Figure]:
    """Count what the page is sent while 20 stages run."""
    notebook = Notebook(page, lab.url(lab.write("traffic.ipynb", [UP, STAGES])))
    assert notebook.run(0)
    notebook.start(1)
    page.wait_for_selector('.raykit-run[data-state="running"]', timeout=120_000)
    while any(not stage.rows_out for stage in rk.watch("many").view.stages):
        page.wait_for_timeout(500)
    begun_s = time.monotonic()
    page.wait_for_timeout(seconds * 1000)
    passed_s = time.monotonic() - begun_s
    received = [size for at_s, size in frames.received if at_s >= begun_s]
    rk.stop("many")
    notebook.end()
    return {
        "messages a second, 20 stages": Figure(value=len(received) / passed_s, goal="<= 12"),
        "kB a second, 20 stages": Figure(value=sum(received) / passed_s / 1000, goal="<= 64"),
    }


def _freshness(lab: Lab, page: Any, seconds: float) -> dict[str, Figure]:
    """Give how long after its step's event in the log a step's number is painted."""
    notebook = Notebook(page, lab.url(lab.write("steps.ipynb", [UP, STEPS.format(num_steps=round(10 * seconds))])))
    assert notebook.run(0)
    notebook.start(1)
    page.wait_for_selector(".raykit-run .raykit-progress", timeout=120_000)
    page.evaluate(SEEN)
    assert notebook.end(60 + 10 * seconds), notebook.cell(1).inner_text()
    told = {record.event.step: record.at_unix_s for record in _records("steps") if isinstance(record.event, StepCommitted)}
    shown: dict[int, float] = {}
    for at_unix_s, text in page.evaluate("window.seen"):
        if found := re.match(r"step ([\d,]+)", text):
            shown.setdefault(int(found[1].replace(",", "")), at_unix_s)
    delays_s = [at_unix_s - told[step] for step, at_unix_s in shown.items() if step in told]
    return {
        "from event to pixel, median, s": Figure(value=statistics.median(delays_s), goal="<= 0.2"),
        "from event to pixel, 95th percentile, s": Figure(value=statistics.quantiles(delays_s, n=20)[-1]),
        "steps that were painted": Figure(value=len(delays_s)),
    }


def _records(run: str) -> Iterator[Record]:
    log = Log(cluster_folder(NAME) / "log.sqlite")
    number = 0
    while records := log.read(after=number, run=run):
        yield from records
        number = records[-1].number
    log.close()


def _large_map(lab: Lab, page: Any, seconds: float) -> dict[str, Figure]:
    """Give how long the page works on a frame in which a map of 8,000 simulated GPUs is redrawn."""
    notebook = Notebook(page, lab.url(lab.write("map.ipynb", [MAP])))
    assert notebook.run(0), notebook.cell(0).inner_text()
    page.wait_for_function(f"window.mapFrames.length >= {round(seconds)}", timeout=(60 + 5 * seconds) * 1000)
    frames_ms = page.evaluate("window.mapFrames")[1:]  # the first one lays the map out
    return {
        "frame of a map of 8,000 GPUs, median, ms": Figure(value=statistics.median(frames_ms), goal="<= 16"),
        "frame of a map of 8,000 GPUs, worst, ms": Figure(value=max(frames_ms)),
    }
