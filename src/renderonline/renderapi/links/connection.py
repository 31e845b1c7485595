"""One open link of a machine: it reads, applies and writes in tasks of its own.

A machine that reads slowly or talks too much holds up nobody else: what waits to be sent and what waits to be applied
is bounded, and log lines have a budget of their own, so that they never delay a report (R5.3).
"""

import asyncio
import contextlib
from collections import OrderedDict, deque
from dataclasses import asdict, replace
from typing import Final

import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from renderonline.farm.errors import InvalidRequest, RenderOnlineError
from renderonline.protocol import link
from renderonline.protocol.codec import decode, encode
from renderonline.renderapi.machines import Machine
from renderonline.renderapi.orders import Order
from renderonline.renderapi.reports import Reports
from renderonline.renderapi.shared import Shared
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


class Connection:
    """An open link; the machine's `MachineLink`. `last_seq`: the last report of the instance that was applied; `ended`
    is set when nothing of this link is applied any more."""

    def __init__(
        self, shared: Shared, reports: Reports, socket: WebSocket, machine: Machine, instance: str, *, last_seq: int
    ) -> None:
        self.machine = machine
        self.instance = instance
        self.ended = asyncio.Event()
        self._shared = shared
        self._reports = reports
        self._socket = socket
        self._read_seq = self._applied_seq = last_seq
        self._unsent: deque[link.FromRenderAPI] = deque()
        self._unapplied: deque[link.Report] = deque()
        self._log_lines: list[link.Log] = []
        self._log_size = 0
        self._attempts: OrderedDict[int, None] = OrderedDict()
        self._to_send, self._to_apply, self._to_log = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room, self._closed = asyncio.Event(), asyncio.Event()
        self._applying: asyncio.Task[None] | None = None
        self._end = (GOING_AWAY, "")

    def assign(self, order: Order) -> None:
        self.knows(order.assign.attempt)
        self.send(order.assign)

    def cancel(self, attempt_id: int, reason: str) -> None:
        self.send(link.Cancel(attempt_id, reason))

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

    def send(self, message: link.FromRenderAPI) -> None:
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
            await close_quietly(self._socket, code, reason)

    async def _read(self) -> None:
        while not self._closed.is_set():
            text = await receive(self._socket)
            if text is None:
                self.close("the machine closed it")
                return
            self._shared.heard(self.machine)
            try:
                self._take(decode(text, link.FromMachine))
            except InvalidRequest as error:
                self.close(error.message[:100], PROTOCOL_ERROR)
                return
            while len(self._unapplied) > MAX_UNAPPLIED:
                self._room.clear()
                await self._room.wait()

    def _take(self, message: object) -> None:
        if isinstance(message, (link.Started, link.Result, link.Exited)):
            self._take_report(message)
        elif isinstance(message, link.Progress):
            self._take_progress(message)
        elif isinstance(message, link.Log):
            self._take_log(message)
        elif isinstance(message, link.Heartbeat):
            self._take_heartbeat(message)
        else:
            raise InvalidRequest("A link has one hello.")

    def _take_report(self, report: link.Report) -> None:
        if report.seq > self._read_seq:
            self._read_seq = report.seq
            self._unapplied.append(report)
            self._to_apply.set()
        elif report.seq <= self._applied_seq:  # sent again; what is applied is acknowledged again
            self.send(link.Ack(self._applied_seq))

    def _take_progress(self, progress: link.Progress) -> None:
        """Keep the newest progress of a live attempt of this machine (R5.3), as it may be shown."""
        attempt = self._shared.memory.attempts.get(progress.attempt)
        if attempt is None or attempt.machine_id != self.machine.machine_id:
            return
        remaining = progress.remaining_s
        attempt.progress = replace(
            progress,
            fraction=min(max(progress.fraction, 0.0), 1.0),
            remaining_s=remaining if remaining is not None and 0 <= remaining < 1e9 else None,
            message=progress.message[:500],
        )
        self._shared.announcer.progress(attempt, attempt.progress, self._shared.clock.monotonic())

    def _take_heartbeat(self, heartbeat: link.Heartbeat) -> None:
        """Note load and whether the machine can still write."""
        self.machine.load = asdict(heartbeat)
        if self.machine.full != heartbeat.full:
            self.machine.full = heartbeat.full[:255]
            self._shared.machines.note(self.machine)
            self._shared.wake()

    def _take_log(self, line: link.Log) -> None:
        if line.attempt in self._attempts and 0 <= line.offset < 2**53 and self._log_size <= MAX_LOG:
            self._log_size += len(line.text)
            self._log_lines.append(line)
            self._to_log.set()

    async def _apply(self) -> None:
        while True:
            await self._to_apply.wait()
            self._to_apply.clear()
            while self._unapplied:
                count = min(len(self._unapplied), MAX_APPLIED)
                batch = [self._unapplied.popleft() for _ in range(count)]
                # Once begun it is seen through: memory must follow what is committed.
                self._applying = asyncio.create_task(self._apply_batch(batch))
                try:
                    await asyncio.shield(self._applying)
                except RenderOnlineError as error:
                    self.close(error.message[:100], TRY_AGAIN)
                    return
                self._applied_seq = batch[-1].seq
                self.send(link.Ack(self._applied_seq))
                self._room.set()

    async def _apply_batch(self, batch: list[link.Report]) -> None:
        try:
            await self._reports.apply(self.machine, self.instance, batch)
        except Exception:
            self._shared.gave_up()
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
                await asyncio.to_thread(write_logs, self._shared.logs, lines)
            except OSError as error:
                _log.warning("Logs of attempts can't be written", error=str(error))


def write_logs(logs: AttemptLogs, lines: list[link.Log]) -> None:
    """Append log lines; neighbours in one go. Blocks."""
    joined: list[tuple[int, int, bytearray]] = []
    for line in lines:
        data = line.text.encode()
        if joined and joined[-1][0] == line.attempt and joined[-1][1] + len(joined[-1][2]) == line.offset:
            joined[-1][2].extend(data)
        else:
            joined.append((line.attempt, line.offset, bytearray(data)))
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
        await close_quietly(socket, TOO_BIG, "the message is too large")
        return None
    return str(text)


async def close_quietly(socket: WebSocket, code: int, reason: str) -> None:
    """Close; a socket that is gone already is closed enough."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError, OSError):
        await socket.close(code, reason[:100])
