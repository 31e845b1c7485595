"""Logging in and out of the web page (R11 Web authority)."""

from itertools import takewhile

from playwright.sync_api import expect

from renderonline.rnoclient.sdk.connection import Login
from tests.browser.test_looks import look
from tests.support.browsing import PaintedFarm, Visitor, log_in


def test_wrong_token_is_told_and_the_right_one_lets_in(farm: PaintedFarm, visit: Visitor) -> None:
    visit.watched.expected.append("401")
    page = visit.context().new_page()
    visit.watched.watch(page)
    page.goto("/")
    expect(page).to_have_url(f"{farm.url}/login")
    page.get_by_label("E-mail").fill(farm.login.email)
    page.get_by_label("Token").fill("wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("don't belong to an active account")
    log_in(page, farm.login)
    expect(page.get_by_role("heading", name="Tasks", exact=True)).to_be_visible()
    expect(page).to_have_url(f"{farm.url}/")


def test_first_steps_say_what_there_is_and_what_is_missing(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page()
    guide = page.locator(".guide")
    expect(guide.locator("li.done")).to_have_count(2)
    expect(guide).to_contain_text("atelier")
    expect(guide).to_contain_text("Painter")
    look(page, "first-steps")
    page.route("**/renderapi/v2/machines", lambda route: route.fulfill(json={"items": [], "next": None}))
    page.reload()
    guide.get_by_role("link", name="Add a machine").click()
    expect(page.get_by_text("No machine yet")).to_be_visible()
    look(page, "no-machine")


def test_token_is_nowhere_that_scripts_or_addresses_reach(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page("/?q=nothing")
    stored = page.evaluate(
        "() => JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert farm.login.token not in stored
    assert "renderonline" not in page.evaluate("() => document.cookie")
    cookies = page.context.cookies()
    assert [(cookie["httpOnly"], cookie["sameSite"]) for cookie in cookies] == [(True, "Strict")]


def test_session_that_ended_asks_again_and_comes_back_to_the_place(farm: PaintedFarm, visit: Visitor) -> None:
    visit.watched.expected.append("401")
    context = visit.context()
    context.route("**/renderapi/v2/events", lambda route: None)  # nothing that happens makes the page ask the farm
    page = visit.page("/admin", login=farm.login, context=context)
    with page.expect_response("**/renderapi/v2/me"), page.expect_response("**/renderapi/v2/tasks*"):
        page.goto("/submit")  # this page asks for nothing more by itself
    context.clear_cookies()
    page.get_by_role("link", name="Admin").click()
    expect(page.get_by_text("Your session has ended")).to_be_visible()
    expect(page).to_have_url(f"{farm.url}/login?to=%2Fadmin")
    log_in(page, farm.login)
    expect(page).to_have_url(f"{farm.url}/admin")


def test_logging_out_leaves_nothing_behind(farm: PaintedFarm, visit: Visitor) -> None:
    page = visit.page()
    page.locator(".account summary").click()
    page.get_by_role("button", name="Log out").click()
    farm.cookies.clear()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    page.goto("/admin")
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    assert not page.context.cookies()


def test_artist_sees_no_farm_and_no_administration(farm: PaintedFarm, visit: Visitor) -> None:
    admin = farm.real.client.admin
    token = admin.add_user(email="ada@example.org")["token"]
    page = visit.page("/", login=Login(url=farm.url, email="ada@example.org", token=token))
    expect(page.get_by_text("No tasks yet")).to_be_visible()
    expect(page.get_by_role("link", name="Farm")).to_have_count(0)
    for path in ("/farm", "/admin"):
        page.goto(path)
        expect(page.get_by_text("Not for your account")).to_be_visible()


def test_first_load_is_small(visit: Visitor) -> None:
    page = visit.context().new_page()
    visit.watched.watch(page)
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    urls: dict[str, str] = {}
    sizes: dict[str, float] = {}
    session.on("Network.requestWillBeSent", lambda event: urls.update({event["requestId"]: event["request"]["url"]}))
    session.on("Network.loadingFinished", lambda event: sizes.update({event["requestId"]: event["encodedDataLength"]}))
    page.goto("/login")
    page.get_by_label("E-mail").wait_for()
    page.wait_for_load_state("networkidle")
    log_in(page, visit.farm.login)
    page.get_by_role("heading", name="Tasks", exact=True).wait_for()
    # What the guide of a farm without tasks asks for comes after the list is shown, sometimes before we look.
    received = [sizes.get(one, 0.0) for one in takewhile(lambda one: not urls[one].endswith("/guide.js"), urls)]
    print(f"first load: {sum(received) / 1000:.1f} kB in {len(received)} answers")
    assert 0 < sum(received) < 60_000
