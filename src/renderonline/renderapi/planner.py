"""The dispatcher: the one place that decides what runs where. Woken by events, never by a fixed poll.

    submitted, slot freed, machine back, timer due -> plan (pure) -> commit the leases -> tell the machines

Memory decides, the database records. At start memory is rebuilt from the database, and rebuilt again when a write was
given up (R3.2 Repeatable operations).
"""

import asyncio
import contextlib
import secrets
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol

import structlog

from renderonline.database import queue_rows as loading
from renderonline.database.door import Connection, Database, IdBlocks
from renderonline.database.machine_rows import refresh_machines
from renderonline.database.queue_rows import QueuedTask
from renderonline.database.submission_rows import (
    Assigned,
    EngineRow,
    LeasedChunk,
    NewTask,
    Submitted,
    assign,
    submit_and_lease,
)
from renderonline.farm.errors import InvalidRequest, NotAvailable
from renderonline.farm.needs import Needs
from renderonline.farm.ready import ReadyIndex
from renderonline.farm.scheduling import Assignment, plan_round
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.renderapi.connected_machines import Benching, Machines
from renderonline.renderapi.memory import (
    MANY_CHUNKS,
    BackgroundWork,
    Clocks,
    LiveAttempt,
    Memory,
    heavy,
    queue_of,
    queued_of,
)
from renderonline.renderapi.orders import AttemptFiles, Folder, Orders
from renderonline.renderapi.reports import Reports, Watching
from renderonline.renderapi.work_ahead import WorkAhead
from renderonline.storage.landing import attempt_directory

_log = structlog.get_logger(__name__)

REFRESH_S: Final = 5.0
"""Rows that were changed by hand are noticed within this (R3.4 Changes by hand)."""
_REBUILD_PAUSE_S: Final = 1.0
_TOKEN_BYTES: Final = 16
Durable = asyncio.Future[None]  # done when what was committed is on the disk
Committed = tuple[Submitted, Assigned]


class PlannedCheck(Protocol):
    """The check of a scene, for which a machine's slot may be claimed (`scene_checks.Check`)."""

    unchecked: str

    @property
    def holds(self) -> bool:
        """Whether nothing of its task may start before it has ended."""


class PlannedChecks(Protocol):
    """The checks of scenes, which take slots beside attempts (`scene_checks.SceneChecks`)."""

    def claim(
        self, task: QueuedTask, engine: EngineRow, new: NewTask
    ) -> contextlib.AbstractContextManager[PlannedCheck | None]:
        """The check of a task that is being committed; its slot is free again unless the task has an id at the end."""

    def begin(self, check: Any, task_id: int) -> None:
        """The task of a claimed check is committed."""

    def advance(self) -> None:
        """Give the checks that wait what the plan left free."""

    def occupied(self, machine_id: int) -> Mapping[int, Needs]:
        """The attempts of checks that occupy a machine's slots."""

    def stop(self) -> None:
        """End all checks."""


class Closable(Protocol):
    """Connections of machines that dial us (`greeting.LinkedMachines`)."""

    async def close(self) -> None:
        """End all connections."""


class ExistingNodes(Closable, Protocol):
    """Render nodes of the existing system, which we dial (`existing.V1Machines`)."""

    def follow(self) -> None:
        """Begin with machines that are new, end with those that are gone."""

    def adopt_tasks(self, connection: Connection, *, after: int, now: datetime) -> object:
        """Give chunks to tasks above the id `after` that the existing system inserted."""


