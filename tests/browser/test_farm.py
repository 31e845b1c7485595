"""Machines and administration on the page."""

import signal

from playwright.sync_api import expect

from tests.support.browsing import PaintedFarm, Visitor
from tests.support.farm import wait_until
from tests.support.painter import DEFINITION


def test_machine_shows_its_frame_and_is_drained_and_enabled(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/farm")
    card = page.locator("[data-machine='atelier']")
    expect(card).to_contain_text("Idle")
    task_id = farm.submit("Watched", "1-200", arguments={"painting_seconds": "0.3"})
    expect(card).to_contain_text("Busy")
    expect(card.get_by_role("link", name="Watched").first).to_be_visible()
    expect(card.locator(".doing").first).to_contain_text("frame ")
    card.get_by_role("button", name="Drain").click()
    expect(card).to_contain_text("Draining")
    assert farm.real.machine("atelier")["wish"] == "draining"
    farm.real.client.cancel(task_id)
    card.get_by_role("button", name="Enable").click()
    expect(card).to_contain_text("Idle", timeout=15_000)


def test_machine_that_vanishes_is_offline(farm: PaintedFarm, visit: Visitor) -> None:
    program = farm.real.add_machine("guest")
    page = visit.page("/farm")
    card = page.locator("[data-machine='guest']")
    expect(card).to_contain_text("Idle")
    farm.real.supervisor.forget(program)
    program.process.send_signal(signal.SIGTERM)
    program.process.wait(20)
    expect(card).to_contain_text("Offline")
    card.get_by_role("button", name="Change guest").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(card).to_have_count(0)


def test_invitation_is_a_line_to_type(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/farm")
    page.get_by_role("button", name="Add a machine").click()
    expect(page.get_by_role("region", name="Command")).to_contain_text(f"renderonline node --join {farm.url} --code ")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Add a machine")).to_be_focused()


def test_person_is_added_changed_and_gets_a_token(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/admin")
    page.get_by_role("button", name="Add a person").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("E-mail").fill("grace@example.org")
    dialog.get_by_role("button", name="Add").click()
    token = page.get_by_role("region", name="Token").inner_text()
    assert len(token) > 20
    page.get_by_role("button", name="Done").click()
    page.get_by_role("button", name="Open grace@example.org").click()
    dialog.get_by_label("Role").select_option("operator")
    dialog.get_by_role("button", name="Save").click()
    wait_until(lambda: any(one["role"] == "operator" for one in farm.real.client.admin.users()), "operator")


def test_last_administrator_stays_one(farm: PaintedFarm, visit: Visitor) -> None:
    visit.watched.expected.append("409")
    page = visit.page("/admin")
    page.get_by_role("button", name=f"Open {farm.login.email}").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Role").select_option("artist")
    dialog.get_by_role("button", name="Save").click()
    expect(page.get_by_text("last active administrator")).to_be_visible()
    expect(dialog).to_be_visible()


def test_subscriptions_and_engines_are_kept(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/admin/subscriptions")
    page.get_by_role("button", name="Add a subscription").click()
    dialog = page.get_by_role("dialog")
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
