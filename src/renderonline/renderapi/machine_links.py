"""RenderAPI's end of the link to a linked machine, which dials us with one WebSocket (R5 Attempts and reports,
`docs/reference/link.md`).

A link begins with its greeting (`greeting`). From then on its messages are taken as they arrive. Reports with files and
log lines wait for tasks of their own, which are there only while something waits: a link that says nothing costs memory
for one object. A machine that reads slowly or talks too much holds up nobody else: what waits to be sent and what waits
to be applied is bounded, and log lines have a budget of their own, so that they never delay a report (R5.3 Progress and
logs).
"""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final, Protocol

import structlog
from msgspec.structs import replace
from starlette import status

from renderonline.farm.errors import InvalidRequest, RenderOnlineError
from renderonline.farm.machines import check_cards
from renderonline.farm.settling import Ending
from renderonline.farm.tasks import Outcome
from renderonline.protocol import link
from renderonline.protocol.link import LONGEST_TEXT, MOST_IN_FRAME, decode_frame, encode, frames, to_wire
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


class Socket(Protocol):
    """A machine's connection (`message_sockets.MessageSocket`). `is_writable`: whether what is sent now leaves soon."""

    is_writable: bool

    def send(self, text: str) -> None:
        """Send a message; dropped when the connection ends anyway."""

    def close(self, code: int, reason: str) -> None:
        """Say why, and end the connection."""

    def pause(self) -> None:
        """Read nothing until `resume`."""

    def resume(self) -> None:
        """Read on."""


