"""Benching: a machine on which chunks fail gets nothing for a while (R1.5). The rules are `farm.blame`'s.

What is held against machines lives in memory, and a start begins anew; who is benched is in the database.
"""

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import structlog

from renderonline.database.machines import bench_machine
from renderonline.database.work import Ended
from renderonline.farm.blame import Blame, may_bench
from renderonline.farm.machines import Wish
from renderonline.farm.settling import FINAL_FAILURES
from renderonline.farm.tasks import Outcome
from renderonline.renderapi.machines import Machine
from renderonline.renderapi.shared import Shared

_log = structlog.get_logger(__name__)


class Benching:
    """Looks at every end of an attempt."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._blame = Blame()
        self._benched: set[int] = set()

    def observe(self, ended: Iterable[Ended]) -> None:
        """These ends are committed."""
        for attempt, chunk, verdict in ended:
            machine_id = attempt.machine_id
            if verdict.counts and verdict.failure not in FINAL_FAILURES:
                self._bench(machine_id, self._blame.failed(machine_id, chunk.task_id, chunk.chunk_id))
            elif attempt.outcome is Outcome.SUCCEEDED:
                for other, reason in self._blame.succeeded(machine_id, chunk.chunk_id).items():
                    self._bench(other, reason)

    def _bench(self, machine_id: int, reason: str) -> None:
        machine = self._shared.machines.get(machine_id)
        if not reason or machine is None or machine.row.benched_us:
            return
        active = [one for one in self._shared.machines if one.row.wish == Wish.ACTIVE]
        there = [one for one in active if one.reachable or one.row.benched_us or one is machine]
        may = may_bench(len(there), sum(one.row.benched_us > 0 for one in there))
        _log.warning("A machine fails", machine_id=machine_id, name=machine.name, why=reason, benched=may)
        if may:
            self._set(machine, self._shared.now().us, f"benched: {reason}")

    def _set(self, machine: Machine, since_us: int, reason: str) -> None:
        """Memory first, so that the next one counts it."""
        self._shared.machines.update_row(replace(machine.row, benched_us=since_us, bench_reason=reason))
        operation = partial(bench_machine, machine_id=machine.machine_id, since_us=since_us, reason=reason)
        _ = self._shared.spawn(self._shared.database.write(operation))
        self._shared.wake()

    def follow(self) -> None:
        """Machines that were benched long enough are tried again; nothing is held against those that somebody enabled.
        A time that lies in the future was written by a clock that went wrong (R1.3)."""
        now_us, longest_us = self._shared.now().us, self._shared.policy.bench_s * 1e6
        for machine in self._shared.machines:
            since_us = machine.row.benched_us
            if since_us and 0 <= now_us - since_us < longest_us:
                self._benched.add(machine.machine_id)
            elif since_us:
                self._benched.discard(machine.machine_id)
                self._set(machine, 0, "")
            elif machine.machine_id in self._benched:
                self._benched.discard(machine.machine_id)
                self._blame.forgive(machine.machine_id)
