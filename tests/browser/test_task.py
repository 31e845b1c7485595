"""One task: frames that appear, the viewer, logs, parts, why it failed."""

import contextlib
import hashlib
import json
import sqlite3
import zipfile
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Route, expect

from renderonline.storage.images import PreviewFiles
from tests.browser.test_looks import look
from tests.support.browsing import PHONE, WIDE, PaintedFarm, Visitor
from tests.support.farm import wait_until
from tests.support.painter import DEFINITION

PIXEL = """(canvas) => { const { data } = canvas.getContext('2d').getImageData(0, canvas.height - 2, 1, 1);
  return [...data].slice(0, 3); }"""
"""The colour near the lower left corner: the painter's lake, nothing else on the page."""


def test_frames_appear_as_they_land(farm: PaintedFarm, visit: Visitor, tmp_path: Path) -> None:
    page = visit.page()
    go = tmp_path / "go"
    task_id = farm.submit("Appearing", "1-8", chunk_size=4, scene=f"a lake\nhold 4 {go}\n")
    page.locator(f"[data-task='{task_id}'] .name a").click()
    thumbs = page.locator("ro-thumb canvas")
    wait_until(lambda: thumbs.count() == 4, "grid with the frames of the part that is done")
    expect(page.locator(".summary")).to_contain_text("4 of 8")
    go.touch()
    wait_until(lambda: thumbs.count() == 8, "grid with all frames")
    expect(page.locator(".summary")).to_contain_text("Done")
    red, green, blue = thumbs.first.evaluate(PIXEL)
    assert blue > green > 50, (red, green, blue)
    results = sum(1 for _ in farm.real.client.results(task_id))
    assert results == 8


def test_page_of_a_running_task_reads_only_the_parts_that_changed(
    farm: PaintedFarm, visit: Visitor, tmp_path: Path
) -> None:
    page = visit.page()
    holds = [tmp_path / "first", tmp_path / "second"]
    lines = "".join(f"hold {frame} {path}\n" for frame, path in zip((4, 20), holds, strict=True))
    task_id = farm.submit("Growing", "1-24", chunk_size=1, scene=f"a lake\n{lines}")
    page.locator(f"[data-task='{task_id}'] .name a").click()
    wait_until(lambda: page.locator("ro-thumb canvas").count() >= 3, "grid with the first frames")
    with page.expect_response(lambda answer: "/explain" in answer.url):
        pass
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))

    holds[0].touch()
    wait_until(lambda: page.locator(".cell.succeeded").count() >= 19, "grid up to the second pause")
    wait_until(lambda: [url for url in asked if "ids=" in url and "/chunks" in url], "chunks that were asked for")
    assert [url for url in asked if "/chunks" in url and "ids=" not in url] == []
    holds[1].touch()
    expect(page.locator(".summary")).to_contain_text("Done")
    assert page.locator(".cell.succeeded").count() == 24


def fill(farm: PaintedFarm, task_id: int, painted: int, count: int) -> None:
    """Give a task the results that it would have after `count` frames, with the previews of another one."""
    files = PreviewFiles(farm.real.data / "previews")
    pictures = [files.path(painted, f"frame_{frame:04d}.png", "thumb").read_bytes() for frame in range(1, 25)]
    with contextlib.closing(sqlite3.connect(next(farm.real.data.glob("*.sqlite")), timeout=30)) as database, database:
        columns = [row[1] for row in database.execute("PRAGMA table_info(results)") if row[1] != "result_id"]
        (chunk_id,) = database.execute("SELECT min(chunk_id) FROM chunks WHERE task_id = ?", (task_id,)).fetchone()
        model = database.execute("SELECT * FROM results WHERE task_id = ?", (painted,))
        known = dict(zip((one[0] for one in model.description), model.fetchone(), strict=True))
        for frame in range(1, count + 1):
            name = f"frame_{frame:04d}.png"
            files.put(task_id, name, "thumb", pictures[frame % 24])
            digest = hashlib.sha256(name.encode()).hexdigest()
            row = known | {"task_id": task_id, "chunk_id": chunk_id, "name": name, "frame": frame}
            row |= {"name_hash": digest, "digest": digest}
            marks = ", ".join("?" for _ in columns)
            values = [row[column] for column in columns]
            database.execute(f"INSERT INTO results ({', '.join(columns)}) VALUES ({marks})", values)


