"""v1 machines: nodes of the existing system, polled over plain HTTP (R7 Existing nodes, C1 Render node).

They have no fence, so we give them one: the number on their wire is the attempt's, a status counts only when it is
about that number, and what can't be known is asked again before it is believed. Each machine has a task of its own,
so that one that does not answer holds up nobody.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final

import aiohttp
import structlog

from renderonline.database.door import Connection, Database
from renderonline.database.existing import adopt_tasks
from renderonline.database.machine_rows import hello
from renderonline.farm.arguments import join
from renderonline.farm.errors import InvalidRequest, NotFound, RenderOnlineError
from renderonline.farm.machines import checked_address
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Offer, Outcome
from renderonline.protocol import existing
from renderonline.renderapi.connected_machines import Machine, Machines
from renderonline.renderapi.landings import written_offers
from renderonline.renderapi.memory import BackgroundWork, Clocks, Memory
from renderonline.renderapi.orders import AttemptFiles, Order
from renderonline.renderapi.reports import Reports

_log = structlog.get_logger(__name__)

BUSY_S: Final = 1.0
IDLE_S: Final = 5.0
AGAIN_S: Final = 1.0
"""A status that says something bad counts when one at least so much later says the same (R7.2 Confirmed failure)."""
REFUSAL_S: Final = 30.0
"""A machine that says it is idle and refuses a start because it is busy is left alone for so long."""
_ELSEWHERE: Final = "It renders for somebody else."
_LARGEST_ANSWER: Final = 64 * 1024
_TIMEOUT: Final = aiohttp.ClientTimeout(total=2.0)


class _Phase(StrEnum):
    """`START`: to be started; `UNKNOWN`: a start was sent, and nobody knows what became of it (R7.3 Unanswered start);
    `RUNNING`: its start was answered, or a status said its number."""

    START = "start"
    UNKNOWN = "unknown"
    RUNNING = "running"


@dataclass(slots=True)
class _NodeJob:
    """The attempt that the machine has. `refusals`: how often its start was refused because something runs there;
    `doubt`: what a status said that is to be heard twice, and since when."""

    attempt_id: int
    phase: _Phase
    refusals: int = 0
    doubt: str = ""
    since: float = 0.0


class V1Machines:
    """One `V1Machine` for each row with an address."""

    def __init__(self, machines: Machines, connect: Callable[[Machine], "V1Machine"]) -> None:
        self._machines, self._connect = machines, connect
        self._tasks: dict[Machine, asyncio.Task[None]] = {}

    def adopt_tasks(self, connection: Connection, *, after: int, now: datetime) -> object:
        """Give chunks to tasks above the id `after` that the existing system inserted."""
        return adopt_tasks(connection, after=after, now=now)

    def follow(self) -> None:
        """Begin with machines that are new, end with those that are gone."""
        present = {machine for machine in self._machines if not machine.row.is_linked}
        for machine in self._tasks.keys() - present:
            self._tasks.pop(machine).cancel()
        for machine in present - self._tasks.keys():
            self._tasks[machine] = asyncio.create_task(self._connect(machine).run())

    async def close(self) -> None:
        """End; what runs on the machines goes on."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._tasks.clear()


