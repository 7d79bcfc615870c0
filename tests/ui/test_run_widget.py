"""The widget of a run, in a real JupyterLab."""

import re

import pytest
from playwright.sync_api import expect

pytestmark = [pytest.mark.ray, pytest.mark.ui, pytest.mark.usefixtures("clusters_end_with_module")]

UP = "import raykit as rk\n%load_ext raykit\n%ray up seen --cpus 2 --object-store 100M"
LONG = """%%ray train long --workers 1
import time, torch
model = torch.nn.Linear(4, 1)
job = rk.elastic(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
for batch in job.batches({"x": torch.randn(640, 4)}, batch_size=32, epochs=1000):
    loss = model(batch["x"]).pow(2).mean()
    loss.backward()
    time.sleep(0.02)
    job.commit(loss=loss)"""


def test_the_stop_button_acts_while_its_cell_blocks_and_the_view_says_stopped(lab, opened):
    notebook = opened(lab.write("stop.ipynb", [UP, LONG]))
    assert notebook.run(0)
    notebook.start(1)
    widget = notebook.cell(1).locator(".raykit-run")
    expect(widget).to_have_attribute("data-state", "running", timeout=60_000)
    expect(widget.locator(".raykit-progress")).to_contain_text(re.compile(r"step [1-9]"), timeout=60_000)
    widget.get_by_role("button", name="Stop").click()
    widget.get_by_role("button", name="Stop the run?").click()
    assert not notebook.end()
    expect(widget).to_have_attribute("data-state", "stopped")
    expect(notebook.cell(1)).to_contain_text("%ray resume long")


def test_a_notebook_that_is_opened_again_shows_the_last_true_state(lab, opened):
    notebook = opened(lab.write("again.ipynb", [UP, "%%ray run\nprint('hello from the node')"]))
    assert notebook.run(0)
    assert notebook.run(1)
    notebook.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    notebook.page.wait_for_function("!document.querySelector('.jp-mod-dirty')")
    again = opened("again.ipynb")
    expect(again.cell(1)).to_contain_text("hello from the node")
    expect(again.cell(1)).to_contain_text("done")


def test_a_widget_of_a_narrow_window_shows_all_of_it(lab, opened):
    notebook = opened(lab.write("narrow.ipynb", [UP, "%%ray pipeline --source rows\n" + STAGE]), width=700)
    assert notebook.run(0)
    assert notebook.run(1), notebook.cell(1).inner_text()
    widget = notebook.cell(1).locator(".raykit-run")
    expect(widget).to_have_attribute("data-state", "done")
    inner, outer = widget.evaluate("element => [element.scrollWidth, element.clientWidth]")
    assert inner <= outer


STAGE = """rows = [{"x": n} for n in range(100)]

@rk.stage()
def double(row):
    return {"y": 2 * row["x"]}"""
