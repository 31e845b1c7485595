"""The machine's end of the link: one WebSocket that it dials and dials again (R5, `docs/reference/link.md`).

Reports go first, then progress and heartbeats, then log lines within a budget, so that a talkative engine never delays
a report. What was sent and not acknowledged is sent again.
"""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Final

import orjson
import structlog
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from renderonline.farm.errors import InvalidRequest, NotAllowed, NotAvailable
from renderonline.hpcserver.enrolment import Identity
from renderonline.hpcserver.journal import Journal
from renderonline.hpcserver.log_pump import LogPump
from renderonline.hpcserver.runner import Runner
from renderonline.hpcserver.telemetry import Load
from renderonline.protocol.codec import decode, encode
from renderonline.protocol.link import (
    HEARTBEAT_S,
    Ack,
    Assign,
    Cancel,
    Drain,
    FromRenderAPI,
    Heartbeat,
    Hello,
    Progress,
    Refused,
    Welcome,
)

log = structlog.get_logger(__name__)

MAX_MESSAGE: Final = 16 * 1024 * 1024
OPEN_S: Final = 15.0
WELCOME_S: Final = 30.0
PING_S: Final = 10.0
PONG_S: Final = 20.0
BACKOFF_S: Final = 0.25
MAX_BACKOFF_S: Final = 30.0
PROGRESS_S: Final = 0.25
"""Progress of all attempts travels at most so often."""
RESEND_S: Final = 30.0
"""Reports that RenderAPI has not acknowledged for so long are sent again on the same link."""


class MachineRefused(NotAllowed):
    """RenderAPI will never take this machine as it is; dialling again would not help."""

    code = "machine_refused"


