"""The dispatcher: the one place that decides what runs where. Woken by events, never by a fixed poll.

    submitted, slot freed, machine back, timer due -> plan (pure) -> commit the leases -> tell the machines

Memory decides, the database records. At start memory is rebuilt from the database, and rebuilt again when a write was
given up (R3.2).
"""

import asyncio
import contextlib
import json
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import structlog
from starlette.websockets import WebSocket

from renderonline.database import Database
from renderonline.database.adopting import adopt_tasks
from renderonline.database.engines import EngineRow
from renderonline.database.ids import IdBlocks
from renderonline.database.machines import list_machines
from renderonline.database.submissions import NewTask, Submitted
from renderonline.database.work import submit_and_lease
from renderonline.database.work_loading import (
    QueuedChunk,
    QueuedTask,
    TaskFacts,
    load_allowances,
    load_live,
    load_queue,
    load_queued_ids,
)
from renderonline.farm.errors import InvalidRequest, NotAvailable
from renderonline.farm.machines import GRACE_S
from renderonline.farm.settling import Ending, RetryPolicy
from renderonline.farm.tasks import Outcome
from renderonline.protocol.link import SILENCE_S, Progress
from renderonline.renderapi.announcing import Publisher
from renderonline.renderapi.clock import Clock
from renderonline.renderapi.leasing import Leasing
from renderonline.renderapi.links.linked import LinkedMachines
from renderonline.renderapi.links.v1 import V1Machines
from renderonline.renderapi.memory import LiveAttempt
from renderonline.renderapi.reports import Reports
from renderonline.renderapi.shared import TICK_S, Shared

_log = structlog.get_logger(__name__)

REFRESH_S: Final = 5.0
"""Rows that were changed by hand are noticed within this (R3.4)."""
_REBUILD_PAUSE_S: Final = 1.0


class DispatcherSettings(Protocol):
    """Where the logs of attempts are kept."""

    @property
    def data_directory(self) -> Path: ...


