"""The dispatcher's tick: what silent machines have is lost (R1.3 Silence), what they don't start is taken back, and
what they don't end at its time limit is ended here (R14 Authority first). The rules are `farm.watching`'s.

Nothing counts until every machine had time to come back after a start or a takeover.
"""

from typing import Final

import structlog

from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.farm.watching import NOT_STARTED, OVERTIME, Patience, waits_for_slot
from renderonline.renderapi.machines import Machine
from renderonline.renderapi.memory import LiveAttempt
from renderonline.renderapi.reports import Reports
from renderonline.renderapi.shared import Shared

_log = structlog.get_logger(__name__)

_ORDERS_AT_ONCE: Final = 16
"""So many orders are read from the database in one look, after a start."""


class Watching:
    """Looks at all machines and live attempts. `silence_s`: how long a machine may say nothing; `grace_s`: how long
    nothing counts after a start."""

    def __init__(
        self, shared: Shared, reports: Reports, *, silence_s: float, grace_s: float, patience: Patience
    ) -> None:
        self._shared = shared
        self._reports = reports
        self._silence_s, self._grace_s, self._patience = silence_s, grace_s, patience

    async def look(self, awake: float) -> None:
        """End what has to be ended at this moment (awake seconds)."""
        silent = self._silent(awake)
        leased = [attempt for attempt in self._shared.memory.attempts.values() if attempt.leased]
        await self._reports.end({one.attempt_id: end for one in leased if (end := self._lost(one, silent))})
        if awake <= self._grace_s:
            return
        await self._read_limits(awake)
        for machine in self._shared.machines:
            if machine.row.is_linked:
                held_up = self._held_up(machine, awake)
                await self._reports.end(held_up)
                for attempt_id, ending in held_up.items():
                    self._shared.machines.cancel(machine.machine_id, attempt_id, ending.reason)

    def _silent(self, awake: float) -> dict[int, str]:
        """Machines of which nothing was heard, and what is said of them."""
        silent: dict[int, str] = {}
        for machine in self._shared.machines:
            deadline = self._grace_s if machine.heard is None else machine.heard + self._silence_s
            if awake > deadline:
                silent[machine.machine_id] = f"{machine.name} is silent"
                if machine.link is not None and machine.row.is_linked:
                    machine.link.close(f"nothing was heard for {self._silence_s:.0f} s")
        return silent

    def _lost(self, attempt: LiveAttempt, silent: dict[int, str]) -> Ending | None:
        gone = self._shared.machines.get(attempt.machine_id) is None
        reason = "its machine was removed" if gone else silent.get(attempt.machine_id)
        return Ending(Outcome.LOST, reason=reason) if reason else None

    def _held_up(self, machine: Machine, awake: float) -> dict[int, Ending]:
        """The attempts that a machine neither starts nor ends."""
        attempts = sorted(self._shared.memory.attempts_on(machine.machine_id), key=lambda one: one.attempt_id)
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
        live = self._shared.memory.attempts.values()
        unknown = [attempt for attempt in live if attempt.running and attempt.order is None and attempt.since is None]
        for attempt in unknown[:_ORDERS_AT_ONCE]:
            await self._reports.wanted(attempt.attempt_id)
            attempt.since = awake
