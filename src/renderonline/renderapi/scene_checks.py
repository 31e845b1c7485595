"""Checks of scenes: a machine's own engine looks at the scene of a new task before its frames are rendered.

A check is an attempt without a chunk, kept in memory only: tasks, chunks and their counters never know of it. What it
finds are warnings of the task; whatever prevents it leaves a sentence in `tasks.unchecked`, which is there from the
submission on. Only a strict task waits for its check, and fails when files are missing (docs/decisions/0013).
"""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from renderonline.database.control_rows import note_check
from renderonline.database.door import Database, IdBlocks
from renderonline.database.file_rows import Holder
from renderonline.database.queue_rows import AttemptFacts, QueuedTask
from renderonline.database.submission_rows import EngineRow, NewTask
from renderonline.database.task_rows import TaskRow
from renderonline.engines.definition import SceneCheck
from renderonline.farm import needs
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import Needs
from renderonline.farm.ready import Signature
from renderonline.farm.scheduling import idle_machine, without_cards
from renderonline.farm.settling import Ending, plain_reason
from renderonline.farm.tasks import Outcome
from renderonline.protocol.link import Exited, Report
from renderonline.renderapi.connected_machines import Machines
from renderonline.renderapi.memory import BackgroundWork, Clocks, Memory
from renderonline.renderapi.orders import AttemptFiles, Folder, Order, Orders, definition_of
from renderonline.storage.landing import attempt_directory

NOT_YET: Final = "no machine has looked at its scene"
NONE_FREE: Final = "no linked machine was free"
NOT_THERE: Final = "its machine went away"
SCENE_FAILURE: Final = "scene"
"""The class of a failure for which a strict task fails."""


@dataclass(slots=True, eq=False)
class Check:
    """The check of one task. `parts`: how many chunks of frames the task has; `attempt`: that of the machine which does
    the check, None while none does; `holder`: what its token opens, once it was sent; `unchecked`: what the task says
    until the check has ended."""

    task: QueuedTask
    how: SceneCheck
    strict: bool
    parts: int
    signature: Signature
    unchecked: str = NOT_YET
    attempt: AttemptFacts | None = None
    holder: Holder | None = None
    timer: asyncio.TimerHandle | None = None
    over: bool = False

    @property
    def holds(self) -> bool:
        """Whether nothing of its task may start before it has ended."""
        return self.strict and self.unchecked == NOT_YET