class Dispatcher:
    """Joins memory, machines and the database. `start` before anything else, `stop` at the end."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        events: Publisher,
        *,
        settings: DispatcherSettings,
        clock: Clock = time,
        policy: RetryPolicy | None = None,
        silence_s: float = SILENCE_S,
        grace_s: float = GRACE_S,
    ) -> None:
        logs = settings.data_directory / "logs"
        self.shared = Shared(database, events, logs, clock=clock, policy=policy or RetryPolicy())
        self.memory, self.logs = self.shared.memory, self.shared.logs
        self.reports = Reports(self.shared)
        self._ids = ids
        self._silence_s = silence_s
        self._grace_s = grace_s
        self._leasing = Leasing(self.shared, ids, self.reports)
        self._linked = LinkedMachines(self.shared, self.reports)
        self._v1 = V1Machines(self.shared, self.reports)
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Settle what a stop left half-way, rebuild memory, begin."""
        await self.reports.settle_landings()
        await self._load()
        self.shared.newest = self._ids.next_attempt_id()
        await self.shared.files.sweep(self.shared.newest)
        self._v1.follow()
        loops = (self._plan_for_ever(), self._watch_for_ever(), self._refresh_for_ever(), self._rebuild_for_ever())
        self._loops = [asyncio.create_task(loop) for loop in loops]
        self.shared.wake()

    async def stop(self) -> None:
        """End all links and loops. Attempts go on without us and are found again at the next start."""
        self.shared.ready = False
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.shared.settled()
        await self._linked.close()
        await self._v1.close()
        await self.shared.settled()
        await self.shared.files.close()

    async def leased(self) -> None:
        """Wait until what was submitted just now is planned, and its leases are committed and sent."""
        await asyncio.sleep(0)  # the planner's turn
        await self._leasing.committed()

    async def submit(self, new: NewTask, engine: EngineRow) -> Submitted:
        """Commit a task, and with it its first leases when nothing else waits. Raises what the commit raises."""
        plain = not new.waits_for and not any(chunk.stage for chunk in new.chunks)
        task = QueuedTask(
            0,  # its number is made by the commit
            new.user_id,
            new.priority,
            new.queue_us,
            engine.name,
            engine.download_path,
            len(new.chunks),
            [QueuedChunk(chunk.chunk_id, place) for place, chunk in enumerate(new.chunks)],
            one_range="," not in new.frames,
            paused=new.paused,
            needs=new.needs,
            running_limit=new.running_limit,
        )
        with self._leasing.ahead(task if plain and self.shared.ready else None) as ahead:
            operation = partial(submit_and_lease, new=new, ahead=ahead.attempts, moment=self.shared.now())
            try:
                submitted, leases = await self.shared.database.write(operation)
            except NotAvailable:  # perhaps the leases are there
                self.shared.gave_up()
                raise
            task.task_id = submitted.task_id
            if submitted.repeated:
                return submitted
            if not plain:
                self.reports.read_again((task.task_id,))
                return submitted
            values, template = json.loads(new.values), tuple(json.loads(new.template))
            facts = (task.task_id, engine.name, engine.definition, new.file_path, new.arguments, new.frames)
            with contextlib.suppress(InvalidRequest):  # told when it is leased
                self.shared.orders.learn(TaskFacts(*facts, new.file_name, new.film, values, template))
            if task.task_id not in self.memory.tasks:  # it may have been found in the queue already
                self.memory.add_task(task)
            ahead.committed(task, leases)
        return submitted

    async def link(self, socket: WebSocket) -> None:
        """The endpoint of `protocol.link.LINK_PATH`: serve one linked machine until its link ends."""
        await self._linked.endpoint(socket)

    async def refresh(self) -> None:
        """Notice rows that were added or changed by hand or by an operator (R3.4)."""
        database = self.shared.database
        rows, users = await database.read(list_machines), await database.read(load_allowances)
        for machine in self.shared.machines.update(rows, users):
            if machine.link is not None:
                machine.link.close("this machine was removed")
        self._v1.follow()
        self.reports.benching.follow()
        await self._refresh_queue()
        self.shared.wake()

    async def _refresh_queue(self) -> None:
        """Tasks that came into the queue, or went, without passing through us."""
        known = set(self.memory.tasks)
        queued = await self.shared.database.read(load_queued_ids)
        for task_id in known - queued:
            self.memory.forget_task(task_id)
        unknown = queued - self.memory.tasks.keys()
        if not unknown:
            return
        await self.shared.reload(unknown)
        bare = [task_id for task_id in unknown & self.memory.tasks.keys() if not self.memory.tasks[task_id].chunk_count]
        if bare:  # inserted by hand, as the existing system would
            now = self.shared.now().local
            await self.shared.database.write(partial(adopt_tasks, after=min(bare) - 1, now=now))
            await self.shared.reload(bare)

    def machines_view(self) -> list[dict[str, Any]]:
        """Every machine as an operator is shown it."""
        return [machine.view() for machine in self.shared.machines]

    def machine_view(self, machine_id: int) -> dict[str, Any] | None:
        """One machine as an operator is shown it."""
        machine = self.shared.machines.get(machine_id)
        return None if machine is None else machine.view()

    def restart_machine(self, machine_id: int) -> None:
        """Have a linked machine's program end after its work. `Conflict` when it is not linked now."""
        self._linked.restart(machine_id)

    def progress_of(self, attempt_id: int) -> Progress | None:
        """The newest progress of a live attempt."""
        attempt = self.memory.attempts.get(attempt_id)
        return None if attempt is None else attempt.progress

    def attempts_of(self, task_id: int) -> tuple[LiveAttempt, ...]:
        """The live attempts of a task."""
        return self.memory.attempts_of(task_id)

    def figures(self) -> Mapping[str, float]:
        """Numbers for `/metrics`."""
        machines = list(self.shared.machines)
        return {
            "chunks_ready": len(self.memory.index),
            "tasks_queued": len(self.memory.tasks),
            "attempts_live": len(self.memory.attempts),
            "machines_reachable": sum(machine.reachable for machine in machines),
            "slots_free": sum(machine.free for machine in machines),
            "reports_dropped": self.reports.dropped,
        }

    async def _plan_for_ever(self) -> None:
        timer: asyncio.TimerHandle | None = None
        while True:
            await self.shared.woken.wait()
            self.shared.woken.clear()
            if not self.shared.ready:
                continue
            if timer is not None:
                timer.cancel()
                timer = None
            try:
                due = await self._leasing.give()
            except Exception:  # noqa: BLE001 (told in the log; the dispatcher goes on)
                _log.exception("Nothing could be assigned")
                self.shared.gave_up()
                continue
            if due is not None:
                delay = max(0.0, due - self.shared.clock.monotonic())
                timer = asyncio.get_running_loop().call_later(delay, self.shared.wake)

    async def _watch_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self.shared.clock.monotonic()
            self.shared.awake.tick(now)
            if self.shared.ready:
                await self.shared.guarded(self._end_silent(self.shared.awake.now(now)))

    async def _end_silent(self, awake: float) -> None:
        """What a silent machine has is lost (R1.3)."""
        silent: dict[int, str] = {}
        for machine in self.shared.machines:
            deadline = self._grace_s if machine.heard is None else machine.heard + self._silence_s
            if awake > deadline:
                silent[machine.machine_id] = f"{machine.name} is silent"
                if machine.link is not None and machine.row.is_linked:
                    machine.link.close(f"nothing was heard for {self._silence_s:.0f} s")
        lost: dict[int, Ending] = {}
        for attempt in self.memory.attempts.values():
            gone = self.shared.machines.get(attempt.machine_id) is None
            reason = "its machine was removed" if gone else silent.get(attempt.machine_id)
            if attempt.leased and reason:
                lost[attempt.attempt_id] = Ending(Outcome.LOST, reason=reason)
        await self.reports.end(lost)

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            if self.shared.ready:
                await self.shared.guarded(self.refresh())

    async def _rebuild_for_ever(self) -> None:
        while True:
            await self.shared.in_doubt.wait()
            await asyncio.sleep(_REBUILD_PAUSE_S)
            await self.shared.settled()
            self.shared.in_doubt.clear()
            await self.shared.guarded(self.reports.settle_landings())  # what was given up may have begun to land
            await self.shared.guarded(self._load())
            if self.shared.ready:
                _log.info("Memory is rebuilt from the database")
                self.shared.wake()

    async def _load(self) -> None:
        """Rebuild memory from the database, in the writer's turn: what is committed before is in it, and what is
        committed after it is followed."""
        database = self.shared.database
        rows, users = await database.read(list_machines), await database.read(load_allowances)
        self.shared.machines.update(rows, users)
        live, queue = await self.shared.database.write(lambda c: (load_live(c, LiveAttempt), load_queue(c)))
        self.memory.load(queue, live)
        for attempt in live:
            self.shared.files.know(attempt.attempt_id, attempt.directory, attempt.machine_id)
        for machine in self.shared.machines:
            machine.occupied = {one.attempt_id: one.needs for one in self.memory.attempts_on(machine.machine_id)}
            self.shared.machines.note(machine)
        self.shared.ready = not self.shared.in_doubt.is_set()
