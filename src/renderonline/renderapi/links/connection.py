"""One open link of a machine: it reads, applies and writes in tasks of its own.

A machine that reads slowly or talks too much holds up nobody else: what waits to be sent and what waits to be applied
is bounded, and log lines have a budget of their own, so that they never delay a report (R5.3).
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, Final, Protocol

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from renderonline.farm.errors import InvalidRequest, RenderOnlineError
from renderonline.protocol.codec import decode, encode
from renderonline.protocol.link import (
    Ack,
    Cancel,
    Exited,
    FromMachine,
    FromRenderAPI,
    Heartbeat,
    Log,
    Progress,
    Report,
    Result,
    Started,
)
from renderonline.renderapi.machines import Machine
from renderonline.renderapi.orders import Order
from renderonline.storage.logs import AttemptLogs

_log = structlog.get_logger(__name__)

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
_RECENT: Final = 4096

GOING_AWAY: Final = 1001
PROTOCOL_ERROR: Final = 1002
TOO_BIG: Final = 1009
TRY_AGAIN: Final = 1013


class Events(Protocol):
    """What an open link tells: the rest of the dispatcher, in four words."""

    def reported(self, machine: Machine, instance: str, reports: list[Report]) -> Coroutine[Any, Any, None]:
        """Apply reports; comes back after the commit."""

    def heard(self, machine: Machine) -> None:
        """Something was read."""

    def progressed(self, machine: Machine, progress: Progress) -> None:
        """An attempt came further."""

    def beat(self, machine: Machine, heartbeat: Heartbeat) -> None:
        """The machine says how it is."""


class Connection:
    """An open link; the machine's `MachineLink`. `last_seq`: the last report of the instance that was applied."""

    def __init__(
        self, socket: WebSocket, machine: Machine, instance: str, events: Events, logs: AttemptLogs, *, last_seq: int
    ) -> None:
        self.machine = machine
        self.instance = instance
        self.ended = asyncio.Event()
        """Set when nothing of this link is applied any more."""
        self._socket = socket
        self._events = events
        self._logs = logs
        self._read_seq = self._applied_seq = last_seq
        self._unsent: deque[FromRenderAPI] = deque()
        self._unapplied: deque[Report] = deque()
        self._log_lines: deque[Log] = deque()
        self._log_size = 0
        self._attempts: OrderedDict[int, None] = OrderedDict()
        self._to_send, self._to_apply, self._to_log = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room = asyncio.Event()
        self._applying: asyncio.Task[None] | None = None
        self._closed = asyncio.Event()
        self._end = (GOING_AWAY, "")

    # -- the machine's link

    def assign(self, order: Order) -> None:
        """Send an order."""
        self.knows(order.assign.attempt)
        self.send(order.assign)

    def cancel(self, attempt_id: int, reason: str) -> None:
        """Send a cancel."""
        self.send(Cancel(attempt_id, reason))

    def close(self, reason: str, code: int = GOING_AWAY) -> None:
        """End the link; the machine may dial again."""
        if not self._closed.is_set():
            self._end = (code, reason)
            self._closed.set()

    def knows(self, attempt_id: int) -> None:
        """The machine may send this attempt's log, also a while after its end."""
        self._attempts[attempt_id] = None
        if len(self._attempts) > _RECENT:
            self._attempts.popitem(last=False)

    def send(self, message: FromRenderAPI) -> None:
        """Send when the machine reads; one that does not read is cut off."""
        self._unsent.append(message)
        self._to_send.set()
        if len(self._unsent) > MAX_UNSENT:
            self.close("the machine does not read", TRY_AGAIN)

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
            if self._applying is not None:
                await asyncio.gather(self._applying, return_exceptions=True)
            self.ended.set()
            for result in results:
                if isinstance(result, Exception):
                    _log.error("A link failed", machine_id=self.machine.machine_id, exc_info=result)
        code, reason = self._end
        _log.info("A machine's link ended", machine_id=self.machine.machine_id, reason=reason)
        if self._socket.application_state is WebSocketState.CONNECTED:
            await _quietly(self._socket, code, reason)

    # -- reading

    async def _read(self) -> None:
        while not self._closed.is_set():
            message = await receive(self._socket)
            if message is None:
                self.close("the machine closed it")
                return
            self._events.heard(self.machine)
            try:
                self._take(message)
            except InvalidRequest as error:
                self.close(error.message[:100], PROTOCOL_ERROR)
                return
            while len(self._unapplied) > MAX_UNAPPLIED:
                self._room.clear()
                await self._room.wait()

    def _take(self, text: str) -> None:
        message = decode(text, FromMachine)
        if isinstance(message, (Started, Result, Exited)):
            self._take_report(message)
        elif isinstance(message, Progress):
            self._events.progressed(self.machine, message)
        elif isinstance(message, Log):
            self._take_log(message)
        elif isinstance(message, Heartbeat):
            self._events.beat(self.machine, message)
        else:
            raise InvalidRequest("A link has one hello.")

    def _take_report(self, report: Report) -> None:
        if report.seq <= self._read_seq:  # sent again; what is applied is acknowledged again
            if report.seq <= self._applied_seq:
                self.send(Ack(self._applied_seq))
            return
        self._read_seq = report.seq
        self._unapplied.append(report)
        self._to_apply.set()

    # -- applying

    async def _apply(self) -> None:
        while True:
            await self._to_apply.wait()
            self._to_apply.clear()
            while self._unapplied:
                count = min(len(self._unapplied), MAX_APPLIED)
                batch = [self._unapplied.popleft() for _ in range(count)]
                # Once begun it is seen through: memory must follow what is committed.
                self._applying = asyncio.create_task(self._events.reported(self.machine, self.instance, batch))
                try:
                    await asyncio.shield(self._applying)
                except RenderOnlineError as error:
                    self.close(error.message[:100], TRY_AGAIN)
                    return
                self._applied_seq = batch[-1].seq
                self.send(Ack(self._applied_seq))
                self._room.set()

    # -- writing

    async def _write(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._unsent:
                message = self._unsent.popleft()
                if isinstance(message, Ack) and self._unsent and isinstance(self._unsent[0], Ack):
                    continue  # the next one says more
                try:
                    await self._socket.send_text(encode(message))
                except (WebSocketDisconnect, RuntimeError, OSError):
                    self.close("the machine went away")
                    return

    # -- logs

    def _take_log(self, line: Log) -> None:
        if line.attempt not in self._attempts or not 0 <= line.offset < 2**53:
            return
        if self._log_size > MAX_LOG:
            return
        self._log_size += len(line.text)
        self._log_lines.append(line)
        self._to_log.set()

    async def _write_logs(self) -> None:
        while True:
            await self._to_log.wait()
            self._to_log.clear()
            lines, self._log_lines, self._log_size = list(self._log_lines), deque(), 0
            try:
                await asyncio.to_thread(write_logs, self._logs, lines)
            except OSError as error:
                _log.warning("Logs of attempts can't be written", error=str(error))


def write_logs(logs: AttemptLogs, lines: list[Log]) -> None:
    """Append log lines; neighbours in one go. Blocks."""
    joined: list[tuple[int, int, bytearray]] = []
    for line in lines:
        data = bytearray(line.text.encode())
        if joined and joined[-1][0] == line.attempt and joined[-1][1] + len(joined[-1][2]) == line.offset:
            joined[-1][2].extend(data)
        else:
            joined.append((line.attempt, line.offset, data))
    for attempt_id, offset, content in joined:
        logs.append(attempt_id, offset, bytes(content))


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
        await _quietly(socket, TOO_BIG, "the message is too large")
        return None
    return str(text)


async def _quietly(socket: WebSocket, code: int, reason: str) -> None:
    try:
        await socket.close(code, reason[:100])
    except (WebSocketDisconnect, RuntimeError, OSError):
        return


def clean_progress(progress: Progress) -> Progress:
    """Progress as it may be shown, whatever a machine says."""
    remaining = progress.remaining_s
    return replace(
        progress,
        fraction=min(max(progress.fraction, 0.0), 1.0),
        remaining_s=remaining if remaining is not None and 0 <= remaining < 1e9 else None,
        message=progress.message[:500],
    )
