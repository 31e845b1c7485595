"""The machine's end of the link: one WebSocket that it keeps open to RenderAPI (R5 Attempts and reports,
`docs/reference/link.md`).

Reports go first, then progress and heartbeats, then pieces of logs within a budget, so that an engine that prints much
never delays a report. What was sent and not acknowledged is sent again; logs resume at their offset.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from typing import Final, Protocol

import msgspec
import orjson
import structlog
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidHandshake, ProxyError, WebSocketException

from renderonline.farm.errors import InvalidRequest, NotAllowed, NotAvailable
from renderonline.hpcserver.runner import Runner
from renderonline.protocol import link as wire
from renderonline.protocol.link import decode, decode_frame, encode, frames

log = structlog.get_logger(__name__)

WELCOME_S: Final = 30.0
BACKOFF_S: Final = 0.25
MAX_BACKOFF_S: Final = 30.0
MAX_REFUSED_S: Final = 3.0
"""The longest pause while nobody listens there: dialing costs nothing then, and all machines are back within seconds
when RenderAPI is."""
PROGRESS_S: Final = 0.25
"""The shortest time between two sets of progress messages."""
RESEND_S: Final = 30.0
"""Reports that RenderAPI has not acknowledged within this time are sent again on the same link."""
LOG_PIECE: Final = 16 * 1024
"""Bytes of log that a report waits for at most."""
LOG_BURST: Final = 256 * 1024
LOG_BYTES_PER_S: Final = 512 * 1024
LOG_BEFORE_END: Final = 64 * 1024
"""Bytes of an attempt's log that are sent before its end is reported: the log of a short attempt is there with it."""
LOG_POLL_S: Final = 0.5


class MachineRefused(NotAllowed):
    """RenderAPI refuses this machine for good; connecting again would not help."""

    code = "machine_refused"


class FarmAddress(Protocol):
    """Where a machine finds its RenderAPI, and how it connects: `joining.Identity`. `url` may hold several addresses,
    separated by commas; `where` names the one address and the proxy in front of it, for messages."""

    @property
    def url(self) -> str: ...
    @property
    def where(self) -> str: ...
    @property
    def machine_id(self) -> int: ...
    def turns(self) -> "Iterator[FarmAddress]":
        """Each address by itself, again and again."""

    def dial(self) -> AbstractAsyncContextManager[ClientConnection]:
        """An open WebSocket to the one address. Raises OSError, `WebSocketException`, `NotAvailable`."""


