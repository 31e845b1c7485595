"""A real farm and a real browser, which fails a test when the page does what it must never do."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

from tests.support.browsing import CHROMIUM, FLAGS, PATIENCE_MS, PaintedFarm, Visitor, Watched
from tests.support.farm import RealFarm
from tests.support.painter import DEFINITION, write_painter


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of a file starts a farm and a browser: that counts as its time."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PaintedFarm]:
    directory = tmp_path_factory.mktemp("farm")
    with RealFarm(directory) as real:
        real.client.admin.add_engine(DEFINITION)
        painter = write_painter(directory / "painter")
        real.add_machine("atelier", engines={"painter": str(painter)}, flags=("--slots", "2"))
        yield PaintedFarm(real, directory)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Debian's Chromium, driven by Playwright; without it the tests that ask for it fail."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(farm: PaintedFarm, chromium: Browser) -> Iterator[Visitor]:
    watched = Watched(urlsplit(farm.url).netloc)
    with contextlib.ExitStack() as exits:
        yield Visitor(farm, chromium, watched, exits)
    assert not watched.faults
