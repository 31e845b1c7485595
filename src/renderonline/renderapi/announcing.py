"""What the dispatcher tells the world: events for those who watch (`events.publish`)."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

from renderonline.database.projection import TaskState
from renderonline.database.work_landing import Landing
from renderonline.farm.tasks import ChunkState
from renderonline.protocol.link import Progress
from renderonline.renderapi.machines import Machine
from renderonline.renderapi.memory import LiveAttempt

PAUSE_S: Final = 0.1
PROGRESS_PAUSE_S: Final = 0.25
"""An attempt's progress is told at most so often."""


class Publisher(Protocol):
    """Where events go (`renderapi.events.Events`)."""

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Tell everybody who may see it."""


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

    def task(self, state: TaskState) -> None:
        """A task changed; its end is told at once."""
        key = ("task", state.task_id)
        if state.ended:
            self._quiet.pop(key, None)
            self._task(state)
        else:
            self._now_and_then(key, partial(self._task, state))

    def _task(self, state: TaskState) -> None:
        data: dict[str, Any] = {"task_id": state.task_id, "status": state.status.value}
        data |= {"frames_total": state.frames_total, "frames_done": state.frames_done}
        data |= {
            "chunks": {one.value: getattr(state.counters, one.value) for one in ChunkState},
            "reason": state.reason,
        }
        self._events.publish("task", data, user_id=state.user_id)

    def task_deleted(self, task_id: int, user_id: int) -> None:
        """A task is gone."""
        self._events.publish("task", {"task_id": task_id, "status": "deleted"}, user_id=user_id)

    def result(self, landing: Landing, *, preview: bool) -> None:
        """A result landed; `preview`: it can be shown in a grid."""
        offer = landing.offer
        data = {"task_id": landing.task_id, "machine_id": landing.machine_id, "attempt_id": offer.attempt_id}
        data["preview"] = preview
        data |= {name: getattr(offer, name) for name in ("name", "frame", "size", "digest", "crc32")}
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
