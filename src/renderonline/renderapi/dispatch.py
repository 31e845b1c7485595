"""The dispatcher: the one place that decides what runs where. Woken by events, never by a fixed poll.

    submitted, slot freed, machine back, timer due -> plan (pure) -> commit the leases -> tell the machines

Memory decides, the database records. At start memory is rebuilt from the database, and rebuilt again when a write was
given up (R3.2).
"""

import asyncio
import contextlib
import time
from collections.abc import Collection, Coroutine, Mapping
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
from renderonline.database.work_loading import (
    QueuedChunk,
    QueuedTask,
    load_live,
    load_queue,
    load_queued_ids,
    load_shares,
)
from renderonline.farm.errors import NotAvailable, RenderOnlineError
from renderonline.farm.machines import GRACE_S, AwakeClock
from renderonline.farm.settling import Ending, RetryPolicy
from renderonline.farm.tasks import Outcome
from renderonline.protocol.link import SILENCE_S, Progress
from renderonline.renderapi.announcing import Announcer, Publisher
from renderonline.renderapi.attempt_files import AttemptFiles
from renderonline.renderapi.clock import Clock, moment
from renderonline.renderapi.leasing import Leasing
from renderonline.renderapi.links.linked import LinkedMachines
from renderonline.renderapi.links.v1 import V1Machines
from renderonline.renderapi.machines import Machine, Machines
from renderonline.renderapi.memory import Attempt, Memory
from renderonline.renderapi.orders import Orders
from renderonline.renderapi.reports import Reports
from renderonline.storage.logs import AttemptLogs

_log = structlog.get_logger(__name__)

TICK_S: Final = 1.0
"""How often silence is looked at."""
REFRESH_S: Final = 5.0
"""Rows that were changed by hand are noticed within this (R3.4)."""
OURS: Final = 2**31
"""Attempt ids of this farm lie at most so far from the newest; other farms began elsewhere (R7.1)."""
_REBUILD_PAUSE_S: Final = 1.0


