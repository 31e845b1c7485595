"""Linked machines: each dials us with one WebSocket (R5 Attempts and reports, `docs/reference/link.md`).

The first message is `hello`: who it is, what it can do, what it still holds. We answer what goes on, and send again
what never arrived. From then on a link reads, applies and writes in tasks of its own. A machine that reads slowly or
talks too much holds up nobody else: what waits to be sent and what waits to be applied is bounded, and log lines have a
budget of their own, so that they never delay a report (R5.3 Progress and logs).
"""

import asyncio
import contextlib
from collections import OrderedDict, defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Final

import structlog
from msgspec.structs import replace
from starlette import status
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from renderonline.database.door import Database
from renderonline.database.machine_rows import MachineRow, change_machine, get_machine, hello, secret_matches
from renderonline.farm.errors import Conflict, InvalidRequest, NotAvailable, NotFound, RenderOnlineError
from renderonline.farm.machines import ALTERNATION_S, Instances, Wish, check_cards
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.protocol import link
from renderonline.protocol.link import (
    LONGEST_TEXT,
    PROTOCOL,
    Hello,
    Refused,
    check_hello,
    decode,
    decode_frame,
    encode,
    to_wire,
)
from renderonline.renderapi.connected_machines import REJECTED_S, Clocks, Machine, Machines
from renderonline.renderapi.memory import Announcements, BackgroundWork, LiveAttempt, Memory
from renderonline.renderapi.orders import AttemptFiles, Order
from renderonline.renderapi.reports import Checks, Reports
from renderonline.storage.attempt_logs import AttemptLogs

_log = structlog.get_logger(__name__)

HELLO_S: Final = 10.0
_CLOSING_S: Final = 30.0
MAX_MESSAGE: Final = 1024 * 1024
"""Characters of one message; whoever sends more is cut off."""
MAX_APPLIED: Final = 256
"""Reports that are applied in one transaction."""
MAX_UNAPPLIED: Final = 4096
"""Reports that may wait; then nothing is read until some are applied."""
MAX_UNSENT: Final = 8192
"""Messages that may wait for a machine that does not read."""
MAX_LOG: Final = 4 * 1024 * 1024
"""Characters of log lines that may wait for the disk; more are left out."""
_PIECE_COST: Final = 256
"""What a piece of a log takes in memory besides its characters, about."""
_RECENT: Final = 4096
_TWO_PROGRAMS: Final = "Two programs use this machine's secret; give each its own join code, then enable it again."


class _Refusal(Exception):
    def __init__(self, code: str, message: str, *, final: bool = False) -> None:
        super().__init__(message)
        self.answer = Refused(code, message, final)