class Link:
    """Keeps the machine linked until `run` is canceled or RenderAPI refuses it for good."""

    def __init__(
        self,
        identity: Identity,
        *,
        hello: Callable[[], Hello],
        load: Callable[[], Load],
        runner: Runner,
        journal: Journal,
        on_welcome: Callable[[], None],
    ) -> None:
        self._identity = identity
        self._hello = hello
        self._load = load
        self._runner = runner
        self._journal = journal
        self._on_welcome = on_welcome
        self._news = asyncio.Event()
        self._progress: dict[int, Progress] = {}
        self._failures = 0
        self._beat_at = 0.0
        self.linked = False
        """Whether RenderAPI has welcomed this machine on a link that is open."""
        self.exit_wanted = asyncio.Event()
        """Set when RenderAPI wants the program to end after its running attempts."""
        journal.on_report(self._news.set)
        runner.on_progress(self._take_progress)

    async def run(self) -> None:
        """Dial, serve, dial again; raises `MachineRefused` when that is final."""
        while True:
            try:
                await self._serve()
                reason = "closed by RenderAPI"
            except (OSError, WebSocketException, NotAvailable, TimeoutError) as error:
                reason = _reason(error)
            delay = random.uniform(0.5, 1.0) * min(MAX_BACKOFF_S, BACKOFF_S * 2**self._failures)  # noqa: S311
            self._failures = min(self._failures + 1, 10)
            log.warning("not linked, dialling again", url=self._identity.url, reason=reason, seconds=round(delay, 1))
            await asyncio.sleep(delay)

    def nudge(self) -> None:
        """Tell RenderAPI at once how this machine is."""
        self._beat_at = 0.0
        self._news.set()

    async def _serve(self) -> None:
        tls = self._identity.tls()
        async with connect(
            self._identity.link_url,
            ssl=tls,
            compression=None,
            max_size=MAX_MESSAGE,
            open_timeout=OPEN_S,
            ping_interval=PING_S,
            ping_timeout=PONG_S,
            close_timeout=2.0,
            proxy=None,
        ) as socket:
            if tls is not None:
                self._identity.check_peer(socket.transport.get_extra_info("ssl_object").getpeercert(binary_form=True))
            welcome = await self._greet(socket)
            self._failures = 0
            sender = asyncio.create_task(self._send_all(socket, welcome))
            try:
                self.linked = True
                await self._receive(socket, sender)
            finally:
                self.linked = False
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    async def _greet(self, socket: ClientConnection) -> Welcome:
        await socket.send(encode(self._hello()))
        answer = decode(await asyncio.wait_for(socket.recv(), WELCOME_S), (Welcome, Refused))
        if isinstance(answer, Refused):
            raise _refusal(answer)
        assert isinstance(answer, Welcome)
        self._runner.resume()
        self._runner.keep_only(frozenset(answer.keep))
        self._journal.acknowledge(answer.last_seq)
        log.info("linked", url=self._identity.url, machine_id=self._identity.machine_id)
        self._on_welcome()
        return answer

    # -- from RenderAPI

    async def _receive(self, socket: ClientConnection, sender: "asyncio.Task[None]") -> None:
        sender.add_done_callback(lambda _: asyncio.ensure_future(socket.close()))
        async for text in socket:
            try:
                message = decode(text, FromRenderAPI)
            except InvalidRequest as error:
                self._refuse_unreadable(text, error)
                continue
            self._act(message)
        if sender.done():
            sender.result()  # why sending ended is why the link ended

    def _act(self, message: object) -> None:
        match message:
            case Assign():
                self._runner.assign(message)
            case Ack():
                self._journal.acknowledge(message.seq)
            case Cancel():
                self._runner.cancel(message.attempt, message.reason)
            case Drain():
                self._runner.drain("RenderAPI wants it to take nothing new.")
                if message.exit:
                    self.exit_wanted.set()
            case Refused():
                raise _refusal(message)
            case _:
                log.warning("unexpected message", type=type(message).__name__)

    def _refuse_unreadable(self, text: str | bytes, error: InvalidRequest) -> None:
        """An assignment that can't be understood is given back; anything else unknown is ignored."""
        log.error("a message can't be understood", reason=str(error))
        try:
            content = orjson.loads(text)
            attempt, token = int(content["attempt"]), str(content["token"])
        except (ValueError, KeyError, TypeError):
            return
        if content.get("type") == Assign.type:
            self._runner.refuse(attempt, token, f"The assignment can't be understood: {error}")

    # -- to RenderAPI

    def _take_progress(self, progress: Progress) -> None:
        self._progress[progress.attempt] = progress
        self._news.set()

    async def _send_all(self, socket: ClientConnection, welcome: Welcome) -> None:
        reports = _Reports(self._journal, socket)
        pump = LogPump(self._runner, welcome, self._journal)
        self._beat_at = progress_at = 0.0
        while True:
            self._news.clear()
            await reports.send(pump)
            now = time.monotonic()
            if now >= self._beat_at:
                await socket.send(encode(await self._heartbeat()))
                self._beat_at = now + HEARTBEAT_S
            if self._progress and now >= progress_at:
                progress_at = now + PROGRESS_S
                await self._send_progress(socket)
            piece = pump.take(now)
            if piece is not None:
                await socket.send(encode(piece))
                continue
            waits = [self._beat_at - now, pump.patience(now)]
            if self._progress:
                waits.append(progress_at - now)
            await self._wait(max(0.0, min(waits)), only_reports=bool(self._progress))

    async def _wait(self, seconds: float, *, only_reports: bool) -> None:
        """Wait for news; progress that has to wait its turn anyway is no news."""
        deadline = time.monotonic() + seconds
        seen = self._journal.last_seq
        while (left := deadline - time.monotonic()) > 0:
            try:
                await asyncio.wait_for(self._news.wait(), left)
            except TimeoutError:
                return
            if not only_reports or self._journal.last_seq != seen or self._beat_at == 0.0:
                return
            self._news.clear()

    async def _send_progress(self, socket: ClientConnection) -> None:
        newest, self._progress = self._progress, {}
        for attempt, progress in newest.items():
            if self._runner.is_live(attempt):
                await socket.send(encode(progress))

    async def _heartbeat(self) -> Heartbeat:
        load = await asyncio.to_thread(self._load)
        return Heartbeat(load.load, load.memory_free_mib, load.disk_free_mib, self._runner.full)


class _Reports:
    """What of the outbox was sent over this link."""

    def __init__(self, journal: Journal, socket: ClientConnection) -> None:
        self._journal = journal
        self._socket = socket
        self._sent = journal.acknowledged
        self._acknowledged = journal.acknowledged
        self._moved_at = time.monotonic()

    async def send(self, pump: LogPump) -> None:
        """Send everything that is on disk and was not sent yet."""
        self._rewind()
        while entries := await self._journal.after(self._sent):
            for seq, body in entries:
                report: dict[str, Any] = orjson.loads(body)
                if report["type"] == "exited":
                    for piece in pump.finish(report["attempt"]):
                        await self._socket.send(encode(piece))
                report["seq"] = seq
                await self._socket.send(orjson.dumps(report).decode())
                self._sent = seq

    def _rewind(self) -> None:
        """Send again what was not acknowledged in time: RenderAPI gave up its batch (R3.2)."""
        now = time.monotonic()
        acknowledged = self._journal.acknowledged
        if acknowledged != self._acknowledged or acknowledged == self._sent:
            self._acknowledged, self._moved_at = acknowledged, now
        elif now - self._moved_at > RESEND_S:
            log.warning("reports are sent again", after=acknowledged, up_to=self._sent)
            self._sent, self._moved_at = acknowledged, now


def _refusal(refused: Refused) -> Exception:
    return MachineRefused(refused.message) if refused.final else NotAvailable(refused.message, code=refused.code)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "RenderAPI does not answer"
    if isinstance(error, InvalidHandshake):
        return f"RenderAPI refused the connection: {error}"
    return str(error) or type(error).__name__
