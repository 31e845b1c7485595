"""Slow work in turns: users one after the other, one piece of work of each at a time, a bounded number in all."""

import asyncio
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from renderonline.renderapi.scene_surveys import Looks


class Callers:
    """Callers of `Looks.turn`; each keeps its turn until `end`."""

    def __init__(self, at_once: int) -> None:
        self.begun: list[str] = []
        self._looks = Looks("test", at_once)
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def ask(self, *names: str) -> None:
        for name in names:
            self._ends[name] = asyncio.Event()
            self._tasks[name] = asyncio.create_task(self._call(name))
        await self._settle()

    async def end(self, name: str) -> None:
        self._ends[name].set()
        await self._settle()

    async def give_up(self, name: str) -> None:
        self._tasks[name].cancel()
        await self._settle()

    async def _call(self, name: str) -> None:
        async with self._looks.turn(ord(name[0])):
            self.begun.append(name)
            await self._ends[name].wait()

    @staticmethod
    async def _settle() -> None:
        for _ in range(10):  # one round of the event loop for each lock that is handed on
            await asyncio.sleep(0)


async def test_one_user_has_one_turn_at_a_time_and_users_go_round() -> None:
    callers = Callers(2)
    await callers.ask("a1", "a2", "a3", "b1", "b2", "c1")
    assert callers.begun == ["a1", "b1"]
    for name in ("a1", "b1", "c1", "a2", "b2"):
        await callers.end(name)
    assert callers.begun == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_who_gives_up_is_not_waited_for() -> None:
    callers = Callers(1)
    await callers.ask("x1", "a1", "a2", "b1")
    await callers.give_up("a1")
    await callers.give_up("b1")
    await callers.end("x1")
    assert callers.begun == ["x1", "a2"]
    await callers.give_up("a2")
    await callers.ask("c1")
    assert callers.begun == ["x1", "a2", "c1"]


@given(st.lists(st.sampled_from("abcde"), max_size=60), st.integers(1, 3))
def test_nobody_is_passed_over_more_often_than_there_are_others(users: list[str], at_once: int) -> None:
    asyncio.run(check_order([f"{user}{number}" for number, user in enumerate(users)], at_once))


async def check_order(names: list[str], at_once: int) -> None:
    callers, users = Callers(at_once), {name[0] for name in names}
    await callers.ask(*names)
    for place in range(len(names)):
        having = [name[0] for name in callers.begun[place:]]
        assert len(having) == len(set(having)) <= at_once
        await callers.end(callers.begun[place])
    assert sorted(callers.begun) == sorted(names)
    for user in users:
        places = [place for place, name in enumerate(callers.begun) if name[0] == user]
        assert places[0] < len(users)
        assert all(second - first <= len(users) for first, second in pairwise(places))
        assert [callers.begun[place] for place in places] == [name for name in names if name[0] == user]
