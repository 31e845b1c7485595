"""Sessions of the web page (R11 Web authority), and the page's files, with a real RenderAPI."""

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.renderapi import events
from tests.support.renderapi import Reply, Running, renderapi, wait_until

OURS = {"X-RenderOnline": "1"}


def cookie_of(reply: Reply) -> str:
    """`name=value` of the cookie that an answer sets."""
    return reply.headers["Set-Cookie"].partition(";")[0]


async def log_in(farm: Running, who: Mapping[str, str] | None = None, headers: Mapping[str, str] = OURS) -> Reply:
    return await farm.call("POST", "/session", dict(who or farm.who), who={}, headers=headers)


async def me(farm: Running, cookie: str, **headers: str) -> int:
    """The status that the session's owner gets for `/me`, with our header unless `X-RenderOnline` is emptied."""
    sent = {**OURS, "Cookie": cookie, **headers}
    return (
        await farm.call("GET", "/me", who={}, headers={name: value for name, value in sent.items() if value})
    ).status


async def test_session_stands_for_email_and_token(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        reply = await log_in(farm)
        assert reply.status == 201
        assert reply.json()["permissions"]
        attributes = reply.headers["Set-Cookie"].casefold()
        assert "httponly" in attributes
        assert "samesite=strict" in attributes
        assert "path=/" in attributes
        assert farm.who["token"] not in reply.headers["Set-Cookie"]
        cookie = cookie_of(reply)
        assert await me(farm, cookie) == 200
        assert (await farm.call("GET", "/session", who={}, headers={**OURS, "Cookie": cookie})).json()["me"]
        assert (await farm.call("GET", "/session", who={}, headers=OURS)).json() == {"me": None}


@pytest.mark.parametrize(
    "headers",
    [
        {"X-RenderOnline": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://["},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "none"},
    ],
)
async def test_cookie_counts_only_for_the_page_itself(tmp_path: Path, headers: dict[str, str]) -> None:
    async with renderapi(tmp_path) as farm:
        cookie = cookie_of(await log_in(farm))
        assert await me(farm, cookie, **headers) == 401
        assert await me(farm, cookie, Origin=farm.url) == 200
        assert (await log_in(farm, headers={**OURS, **headers})).status == 401
        ours = {**farm.who, "Cookie": cookie, **{name: value for name, value in headers.items() if value}}
        assert (await farm.call("GET", "/me", who={}, headers=ours)).status == 200  # as if the cookie were absent


async def test_log_out_ends_the_session_for_good(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        cookie = cookie_of(await log_in(farm))
        assert (await farm.call("DELETE", "/session", who={}, headers={"Cookie": cookie})).status == 204
        assert await me(farm, cookie) == 200  # without our header nothing was ended
        reply = await farm.call("DELETE", "/session", who={}, headers={**OURS, "Cookie": cookie})
        assert "max-age=0" in reply.headers["Set-Cookie"].casefold()
        assert await me(farm, cookie) == 401


async def test_session_survives_a_restart_and_its_file_does_not_help_a_reader(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        cookie = cookie_of(await log_in(farm))
    kept = (tmp_path / "sessions.json").read_text()
    assert cookie.partition("=")[2] not in kept
    assert (tmp_path / "sessions.json").stat().st_mode & 0o777 == 0o600
    async with renderapi(tmp_path) as farm:  # on another port: the cookie's name has the port
        new = re.sub(r"^renderonline\d*", f"renderonline{farm.url.rpartition(':')[2]}", cookie)
        assert await me(farm, new) == 200


@pytest.mark.parametrize("flags", [{"session_idle_s": 0.2}, {"session_s": 0.2}])
async def test_session_ends_by_itself(tmp_path: Path, flags: dict[str, Any]) -> None:
    async with renderapi(tmp_path, **flags) as farm:
        cookie = cookie_of(await log_in(farm))
        assert await me(farm, cookie) == 200
        await wait_until(lambda: _is_over(farm, cookie, pause_s=0.25))  # a request counts as activity: pause longer


async def _is_over(farm: Running, cookie: str, *, pause_s: float) -> bool:
    await asyncio.sleep(pause_s)
    return await me(farm, cookie) == 401


async def test_new_token_ends_all_sessions_of_its_account(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        ada = await farm.new_user("ada@example.org")
        cookie = cookie_of(await log_in(farm, ada))
        assert await me(farm, cookie) == 200
        users = (await farm.call("GET", "/users")).json()["items"]
        user_id = next(user["user_id"] for user in users if user["email"] == "ada@example.org")
        assert (await farm.call("POST", f"/users/{user_id}/token")).status == 200
        assert await me(farm, cookie) == 401
        fresh = await farm.call("POST", f"/users/{user_id}/token")
        cookie = cookie_of(await log_in(farm, {"email": "ada@example.org", "token": fresh.json()["token"]}))
        assert (await farm.call("PATCH", f"/users/{user_id}", {"is_active": False})).status == 200
        assert await me(farm, cookie) == 401


async def test_administrator_logs_an_account_out_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KNOWN_S", 3600.0)
    monkeypatch.setattr(events, "QUIET_S", 3600.0)
    async with renderapi(tmp_path) as farm:
        ada = await farm.new_user("ada@example.org")
        other = await farm.new_user("grace@example.org", role="admin")
        number = (await farm.call("GET", "/me", who=ada)).json()["user_id"]
        cookie = cookie_of(await log_in(farm, ada))
        logout = f"/users/{number}/logout"
        assert (await farm.call("POST", logout, who=ada)).status == 403
        async with asyncio.timeout(30), farm.http.get(f"{farm.url}/renderapi/v2/events", headers=ada) as stream:
            await stream.content.readline()
            assert (await farm.call("POST", logout, who=other)).status == 204
            await stream.content.read()  # to its end, at once
        assert (await farm.call("GET", "/me", who=ada)).status == 401
        assert (await farm.call("GET", "/renderapi/v1/info", who=ada)).status == 401
        assert await me(farm, cookie) == 401
        token = (await farm.call("POST", f"/users/{number}/token", who=other)).json()["token"]
        assert (await farm.call("GET", "/me", who={**ada, "token": token})).status == 200
        assert await me(farm, cookie) == 401
        mine = (await farm.call("GET", "/me", who=other)).json()["user_id"]
        assert (await farm.call("POST", f"/users/{mine}/logout", who=other)).status == 409
        assert (await farm.call("POST", "/users/999/logout")).status == 404
        assert (await farm.call("GET", "/me", who=other)).status == 200


async def test_first_login_s_file_goes_when_it_was_used_on_the_page(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        first = tmp_path / "first-login.json"
        assert (await log_in(farm, await farm.new_user("ada@example.org"))).status == 201
        assert (await log_in(farm, {**farm.who, "token": "wrong"})).status == 401
        assert first.exists()
        assert (await log_in(farm)).status == 201
        assert not first.exists()
    async with renderapi(tmp_path) as farm:  # and no other one is made
        assert not first.exists()
        assert (await farm.call("GET", "/me")).status == 200


@pytest.mark.parametrize("name", ["sessions.json", "first-login.json"])
async def test_secret_that_others_may_read_stops_the_start(tmp_path: Path, name: str) -> None:
    async with renderapi(tmp_path) as farm:
        await log_in(farm, await farm.new_user("ada@example.org"))
    (tmp_path / name).chmod(0o644)
    with pytest.raises(InvalidRequest, match=f"chmod 600 .*{name}"):
        async with renderapi(tmp_path):
            raise AssertionError
    (tmp_path / name).chmod(0o600)
    async with renderapi(tmp_path):
        pass


async def test_sessions_of_one_account_are_bounded(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        cookies = [cookie_of(await log_in(farm)) for _ in range(51)]
        assert await me(farm, cookies[0]) == 401
        assert await me(farm, cookies[1]) == 200
        assert await me(farm, cookies[-1]) == 200


async def test_ticket_is_worth_something_only_in_its_session_for_reading_its_path(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        cookie = cookie_of(await log_in(farm))
        ours = {**OURS, "Cookie": cookie}
        reply = await farm.call("POST", "/session/tickets", {"path": "/renderapi/v2/me"}, who={}, headers=ours)
        url = reply.json()["url"].removeprefix("/renderapi/v2")
        ticket = url.partition("?")[2]

        async def status(method: str, path: str, **headers: str) -> int:
            return (await farm.call(method, path, who={}, headers=headers)).status

        assert await status("GET", url, Cookie=cookie) == 200
        assert await status("GET", url) == 401
        assert await status("GET", f"/tasks?{ticket}", Cookie=cookie) == 401
        assert await status("DELETE", f"/session?{ticket}", Cookie=cookie) == 204
        assert await me(farm, cookie) == 200
        other = cookie_of(await log_in(farm))
        assert await status("GET", url, Cookie=other) == 401
        for path in ("/", "https://evil.example/", "//evil.example/renderapi/v2/"):
            refused = await farm.call("POST", "/session/tickets", {"path": path}, who={}, headers=ours)
            assert refused.status == 400


async def test_v1_knows_no_cookie(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        headers = {**OURS, "Cookie": cookie_of(await log_in(farm))}
        assert (await farm.call("GET", "/renderapi/v1/info", who={}, headers=headers)).status == 401


async def test_page_is_sent_small_strict_and_cached(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        for place in ("/", "/login", "/submit", "/tasks/12", "/farm", "/admin/users"):
            async with farm.http.get(farm.url + place) as reply:
                assert reply.status == 200
                assert reply.content_type == "text/html"
                policy = reply.headers["Content-Security-Policy"]
                text = await reply.text()
        assert "unsafe" not in policy
        assert "default-src 'none'" in policy
        assert reply.headers["Cache-Control"] == "no-cache"
        unchanged = {"If-None-Match": reply.headers["ETag"]}
        async with farm.http.get(farm.url + "/", headers=unchanged) as again:
            assert again.status == 304
        names = re.findall(r'(?:href|src)="(/web/[^"]+)"', text)
        assert len(names) >= 5
        for name in names:
            async with farm.http.get(farm.url + name, headers={"Accept-Encoding": "gzip"}) as file:
                assert file.status == 200, name
                assert "immutable" in file.headers["Cache-Control"]
                assert file.headers["X-Content-Type-Options"] == "nosniff"
                assert file.headers.get("Content-Encoding") == "gzip" or name.endswith(".svg")
        for path in ("/web/x/../../settings.py", "/web/x/%2e%2e/__init__.py", "/web/x/nothing.js", "/nothing"):
            async with farm.http.get(farm.url + path) as missing:
                assert missing.status == 404
