"""What people do to tasks: cancel, delete, pause, resume, change, try again.

Every use case can be repeated. `user_id` is the owner that the task must have; None: any.
`NotFound` when it does not exist or has another owner.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from renderonline.database import control_rows as work
from renderonline.database.door import Database
from renderonline.database.task_rows import TaskRow
from renderonline.farm.errors import InvalidRequest, NoSpace, NotAvailable
from renderonline.farm.frames import parse_frames
from renderonline.farm.result_names import Film
from renderonline.renderapi.connected_machines import Machines
from renderonline.renderapi.memory import Announcements, Clocks, Memory
from renderonline.renderapi.orders import Orders
from renderonline.storage.landing import remove_attempt, remove_task

T = TypeVar("T")
_log = structlog.get_logger(__name__)

_STOPPING_S: Final = 10.0
"""The longest time that deleting waits for engines to end, so that they write nothing afterwards, and requeueing for
results on their way."""
_LOOK_S: Final = 0.05
_AGAIN_S: Final = 1.0


class Control:
    """The use cases. The routes make the words of each API from what is raised here."""

    def __init__(
        self,
        database: Database,
        *,
        memory: Memory,
        machines: Machines,
        orders: Orders,
        clocks: Clocks,
        announcements: Announcements,
        remove_log: Callable[[int], None],
        remove_previews: Callable[[int], None],
        changed: Callable[[Iterable[TaskRow]], None],
    ) -> None:
        self._database, self._memory, self._machines, self._orders = database, memory, machines, orders
        self._clocks, self._announcements, self._tasks_changed = clocks, announcements, changed
        self._remove_log, self._remove_previews = remove_log, remove_previews

    async def cancel(self, task_id: int, *, user_id: int | None) -> TaskRow:
        """Take a task from the queue and stop what runs of it. `Conflict` (`not_in_queue`) when it ended otherwise."""
        return self._follow_cancel(await self._write(work.cancel_task, task_id, user_id))

    async def dequeue(self, task_id: int, *, user_id: int | None) -> TaskRow:
        """v1's way: `Conflict` also when it was canceled already."""
        return self._follow_cancel(await self._write(partial(work.cancel_task, queued=True), task_id, user_id))

    async def delete(self, task_id: int, *, user_id: int | None, only_ended: bool = False) -> None:
        """Stop a task, then remove its files and its rows. `only_ended`: `Conflict` when it is still needed. Files go
        first; what a stop interrupts is carried through by `Housekeeping`."""
        condemned = await self._write(partial(work.condemn_task, only_ended=only_ended), task_id, user_id)
        if not condemned.had_ended:  # its end was announced before
            self._follow_cancel(condemned.canceled)
        await self._until_stopped(condemned.canceled.stopped)
        await asyncio.to_thread(self._remove_files, condemned)
        await self._delete_rows(task_id)
        self._memory.forget_task(task_id)
        self._orders.forget(task_id)
        self._announcements.task_deleted(task_id, condemned.canceled.state.user_id)

    async def _delete_rows(self, task_id: int) -> None:
        """However long the database is away or full: a task without its files can't stay."""
        while True:
            with contextlib.suppress(NotAvailable, NoSpace):
                await self._database.write(partial(work.delete_task, task_id=task_id))
                return
            await asyncio.sleep(_AGAIN_S)

    async def pause(self, task_id: int, *, now: bool = False, user_id: int | None) -> TaskRow:
        """Start nothing new of a task; `now`: stop what runs, without a failure. `Conflict` when it has ended."""
        return await self._changed(await self._write(partial(work.pause_task, paused=True, now=now), task_id, user_id))

    async def resume(self, task_id: int, *, user_id: int | None) -> TaskRow:
        return await self._changed(await self._write(partial(work.pause_task, paused=False), task_id, user_id))

    async def retry(self, task_id: int, *, user_id: int | None) -> TaskRow:
        """Put what failed or was canceled back to waiting; what waits after a failure starts at once. `Conflict` when
        the task succeeded, `LimitReached` when the user's queue is full."""
        return await self._changed(await self._write(work.requeue_task, task_id, user_id))

    async def requeue(
        self, task_id: int, *, chunks: Collection[int] = (), frames: str = "", user_id: int | None
    ) -> TaskRow:
        """Render a task, or chunks and a range of frames of it, again, whatever came of them; what runs of them is
        stopped. Each frame that was there is shown until the next one takes its place (R6 Landing). `InvalidRequest`
        for chunks and frames that it does not have, `LimitReached` when the user's queue is full."""
        wanted = await asyncio.to_thread(parse_frames, frames) if frames else ()
        selection = work.Selection(frozenset(chunks), frozenset(wanted))
        for _ in range(int(_STOPPING_S / _LOOK_S)):
            acted = await self._write(partial(work.requeue_task, selection=selection), task_id, user_id)
            if not acted.landing:
                return await self._changed(acted)
            self._follow(acted.stopped)
            self._memory.forget_task(task_id)  # nothing of it starts meanwhile
            await asyncio.sleep(_LOOK_S)
        await self._memory.reload((task_id,))
        raise NotAvailable(f"Results of task {task_id} are on their way to the disk. Try again in a moment.")

    async def film(self, task_id: int, film: Film, *, user_id: int | None) -> TaskRow:
        """Have a film made of what is there of a task, and another one at its end. `Conflict` when no frame has landed,
        `LimitReached` when the user's queue is full."""
        return await self._changed(await self._write(partial(work.film_task, film=film), task_id, user_id))

    async def change(self, task_id: int, changes: Mapping[str, Any], *, user_id: int | None) -> TaskRow:
        """Change `name` ("": the file's), `priority` or `running_limit` (0: none). `InvalidRequest` for others."""
        if not changes or not changes.get("name", "").isprintable():
            raise InvalidRequest("Name at least one field to change; a name has printable characters only.")
        return await self._changed(await self._write(partial(work.change_task, changes=changes), task_id, user_id))

    async def _write(self, operation: Callable[..., T], task_id: int, user_id: int | None) -> T:
        guarded = partial(operation, task_id=task_id, moment=self._clocks.now(), user_id=user_id)
        return await self._database.write(guarded)

    async def _changed(self, acted: work.Acted) -> TaskRow:
        self._follow(acted.stopped)
        self._orders.forget(acted.state.task_id)
        await self._memory.reload((acted.state.task_id,))
        self._announcements.task(acted.state)
        return acted.state

    def _follow_cancel(self, canceled: work.Acted) -> TaskRow:
        self._follow(canceled.stopped)
        self._tasks_changed((canceled.state,))
        return canceled.state

    def _follow(self, stopped: Sequence[work.StoppedAttempt]) -> None:
        """Memory and machines follow what was committed. A slot is free when its machine says so."""
        for attempt_id, machine_id, _ in stopped:
            self._memory.end_attempt(attempt_id)
            self._machines.cancel(machine_id, attempt_id, "it was stopped")

    async def _until_stopped(self, stopped: Sequence[work.StoppedAttempt]) -> None:
        """Wait until no machine has these attempts any more, or for a while; the rest is swept up later."""
        for _ in range(int(_STOPPING_S / _LOOK_S)):
            if not any(map(self._occupied, stopped)):
                return
            await asyncio.sleep(_LOOK_S)

    def _occupied(self, stopped: work.StoppedAttempt) -> bool:
        machine = self._machines.get(stopped.machine_id)
        return machine is not None and machine.reachable and stopped.attempt_id in machine.occupied

    def _remove_files(self, condemned: work.Condemned) -> None:
        for attempt in condemned.attempts:
            remove_attempt(attempt.directory)
            self._remove_log(attempt.attempt_id)
        self._remove_previews(condemned.canceled.state.task_id)
        scene = (condemned.scene, condemned.file_name)
        if not condemned.shared and not remove_task(*scene, condemned.canceled.state.user_id):
            _log.warning("A deleted task's files could not all be removed", scene=condemned.scene)
