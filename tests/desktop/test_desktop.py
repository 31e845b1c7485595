"""The real desktop program under Xvfb: notes of what a person at a computer does with it."""

import contextlib
import zipfile
from pathlib import Path

import pytest

from tests.support import drag_source
from tests.support.cutting import CuttingProxy
from tests.support.desktop import WINDOW, Desktop, file_manager, tray
from tests.support.farm import RealFarm, wait_until

pytestmark = [pytest.mark.timeout(180)]


def rendered(farm: RealFarm, name: str, scene: str = "a lake\n") -> int:
    file = farm.directory / "lake.paint"
    file.write_text(scene)
    task = farm.client.submit(file, engine="painter", frames="1-2", name=name)
    farm.wait_for_status(task["task_id"], "succeeded")
    return int(task["task_id"])


def ask_for_zip(desktop: Desktop, task_id: int, name: str) -> None:
    desktop.page(f"location.href = '/tasks/{task_id}'")
    desktop.shows("Download all")
    desktop.page(
        "[...document.querySelectorAll('button')].find((b) => b.innerText.includes('Download all')).id = 'all'"
    )
    desktop.press("#all", lambda: desktop.has_window("Save"))
    desktop.answer("Save", name)


def word_of_end(desktop: Desktop, farm: RealFarm, name: str) -> None:
    def told() -> bool:  # only ends after the program has begun to watch are told
        rendered(farm, name)
        with contextlib.suppress(AssertionError):
            return bool(wait_until(lambda: desktop.said(f"{name} is finished."), "word of the end", 3))
        return False

    wait_until(told, f"word of the end; {desktop.lines}")


def test_scene_that_is_chosen_in_the_systems_dialog_reaches_the_page(desktop: Desktop, tmp_path: Path) -> None:
    (tmp_path / "home" / "meadow.paint").write_text("a meadow\n")
    desktop.press("a.button[href='/submit']", lambda: desktop.page("location.pathname") == "/submit")
    desktop.press("input[type=file]:not([webkitdirectory])", lambda: desktop.has_window("^Open$"))
    desktop.answer("^Open$", "meadow.paint")
    desktop.shows("meadow.paint")


def test_scene_that_is_dropped_from_a_file_manager_reaches_the_page(desktop: Desktop, tmp_path: Path) -> None:
    scene = tmp_path / "hill.paint"
    scene.write_text("a hill\n")
    with file_manager(desktop.display, scene):
        source = desktop.window(drag_source.TITLE)
        desktop.xdotool("mousemove", "--window", source, "50", "50", "mousedown", "1")
        places = iter([str(x) for x in range(1240, 400, -20)] * 20)

        def over_the_page() -> bool:
            desktop.xdotool("mousemove", next(places), "500")
            return bool(desktop.page("!!document.querySelector('.dropping')"))

        wait_until(over_the_page, f"sign that a file may be dropped; {desktop.lines}")
        desktop.xdotool("mouseup", "1")
        desktop.shows("hill.paint")
    assert desktop.page("location.pathname") == "/submit"


def test_download_goes_to_the_place_that_the_save_dialog_names(
    desktop: Desktop, farm: RealFarm, tmp_path: Path
) -> None:
    target = tmp_path / "home" / "Downloads" / "lake.zip"
    ask_for_zip(desktop, rendered(farm, "lake film"), target.name)
    wait_until(lambda: desktop.said("lake.zip is saved"), f"word of the saved file; {desktop.lines}")
    assert target.exists(), desktop.lines[-2:]
    with zipfile.ZipFile(target) as archive:
        assert archive.testzip() is None
        assert {"lake.paint", "frame_0001.png", "frame_0002.png"} <= set(archive.namelist())


def test_download_that_is_cut_goes_on_where_it_stopped(farm: RealFarm, display: str, tmp_path: Path) -> None:
    task_id = rendered(farm, "wide lake", "x" * 6_000_000)
    home = tmp_path / "home"
    target, part = home / "Downloads" / "wide.zip", home / "Downloads" / "wide.zip.download"
    login = {"RENDERONLINE_EMAIL": farm.login.email, "RENDERONLINE_TOKEN": farm.login.token}
    with (
        CuttingProxy(farm.url, pace_s=0.02) as proxy,
        Desktop(display, home, "--url", proxy.url, **login) as desktop,
    ):
        desktop.shows("New task")
        ask_for_zip(desktop, task_id, target.name)
        wait_until(lambda: part.exists() and part.stat().st_size > 2_000_000, f"beginning of the file; {desktop.lines}")
        received = proxy.received
        proxy.cut()
        wait_until(lambda: desktop.said("wide.zip is saved"), f"word of the saved file; {desktop.lines}")
        whole = farm.client.download_zip(task_id, tmp_path / "whole.zip").read_bytes()
        assert target.read_bytes() == whole
        assert proxy.received - received < len(whole) - 1_000_000
        assert not part.exists()
        assert desktop.quit() == 0


def test_end_of_a_task_is_told(desktop: Desktop, farm: RealFarm) -> None:
    word_of_end(desktop, farm, "told film")


def test_tray_icon_hides_and_shows_the_window_tells_ends_and_quits(desktop: Desktop, farm: RealFarm) -> None:
    window = desktop.window(WINDOW)
    word_of_end(desktop, farm, "film before")
    assert not desktop.small_windows()
    with tray(desktop.display):
        icon = wait_until(desktop.small_windows, f"tray icon; {desktop.lines}")[0]
        desktop.click(icon)
        wait_until(lambda: not desktop.has_window(WINDOW), f"hidden window; {desktop.lines}")
        rendered(farm, "tray film")
        message = wait_until(lambda: {*desktop.small_windows()} - {icon}, f"message; {desktop.lines}").pop()
        assert desktop.said("tray film is finished.")
        desktop.xdotool("mousemove", "--window", message, "60", "55", "click", "1")
        assert desktop.window(WINDOW) == window
        desktop.choose(icon, "h", lambda: not desktop.has_window(WINDOW))
        desktop.choose(icon, "s", lambda: desktop.has_window(WINDOW))
        desktop.choose(icon, "h", lambda: not desktop.has_window(WINDOW))
        desktop.choose(icon, "q", lambda: desktop.process.poll() is not None)


def test_link_to_another_host_leaves_the_window(desktop: Desktop, farm: RealFarm) -> None:
    desktop.page("location.href = 'https://www.blender.org/'")
    wait_until(lambda: desktop.said("Opened in the browser: https://www.blender.org/"), f"the link; {desktop.lines}")
    assert desktop.page("location.origin") == farm.url
