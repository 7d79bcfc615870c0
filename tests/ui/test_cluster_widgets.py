"""The picker of clusters and the view of one, in a real JupyterLab."""

import re

import pytest
from playwright.sync_api import expect

from raykit.client import session

pytestmark = pytest.mark.ui

PICK = "%load_ext raykit\n%ray pick"
MAP = """from raykit.jupyter.cluster_widget import ClusterWidget
from raykit.views.examples import cluster
seconds = iter(range(1, 10_000))
ClusterWidget(cluster(num_nodes={nodes}), lambda: cluster(num_nodes={nodes}, second=next(seconds)))"""
STATUS = "%ray status seen"
BLOCK = "import time\ntime.sleep(20)"


def test_a_picker_and_a_view_whose_kernel_was_restarted_say_how_to_see_them_again(lab, opened):
    notebook = opened(lab.write("left.ipynb", [PICK, MAP.format(nodes=2)]))
    assert notebook.run(0), notebook.cell(0).inner_text()
    assert notebook.run(1), notebook.cell(1).inner_text()
    picker, view = notebook.cell(0).locator(".raykit-picker"), notebook.cell(1).locator(".raykit-cluster")
    expect(view).to_be_visible()
    notebook.restart_kernel()
    expect(picker.locator(".raykit-said")).to_contain_text("%ray pick")
    expect(picker.locator("form").last).to_have_attribute("inert", "")
    expect(view.locator(".raykit-said")).to_contain_text("%ray status")


@pytest.mark.ray
@pytest.mark.usefixtures("clusters_end_with_module")
def test_a_cluster_is_planned_started_scaled_looked_at_and_stopped_by_clicks(lab, opened, pictures):
    notebook = opened(lab.write("pick.ipynb", [PICK, STATUS]))
    assert notebook.run(0), notebook.cell(0).inner_text()
    picker = notebook.cell(0).locator(".raykit-picker")
    picker.get_by_label("name", exact=True).fill("seen")
    picker.get_by_label("--cpus", exact=True).fill("1")
    picker.get_by_label("--simulate-gpus", exact=True).fill("2")
    picker.get_by_text("more options").click()
    picker.get_by_label("--object-store", exact=True).fill("100M")
    picker.get_by_role("button", name="Plan", exact=True).click()
    expect(picker.locator(".raykit-line")).to_have_text("%ray up seen --on local --cpus 1 --simulate-gpus 2 --object-store 100M")
    expect(picker).to_contain_text("Nothing was made.")
    notebook.page.screenshot(path=pictures / "picker-plan.png")

    picker.get_by_role("button", name="Start", exact=True).click()
    expect(picker.locator(".raykit-doing")).to_have_text("seen starts …")
    expect(picker.get_by_role("button", name="Start", exact=True)).to_be_disabled()
    row = picker.locator(".raykit-clusters li").filter(has_text="seen")
    expect(row).to_have_attribute("data-state", "up", timeout=60_000)
    expect(row).to_contain_text("current")

    row.get_by_role("button", name="Scale", exact=True).first.click()
    row.get_by_label("nodes, or least:most").fill("2")
    row.get_by_label("nodes, or least:most").press("Enter")
    expect(row).to_contain_text("nodes 2", timeout=60_000)
    notebook.page.screenshot(path=pictures / "picker-up.png")

    assert notebook.run(1), notebook.cell(1).inner_text()
    view = notebook.cell(1).locator(".raykit-cluster")
    expect(view.locator(".raykit-figures")).to_contain_text("2 of 2 up")
    expect(view.locator(".raykit-labels")).to_contain_text("simulated")
    notebook.page.screenshot(path=pictures / "cluster-live.png")

    row.get_by_role("button", name="Stop", exact=True).click()
    expect(row.get_by_role("button", name="Stop the cluster and its runs?")).to_be_visible()
    assert session.get("seen").is_alive
    row.get_by_role("button", name="Stop the cluster and its runs?").click()
    expect(picker.locator(".raykit-said")).to_contain_text("Cluster seen is down", timeout=60_000)
    expect(row).to_have_count(0)
    expect(view.locator(".raykit-said")).to_contain_text("The cluster seen is gone")


def test_the_map_of_a_cluster_moves_while_a_cell_blocks_and_a_click_on_a_node_shows_its_gpus(lab, opened, pictures):
    notebook = opened(lab.write("map.ipynb", [MAP.format(nodes=20), BLOCK]), height=1300)
    assert notebook.run(0), notebook.cell(0).inner_text()
    view = notebook.cell(0).locator(".raykit-cluster")
    notebook.start(1)
    at_work = view.locator(".raykit-figures div").filter(has_text="GPUs at work").locator("dd")
    first = at_work.inner_text()
    expect(at_work).not_to_have_text(first)
    canvas = view.locator("canvas")
    box = canvas.bounding_box()
    notebook.page.mouse.move(box["x"] + 5, box["y"] + 25)
    expect(view.locator(".raykit-pointed")).to_contain_text(re.compile(r"n000, GPU 0: \d+% at work, used by digits"))
    canvas.click(position={"x": 5, "y": 25})
    rows = view.get_by_role("region", name="nodes")
    expect(rows.locator("tbody tr").first).to_contain_text("n000")
    expect(view.get_by_label("node", exact=True)).to_have_value("n000")
    view.get_by_label("used by", exact=True).select_option("labels")
    notebook.page.screenshot(path=pictures / "map-light.png")
    view.get_by_label("node", exact=True).select_option("n002")
    expect(rows).to_contain_text("GPU is lost")
    notebook.set_theme("Dark")
    expect(notebook.page.locator("body")).to_have_attribute("data-jp-theme-light", "false")
    before = at_work.inner_text()
    expect(at_work).not_to_have_text(before)
    notebook.page.screenshot(path=pictures / "map-dark.png")


def test_8000_gpus_fit_the_page_wide_and_narrow(lab, opened, pictures):
    notebook = opened(lab.write("large.ipynb", [MAP.format(nodes=1001)]), height=2600)
    assert notebook.run(0), notebook.cell(0).inner_text()
    view = notebook.cell(0).locator(".raykit-cluster")
    expect(view.locator(".raykit-figures")).to_contain_text("of 8,000")
    for width in (1280, 700):
        notebook.page.set_viewport_size({"width": width, "height": 2600})
        notebook.page.wait_for_function(f"document.querySelector('.raykit-cluster').clientWidth < {width}")
        inner, outer = view.evaluate("element => [element.scrollWidth, element.clientWidth]")
        assert inner <= outer
        notebook.page.screenshot(path=pictures / f"map-{width}.png")
