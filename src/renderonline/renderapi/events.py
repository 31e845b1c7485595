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
        self._more = asyncio.Event()
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

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def stream(self, last_event_id: str | None, may_see: Callable[[Event], bool]) -> AsyncIterator[bytes]:
        """The events after `last_event_id` (None: from now on) as server-sent events, without end."""
        position = self._position(last_event_id)
        yield b"retry: 2000\n\n"
        while not self._closed:
            missed = self._last - position
            if missed > len(self._ring):  # unknown, or the reader is slower than the farm
                new = [Event(self._last, RESYNC, b"{}", None)]
            else:
                new = [self._ring[index] for index in range(-missed, 0)]
            position, more = self._last, self._more
            if batch := b"".join(self._line(event) for event in new if event.type == RESYNC or may_see(event)):
                yield batch
            elif not new:
                try:
                    await asyncio.wait_for(more.wait(), QUIET_S)
                except TimeoutError:
                    yield b": quiet\n\n"

    def _position(self, last_event_id: str | None) -> int:
        """How far a reader is; before everything that is kept when that can't be known."""
        if not last_event_id:
            return self._last
        epoch, _, number = last_event_id.rpartition("-")
        known = epoch == self._epoch and number.isascii() and number.isdigit()
        seen = int(number[:20]) if known else -1
        return seen if seen <= self._last else -1

    def _line(self, event: Event) -> bytes:
        head = f"id: {self._epoch}-{event.number}\nevent: {event.type}\ndata: ".encode()
        return head + event.data + b"\n\n"