STEPS = 120
SCROLL = """async () => {
  const times = [];
  let most = 0;
  let before = performance.now();
  for (let step = 0; step < STEPS; step++) {
    scrollBy(0, 120);
    await new Promise(requestAnimationFrame);
    times.push(performance.now() - before);
    before = performance.now();
    most = Math.max(most, document.querySelectorAll('*').length);
  }
  times.sort((one, other) => one - other);
  return { median: times[STEPS / 2], worst: times[STEPS - 1], most };
}""".replace("STEPS", str(STEPS))


def processor_s(browser: Browser) -> float:
    """Processor time that the browser's pages have used."""
    session = browser.new_browser_cdp_session()
    found = session.send("SystemInfo.getProcessInfo")["processInfo"]
    session.detach()
    return sum(float(one["cpuTime"]) for one in found if one["type"] == "renderer")


def test_five_thousand_frames_scroll_in_a_small_document(farm: PaintedFarm, visit: Visitor) -> None:
    """Five thousand rows and JPEGs, the latter those that a machine has made of 24 frames, served by RenderAPI."""
    task_id = farm.submit("Long film", "1-5000", paused=True)
    fill(farm, task_id, farm.rendered("Short film", "1-24", arguments={"painting_width": "640"}), 5000)
    assert all(result["preview"] for result in farm.real.client.results(task_id))
    page = visit.page(f"/tasks/{task_id}")
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url) if "/previews/" in one.url else None)
    page.on("request", lambda one: asked.append(f"whole {one.url}") if "/results/frame" in one.url else None)
    cells = page.locator("ro-windowed .cell")
    expect(page.get_by_role("button", name="Frame 1, Done")).to_be_visible()
    expect(page.locator("ro-thumb canvas").first).to_be_visible()
    before = processor_s(visit.browser)
    frames = page.evaluate(SCROLL)
    work = 1000 * (processor_s(visit.browser) - before) / STEPS
    told = f"{1000 / frames['median']:.0f} fps, worst {frames['worst']:.0f} ms, {frames['most']} elements"
    print(f"5,000 frames: {told}; {work:.1f} ms of processor time for each step")
    assert frames["most"] < 2500
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    last = page.locator(".cell", has=page.locator("[data-frame='5000']"))
    expect(last.locator("canvas")).to_be_visible()
    assert cells.count() < 150
    assert asked
    assert not [url for url in asked if url.startswith("whole")]
    page.goto("/")
    farm.real.client.delete(task_id)


def finish(farm: PaintedFarm, frames: int, lacks: int) -> int:
    """A task that has ended, with all its frames but one as rows in the database, of files that no browser shows."""
    task_id = farm.submit(f"All {frames}", f"1-{frames}", paused=True)
    with contextlib.closing(sqlite3.connect(next(farm.real.data.glob("*.sqlite")), timeout=30)) as database, database:
        (chunk_id,) = database.execute("SELECT min(chunk_id) FROM chunks WHERE task_id = ?", (task_id,)).fetchone()
        database.executemany(
            "INSERT INTO results (task_id, chunk_id, attempt_id, name, name_hash, frame, size, digest, crc32, state,"
            " landed_us) VALUES (?, ?, 1, ?, ?, ?, 1, ?, 1, 'landed', 1)",
            (
                (task_id, chunk_id, name, (digest := hashlib.sha256(name.encode()).hexdigest()), frame, digest)
                for frame in range(1, frames + 1)
                if frame != lacks and (name := f"frame_{frame:05d}.exr")
            ),
        )
        database.execute("DELETE FROM queue WHERE task_id = ?", (task_id,))
        database.execute("UPDATE chunks SET state = 'succeeded' WHERE task_id = ?", (task_id,))
        database.execute(
            "UPDATE tasks SET chunks_succeeded = chunks_waiting, chunks_waiting = 0, frames_done = ? WHERE task_id = ?",
            (frames - 1, task_id),
        )
    return task_id