class V1Machine:
    """One machine and the attempt it has; its `MachineLink`."""

    def __init__(
        self,
        machine: Machine,
        *,
        database: Database,
        memory: Memory,
        machines: Machines,
        files: AttemptFiles,
        reports: Reports,
        background: BackgroundWork,
        clocks: Clocks,
        compare: Callable[[int], Coroutine[None, None, None]],
    ) -> None:
        self._machine = machine
        self._database, self._memory, self._machines, self._files = database, memory, machines, files
        self._reports, self._background, self._clocks = reports, background, clocks
        self._compare = compare
        self._job: _NodeJob | None = None
        self._stops: set[int] = set()
        self._news = asyncio.Event()
        self._offered: tuple[str, ...] | None = None
        self._refuses_until = 0.0

    def assign(self, order: Order) -> None:
        """Start this when the machine is next spoken to, which is now."""
        self._job = _NodeJob(order.assign.attempt, _Phase.START)
        self._news.set()

    def cancel(self, attempt_id: int, reason: str) -> None:
        """Stop this; said again until the machine has answered."""
        _log.info("A v1 machine must stop", machine_id=self._machine.machine_id, attempt=attempt_id, why=reason)
        self._stops.add(attempt_id)
        self._news.set()

    def close(self, reason: str) -> None:
        """There is no connection to end."""

    async def run(self) -> None:
        """Ask and tell until canceled."""
        for attempt in self._memory.attempts_on(self._machine.machine_id):  # from before we were stopped
            phase = _Phase.RUNNING if attempt.running else _Phase.UNKNOWN
            self._job = _NodeJob(attempt.attempt_id, phase)
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as self._session:
            while True:
                self._news.clear()
                try:
                    await self._step()
                except RenderOnlineError as error:
                    _log.warning("A v1 machine's news could not be recorded", error=error.message)
                    self._background.gave_up()
                except Exception:  # noqa: BLE001 (one odd machine must not stop the farm)
                    _log.exception("A v1 machine's task failed", machine_id=self._machine.machine_id)
                busy = self._job is not None or self._stops or self._machine.full
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), BUSY_S if busy else IDLE_S)

    async def _step(self) -> None:
        self._let_go()
        for attempt_id in list(self._stops):
            await self._stop(attempt_id)
        job = self._job
        if job is not None and job.phase is _Phase.START:
            await self._start(job)
            return
        status = await self._ask()
        if status is None:
            self._unreachable()
            return
        self._machines.heard(self._machine)
        self._reachable(self._machine.full)
        await self._note(status)
        if self._job is None:
            await self._without_job(status)
        elif self._job.phase is _Phase.UNKNOWN:
            await self._settle_start(self._job, status)
        else:
            await self._judge(self._job, status)

    def _let_go(self) -> None:
        """The attempt ended without us: canceled, or lost."""
        job = self._job
        if job is None or job.attempt_id in self._memory.attempts:
            return
        self._job = None
        if job.phase is _Phase.START:  # it was never sent
            self._stops.discard(job.attempt_id)
            self._machines.release(self._machine.machine_id, job.attempt_id)
        else:
            self._stops.add(job.attempt_id)

    async def _start(self, job: _NodeJob) -> None:
        order = await self._order(job)
        if order is None:
            return
        assign = order.assign
        try:
            if order.uses_directory:
                await asyncio.to_thread(Path(assign.directory).mkdir, parents=True, exist_ok=True)
        except OSError as error:
            await self._finish(job, Ending(Outcome.FAILED, "no_space", str(error)))
            return
        job.phase = _Phase.UNKNOWN
        try:
            request = existing.StartRequest(assign.engine, job.attempt_id, join(assign.argv))
            answer = await self._call(existing.START_PATH, request)
        except aiohttp.ClientConnectorError:
            self._unreachable()
            await self._give_back(job, "the machine can't be reached")
            return
        if answer is None:
            return  # whether it has begun is settled by its status
        self._machines.heard(self._machine)
        if answer.is_success:
            await self._begun(job)
        elif answer.message == existing.ACTIVE_RENDER:
            job.refusals += 1  # perhaps for an earlier start of ours whose answer was lost: its status decides
        else:
            failure = "no_engine" if answer.message == existing.not_configured(assign.engine) else ""
            await self._finish(job, Ending(Outcome.FAILED, failure, answer.message[:500]))

    async def _begun(self, job: _NodeJob) -> None:
        job.phase, job.doubt = _Phase.RUNNING, ""
        await self._reports.started(job.attempt_id)

    async def _settle_start(self, job: _NodeJob, status: existing.Status) -> None:
        """The answer to a start was lost: what does the machine say it does (R7.3 Unanswered start)?"""
        task = status.task
        if task is not None and task.task_id == job.attempt_id:
            await self._begun(job)
            if not task.is_running:
                await self._judge(job, status)
        elif task is not None and task.is_running and self._memory.is_ours(task.task_id):
            await self._stop(task.task_id)
        elif task is not None and task.is_running:
            await self._leave_alone(job)
        elif self._said_twice(job, "absent"):  # a process that is being made is not there yet
            await self._start_again(job)

    async def _start_again(self, job: _NodeJob) -> None:
        if job.refusals > 1:
            self._refuses_until = self._clocks.monotonic() + REFUSAL_S
            await self._leave_alone(job)
            return
        job.phase, job.doubt = _Phase.START, ""
        self._news.set()

    async def _leave_alone(self, job: _NodeJob) -> None:
        self._reachable(_ELSEWHERE)
        await self._give_back(job, "the machine is busy with somebody else")

    async def _judge(self, job: _NodeJob, status: existing.Status) -> None:
        """What a status says of our attempt; what is bad news must be said twice (R7.2 Confirmed failure)."""
        task = status.task
        if task is None:
            await self._finish(job, Ending(Outcome.LOST, reason="the machine was restarted"))
        elif task.task_id == job.attempt_id and task.is_running:
            job.doubt = ""
        elif task.task_id == job.attempt_id and task.is_success:
            await self._succeed(job)
        elif task.task_id == job.attempt_id:
            if self._said_twice(job, "failed"):
                await self._finish(job, Ending(Outcome.FAILED, reason="the machine says that it failed"))
        elif self._said_twice(job, "other"):
            await self._finish(job, Ending(Outcome.LOST, reason="another program uses the machine"))

    def _said_twice(self, job: _NodeJob, doubt: str) -> bool:
        now = self._clocks.monotonic()
        if job.doubt != doubt:
            job.doubt, job.since = doubt, now
            return False
        return now - job.since >= AGAIN_S

    async def _without_job(self, status: existing.Status) -> None:
        """Idle, busy with somebody else, or with something of ours that is over."""
        task = status.task
        if task is not None and task.is_running:
            if self._memory.is_ours(task.task_id):
                await self._stop(task.task_id)
            self._reachable(_ELSEWHERE)
            return
        self._reachable(_ELSEWHERE if self._clocks.monotonic() < self._refuses_until else "")
        self._memory.release_held(self._machine.machine_id)
        self._files.remove_unheld(self._machine.machine_id, self._machine.occupied)

    async def _note(self, status: existing.Status) -> None:
        if status.engine_ids == self._offered:
            return
        self._offered = status.engine_ids
        self._machine.offer(dict.fromkeys(status.engine_ids, ""), 1)
        self._machines.note(self._machine)
        facts, now_us = {"engines": list(status.engine_ids)}, self._clocks.now().us
        operation = partial(hello, machine_id=self._machine.machine_id, instance="", facts=facts, now_us=now_us)
        with contextlib.suppress(NotFound):  # its row was removed just now
            await self._database.write(operation)

    def _reachable(self, full: str) -> None:
        """It answers; `full` is why it takes nothing ("" when it does)."""
        if self._machine.link is not self or self._machine.full != full:
            self._machine.link, self._machine.full = self, full
            self._machines.note(self._machine)
            self._background.wake()

    def _unreachable(self) -> None:
        if self._machine.link is not None:
            self._machine.link = None
            self._machines.note(self._machine)

    async def _succeed(self, job: _NodeJob) -> None:
        order = await self._order(job)
        if order is not None:
            offers = await asyncio.to_thread(written_offers, order)
            await self._finish(job, Ending(Outcome.SUCCEEDED, exit_code=0), offers)
            if not order.wanted and not order.uses_directory:
                _ = self._background.spawn(self._compare(order.assign.task))

    async def _order(self, job: _NodeJob) -> Order | None:
        """None when the attempt is gone, or over because its order can't be written any more."""
        try:
            return await self._reports.order_of(job.attempt_id)
        except InvalidRequest as error:
            await self._finish(job, Ending(Outcome.FAILED, "command", error.message))
            return None

    async def _finish(self, job: _NodeJob, ending: Ending, offers: tuple[Offer, ...] = ()) -> None:
        finish = self._reports.finish(self._machine, job.attempt_id, offers, ending)
        await asyncio.shield(self._background.keep(finish))  # what began to land must not be left half-way
        if self._job is job:
            self._job = None
        self._news.set()

    async def _give_back(self, job: _NodeJob, reason: str) -> None:
        """It never began here: no failure."""
        await self._finish(job, Ending(Outcome.CANCELED, reason=reason, given_back=True))

    async def _stop(self, attempt_id: int) -> None:
        """Have it stopped; any answer will do, because a status says what is true."""
        try:
            answer = await self._call(existing.STOP_PATH, existing.StopRequest(attempt_id))
        except aiohttp.ClientConnectorError:
            answer = None
        if answer is None:
            self._unreachable()
            return
        self._stops.discard(attempt_id)
        self._files.remove(self._machine.machine_id, (attempt_id,))
        if self._machines.release(self._machine.machine_id, attempt_id):
            self._background.wake()

    async def _ask(self) -> existing.Status | None:
        try:
            return existing.parse_status(await self._exchange("GET", existing.STATUS_PATH, None, (200,)))
        except (aiohttp.ClientError, TimeoutError, InvalidRequest, ValueError):
            return None

    async def _call(
        self, path: str, request: existing.StartRequest | existing.StopRequest
    ) -> existing.NodeAnswer | None:
        """The machine's answer, None when there was none; `ClientConnectorError` when nothing was sent."""
        try:
            return existing.parse_answer(await self._exchange("POST", path, existing.encode(request), (200, 400)))
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientError, TimeoutError, InvalidRequest, ValueError):
            return None

    async def _exchange(self, method: str, path: str, data: bytes | None, statuses: tuple[int, ...]) -> bytes:
        row = self._machine.row
        address = checked_address(row.ip_address)  # the row may have been written by hand
        host = f"[{address}]" if ":" in address else address
        url = f"http://{host}:{row.port}{path}"
        headers = {"Content-Type": "application/json"} if data else {}
        async with self._session.request(method, url, data=data, headers=headers, allow_redirects=False) as response:
            body = bytearray()
            async for piece in response.content.iter_any():
                body.extend(piece)
                if len(body) > _LARGEST_ANSWER:
                    raise InvalidRequest("The answer is too large.")
            if response.status not in statuses:
                raise InvalidRequest(f"The node answered with status {response.status}.")
            return bytes(body)
