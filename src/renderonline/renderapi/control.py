"""What people do to tasks: cancel, delete, pause, resume, try again, and ask why nothing happens.

Every use case can be repeated. `user_id` is whose task it must be; None for those who may touch everybody's.
`NotFound` when a task is not there or not theirs.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final, TypeVar

import structlog

from renderonline.database import Database
from renderonline.database import work_control as work
from renderonline.database.projection import TaskState
from renderonline.farm.tasks import TaskStatus
from renderonline.renderapi.dispatch import Dispatcher
from renderonline.storage.landing import remove_attempt, remove_task

T = TypeVar("T")
_log = structlog.get_logger(__name__)

_STOPPING_S: Final = 10.0
"""Deleting waits at most so long for engines to end, so that they write nothing behind us."""
_LOOK_S: Final = 0.05
_ENDED: Final = {
    TaskStatus.SUCCEEDED: "It succeeded.",
    TaskStatus.FAILED: "It failed. Try it again with: renderonline retry.",
    TaskStatus.CANCELED: "It was canceled. Try it again with: renderonline retry.",
}


class Control:
    """The use cases. The routes make the words of each API from what is raised here."""

    def __init__(self, database: Database, dispatcher: Dispatcher) -> None:
        self._database = database
        self._dispatcher = dispatcher
        self._shared = dispatcher.shared

    async def cancel(self, task_id: int, *, user_id: int | None) -> TaskState:
        """Take a task from the queue and stop what runs of it. `Conflict` (code `not_in_queue`) when it has ended."""
        canceled = await self._write(work.cancel_task, task_id, user_id)
        self._follow_cancel(canceled)
        return canceled.state

    async def delete(self, task_id: int, *, user_id: int | None) -> None:
        """Stop a task, then remove its files and its rows.

        Files go first: a stop in between leaves a canceled task that can be deleted again.
        """
        condemned = await self._write(work.condemn_task, task_id, user_id)
        self._follow_cancel(condemned.canceled)
        await self._until_stopped(condemned.canceled.stopped)
        await asyncio.to_thread(self._remove_files, condemned)
        await self._database.write(partial(work.delete_task, task_id=task_id))
        self._shared.memory.forget_task(task_id)
        self._shared.orders.forget(task_id)
        self._shared.announcer.task_deleted(task_id, condemned.canceled.state.user_id)

    async def pause(self, task_id: int, *, user_id: int | None) -> TaskState:
        """Start nothing new of a task; what runs goes on. `Conflict` when it has ended."""
        return await self._changed(await self._write(partial(work.pause_task, paused=True), task_id, user_id))

    async def resume(self, task_id: int, *, user_id: int | None) -> TaskState:
        """Go on with a task."""
        return await self._changed(await self._write(partial(work.pause_task, paused=False), task_id, user_id))

    async def retry(self, task_id: int, *, user_id: int | None) -> TaskState:
        """Put what failed or was canceled back to waiting; what waits after a failure starts at once.

        `Conflict` when there is nothing to try again, `LimitReached` when the user's queue is full.
        """
        return await self._changed(await self._write(work.retry_task, task_id, user_id))

    async def explain(self, task_id: int, *, user_id: int | None) -> tuple[str, ...]:
        """Why a task is where it is, in plain words."""
        story = await self._database.read(partial(work.task_story, task_id=task_id, user_id=user_id))
        return tuple(self._reasons(story))

    async def _write(self, operation: Callable[..., T], task_id: int, user_id: int | None) -> T:
        guarded = partial(operation, task_id=task_id, moment=self._shared.now(), user_id=user_id)
        return await self._database.write(guarded)

    async def _changed(self, state: TaskState) -> TaskState:
        self._shared.orders.forget(state.task_id)
        await self._shared.reload((state.task_id,))
        self._shared.announcer.task(state)
        return state

    def _follow_cancel(self, canceled: work.Canceled) -> None:
        """Memory and machines follow what was committed. A slot is free when its machine says so."""
        for attempt_id, machine_id, _ in canceled.stopped:
            self._shared.memory.end_attempt(attempt_id)
            self._shared.machines.cancel(machine_id, attempt_id, "the task was canceled")
        self._dispatcher.reports.tasks_changed((canceled.state,))

    async def _until_stopped(self, stopped: Sequence[work.Stopped]) -> None:
        """Wait until no machine has these attempts any more, or for a while; the rest is swept up later."""
        for _ in range(int(_STOPPING_S / _LOOK_S)):
            if not any(map(self._occupied, stopped)):
                return
            await asyncio.sleep(_LOOK_S)

    def _occupied(self, stopped: work.Stopped) -> bool:
        machine = self._shared.machines.get(stopped.machine_id)
        return machine is not None and machine.reachable and stopped.attempt_id in machine.occupied

    def _remove_files(self, condemned: work.Condemned) -> None:
        for attempt in condemned.attempts:
            remove_attempt(attempt.directory)
            self._shared.logs.remove(attempt.attempt_id)
        if not condemned.shared and not remove_task(condemned.scene, condemned.canceled.state.user_id):
            _log.warning("A deleted task's files could not all be removed", scene=condemned.scene)

    def _reasons(self, story: work.Story) -> Iterable[str]:
        state = story.state
        if state.ended:
            yield _ENDED[state.status]
            yield from story.reasons if state.status is not TaskStatus.SUCCEEDED else ()
            return
        if state.counters.live:
            names = {self._machine_name(one.machine_id) for one in self._shared.memory.attempts_of(state.task_id)}
            yield f"{state.counters.live} of its parts are being rendered on {', '.join(sorted(names)) or 'a machine'}."
        if state.counters.waiting:
            yield from self._why_waiting(story)
        for reason in story.reasons:
            yield f"A part failed before: {reason}."

    def _why_waiting(self, story: work.Story) -> Iterable[str]:
        memory, task_id = self._shared.memory, story.state.task_id
        task = memory.tasks.get(task_id)
        if story.state.paused:
            yield "It is paused; resume it to go on."
        elif story.blocked_by:
            yield f"It waits for task {', '.join(map(str, story.blocked_by))} to succeed."
        elif held := memory.held_machines(task_id):
            names = ", ".join(self._machine_name(machine_id) for machine_id in held)
            yield f"Machine {names} was lost and may still write; it must answer first. Retry, if it is really off."
        elif (due := memory.next_try(task_id)) is not None:
            yield f"A part is tried again in {max(0.0, due - self._shared.clock.monotonic()):.0f} s."
        if task is not None and task.may_start:
            yield from self._why_no_machine(task.engine, task_id)

    def _why_no_machine(self, engine: str, task_id: int) -> Iterable[str]:
        machines = list(self._shared.machines)
        able = [machine for machine in machines if engine in machine.engines]
        taking = [machine for machine in able if machine.takes]
        if not any(machine.reachable for machine in machines):
            yield "No machine is connected. Add one: renderonline machine invite."
        elif not able:
            yield f"No machine has the engine {engine}."
        elif not taking:
            names = ", ".join(f"{machine.name} ({machine.full or machine.status.value})" for machine in able)
            yield f"No machine with the engine {engine} takes work now: {names}."
        elif not any(machine.free for machine in taking):
            yield f"All {len(taking)} machines with the engine {engine} are busy; it is in the queue."
        elif not self._fits(task_id):
            yield "The free machines are of the existing system's kind and take whole tasks only; this one is cut."

    def _fits(self, task_id: int) -> bool:
        policy = self._shared.machines.policy
        signatures = self._shared.memory.index.signatures_of(task_id)
        free = self._shared.machines.free_slots()
        return not signatures or any(policy.fits(slots.ability, one) for slots in free for one in signatures)

    def _machine_name(self, machine_id: int) -> str:
        machine = self._shared.machines.get(machine_id)
        return machine.name if machine is not None else f"machine {machine_id}"
