"""A farm and a screen for the desktop program."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.desktop import Desktop, screen
from tests.support.farm import RealFarm
from tests.support.painter import DEFINITION, write_painter


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    directory = tmp_path_factory.mktemp("farm")
    with RealFarm(directory) as real:
        real.client.admin.add_engine(DEFINITION)
        real.add_machine("atelier", engines={"painter": str(write_painter(directory / "painter"))})
        yield real


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    with screen() as name:
        yield name


@pytest.fixture
def desktop(farm: RealFarm, display: str, tmp_path: Path) -> Iterator[Desktop]:
    login = {"RENDERONLINE_EMAIL": farm.login.email, "RENDERONLINE_TOKEN": farm.login.token}
    with Desktop(display, tmp_path / "home", "--url", farm.url, **login) as program:
        program.shows("New task")
        yield program
        assert program.quit() == 0
