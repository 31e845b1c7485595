"""Scenes on their way to the farm: they go on after pauses, cuts, restarts and reloads, whole and once."""

import contextlib
import hashlib
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import CDPSession, Page, expect

from renderonline.rnoclient.sdk.client import Client
from renderonline.rnoclient.sdk.connection import Login
from tests.faults.proxy import Proxy
from tests.support.browsing import PaintedFarm, Visitor, log_in
from tests.support.farm import wait_until

Throttle = Callable[[Page, int], None]
FAST, SLOW = -1, 400_000
SIZE = 12_000_000
"""At `SLOW` it is half a minute on its way: what a test does meanwhile is done long before its end."""


@pytest.fixture
def large(farm: PaintedFarm, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A scene whose bytes are all different from test to test."""
    path = farm.directory / f"{request.node.name}.paint"
    seed = hashlib.blake2b(request.node.name.encode()).digest()
    path.write_bytes(b"".join(hashlib.blake2b(seed + n.to_bytes(4)).digest() for n in range(SIZE // 64)))
    yield path
    path.unlink()


@pytest.fixture
def throttle() -> Throttle:
    """Limits how many bytes a second a page sends. The limits of several sessions add up, so a page has one session."""
    sessions: dict[Page, CDPSession] = {}

    def limit(page: Page, speed: int) -> None:
        if page not in sessions:
            sessions[page] = page.context.new_cdp_session(page)
            sessions[page].send("Network.enable")
        conditions = {"offline": False, "latency": 0, "downloadThroughput": -1, "uploadThroughput": speed}
        sessions[page].send("Network.emulateNetworkConditions", conditions)

    return limit


def sent(page: Page) -> int:
    """Per cent that the page says are sent."""
    (text,) = page.locator(".sending").all_inner_texts() or ["100 %"]
    return int(text.partition("%")[0].split()[-1])


def on_its_way(page: Page) -> None:
    """Wait until a part of the file is on the farm, and most of it is not."""
    wait_until(lambda: 4 < sent(page) < 100, "upload that is on its way")


def stored(farm: PaintedFarm, scene: Path) -> bool:
    """Whether the farm has a task's copy of the file, byte by byte."""
    found = [path for path in farm.real.data.rglob(scene.name) if ".incoming" not in path.parts]
    return any(path.read_bytes() == scene.read_bytes() for path in found)


def choose(page: Page, scene: Path) -> None:
    page.get_by_label("Scene file").set_input_files(scene)


def test_upload_is_paused_and_goes_on(farm: PaintedFarm, visit: Visitor, large: Path, throttle: Throttle) -> None:
    page = visit.page("/submit")
    throttle(page, SLOW)
    choose(page, large)
    on_its_way(page)
    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".sending")).to_contain_text("Paused")
    before = sent(page)
    throttle(page, FAST)
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".sending")).to_have_count(0)
    assert before < 100
    page.get_by_label("Frames", exact=True).fill("1-1")
    page.get_by_role("button", name="Submit 1 frame").click()
    page.get_by_role("heading", name=large.name).wait_for()
    assert stored(farm, large)


def test_upload_that_is_cut_goes_on_by_itself(
    farm: PaintedFarm, visit: Visitor, large: Path, throttle: Throttle
) -> None:
    visit.watched.expected += ["ERR_"]
    with contextlib.closing(Proxy(int(farm.url.rpartition(":")[2]))) as proxy:
        visit.watched.host = f"127.0.0.1:{proxy.port}"
        page = visit.page("/submit", login=farm.login, context=visit.context(base_url=proxy.url))
        throttle(page, SLOW)
        choose(page, large)
        for least in (4, 8, 12):
            wait_until(lambda least=least: sent(page) >= least, "progress")
            proxy.refusing = True
            proxy.cut()
            expect(page.locator(".sending")).to_contain_text("by itself")
            proxy.heal()
        throttle(page, FAST)
        expect(page.locator(".sending")).to_have_count(0)
        page.get_by_label("Frames", exact=True).fill("1-1")
        page.get_by_role("button", name="Submit 1 frame").click()
        page.get_by_role("heading", name=large.name).wait_for()
    assert stored(farm, large)


def test_upload_goes_on_after_a_reload_when_the_same_file_is_chosen(
    farm: PaintedFarm, visit: Visitor, large: Path, throttle: Throttle
) -> None:
    visit.watched.expected += ["ERR_"]
    page = visit.page("/submit")
    throttle(page, SLOW)
    choose(page, large)
    page.get_by_label("Frames", exact=True).fill("3-4")
    on_its_way(page)
    page.reload()
    goes_on(page, large, throttle)
    assert stored(farm, large)


def goes_on(page: Page, scene: Path, throttle: Throttle) -> None:
    """Choose the same file on a page that knows nothing but what the browser kept, and submit frames 3 and 4."""
    expect(page.locator(".earlier")).to_contain_text(scene.name)
    begun: list[int] = []
    page.on("request", lambda one: begun.append(int(one.headers.get("upload-offset", -1))))
    throttle(page, FAST)
    choose(page, scene)
    expect(page.locator(".sending")).to_have_count(0)
    expect(page.get_by_label("Frames", exact=True)).to_have_value("3-4")
    assert min(offset for offset in begun if offset >= 0) > SIZE // 100
    page.get_by_role("button", name="Submit 2 frames").click()
    page.get_by_role("heading", name=scene.name).wait_for()


