"""The form of a new task: picker, drop, progress, checks as one types."""

import io
import re
import zipfile
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from renderonline.farm.arguments import TYPES
from renderonline.farm.frames import parse_frames
from tests.browser.test_looks import look
from tests.support.blend_files import Blend, Scene
from tests.support.browsing import PaintedFarm, Visitor, log_in
from tests.support.farm import wait_until


def test_scene_from_the_picker_becomes_frames_and_a_download(farm: PaintedFarm, visit: Visitor, tmp_path: Path) -> None:
    page = visit.page()
    page.get_by_role("link", name="New task").first.click()
    page.get_by_label("Scene file").set_input_files(farm.scene("dawn.paint"))
    expect(page.locator("dialog, .scene")).to_contain_text("dawn.paint")
    page.get_by_label("Frames", exact=True).fill("1-6x2, 9")
    expect(page.get_by_text("= 4 frames")).to_be_visible()
    page.get_by_label("Name").fill("Dawn")
    page.get_by_label("Width").fill("64")
    page.get_by_role("button", name="Submit 4 frames").click()
    expect(page.get_by_role("heading", name="Dawn")).to_be_visible()
    expect(page.locator(".summary")).to_contain_text("Done")
    expect(page.locator("ro-thumb canvas")).to_have_count(4)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download all").click()
    archive = zipfile.ZipFile(io.BytesIO(Path(download.value.path()).read_bytes()))
    assert archive.testzip() is None
    names = {name for name in archive.namelist() if name.endswith(".png")}
    assert names == {f"frame_{frame:04d}.png" for frame in (1, 3, 5, 9)}


def test_submission_before_the_upload_has_ended_takes_all_frames_of_the_scene(
    farm: PaintedFarm, visit: Visitor
) -> None:
    scene = farm.directory / "early.blend"
    scene.write_bytes(Blend(scenes=(Scene(start=1, end=120, imtype=23),)).write())
    page = visit.page("/submit")
    held: list[Route] = []
    page.route("**/files/0", lambda route: held.append(route))
    page.get_by_label("Scene file").set_input_files(scene)
    expect(page.locator(".frames-count")).to_have_text("= all frames of the scene")
    expect(page.get_by_label("Format")).to_have_value("")  # as the scene says
    page.get_by_label("Don't start yet").check()
    page.get_by_role("button", name="Submit all frames of the scene when the upload ends").click()
    expect(page.get_by_text("The task begins as soon as everything is there.")).to_be_visible()
    wait_until(lambda: page.evaluate("1") and held, "request that sends the scene")
    held[0].continue_()
    page.get_by_role("heading", name="early.blend").wait_for()
    task = farm.real.client.task(int(page.url.rpartition("/")[2]))
    assert (task["frames"], task["frames_total"]) == ("1-120", 120)
    assert task["arguments"]["format"] == "OPEN_EXR"
    page.close()
    farm.real.client.delete(task["task_id"])


def test_form_asks_for_all_that_a_task_may_need(farm: PaintedFarm, visit: Visitor) -> None:
    before = farm.rendered("Comes before", "1-1")
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files(farm.scene("needs.paint"))
    page.get_by_text("More: which machines, when, which names").click()
    filled = {
        "Tags": "Fast gpu",
        "Pool": "film",
        "Graphics cards": "1",
        "Memory of a card, MiB": "8000",
        "Memory, MiB": "512",
        "Engine at least": "1.2",
    }
    filled |= {"After": str(before), "Parts at once": "3", "Results are called": "{file}/{frame:05}"}
    for label, value in filled.items():
        page.get_by_label(label, exact=True).fill(value)
    page.get_by_label("Box", exact=True).select_option("Landlock or better")
    page.get_by_label("Don't start yet").check()
    for label, wrong in (("Tags", "two/words"), ("Memory, MiB", "4 GB"), ("After", "the last")):
        page.get_by_label(label, exact=True).fill(wrong)
        expect(page.get_by_label(label, exact=True)).to_have_attribute("aria-invalid", "true")
        page.get_by_label(label, exact=True).fill(filled[label])
    look(page, "submit-more")
    page.get_by_role("button", name="Submit 24 frames").click()
    page.get_by_role("heading", name="needs.paint").wait_for()
    task = farm.real.client.task(int(page.url.rpartition("/")[2]))
    needs = {
        "engine_version": "1.2",
        "tags": ["fast", "gpu"],
        "pool": "film",
        "memory_mib": 512,
        "gpus": 1,
        "gpu_memory_mib": 8000,
    }
    needs["sandbox"] = "landlock"
    assert {name: value for name, value in task["needs"].items() if name in needs} == needs
    assert task["running_limit"] == 3
    page.close()
    farm.real.client.delete(task["task_id"])