@dataclass
class Link:
    """Keeps the machine linked until `run` is canceled or RenderAPI refuses it for good. `linked`: whether RenderAPI
    has welcomed this machine on a link that is open. `exit_wanted` is set when RenderAPI wants the program to end after
    its running attempts. `beat_at`: when the next heartbeat is due."""

    identity: FarmAddress
    hello: Callable[[], wire.Hello]
    load: Callable[[], wire.Heartbeat]
    runner: Runner
    on_welcome: Callable[[], None]
    heartbeat_s: float = wire.HEARTBEAT_S
    linked: bool = False
    exit_wanted: asyncio.Event = field(default_factory=asyncio.Event)
    beat_at: float = 0.0
    _failures: int = 0

    async def run(self) -> None:
        """Connect, serve, connect again. Raises `MachineRefused` when RenderAPI refuses this machine for good."""
        turns, count = self.identity.turns(), self.identity.url.count(",") + 1
        while True:
            identity, is_refused = next(turns), False
            try:
                await self._serve(identity)
                reason = "closed by RenderAPI"
            except TimeoutError:
                reason = "RenderAPI does not answer"
            except (OSError, WebSocketException, NotAvailable, InvalidRequest) as error:
                by_renderapi = isinstance(error, InvalidHandshake) and not isinstance(error, ProxyError)
                refused = "RenderAPI refused the connection: " if by_renderapi else ""
                reason = refused + (str(error) or type(error).__name__)
                is_refused = isinstance(error, ConnectionRefusedError)
            delay = seconds_to_next_dial(self._failures // count, is_refused=is_refused)
            self._failures = min(self._failures + 1, 10 * count)
            log.warning("not linked, trying again", url=identity.where, reason=reason, seconds=round(delay, 1))
            await asyncio.sleep(delay)

    def nudge(self) -> None:
        """Send the next heartbeat at once."""
        self.beat_at = 0.0
        self.runner.journal.news.set()

    async def _serve(self, identity: FarmAddress) -> None:
        async with identity.dial() as socket:
            welcome = await self._greet(socket, identity.url)
            self._failures = 0
            sender = asyncio.create_task(_Sender(self, socket, welcome).run())
            try:
                self.linked = True
                await self._receive(socket, sender)
            finally:
                self.linked = False
                sender.cancel()
                await asyncio.gather(sender, return_exceptions=True)

    async def _greet(self, socket: ClientConnection, url: str) -> wire.Welcome:
        full = (await asyncio.to_thread(self.load)).full
        await socket.send(encode(msgspec.structs.replace(self.hello(), full=full)))
        text = await asyncio.wait_for(socket.recv(), WELCOME_S)
        answer: wire.Welcome | wire.Refused = decode(text, wire.Welcome | wire.Refused)
        if isinstance(answer, wire.Refused):
            raise _refusal(answer)
        self.runner.draining = ""
        self.runner.keep_only(answer.keep)
        self.runner.journal.acknowledge(answer.last_seq)
        log.info("linked", url=url, machine_id=self.identity.machine_id)
        self.on_welcome()
        return answer

    async def _receive(self, socket: ClientConnection, sender: "asyncio.Task[None]") -> None:
        sender.add_done_callback(lambda _: asyncio.ensure_future(socket.close()))
        async for text in socket:
            self._take(str(text))
        if sender.done():
            sender.result()  # why sending ended is why the link ended

    def _take(self, text: str) -> None:
        try:
            messages = decode_frame(text, wire.FromRenderAPI)
        except InvalidRequest as error:
            self._refuse_unreadable(text, error)
            return
        for message in messages:
            self._act(message)

    def _act(self, message: object) -> None:
        match message:
            case wire.Assign():
                self.runner.assign(message)
            case wire.Ack():
                self.runner.journal.acknowledge(message.seq)
            case wire.Cancel():
                self.runner.cancel(message.attempt, message.reason)
            case wire.Drain():
                self.runner.draining = "RenderAPI wants it to take nothing new."
                self.runner.hand_back_waiting(self.runner.draining)
                self.nudge()
                if message.exit:
                    self.exit_wanted.set()
            case wire.Refused():
                raise _refusal(message)
            case _:
                log.warning("unexpected message", type=type(message).__name__)

    def _refuse_unreadable(self, text: str, error: InvalidRequest) -> None:
        """Hand back an assignment that can't be read; ignore any other message. Act on the readable ones of a list."""
        with suppress(ValueError):
            content = orjson.loads(text)
            if isinstance(content, list) and len(content) > 1:
                for item in content:
                    self._take(orjson.dumps(item).decode())
                return
        log.error("a message can't be understood", reason=str(error))
        with suppress(ValueError, KeyError, TypeError):
            if content["type"] == "assign":
                reason = f"The assignment can't be understood: {error}"
                self.runner.refuse(int(content["attempt"]), str(content["token"]), reason)


class _Sender:
    """Sends what one link carries, and knows which reports of the outbox it has sent."""

    def __init__(self, link: Link, socket: ClientConnection, welcome: wire.Welcome) -> None:
        self._link = link
        self._journal = link.runner.journal
        self._progress = link.runner.progress
        self._socket = socket
        self._protocol = welcome.protocol
        self._logs = _Logs(link, welcome)
        self._sent = self._acknowledged = link.runner.journal.acknowledged
        self._moved_at = time.monotonic()

    async def run(self) -> None:
        """Send until the link breaks."""
        self._link.beat_at = progress_at = 0.0
        while True:
            self._journal.news.clear()
            await self._send_reports()
            now = time.monotonic()
            if now >= self._link.beat_at:
                await self._send(await asyncio.to_thread(self._link.load))
                self._link.beat_at = now + self._link.heartbeat_s
            if self._progress and now >= progress_at:
                progress_at = now + PROGRESS_S
                newest = list(self._progress.values())
                self._progress.clear()
                await self._send_together(map(encode, newest))
            if (piece := self._logs.take(now)) is not None:
                await self._send(piece)
                continue
            waits = [self._link.beat_at, now + self._logs.seconds_to_wait(), *([progress_at] if self._progress else [])]
            await self._wait(min(waits) - now, only_reports=bool(self._progress))

    async def _wait(self, seconds: float, *, only_reports: bool) -> None:
        """Wait for news; while progress waits for its time, only reports and a due heartbeat are news."""
        seen, news = self._journal.last_seq, self._journal.news
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await news.wait()
                while only_reports and self._journal.last_seq == seen and self._link.beat_at > 0.0:
                    news.clear()
                    await news.wait()

    async def _send(self, message: object) -> None:
        await self._socket.send(encode(message))

    async def _send_reports(self) -> None:
        """Send everything that is on disk and was not sent yet."""
        self._rewind()
        while entries := await self._journal.after(self._sent):
            await self._send_together(self._with_logs(entries))
            self._sent = entries[-1][0]

    def _with_logs(self, entries: Sequence[tuple[int, str]]) -> Iterator[str]:
        """Reports with their numbers; before the end of an attempt what is left of its log."""
        for seq, body in entries:
            if body.startswith('{"type":"exited"'):
                yield from map(encode, self._logs.finish(int(orjson.loads(body)["attempt"])))
            yield body.replace('"seq":0', f'"seq":{seq}', 1)  # the first field after the type

    async def _send_together(self, messages: Iterable[str]) -> None:
        for frame in frames(messages, self._protocol):
            await self._socket.send(frame)

    def _rewind(self) -> None:
        """Send again what was not acknowledged in time: RenderAPI gave up its batch (R3.2 Repeatable operations)."""
        now, acknowledged = time.monotonic(), self._journal.acknowledged
        if acknowledged != self._acknowledged or acknowledged == self._sent:
            self._acknowledged, self._moved_at = acknowledged, now
        elif now - self._moved_at > RESEND_S:
            log.warning("reports are sent again", after=acknowledged, up_to=self._sent)
            self._sent, self._moved_at = acknowledged, now


class _Logs:
    """Which part of each attempt's log was sent over one link."""

    def __init__(self, link: Link, welcome: wire.Welcome) -> None:
        self._runner, self._journal = link.runner, link.runner.journal
        self._offsets = {attempt: welcome.log_offsets.get(str(attempt), 0) for attempt in welcome.keep}
        """Attempt -> bytes sent; the log that waited longest comes first."""
        self._budget = float(LOG_BURST)
        self._at = 0.0
        for attempt in set(self._runner.logs) - set(welcome.keep):
            self._runner.drop_log(attempt)

    def take(self, now: float) -> wire.Log | None:
        """The next piece to send, if there is one and the budget (bytes) allows it."""
        self._budget = min(LOG_BURST, self._budget + (now - self._at) * LOG_BYTES_PER_S)
        self._at = now
        if self._budget <= 0:
            return None
        for attempt in [*self._offsets, *(new for new in self._runner.logs if new not in self._offsets)]:
            if (piece := self._piece(attempt)) is not None:
                return piece
            if attempt not in self._journal.held and attempt not in self._runner.attempts:
                self._offsets.pop(attempt, None)  # it was sent and belongs to nothing that is still held
                self._runner.drop_log(attempt)
        return None

    def finish(self, attempt: int) -> Iterator[wire.Log]:
        """The rest of the log of an attempt that has ended, at most `LOG_BEFORE_END` bytes of it."""
        sent = 0
        while sent < LOG_BEFORE_END and (piece := self._piece(attempt)) is not None:
            sent += len(piece.text)
            yield piece

    def seconds_to_wait(self) -> float:
        """Until `take` may have another piece."""
        if self._budget <= 0:
            return LOG_PIECE / LOG_BYTES_PER_S
        return LOG_POLL_S if self._runner.logs else 60.0

    def _piece(self, attempt: int) -> wire.Log | None:
        offset, output = self._offsets.get(attempt, 0), self._runner.logs.get(attempt)
        if output is None or offset >= output.size:
            return None
        begin, text = output.read(offset, LOG_PIECE)
        if not text:
            return None
        size = len(text.encode())
        self._offsets.pop(attempt, None)
        self._offsets[attempt] = begin + size
        self._budget -= size
        return wire.Log(attempt, begin, text)


def seconds_to_next_dial(failures: int, *, is_refused: bool) -> float:
    """Return the pause after that many failures in a row, with jitter; `is_refused`: nobody listens at that address."""
    most = MAX_REFUSED_S if is_refused else MAX_BACKOFF_S
    return min(most, BACKOFF_S * 2.0**failures) * random.uniform(0.5, 1.0)  # noqa: S311 (jitter guards nothing)


def _refusal(refused: wire.Refused) -> NotAllowed | NotAvailable:
    return MachineRefused(refused.message) if refused.final else NotAvailable(refused.message, code=refused.code)
