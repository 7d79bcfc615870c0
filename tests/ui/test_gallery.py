"""Every state of a run's view in a real JupyterLab, from the gallery: no cluster is needed."""

import shutil
from pathlib import Path

import nbformat
import pytest
from playwright.sync_api import expect

from raykit.views.examples import examples

ROOT = Path(__file__).parents[2]
GALLERY = ROOT / "notebooks" / "05_gallery.ipynb"
ANSWERING = """from raykit.jupyter.widget import RunWidget
from raykit.views.examples import examples
widget = RunWidget(examples()["running"])
widget.on_command(lambda message: f"asked: {message}")
widget"""
OVERFLOW = "widgets => widgets.filter(widget => widget.scrollWidth > widget.clientWidth).map(widget => widget.dataset.state)"

pytestmark = pytest.mark.ui


def test_every_state_is_drawn_in_both_themes_wide_and_narrow_and_the_charts_follow_the_brush(lab, opened, pictures):
    shutil.copy(GALLERY, lab.root / "gallery.ipynb")
    notebook = opened("gallery.ipynb", height=12_000)
    page = notebook.page
    notebook.set_theme("Light")
    for index, cell in enumerate(nbformat.read(GALLERY, as_version=4).cells):
        if cell.cell_type == "code":
            assert notebook.run(index), notebook.cell(index).inner_text()
    widgets = page.locator(".raykit-run")
    expect(widgets).to_have_count(len(examples()) + 3)
    assert [widget.get_attribute("data-state") for widget in widgets.all()][:-3] == list(examples())
    page.screenshot(path=pictures / "gallery-light.png")

    done = page.locator('.raykit-run[data-state="done"]')
    strip = done.locator(".raykit-strip")
    before = done.locator("canvas").first.screenshot()  # which scrolls
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 3)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 3, steps=4)
    page.mouse.up()
    expect(done.locator(".raykit-timeline-words span")).to_have_text("37.3 s to 56.0 s")
    assert done.locator("canvas").first.screenshot() != before
    done.get_by_label("to this time on the charts").press("ArrowLeft")
    expect(done.locator(".raykit-timeline-words span")).not_to_have_text("37.3 s to 56.0 s")
    done.get_by_role("button", name="Show all").click()
    expect(done.locator(".raykit-timeline-words span")).to_have_text("0.0 s to 93.3 s")

    notebook.set_theme("Dark")
    page.set_viewport_size({"width": 700, "height": 18_000})
    page.wait_for_function("document.querySelector('.raykit-run').clientWidth < 700")
    assert widgets.evaluate_all(OVERFLOW) == []
    page.screenshot(path=pictures / "gallery-dark-narrow.png")


def test_clicks_reach_the_kernel_and_its_sentence_is_shown(lab, opened, pictures):
    notebook = opened(lab.write("answering.ipynb", [ANSWERING]))
    assert notebook.run(0), notebook.cell(0).inner_text()
    widget = notebook.cell(0).locator(".raykit-run")
    widget.get_by_role("button", name="Apply").click()
    expect(widget.locator(".raykit-said")).to_have_text("asked: {'command': 'apply'}")
    widget.get_by_role("button", name="Drill").press("Enter")
    widget.get_by_role("button", name="kill-worker").press("Enter")
    expect(widget.locator(".raykit-said")).to_have_text("asked: {'command': 'drill', 'action': 'kill-worker'}")
    expect(widget.get_by_role("button", name="kill-worker")).to_be_hidden()
    widget.get_by_role("button", name="Logs").click()
    expect(widget.locator(".raykit-logs")).to_contain_text("Corrupt JPEG data: 2 extraneous bytes  (4 times)")
    notebook.page.screenshot(path=pictures / "answering.png")
