"""The widget of a run, in a real JupyterLab."""

import re

import pytest
from playwright.sync_api import expect

from raykit.client import session

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

SHORT = LONG.replace("long", "short").replace("epochs=1000", "epochs=3")


def test_resize_and_stop_act_while_the_cell_blocks_and_a_wrong_size_is_answered_with_a_sentence(lab, opened):
    notebook = opened(lab.write("stop.ipynb", [UP, LONG]))
    assert notebook.run(0)
    notebook.start(1)
    widget = notebook.cell(1).locator(".raykit-run")
    expect(widget).to_have_attribute("data-state", "running", timeout=60_000)
    expect(widget.locator(".raykit-progress")).to_contain_text(re.compile(r"step [1-9]"), timeout=60_000)

    _resize(widget, "2:1")
    expect(widget.locator(".raykit-said")).to_contain_text("goes from more to less")
    _resize(widget, "2")
    expect(widget.locator(".raykit-said")).to_contain_text("long goes on with 2 ranks")
    expect(widget.locator(".raykit-figures")).to_contain_text("2 ranks", timeout=60_000)
    expect(widget.get_by_label("2 ranks were asked, at")).to_be_visible()

    widget.get_by_role("button", name="Stop").click()
    widget.get_by_role("button", name="Stop the run?").click()
    assert not notebook.end()
    expect(widget).to_have_attribute("data-state", "stopped")
    expect(notebook.cell(1)).to_contain_text("%ray resume long")


def _resize(widget, workers):
    widget.get_by_role("button", name="Resize", exact=True).first.click()
    widget.get_by_label("ranks, least:most").fill(workers)
    widget.get_by_label("ranks, least:most").press("Enter")


def test_a_view_that_is_watched_from_a_new_kernel_has_its_past_also_in_a_second_tab(lab, opened):
    notebook = opened(lab.write("again.ipynb", [UP, SHORT, "%ray watch short"]))
    assert notebook.run(0)
    assert notebook.run(1)
    notebook.restart_kernel()
    assert notebook.run(0)
    assert notebook.run(2)
    widget = notebook.cell(2).locator(".raykit-run")
    expect(widget).to_have_attribute("data-state", "done")
    expect(widget.locator(".raykit-chart")).not_to_have_count(0)
    notebook.save()
    second_tab = opened("again.ipynb")
    expect(second_tab.cell(2).locator(".raykit-run")).to_have_attribute("data-state", "done")
    expect(second_tab.cell(2).locator(".raykit-chart")).not_to_have_count(0)


def test_a_widget_whose_kernel_was_restarted_says_how_to_see_its_run_that_goes_on(lab, opened):
    notebook = opened(lab.write("gone.ipynb", [UP, LONG.replace("long", "staying"), "%ray watch staying"]))
    assert notebook.run(0)
    notebook.start(1)
    widget = notebook.cell(1).locator(".raykit-run")
    expect(widget.get_by_role("button", name="Stop")).to_be_visible(timeout=60_000)
    notebook.restart_kernel()
    expect(widget.locator(".raykit-said")).to_contain_text("%ray watch staying")
    expect(widget.get_by_role("button", name="Stop")).to_be_hidden()
    assert notebook.run(0)
    notebook.start(2)
    again = notebook.cell(2).locator(".raykit-run")
    expect(again.locator(".raykit-progress")).to_contain_text(re.compile(r"step [1-9]"), timeout=60_000)
    again.get_by_role("button", name="Stop").click()
    again.get_by_role("button", name="Stop the run?").click()
    assert not notebook.end()
    expect(again).to_have_attribute("data-state", "stopped")


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


SERVE = """%%ray serve doubler --replicas 0:1
@rk.stage(cpus=0.1)
def double(row):
    return 2 * row["x"]"""


