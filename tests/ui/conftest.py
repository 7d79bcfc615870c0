"""One JupyterLab and one browser for all tests of what is seen; a page for each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from tests.ui.lab import Lab, Notebook, browser

expect.set_options(timeout=30_000)  # an answer that comes late on a full machine is an answer


@pytest.fixture(scope="package")
def lab(raykit_home: Any, tmp_path_factory: Any) -> Iterator[Lab]:
    """A JupyterLab whose kernels use the tests' clusters."""
    with Lab(tmp_path_factory.mktemp("lab")).served() as served:
        yield served


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """A browser; Playwright holds the thread's event loop until it ends."""
    with browser() as found:
        yield found


@pytest.fixture
def opened(lab: Lab, chromium: Browser) -> Iterator[Callable[..., Notebook]]:
    """Open a notebook of the lab in a page of its own."""
    pages = []

    def open_(name: str, *, width: int = 1280, height: int = 1600, busy: bool = False) -> Notebook:
        pages.append(chromium.new_page(viewport={"width": width, "height": height}))
        return Notebook(pages[-1], lab.url(name), busy=busy)

    yield open_
    for page in pages:
        page.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Give the folder of pictures: RAYKIT_PICTURES, or one that nobody keeps."""
    folder = Path(os.environ.get("RAYKIT_PICTURES", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
