"""Machines and administration on the page."""

import signal
from urllib.parse import urlsplit

from playwright.sync_api import Locator, Page, Route, expect

from renderonline.farm.errors import NotAuthenticated
from renderonline.rnoclient.sdk import Client, Login
from tests.browser.test_looks import look
from tests.support.browsing import PaintedFarm, Visitor
from tests.support.farm import wait_until
from tests.support.painter import DEFINITION


def test_machine_shows_its_frame_and_is_drained_and_enabled(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/farm")
    card = page.locator("[data-machine='atelier']")
    expect(card).to_contain_text("Idle")
    task_id = farm.submit("Watched", "1-3000", arguments={"painting_seconds": "0.3"})
    expect(card).to_contain_text("Busy")
    expect(card.get_by_role("link", name="Watched").first).to_be_visible()
    expect(card.locator(".doing").first).to_contain_text("frame ")
    card.get_by_role("button", name="Drain").click()
    expect(card).to_contain_text("Draining")
    assert farm.real.machine("atelier")["wish"] == "draining"
    farm.real.client.cancel(task_id)
    card.get_by_role("button", name="Enable").click()
    expect(card).to_contain_text("Idle")


def test_machine_is_disabled_renamed_and_tagged(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/farm")
    card = page.locator("[data-machine='atelier']")
    expect(card.get_by_text("Memory")).to_be_visible()
    expect(card.locator(".engines")).to_contain_text("painter")
    expect(card).to_contain_text("box: bubblewrap")
    card.get_by_role("button", name="Disable").click()
    expect(card).to_contain_text("Disabled")
    card.get_by_role("button", name="Enable").click()
    expect(card).to_contain_text("Idle")
    card.get_by_role("button", name="Change atelier").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("studio one")
    dialog.get_by_label("Tags").fill("gpu, fast")
    dialog.get_by_role("button", name="Save").click()
    renamed = page.locator("[data-machine='studio one']")
    expect(renamed.locator(".tag")).to_have_text(["fast", "gpu"])
    assert farm.real.machine("studio one")["tags"] == ["fast", "gpu"]
    renamed.get_by_role("button", name="Change studio one").click()
    dialog.get_by_label("Name").fill("atelier")
    dialog.get_by_label("Tags").fill("")
    dialog.get_by_role("button", name="Save").click()
    expect(card).to_be_visible()
    expect(card.locator(".tag")).to_have_count(0)


def test_machine_without_a_box_says_so_and_one_that_vanishes_is_offline(farm: PaintedFarm, visit: Visitor) -> None:
    program = farm.real.add_machine("guest", environment={"HPCSERVER_SANDBOX": "off"})
    page = visit.page("/farm")
    card = page.locator("[data-machine='guest']")
    expect(card).to_contain_text("Idle")
    expect(card.locator(".reason")).to_contain_text("No box around its engines")
    expect(card.locator(".reason")).to_contain_text("Better: set Sandbox to auto")
    farm.real.supervisor.forget(program)
    program.process.send_signal(signal.SIGTERM)
    program.process.wait()
    expect(card).to_contain_text("Offline")
    card.get_by_role("button", name="Change guest").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(card).to_have_count(0)


def test_graphics_cards_show_their_load_and_memory(farm: PaintedFarm, visit: Visitor) -> None:
    def more(route: Route) -> None:
        """No computer for tests has a card."""
        found = route.fetch().json()
        card = {"id": "GPU-1", "name": "NVIDIA RTX 5000", "kind": "cuda", "memory_mib": 16384, "unusable": ""}
        good = {**card, "usable": True, "load": 0.75, "memory_used_mib": 4096}
        bad = {**card, "id": "GPU-2", "usable": False, "load": None, "memory_used_mib": 0, "unusable": "no kernels fit"}
        found["items"][0]["cards"] = [good, bad]
        route.fulfill(json=found)

    page = visit.page("/")
    page.route("**/renderapi/v2/machines", more)
    page.goto("/farm")
    graphics = page.locator("[data-machine='atelier'] .graphics")
    expect(graphics.first).to_contain_text("NVIDIA RTX 5000")
    expect(graphics.first).to_contain_text("75 % · 4.3 GB of 17 GB")
    expect(graphics.last).to_contain_text("Not used: no kernels fit")
    look(page, "farm-cards")


def test_invitation_is_a_line_to_type(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/farm")
    page.get_by_role("button", name="Add a machine").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("How many machines").fill("3")
    dialog.get_by_role("button", name="Make the line to type").click()
    expect(page.get_by_role("region", name="Command")).to_contain_text(f"renderonline node --join {farm.url} --code ")
    expect(dialog).to_contain_text("works 3 times")
    first = page.get_by_role("region", name="First")  # what the farm listens to now reaches nobody else
    expect(first).to_have_text(f"renderonline up --host 0.0.0.0 --port {urlsplit(farm.url).port}")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Add a machine")).to_be_focused()


def opened(page: Page, button: str) -> Locator:
    """The dialog that a button opens."""
    page.get_by_role("button", name=button).click()
    return page.get_by_role("dialog")


def test_person_is_added_changed_and_gets_a_token(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/admin")
    dialog = opened(page, "Add a person")
    dialog.get_by_label("E-mail").fill("grace@example.org")
    dialog.get_by_role("button", name="Add").click()
    token = page.get_by_role("region", name="Token").inner_text()
    assert len(token) > 20
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Open grace@example.org").click()
    dialog.get_by_label("Role").select_option("operator")
    dialog.get_by_role("button", name="Save").click()
    wait_until(lambda: any(one["role"] == "operator" for one in farm.real.client.admin.users()), "operator")
    row = page.get_by_role("row").filter(has_text="grace@example.org")
    expect(row).to_contain_text("operator")
    row.get_by_role("button", name="Open grace@example.org").click()
    dialog.get_by_role("button", name="New token").click()
    dialog.filter(has_text="The old one ends").get_by_role("button", name="New token").click()
    expect(page.get_by_role("region", name="Token")).not_to_have_text(token)
    renewed = Login(farm.url, "grace@example.org", page.get_by_role("region", name="Token").inner_text())
    page.get_by_role("button", name="Done").click()
    with Client(renewed) as client:
        client.me()
        dialog.get_by_role("button", name="Log out everywhere").click()
        dialog.filter(has_text="end at once").get_by_role("button", name="Log out", exact=True).click()
        expect(dialog.filter(has_text="end at once")).to_have_count(0)
        wait_until(lambda: is_refused(client), "account that is logged out")
    dialog.get_by_label("May log in").uncheck()
    dialog.get_by_role("button", name="Save").click()
    expect(row).to_contain_text("Disabled")


def is_refused(client: Client) -> bool:
    """Whether the farm does not know this client's token any more."""
    try:
        client.me()
    except NotAuthenticated:
        return True
    return False


def test_last_administrator_stays_one(farm: PaintedFarm, visit: Visitor) -> None:
    visit.watched.expected.append("409")
    page = visit.page("/admin")
    dialog = opened(page, f"Open {farm.login.email}")
    dialog.get_by_label("Role").select_option("artist")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_text("last active administrator")).to_be_visible()
    expect(dialog).to_be_visible()


def test_subscriptions_and_engines_are_kept(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/admin/subscriptions")
    dialog = opened(page, "Add a subscription")
    dialog.get_by_label("Name").fill("Studio")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row").filter(has_text="Studio")).to_be_visible()
    page.get_by_role("link", name="Engines").click()
    page.get_by_role("button", name="Add an engine").click()
    dialog.get_by_label("Definition").fill(DEFINITION.replace('"painter"', '"etcher"').replace('"Painter"', '"Etcher"'))
    dialog.get_by_role("button", name="Add").click()
    row = page.get_by_role("row").filter(has_text="Etcher")
    row.get_by_role("button", name="On").click()
    expect(row.get_by_role("button", name="Off")).to_be_visible()
    row.get_by_role("button", name="Open Etcher").click()
    expect(dialog).to_contain_text("Seconds a frame")
    dialog.get_by_role("button", name="Remove").click()
    dialog.filter(has_text="Remove Etcher?").get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)
    assert not any(one["name"] == "etcher" for one in farm.real.client.admin.engines())


def test_history_is_drawn_and_stands_in_tables(farm: PaintedFarm, visit: Visitor) -> None:
    farm.rendered("History", "1-6", arguments={"painting_seconds": "0.2"})
    page = visit.page("/farm")
    charts = page.locator("ro-chart")
    expect(charts.locator("canvas")).to_have_count(3)
    histogram = charts.filter(has_text="Time of a frame")
    histogram.get_by_text("As a table").click()
    rows = histogram.locator("tbody tr")
    expect(rows.first).to_be_visible()
    frames = sum(int(text) for text in histogram.locator("tbody td").all_inner_texts())
    assert frames >= 6
    page.get_by_role("button", name="24 hours").click()
    expect(charts.locator("canvas")).to_have_count(3)
    page.get_by_role("button", name="History of atelier").click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("link", name="History").first).to_be_visible()
    expect(dialog.locator("ro-timeline rect").first).to_be_visible()


def test_values_and_limits_are_kept(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/admin/argtypes")
    page.get_by_role("button", name="Add a value").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name").fill("brush")
    dialog.locator("select").select_option("word")
    dialog.get_by_label("Rule").fill("(round|flat)")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row").filter(has_text="brush")).to_contain_text("(round|flat)")
    page.get_by_role("button", name="Open brush").click()
    dialog.get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").last.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("row").filter(has_text="brush")).to_have_count(0)
    page.get_by_role("link", name="Subscriptions").click()
    page.get_by_role("button", name="Add a subscription").click()
    dialog.get_by_label("Name").fill("Freelance")
    dialog.get_by_label("Days a task stays").fill("30")
    dialog.get_by_label("Room for files, MiB").fill("5000")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row").filter(has_text="Freelance")).to_be_visible()
    (kept,) = [one for one in farm.real.client.admin.subscriptions() if one["name"] == "Freelance"]
    assert (kept["keep_days"], kept["keep_mib"]) == (30, 5000)
    page.get_by_role("button", name="Open Freelance").click()
    dialog.get_by_label("Parts at once").fill("7")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_role("row").filter(has_text="Freelance")).to_contain_text("7")


def test_engine_says_whether_it_is_ready_and_its_definition_is_changed(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/admin/engines")
    page.get_by_role("button", name="Open Painter").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("On atelier")
    dialog.get_by_role("button", name="Change the definition").click()
    text = dialog.get_by_label("Definition")
    text.fill(text.input_value().replace("Pixels from left to right.", "Pixels, across."))
    dialog.get_by_role("button", name="Save").click()
    expect(dialog).to_have_count(0)
    page.goto("/submit")
    page.get_by_label("Scene file").set_input_files(farm.scene())
    expect(page.get_by_text("Pixels, across.")).to_be_visible()
