"""RenderAPI's end of the link to a linked machine, which dials us with one WebSocket (R5 Attempts and reports,
`docs/reference/link.md`).

A link begins with its greeting (`greeting`). From then on it reads, applies and writes in tasks of its own. A machine
that reads slowly or talks too much holds up nobody else: what waits to be sent and what waits to be applied is bounded,
and log lines have a budget of their own, so that they never delay a report (R5.3 Progress and logs).
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Final

import structlog
from msgspec.structs import replace
from starlette import status
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from renderonline.farm.errors import InvalidRequest, RenderOnlineError
from renderonline.farm.machines import check_cards
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.protocol import link
from renderonline.protocol.link import (
    LONGEST_TEXT,
    decode_frame,
    encode,
    frames,
    to_wire,
)
from renderonline.renderapi.connected_machines import REJECTED_S, Machine, Machines
from renderonline.renderapi.memory import Announcements, BackgroundWork, Clocks, Memory
from renderonline.renderapi.orders import Order
from renderonline.renderapi.reports import Checks, Reports
from renderonline.storage.attempt_logs import AttemptLogs

_log = structlog.get_logger(__name__)

MAX_MESSAGE: Final = 1024 * 1024
"""Characters of one message; whoever sends more is cut off."""
MAX_APPLIED: Final = 256
"""Reports that are applied in one transaction."""
MAX_UNAPPLIED: Final = 4096
"""Reports that may wait; then nothing is read until some are applied."""
ACK_S: Final = 0.02
"""An acknowledgement waits this long for something to travel with, such as the next assignment."""
MAX_UNSENT: Final = 8192
"""Messages that may wait for a machine that does not read."""
MAX_LOG: Final = 4 * 1024 * 1024
"""Characters of log lines that may wait for the disk; more are left out."""
_PIECE_COST: Final = 256
"""What a piece of a log takes in memory besides its characters, about."""
_RECENT: Final = 4096
REPORTS: Final = (link.Started, link.Result, link.Exited)


class LinkedMachine:
    """An open link; the machine's `MachineLink`. `last_seq`: the last report of the instance that was applied; `ended`
    is set when nothing of this link is applied or written any more."""

    def __init__(
        self,
        socket: WebSocket,
        machine: Machine,
        instance: str,
        *,
        protocol: int,
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
        self._socket, self._protocol = socket, protocol
        self._read_seq = self._applied_seq = last_seq
        self._unsent: deque[link.FromRenderAPI] = deque()
        self._unapplied: asyncio.Queue[link.Report] = asyncio.Queue(MAX_UNAPPLIED)
        self._queued = self._begun = 0  # reports that go through the queue, and those that are written without it
        self._log_lines: list[link.Log] = []
        self._log_size = 0
        self._quiet_until = 0.0
        self._attempts: OrderedDict[int, None] = OrderedDict()
        self._to_send, self._to_log, self._closed = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._none_begun = asyncio.Event()
        self._none_begun.set()
        self._ack: asyncio.TimerHandle | None = None
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
            await self._none_begun.wait()
            if self._ack is not None:
                self._ack.cancel()
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
                messages = decode_frame(text, link.FromMachine)
                for message in messages:
                    if not isinstance(message, REPORTS):
                        self._take(message)
                if reports := [message for message in messages if isinstance(message, REPORTS)]:
                    await self._take_reports(reports)
            except InvalidRequest as error:
                self.close(error.message[:100], status.WS_1002_PROTOCOL_ERROR)
                return

    def _take(self, message: object) -> None:
        if isinstance(message, link.Progress):
            self._take_progress(message)
        elif isinstance(message, link.Log):
            self._take_log(message)
        elif isinstance(message, link.Heartbeat):
            self._take_heartbeat(message)
        else:
            raise InvalidRequest("A link has one hello.")

    async def _take_reports(self, reports: Sequence[link.Report]) -> None:
        """Reports without files are written at once, with those of other machines; the others, and what comes behind
        them, wait for their turn."""
        new = []
        for report in reports:
            if report.seq > self._read_seq:
                self._read_seq = report.seq
                new.append(report)
        if len(new) < len(reports) and reports[0].seq <= self._applied_seq:
            self.send(link.Ack(self._applied_seq))  # sent again; what is applied is acknowledged again
        if new and not self._begin(new):
            for report in new:
                self._queued += 1
                await self._unapplied.put(report)

    def _begin(self, reports: Sequence[link.Report]) -> bool:
        """Begin to apply these without a turn of their own; False when they must have one."""
        if self._queued or self._begun >= MAX_UNAPPLIED or self._closed.is_set():
            return False
        then = partial(self._begun_applied, len(reports), reports[-1].seq)
        if not self._reports.begin(self.machine, self.instance, reports, then):
            return False
        self._begun += len(reports)
        self._none_begun.clear()
        return True

    def _begun_applied(self, count: int, seq: int, error: Exception | None) -> None:
        self._begun -= count
        if not self._begun:
            self._none_begun.set()
        if error is None:
            self._applied(seq)
            return
        self._background.gave_up()
        self._not_applied(error)

    def _applied(self, seq: int) -> None:
        self._applied_seq = seq
        if self._ack is None and not self._closed.is_set():
            self._ack = asyncio.get_running_loop().call_later(ACK_S, self._to_send.set)

    def _not_applied(self, error: Exception) -> None:
        if isinstance(error, RenderOnlineError):
            self.close(error.message[:100], status.WS_1013_TRY_AGAIN_LATER)
        else:
            _log.error("Reports could not be applied", machine_id=self.machine.machine_id, exc_info=error)
            self.close("the link broke")

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
            await self._none_begun.wait()  # what came before is written before
            if self._closed.is_set():
                return
            try:
                await self._finish(self._apply_batch(batch))  # memory must follow what is committed
            except Exception as error:  # noqa: BLE001 (logged there)
                self._not_applied(error)
                return
            self._queued -= len(batch)
            self._applied(batch[-1].seq)

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
        await self._to_send.wait()
        if not await self._sent(encode(self._unsent.popleft())):  # the welcome is a frame of its own
            return
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._unsent or self._ack is not None:
                messages, self._unsent = self._unsent, deque()
                if self._ack is not None:
                    self._ack.cancel()
                    self._ack = None
                    messages.append(link.Ack(self._applied_seq))
                acks = [place for place, message in enumerate(messages) if isinstance(message, link.Ack)]
                said = set(acks[:-1])  # the last one says more
                texts = (encode(message) for place, message in enumerate(messages) if place not in said)
                for frame in frames(texts, self._protocol):
                    if not await self._sent(frame):
                        return

    async def _sent(self, frame: str) -> bool:
        try:
            await self._socket.send_text(frame)
        except (WebSocketDisconnect, RuntimeError, OSError):
            self.close("the machine went away")
            return False
        return True

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
