"""Leases: what waits goes to machines with room. The assignment is committed before it is sent (R3, design 4.4)."""

import asyncio
import contextlib
import secrets
from collections.abc import Coroutine, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from renderonline.database.ids import IdBlocks
from renderonline.database.work import Assigned, Lease, assign
from renderonline.database.work_loading import QueuedTask
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.ready import ReadyIndex
from renderonline.farm.scheduling import Assignment, plan, reserve
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.renderapi.memory import LiveAttempt
from renderonline.renderapi.reports import Reports
from renderonline.renderapi.shared import Shared
from renderonline.storage.landing import attempt_directory

_TOKEN_BYTES: Final = 16


@dataclass(slots=True)
class Ahead:
    """Leases for a task that is being committed."""

    owner: "Leasing"
    attempts: list[LiveAttempt]

    def committed(self, task: QueuedTask, leases: Assigned) -> None:
        """The task and these leases are in the database, and the task is in memory."""
        wanted, self.attempts = [replace(one, task_id=task.task_id) for one in self.attempts], []
        if wanted:
            self.owner.follow(wanted, leases)


class Leasing:
    """Plans, commits, sends."""

    def __init__(self, shared: Shared, ids: IdBlocks, reports: Reports) -> None:
        self._shared = shared
        self._ids = ids
        self._reports = reports
        self._leases: set[asyncio.Task[None]] = set()

    async def give(self) -> float | None:
        """Give all free slots work; comes back before the commits. Gives when the next chunk is due (monotonic)."""
        memory, machines = self._shared.memory, self._shared.machines
        await self._ids.refill()
        due = memory.release_due()
        free = machines.free_slots() if len(memory.index) else []
        usage, policy, now_us = memory.usage, machines.policy, self._shared.now().us
        memory.reserved = reserve(memory.index, free, usage, policy, now_us, memory.reserved) if free else {}
        assignments = plan(memory.index, free, usage, policy, memory.reserved) if free else []
        if assignments:
            for assignment in assignments:
                memory.reserved.pop(assignment.machine_id, None)
            self._spawn(self._lease([self._take(assignment) for assignment in assignments]))
        return due

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        lease = self._shared.spawn(work)
        self._leases.add(lease)
        lease.add_done_callback(self._leases.discard)

    async def committed(self) -> None:
        """Wait until the leases of this moment are committed and sent."""
        if self._leases:
            await asyncio.wait(self._leases)

    def _take(self, assignment: Assignment) -> LiveAttempt:
        """Change memory as if the lease were committed, so that the next plan counts it."""
        task = self._shared.memory.tasks[assignment.task_id]
        attempt = self._occupy(task, assignment)
        self._shared.memory.lease(assignment, attempt)
        return attempt

    def _occupy(self, task: QueuedTask, assignment: Assignment) -> LiveAttempt:
        machine = self._shared.machines.get(assignment.machine_id)
        assert machine is not None
        attempt_id = self._ids.next_attempt_id()
        attempt = LiveAttempt(
            attempt_id,
            secrets.token_urlsafe(_TOKEN_BYTES),
            assignment.chunk_id,
            assignment.task_id,
            task.user_id,
            assignment.machine_id,
            attempt_directory(task.download_path, attempt_id),
            whole=assignment.whole,
            needs=task.needs,
            steps=self._shared.orders.takes_steps(task.task_id) if machine.row.is_linked else None,
        )
        self._shared.machines.occupy(machine, attempt_id, task.needs)
        self._shared.files.know(attempt_id, attempt.directory, attempt.machine_id)
        return attempt

    @contextlib.contextmanager
    def ahead(self, task: QueuedTask | None) -> "Iterator[Ahead]":
        """Slots for the first chunks of a task that is being committed, when nothing else waits; what is not
        `committed` inside is free again afterwards."""
        memory, machines = self._shared.memory, self._shared.machines
        ahead = Ahead(self, [])
        if task is not None and task.may_start and not len(memory.index):
            index = ReadyIndex()
            task.engine = task.engine.casefold()
            index.add_many(task, [(chunk.chunk_id, chunk.place) for chunk in task.chunks], task.signature())
            planned = plan(index, machines.free_slots(), memory.usage, machines.policy)
            ahead.attempts += [self._occupy(task, assignment) for assignment in planned]
            memory.count(task.user_id, len(planned))
        planned_count = len(ahead.attempts)
        try:
            yield ahead
        finally:
            if task is not None:
                memory.count(task.user_id, -planned_count)
            for attempt in ahead.attempts:
                self._free(attempt)

    def follow(self, wanted: Sequence[LiveAttempt], assigned: Assigned) -> None:
        """Leases that were committed go to their machines."""
        for attempt in wanted:
            self._shared.memory.lease(
                Assignment(attempt.machine_id, attempt.task_id, attempt.chunk_id, attempt.whole), attempt
            )
        self._spawn(self._send_all(wanted, assigned))

    async def _lease(self, wanted: Sequence[LiveAttempt]) -> None:
        unknown = {new.task_id for new in wanted if not self._shared.orders.knows(new.task_id)}
        operation = partial(assign, wanted=wanted, moment=self._shared.now(), facts_of=unknown)
        await self._send_all(wanted, await self._shared.database.write(operation))

    async def _send_all(self, wanted: Sequence[LiveAttempt], assigned: Assigned) -> None:
        self._undo([new for new in wanted if new.attempt_id not in assigned.leases])
        wrong = self._learn(assigned)
        broken: dict[int, Ending] = {}
        for new in wanted:
            lease = assigned.leases.get(new.attempt_id)
            if lease is not None and lease.pieces:
                self._shared.memory.recut(new.task_id, new.chunk_id, lease.pieces)
            reason = "" if lease is None else wrong.get(new.task_id) or await self._send(new, lease)
            if reason:
                self._free(new)
                broken[new.attempt_id] = Ending(Outcome.FAILED, "command", reason)
        self._reports.tasks_changed(assigned.tasks)
        await self._reports.end(broken)

    def _undo(self, refused: Sequence[LiveAttempt]) -> None:
        """These can't be leased now: their tasks were canceled, paused or changed behind memory's back."""
        for new in refused:
            self._shared.memory.end_attempt(new.attempt_id)
            self._free(new)
        self._reports.read_again({new.task_id for new in refused})

    def _free(self, new: LiveAttempt) -> None:
        """The attempt never reached its machine."""
        self._shared.files.remove((new.attempt_id,))
        self._shared.machines.release(new.machine_id, new.attempt_id)

    def _learn(self, assigned: Assigned) -> dict[int, str]:
        """Take the facts of tasks that are new to us; gives those that can't be understood, and why."""
        wrong: dict[int, str] = {}
        for task_id, facts in assigned.facts.items():
            try:
                self._shared.orders.learn(facts)
            except InvalidRequest as error:
                wrong[task_id] = error.message
        return wrong

    async def _send(self, new: LiveAttempt, lease: Lease) -> str:
        """Tell the machine; without a link it is told when it is back (R5.4). Gives why that can't be done, or ""."""
        orders = self._shared.orders
        await orders.see_mark(new.directory)
        attempt = self._shared.memory.attempts.get(new.attempt_id)
        if attempt is None:  # canceled while it was committed
            self._free(new)
            return ""
        attempt.leased, attempt.frames, attempt.film = True, lease.frames, lease.film
        try:
            order = orders.write(attempt, lease.missing) if orders.knows(new.task_id) else None
            attempt.order = order or await orders.of_attempt(new.attempt_id)
        except InvalidRequest as error:
            return error.message
        machine = self._shared.machines.get(new.machine_id)
        if attempt.order is not None and machine is not None and machine.link is not None:
            machine.link.assign(attempt.order)
        return ""
