"""What people do to tasks: cancel, delete, pause, resume, change, try again, and ask why nothing happens.

Every use case can be repeated. `user_id` is the owner that the task must have; None: any.
`NotFound` when it does not exist or has another owner.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from renderonline.database import control_rows as work
from renderonline.database.door import Database
from renderonline.database.queue_rows import QueuedTask
from renderonline.database.task_rows import TaskRow
from renderonline.farm.errors import InvalidRequest, NoSpace, NotAvailable
from renderonline.farm.frames import parse_frames
from renderonline.farm.needs import Needs, unmet
from renderonline.farm.ready import Signature
from renderonline.farm.result_names import Film
from renderonline.farm.scheduling import Allowance
from renderonline.farm.settling import advice
from renderonline.farm.tasks import TaskStatus
from renderonline.renderapi.connected_machines import Clocks, Machine, Machines, offered
from renderonline.renderapi.memory import Announcements, Memory
from renderonline.renderapi.orders import Orders
from renderonline.storage.attempt_logs import AttemptLogs
from renderonline.storage.landing import remove_attempt, remove_task

T = TypeVar("T")
_log = structlog.get_logger(__name__)

_STOPPING_S: Final = 10.0
"""The longest time that deleting waits for engines to end, so that they write nothing afterwards, and requeueing for
results on their way."""
_LOOK_S: Final = 0.05
_AGAIN_S: Final = 1.0
_ENDED: Final = {
    TaskStatus.SUCCEEDED: "It succeeded.",
    TaskStatus.FAILED: "It failed.",
    TaskStatus.CANCELED: "It was canceled.",
}
_BUSY: Final = "it is busy"
_NAMED: Final = 5
"""The number of machines that are named at most for one reason."""


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
        logs: AttemptLogs,
        remove_previews: Callable[[int], None],
        changed: Callable[[Iterable[TaskRow]], None],
    ) -> None:
        self._database, self._memory, self._machines, self._orders = database, memory, machines, orders
        self._clocks, self._announcements, self._logs = clocks, announcements, logs
        self._remove_previews, self._tasks_changed = remove_previews, changed
        self.explanations = Explanations(memory, machines, clocks)

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

    async def explain(self, task_id: int, *, user_id: int | None) -> tuple[str, ...]:
        story = await self._database.read(partial(work.task_story, task_id=task_id, user_id=user_id))
        return tuple(self.explanations.reasons(story))

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
            self._logs.remove(attempt.attempt_id)
        self._remove_previews(condemned.canceled.state.task_id)
        scene = (condemned.scene, condemned.file_name)
        if not condemned.shared and not remove_task(*scene, condemned.canceled.state.user_id):
            _log.warning("A deleted task's files could not all be removed", scene=condemned.scene)


class Explanations:
    """Says why tasks are where they are, from what memory knows now: the plan's twin, which says what the plan does not
    see in a task (R9 Scheduling)."""

    def __init__(self, memory: Memory, machines: Machines, clocks: Clocks) -> None:
        self._memory, self._machines, self._clocks = memory, machines, clocks

    def reasons(self, story: work.Story) -> Iterable[str]:
        """The reasons why a task is where it is, the most important first."""
        state = story.state
        yield from state.warnings
        if state.ended:
            again = "" if state.status is TaskStatus.SUCCEEDED else f" {advice(story.failure, state.task_id)}"
            yield f"{_ENDED[state.status]}{again}"
            if state.status is TaskStatus.FAILED:
                yield from dict.fromkeys(filter(None, (state.reason, *story.reasons)))
            if state.unchecked:
                yield f"No machine checked its scene first: {state.unchecked}."
            return
        if state.counters.live:
            names = {self._machine_name(one.machine_id) for one in self._memory.attempts_of(state.task_id)}
            are = "is" if state.counters.live == 1 else "are"
            where = ", ".join(sorted(names)) or "a machine"
            yield f"{state.counters.live} of its parts {are} being rendered on {where}."
        if state.counters.waiting:
            yield from self._why_waiting(story)
        for reason in story.reasons:
            yield f"A part failed before: {reason}."

    def _why_waiting(self, story: work.Story) -> Iterable[str]:
        memory, task_id = self._memory, story.state.task_id
        task = memory.tasks.get(task_id)
        if task is not None and task.is_checked_first:
            yield "A machine looks at its scene first, for it is strict."
        if story.state.paused:
            yield f"It is paused. Go on with: renderonline resume {task_id}."
        elif story.blocked_by:
            yield f"It waits for task {', '.join(map(str, story.blocked_by))} to succeed."
        elif held := memory.held_machines(task_id):
            names = ", ".join(self._machine_name(machine_id) for machine_id in held)
            yield f"Machine {names} was lost and may still write; it must answer first."
            yield f"Is it really off? Then: renderonline retry {task_id}."
        elif (due := memory.next_try(task_id)) is not None:
            yield f"A part is tried again in {max(0.0, due - self._clocks.monotonic()):.0f} s."
        if task is not None and (task.may_start or memory.waits(task_id)):
            yield from self._why_not_now(task)

    def _why_not_now(self, task: QueuedTask) -> Iterable[str]:
        users = self._machines.policy.users
        limit, running = users.get(task.user_id, Allowance()).running_limit, len(self._memory.attempts_of(task.task_id))
        if task.running_limit and running >= task.running_limit:
            more = f"Allow more: renderonline change {task.task_id} --limit NUMBER"
            yield f"So many of its parts may run at once: {task.running_limit}. {more}"
        elif limit and self._memory.usage.users.get(task.user_id, 0) >= limit:
            yield f"{limit} parts of its user's tasks are being rendered; the subscription allows no more at once."
        else:
            yield from self._why_no_machine(task)

    def _why_no_machine(self, task: QueuedTask) -> Iterable[str]:
        if hopeless := self.stuck(task.task_id, {}):
            yield hopeless
        signatures = self._memory.index.signatures_of(task.task_id) or (task.signature(),)
        told: dict[str, list[str]] = defaultdict(list)
        for machine in self._machines:
            able = [one for one in signatures if not machine.ability.lacks(one.engine, one.needs)]
            if able or (hopeless and task.engine.casefold() in offered(machine)):  # of the others nobody needs to hear
                told[min(self._hindrance(machine, one) for one in able or signatures)].append(machine.name)
        told.pop("", None)
        if busy := told.pop(_BUSY, None):
            yield f"All machines that can take it are busy ({len(busy)}); {self._place(task)}."
        for reason, names in sorted(told.items(), key=lambda item: -len(item[1])):
            yield f"Not on {_listed(names)}: {reason}."

    def stuck(self, task_id: int, known: dict[tuple[str, Needs], str]) -> str:
        """Why nothing of a waiting task can start, whatever becomes free, and what helps; "" when something can.
        `known` caches the answers by engine and needs, for several tasks."""
        task, signatures = self._memory.tasks.get(task_id), self._memory.index.signatures_of(task_id)
        if task is None or not signatures:
            return ""
        found = ""
        for one in signatures:
            key = (one.engine, one.needs)
            if key not in known:
                known[key] = self._nobody(*key)
            if not (found := known[key]):
                return ""
        return found

    def _nobody(self, engine: str, needs: Needs) -> str:
        machines = list(self._machines)
        if not any(machine.reachable for machine in machines):
            return "No machine is connected. Add one: renderonline machine invite."
        able = [machine for machine in machines if not machine.known_ability.lacks(engine, needs)]
        if able and not any(machine.reachable for machine in able):
            return f"What can take it is not connected: {_listed([machine.name for machine in able])}."
        return unmet([machine.known_ability for machine in machines], engine, needs)

    def _place(self, task: QueuedTask) -> str:
        """Where a task stands in the queue by priority and age; who has used less of the farm may still come first."""
        memory, own = self._memory, (-task.priority, task.queued_us, task.task_id)
        before = sum(
            (-one.priority, one.queued_us, one.task_id) < own and bool(memory.index.signatures_of(one.task_id))
            for one in memory.tasks.values()
        )
        if not before:
            return "it is the first in the queue"
        return f"{before} {'task is' if before == 1 else 'tasks are'} before it in the queue"

    def _hindrance(self, machine: Machine, signature: Signature) -> str:
        """What keeps a machine from taking a chunk now; "" when nothing does."""
        ability, policy = machine.ability, self._machines.policy
        kept_for = self._memory.reserved.get(machine.machine_id, signature)
        gpus, memory_mib = machine.room.missing(signature.needs)
        hindrances = {
            ability.lacks(signature.engine, signature.needs): True,
            "it has no graphics card, and another machine has one": policy.lacks_card(ability, signature),
            machine.refuses: True,
            "it takes whole tasks only, and this one is cut": not policy.fits(ability, signature),
            "a part failed there, and other machines can take it": not policy.takes(ability, signature),
            _BUSY: not machine.free,
            f"what runs there leaves {memory_mib} MiB of memory and {gpus} graphics cards too little": memory_mib
            or gpus,
            "it is kept for a larger task that has waited for long": kept_for != signature,
        }
        return next((reason for reason, holds in hindrances.items() if reason and holds), "")

    def _machine_name(self, machine_id: int) -> str:
        machine = self._machines.get(machine_id)
        return machine.name if machine is not None else f"machine {machine_id}"


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
