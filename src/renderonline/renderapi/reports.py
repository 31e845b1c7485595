"""Applies what attempts report: results land, ends are settled, memory and watchers follow (R5 Attempts and reports,
R6 Landing).

Reports of one machine are applied in order; a result lands before the end of its attempt is settled. Only after the
commit does the caller acknowledge.

The dispatcher's tick: what silent machines have is lost (R1.3 Silence), what they don't start is taken back, and
what they don't end at its time limit is ended here (R14 Authority first). The rules are `farm.watching`'s.

Nothing counts until every machine had time to come back after a start or a takeover.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar

import structlog

from renderonline.database.door import Database
from renderonline.database.queue_rows import QueuedChunk, is_at_once, load_owners
from renderonline.database.report_rows import (
    Applied,
    EndedAttempt,
    EndedStep,
    Mark,
    Reported,
    StartedStep,
    Step,
    WarnedStep,
    token_fits,
)
from renderonline.database.task_rows import TaskRow
from renderonline.farm import needs
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.settling import (
    NO_RENDER_ENGINE,
    NOT_BEGUN,
    NOT_STARTED,
    OVERTIME,
    Ending,
    Patience,
    RetryPolicy,
    waits_for_slot,
)
from renderonline.farm.tasks import ChunkKind, ChunkState, Landing, Offer, Outcome, TaskStatus
from renderonline.protocol.link import Exited, HeldAttempt, Report, Result, Started
from renderonline.renderapi.connected_machines import Benching, Machine, Machines
from renderonline.renderapi.landings import Besides, Landings, land, offer_of, settle_interrupted
from renderonline.renderapi.memory import Announcements, BackgroundWork, Clocks, LiveAttempt, Memory
from renderonline.renderapi.orders import AttemptFiles, Order, Orders
from renderonline.renderapi.report_writing import ReportWriter, Shown

_log = structlog.get_logger(__name__)

_REPORTABLE: Final = frozenset(Outcome) - {Outcome.LOST}
_LONGEST_REASON: Final = 2000

C = TypeVar("C", Report, HeldAttempt)
Wanted = Mapping[str, int | None]
LandingOf = Mapping[tuple[int, str], Landing]


class Checks(Protocol):
    """The checks of scenes that machines do beside their attempts (`scene_checks.SceneChecks`)."""

    def take(self, reports: Sequence[Report]) -> Sequence[Report]:
        """Note the reports about checks, and return the others."""

    def drop(self, state: TaskRow) -> None:
        """End the check of a task that was canceled."""

    def holds(self, attempt_id: int) -> bool:
        """Return whether this attempt is a check that its machine may still have."""

    def lost(self, machine_id: int) -> None:
        """End the checks of a machine whose link ended or begins again."""


class Reports:
    """Applies reports and the dispatcher's own verdicts. `dropped`: reports that were acknowledged without effect."""

    def __init__(
        self,
        database: Database,
        policy: RetryPolicy,
        *,
        memory: Memory,
        machines: Machines,
        orders: Orders,
        files: AttemptFiles,
        checks: Checks,
        benching: Benching,
        background: BackgroundWork,
        clocks: Clocks,
        announcements: Announcements,
        previewed: Callable[[Sequence[tuple[int, str]]], frozenset[tuple[int, str]]],
    ) -> None:
        self._database, self._policy, self._memory, self._machines = database, policy, memory, machines
        self._orders, self._files, self._checks, self._benching = orders, files, checks, benching
        self._background, self._clocks, self._announcements = background, clocks, announcements
        self._previewed = previewed
        self.dropped = 0
        self._landings = Landings()
        self._besides = Besides()
        self._writer = ReportWriter(database, policy, background=background, clocks=clocks, follow=self._follow)

    async def settle_landings(self) -> None:
        """Before anything else at start, and after a write that was given up (R6 Landing)."""
        async with self._landings.alone():
            await settle_interrupted(self._database, self._clocks.now(), self._policy)

    def begin(
        self, machine: Machine, instance: str, reports: Sequence[Report], then: Callable[[Exception | None], None]
    ) -> bool:
        """Begin to apply reports that say nothing of files; `then` is called when they are committed, or with the
        error. False for reports that take more than that, and the caller must `apply` them."""
        steps = [self._simple_step(machine.machine_id, report) for report in reports]
        if None in steps:
            return False
        over = self._release(machine, reports)

        def written(result: Applied | Exception) -> None:
            if isinstance(result, Exception):
                then(result)
            else:
                self._files.remove(machine.machine_id, over)
                self._besides.forget(over)
                then(None)

        known = [step for step in steps if step is not None]
        self._writer.put(Reported(known, machine.machine_id, Mark(instance, reports[-1].seq)), written)
        return True

    def _simple_step(self, machine_id: int, report: Report) -> Step | None:
        """The step of a genuine report about a live attempt of which everything is known; else None."""
        attempt = self._memory.attempts.get(report.attempt)
        if attempt is None or attempt.order is None or attempt.machine_id != machine_id or isinstance(report, Result):
            return None
        return _step(report, {}, attempt.order.wanted) if token_fits(report.token, attempt.token) else None

    def _release(self, machine: Machine, reports: Sequence[Report]) -> list[int]:
        """Free the slots of the attempts that are over; returns them."""
        over = [report.attempt for report in reports if isinstance(report, Exited)]
        released = [self._machines.release(machine.machine_id, attempt_id) for attempt_id in over]
        if any(released):
            self._background.wake()
        return over

    async def apply(self, machine: Machine, instance: str, reports: Sequence[Report]) -> None:
        """Apply reports of a machine, in their order; when this comes back they are committed."""
        machine_id, mark = machine.machine_id, Mark(instance, reports[-1].seq)
        sent, reports = len(reports), await self.genuine(machine, reports)
        self.dropped += sent - len(reports)
        over = self._release(machine, reports)
        reports = self._checks.take(reports)
        attempts = {report.attempt for report in reports if not isinstance(report, Started)}
        orders = {attempt_id: await self._known(attempt_id) for attempt_id in attempts}
        wanted = {attempt_id: None if one is None else one.wanted for attempt_id, one in orders.items()}
        offered = [self._offer(one, orders[one.attempt], machine_id) for one in reports if isinstance(one, Result)]
        offers = [one for one in offered if isinstance(one, Offer)]
        whole = {one.attempt for one in reports if isinstance(one, Exited) and one.outcome == Outcome.SUCCEEDED}
        async with self._landings.beside_others():
            landed, said = await self._land(offers, machine_id, whole)
            steps = [_step(report, landed, wanted.get(report.attempt)) for report in reports]
            known = [step for step in (*steps, *offered, *said) if step is not None and not isinstance(step, Offer)]
            await self._write(Reported(known, machine_id, mark), landed.values())
        self._files.remove(machine_id, over)
        self._besides.forget(over)

    async def genuine(self, machine: Machine, claims: Sequence[C]) -> list[C]:
        """Those that name an attempt of this machine and have its token. What the others say has no effect at all,
        neither here nor on the disk (R14 Authority first)."""
        machine_id = machine.machine_id
        tokens = {claim.attempt: self._files.token(claim.attempt, machine_id) for claim in claims}
        if unknown := [attempt_id for attempt_id, token in tokens.items() if token is None]:
            owners = await self._database.read(partial(load_owners, attempt_ids=unknown))
            tokens |= {key: owner.token for key, owner in owners.items() if owner.machine_id == machine_id}
        fits = [token_fits(claim.token, tokens.get(claim.attempt) or "") for claim in claims]
        if not all(fits):
            self._machines.reject(machine, claims[fits.index(False)].attempt)
        return [claim for claim, its in zip(claims, fits, strict=True) if its]

    async def started(self, attempt_id: int) -> None:
        """A v1 machine has begun an attempt."""
        await self._write(Reported([StartedStep(attempt_id, token=None, at_us=self._clocks.now().us)]))

    async def take_back(self, held: Sequence[tuple[LiveAttempt, str]]) -> None:
        """End assignments that their machines have not begun, each for its reason. What has begun, as far as it was
        reported when this is written, goes on."""
        endings = {one.attempt_id: Ending(Outcome.CANCELED, reason=why, given_back=True) for one, why in held}
        await self.end(endings, unbegun=True)
        for attempt, why in held:
            if attempt.attempt_id not in self._memory.attempts:
                self._machines.cancel(attempt.machine_id, attempt.attempt_id, why)

    async def end(self, endings: Mapping[int, Ending], *, unbegun: bool = False) -> None:
        """End live attempts by RenderAPI's own verdict: lost, given back, or not startable. `unbegun`: only those
        whose process has not started."""
        if not endings:
            return
        at_us = self._clocks.now().us
        wanted = {attempt_id: await self.wanted(attempt_id) or {} for attempt_id in endings}
        steps = [
            EndedStep(key, token=None, ending=ending, wanted=wanted[key], at_us=at_us, unbegun=unbegun)
            for key, ending in endings.items()
        ]
        await self._write(Reported(steps))

    async def finish(self, machine: Machine, attempt_id: int, offers: Sequence[Offer], end: Ending) -> None:
        """A v1 machine's attempt is over: land what it wrote, then settle it."""
        wanted = await self.wanted(attempt_id) or {}
        async with self._landings.beside_others():
            landed, said = await self._land(offers, machine.machine_id, {attempt_id})
            self._machines.release(machine.machine_id, attempt_id)
            ended = EndedStep(attempt_id, token=None, ending=end, wanted=wanted, at_us=self._clocks.now().us)
            steps: list[Step] = [*landed.values(), *said, ended]
            await self._write(Reported(steps, machine.machine_id), landed.values())
        self._files.remove(machine.machine_id, (attempt_id,))
        self._background.wake()

    def read_again(self, task_ids: Collection[int]) -> None:
        """Read tasks from the database again that memory may have wrong, in the background."""
        if task_ids:
            _ = self._background.spawn(self._memory.reload(task_ids))

    async def order_of(self, attempt_id: int) -> Order | None:
        """The order of an attempt, live or not; None when it is gone."""
        attempt = self._memory.attempts.get(attempt_id)
        if attempt is None:
            return await self._orders.of_attempt(attempt_id)
        attempt.order = attempt.order or await self._orders.of_attempt(attempt_id, attempt.needs)
        return attempt.order

    async def wanted(self, attempt_id: int) -> Wanted | None:
        """The files that an attempt's chunk needs; None when nothing of it can be taken any more."""
        order = await self._known(attempt_id)
        return None if order is None else order.wanted

    async def _known(self, attempt_id: int) -> Order | None:
        try:
            return await self.order_of(attempt_id)
        except InvalidRequest as error:
            _log.warning("An attempt's order can't be written any more", attempt=attempt_id, error=error.message)
            return None

    def admit(self, order: Order, name: str, size: int | None = None) -> None:
        """Count what a machine sends of its attempt: a file of `size` bytes, or (None) its preview. `InvalidRequest`
        when it is none that the attempt has to write, and beyond the bounds of others."""
        if order.wanted and name not in order.wanted:
            self._besides.admit(order, name, size)

    def _offer(self, report: Result, order: Order | None, machine_id: int) -> Offer | WarnedStep | None:
        if order is not None:
            try:
                offer = offer_of(report, order)
                self.admit(order, offer.name, offer.size)
                return offer
            except InvalidRequest as error:
                _log.warning("A result was dropped", machine_id=machine_id, error=error.message)
                if order.assign.more.takes(report.name):
                    self.dropped += 1
                    return WarnedStep(report.attempt, (f"A file besides the frames was not kept. {error.message}",))
        self.dropped += 1
        return None

    async def _land(
        self, offers: Sequence[Offer], machine_id: int, closed: Collection[int]
    ) -> tuple[LandingOf, Sequence[Step]]:
        landed, said = await land(self._database, offers, machine_id, closed)
        if len(landed) < len(offers):
            _log.info("Results were not landed", machine_id=machine_id, offered=len(offers), landed=len(landed))
            self.dropped += len(offers) - len(landed)
        return {(landing.offer.attempt_id, landing.offer.name): landing for landing in landed}, said

    async def _write(self, reported: Reported, landings: Collection[Landing] = ()) -> None:
        """Have this written, and wait for the commit."""
        previewed = frozenset[tuple[int, str]]()
        if named := [(landing.task_id, landing.offer.name) for landing in landings]:
            previewed = await asyncio.to_thread(self._previewed, named)  # they came before the reports
        shown = [(landing, (landing.task_id, landing.offer.name) in previewed) for landing in landings]
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle(result: Applied | Exception) -> None:
            if written.done():  # the caller was canceled
                return
            if isinstance(result, Exception):
                written.set_exception(result)
            else:
                written.set_result(None)

        self._writer.put(reported, settle, shown)
        await written

    def _follow(self, applied: Applied, shown: Sequence[Shown]) -> None:
        """Memory and watchers follow what was committed."""
        self.dropped += applied.dropped
        for landing, preview in shown:
            if landing.result_id in applied.landed:
                self._announcements.result(landing, preview=preview)
        memory = self._memory
        for attempt_id in applied.started:
            if (attempt := memory.attempts.get(attempt_id)) is not None:
                attempt.running, attempt.since = True, None
                self._benching.started(attempt.machine_id)
        for ended in (*applied.ended, *applied.superseded):
            self._end(ended)
        self._benching.observe(applied.ended)
        for attempt_row, _, _ in applied.superseded:
            reason = attempt_row.reason or ""
            self._machines.cancel(attempt_row.machine_id, attempt_row.attempt_id, reason)
        for chunk in applied.completed:
            memory.chunk_done(chunk.task_id, chunk.chunk_id)
        self.tasks_changed(applied.tasks)

    def _end(self, ended: EndedAttempt) -> None:
        attempt, chunk, verdict = ended
        self._memory.end_attempt(attempt.attempt_id)
        if verdict.counts or (attempt.outcome is Outcome.SUCCEEDED and attempt.started_us):
            seconds = None if verdict.counts else ((attempt.ended_us or 0) - (attempt.started_us or 0)) / 1e6
            self._memory.took(attempt.task_id, seconds)
        if attempt.outcome is not Outcome.SUCCEEDED:
            _log.info("An attempt ended", attempt=attempt.attempt_id, task=attempt.task_id,
                      machine_id=attempt.machine_id, outcome=attempt.outcome, chunk=chunk.state,
                      reason=attempt.reason)  # fmt: skip
        if chunk.state is not ChunkState.WAITING:
            return
        machine = self._machines.get(attempt.machine_id)
        held = attempt.outcome is Outcome.LOST and machine is not None and not machine.row.is_linked
        unfit = verdict.counts or verdict.failure in (NOT_STARTED, NO_RENDER_ENGINE)
        back = QueuedChunk(
            chunk.chunk_id,
            place=chunk.place,
            not_before_us=chunk.not_before_us,
            avoid=frozenset({attempt.machine_id} if unfit else ()),
            held_by=attempt.machine_id if held else None,
            film=chunk.kind == ChunkKind.FILM,
            at_once=is_at_once(chunk.kind, chunk.stage),
        )
        self._memory.chunk_back(chunk.task_id, back)

    def tasks_changed(self, states: Iterable[TaskRow]) -> None:
        """Announce tasks that were written, and forget those that ended."""
        memory = self._memory
        again: set[int] = set()
        for state in states:
            self._announcements.task(state)
            if state.status is TaskStatus.CANCELED:
                self._checks.drop(state)
            if state.ended:
                again |= memory.task_ended(state.task_id, succeeded=state.status is TaskStatus.SUCCEEDED)
                self._orders.forget(state.task_id)
            elif state.counters.waiting and not state.counters.live and not memory.waits(state.task_id):
                task = memory.tasks.get(state.task_id)
                if task is not None and task.may_start:
                    again.add(state.task_id)  # what waits is none that memory knows: a later stage, ready now
        self.read_again(again)