def test_a_service_is_shown_live_while_no_cell_waits_and_is_ended_by_a_click(lab, opened, pictures):
    notebook = opened(lab.write("serve.ipynb", [UP, SERVE, "print(rk.service('doubler')({'x': 3}))", "%ray watch doubler"]))
    assert notebook.run(0)
    assert notebook.run(1), notebook.cell(1).inner_text()
    expect(notebook.cell(1)).to_contain_text("Service doubler is running at http://127.0.0.1:")
    widget = notebook.cell(1).locator(".raykit-run")
    expect(widget.locator(".raykit-progress")).to_have_text("0 requests answered, 0 open")
    assert notebook.run(2), notebook.cell(2).inner_text()
    expect(notebook.cell(2)).to_contain_text("6")
    expect(widget.locator(".raykit-progress")).to_have_text("1 requests answered, 0 open")
    assert notebook.run(3)
    expect(notebook.cell(3).locator(".raykit-progress")).to_have_text("1 requests answered, 0 open")
    notebook.page.screenshot(path=pictures / "service.png")
    widget.get_by_role("button", name="Stop").click()
    widget.get_by_role("button", name="Stop the run?").click()
    expect(widget).to_have_attribute("data-state", "stopped")


NUM_QUICK = 19
TWENTY = """%%ray pipeline twenty --source numbers
import itertools, time
import raykit as rk

def numbers():
    for number in itertools.count():
        time.sleep(0.01)
        yield {"x": number}

@rk.stage(cpus=0.25)
def slow(row):
    time.sleep(0.1)
    return row

""" + "\n\n".join(f"@rk.stage(cpus=0.02)\ndef quick_{number}(row):\n    return row" for number in range(NUM_QUICK))


@pytest.mark.timeout(500)
@pytest.mark.slow
def test_twenty_stages_are_drawn_live_and_an_advice_is_applied_while_the_cell_blocks(lab, opened, pictures):
    notebook = opened(lab.write("twenty.ipynb", [UP, TWENTY]))
    assert notebook.run(0)
    notebook.start(1)
    widget = notebook.cell(1).locator(".raykit-run")
    lanes = widget.locator(".raykit-lanes tbody tr")
    expect(lanes).to_have_count(1 + NUM_QUICK, timeout=150_000)
    apply = widget.get_by_role("button", name="Apply")
    expect(apply).to_be_visible(timeout=150_000)
    advised = widget.locator(".raykit-advice").inner_text()
    assert "replicas of slow" in advised
    apply.click()
    num_replicas = lanes.filter(has_text="slow").locator("td, th").nth(2)
    expect(num_replicas).to_have_text(re.compile(r"^[2-9]$"), timeout=60_000)
    notebook.page.screenshot(path=pictures / "twenty.png")
    widget.get_by_role("button", name="Stop").click()
    widget.get_by_role("button", name="Stop the run?").click()
    assert not notebook.end()


def test_a_page_that_is_reloaded_while_the_cell_blocks_shows_the_static_view_and_so_does_a_new_kernel(lab, opened):
    notebook = opened(lab.write("reload.ipynb", [UP, LONG.replace("long", "reloaded")]))
    assert notebook.run(0)
    notebook.start(1)
    static = notebook.cell(1).locator(".raykit-static")
    expect(static).to_contain_text("rank 0", timeout=60_000)
    expect(static).to_be_hidden()
    expect(notebook.cell(1).locator(".raykit-run")).to_be_visible()
    notebook.save()
    again = opened("reload.ipynb", busy=True)
    expect(again.cell(1).locator(".raykit-static")).to_be_visible()
    expect(again.cell(1).locator(".raykit-static")).to_contain_text("rank 0")
    session.stop("reloaded")
    assert not notebook.end()
    expect(static).to_contain_text("stopped")
    notebook.save()
    notebook.shut_kernel_down()
    later = opened("reload.ipynb")
    expect(later.cell(1).locator(".raykit-static")).to_be_visible()
    expect(later.cell(1).locator(".raykit-static")).to_contain_text("stopped")
