"""What happens on the farm, told as it happens: a ring of events and any number of readers (SSE).

Each event has an id `<epoch>-<number>`; the epoch is new at each start. A reader that comes back with the last id it
saw gets everything after it, or one `resync` event when that is no longer known.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

RING: Final = 10_000
"""Events that are kept."""
RESYNC: Final = "resync"
"""The event that says: what you know may be old, ask again for everything."""
QUIET_S: Final = 15.0
"""A reader hears something at least so often, so that both sides notice a dead connection."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `user_id` is whose task it is about, None when it is about the farm."""

    number: int
    type: str
    data: bytes
    user_id: int | None


class Events:
    """The ring. `publish` is called on the event loop only and never waits for a reader."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._ring: deque[Event] = deque(maxlen=RING)
        self._last = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._closed = False

    def publish(self, type: str, data: Mapping[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Tell everybody who may see it: the user `user_id`, or for None those who may see the whole farm."""
        self._last += 1
        self._ring.append(Event(self._last, type, orjson.dumps(data, default=str), user_id))
        self._wake()

    def close(self) -> None:
        """End all streams; the server stops."""
        self._closed = True
        self._wake()

    async def stream(self, last_event_id: str | None, may_see: Callable[[Event], bool]) -> AsyncIterator[bytes]:
        """The events after `last_event_id` (None: from now on) as server-sent events, without end."""
        position = self._position(last_event_id)
        yield b"retry: 2000\n\n"
        if position is None:
            position = self._last
            yield self._line(Event(position, RESYNC, b"{}", None))
        while not self._closed:
            oldest = self._last - len(self._ring)
            if position < oldest:  # the reader is slower than the farm
                position = self._last
                yield self._line(Event(position, RESYNC, b"{}", None))
            batch = b"".join(self._line(event) for event in self._after(position) if may_see(event))
            position = self._last
            if batch:
                yield batch
            elif not await self._changed(position):
                yield b": quiet\n\n"

    def _position(self, last_event_id: str | None) -> int | None:
        """How far a reader is; None when that can't be known."""
        if not last_event_id:
            return self._last
        epoch, _, number = last_event_id.rpartition("-")
        if epoch != self._epoch or not (number.isascii() and number.isdigit()):
            return None
        seen = int(number[:20])
        return seen if self._last - len(self._ring) <= seen <= self._last else None

    def _after(self, position: int) -> list[Event]:
        missed = self._last - position
        return [self._ring[index] for index in range(len(self._ring) - missed, len(self._ring))] if missed else []

    def _line(self, event: Event) -> bytes:
        return b"id: %s-%d\nevent: %s\ndata: %s\n\n" % (
            self._epoch.encode(),
            event.number,
            event.type.encode(),
            event.data,
        )

    async def _changed(self, position: int) -> bool:
        """Wait until there is something after `position`; False after a quiet while."""
        if self._last > position or self._closed:
            return True
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        try:
            await asyncio.wait_for(future, QUIET_S)
        except TimeoutError:
            return False
        finally:
            self._waiting.discard(future)
        return True

    def _wake(self) -> None:
        for future in self._waiting:
            if not future.done():
                future.set_result(None)
        self._waiting.clear()
