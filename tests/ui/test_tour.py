"""The tour as a person sees it: each cell run in a real JupyterLab. Leaves pictures of it in out/."""

import shutil
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

ROOT = Path(__file__).parents[2]
TOUR = ROOT / "notebooks" / "00_tour.ipynb"

pytestmark = [pytest.mark.ray, pytest.mark.ui, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_cell_of_the_tour_runs_in_jupyterlab_and_shows_what_it_did(lab, opened, theme):
    shutil.copy(TOUR, lab.root / f"tour-{theme}.ipynb")
    notebook = opened(f"tour-{theme}.ipynb", width=1280, height=1100)
    notebook.set_theme(theme.capitalize())
    cells = nbformat.read(TOUR, as_version=4).cells
    for index, cell in enumerate(cells):
        if cell.cell_type == "code":
            assert notebook.run(index, timeout_s=300), notebook.cell(index).inner_text()
        if cell.source.startswith(("%%ray pipeline", "%ray watch")):
            expect(notebook.cell(index).locator(".raykit-run")).to_have_attribute("data-state", "done")
            picture(notebook, index, f"{'pipeline' if 'pipeline' in cell.source else 'training'}-{theme}")
    notebook.page.set_viewport_size({"width": 1280, "height": 5200})
    picture(notebook, None, f"tour-{theme}")


def picture(notebook, index, name):
    """Take the window, scrolled to a cell if one is given."""
    if index is not None:
        notebook.cell(index).locator(".raykit-run").scroll_into_view_if_needed()
    (ROOT / "out").mkdir(exist_ok=True)
    notebook.page.screenshot(path=ROOT / "out" / f"{name}.png")