class LinkedMachine:
    """An open link; the machine's `MachineLink`. `last_seq`: the last report of the instance that was applied; `ended`
    is set when nothing of this link is applied or written any more."""

    def __init__(
        self,
        socket: WebSocket,
        machine: Machine,
        instance: str,
        *,
        last_seq: int,
        memory: Memory,
        machines: Machines,
        reports: Reports,
        checks: Checks,
        background: BackgroundWork,
        clocks: Clocks,
        announcements: Announcements,
        logs: AttemptLogs,
    ) -> None:
        self.machine = machine
        self.instance = instance
        self.ended = asyncio.Event()
        self._memory, self._machines, self._reports, self._checks = memory, machines, reports, checks
        self._background, self._clocks = background, clocks
        self._announcements, self._logs = announcements, logs
        self._socket = socket
        self._read_seq = self._applied_seq = last_seq
        self._unsent: deque[link.FromRenderAPI] = deque()
        self._unapplied: asyncio.Queue[link.Report] = asyncio.Queue(MAX_UNAPPLIED)
        self._log_lines: list[link.Log] = []
        self._log_size = 0
        self._quiet_until = 0.0
        self._attempts: OrderedDict[int, None] = OrderedDict()
        self._to_send, self._to_log, self._closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._unfinished: set[asyncio.Future[None]] = set()
        self._end = (status.WS_1001_GOING_AWAY, "")

    def assign(self, order: Order) -> None:
        attempt_id = order.assign.attempt
        attempt = self._memory.attempts.get(attempt_id)
        if attempt is not None and (missing := self.machine.lacks_box(attempt.needs)):
            # The machine came back with a weaker box than it had when this was planned.
            self._machines.release(self.machine.machine_id, attempt_id)
            ending = Ending(Outcome.CANCELED, reason=f"{self.machine.name} has {missing}", given_back=True)
            _ = self._background.spawn(self._reports.end({attempt_id: ending}))
            return
        self.knows(attempt_id)
        self.send(order.assign)

    def cancel(self, attempt_id: int, reason: str) -> None:
        self.send(link.Cancel(attempt_id, reason))

    def close(self, reason: str, code: int = status.WS_1001_GOING_AWAY) -> None:
        """End the link; the machine may dial again."""
        if not self._closed.is_set():
            self._end = (code, reason)
            self._closed.set()

    def knows(self, attempt_id: int) -> None:
        """The machine may send this attempt's log, also a while after its end."""
        self._attempts[attempt_id] = None
        if len(self._attempts) > _RECENT:
            self._attempts.popitem(last=False)

    def send(self, message: link.FromRenderAPI) -> None:
        """Send when the machine reads; one that does not read is cut off."""
        self._unsent.append(message)
        self._to_send.set()
        if len(self._unsent) > MAX_UNSENT:
            self.close("the machine does not read", status.WS_1013_TRY_AGAIN_LATER)

    async def run(self) -> None:
        """Serve the link until either side ends it."""
        parts = (self._read(), self._write(), self._apply(), self._write_logs(), self._closed.wait())
        work = [asyncio.ensure_future(part) for part in parts]
        try:
            await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.close("the link broke")
            for task in work:
                task.cancel()
            results = await asyncio.gather(*work, return_exceptions=True)
            await asyncio.gather(*self._unfinished, return_exceptions=True)
            self.ended.set()
            for result in results:
                if isinstance(result, Exception):
                    _log.error("A link failed", machine_id=self.machine.machine_id, exc_info=result)
        code, reason = self._end
        _log.info("A machine's link ended", machine_id=self.machine.machine_id, reason=reason)
        if self._socket.application_state is WebSocketState.CONNECTED:
            await close_quietly(self._socket, code, reason)

    async def _read(self) -> None:
        while not self._closed.is_set():
            text = await receive(self._socket)
            if text is None:
                self.close("the machine closed it")
                return
            self._machines.heard(self.machine)
            try:
                for message in decode_frame(text, link.FromMachine):
                    await self._take(message)
            except InvalidRequest as error:
                self.close(error.message[:100], status.WS_1002_PROTOCOL_ERROR)
                return

    async def _take(self, message: object) -> None:
        if isinstance(message, (link.Started, link.Result, link.Exited)):
            await self._take_report(message)
        elif isinstance(message, link.Progress):
            self._take_progress(message)
        elif isinstance(message, link.Log):
            self._take_log(message)
        elif isinstance(message, link.Heartbeat):
            self._take_heartbeat(message)
        else:
            raise InvalidRequest("A link has one hello.")

    async def _take_report(self, report: link.Report) -> None:
        if report.seq > self._read_seq:
            self._read_seq = report.seq
            await self._unapplied.put(report)
        elif report.seq <= self._applied_seq:  # sent again; what is applied is acknowledged again
            self.send(link.Ack(self._applied_seq))

    def _take_progress(self, progress: link.Progress) -> None:
        """Keep the newest progress of a live attempt of this machine (R5.3 Progress and logs), as it may be shown."""
        attempt = self._memory.attempts.get(progress.attempt)
        if attempt is None:  # it ended just now
            return
        if attempt.machine_id != self.machine.machine_id:
            self._machines.reject(self.machine, progress.attempt)
            return
        remaining = progress.remaining_s
        attempt.progress = replace(
            progress,
            fraction=min(max(progress.fraction, 0.0), 1.0),
            remaining_s=remaining if remaining is not None and 0 <= remaining < 1e9 else None,
            message=progress.message[:500],
        )
        self._announcements.progress(attempt, attempt.progress, self._clocks.monotonic())

    def _take_heartbeat(self, heartbeat: link.Heartbeat) -> None:
        """Note load and whether the machine can still write."""
        check_cards(heartbeat.cards)
        before, full = self.machine.ability, heartbeat.full[:LONGEST_TEXT]
        self.machine.load = to_wire(heartbeat)
        if heartbeat.cards:
            self.machine.describe()
        if self.machine.ability != before or self.machine.full != full:
            self.machine.full = full
            self._machines.note(self.machine)
            self._background.wake()

    def _take_log(self, line: link.Log) -> None:
        """Keep a piece of the log of an attempt that the machine has or had (R5.3 Progress and logs)."""
        if self._checks.holds(line.attempt):
            return
        if line.attempt not in self._attempts:
            self._machines.reject(self.machine, line.attempt)
        elif line.text and 0 <= line.offset < 2**53 and self._log_size <= MAX_LOG:
            self._log_size += len(line.text) + _PIECE_COST
            self._log_lines.append(line)
            self._to_log.set()

    async def _apply(self) -> None:
        while True:
            batch = [await self._unapplied.get()]
            while len(batch) < MAX_APPLIED and not self._unapplied.empty():
                batch.append(self._unapplied.get_nowait())
            try:
                await self._finish(self._apply_batch(batch))  # memory must follow what is committed
            except RenderOnlineError as error:
                self.close(error.message[:100], status.WS_1013_TRY_AGAIN_LATER)
                return
            self._applied_seq = batch[-1].seq
            self.send(link.Ack(self._applied_seq))

    async def _finish(self, work: Awaitable[None]) -> None:
        """Do work that goes on when the link is cut; `ended` is set only after it."""
        task = asyncio.ensure_future(work)
        self._unfinished.add(task)
        task.add_done_callback(self._unfinished.discard)
        await asyncio.shield(task)

    async def _apply_batch(self, batch: list[link.Report]) -> None:
        try:
            await self._reports.apply(self.machine, self.instance, batch)
        except Exception:
            self._background.gave_up()
            raise

    async def _write(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._unsent:
                message = self._unsent.popleft()
                if isinstance(message, link.Ack) and self._unsent and isinstance(self._unsent[0], link.Ack):
                    continue  # the next one says more
                try:
                    await self._socket.send_text(encode(message))
                except (WebSocketDisconnect, RuntimeError, OSError):
                    self.close("the machine went away")
                    return

    async def _write_logs(self) -> None:
        while True:
            await self._to_log.wait()
            self._to_log.clear()
            lines, self._log_lines, self._log_size = self._log_lines, [], 0
            try:
                await self._finish(asyncio.to_thread(self._logs.append_lines, lines))  # a log has one writer
            except OSError as error:
                if self._clocks.monotonic() >= self._quiet_until:
                    self._quiet_until = self._clocks.monotonic() + REJECTED_S
                    _log.warning("Logs of attempts can't be written", name=self.machine.name, error=str(error))


class LinkedMachines:
    """The links of all linked machines; `endpoint` serves one."""

    def __init__(
        self,
        connect: partial[LinkedMachine],
        *,
        database: Database,
        memory: Memory,
        machines: Machines,
        files: AttemptFiles,
        reports: Reports,
        checks: Checks,
        background: BackgroundWork,
        clocks: Clocks,
        logs: AttemptLogs,
        let_in: Callable[[WebSocket, str], None],
    ) -> None:
        self._connect, self._database, self._memory, self._machines = connect, database, memory, machines
        self._files, self._reports, self._checks, self._logs = files, reports, checks, logs
        self._background, self._clocks, self._let_in = background, clocks, let_in
        self._instances: dict[int, Instances] = defaultdict(Instances)
        self._doors: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._open: dict[int, LinkedMachine] = {}
        self._stopping = False

    async def endpoint(self, socket: WebSocket) -> None:
        """Serve one machine until its link ends."""
        await socket.accept()
        try:
            async with asyncio.timeout(HELLO_S):
                text = await receive(socket)
            if text is None:
                return
            connection = await self._greet(socket, text)
        except TimeoutError:
            refused = Refused("no_hello", f"No hello within {HELLO_S:.0f} seconds.")
        except _Refusal as refusal:
            refused = refusal.answer
        except InvalidRequest as error:
            refused = Refused("invalid_hello", error.message)
        except RenderOnlineError as error:
            refused = Refused(error.reason_code, error.message)
        else:
            self._let_in(socket, f"machine {connection.machine.machine_id}")
            try:
                await connection.run()
            finally:
                self._detach(connection)
            return
        _log.warning("A machine was refused", code=refused.code, reason=refused.message)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
            await socket.send_text(encode(refused))
        await close_quietly(socket, status.WS_1008_POLICY_VIOLATION, refused.message)

    def restart(self, machine_id: int) -> None:
        """Have the machine's program end after its work. `Conflict` when it is not linked now."""
        if (connection := self._open.get(machine_id)) is None:
            raise Conflict(f"Machine {machine_id} is not linked now. Restart its HPCServer on the machine itself.")
        connection.send(link.Drain(exit=True))

    async def close(self) -> None:
        self._stopping = True
        connections = list(self._open.values())
        for connection in connections:
            connection.close("RenderAPI stops")
        if connections:
            await asyncio.wait([asyncio.create_task(one.ended.wait()) for one in connections], timeout=_CLOSING_S)

    async def _greet(self, socket: WebSocket, text: str) -> LinkedMachine:
        message: Hello = decode(text, Hello)
        row = await self._authenticated(message)
        _check_protocol(message)
        check_hello(message)
        async with self._doors[row.machine_id]:
            await self._check_alone(row, message)
            earlier = self._open.get(row.machine_id)
            if earlier is not None:
                earlier.close("the machine dialled again")
                try:
                    await asyncio.wait_for(earlier.ended.wait(), _CLOSING_S)
                except TimeoutError:  # as it happens while the database does not answer
                    raise NotAvailable("This machine's earlier link has not ended yet. It is tried again.") from None
            return await self._attach(socket, message)

    async def _authenticated(self, message: Hello) -> MachineRow:
        row: MachineRow | None = None
        with contextlib.suppress(NotFound):
            row = await self._database.read(partial(get_machine, machine_id=message.machine_id))
        if row is None or not secret_matches(row, message.secret):
            unknown = "This machine is not known here. Join it again with a new code."
            raise _Refusal("not_authenticated", unknown, final=True)
        if self._stopping:
            raise _Refusal("stopping", "RenderAPI stops.")
        return row

    async def _check_alone(self, row: MachineRow, message: Hello) -> None:
        """Two programs with one secret would close each other's links for ever (R5.7 One secret, one program)."""
        instances, now = self._instances[row.machine_id], self._clocks.monotonic()
        latest, linked = instances.latest, self._open.get(row.machine_id)
        another = latest is not None and latest.instance != message.instance and now - latest.at <= ALTERNATION_S
        another = another or (linked is not None and linked.instance != message.instance)
        if row.wish == Wish.DISABLED and another:
            raise _Refusal("disabled", row.wish_reason or "This machine is disabled.")
        if not instances.hello(message.instance, now):
            return
        changes = {"wish": Wish.DISABLED.value, "wish_reason": _TWO_PROGRAMS}
        operation = partial(change_machine, machine_id=row.machine_id, changes=changes)
        self._machines.update_row(await self._database.write(operation))
        raise _Refusal("disabled", _TWO_PROGRAMS)

    async def _attach(self, socket: WebSocket, message: Hello) -> LinkedMachine:
        machine_id, hidden = message.machine_id, ("type", "secret", "held", "instance")
        facts = {key: value for key, value in to_wire(message).items() if key not in hidden}
        operation = partial(
            hello, machine_id=machine_id, instance=message.instance, facts=facts, now_us=self._clocks.now().us
        )
        row = await self._database.write(operation)
        machine = self._machines.update_row(row)
        held = {one.attempt for one in await self._reports.genuine(machine, message.held)}
        offsets = await asyncio.to_thread(lambda: {number: self._logs.size(number) for number in held})
        machine.facts, machine.full, machine.load = facts, message.full, {}
        connection = self._connect(socket, machine, message.instance, last_seq=row.last_seq)
        self._checks.lost(machine_id)
        kept, again, lost = self._reconcile(machine_id, held)
        resumed = {str(number): offsets[number] for number in kept}
        connection.send(link.Welcome(min(message.protocol, PROTOCOL), tuple(kept), row.last_seq, resumed))
        for number in held:
            connection.knows(number)
        machine.offer({offer.name: offer.version for offer in message.engines}, message.slots)
        there = (one for one in self._memory.attempts_on(machine_id) if one.attempt_id not in lost)
        machine.occupied = {one.attempt_id: one.needs for one in there}
        machine.link = self._open[machine_id] = connection
        self._machines.heard(machine)
        self._machines.note(machine)
        self._files.remove_unheld(machine_id, {*held, *machine.occupied})
        _log.info("A machine is linked", machine_id=machine_id, name=machine.name, kept=len(kept), lost=len(lost))
        try:
            await self._reports.end({**lost, **await self._send_again(connection, again)})
        except BaseException:
            connection.ended.set()
            self._detach(connection)
            raise
        self._background.wake()
        return connection

    def _reconcile(
        self, machine_id: int, held: Collection[int]
    ) -> tuple[list[int], list[LiveAttempt], dict[int, Ending]]:
        """Our live attempts against those that the machine holds: those that go on, those that never
        arrived, and those that it lost."""
        kept, again, lost = [], [], {}
        for attempt in self._memory.attempts_on(machine_id):
            if attempt.attempt_id in held:
                kept.append(attempt.attempt_id)
            elif attempt.running:
                lost[attempt.attempt_id] = Ending(Outcome.LOST, reason="its machine does not know it any more")
            elif attempt.leased:
                again.append(attempt)
        return kept, again, lost

    async def _send_again(self, connection: LinkedMachine, attempts: Sequence[LiveAttempt]) -> dict[int, Ending]:
        """Send what never arrived; gives what can't be sent."""
        broken: dict[int, Ending] = {}
        for attempt in attempts:
            try:
                order = await self._reports.order_of(attempt.attempt_id)
            except InvalidRequest as error:
                broken[attempt.attempt_id] = Ending(Outcome.FAILED, "command", error.message)
                self._machines.release(attempt.machine_id, attempt.attempt_id)
                continue
            if order is not None and attempt.attempt_id in self._memory.attempts:
                connection.assign(order)
        return broken

    def _detach(self, connection: LinkedMachine) -> None:
        machine = connection.machine
        if self._open.get(machine.machine_id) is connection:
            del self._open[machine.machine_id]
        if machine.link is connection:
            machine.link = None
            self._checks.lost(machine.machine_id)
            self._machines.note(machine)


def _check_protocol(message: Hello) -> None:
    """N and N-1 understand each other; others are told what to install (R5.6 Protocol versions)."""
    if message.protocol in (PROTOCOL, PROTOCOL - 1) and message.protocol > 0:
        return
    side = "this machine's" if message.protocol < PROTOCOL else "the farm's"
    speaks = f"The machine speaks protocol {message.protocol}, the farm {PROTOCOL}."
    advice = f"Update {side} RenderOnline: pip install --upgrade renderonline."
    raise _Refusal("protocol", f"{speaks} {advice}", final=True)


async def receive(socket: WebSocket) -> str | None:
    """The next message as text; None when the other side has gone or sends what nobody may send."""
    try:
        message = await socket.receive()
    except (WebSocketDisconnect, RuntimeError):
        return None
    text = message.get("text")
    if message["type"] != "websocket.receive" or text is None:
        return None
    if len(text) > MAX_MESSAGE:
        await close_quietly(socket, status.WS_1009_MESSAGE_TOO_BIG, "the message is too large")
        return None
    return str(text)


async def close_quietly(socket: WebSocket, code: int, reason: str) -> None:
    """Close; a socket that is gone already is closed enough."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
        await socket.close(code, reason[:100])
