"""Wrong tokens and join codes at every door: they get slower and are logged, and the right one always gets in."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from renderonline.renderapi import auth
from renderonline.renderapi.auth import FREE, LONGEST_S, MOST_WAITING, MOST_WAITING_OF_ONE, WINDOW_S, Throttle
from tests.integration.renderapi.test_sessions import log_in
from tests.support.renderapi import Reply, Running, renderapi, wait_until

V1_UNAUTHORIZED = b'{"IsAdded":false,"ErrorMessage":"Unauthorized."}'


async def by_v2(farm: Running, email: str, token: str) -> Reply:
    return await farm.call("GET", "/me", who={"email": email, "token": token})


async def by_v1(farm: Running, email: str, token: str) -> Reply:
    return await farm.call("GET", "/renderapi/v1/info", who={"email": email, "token": token})


async def by_page(farm: Running, email: str, token: str) -> Reply:
    return await log_in(farm, {"email": email, "token": token})


async def by_code(farm: Running, _email: str, token: str) -> Reply:
    return await farm.call("POST", "/machines/enroll", {"code": token, "name": "x"}, who={})


@pytest.mark.parametrize("door", [by_v2, by_v1, by_page, by_code])
async def test_right_one_gets_in_at_once_while_wrong_ones_wait(
    tmp_path: Path, door: Callable[[Running, str, str], Awaitable[Reply]], capfd: pytest.CaptureFixture[str]
) -> None:
    async with renderapi(tmp_path) as farm:
        right = farm.who["token"]
        if door is by_code:
            right = (await farm.call("POST", "/machines/invite", {})).json()["code"]

        def wrong(number: int) -> asyncio.Task[Reply]:
            email = farm.who["email"] if number % 2 else f"nobody-{number}@example.org"
            return asyncio.create_task(door(farm, email, f"wrong-{number}"))  # type: ignore[arg-type]

        answers = [wrong(number) for number in range(60)]
        await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)

        async def some_wait() -> bool:
            done = sum(answer.done() for answer in answers)
            return 60 - MOST_WAITING_OF_ONE <= done < 60

        await wait_until(some_wait)
        assert (await door(farm, farm.who["email"], right)).status < 300
        assert not all(answer.done() for answer in answers)
        assert {answer.status for answer in await asyncio.gather(*answers)} == {401}
    out, err = capfd.readouterr()
    lines = [line for line in (out + err).splitlines() if "wrong secret" in line]
    assert 0 < len(lines) <= 3
    assert all("127.0.0.1" in line and "wrong-" not in line for line in lines)


async def test_v1_is_refused_in_its_own_words(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        wrong = {"email": farm.who["email"], "token": "wrong"}
        for _ in range(FREE + 2):
            assert (await by_v1(farm, *wrong.values())).body == b""
        reply = await farm.submit({"EngineId": "1", "Arguments": []}, ("a.blend", b"x"), who=wrong)
        assert (reply.status, reply.body) == (401, V1_UNAUTHORIZED)


async def test_behind_a_trusted_proxy_it_is_the_client_that_counts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async with renderapi(tmp_path, trusted_proxies=("127.0.0.1",)) as farm:
        who = {"email": "a\x1b[2J@b.org", "token": "wrong"}
        for client in ("203.0.113.5", "203.0.113.6"):
            await farm.call("POST", "/session", who, who={}, headers={"X-RenderOnline": "1", "X-Forwarded-For": client})
    out, err = capfd.readouterr()
    assert "203.0.113.5" in out + err
    assert "203.0.113.6" in out + err
    assert "\x1b[2J" not in out + err


def test_answers_wait_longer_and_longer_but_never_long() -> None:
    waits = [Throttle.delay_s(count) for count in range(1, 100)]
    assert waits[:FREE] == [0.0] * FREE
    assert waits[FREE] > 0
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_S <= 2.0


async def test_few_answers_wait_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Throttle, "delay_s", staticmethod(lambda _count: 3600.0))
    throttle = Throttle()
    clients = [f"10.0.{number}.1" for number in range(2 * MOST_WAITING)]
    answers = [asyncio.create_task(throttle.wrong("token", client)) for client in clients for _ in range(2)]
    answers += [asyncio.create_task(throttle.wrong("token", clients[0], f"user {number}")) for number in range(100)]
    for _ in range(10):
        await asyncio.sleep(0)
    waiting = [answer for answer in answers if not answer.done()]
    assert len(waiting) == MOST_WAITING
    for answer in waiting:
        answer.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_account_is_slowed_from_everywhere_and_forgiven_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    now, counts = [0.0], list[int]()
    monkeypatch.setattr(Throttle, "delay_s", staticmethod(lambda count: counts.append(count) or 0.0))
    throttle = Throttle(clock=lambda: now[0])
    for number in range(10):
        await throttle.wrong("token", f"10.0.0.{number}", "ada@example.org")
    await throttle.wrong("token", "10.0.0.1", "bob@example.org")
    now[0] = WINDOW_S + 1
    await throttle.wrong("token", "10.0.0.1", "ADA@example.org")
    assert counts == [*range(1, 11), 2, 1]


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "MAX_REMEMBERED", 10)
    throttle = Throttle()
    asyncio.run(_many(throttle))
    assert len(throttle._counts) == 10


async def test_no_long_name_is_remembered() -> None:
    throttle = Throttle()
    await throttle.wrong("token", "10.0.0.1", "ß" * 60_000)
    assert max(map(len, throttle._counts)) < 1000


async def _many(throttle: Throttle) -> None:
    for number in range(100):
        await throttle.wrong("token", f"10.0.0.{number}", f"user {number}")