def _step(report: Report, landings: LandingOf, wanted: Wanted | None) -> Step | None:
    if isinstance(report, Started):
        return StartedStep(report.attempt, token=report.token, at_us=report.at_us)
    if isinstance(report, Result):
        return landings.get((report.attempt, report.name))
    ending = Ending(Outcome.FAILED, "crash", "its engine was changed") if wanted is None else _ending(report)
    return EndedStep(
        report.attempt,
        token=report.token,
        ending=ending,
        wanted=wanted or {},
        at_us=report.at_us,
        peak_memory_mib=max(0, min(report.peak_memory_mib, 2**31 - 1)),
        warnings=report.warnings[: needs.MOST_OF_ATTEMPT],
    )


def _ending(report: Exited) -> Ending:
    """What a machine says of an end; what it can't say counts as a failure."""
    outcome = Outcome(report.outcome) if report.outcome in _REPORTABLE else Outcome.FAILED
    code = report.exit_code if report.exit_code is not None and abs(report.exit_code) < 2**31 else None
    return Ending(outcome, report.failure[:40], report.reason[:_LONGEST_REASON], code)


_ORDERS_AT_ONCE: Final = 16
"""So many orders are read from the database in one look, after a start."""


class Watching:
    """Looks at all machines and live attempts. `silence_s`: how long a machine may say nothing; `return_s`: how long
    nothing counts after a start."""

    def __init__(
        self,
        reports: Reports,
        memory: Memory,
        machines: Machines,
        *,
        silence_s: float,
        return_s: float,
        patience: Patience,
    ) -> None:
        self._reports, self._memory, self._machines = reports, memory, machines
        self._silence_s, self._return_s, self._patience = silence_s, return_s, patience

    async def look(self, awake: float) -> None:
        """End what has to be ended at this moment (awake seconds)."""
        silent = self._silent(awake)
        leased = [attempt for attempt in self._memory.attempts.values() if attempt.leased]
        gone = (machine for machine in self._machines if machine.machine_id in silent)
        held = (machine.held_ahead(self._memory.attempts_on(machine.machine_id)) for machine in gone)
        unbegun = {attempt.attempt_id for ahead in held for attempt in ahead}
        await self._reports.end({one.attempt_id: end for one in leased if (end := self._lost(one, silent, unbegun))})
        if awake <= self._return_s:
            return
        await self._read_limits(awake)
        for machine in self._machines:
            if machine.row.is_linked and self._memory.attempts_on(machine.machine_id):
                held_up = self._held_up(machine, awake)
                await self._reports.end(held_up)
                for attempt_id, ending in held_up.items():
                    self._machines.cancel(machine.machine_id, attempt_id, ending.reason)

    def _silent(self, awake: float) -> dict[int, str]:
        """Machines of which nothing was heard, and what is said of them."""
        silent: dict[int, str] = {}
        for machine in self._machines:
            deadline = self._return_s if machine.heard is None else machine.heard + self._silence_s
            if awake > deadline:
                silent[machine.machine_id] = f"{machine.name} is silent"
                if machine.link is not None and machine.row.is_linked:
                    machine.link.close(f"nothing was heard for {self._silence_s:.0f} s")
        return silent

    def _lost(self, attempt: LiveAttempt, silent: dict[int, str], unbegun: Collection[int]) -> Ending | None:
        if self._machines.get(attempt.machine_id) is None:
            return Ending(Outcome.LOST, "" if attempt.running else NOT_BEGUN, "its machine was removed")
        reason = silent.get(attempt.machine_id)
        failure = NOT_BEGUN if attempt.attempt_id in unbegun else ""
        return Ending(Outcome.LOST, failure, reason) if reason else None

    def _held_up(self, machine: Machine, awake: float) -> dict[int, Ending]:
        """The attempts that a machine neither starts nor ends."""
        attempts = sorted(self._memory.attempts_on(machine.machine_id), key=lambda one: one.attempt_id)
        running = [attempt for attempt in attempts if attempt.running]
        assigned = [attempt for attempt in attempts if attempt.leased and not attempt.running]
        for place, attempt in enumerate(assigned):
            if waits_for_slot(place, running=len(running), slots=machine.slots):
                attempt.since = awake
        for attempt in (*running, *assigned):
            if attempt.since is None and (attempt.order is not None or not attempt.running):
                attempt.since = awake
        endings = {one.attempt_id: end for one in running if (end := self._overtime(machine, one, awake))}
        return endings | {one.attempt_id: end for one in assigned if (end := self._not_started(machine, one, awake))}

    def _not_started(self, machine: Machine, attempt: LiveAttempt, awake: float) -> Ending | None:
        if attempt.since is None or not self._patience.not_started(awake, attempt.since, machine.moved):
            return None
        reason = f"{machine.name} did nothing with it for {self._patience.start_s:.0f} s"
        _log.warning("An assignment is taken back", attempt=attempt.attempt_id, why=reason)
        return Ending(Outcome.CANCELED, NOT_STARTED, reason, given_back=True)

    def _overtime(self, machine: Machine, attempt: LiveAttempt, awake: float) -> Ending | None:
        if attempt.since is None or attempt.order is None:
            return None
        limits = attempt.order.assign.limits
        limit_s = limits.time_s + limits.grace_s if limits.time_s > 0 else 0.0
        if not self._patience.overtime(awake, attempt.since, machine.moved, limit_s=limit_s):
            return None
        return Ending(Outcome.LOST, OVERTIME, f"{machine.name} let it run beyond {limits.time_s:.0f} s")

    async def _read_limits(self, awake: float) -> None:
        """Read the orders of attempts that were found running at a start, some at each look."""
        live = self._memory.attempts.values()
        unknown = [attempt for attempt in live if attempt.running and attempt.order is None and attempt.since is None]
        for attempt in unknown[:_ORDERS_AT_ONCE]:
            await self._reports.wanted(attempt.attempt_id)
            attempt.since = awake
