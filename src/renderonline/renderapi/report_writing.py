"""Writes what all machines report: what came while the last operation ran is written by the next one, whichever machine
it came from (R3.1 Group commit). So the reports of a moment cost one operation, not one for each machine."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

from renderonline.database.door import Database
from renderonline.database.report_rows import Applied, Reported, apply_steps
from renderonline.farm.errors import NoSpace, NotAvailable
from renderonline.farm.settling import RetryPolicy
from renderonline.farm.tasks import Landing
from renderonline.renderapi.memory import BackgroundWork, Clocks

MOST_STEPS: Final = 1024
"""An operation gets nothing further beyond this number of steps: it holds locks while it runs."""

Then = Callable[[Applied | Exception], None]
Shown = tuple[Landing, bool]
"""A landing, and whether its preview can be shown."""


class _Unwritten(NamedTuple):
    reported: Reported
    shown: Sequence[Shown]
    then: Then

    @property
    def machine_id(self) -> int | None:
        return self.reported.machine_id


class ReportWriter:
    """One operation at a time. `follow` is called with what was applied, and the landings, before anybody's `then`."""

    def __init__(
        self,
        database: Database,
        policy: RetryPolicy,
        *,
        background: BackgroundWork,
        clocks: Clocks,
        follow: Callable[[Applied, Sequence[Shown]], None],
    ) -> None:
        self._database, self._policy, self._background, self._clocks = database, policy, background, clocks
        self._follow = follow
        self._waiting: list[_Unwritten] = []
        self._writes = False

    def put(self, reported: Reported, then: Then, shown: Sequence[Shown] = ()) -> None:
        """Write this soon; `then` is called with what was applied after the commit, or with the error. What comes from
        one machine is written in its order, and nothing after something that failed."""
        self._waiting.append(_Unwritten(reported, shown, then))
        if not self._writes:
            self._writes = True
            _ = self._background.keep(self._write_waiting())

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                count, steps = 0, 0
                while count < len(self._waiting) and steps < MOST_STEPS:
                    steps += len(self._waiting[count].reported.steps)
                    count += 1
                batch, self._waiting = self._waiting[:count], self._waiting[count:]
                await self._write(batch)
        finally:
            self._writes = False

    async def _write(self, batch: Sequence[_Unwritten]) -> None:
        reported = [one.reported for one in batch]
        operation = partial(apply_steps, reported=reported, moment=self._clocks.now(), policy=self._policy)
        try:
            applied = await self._database.write(operation)
        except Exception as error:  # noqa: BLE001 (who waits gets it)
            if len(batch) == 1 or isinstance(error, (NotAvailable, NoSpace)):
                self._fail(batch, error)
            else:
                await self._write_apart(batch)
            return
        try:
            self._follow(applied, [shown for one in batch for shown in one.shown])
        except Exception as error:  # noqa: BLE001
            self._fail(batch, error)
            return
        for one in batch:
            one.then(applied)

    async def _write_apart(self, batch: Sequence[_Unwritten]) -> None:
        """Each by itself: what one machine reports must not keep back what others do (R14 Authority first)."""
        failed: dict[int, Exception] = {}

        def note(one: _Unwritten, result: Applied | Exception) -> None:
            if isinstance(result, Exception) and one.machine_id is not None:
                failed[one.machine_id] = result
            one.then(result)

        for one in batch:
            if one.machine_id in failed:
                one.then(failed[one.machine_id])
            else:
                await self._write([one._replace(then=partial(note, one))])

    def _fail(self, batch: Sequence[_Unwritten], error: Exception) -> None:
        """These failed, and with them what the same machines reported after it."""
        machines = {one.machine_id for one in batch} - {None}
        later = [one for one in self._waiting if one.machine_id in machines]
        self._waiting = [one for one in self._waiting if one.machine_id not in machines]
        for one in (*batch, *later):
            one.then(error)