FLASHES = """
  window.flashes = new Set();
  new MutationObserver(() => {
    for (const one of document.querySelectorAll('.cell.missing button')) flashes.add(one.getAttribute('aria-label'));
    for (const one of document.querySelectorAll('.chips button')) {
      if (one.textContent.includes('Missing')) flashes.add(one.textContent.replaceAll(/\\s+/g, ' ').trim());
    }
  }).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
"""


@pytest.mark.parametrize(("frames", "latency_ms"), [(240, 150), (10_000, 0)])
def test_only_frames_that_are_missing_are_called_so(
    farm: PaintedFarm, visit: Visitor, frames: int, latency_ms: int
) -> None:
    task_id = finish(farm, frames, lacks=3)
    page = visit.page("/")
    page.add_init_script(FLASHES)
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    slow = {"offline": False, "latency": latency_ms, "downloadThroughput": -1, "uploadThroughput": -1}
    network.send("Network.emulateNetworkConditions", slow)
    page.goto(f"/tasks/{task_id}")
    expect(page.get_by_role("button", name="Frame 3, Missing")).to_be_visible()
    assert set(page.evaluate("[...flashes]")) == {"Frame 3, Missing", "Missing 1"}
    shape = page.locator(".cell.missing .blank").bounding_box()
    assert shape is not None
    assert shape["height"] > 60
    if latency_ms:
        look(page, "task-missing")
    page.goto("/")
    farm.real.client.delete(task_id)


