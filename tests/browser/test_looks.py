"""Every page and state, wide and on a phone, in light and dark: axe finds nothing, nothing scrolls sideways, and a
picture of it is kept for people to look at (`screenshots/`, or `RENDERONLINE_SCREENSHOTS`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import axe_playwright_python
import pytest
from playwright.sync_api import Page, expect

from renderonline.rnoclient.sdk.connection import Login
from tests.support.browsing import PHONE, SCREENSHOTS, WIDE, PaintedFarm, Visitor
from tests.support.farm import wait_until

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
SCHEMES: Final[tuple[Literal["light"], Literal["dark"]]] = ("light", "dark")
_FITS = """new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(go))))
  .then(() => document.documentElement.scrollWidth <= innerWidth)"""
"""Once the browser has laid out anew."""
_RUN = (
    "axe.run(document, {resultTypes: ['violations']}).then((found) => found.violations.map((one) => ({id: one.id,"
    " nodes: one.nodes.map((node) => `${node.target.join(' ')}: ${node.failureSummary}`)})))"
)


@pytest.fixture(scope="module")
def tasks(farm: PaintedFarm) -> dict[str, int]:
    """Tasks in all states."""
    lake = "a lake\n" + "chatter\n" * 200
    found = {
        "done": farm.rendered("Lake at dusk", "1-24", scene=lake, arguments={"painting_width": "480"}),
        "failed": farm.rendered("Storm", "1-12", "failed", scene="fail 7\n", chunk_size=2),
        "running": farm.submit("Slow river", "1-9000", arguments={"painting_seconds": "0.5", "painting_width": "320"}),
        "paused": farm.submit("Northern lights, the long version", "1-250", paused=True),
        "canceled": farm.submit("Given up", "1-10", paused=True),
    }
    farm.real.client.cancel(found["canceled"])
    farm.real.wait_for_status(found["running"], "running")
    return found


def look(page: Page, name: str) -> None:
    """Check and picture the page as it is now, in four ways."""
    for scheme in SCHEMES:
        for size, viewport in (("wide", WIDE), ("phone", PHONE)):
            page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
            page.set_viewport_size(viewport)
            where = f"{name}, {scheme}, {size}"
            wait_until(lambda: page.evaluate(_FITS), f"{where}: page that does not scroll sideways")
            if not page.evaluate("'axe' in window"):
                page.evaluate(AXE)
            violations = page.evaluate(_RUN)
            assert not violations, f"{where}: {violations}"
            SCREENSHOTS.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=SCREENSHOTS / f"{name}-{scheme}-{size}.png")


def _pictured(page: Page) -> None:
    expect(page.locator("ro-thumb canvas").nth(4)).to_be_visible()


def _rows(page: Page) -> None:
    expect(page.locator("[role=row]").nth(1)).to_be_visible()


def _chosen(page: Page) -> None:
    page.get_by_label("Select all shown").check()


def _filled(page: Page) -> None:
    page.get_by_label("Frames", exact=True).fill("1-100x")
    expect(page.get_by_text("is no range")).to_be_visible()


def _failed(page: Page) -> None:
    expect(page.locator(".because")).to_contain_text("can't be painted")
    expect(page.get_by_role("button", name="Frame 7, Failed")).to_be_visible()


def _log(page: Page) -> None:
    expect(page.locator("ro-windowed.log")).to_contain_text("chatter line 199")


def _viewer(page: Page) -> None:
    expect(page.locator("dialog.viewer header")).to_contain_text("480")


def _invited(page: Page) -> None:
    page.get_by_role("button", name="Add a machine").click()
    page.get_by_role("button", name="Make the line to type").click()
    expect(page.get_by_role("region", name="Command")).to_be_visible()


def _person(page: Page) -> None:
    page.get_by_role("button", name="Add a person").click()
    expect(page.get_by_label("Role")).to_be_visible()


def _machine(page: Page) -> None:
    expect(page.locator(".doing").first).to_contain_text("frame")


def _nothing(page: Page) -> None:
    expect(page.locator(".empty")).to_be_visible()


def _compared(page: Page) -> None:
    _viewer(page)
    page.keyboard.press("c")
    expect(page.locator("dialog.viewer header")).to_contain_text("5 | 6")


def _choosing(page: Page) -> None:
    _pictured(page)
    page.get_by_role("button", name="Choose").click()
    page.get_by_role("button", name="Frame 2, Done").click()


def _charts(page: Page) -> None:
    expect(page.locator("ro-chart canvas")).to_have_count(3)
    page.get_by_role("heading", name="History").scroll_into_view_if_needed()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")


def _machine_history(page: Page) -> None:
    page.get_by_role("button", name="History of atelier").click()
    expect(page.get_by_role("dialog").locator("ro-timeline")).to_be_visible()


def _engine(page: Page) -> None:
    page.get_by_role("button", name="Open Painter").click()
    expect(page.get_by_role("dialog")).to_contain_text("Ready?")


def _asked(button: str, says: str) -> Callable[[Page], None]:
    """Ready when a dialog is open that a button opens."""

    def ready(page: Page) -> None:
        page.get_by_role("button", name=button, exact=True).click()
        expect(page.get_by_role("dialog")).to_contain_text(says)

    return ready


def _keys(page: Page) -> None:
    _viewer(page)
    page.keyboard.press("?")
    expect(page.locator(".keys")).to_be_visible()


def _found(page: Page) -> None:
    _log(page)
    page.get_by_label("Find in the log").fill("line 150")
    expect(page.locator("ro-windowed.log mark")).to_be_visible()


def _account(page: Page) -> None:
    _rows(page)
    page.locator(".account summary").click()
    expect(page.get_by_role("button", name="Log out")).to_be_visible()


PAGES: dict[str, tuple[str, Callable[[Page], None]]] = {
    "tasks": ("/", _rows),
    "tasks-chosen": ("/?q=lake", _chosen),
    "tasks-filtered-to-nothing": ("/?q=nothing+like+it", _nothing),
    "task-done": ("/tasks/{done}", _pictured),
    "task-running": ("/tasks/{running}", lambda page: expect(page.locator(".state.running").first).to_be_visible()),
    "task-failed": ("/tasks/{failed}", _failed),
    "task-log": ("/tasks/{done}?tab=log", _log),
    "task-parts": ("/tasks/{failed}?tab=parts", _rows),
    "task-details": ("/tasks/{paused}?tab=facts", lambda page: expect(page.get_by_text("Priority")).to_be_visible()),
    "viewer": ("/tasks/{done}?frame=5", _viewer),
    "viewer-compared": ("/tasks/{done}?frame=5", _compared),
    "task-chosen": ("/tasks/{done}", _choosing),
    "farm-history": ("/farm", _charts),
    "farm-machine": ("/farm", _machine_history),
    "admin-values": ("/admin/argtypes", _rows),
    "admin-engine": ("/admin/engines", _engine),
    "submit": ("/submit", lambda page: expect(page.get_by_text("Drop the scene here")).to_be_visible()),
    "farm": ("/farm", _machine),
    "farm-invite": ("/farm", _invited),
    "admin-people": ("/admin", _rows),
    "admin-person": ("/admin", _person),
    "admin-subscriptions": ("/admin/subscriptions", _rows),
    "admin-engines": ("/admin/engines", _rows),
    "nothing-here": ("/tasks/999", _nothing),
    "task-canceled": ("/tasks/{canceled}", lambda page: expect(page.locator(".summary")).to_contain_text("Canceled")),
    "task-delete": ("/tasks/{paused}", _asked("Delete", "are removed")),
    "task-make-film": ("/tasks/{done}", _asked("Make a film", "Frames per second")),
    "viewer-keys": ("/tasks/{done}?frame=5", _keys),
    "task-log-found": ("/tasks/{done}?tab=log", _found),
    "account": ("/", _account),
    "farm-change": ("/farm", _asked("Change atelier", "Working hours")),
    "admin-subscription": ("/admin/subscriptions", _asked("Add a subscription", "Share")),
    "admin-new-engine": ("/admin/engines", _asked("Add an engine", "Definition")),
    "admin-value": ("/admin/argtypes", _asked("Add a value", "Rule")),
}


@pytest.mark.parametrize("name", PAGES)
def test_page_looks_right_everywhere(tasks: dict[str, int], visit: Visitor, name: str) -> None:
    if name == "nothing-here":
        visit.watched.expected.append("404")
    path, ready = PAGES[name]
    page = visit.page(path.format(**tasks))
    ready(page)
    look(page, name)


def test_nothing_moves_for_those_who_ask_for_it(tasks: dict[str, int], visit: Visitor) -> None:
    page = visit.page(f"/tasks/{tasks['running']}")
    expect(page.locator(".state.running")).to_be_visible()
    moving = "document.getAnimations().some((one) => one.playState === 'running')"
    page.emulate_media(reduced_motion="no-preference")
    wait_until(lambda: page.evaluate(moving), "mark that turns")
    page.emulate_media(reduced_motion="reduce")
    wait_until(lambda: not page.evaluate(moving), "page that stands still")


def test_form_of_a_new_task_looks_right_everywhere(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files(farm.scene())
    look(page, "submit-form")
    _filled(page)
    look(page, "submit-wrong")


def test_upload_looks_right_everywhere(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/submit")
    page.route("**/files/0", lambda route: None)  # never answered
    page.get_by_label("Scene file").set_input_files(farm.scene("on its way.paint", "a lake\n" * 1000))
    expect(page.locator(".sending")).to_be_visible()
    look(page, "submit-sending")
    page.get_by_role("button", name="Submit 24 frames when the upload ends").click()
    look(page, "submit-armed")
    page.get_by_role("link", name="Tasks").first.click()
    expect(page.get_by_role("list", name="Uploads")).to_be_visible()
    look(page, "tasks-uploads")
    page.reload()
    page.goto("/submit")
    expect(page.locator(".earlier")).to_be_visible()
    look(page, "submit-unfinished")
    page.get_by_role("button", name="Discard on its way.paint").click()


def test_nothing_scrolls_sideways_at_200_per_cent(tasks: dict[str, int], visit: Visitor) -> None:
    """Enlarged to twice the size, a screen of 1280 x 800 holds what one of 640 x 400 does."""
    page = visit.page("/", context=visit.context(viewport={"width": 640, "height": 400}, device_scale_factor=2))
    for path in ("/", f"/tasks/{tasks['done']}", f"/tasks/{tasks['done']}?tab=parts", "/submit", "/farm", "/admin"):
        page.goto(path)
        page.get_by_role("heading", level=1).wait_for()
        wait_until(lambda: page.evaluate(_FITS), f"{path} that does not scroll sideways")


def test_login_looks_right_everywhere(farm: PaintedFarm, visit: Visitor) -> None:
    visit.watched.expected.append("401")
    page = visit.context().new_page()
    page.goto("/login")
    page.get_by_label("E-mail").wait_for()
    look(page, "login")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    look(page, "login-refused")


def test_loading_and_errors_look_right_everywhere(farm: PaintedFarm, visit: Visitor) -> None:
    visit.watched.expected += ["500", "ERR_", "load preload assets"]  # the last is axe, which asks for style sheets
    page = visit.page("/submit")
    machines = "**/renderapi/v2/machines"
    page.route(machines, lambda route: None)  # never answered
    page.goto("/farm")
    expect(page.locator(".loading")).to_be_visible()
    look(page, "loading")
    page.unroute(machines)
    problem = {"code": "internal_error", "detail": "RenderAPI met an unexpected error."}
    page.route(machines, lambda route: route.fulfill(status=500, json=problem))
    page.reload()
    expect(page.get_by_text("That did not work")).to_be_visible()
    look(page, "error")
    page.unroute(machines)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("[data-machine]").first).to_be_visible()
    page.context.set_offline(True)
    expect(page.get_by_text("Reconnecting")).to_be_visible()
    look(page, "reconnecting")
    page.set_viewport_size(PHONE)
    for font in ("Verdana, 'DejaVu Sans'", "monospace", "serif"):
        page.evaluate("(font) => { document.body.style.fontFamily = font; }", font)
        wait_until(lambda: page.evaluate(_FITS), f"page that does not scroll sideways in {font}")
    page.context.set_offline(False)


def test_account_without_rights_or_tasks_looks_right_everywhere(farm: PaintedFarm, visit: Visitor) -> None:
    token = farm.real.client.admin.add_user(email="artist@example.org")["token"]
    page = visit.page("/", login=Login(url=farm.url, email="artist@example.org", token=token))
    expect(page.get_by_text("No tasks yet")).to_be_visible()
    look(page, "no-tasks")
    page.goto("/farm")
    expect(page.get_by_text("Not for your account")).to_be_visible()
    look(page, "no-rights")
