"""Leases: what waits goes to machines with room. The assignment is committed before it is sent (R3, design 4.4)."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import structlog

from renderonline.database import Database
from renderonline.database.ids import IdBlocks
from renderonline.database.work import Assigned, Lease, NewAttempt, assign
from renderonline.farm.errors import InvalidRequest, RenderOnlineError
from renderonline.farm.scheduling import Assignment, plan
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.renderapi.attempt_files import AttemptFiles
from renderonline.renderapi.clock import Clock, moment
from renderonline.renderapi.machines import Machines
from renderonline.renderapi.memory import Attempt, Memory
from renderonline.renderapi.orders import Order, Orders
from renderonline.renderapi.reports import Reports
from renderonline.storage.landing import attempt_directory

_log = structlog.get_logger(__name__)

_TOKEN_BYTES: Final = 16


class Leasing:
    """Plans, commits, sends. `gave_up` is called when a commit failed and memory is not to be trusted any more."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        *,
        memory: Memory,
        machines: Machines,
        orders: Orders,
        reports: Reports,
        files: AttemptFiles,
        clock: Clock,
        gave_up: Callable[[], None],
    ) -> None:
        self._database = database
        self._ids = ids
        self._memory = memory
        self._machines = machines
        self._orders = orders
        self._reports = reports
        self._files = files
        self._clock = clock
        self._gave_up = gave_up
        self._background: set[asyncio.Task[None]] = set()

    async def give(self) -> float | None:
        """Give all free slots work; comes back before the commits. Gives when the next chunk is due (monotonic)."""
        due = self._memory.release_due(self._clock.monotonic())
        if not len(self._memory.index):
            return due
        await self._ids.refill()
        free = self._machines.free_slots()
        assignments = plan(self._memory.index, free, self._memory.usage, self._machines.policy) if free else ()
        if assignments:
            self._spawn([self._take(assignment) for assignment in assignments])
        return due

    async def close(self) -> None:
        """Wait for the leases that are being committed."""
        await asyncio.gather(*self._background, return_exceptions=True)

    def _take(self, assignment: Assignment) -> NewAttempt:
        """Change memory as if the lease were committed, so that the next plan counts it."""
        machine = self._machines.get(assignment.machine_id)
        task = self._memory.tasks[assignment.task_id]
        assert machine is not None
        attempt_id = self._ids.next_attempt_id()
        attempt = Attempt(
            attempt_id=attempt_id,
            token=secrets.token_urlsafe(_TOKEN_BYTES),
            chunk_id=assignment.chunk_id,
            task_id=assignment.task_id,
            user_id=task.ready.user_id,
            machine_id=assignment.machine_id,
            directory=attempt_directory(task.download_path, attempt_id),
            place=0,
        )
        self._memory.lease(assignment, attempt)
        self._machines.occupy(machine, attempt_id)
        self._files.know(attempt_id, attempt.directory, attempt.machine_id)
        return NewAttempt(
            attempt_id,
            attempt.token,
            attempt.chunk_id,
            attempt.task_id,
            attempt.machine_id,
            attempt.directory,
            assignment.whole,
        )

    def _spawn(self, wanted: Sequence[NewAttempt]) -> None:
        task = asyncio.create_task(self._lease(wanted))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _lease(self, wanted: Sequence[NewAttempt]) -> None:
        unknown = {new.task_id for new in wanted if not self._orders.knows(new.task_id)}
        operation = partial(assign, wanted=wanted, moment=moment(self._clock), facts_of=unknown)
        try:
            assigned = await self._database.write(operation)
        except RenderOnlineError as error:
            _log.warning("Assignments could not be committed", error=error.message)
            self._gave_up()
            return
        self._reports.tasks_changed(assigned.tasks)
        self._undo([new for new in wanted if new.chunk_id in assigned.refused])
        wrong = self._learn(assigned)
        leased = {new.attempt_id: new for new in wanted}
        broken: dict[int, Ending] = {}
        for lease in assigned.leases:
            new = leased[lease.attempt_id]
            reason = wrong.get(new.task_id) or await self._send(new, lease)
            if reason:
                self._free(new)
                broken[new.attempt_id] = Ending(Outcome.FAILED, "command", reason)
        await self._reports.end(broken)

    def _undo(self, refused: Sequence[NewAttempt]) -> None:
        """These can't be leased now: their tasks were canceled, paused or changed behind memory's back."""
        for new in refused:
            self._memory.end_attempt(new.attempt_id)
            self._free(new)
        self._reports.read_again({new.task_id for new in refused})

    def _free(self, new: NewAttempt) -> None:
        """The attempt never reached its machine."""
        self._files.remove((new.attempt_id,))
        machine = self._machines.get(new.machine_id)
        if machine is not None:
            self._machines.release(machine, new.attempt_id)

    def _learn(self, assigned: Assigned) -> dict[int, str]:
        """Take the facts of tasks that are new to us; gives those that can't be understood, and why."""
        wrong: dict[int, str] = {}
        for task_id, facts in assigned.facts.items():
            try:
                self._orders.learn(facts)
            except InvalidRequest as error:
                wrong[task_id] = error.message
        return wrong

    async def _send(self, new: NewAttempt, lease: Lease) -> str:
        """Tell the machine; without a link it is told when it is back (R5.4). Gives why that can't be done, or ""."""
        attempt = self._memory.attempts.get(new.attempt_id)
        if attempt is None:  # canceled while it was committed
            self._free(new)
            return ""
        attempt.leased, attempt.frames, attempt.place = True, lease.frames, lease.place
        try:
            order = self._write(new, lease) if self._orders.knows(new.task_id) else None
            attempt.order = order or await self._orders.of_attempt(new.attempt_id)
        except InvalidRequest as error:
            return error.message
        machine = self._machines.get(new.machine_id)
        if attempt.order is not None and machine is not None and machine.link is not None:
            machine.link.assign(attempt.order)
        return ""

    def _write(self, new: NewAttempt, lease: Lease) -> Order:
        return self._orders.write(
            new.task_id,
            attempt_id=new.attempt_id,
            token=new.token,
            chunk_id=new.chunk_id,
            frames=lease.frames,
            directory=new.directory,
            landed=lease.landed,
        )
