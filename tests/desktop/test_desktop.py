"""The real desktop program under Xvfb: notes of what a person at a computer does with it."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.desktop import Desktop, screen
from tests.support.farm import RealFarm, wait_until
from tests.support.painter import DEFINITION, write_painter

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("desktop")]


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


def rendered(farm: RealFarm, name: str) -> int:
    scene = farm.directory / "lake.paint"
    scene.write_text("a lake\n")
    task = farm.client.submit(scene, engine="painter", frames="1-2", name=name)
    farm.wait_for_status(task["task_id"], "succeeded")
    return int(task["task_id"])


@pytest.fixture
def desktop(farm: RealFarm, display: str, tmp_path: Path) -> Iterator[Desktop]:
    login = {"RENDERONLINE_EMAIL": farm.login.email, "RENDERONLINE_TOKEN": farm.login.token}
    with Desktop(display, tmp_path / "home", "--url", farm.url, **login) as program:
        program.shows("New task")
        yield program
        assert program.quit() == 0


def test_first_start_asks_for_the_login_and_the_second_remembers_it(
    farm: RealFarm, display: str, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with Desktop(display, home, "--url", farm.url) as first:
        dialog = first.window("log in")
        first.type(dialog, "Tab", text=farm.login.email)
        first.type(dialog, "Return", text="wrong")
        again = wait_until(lambda: (now := first.window("log in")) != dialog and now, "second question")
        first.type(again, "Tab", text=farm.login.email)
        first.type(again, "Return", text=farm.login.token)
        first.shows("New task")
        assert first.quit() == 0
    assert farm.login.token in json.loads((home / "keyring.json").read_text())["renderonline/desktop"]
    with Desktop(display, home) as second:
        second.shows("New task")
        assert second.page("location.host") == farm.url.partition("//")[2]
        second.type(second.window("RenderOnline"), "ctrl+q")
        assert second.process.wait(30) == 0


def test_scene_that_is_chosen_in_the_systems_dialog_reaches_the_page(desktop: Desktop, tmp_path: Path) -> None:
    (tmp_path / "home" / "meadow.paint").write_text("a meadow\n")
    desktop.press("a.button[href='/submit']", lambda: desktop.page("location.pathname") == "/submit")
    desktop.press("input[type=file]:not([webkitdirectory])", lambda: desktop.has_window("Choose files"))
    desktop.answer("Choose files", "meadow.paint")
    desktop.shows("meadow.paint")


def test_download_goes_to_the_place_that_the_save_dialog_names(
    desktop: Desktop, farm: RealFarm, tmp_path: Path
) -> None:
    task_id = rendered(farm, "lake film")
    target = tmp_path / "home" / "Downloads" / "lake.zip"
    desktop.page(f"location.href = '/tasks/{task_id}'")
    desktop.shows("Download all")
    desktop.page(
        "[...document.querySelectorAll('button')].find((b) => b.innerText.includes('Download all')).id = 'all'"
    )
    desktop.press("#all", lambda: desktop.has_window("Save"))
    desktop.answer("Save", target.name)
    wait_until(lambda: desktop.said("lake.zip is saved"), f"word of the saved file; {desktop.lines}")
    assert target.exists(), desktop.lines[-2:]
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert {"lake.paint", "frame_0001.png", "frame_0002.png"} <= set(archive.namelist())


def test_end_of_a_task_is_told(desktop: Desktop, farm: RealFarm) -> None:
    def told() -> bool:  # only ends after the program has begun to watch are told
        rendered(farm, "told film")
        return desktop.said("told film is finished.")

    wait_until(told, f"word of the end; {desktop.lines}")


def test_link_to_another_host_leaves_the_window(desktop: Desktop, farm: RealFarm) -> None:
    desktop.page("location.href = 'https://www.blender.org/'")
    wait_until(lambda: desktop.said("Opened in the browser: https://www.blender.org/"), f"the link; {desktop.lines}")
    assert desktop.page("location.origin") == farm.url