def test_viewer_with_the_keyboard(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.rendered("Viewed", "1-6")
    page = visit.page(f"/tasks/{task_id}")
    page.locator("[data-frame='3']").click()
    viewer = page.locator("dialog.viewer")
    head = viewer.locator("header strong")
    expect(head).to_have_text("Frame 3")
    expect(viewer.locator("header")).to_contain_text("192 × 108")
    for key, frame in (("ArrowRight", 4), ("End", 6), ("ArrowRight", 6), ("ArrowLeft", 5), ("Home", 1)):
        page.keyboard.press(key)
        expect(head).to_have_text(f"Frame {frame}")
    assert "frame=1" in page.url
    viewer.get_by_role("slider", name="Frame").fill("3")
    expect(head).to_have_text("Frame 4")
    viewer.get_by_role("button", name="Real size").click()
    seen = "(({ scale, zoom }) => ({ scale, zoom }))(document.querySelector('ro-viewer'))"
    wait_until(lambda: page.evaluate(seen)["scale"] == 1, "picture in its real size")
    page.keyboard.press("+")
    wait_until(lambda: page.evaluate(seen)["scale"] > 1, "larger picture")
    page.keyboard.press("f")
    wait_until(lambda: page.evaluate(seen)["zoom"] == 0, "picture that fits")
    page.keyboard.press("?")
    expect(viewer.get_by_text("play, pause")).to_be_visible()
    page.keyboard.press("?")
    viewer.get_by_role("button", name="Play").click()
    expect(viewer.get_by_role("button", name="Pause")).to_be_visible()
    wait_until(lambda: head.inner_text() not in {"Frame 4", ""}, "film that moves")
    viewer.get_by_role("button", name="Pause").click()
    viewer.locator(".stage").click(position={"x": 5, "y": 5})
    page.keyboard.press(" ")
    expect(viewer.get_by_role("button", name="Pause")).to_be_visible()
    page.keyboard.press(" ")
    expect(viewer.get_by_role("button", name="Play")).to_be_visible()
    stage = viewer.locator(".stage").bounding_box()
    assert stage is not None
    x, y = stage["x"] + stage["width"] / 2, stage["y"] + stage["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 400, y, steps=4)  # to earlier frames, as far as there are
    page.mouse.up()
    expect(head).to_have_text("Frame 1")
    page.mouse.down()
    page.mouse.move(x - 400, y, steps=4)
    page.mouse.up()
    expect(head).to_have_text("Frame 6")
    page.mouse.wheel(0, -100)
    wait_until(lambda: page.evaluate(seen)["zoom"] > 0, "picture that is zoomed")
    page.keyboard.press("Escape")
    expect(viewer).to_have_count(0)
    assert "frame=" not in page.url


def test_address_of_a_frame_opens_it(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.rendered("Linked", "1-3")
    page = visit.page(f"/tasks/{task_id}?frame=2")
    expect(page.locator("dialog.viewer header strong")).to_have_text("Frame 2")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    assert download.value.suggested_filename == "frame_0002.png"


def test_file_that_is_no_frame_has_the_name_with_which_it_is_downloaded(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.rendered("Sunset", "1", film="mp4", names="{title}_take")
    page = visit.page(f"/tasks/{task_id}")
    page.get_by_role("button", name="Film Sunset_take.mp4").click()
    expect(page.locator("dialog.viewer header strong")).to_have_text("Sunset_take.mp4")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download", exact=True).click()
    assert download.value.suggested_filename == "Sunset_take.mp4"


def test_failed_task_says_why_shows_its_log_and_is_tried_again(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.rendered("Failing", "1-4", "failed", scene="fail 2\n", chunk_size=1)
    page = visit.page(f"/tasks/{task_id}")
    expect(page.locator(".because")).to_contain_text("frame 2 can't be painted")
    expect(page.get_by_role("button", name="Frame 2, Failed")).to_be_visible()
    page.get_by_role("button", name="Look at the log").click()
    expect(page.locator("ro-windowed.log")).to_contain_text("Error: frame 2 can't be painted")
    expect(page.get_by_role("tab", name="Log")).to_have_attribute("aria-selected", "true")
    done = page.get_by_label("Attempt").locator("option").filter(has_text="Frames 1 on atelier – Done")
    page.get_by_label("Attempt").select_option(str(done.get_attribute("value")))
    expect(page.locator("ro-windowed.log")).to_contain_text("Fra:1 ")
    expect(page.locator("ro-windowed.log")).not_to_contain_text("can't be painted")
    page.get_by_role("tab", name="Parts").click()
    expect(page.locator(".attempts")).to_contain_text("atelier")
    before = len(list(farm.real.client.attempts(task_id)))
    page.get_by_role("button", name="Retry", exact=True).click()
    wait_until(lambda: len(list(farm.real.client.attempts(task_id))) > before, "another attempt")


def test_waiting_task_says_why_and_leads_to_the_machines(farm: PaintedFarm, visit: Visitor) -> None:
    nobody = DEFINITION.replace('"painter"', '"etcher"').replace('"Painter"', '"Etcher"')
    farm.real.client.admin.add_engine(nobody.replace(".paint", ".etch"))
    task_id = farm.real.client.submit(farm.scene("lake.etch"), engine="etcher", frames="1-2")["task_id"]
    page = visit.page("/?q=lake.etch")
    row = page.locator(f"[data-task='{task_id}']")
    expect(row).to_contain_text("Can't start")
    row.get_by_role("link").click()
    reason = page.locator(".because")
    expect(reason).to_contain_text("No machine has the engine etcher.")
    expect(reason.locator("code")).to_have_text("renderonline engine list --here")
    expect(reason).not_to_contain_text("Not on")
    look(page, "task-stuck")
    reason.get_by_role("link", name="Machines").click()
    expect(page.locator("[data-machine='atelier']")).to_be_visible()
    farm.real.client.cancel(task_id)


def test_warnings_stay_where_success_is_shown(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.rendered("Warned", "1-3", film="mp4")
    told = ["textures/wood.png is not there", *(f"light {number} has no power" for number in range(6))]
    with contextlib.closing(sqlite3.connect(next(farm.real.data.glob("*.sqlite")), timeout=30)) as database, database:
        database.execute("UPDATE tasks SET warnings = ? WHERE task_id = ?", (json.dumps(told), task_id))
    page = visit.page("/?q=Warned")
    row = page.locator(f"[data-task='{task_id}']")
    expect(row.locator(".chip")).to_have_text("7 warnings")
    expect(row.locator(".state.warned")).to_have_text("Done")
    look(page, "tasks-warned")
    row.get_by_role("link").click()
    banner = page.get_by_role("status", name="Warnings")
    expect(banner).to_contain_text("textures/wood.png is not there")
    expect(banner.locator("summary")).to_have_text("2 more")
    look(page, "task-warned")
    page.get_by_role("button", name="Play the film").click()
    expect(page.locator("dialog.viewer .alarm")).to_contain_text("wood.png is not there and 6 more warnings")
    expect(page.locator("dialog.viewer video")).to_be_visible()
    look(page, "film-warned")


def test_paused_task_gets_another_priority_and_goes_on(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.submit("Later", "1-2", paused=True)
    page = visit.page(f"/tasks/{task_id}?tab=facts")
    page.get_by_label("Priority").fill("80")
    wait_until(lambda: farm.real.client.task(task_id)["priority"] == 80, "other priority")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".summary")).to_contain_text("Done")
    expect(page.get_by_role("button", name="Resume")).to_have_count(0)


def test_log_follows_stops_when_one_scrolls_up_and_is_searched(
    farm: PaintedFarm, visit: Visitor, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    task_id = farm.submit("Talkative", "1-40", scene=f"hold 9 {go}\n" + "chatter\n" * 2000, chunk_size=40)
    page = visit.page(f"/tasks/{task_id}?tab=log")
    log = page.locator("ro-windowed.log")
    expect(log).to_contain_text("Fra:9")
    go.touch()
    farm.real.wait_for_status(task_id, "succeeded")
    expect(log).to_contain_text("chatter line 1999")
    assert log.locator(".row").count() < 120
    log.evaluate("(list) => { list.scrollTop = 0; }")
    expect(page.get_by_label("Follow")).not_to_be_checked()
    expect(log).to_contain_text("Fra:1 ")
    page.get_by_label("Find in the log").fill("line 1234")
    expect(log.locator("mark")).to_have_text("line 1234")
    expect(page.get_by_text("1 of 1", exact=True)).to_be_visible()


def test_single_frame_is_rendered_again(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.rendered("Again", "1-3", chunk_size=3)
    page = visit.page(f"/tasks/{task_id}?frame=2")
    page.get_by_role("button", name="Render again").click()
    expect(page.get_by_text("Frame 2 is rendered again.")).to_be_visible()
    wait_until(lambda: len(list(farm.real.client.attempts(task_id))) == 2, "second attempt")
    farm.real.wait_for_status(task_id, "succeeded")


def test_chosen_frames_are_downloaded_and_rendered_again(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.rendered("Chosen", "1-6", chunk_size=6)
    page = visit.page(f"/tasks/{task_id}")
    page.get_by_role("button", name="Choose").click()
    page.get_by_role("button", name="Frame 2, Done").click()
    page.get_by_role("button", name="Frame 4, Done").click(modifiers=["Shift"])
    bar = page.get_by_role("toolbar", name="With the chosen frames")
    expect(bar).to_contain_text("3 frames")
    with page.expect_download() as download:
        bar.get_by_role("button", name="Download").click()
    names = zipfile.ZipFile(download.value.path()).namelist()
    assert {name for name in names if name.endswith(".png")} == {f"frame_{n:04d}.png" for n in (2, 3, 4)}
    bar.get_by_role("button", name="Render again").click()
    expect(page.get_by_text("Frames 2-4 are rendered again.")).to_be_visible()
    wait_until(lambda: len(list(farm.real.client.attempts(task_id))) >= 2, "second attempt")
    farm.real.wait_for_status(task_id, "succeeded")
    landed = {one["frame"]: one["attempt_id"] for one in farm.real.client.results(task_id)}
    assert landed[2] == landed[4] != landed[1] == landed[6]


def test_two_frames_are_compared(farm: PaintedFarm, visit: Visitor) -> None:
    visit.watched.expected.append("willReadFrequently")
    task_id = farm.rendered("Compared", "1-20x19", arguments={"painting_width": "320"})
    page = visit.page(f"/tasks/{task_id}?frame=1")
    viewer = page.locator("dialog.viewer")
    expect(viewer.locator("header")).to_contain_text("320 × 180")
    middle = """() => {
      const canvas = document.querySelector('.stage canvas');
      const row = canvas.getContext('2d').getImageData(0, canvas.height / 2, canvas.width, 1).data;
      return [0.04, 0.84].map((at) => [...row.slice(4 * Math.round(canvas.width * at)).slice(0, 3)]);
    }"""
    alone = page.evaluate(middle)
    page.keyboard.press("c")
    expect(viewer.locator("header strong")).to_have_text("Frames 1 | 20")
    wait_until(lambda: page.evaluate(middle)[1] != alone[1], "sun of frame 20 on the right")
    assert page.evaluate(middle)[0] == alone[0]  # that of frame 1 on the left
    viewer.get_by_role("slider", name="Divide").fill("100")
    wait_until(lambda: page.evaluate(middle) == alone, "frame 1 alone")
    page.keyboard.press("c")
    expect(viewer.locator("header strong")).to_have_text("Frame 20")


def test_hundred_thousand_lines_of_log_stay_a_small_document(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.rendered("Verbose", "1-1", scene="chatter\n" * 100_000)
    page = visit.page(f"/tasks/{task_id}?tab=log")
    log = page.locator("ro-windowed.log")
    expect(log).to_contain_text("chatter line 99999")
    assert log.locator(".row").count() < 120
    took = page.evaluate(
        """async () => {
          const field = document.querySelector('ro-log input[type=search]');
          const begun = performance.now();
          field.value = 'line 4242';
          field.dispatchEvent(new Event('input', { bubbles: true }));
          await new Promise((go) => requestAnimationFrame(() => setTimeout(go)));
          return performance.now() - begun;
        }"""
    )
    expect(page.get_by_text("1 of 11", exact=True)).to_be_visible()
    print(f"100,000 lines of log searched in {took:.0f} ms")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert len(Path(download.value.path()).read_text().splitlines()) > 100_000


def test_timeline_shows_who_rendered_when(farm: PaintedFarm, visit: Visitor) -> None:
    task_id = farm.rendered("Timed", "1-4", "failed", scene="fail 3\n", chunk_size=2)
    page = visit.page(f"/tasks/{task_id}?tab=parts")
    bars = page.locator("ro-timeline rect")
    expect(bars).to_have_count(len(list(farm.real.client.attempts(task_id))))
    page.locator("ro-timeline rect.failed").first.click(force=True)
    expect(page.get_by_role("tab", name="Log")).to_have_attribute("aria-selected", "true")
    expect(page.locator("ro-windowed.log")).to_contain_text("frame 3 can't be painted")


TIMES = """() => [...document.querySelectorAll('ro-timeline .times text')].map((one) => {
  const { left, right } = one.getBoundingClientRect();
  return [left, right];
})"""


@pytest.mark.parametrize("seconds", [7, 95, 3000, 32_000, 260_000])
def test_times_below_the_timeline_do_not_overlap(farm: PaintedFarm, visit: Visitor, seconds: int) -> None:
    task_id = farm.rendered(f"Of {seconds} s", "1-2", chunk_size=1)

    def stretch(route: Route) -> None:
        found = route.fetch().json()
        times = [datetime(2026, 3, 5, 8, 0, 3) + timedelta(seconds=passed) for passed in (0, seconds)]
        for one in found["items"]:
            one["assigned"] = one["started"] = times[0].isoformat() + "Z"
            one["ended"] = times[1].isoformat() + "Z"
        route.fulfill(json=found)

    page = visit.page("/")
    page.route("**/attempts?*", stretch)
    page.goto(f"/tasks/{task_id}?tab=parts")
    for viewport in (WIDE, PHONE):
        page.set_viewport_size(viewport)

        def fits(width: int = viewport["width"]) -> bool:
            places = page.evaluate(TIMES)
            apart = all(one[1] + 8 < other[0] for one, other in pairwise(places))
            return bool(places) and apart and places[0][0] >= 0 and places[-1][1] <= width

        wait_until(fits, "line of times that can be read")
    if seconds == 3000:
        look(page, "task-timeline")
