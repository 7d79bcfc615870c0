"""Every notebook runs from its first cell to its last, and shows what its words promise."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROMISES = {
    "00_tour": ("espresso", "tripod", "cat", "was lost", "Drill kill-worker: passed"),
    "01_batch_inference": ("was lost", "chelsea is a cat", "in quarantine", "is an espresso too"),
    "03_documents": ("The language is right for 5 of 5", "Speech or not is right for"),
    "04_sharing_gpus": ("4 ranks train; lost: 0", "the service holds 3 GPUs, training 1", "nobody"),
    "06_language_model": ("612 of 612 answers are those of plain greedy decoding",),
}
"""What a notebook shows that is true only if all of it worked."""

ALL_BUT_THE_TOUR_SLOW = [
    pytest.param(path, id=path.stem, marks=() if path.stem == "00_tour" else pytest.mark.slow) for path in NOTEBOOKS
]

STRIPPED = re.compile(r"<(script|style|svg)\b.*?</\1>|\s(style|class)=(\"[^\"]*\"|'[^']*')", re.DOTALL)
"""What GitHub takes out of a saved notebook."""

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Run a notebook once, in a process and a raykit home of its own, and give it with its outputs."""
    folder, done = tmp_path_factory.mktemp("executed"), {}

    def execute(path):
        if path not in done:
            command = [sys.executable, ROOT / "scripts" / "run_notebook.py", path, "--out", folder]
            done[path] = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done[path].returncode == 0, done[path].stdout + done[path].stderr
        return nbformat.read(folder / path.name, as_version=4)

    return execute


@pytest.mark.parametrize("path", ALL_BUT_THE_TOUR_SLOW)
def test_the_notebook_runs_and_shows_what_its_words_promise(executed, path):
    cells = [cell for cell in executed(path).cells if cell.cell_type == "code"]
    assert all(cell.outputs or "import" in cell.source for cell in cells)
    shown = "\n".join(
        output.get("text") or output.get("data", {}).get("text/plain", "") for cell in cells for output in cell.outputs
    )
    for each in PROMISES.get(path.stem, ()):
        assert each in shown, (each, shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_that_is_shared_has_no_outputs(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


def test_the_tour_shows_lanes_curves_and_the_recovery_where_scripts_styles_and_drawings_are_stripped(executed):
    notebook = executed(ROOT / "notebooks" / "00_tour.ipynb")
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pages = [output["data"]["text/html"] for output in outputs if "text/html" in output.get("data", {})]
    shown = "\n".join(STRIPPED.sub("", page) for page in pages)
    assert "<td>rank 0</td>" in shown
    assert "<td>Classify</td>" in shown
    assert re.search("[▁▂▃▄▅▆▇█]{8}", shown), "a curve in block characters"
    assert re.search(r"rank \d \(w\d\) was lost", shown)
    assert "committed steps" in shown
