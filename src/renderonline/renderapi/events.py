"""What happens on the farm, told as it happens: who writes events, their ring, and any number of readers (SSE).

Each event has an id `<epoch>-<number>`; the epoch is new at each start. A reader that comes back with the last id it
saw gets everything after it, or one `resync` event when that is no longer known.
"""

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import orjson

from renderonline.database.work_sheet import TaskRow
from renderonline.farm.errors import LimitReached
from renderonline.farm.tasks import ChunkState, Landing
from renderonline.protocol.link import Progress
from renderonline.renderapi.machines import Machine
from renderonline.renderapi.memory import LiveAttempt

RING: Final = 10_000
"""Events that are kept."""
RESYNC: Final = "resync"
"""The event that says: what you know may be old, ask again for everything."""
QUIET_S: Final = 15.0
"""A reader hears something at least so often, so that both sides notice a dead connection."""
KNOWN_S: Final = 5.0
"""A reader who was let in before that is looked at again before anything more is told."""
MOST_STREAMS: Final = 8
"""Streams of one account at the same time; a client that gets no other asks now and then."""
PAUSE_S: Final = 0.1
PROGRESS_PAUSE_S: Final = 0.25
"""An attempt's progress is told at most so often."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; `user_id` is whose task it is about, None when it is about the farm."""

    number: int
    type: str
    data: bytes
    user_id: int | None


class Publisher(Protocol):
    """Where events go."""

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Tell everybody who may see it."""


class Events:
    """The ring. `publish` is called on the event loop only and never waits for a reader."""

    def __init__(self, epoch: str) -> None:
        self._epoch = epoch
        self._ring: deque[Event] = deque(maxlen=RING)
        self._last = 0
        self._more = asyncio.Event()
        self._closed = False
        self._streams: Counter[int] = Counter()
        self._looks = 0

    @contextlib.contextmanager
    def seat(self, user_id: int) -> Iterator[None]:
        """A stream of this account is open. `LimitReached` when it has as many as one may have."""
        if self._streams[user_id] >= MOST_STREAMS:
            raise LimitReached(
                f"This account has {MOST_STREAMS} event streams open. Close one, or ask for the tasks now and then.",
                code="too_many_streams",
            )
        self._streams[user_id] += 1
        try:
            yield
        finally:
            self._streams[user_id] -= 1
            if not self._streams[user_id]:
                del self._streams[user_id]

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Tell everybody who may see it: the user `user_id`, or for None those who may see the whole farm."""
        self._last += 1
        self._ring.append(Event(self._last, type, orjson.dumps(data, default=str), user_id))
        self._wake()

    def look_again(self) -> None:
        """Somebody's account may have changed: ask now whether each reader may stay."""
        self._looks += 1
        self._wake()

    def close(self) -> None:
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        self._more.set()
        self._more = asyncio.Event()

    async def stream(
        self, last_event_id: str | None, may_see: Callable[[Event], bool], may_stay: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[bytes]:
        """The events after `last_event_id` (None: from now on) as server-sent events, for as long as the reader may
        stay: a stream must not outlive a session, an account or a role."""
        position, clock = self._position(last_event_id), asyncio.get_running_loop().time
        known_at, looks = clock(), self._looks
        yield b"retry: 2000\n\n"
        while not self._closed:
            if looks != self._looks or clock() - known_at >= KNOWN_S:
                known_at, looks = clock(), self._looks
                if not await may_stay():
                    return
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


class Announcer:
    """Writes events. What changes quickly is told at once and then at most every `PAUSE_S`, with its newest value."""

    def __init__(self, events: Publisher) -> None:
        self._events = events
        self._quiet: dict[tuple[str, int], Callable[[], None] | None] = {}

    def _now_and_then(self, key: tuple[str, int], tell: Callable[[], None]) -> None:
        if key in self._quiet:
            self._quiet[key] = tell
            return
        tell()
        self._quiet[key] = None
        asyncio.get_running_loop().call_later(PAUSE_S, self._pause_over, key)

    def _pause_over(self, key: tuple[str, int]) -> None:
        if (tell := self._quiet.pop(key, None)) is not None:
            self._now_and_then(key, tell)

    def task(self, state: TaskRow) -> None:
        """A task changed; its end is told at once."""
        key = ("task", state.task_id)
        if state.ended:
            self._quiet.pop(key, None)
            self._task(state)
        else:
            self._now_and_then(key, partial(self._task, state))

    def _task(self, state: TaskRow) -> None:
        told = ("task_id", "status", "frames_total", "frames_done", "reason", "unchecked", "warnings")
        data = {name: getattr(state, name) for name in told}
        data["chunks"] = {one.value: getattr(state.counters, one.value) for one in ChunkState}
        self._events.publish("task", data, user_id=state.user_id)

    def task_deleted(self, task_id: int, user_id: int) -> None:
        self._events.publish("task", {"task_id": task_id, "status": "deleted"}, user_id=user_id)

    def result(self, landing: Landing, *, preview: bool) -> None:
        """A result landed; `preview`: it can be shown in a grid."""
        data = {"task_id": landing.task_id, "machine_id": landing.machine_id, "preview": preview}
        told = ("attempt_id", "name", "frame", "size", "digest", "crc32")
        data |= {name: getattr(landing.offer, name) for name in told}
        self._events.publish("result", data, user_id=landing.user_id)

    def progress(self, attempt: LiveAttempt, progress: Progress, now: float) -> None:
        """An attempt came further; not every step is told."""
        if now - attempt.told_at < PROGRESS_PAUSE_S and progress.fraction < 1.0:
            return
        attempt.told_at = now
        data = {name: getattr(attempt, name) for name in ("task_id", "chunk_id", "attempt_id", "machine_id")}
        data |= {name: getattr(progress, name) for name in ("fraction", "frame", "remaining_s", "message")}
        self._events.publish("progress", data, user_id=attempt.user_id)

    def machine(self, machine: Machine) -> None:
        """A machine came, went, or changed its status."""
        self._now_and_then(("machine", machine.machine_id), lambda: self._events.publish("machine", machine.view()))
