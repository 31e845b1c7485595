"""What attempts report, applied: results land, ends are settled, memory and watchers follow (R5, R6).

Reports of one machine are applied in order; a result lands before the end of its attempt is settled. Only after the
commit does the caller acknowledge.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final

import structlog

from renderonline.database import Database
from renderonline.database.projection import TaskState
from renderonline.database.work import (
    Applied,
    Ended,
    EndedStep,
    LandedStep,
    Mark,
    StartedStep,
    Step,
    apply_steps,
)
from renderonline.database.work_landing import Landing, Offer
from renderonline.database.work_loading import QueuedChunk
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.settling import Ending, RetryPolicy
from renderonline.farm.tasks import ChunkState, Outcome, TaskStatus
from renderonline.protocol.link import Exited, Report, Result, Started
from renderonline.renderapi.announcing import Announcer
from renderonline.renderapi.attempt_files import AttemptFiles
from renderonline.renderapi.clock import Clock, moment
from renderonline.renderapi.landings import Landings, offer_of
from renderonline.renderapi.machines import Machine, Machines
from renderonline.renderapi.memory import Memory
from renderonline.renderapi.orders import Order, Orders

_log = structlog.get_logger(__name__)

_REPORTABLE: Final = frozenset(Outcome) - {Outcome.LOST}
_LONGEST_REASON: Final = 2000

Wanted = Mapping[str, int | None]


class Reports:
    """Applies reports and the dispatcher's own verdicts. `reload` reads tasks anew from the database."""

    def __init__(
        self,
        database: Database,
        *,
        memory: Memory,
        machines: Machines,
        orders: Orders,
        files: AttemptFiles,
        announcer: Announcer,
        clock: Clock,
        policy: RetryPolicy,
        reload: Callable[[Collection[int]], Coroutine[Any, Any, None]],
        wake: Callable[[], None],
    ) -> None:
        self._database = database
        self._memory = memory
        self._machines = machines
        self._orders = orders
        self._files = files
        self._announcer = announcer
        self._clock = clock
        self._policy = policy
        self._reload = reload
        self._wake = wake
        self._landings = Landings(database, clock)
        self._random = random.Random()  # noqa: S311 (jitter)
        self._background: set[asyncio.Task[None]] = set()
        self.dropped = 0
        """Reports that were acknowledged without effect (R5.5)."""

    async def settle_landings(self) -> None:
        """Before anything else at start (R6)."""
        await self._landings.settle_all()

    async def apply(self, machine: Machine, instance: str, reports: Sequence[Report]) -> None:
        """Apply reports of a machine, in their order; when this comes back they are committed."""
        for report in reports:
            if isinstance(report, Exited) and self._machines.release(machine, report.attempt):
                self._wake()
        wanted = {number: await self._wanted(number) for number in _attempts_in(reports)}
        landed = await self._land(machine, reports, wanted)
        steps = [step for report in reports if (step := self._step(report, landed, wanted)) is not None]
        applied = await self._write(steps, machine.machine_id, Mark(machine.machine_id, instance, reports[-1].seq))
        for (attempt_id, name), landing in landed.items():
            if landing.result_id in applied.landed:
                _log.debug("A result landed", attempt=attempt_id, name=name)
                self._announcer.result(landing)
        self._files.remove(report.attempt for report in reports if isinstance(report, Exited))

    async def started(self, attempt_id: int, token: str, at_us: int) -> None:
        """A v1 machine has begun an attempt."""
        await self._write([StartedStep(attempt_id, token, at_us)])

    async def end(self, endings: Mapping[int, Ending]) -> None:
        """End live attempts by RenderAPI's own verdict: lost, given back, or not startable."""
        at_us = moment(self._clock).us
        steps: list[Step] = []
        for attempt_id, ending in endings.items():
            wanted = await self._wanted(attempt_id) or {}
            steps.append(EndedStep(attempt_id, None, ending, tuple(wanted), self._random.random(), at_us))
        if steps:
            await self._write(steps)

    async def finish(self, machine: Machine, attempt_id: int, token: str, offers: Sequence[Offer], end: Ending) -> None:
        """A v1 machine's attempt is over: land what it wrote, then settle it."""
        wanted = await self._wanted(attempt_id) or {}
        landings = await self._landings.land(offers, machine_id=machine.machine_id)
        steps: list[Step] = [
            LandedStep(attempt_id, landing.result_id, landing.offer.frame is not None) for landing in landings
        ]
        at_us = moment(self._clock).us
        steps.append(EndedStep(attempt_id, token, end, tuple(wanted), self._random.random(), at_us))
        self._machines.release(machine, attempt_id)
        applied = await self._write(steps, machine.machine_id)
        for landing in landings:
            if landing.result_id in applied.landed:
                self._announcer.result(landing)
        self._files.remove((attempt_id,))
        self._wake()

    def read_again(self, task_ids: Collection[int]) -> None:
        """Memory has something else of these tasks than the database."""
        if task_ids:
            self._spawn(self._reload(task_ids))

    async def order_of(self, attempt_id: int) -> Order | None:
        """The order of an attempt, live or not; None when it is gone."""
        attempt = self._memory.attempts.get(attempt_id)
        if attempt is not None and attempt.order is not None:
            return attempt.order
        order = await self._orders.of_attempt(attempt_id)
        if attempt is not None:
            attempt.order = order
        return order

    async def close(self) -> None:
        """Wait for what goes on in the background."""
        await asyncio.gather(*self._background, return_exceptions=True)

    async def _wanted(self, attempt_id: int) -> Wanted | None:
        """The files that an attempt's chunk needs; None when nothing of it can be taken any more."""
        try:
            order = await self.order_of(attempt_id)
        except InvalidRequest as error:
            _log.warning("An attempt's order can't be written any more", attempt=attempt_id, error=error.message)
            return None
        return None if order is None else order.wanted

    async def _land(
        self, machine: Machine, reports: Sequence[Report], wanted: Mapping[int, Wanted | None]
    ) -> dict[tuple[int, str], Landing]:
        offers = []
        for report in reports:
            if not isinstance(report, Result):
                continue
            names = wanted[report.attempt]
            if names is None:
                self.dropped += 1
                continue
            try:
                offers.append(offer_of(report, names))
            except InvalidRequest as error:
                self.dropped += 1
                _log.warning("A result was dropped", machine_id=machine.machine_id, error=error.message)
        landings = await self._landings.land(offers, machine_id=machine.machine_id)
        return {(landing.offer.attempt_id, landing.offer.name): landing for landing in landings}

    def _step(
        self, report: Report, landed: Mapping[tuple[int, str], Landing], wanted: Mapping[int, Wanted | None]
    ) -> Step | None:
        if isinstance(report, Started):
            return StartedStep(report.attempt, report.token, report.at_us)
        names = wanted[report.attempt]
        if isinstance(report, Result):
            landing = landed.get((report.attempt, report.name))
            if landing is None:
                return None
            late_names = tuple(names or ()) if landing.late else ()
            return LandedStep(report.attempt, landing.result_id, landing.offer.frame is not None, late_names)
        ending = _ending(report) if names is not None else Ending(Outcome.FAILED, "crash", "its engine was changed")
        return EndedStep(
            report.attempt,
            report.token,
            ending,
            tuple(names or ()),
            self._random.random(),
            report.at_us,
            max(0, min(report.peak_memory_mib, 2**31 - 1)),
        )

    async def _write(self, steps: Sequence[Step], machine_id: int | None = None, mark: Mark | None = None) -> Applied:
        operation = partial(
            apply_steps,
            steps=steps,
            moment=moment(self._clock),
            machine_id=machine_id,
            mark=mark,
            policy=self._policy,
        )
        applied = await self._database.write(operation)
        self.dropped += applied.dropped
        self._follow(applied)
        return applied

    # -- after the commit: memory and watchers follow

    def _follow(self, applied: Applied) -> None:
        for attempt_id in applied.started:
            if (attempt := self._memory.attempts.get(attempt_id)) is not None:
                attempt.running = True
        for ended in (*applied.ended, *applied.superseded):
            self._end(ended)
        for ended in applied.superseded:
            machine = self._machines.get(ended.machine_id)
            if machine is not None and machine.link is not None:
                machine.link.cancel(ended.attempt_id, ended.reason)
        for task_id, chunk_id in applied.completed:
            self._memory.chunk_done(task_id, chunk_id)
        self.tasks_changed(applied.tasks)

    def _end(self, ended: Ended) -> None:
        self._memory.end_attempt(ended.attempt_id)
        if ended.outcome is not Outcome.SUCCEEDED:
            _log.info("An attempt ended", attempt=ended.attempt_id, task=ended.task_id, machine_id=ended.machine_id,
                      outcome=ended.outcome.value, chunk=ended.chunk.value, reason=ended.reason)  # fmt: skip
        if ended.chunk is not ChunkState.WAITING:
            return
        machine = self._machines.get(ended.machine_id)
        blamed = ended.outcome is not Outcome.CANCELED
        held = ended.outcome is Outcome.LOST and machine is not None and not machine.row.is_linked
        chunk = QueuedChunk(
            ended.chunk_id,
            ended.place,
            ended.not_before_us,
            avoid=frozenset({ended.machine_id}) if blamed else frozenset(),
            held_by=ended.machine_id if held else None,
        )
        now = self._clock.monotonic()
        self._memory.chunk_back(ended.task_id, chunk, now=now, now_us=moment(self._clock).us)

    def tasks_changed(self, states: Sequence[TaskState]) -> None:
        """Tasks were written: tell it, and let go of those that ended."""
        again: set[int] = set()
        for state in states:
            self._announcer.task(state)
            if state.ended:
                again |= self._memory.task_ended(state.task_id, succeeded=state.status is TaskStatus.SUCCEEDED)
                self._orders.forget(state.task_id)
            elif self._next_stage(state):
                again.add(state.task_id)
        self.read_again(again)

    def _next_stage(self, state: TaskState) -> bool:
        """Whether what waits of a task is none that memory knows: a later stage, ready now."""
        task = self._memory.tasks.get(state.task_id)
        waits = state.counters.waiting and not state.counters.live
        return bool(task and task.may_start and waits and not self._memory.waits(state.task_id))

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _attempts_in(reports: Sequence[Report]) -> set[int]:
    return {report.attempt for report in reports if not isinstance(report, Started)}


def _ending(report: Exited) -> Ending:
    """What a machine says of an end; what it can't say counts as a failure."""
    outcome = Outcome(report.outcome) if report.outcome in _REPORTABLE else Outcome.FAILED
    return Ending(outcome, report.failure[:40], report.reason[:_LONGEST_REASON], _exit_code(report))


def _exit_code(report: Exited) -> int | None:
    return report.exit_code if report.exit_code is not None and abs(report.exit_code) < 2**31 else None