class DispatcherSettings(Protocol):
    """What the dispatcher needs of RenderAPI's settings."""

    @property
    def data_directory(self) -> Path:
        """Where the logs of attempts are kept."""


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
        policy = policy or RetryPolicy()
        self._database = database
        self._ids = ids
        self._clock = clock
        self._silence_s = silence_s
        self._grace_s = grace_s
        self._awake = AwakeClock(clock.monotonic(), TICK_S)
        self._woken = asyncio.Event()
        self._newest = 0
        self._ready = False
        self._in_doubt = False
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[None]] = set()
        self.announcer = Announcer(events)
        self.logs = AttemptLogs(settings.data_directory / "logs")
        self.memory = Memory(self.wake, policy)
        self.machines = Machines(self.announcer.machine)
        self.files = AttemptFiles(database)
        self.orders = Orders(database)
        self.reports = Reports(
            database,
            memory=self.memory,
            machines=self.machines,
            orders=self.orders,
            files=self.files,
            announcer=self.announcer,
            clock=clock,
            policy=policy,
            reload=self.reload,
            wake=self.wake,
        )
        self._leasing = Leasing(
            database,
            ids,
            memory=self.memory,
            machines=self.machines,
            orders=self.orders,
            reports=self.reports,
            files=self.files,
            clock=clock,
            gave_up=self.gave_up,
        )
        self._linked = LinkedMachines(
            database,
            memory=self.memory,
            machines=self.machines,
            reports=self.reports,
            files=self.files,
            logs=self.logs,
            announcer=self.announcer,
            clock=clock,
            heard=self.heard,
            wake=self.wake,
            gave_up=self.gave_up,
        )
        self._v1 = V1Machines(
            database,
            memory=self.memory,
            machines=self.machines,
            reports=self.reports,
            files=self.files,
            clock=clock,
            heard=self.heard,
            wake=self.wake,
            gave_up=self.gave_up,
            ours=self._is_ours,
        )

    # -- life

    async def start(self) -> None:
        """Settle what a stop left half-way, rebuild memory, begin."""
        await self.reports.settle_landings()
        await self._load()
        self._newest = self._ids.next_attempt_id()
        await self.files.sweep(self._newest)
        self._v1.follow()
        loops = {"plan": self._plan_for_ever, "watch": self._watch_for_ever, "refresh": self._refresh_for_ever}
        self._tasks = [asyncio.create_task(loop(), name=f"dispatcher-{name}") for name, loop in loops.items()]
        self.wake()

    async def stop(self) -> None:
        """End all links and loops. Attempts go on without us and are found again at the next start."""
        self._ready = False
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._leasing.close()
        await self._linked.close()
        await self._v1.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self.reports.close()
        await self.files.close()

    # -- what happens outside

    def submitted(self, new: NewTask, submitted: Submitted, engine: EngineRow) -> None:
        """A task was committed; called on the event loop. A repeated submission changes nothing."""
        if submitted.repeated or submitted.task_id in self.memory.tasks:
            return
        if new.waits_for or any(chunk.stage for chunk in new.chunks):
            self.spawn(self.reload((submitted.task_id,)))
            return
        task = QueuedTask(
            task_id=submitted.task_id,
            user_id=new.user_id,
            priority=new.priority,
            queued_us=new.queue_us,
            engine=engine.name,
            download_path=engine.download_path,
            chunk_count=len(new.chunks),
            chunks=tuple(QueuedChunk(chunk.chunk_id, place) for place, chunk in enumerate(new.chunks)),
            one_range="," not in new.frames,
            paused=new.paused,
        )
        self.memory.add_task(task, now=self._clock.monotonic(), now_us=moment(self._clock).us)

    async def link(self, socket: WebSocket) -> None:
        """The endpoint of `protocol.link.LINK_PATH`: serve one linked machine until its link ends."""
        await self._linked.endpoint(socket)

    async def reload(self, task_ids: Collection[int]) -> None:
        """Read tasks anew from the database: they were resumed, tried again, or added by hand."""
        queued = await self._database.read(partial(load_queue, task_ids=task_ids))
        now, now_us = self._clock.monotonic(), moment(self._clock).us
        for task_id in set(task_ids) - {task.task_id for task in queued}:
            self.memory.forget_task(task_id)
        for task in queued:
            self.memory.add_task(task, now=now, now_us=now_us)
        self.wake()

    async def refresh(self) -> None:
        """Notice rows that were added or changed by hand or by an operator (R3.4)."""
        rows = await self._database.read(list_machines)
        shares = await self._database.read(load_shares)
        for machine in self.machines.update_rows(rows):
            if machine.link is not None:
                machine.link.close("this machine was removed")
        self.machines.update_shares(shares)
        self._v1.follow()
        await self._refresh_queue()
        self.wake()

    def wake(self) -> None:
        """Something changed that a plan could use."""
        self._woken.set()

    def heard(self, machine: Machine) -> None:
        """Something was read from a machine just now."""
        machine.heard = self._awake.now(self._clock.monotonic())

    def gave_up(self) -> None:
        """A write was given up: memory is in doubt and is rebuilt (R3.2)."""
        if not self._in_doubt:
            self._in_doubt = True
            self._ready = False
            self.spawn(self._rebuild())

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in the background, until `stop`."""
        task = asyncio.create_task(self._guarded(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- what others may know

    def machines_view(self) -> list[dict[str, Any]]:
        """Every machine as an operator is shown it."""
        return [machine.view() for machine in self.machines]

    def machine_view(self, machine_id: int) -> dict[str, Any] | None:
        """One machine as an operator is shown it."""
        machine = self.machines.get(machine_id)
        return None if machine is None else machine.view()

    def progress_of(self, attempt_id: int) -> Progress | None:
        """The newest progress of a live attempt."""
        attempt = self.memory.attempts.get(attempt_id)
        return None if attempt is None else attempt.progress

    def attempts_of(self, task_id: int) -> tuple[Attempt, ...]:
        """The live attempts of a task."""
        return self.memory.attempts_of(task_id)

    def figures(self) -> Mapping[str, float]:
        """Numbers for `/metrics`."""
        return {
            "chunks_ready": len(self.memory.index),
            "tasks_queued": len(self.memory.tasks),
            "attempts_live": len(self.memory.attempts),
            "machines_reachable": sum(machine.reachable for machine in self.machines),
            "slots_free": sum(machine.free for machine in self.machines),
            "reports_dropped": self.reports.dropped,
        }

    # -- loops

    async def _plan_for_ever(self) -> None:
        timer: asyncio.TimerHandle | None = None
        while True:
            await self._woken.wait()
            self._woken.clear()
            if not self._ready:
                continue
            due = await self._give()
            if timer is not None:
                timer.cancel()
            if due is not None:
                delay = max(0.0, due - self._clock.monotonic())
                timer = asyncio.get_running_loop().call_later(delay, self.wake)

    async def _give(self) -> float | None:
        try:
            return await self._leasing.give()
        except Exception:  # noqa: BLE001 (told in the log; the dispatcher goes on)
            _log.exception("Nothing could be assigned")
            self.gave_up()
            return None

    async def _watch_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = self._clock.monotonic()
            self._awake.tick(now)
            if self._ready:
                await self._guarded(self._end_silent(self._awake.now(now)))

    async def _end_silent(self, awake: float) -> None:
        """What a silent machine has is lost (R1.3)."""
        lost: dict[int, Ending] = {}
        for machine in self.machines:
            if awake <= self._deadline(machine):
                continue
            if machine.link is not None and machine.row.is_linked:
                machine.link.close(f"nothing was heard for {self._silence_s:.0f} s")
            for attempt in self.memory.attempts_on(machine.machine_id):
                if attempt.leased:
                    lost[attempt.attempt_id] = Ending(Outcome.LOST, reason=f"{machine.name} is silent")
        for attempt in self.memory.attempts.values():
            if attempt.leased and self.machines.get(attempt.machine_id) is None:
                lost[attempt.attempt_id] = Ending(Outcome.LOST, reason="its machine was removed")
        await self.reports.end(lost)

    def _is_ours(self, attempt_id: int) -> bool:
        """Whether a number on a v1 machine's wire is one of this farm's attempts (R7.1)."""
        return attempt_id in self.memory.attempts or abs(self._newest - attempt_id) < OURS

    def _deadline(self, machine: Machine) -> float:
        return self._grace_s if machine.heard is None else machine.heard + self._silence_s

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            if self._ready:
                await self._guarded(self.refresh())

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """What goes wrong in one round must not end the dispatcher; memory may be in doubt afterwards."""
        try:
            await work
        except RenderOnlineError as error:
            _log.warning("The dispatcher could not do something", error=error.message)
            self.gave_up()
        except Exception:  # noqa: BLE001 (told in the log; the dispatcher goes on)
            _log.exception("The dispatcher failed")
            self.gave_up()

    # -- memory and the database

    async def _load(self) -> None:
        """Rebuild memory from the database."""
        self.machines.update_rows(await self._database.read(list_machines))
        self.machines.update_shares(await self._database.read(load_shares))
        live = await self._database.read(load_live)
        queue = await self._database.read(load_queue)
        self.memory.load(queue, live, now=self._clock.monotonic(), now_us=moment(self._clock).us)
        for attempt in live:
            self.files.know(attempt.attempt_id, attempt.directory, attempt.machine_id)
        for machine in self.machines:
            machine.occupied = {attempt.attempt_id for attempt in self.memory.attempts_on(machine.machine_id)}
            self.machines.note(machine)
        self._ready = True

    async def _rebuild(self) -> None:
        while True:
            await asyncio.sleep(_REBUILD_PAUSE_S)
            await self._leasing.close()  # what is being committed is committed before we read
            with contextlib.suppress(NotAvailable):
                await self._load()
                break
        self._in_doubt = False
        _log.info("Memory is rebuilt from the database")
        self.wake()

    async def _refresh_queue(self) -> None:
        """Tasks that came into the queue, or went, without passing through us."""
        known = set(self.memory.tasks)
        queued = await self._database.read(load_queued_ids)
        for task_id in known - queued:
            self.memory.forget_task(task_id)
        unknown = queued - self.memory.tasks.keys()
        if not unknown:
            return
        await self.reload(unknown)
        bare = [task_id for task_id in unknown if task_id in self.memory.tasks and self._is_bare(task_id)]
        if bare:  # inserted by hand, as the existing system would
            now = moment(self._clock).local
            await self._database.write(partial(adopt_tasks, after=min(bare) - 1, now=now))
            await self.reload(bare)

    def _is_bare(self, task_id: int) -> bool:
        return self.memory.tasks[task_id].chunk_count == 0
