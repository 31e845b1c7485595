"""Slow looks at what users sent: in turn, a bounded number at once, ended when who asked has gone
(R14 Authority first)."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request

from renderonline.farm.turns import Turns
from renderonline.serving.web import step_back

AT_ONCE: Final = 4
"""Of one kind. With fewer, a few users with large scenes would be all that goes on."""

T = TypeVar("T")
Gone = Callable[[], Awaitable[object]]
"""Comes back when who asked has gone."""


def client_of(request: Request) -> Gone:
    """The client of a request whose body was read, or that has none."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    return gone


class Looks:
    """One kind of slow look. Each runs in a thread of its own, so that short work never stands behind it. `modest`:
    those who wait for something else come first."""

    def __init__(self, kind: str, at_once: int = AT_ONCE, *, modest: bool = False) -> None:
        self._turns = Turns[asyncio.Future[None]](at_once)
        self._threads = ThreadPoolExecutor(at_once, kind, step_back if modest else None)

    async def look(self, user_id: int, work: Callable[[threading.Event], T], gone: Gone) -> T:
        """What `work` returns, called in the user's turn. When the asker has gone (`ClientDisconnect`), or the caller
        is canceled, `work` is not called any more, or its event is set: then it must end soon."""
        return await while_there(self._look(user_id, work), gone)

    async def _look(self, user_id: int, work: Callable[[threading.Event], T]) -> T:
        stopped = threading.Event()
        async with self.turn(user_id):
            running = asyncio.get_running_loop().run_in_executor(self._threads, work, stopped)
            try:
                return await asyncio.shield(running)
            finally:  # the turn ends when the thread does
                stopped.set()
                await asyncio.wait({running})

    @contextlib.asynccontextmanager
    async def turn(self, user_id: int) -> AsyncIterator[None]:
        """The user's turn, for work that is done elsewhere."""
        asker = asyncio.get_running_loop().create_future()
        self._turns.ask(user_id, asker)
        self._begin()
        try:
            await asker
        except asyncio.CancelledError:
            if asker.cancelled():
                self._turns.give_up(user_id, asker)
            else:  # the turn came at the same moment
                self._end(user_id)
            raise
        try:
            yield
        finally:
            self._end(user_id)

    def _begin(self) -> None:
        while (found := self._turns.next()) is not None:
            user_id, asker = found
            if asker.done():
                self._turns.end(user_id)
            else:
                asker.set_result(None)

    def _end(self, user_id: int) -> None:
        self._turns.end(user_id)
        self._begin()


async def while_there(work: Coroutine[Any, Any, T], gone: Gone) -> T:
    """What `work` returns; it is canceled when the asker goes first, and `ClientDisconnect` raised."""
    working = asyncio.create_task(work)
    leaving = asyncio.ensure_future(gone())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