def test_upload_goes_on_after_a_restart_of_the_browser_when_the_same_file_is_chosen(
    farm: PaintedFarm, visit: Visitor, large: Path, throttle: Throttle, tmp_path: Path
) -> None:
    visit.watched.expected += ["ERR_"]
    browser = visit.profile(tmp_path / "profile")
    page = visit.page("/submit", login=farm.login, context=browser)
    throttle(page, SLOW)
    choose(page, large)
    page.get_by_label("Frames", exact=True).fill("3-4")
    on_its_way(page)
    kept = "localStorage.getItem('renderonline-uploads') ?? ''"
    wait_until(lambda: "3-4" in page.evaluate(kept), "form that is remembered")
    browser.close()
    page = visit.page("/submit", login=farm.login, context=visit.profile(tmp_path / "profile"))
    goes_on(page, large, throttle)
    assert stored(farm, large)


def test_farm_that_is_killed_meanwhile_gets_the_rest(
    farm: PaintedFarm, visit: Visitor, large: Path, throttle: Throttle
) -> None:
    visit.watched.expected += ["ERR_", "Failed to load resource"]
    page = visit.page("/submit")
    throttle(page, SLOW)
    choose(page, large)
    page.get_by_label("Frames", exact=True).fill("1-1")
    on_its_way(page)
    page.get_by_role("button", name="Submit 1 frame when the upload ends").click()
    port = int(farm.url.rpartition(":")[2])
    farm.real.supervisor.forget(farm.real.renderapi)
    farm.real.renderapi.process.send_signal(signal.SIGKILL)
    farm.real.renderapi.process.wait()
    expect(page.locator(".sending")).to_contain_text("by itself")
    throttle(page, FAST)
    farm.real.start_renderapi(port)
    page.get_by_role("heading", name=large.name).wait_for()
    assert stored(farm, large)


def test_upload_goes_on_while_one_looks_at_other_pages(
    farm: PaintedFarm, visit: Visitor, large: Path, throttle: Throttle
) -> None:
    page = visit.page("/submit")
    throttle(page, SLOW)
    choose(page, large)
    page.get_by_label("Frames", exact=True).fill("1-1")
    page.get_by_role("button", name="Submit 1 frame when the upload ends").click()
    page.get_by_role("link", name="Tasks").first.click()
    strip = page.get_by_role("list", name="Uploads")
    expect(strip).to_contain_text("/s")
    throttle(page, FAST)
    expect(page.get_by_text(f"“{large.name}” is submitted.")).to_be_visible()
    expect(strip).to_have_count(0)
    expect(page.locator("[data-task]").filter(has_text=large.name)).to_have_count(1)


def end_session(farm: PaintedFarm, page: Page) -> None:
    """As its end after some hours would; the page is not told."""
    page.context.request.delete(f"{farm.url}/renderapi/v2/session", headers={"X-RenderOnline": "1"})


def test_session_that_ends_meanwhile_costs_nothing(
    farm: PaintedFarm, visit: Visitor, large: Path, throttle: Throttle
) -> None:
    """The upload is the first to notice; it goes on by itself when one has logged in."""
    visit.watched.expected += ["401"]
    context = visit.context()
    context.route("**/renderapi/v2/events", lambda route: None)  # nothing that happens makes the page ask the farm
    page = visit.page("/submit", login=farm.login, context=context)
    throttle(page, SLOW)
    choose(page, large)
    on_its_way(page)
    page.get_by_role("button", name="Pause").click()
    end_session(farm, page)
    throttle(page, FAST)
    page.get_by_role("button", name="Go on").click()  # the farm asks who it is
    page.get_by_label("E-mail").wait_for()
    log_in(page, farm.login)
    expect(page.get_by_role("heading", name="New task")).to_be_visible()
    expect(page.locator(".sending")).to_have_count(0)
    page.get_by_label("Frames", exact=True).fill("1-1")
    page.get_by_role("button", name="Submit 1 frame").click()
    page.get_by_role("heading", name=large.name).wait_for()
    assert stored(farm, large)


def test_paused_upload_is_still_paused_after_logging_in_again(
    farm: PaintedFarm, visit: Visitor, large: Path, throttle: Throttle
) -> None:
    """What happens on the farm makes the page ask, and so it notices that its session has ended."""
    visit.watched.expected += ["401"]
    page = visit.page("/submit", login=farm.login, context=visit.context())
    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    throttle(page, SLOW)
    choose(page, large)
    on_its_way(page)
    page.get_by_role("button", name="Pause").click()
    end_session(farm, page)
    farm.rendered("Somebody else's", "1-1")
    page.get_by_label("E-mail").wait_for()
    log_in(page, farm.login)
    expect(page.locator(".sending")).to_contain_text("Paused")
    assert sent(page) > 1
    throttle(page, FAST)
    page.get_by_role("button", name="Go on").click()
    expect(page.locator(".sending")).to_have_count(0)
    page.get_by_label("Frames", exact=True).fill("1-1")
    page.get_by_role("button", name="Submit 1 frame").click()
    page.get_by_role("heading", name=large.name).wait_for()
    assert stored(farm, large)