class Dispatcher:
    """Joins memory, machines and the database. `start` before anything else, `stop` at the end."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        *,
        leasing: "Leasing",
        memory: Memory,
        machines: Machines,
        files: AttemptFiles,
        reports: Reports,
        benching: Benching,
        watching: Watching,
        checks: PlannedChecks,
        background: BackgroundWork,
        clocks: Clocks,
        links: Closable,
        nodes: ExistingNodes,
    ) -> None:
        self._database, self._ids, self._memory, self._machines = database, ids, memory, machines
        self._files, self._reports, self._benching, self._watching = files, reports, benching, watching
        self._checks, self._background, self._clocks = checks, background, clocks
        self._links, self._nodes, self._leasing = links, nodes, leasing
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Settle what a stop left half-way, rebuild memory, begin."""
        await self._reports.settle_landings()
        await self._load()
        self._memory.newest = self._ids.next_attempt_id()
        await self._files.sweep(self._memory.newest)
        self._nodes.follow()
        loops = (self._plan_for_ever(), self._watch_for_ever(), self._refresh_for_ever(), self._rebuild_for_ever())
        self._loops = [asyncio.create_task(loop) for loop in loops]
        self._background.wake()

    async def stop(self) -> None:
        """End all links and loops. Attempts go on without us and are found again at the next start."""
        self._background.ready = False
        self._checks.stop()
        for task in self._loops:
            task.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._background.settled()
        await self._links.close()
        await self._nodes.close()
        await self._background.settled()

    async def leased(self) -> None:
        """Wait until what was submitted just now is planned, and its leases are committed and sent."""
        await asyncio.sleep(0)  # the planner's turn
        await self._leasing.committed()

    async def submit(self, new: NewTask, engine: EngineRow) -> Submitted:
        """Commit a task, and with it its first leases when nothing else waits. Raises what the commit raises."""
        return await self._leasing.submit(new, engine)

    async def refresh(self) -> None:
        """Notice rows that were added or changed by hand or by an operator (R3.4 Changes by hand)."""
        await self._read_machines()
        self._nodes.follow()
        self._benching.follow()
        await self._refresh_queue()
        self._background.wake()

    async def _read_machines(self) -> None:
        known = {machine.machine_id: machine.row for machine in self._machines}
        rows = await self._database.read(partial(refresh_machines, known=known))
        users = await self._database.read(loading.load_allowances)
        for machine in self._machines.update(rows, users):
            if machine.link is not None:
                machine.link.close("this machine was removed")

    async def _refresh_queue(self) -> None:
        """Tasks that came into the queue, or went, without passing through us."""
        known = set(self._memory.tasks)
        queued = await self._database.read(loading.load_queued_ids)
        for task_id in known - queued:
            self._memory.forget_task(task_id)
        unknown = queued - self._memory.tasks.keys()
        if not unknown:
            return
        await self._memory.reload(unknown)
        found = [self._memory.tasks[task_id] for task_id in unknown & self._memory.tasks.keys()]
        bare = [task.task_id for task in found if not task.chunk_count]
        if bare:  # inserted by hand, as the existing system would
            adopt = partial(self._nodes.adopt_tasks, after=min(bare) - 1, now=self._clocks.now().local)
            await self._database.write(adopt)
            await self._memory.reload(bare)

    def figures(self) -> Mapping[str, float]:
        """Numbers for `/metrics`."""
        machines = list(self._machines)
        return {
            "chunks_ready": len(self._memory.index),
            "tasks_queued": len(self._memory.tasks),
            "attempts_live": len(self._memory.attempts),
            "machines_reachable": sum(machine.reachable for machine in machines),
            "slots_free": sum(machine.free for machine in machines),
            "reports_dropped": self._reports.dropped,
        }

    async def _plan_for_ever(self) -> None:
        timer: asyncio.TimerHandle | None = None
        while True:
            await self._background.woken.wait()
            self._background.woken.clear()
            if not self._background.ready:
                continue
            if timer is not None:
                timer.cancel()
                timer = None
            try:
                due = await self._leasing.assign_free()
                self._checks.advance()
            except Exception:  # noqa: BLE001 (logged; the dispatcher goes on)
                _log.exception("Nothing could be assigned")
                self._background.gave_up()
                continue
            if due is not None:
                delay = max(0.0, due - self._clocks.monotonic())
                timer = asyncio.get_running_loop().call_later(delay, self._background.wake)

    async def _watch_for_ever(self) -> None:
        while True:
            awake = await self._clocks.tick()
            if self._background.ready:
                await self._background.guarded(self._watching.look(awake))

    async def _refresh_for_ever(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            if self._background.ready:
                await self._background.guarded(self.refresh())

    async def _rebuild_for_ever(self) -> None:
        while True:
            await self._background.in_doubt.wait()
            await asyncio.sleep(_REBUILD_PAUSE_S)
            await self._background.settled()
            self._background.in_doubt.clear()
            await self._background.guarded(self._reports.settle_landings())  # what was given up may have begun to land
            await self._background.guarded(self._load())
            if self._background.ready:
                _log.info("Memory is rebuilt from the database")
                self._background.wake()

    async def _load(self) -> None:
        """Rebuild memory from the database, in the writer's turn: what is committed before is in it, and what is
        committed after it is followed."""
        await self._read_machines()
        live, queue = await self._database.write(lambda c: (loading.load_live(c, LiveAttempt), queue_of(c)))
        for attempt in live:  # it was planned for what its machine had
            if (there := self._machines.get(attempt.machine_id)) is not None:
                attempt.needs = attempt.needs.on(there.ability)
        self._memory.load(queue, live)
        for attempt in live:
            self._files.know(attempt.attempt_id, Folder(attempt.directory, attempt.machine_id, attempt.token))
        for machine in self._machines:
            held = {one.attempt_id: one.needs for one in self._memory.attempts_on(machine.machine_id)}
            machine.occupied = {**held, **self._checks.occupied(machine.machine_id)}
            self._machines.note(machine)
        self._background.ready = not self._background.in_doubt.is_set()


class Leasing:
    """Plans, commits, sends."""

    def __init__(
        self,
        database: Database,
        ids: IdBlocks,
        *,
        memory: Memory,
        machines: Machines,
        orders: Orders,
        files: AttemptFiles,
        reports: Reports,
        checks: PlannedChecks,
        background: BackgroundWork,
        clocks: Clocks,
    ) -> None:
        self._database, self._ids, self._memory, self._machines = database, ids, memory, machines
        self._orders, self._files, self._reports, self._checks = orders, files, reports, checks
        self._background, self._clocks = background, clocks
        self._work_ahead = WorkAhead(memory, machines, reports, background, clocks)
        self._leases: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()

    async def assign_free(self) -> float | None:
        """Assign chunks to all free slots, and return before the commits when the next chunk is due (monotonic)."""
        await self._idle.wait()  # what becomes free while leases are committed is planned together
        memory = self._memory
        await self._ids.refill()
        due = memory.release_due()
        wanted = self._plan(memory.index, memory.tasks)
        for attempt in wanted:
            memory.lease(attempt)  # as if it were committed, so that the next plan counts it
        for assignment in self._work_ahead.plan():
            wanted.append(self._occupy(memory.tasks[assignment.task_id], assignment))
            memory.lease(wanted[-1])
        if wanted:
            self._idle.clear()
            self._spawn(self._lease(wanted))
        return min((at for at in (due, self._work_ahead.follow()) if at is not None), default=None)

    async def submit(self, new: NewTask, engine: EngineRow) -> Submitted:
        """Commit a task. When nothing else waits its first chunks are leased in the same transaction, so that it starts
        one commit earlier. Raises what the commit raises."""
        many = len(new.chunks) > MANY_CHUNKS
        task = await asyncio.to_thread(heavy(queued_of), new, engine) if many else queued_of(new, engine)
        ready_at_once = not new.waits_for and not any(chunk.stage for chunk in new.chunks)
        with contextlib.ExitStack() as claimed:
            if (check := claimed.enter_context(self._checks.claim(task, engine, new))) is not None:
                new, ready_at_once = replace(new, unchecked=check.unchecked), ready_at_once and not check.holds
            ahead = claimed.enter_context(self._ahead(task, plans=ready_at_once and self._background.ready))
            commit = heavy(submit_and_lease) if many else submit_and_lease
            durable: Durable = asyncio.get_running_loop().create_future()
            follow = partial(self._follow, task, ahead, durable)
            early = follow if ready_at_once and check is None else None
            operation = partial(commit, new=new, ahead=ahead, moment=self._clocks.now())
            try:
                done: Committed = await self._database.write(operation, early=early)
                durable.set_result(None)
            except NotAvailable:  # perhaps the leases are there
                self._background.gave_up()
                raise
            finally:
                durable.cancel()
            if done[0].repeated or early is not None:
                return done[0]
            if check is not None:
                self._checks.begin(check, done[0].task_id)
            if ready_at_once:
                follow(done)
            else:
                self._reports.read_again((done[0].task_id,))
        return done[0]

    def _follow(self, task: QueuedTask, ahead: list[LiveAttempt], durable: Durable, done: Committed) -> None:
        """A task is committed: memory learns it, and its first leases go to their machines. Nobody else hears of it
        before it is `durable` (R3.1 Group commit)."""
        (submitted, assigned), task.task_id = done, done[0].task_id
        if submitted.repeated:
            return
        if task.task_id not in self._memory.tasks:  # it may have been found in the queue already
            self._memory.add_task(task)
        leased, ahead[:] = ahead.copy(), ()
        self._memory.count(task.user_id, -len(leased))  # now as live attempts
        for attempt in leased:
            attempt.task_id = task.task_id
            self._memory.lease(attempt)
        if leased:
            self._spawn(self._send_all(leased, assigned, durable))

    @contextlib.contextmanager
    def _ahead(self, task: QueuedTask, *, plans: bool) -> Iterator[list[LiveAttempt]]:
        """Slots for the first chunks of a task that is being committed, when nothing else waits. They count as used
        meanwhile; those that are still in the list afterwards are free again."""
        memory = self._memory
        ahead: list[LiveAttempt] = []
        if plans and task.plain is not None and task.may_start and not len(memory.index):
            index = ReadyIndex()
            first = [(chunk.chunk_id, chunk.place) for chunk in task.plain.chunks[-MANY_CHUNKS:]]
            index.add_many(task, first, task.signature())
            ahead = self._plan(index, {task.task_id: task})
        memory.count(task.user_id, len(ahead))
        try:
            yield ahead
        finally:
            memory.count(task.user_id, -len(ahead))
            for attempt in ahead:
                self._free(attempt)

    def _plan(self, index: ReadyIndex, tasks: Mapping[int, QueuedTask]) -> list[LiveAttempt]:
        """Attempts at chunks of this index for which there are free slots; the slots are taken from now on."""
        memory, machines = self._memory, self._machines
        free = machines.free_slots() if len(index) else []
        if not free:
            memory.reserved = {}
            return []
        assignments, memory.reserved = plan_round(
            index, free, memory.usage, machines.policy, self._clocks.now().us, memory.reserved
        )
        return [self._occupy(tasks[assignment.task_id], assignment) for assignment in assignments]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        lease = self._background.spawn(work)
        self._leases.add(lease)
        lease.add_done_callback(self._leases.discard)

    async def committed(self) -> None:
        """Wait until the leases of this moment are committed and sent."""
        if self._leases:
            await asyncio.wait(self._leases)

    def _occupy(self, task: QueuedTask, assignment: Assignment) -> LiveAttempt:
        machine = self._machines.get(assignment.machine_id)
        assert machine is not None
        attempt_id = self._ids.next_attempt_id()
        attempt = LiveAttempt(
            attempt_id=attempt_id,
            token=secrets.token_urlsafe(_TOKEN_BYTES),
            chunk_id=assignment.chunk_id,
            task_id=task.task_id,
            user_id=task.user_id,
            machine_id=assignment.machine_id,
            directory=attempt_directory(task.download_path, attempt_id),
            whole=assignment.whole,
            needs=assignment.needs,
            steps=self._orders.takes_steps(task.task_id) if machine.row.is_linked else None,
        )
        self._machines.occupy(machine, attempt_id, assignment.needs)
        self._files.know(attempt_id, Folder(attempt.directory, attempt.machine_id, attempt.token))
        return attempt

    async def _lease(self, wanted: Sequence[LiveAttempt]) -> None:
        unknown = {new.task_id for new in wanted if not self._orders.knows(new.task_id)}
        operation = partial(assign, wanted=wanted, moment=self._clocks.now(), facts_of=unknown)
        try:
            assigned = await self._database.write(operation)
        finally:
            self._idle.set()
        await self._send_all(wanted, assigned)

    async def _send_all(
        self, wanted: Sequence[LiveAttempt], assigned: Assigned, durable: Durable | None = None
    ) -> None:
        self._undo([new for new in wanted if new.attempt_id not in assigned.leases])
        wrong = self._learn(assigned)
        broken: dict[int, Ending] = {}
        for new in wanted:
            lease = assigned.leases.get(new.attempt_id)
            if lease is not None and lease.pieces:
                self._memory.recut(new.task_id, new.chunk_id, lease.pieces)
            reason = "" if lease is None else wrong.get(new.task_id) or await self._send(new, lease)
            if reason:
                self._free(new)
                broken[new.attempt_id] = Ending(Outcome.FAILED, "command", reason)
        if durable is not None:
            await asyncio.shield(durable)
        self._reports.tasks_changed(assigned.tasks)
        await self._reports.end(broken)

    def _undo(self, refused: Sequence[LiveAttempt]) -> None:
        """These can't be leased now: their tasks were canceled, paused or changed behind memory's back."""
        for new in refused:
            self._memory.end_attempt(new.attempt_id)
            self._free(new)
        self._reports.read_again({new.task_id for new in refused})

    def _free(self, new: LiveAttempt) -> None:
        """Free the slot of an attempt that never reached its machine."""
        self._files.remove(new.machine_id, (new.attempt_id,))
        self._machines.release(new.machine_id, new.attempt_id)

    def _learn(self, assigned: Assigned) -> dict[int, str]:
        """Take the facts of new tasks; returns the tasks whose facts can't be understood, and why."""
        wrong: dict[int, str] = {}
        for task_id, facts in assigned.facts.items():
            try:
                self._orders.learn(facts)
            except InvalidRequest as error:
                wrong[task_id] = error.message
        return wrong

    async def _send(self, new: LiveAttempt, lease: LeasedChunk) -> str:
        """Tell the machine; without a link it is told when it is back (R5.4 Hello). Gives why that can't be done, or
        ""."""
        orders = self._orders
        await orders.see_mark(new.directory)
        attempt = self._memory.attempts.get(new.attempt_id)
        if attempt is None:  # canceled while it was committed
            self._free(new)
            return ""
        attempt.leased, attempt.frames, attempt.film = True, lease.frames, lease.film
        try:
            order = orders.write(attempt, lease.missing) if orders.knows(new.task_id) else None
            attempt.order = order or await orders.of_attempt(new.attempt_id, attempt.needs)
        except InvalidRequest as error:
            return error.message
        machine = self._machines.get(new.machine_id)
        if attempt.order is not None and machine is not None and machine.link is not None:
            machine.link.assign(attempt.order)
        return ""