class SceneChecks:
    """All checks of this RenderAPI, one at a time for each user. `changed` is called with the task when a check has
    changed it."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        *,
        memory: Memory,
        machines: Machines,
        orders: Orders,
        files: AttemptFiles,
        background: BackgroundWork,
        clocks: Clocks,
        changed: Callable[[Iterable[TaskRow]], None],
    ) -> None:
        self._database, self._ids, self._memory, self._machines = database, ids, memory, machines
        self._orders, self._files, self._background, self._clocks = orders, files, background, clocks
        self._changed = changed
        self._lines: dict[int, list[Check]] = {}
        """By user; the first of a line has a machine, or takes the next that is free."""
        self._held: dict[int, Check] = {}
        """By attempt: what machines have, until they say that it has ended."""

    @contextlib.contextmanager
    def claim(self, task: QueuedTask, engine: EngineRow, new: NewTask) -> Iterator[Check | None]:
        """The check of a task that is being committed, with a machine's slot if one is free; None where its engine
        can't look at scenes. The slot is free again at the end of this unless the check was begun."""
        how = None
        with contextlib.suppress(InvalidRequest):  # said when the task is leased
            how = definition_of(engine.definition).check if engine.definition else None
        if how is None:
            yield None
            return
        needs = task.needs.joined(Needs(engine_version=how.engine_version))
        parts = len(new.chunks) - bool(new.film)
        check = Check(task, how, new.strict, parts, Signature(task.engine.casefold(), needs=needs))
        if task.user_id not in self._lines and not self._is_busy(task.user_id):
            if self._take_slot(check):
                self._lines[task.user_id] = [check]
            else:
                check.unchecked = NONE_FREE
        try:
            yield check
        finally:
            if not task.task_id and check.attempt is not None:
                self._leave(check)
                self._release(check)

    def begin(self, check: Check, task_id: int) -> None:
        """Its task is committed."""
        check.task.task_id = task_id
        if check.unchecked != NOT_YET:
            return
        line = self._lines.setdefault(check.task.user_id, [])
        if check not in line:
            line.append(check)
        too_long = f"it took longer than {check.how.time_s:g} s"
        check.timer = asyncio.get_running_loop().call_later(check.how.time_s, self._end, check, too_long)
        if check.strict:
            self._memory.checked_first.add(check.task.task_id)
        if check.attempt is not None:
            _ = self._background.spawn(self._send(check, check.attempt))
        else:
            self._background.wake()

    def advance(self) -> None:
        """Give the checks that wait what the plan left free."""
        for user_id, (check, *_) in self._lines.items():
            if check.attempt is None and not self._is_busy(user_id) and self._take_slot(check):
                assert check.attempt is not None
                _ = self._background.spawn(self._send(check, check.attempt))

    def _is_busy(self, user_id: int) -> bool:
        """Whether a machine still has a check of this user."""
        return any(check.task.user_id == user_id for check in self._held.values())

    def _take_slot(self, check: Check) -> bool:
        machines, task = self._machines, check.task
        reserved = self._memory.reserved
        machine_id = idle_machine(machines.free_slots(), machines.policy, check.signature, reserved)
        machine = None if machine_id is None else machines.get(machine_id)
        if machine is None:
            return False
        attempt_id = self._ids.next_attempt_id()
        check.attempt = attempt = AttemptFacts(
            attempt_id=attempt_id,
            token=secrets.token_urlsafe(16),
            chunk_id=0,
            task_id=task.task_id,
            user_id=task.user_id,
            machine_id=machine.machine_id,
            directory=attempt_directory(task.download_path, attempt_id),
            needs=without_cards(check.signature.needs),
        )
        machines.occupy(machine, attempt_id, attempt.needs)
        self._files.know(attempt_id, Folder(attempt.directory, attempt.machine_id, attempt.token))
        return True

    def _release(self, check: Check) -> None:
        """Free the slot of a check that was never sent to its machine."""
        assert check.attempt is not None
        self._files.remove(check.attempt.machine_id, (check.attempt.attempt_id,))
        self._machines.release(check.attempt.machine_id, check.attempt.attempt_id)
        self._background.wake()

    async def _send(self, check: Check, attempt: AttemptFacts) -> None:
        attempt.task_id = check.task.task_id
        prepared, problem = None, NOT_THERE
        try:
            prepared = await self._orders.of_check(attempt, check.how)
        except InvalidRequest as error:
            problem = error.message
        machine = self._machines.get(attempt.machine_id)
        if check.over or prepared is None or machine is None or machine.link is None:
            self._release(check)
            self._end(check, problem)
            return
        assign, facts = prepared
        where = {name: getattr(facts, name) for name in ("scene", "file_name", "results_in")}
        named = {name: getattr(attempt, name) for name in ("token", "task_id", "machine_id", "directory")}
        check.holder = Holder(**named, **where, over=False)
        self._held[attempt.attempt_id] = check
        machine.link.assign(Order(assign, {}, uses_directory=False))

    def holder(self, attempt_id: int) -> Holder | None:
        """What the token of a check opens for its machine; None for every other attempt."""
        check = self._held.get(attempt_id)
        return None if check is None or check.holder is None else check.holder._replace(over=check.over)

    def holds(self, attempt_id: int) -> bool:
        """Whether this attempt is a check that its machine may still have."""
        return attempt_id in self._held

    def occupied(self, machine_id: int) -> Mapping[int, Needs]:
        """What a machine's slots are occupied with by checks."""
        checks = (line[0].attempt for line in self._lines.values())
        attempts = [*(one.attempt for one in self._held.values()), *checks]
        return {one.attempt_id: one.needs for one in attempts if one is not None and one.machine_id == machine_id}

    def take(self, reports: Sequence[Report]) -> Sequence[Report]:
        """Handle the reports about checks; return the other reports."""
        ours = {report.attempt: check for report in reports if (check := self._held.get(report.attempt)) is not None}
        for report in reports:
            if isinstance(report, Exited) and report.attempt in ours:
                del self._held[report.attempt]
                self._exited(ours[report.attempt], report)
        return [report for report in reports if report.attempt not in ours]

    def lost(self, machine_id: int) -> None:
        """End the checks of a machine whose link ended or begins again."""
        for check in list(self._held.values()):
            if check.attempt is not None and check.attempt.machine_id == machine_id:
                del self._held[check.attempt.attempt_id]
                self._end(check, NOT_THERE)

    def drop(self, state: TaskRow) -> None:
        """End the check of a task that was canceled."""
        for check in list(self._lines.get(state.user_id, ())):
            if check.task.task_id == state.task_id:
                self._close(check)
                self._memory.checked_first.discard(state.task_id)

    def stop(self) -> None:
        """RenderAPI stops: tasks go on unchecked at the next start."""
        for check in (one for line in self._lines.values() for one in line):
            check.over = True
            if check.timer is not None:
                check.timer.cancel()
        self._lines, self._held = {}, {}

    def _exited(self, check: Check, report: Exited) -> None:
        outcome = Outcome(report.outcome) if report.outcome in set(Outcome) else Outcome.FAILED
        reason = plain_reason(Ending(outcome, report.failure[:40], report.reason, report.exit_code))
        fails = check.strict and outcome is Outcome.FAILED and report.failure == SCENE_FAILURE
        unchecked = None if fails or outcome is Outcome.SUCCEEDED else needs.cleaned(reason)
        warnings = needs.of_check(report.warnings, check.parts)
        self._end(check, unchecked, warnings, needs.cleaned(reason) if fails else "")

    def _end(self, check: Check, unchecked: str | None, warnings: Sequence[str] = (), failure: str = "") -> None:
        """End a check: its task stores the result and goes on."""
        if not check.over:
            self._close(check)
            _ = self._background.spawn(self._store_result(check, unchecked, warnings, failure))

    def _close(self, check: Check) -> None:
        check.over = True
        if check.timer is not None:
            check.timer.cancel()
        self._leave(check)
        attempt = check.attempt
        if attempt is not None and attempt.attempt_id in self._held:
            self._machines.cancel(attempt.machine_id, attempt.attempt_id, "this check is no longer needed")
        self._background.wake()

    def _leave(self, check: Check) -> None:
        line = self._lines.get(check.task.user_id, [])
        if check in line:
            line.remove(check)
        if not line:
            self._lines.pop(check.task.user_id, None)

    async def _store_result(self, check: Check, unchecked: str | None, warnings: Sequence[str], failure: str) -> None:
        task_id = check.task.task_id
        note = partial(note_check, unchecked=unchecked, warnings=warnings, failure=failure)
        try:
            state = await self._database.write(partial(note, task_id=task_id, moment=self._clocks.now()))
        finally:
            self._memory.checked_first.discard(task_id)
        if state is not None:
            self._changed((state,))
            if check.strict and not state.ended:
                await self._memory.reload((task_id,))