def test_folder_keeps_its_places(farm: PaintedFarm, visit: Visitor, tmp_path: Path) -> None:
    project = tmp_path / "project"
    (project / "textures").mkdir(parents=True)
    (project / ".git").mkdir()
    (project / "shot.paint").write_text("a lake\n")
    (project / "textures" / "wood.png").write_bytes(b"wood" * 1000)
    (project / ".git" / "config").write_text("nobody renders this")
    page = visit.page("/submit")
    page.get_by_label("Folder with the scene").set_input_files(project)
    expect(page.locator(".scene")).to_contain_text("2 files")
    page.get_by_text("All files").click()
    expect(page.locator(".files li").filter(has_text="textures/wood.png")).to_be_visible()
    page.get_by_label("Frames", exact=True).fill("1-1")
    page.get_by_role("button", name="Submit 1 frame").click()
    expect(page.locator(".summary")).to_contain_text("Done")
    (texture,) = (path for path in farm.real.data.rglob("wood.png") if ".incoming" not in path.parts)
    assert (texture.parent.parent / "shot.paint").read_text() == "a lake\n"


def test_zip_is_taken_apart_by_the_farm(farm: PaintedFarm, visit: Visitor, tmp_path: Path) -> None:
    packed = tmp_path / "packed.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("river.paint", "a river\n")
        archive.writestr("textures/water.png", b"water" * 1000)
    page = visit.page("/submit")
    choose(page, packed)
    page.get_by_label("Engine", exact=True).select_option("Painter")
    page.get_by_label("Frames", exact=True).fill("1-1")
    page.get_by_role("button", name="Submit 1 frame").click()
    expect(page.locator(".summary")).to_contain_text("Done")
    assert [path for path in farm.real.data.rglob("water.png") if ".incoming" not in path.parts]


def test_one_scene_of_several_is_chosen(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files([farm.scene("one.paint"), farm.scene("two.paint", "two\n")])
    page.locator(".which select").select_option("two.paint")
    page.get_by_label("Frames", exact=True).fill("1-1")
    page.get_by_role("button", name="Submit 1 frame").click()
    expect(page.get_by_role("heading", name="two.paint")).to_be_visible()


def test_refusal_is_told_and_can_be_tried_again(farm: PaintedFarm, visit: Visitor) -> None:
    """A file that is larger than the disk is refused before a byte of it travels."""
    visit.watched.expected += ["507", "413"]
    page = visit.page("/submit")
    huge = farm.directory / "huge.paint"
    with huge.open("wb") as file:
        file.truncate(9 << 40)
    choose(page, huge)
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    huge.unlink()


def test_task_beyond_the_queue_limit_is_refused_and_taken_when_there_is_room(
    farm: PaintedFarm, visit: Visitor, large: Path
) -> None:
    visit.watched.expected += ["429"]
    admin = farm.real.client.admin
    small = admin.add_subscription(name="Small", queue_limit=1)["subscription_id"]
    token = admin.add_user(email="one@example.org", subscription_id=small)["token"]
    login = Login(url=farm.url, email="one@example.org", token=token)
    with contextlib.closing(Client(login)) as client:
        first = client.submit(farm.scene(), engine="painter", frames="1-1", paused=True)["task_id"]
        page = visit.page("/submit", login=login, context=visit.context())
        choose(page, large)
        expect(page.get_by_text("Queue: 1 of 1 used")).to_be_visible()
        page.get_by_label("Frames", exact=True).fill("1-1")
        submit = page.get_by_role("button", name="Submit 1 frame")
        submit.click()
        expect(page.get_by_role("alert")).to_contain_text("Queue limit 1 reached for your subscription")
        client.delete(first)
        expect(page.get_by_text("Queue: 0 of 1 used")).to_be_visible()
        submit.click()
        page.get_by_role("heading", name=large.name).wait_for()
    assert stored(farm, large)


def test_upload_is_given_up(farm: PaintedFarm, visit: Visitor, large: Path, throttle: Throttle) -> None:
    visit.watched.expected += ["ERR_ABORTED"]
    page = visit.page("/submit")
    throttle(page, SLOW)
    choose(page, large)
    expect(page.locator(".sending")).to_contain_text("of 12 MB")
    expect(page.locator(".sending")).to_contain_text("/s")
    page.get_by_role("button", name="Stop").click()
    expect(page.get_by_text("Drop the scene here")).to_be_visible()
    staged = [path for path in farm.real.data.rglob(".incoming") if path.is_dir()]
    wait_until(lambda: not any(path.stat().st_size > 1000 for one in staged for path in one.rglob(large.name)), "room")
    assert not any(task["file_name"] == large.name for task in farm.real.client.tasks())