def test_what_is_wrong_with_a_scene_stands_in_the_way_and_its_parts_are_chosen(
    farm: PaintedFarm, visit: Visitor
) -> None:
    scene = farm.directory / "two.blend"
    scene.write_bytes(Blend(scenes=(Scene(camera=0), Scene(name="Night", start=5, end=9))).write())

    def more(route: Route) -> None:
        """What these few bytes don't have."""
        facts = route.fetch().json()
        facts["scenes"][1] |= {"cameras": ["Wide", "Close"], "view_layers": ["All"], "unbaked": ["Cloth"]}
        route.fulfill(json={**facts, "missing_inputs": ["textures/wood.png"]})

    page = visit.page("/submit")
    page.route("**/facts?*", more)
    page.get_by_label("Scene file").set_input_files(scene)
    alarm = page.get_by_role("alert")
    expect(alarm).to_contain_text("no camera")
    expect(alarm).to_contain_text("textures/wood.png")
    submit = page.get_by_role("button", name="Submit 1 frame anyway")
    expect(submit).not_to_have_class(re.compile("primary"))
    page.get_by_label("Scene", exact=True).select_option("Night")
    expect(page.get_by_label("Frames", exact=True)).to_have_value("5-9")
    expect(page.get_by_label("Camera").locator("option")).to_have_text(["As the scene says", "Wide", "Close"])
    expect(alarm).to_contain_text("Not baked: Cloth.")
    look(page, "submit-trouble")
    alarm.get_by_role("button", name="Render in one part").click()
    expect(alarm).not_to_contain_text("Cloth")
    page.get_by_label("Camera").select_option("Close")
    page.get_by_label("Don't start yet").check()
    page.get_by_role("button", name="Submit 5 frames anyway").click()
    page.get_by_role("heading", name="two.blend").wait_for()
    task = farm.real.client.task(int(page.url.rpartition("/")[2]))
    assert (task["frames"], task["arguments"]["scene"], task["arguments"]["camera"]) == ("5-9", "Night", "Close")
    assert task["chunks"]["waiting"] == 1
    page.close()
    farm.real.client.delete(task["task_id"])


def test_keyboard_alone_submits_and_downloads(farm: PaintedFarm, visit: Visitor) -> None:
    """From logging in to the ZIP without a mouse; what has the focus is always to be seen."""
    page = visit.context().new_page()
    visit.watched.watch(page)
    page.on("filechooser", lambda chooser: chooser.set_files(farm.scene("keys.paint")))
    page.goto("/login")
    page.get_by_label("E-mail").wait_for()

    def reach(name: str) -> None:
        for _ in range(40):
            told = page.evaluate(
                """() => {
                  const at = document.activeElement;
                  const style = getComputedStyle(at.type === 'file' ? at.closest('label') : at);
                  const name = at.getAttribute('aria-label') || at.labels?.[0]?.textContent || at.textContent || '';
                  const seen = style.outlineStyle !== 'none' || ['BODY', 'MAIN'].includes(at.tagName);
                  return [name, seen, at.matches('a, button, input, summary')];
                }"""
            )
            assert told[1], f"the focus on {told[0].strip()} can't be seen"
            if told[2] and name in told[0].strip():
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"Tab does not lead to {name}")

    reach("E-mail")
    page.keyboard.type(farm.login.email)
    reach("Token")
    page.keyboard.type(farm.login.token)
    page.keyboard.press("Enter")
    page.locator(
        ".empty, [data-task]"
    ).first.wait_for()  # the list replaces what stood there, and takes the focus with it
    reach("New task")
    page.keyboard.press("Enter")
    page.get_by_label("Scene file").wait_for(state="attached")
    reach("Scene file")
    page.keyboard.press("Enter")
    expect(page.locator(".scene")).to_contain_text("keys.paint")
    reach("Frames")
    page.keyboard.press("Control+a")
    page.keyboard.type("1-2")
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="keys.paint").wait_for()
    expect(page.locator(".summary")).to_contain_text("Done")
    reach("Download all")
    with page.expect_download():
        page.keyboard.press("Enter")


