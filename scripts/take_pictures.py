"""Writes the pictures of the page that README and guides show, from a farm that renders the sample with a real Blender:
`python scripts/take_pictures.py` (needs what `make test` installs; a few minutes)."""

import contextlib
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from tests.support.blender import write_sample
from tests.support.browsing import log_in
from tests.support.farm import RealFarm, wait_until

PICTURES = Path(__file__).parent.parent / "docs" / "images"
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
CHROMIUM = ("--no-sandbox", "--disable-gpu", "--force-color-profile=srgb")


def shoot(page: Page, name: str) -> None:
    """One picture of what is to be seen."""
    page.screenshot(path=PICTURES / f"{name}.jpg", type="jpeg", quality=88)
    print(f"{name}.jpg")


def main() -> None:
    """The farm, its tasks, then the pictures."""
    with contextlib.ExitStack() as exits:
        directory = Path(exits.enter_context(tempfile.TemporaryDirectory()))
        farm = exits.enter_context(RealFarm(directory))
        scene = write_sample(directory / "harbour.blend")
        for name in ("atelier", "studio"):
            farm.add_machine(name)
        done = int(
            farm.client.submit(scene, engine="blender", frames="1-24", name="Harbour, take 1", film="mp4")["task_id"]
        )
        farm.wait_for_status(done, "succeeded", timeout_s=600)
        playwright = exits.enter_context(sync_playwright())
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=list(CHROMIUM))
        exits.callback(browser.close)
        context = browser.new_context(viewport=WIDE, base_url=farm.url)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto("/")
        log_in(page, farm.login)
        page.goto(f"/tasks/{done}")
        expect(page.locator("ro-thumb canvas")).to_have_count(24, timeout=60_000)
        shoot(page, "page-task")
        page.get_by_role("button", name="Frame 12, Done").click()
        expect(page.locator("dialog.viewer header")).to_contain_text("640 × 360", timeout=60_000)
        shoot(page, "page-viewer")
        page.keyboard.press("Escape")
        running = int(farm.client.submit(scene, engine="blender", frames="1-24", name="Harbour, take 2")["task_id"])
        farm.client.submit(scene, engine="blender", frames="1-250", name="Harbour, long shot", priority=30)
        wait_until(lambda: farm.client.task(running)["frames_done"] >= 6, "frames of the second task", 300)
        page.goto("/")
        expect(page.get_by_text("Harbour, long shot")).to_be_visible()
        shoot(page, "page-tasks")
        page.goto("/farm")
        expect(page.get_by_text("studio").first).to_be_visible()
        shoot(page, "page-farm")
        phone = browser.new_context(
            viewport=PHONE,
            base_url=farm.url,
            color_scheme="dark",
            storage_state=context.storage_state(),  # type: ignore[arg-type]
        ).new_page()
        phone.goto(f"/tasks/{running}")
        expect(phone.locator("ro-thumb canvas").nth(5)).to_be_visible(timeout=60_000)
        shoot(phone, "page-phone")


if __name__ == "__main__":
    main()
