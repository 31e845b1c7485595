"""Finished files on their way to a directory outside the farm (`submit --deliver NAME/sub`), by RenderAPI, never by an
engine: begun when they land, gone on with after a restart, tried again while their root is away."""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog

from renderonline.database.deliveries import (
    Begun,
    Undelivered,
    begin_delivery,
    end_delivery,
    undelivered,
    withdraw_delivery,
)
from renderonline.database.deliveries import warn_of_delivery as warn
from renderonline.database.door import Database
from renderonline.database.work_sheet import Moment
from renderonline.farm import result_names
from renderonline.farm.errors import InvalidRequest, RenderOnlineError
from renderonline.renderapi.events import Announcer, Publisher
from renderonline.storage.delivery import Handed, Handing, hand_over
from renderonline.storage.names import may_be_name, task_directory

_log = structlog.get_logger(__name__)

AGAIN_S: Final = 30.0
"""Between two tries when something could not be delivered."""
IDLE_S: Final = 300.0
"""Between two looks when nothing landed."""
PAUSE_S: Final = 0.5
"""What lands within it is delivered together."""


def checked_place(deliver: str, roots: Mapping[str, Path]) -> str:
    """`NAME/sub/folders`, if this farm has such a root; `InvalidRequest` says what there is."""
    if not deliver:
        return ""
    name, _, below = deliver.strip("/").partition("/")
    if name not in roots:
        known = (
            f"It delivers to: {', '.join(sorted(roots))}." if roots else "An administrator names some: DeliverRoots."
        )
        raise InvalidRequest(f"This farm has no place {name[:50]!r} to deliver to. {known}", code="no_root")
    if below and not may_be_name(below):
        raise InvalidRequest(f"{below[:100]!r} is no name for folders that every system has.", code="no_root")
    return f"{name}/{below}" if below else name


class Deliverer:
    """Passes events on, and delivers what they tell of. `roots`: name -> directory; without any it only passes on."""

    def __init__(self, events: Publisher, database: Database, roots: Mapping[str, Path]) -> None:
        self._events, self._database, self._roots = events, database, roots
        self._announcer = Announcer(events)
        self._woken = asyncio.Event()
        self._warned: set[int] = set()

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        """Tell everybody; a file that landed is perhaps to be delivered."""
        self._events.publish(type, data, user_id=user_id)
        if type == "result" and self._roots:
            self._woken.set()

    async def run(self) -> None:
        """Deliver again and again, first what a stop left."""
        while self._roots:
            self._woken.clear()
            try:
                left = await self._round()
            except RenderOnlineError as error:
                _log.warning("deliveries go on later", reason=error.message)
                left = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), AGAIN_S if left else IDLE_S)
            await asyncio.sleep(PAUSE_S)

    async def _round(self) -> bool:
        """Deliver what there is; whether something is left that could not be."""
        away: set[int] = set()
        while found := await self._database.read(partial(undelivered, but=sorted(away))):
            for one in found:
                if one.task_id not in away and not await self._deliver(one):
                    away.add(one.task_id)
        return bool(away)

    async def _deliver(self, one: Undelivered) -> bool:
        """Whether it is settled; else it is tried again."""
        name, _, below = one.deliver.partition("/")
        root = self._roots.get(name)
        if root is None:
            return await self._later(one, f"this farm has no place {name} any more (DeliverRoots)")
        frame = one.of_frame if one.frame is None else one.frame
        shown = result_names.called(one.names or "", one.task_id, one.name, frame)
        paths = [f"{below}/{path}" if below else path for path in dict.fromkeys((shown, one.name))]
        found = await self._database.write(partial(begin_delivery, one=one, paths=paths))
        path, begun = found or (paths[0], Begun(0))
        outcome, later = Handed.TAKEN, ""
        if found is not None:
            source = task_directory(one.scene, one.file_name) / one.folder
            about = (source, one.name, one.digest, root, path, begun.before)
            handing = Handing(begun.delivery_id, *about, again=begun.again)
            try:
                outcome = await asyncio.to_thread(hand_over, handing)
            except OSError as error:
                later = f"{name} can't be written: {error.strerror}"
        if outcome is Handed.AWAY:
            later = f"the directory of {name} is not there"
        if outcome is not Handed.DELIVERED:
            await self._database.write(partial(withdraw_delivery, begun=begun))
        if later:
            return await self._later(one, later)
        why = {
            Handed.TAKEN: f"{one.name} was not delivered: {name}/{path} is there and not of this task.",
            Handed.CHANGED: f"{one.name} was not delivered: it is not the file that landed.",
        }.get(outcome, "")
        ours = begun.delivery_id if outcome is Handed.DELIVERED else 0
        end = partial(end_delivery, one=one, moment=_now(), delivery_id=ours, warning=why)
        if (state := await self._database.write(end)) is not None:
            self._announcer.task(state)
        return True

    async def _later(self, one: Undelivered, why: str) -> bool:
        if one.task_id not in self._warned:
            self._warned.add(one.task_id)
            _log.warning("A task's files can't be delivered now", task=one.task_id, reason=why)
            text = f"Its files could not be delivered at once: {why}. The farm tries again."
            if state := await self._database.write(partial(warn, task_id=one.task_id, moment=_now(), warning=text)):
                self._announcer.task(state)
        return False


def _now() -> Moment:
    return Moment.at(time.time())