def test_scene_dropped_anywhere_comes_to_the_form(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page()
    page.evaluate(
        """() => {
          const data = new DataTransfer();
          data.items.add(new File(['a lake'], 'dropped.paint'));
          const fire = (type) => document.querySelector('main').dispatchEvent(
            new DragEvent(type, { bubbles: true, cancelable: true, dataTransfer: data }));
          fire('dragenter');
          fire('drop');
        }"""
    )
    expect(page.locator(".scene")).to_contain_text("dropped.paint")
    expect(page.get_by_role("button", name="Submit 24 frames")).to_be_visible()


def test_file_that_nobody_renders_is_refused_at_once(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files(farm.scene("notes.txt"))
    expect(page.get_by_role("alert")).to_contain_text("No engine of this farm renders notes.txt")
    expect(page.get_by_role("button", name="Submit")).to_have_count(0)


def test_wrong_values_are_told_as_one_types_and_are_not_sent(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files(farm.scene())
    before = len(list(farm.real.client.tasks()))
    for label, wrong in (("Frames", "1-"), ("Width", "-5"), ("Seconds a frame", "1; rm -rf /")):
        field = page.get_by_label(label, exact=True)
        right = field.input_value()
        field.fill(wrong)
        expect(field).to_have_attribute("aria-invalid", "true")
        page.locator("button.primary.large").click()
        expect(field).to_be_focused()
        field.fill(right)
        expect(field).not_to_have_attribute("aria-invalid", "true")
    assert len(list(farm.real.client.tasks())) == before


WRONG = {
    "file": "../scene.png",
    "path": "textures/wood",
    "extension": "png",
    "word": "two words",
    "sentence": "plain; rm -rf /",
    "natural": "-1",
    "integer": "1.5",
    "real": "1e5",
    "brush": "square",
}
RIGHT = {
    "file": "scene.png",
    "path": "/textures/wood",
    "extension": ".png",
    "word": "word",
    "sentence": "Plain text.",
    "natural": "1",
    "integer": "-1",
    "real": "0.5",
    "brush": "round",
}
TYPIST = (
    'name = "typist"\nlabel = "Typist"\nextensions = [".typed"]\nsplit = "none"\ntemplate = "typist '
    + " ".join(["$RENDERONLINE:@uploaded_file", *(f"$RENDERONLINE:of_{name}" for name in WRONG)])
    + '"\n'
    + "".join(
        f'[[arguments]]\nid = "of_{name}"\nlabel = "Of {name}"\ndefault = "{RIGHT[name]}"\n'
        + (f'type = "{name}"\n' if name in TYPES else 'type = "word"\nregex = "round|flat"\n')
        for name in WRONG
    )
)


def test_value_of_every_type_is_refused_by_the_page_and_by_the_farm(farm: PaintedFarm, visit: Visitor) -> None:
    assert set(WRONG) - {"brush"} == set(TYPES)
    farm.real.client.admin.add_engine(TYPIST)
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files(farm.scene("every.typed"))
    expect(page.locator(".sending")).to_have_count(0)
    upload = page.evaluate("JSON.parse(localStorage.getItem('renderonline-uploads'))[0].id")
    submit = page.locator("button.primary.large")
    for name, wrong in WRONG.items():
        field = page.get_by_label(f"Of {name}", exact=True)
        field.fill(wrong)
        expect(field).to_have_attribute("aria-invalid", "true")
        submit.click()
        expect(field).to_be_focused()
        asked = {"engine": "typist", "upload": upload, "arguments": {f"of_{name}": wrong}}
        headers = {"X-RenderOnline": "1"}
        answer = page.request.post(f"{farm.url}/renderapi/v2/tasks", data=asked, headers=headers)
        assert answer.status == 400, (name, answer.text())
        field.fill(RIGHT[name])
        expect(field).not_to_have_attribute("aria-invalid", "true")
    assert not any(task["file_name"] == "every.typed" for task in farm.real.client.tasks())
    submit.click()
    expect(page.get_by_role("heading", name="every.typed")).to_be_visible()


def test_page_and_farm_have_the_same_rules_for_values(visit: Visitor) -> None:
    page = visit.page("/submit")
    page.get_by_label("Scene file").wait_for(state="attached")
    rules = page.evaluate(
        """async () => {
          const source = performance.getEntriesByType('resource').find((one) => one.name.endsWith('/rules.js')).name;
          const { TYPES } = await import(source);
          return Object.fromEntries(Object.entries(TYPES).map(([name, rule]) => [name, rule.source]));
        }"""
    )
    assert {name: rule.replace("\\/", "/") for name, rule in rules.items()} == {
        name: f"^{rule}$".replace("\\/", "/") for name, rule in TYPES.items()
    }


FRAMES = ["1", "1-10", "1-100x5", "10-1", "1,5,9", "1-10y3", "1-10:3", "-5--1", "1..5", "1-5,3-8", " 1 - 4 ", "5-1x2"]


@pytest.mark.parametrize("text", FRAMES)
def test_page_counts_frames_as_the_farm_does(frames_page: Page, text: str) -> None:
    frames_page.get_by_label("Frames", exact=True).fill(text)
    count = len(parse_frames(text))
    expect(frames_page.locator(".frames-count")).to_have_text(f"= {count} frame{'' if count == 1 else 's'}")


@pytest.fixture(scope="module")
def frames_page(farm: PaintedFarm, chromium: Browser) -> Page:
    page = chromium.new_page(base_url=farm.url)
    page.goto("/submit")
    log_in(page, farm.login)
    page.get_by_label("Scene file").set_input_files(farm.scene())
    return page


def test_preset_is_used_again_and_forgotten(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files(farm.scene())
    page.get_by_label("Width").fill("77")
    page.get_by_role("button", name="Save as preset").click()
    page.get_by_role("dialog").get_by_label("Name").fill("Small")
    page.get_by_role("dialog").get_by_role("button", name="Save").click()
    page.reload()
    page.get_by_label("Scene file").set_input_files(farm.scene("other.paint"))
    expect(page.get_by_label("Width")).to_have_value("192")
    page.locator(".card-head select").select_option("Small")
    expect(page.get_by_label("Width")).to_have_value("77")
    page.get_by_role("button", name="Forget the preset Small").click()
    expect(page.locator(".card-head select")).to_have_count(0)


def test_order_of_the_frames_is_what_was_chosen(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files(farm.scene("order.paint"))
    page.get_by_label("Frames", exact=True).fill("1-4")
    page.get_by_label("Order").select_option("Last to first")
    page.get_by_label("Frames in a part").fill("1")
    page.get_by_label("Don't start yet").check()
    page.get_by_role("button", name="Submit 4 frames").click()
    page.get_by_role("heading", name="order.paint").wait_for()
    task_id = int(page.url.rpartition("/")[2])
    assert farm.real.client.task(task_id)["frames"] == "4-1"
    page.close()  # it would ask for what is not there any more
    farm.real.client.delete(task_id)


def test_queue_place_and_limit_are_told(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files(farm.scene())
    expect(page.get_by_text("of 100 used")).to_be_visible()