class LinkedMachine:
    """An open link; the machine's `MachineLink`, and what gets its messages. `last_seq`: the last report of the
    instance that was applied; `ended` is done when nothing of this link is applied or written any more."""

    __slots__ = (
        "_ack", "_announcements", "_applied_seq", "_applying", "_attempts", "_background", "_begun", "_checks",
        "_clocks", "_closed", "_end", "_log_lines", "_log_size", "_logging", "_logs", "_machines", "_memory",
        "_none_begun", "_protocol", "_queued", "_quiet_until", "_read_seq", "_reports", "_socket", "_unapplied",
        "_unsent", "_writing", "ended", "instance", "machine",
    )  # fmt: skip

    def __init__(
        self,
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
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._memory, self._machines, self._reports, self._checks = memory, machines, reports, checks
        self._background, self._clocks = background, clocks
        self._announcements, self._logs = announcements, logs
        self._socket: Socket | None = None
        self._protocol = protocol
        self._read_seq = self._applied_seq = last_seq
        self._unsent: list[link.FromRenderAPI] = []
        self._unapplied: list[link.Report] = []
        self._queued = self._begun = 0  # reports that go through the queue, and those that are written without it
        self._log_lines: list[link.Log] = []
        self._log_size = 0
        self._quiet_until = 0.0
        self._attempts: dict[int, None] = {}
        self._closed = False
        self._none_begun: asyncio.Future[None] | None = None
        self._ack: asyncio.TimerHandle | None = None
        self._writing: asyncio.Handle | None = None
        self._applying: asyncio.Task[None] | None = None
        self._logging: asyncio.Task[None] | None = None
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
        if not self._closed:
            self._closed, self._end = True, (code, reason)
            _ = self._background.keep(self._finish())

    def knows(self, attempt_id: int) -> None:
        """The machine may send this attempt's log, also a while after its end."""
        self._attempts[attempt_id] = None
        if len(self._attempts) > _RECENT:
            del self._attempts[next(iter(self._attempts))]

    def send(self, message: link.FromRenderAPI) -> None:
        """Send when the machine reads; one that does not read is cut off."""
        self._unsent.append(message)
        self.writable()
        if len(self._unsent) > MAX_UNSENT:
            self.close("the machine does not read", status.WS_1013_TRY_AGAIN_LATER)

    def serve(self, socket: Socket) -> None:
        """Begin to write to the machine's connection, whose messages come to `received`."""
        self._socket = socket
        if self._closed:
            socket.close(*self._end)
        socket.send(encode(self._unsent.pop(0)))  # the welcome is a frame of its own
        self.writable()

    async def _finish(self) -> None:
        if self._socket is not None:
            self._socket.close(*self._end)
        work = [task for task in (self._applying, self._logging) if task is not None]
        await asyncio.gather(*work, return_exceptions=True)
        await self._begun_ends()
        for handle in (self._ack, self._writing):
            if handle is not None:
                handle.cancel()
        _log.info("A machine's link ended", machine_id=self.machine.machine_id, reason=self._end[1])
        self.ended.set_result(None)

    def received(self, text: str) -> None:
        """Take what the machine says."""
        if self._closed:
            return
        if len(text) > MAX_MESSAGE:
            self.close("the message is too large", status.WS_1009_MESSAGE_TOO_BIG)
            return
        self._machines.heard(self.machine)
        try:
            messages = decode_frame(text, link.FromMachine)
            for message in messages:
                if not isinstance(message, REPORTS):
                    self._take(message)
            if reports := [message for message in messages if isinstance(message, REPORTS)]:
                self._take_reports(reports)
        except InvalidRequest as error:
            self.close(error.message[:100], status.WS_1002_PROTOCOL_ERROR)
        except Exception:  # noqa: BLE001 (logged; a fault of ours ends one link)
            _log.exception("A link failed", machine_id=self.machine.machine_id)
            self.close("the link broke")

    def lost(self) -> None:
        self.close("the machine closed it")

    def _take(self, message: object) -> None:
        if isinstance(message, link.Progress):
            self._take_progress(message)
        elif isinstance(message, link.Log):
            self._take_log(message)
        elif isinstance(message, link.Heartbeat):
            self._take_heartbeat(message)
        else:
            raise InvalidRequest("A link has one hello.")

    def _take_reports(self, reports: Sequence[link.Report]) -> None:
        """Reports without files are written at once, with those of other machines; the others, and what comes behind
        them, wait for their turn."""
        new = []
        for report in reports:
            if report.seq > self._read_seq:
                self._read_seq = report.seq
                new.append(report)
        if len(new) < len(reports) and reports[0].seq <= self._applied_seq:
            self.send(link.Ack(self._applied_seq))  # sent again; what is applied is acknowledged again
        if not new or self._closed or self._begin(new):
            return
        self._queued += len(new)
        self._unapplied += new
        if self._applying is None:
            self._applying = asyncio.create_task(self._apply())
        if self._socket is not None and len(self._unapplied) >= MAX_UNAPPLIED:
            self._socket.pause()

    def _begin(self, reports: Sequence[link.Report]) -> bool:
        """Begin to apply these without a turn of their own; False when they must have one."""
        if self._queued or self._begun >= MAX_UNAPPLIED:
            return False
        then = partial(self._begun_applied, len(reports), reports[-1].seq)
        if not self._reports.begin(self.machine, self.instance, reports, then):
            return False
        self._begun += len(reports)
        return True

    def _begun_applied(self, count: int, seq: int, error: Exception | None) -> None:
        self._begun -= count
        if not self._begun and self._none_begun is not None:
            self._none_begun.set_result(None)
            self._none_begun = None
        if error is None:
            self._applied(seq)
            return
        self._background.gave_up()
        self._not_applied(error)

    async def _begun_ends(self) -> None:
        """Wait until nothing that was begun is being written."""
        while self._begun:
            if self._none_begun is None:
                self._none_begun = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._none_begun)

    def _applied(self, seq: int) -> None:
        self._applied_seq = seq
        if self._ack is None and not self._closed:
            self._ack = asyncio.get_running_loop().call_later(ACK_S, self._write)

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
        before, full = self.machine.ability, heartbeat.full[:LONGEST_TEXT]
        if heartbeat.cards:
            check_cards(heartbeat.cards)
        self.machine.load = to_wire(heartbeat)
        if heartbeat.cards:
            self.machine.describe()
        if (self.machine.ability is not before and self.machine.ability != before) or self.machine.full != full:
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
            if self._logging is None:
                self._logging = asyncio.create_task(self._write_logs())

    async def _apply(self) -> None:
        try:
            while self._unapplied and not self._closed:
                await self._begun_ends()  # what came before is written before
                was_full = len(self._unapplied) >= MAX_UNAPPLIED
                batch = self._unapplied[:MAX_APPLIED]
                del self._unapplied[:MAX_APPLIED]
                await self._reports.apply(self.machine, self.instance, batch)
                self._queued -= len(batch)
                self._applied(batch[-1].seq)
                if self._socket is not None and was_full and len(self._unapplied) < MAX_UNAPPLIED:
                    self._socket.resume()
        except Exception as error:  # noqa: BLE001 (logged there)
            self._background.gave_up()
            self._not_applied(error)
        finally:
            self._applying = None

    def writable(self) -> None:
        """Write soon, with what else is sent meanwhile."""
        if self._writing is None and self._socket is not None:
            self._writing = asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._writing = None
        socket = self._socket
        while socket is not None and not self._closed and socket.is_writable and (self._unsent or self._ack):
            messages, self._unsent = self._unsent[:MOST_IN_FRAME], self._unsent[MOST_IN_FRAME:]
            if self._ack is not None and not self._unsent:
                self._ack.cancel()
                self._ack = None
                messages.append(link.Ack(self._applied_seq))
            acks = [place for place, message in enumerate(messages) if isinstance(message, link.Ack)]
            said = set(acks[:-1])  # the last one says more
            texts = (encode(message) for place, message in enumerate(messages) if place not in said)
            for frame in frames(texts, self._protocol):
                socket.send(frame)

    async def _write_logs(self) -> None:
        try:
            while self._log_lines and not self._closed:
                lines, self._log_lines, self._log_size = self._log_lines, [], 0
                try:
                    await asyncio.to_thread(self._logs.append_lines, lines)  # a log has one writer
                except OSError as error:
                    if self._clocks.monotonic() >= self._quiet_until:
                        self._quiet_until = self._clocks.monotonic() + REJECTED_S
                        _log.warning("Logs of attempts can't be written", name=self.machine.name, error=str(error))
        except Exception:  # noqa: BLE001 (logged; a fault of ours ends one link)
            _log.exception("A link failed", machine_id=self.machine.machine_id)
            self.close("the link broke")
        finally:
            self._logging = None
