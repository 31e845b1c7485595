"""What must not be forgotten, written before it counts: the outbox behind an asynchronous door (R5.1, R5.2).

Changes that come while one commit runs share the next one. A report that the disk refuses waits and is tried again;
an attempt that the disk refuses is not taken. `full` says why the machine takes nothing at present.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Final, TypeVar

import structlog

from renderonline.database.outbox import Acknowledge, Append, Change, Held, Outbox, Store
from renderonline.farm.errors import NoSpace
from renderonline.protocol.codec import encode
from renderonline.protocol.link import Exited, Report

log = structlog.get_logger(__name__)
T = TypeVar("T")

BATCH: Final = 256
RETRY_S: Final = 1.0
IDLE_ACKNOWLEDGE_S: Final = 0.5
"""An acknowledgement alone is no reason for a disk write; losing one only sends a report twice."""

Entry = tuple[Change, "asyncio.Future[int] | None"]


class Journal:
    """The attempts that this machine holds and its unacknowledged reports."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._outbox: Outbox | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._waiting: deque[Entry] = deque()
        self._wake = asyncio.Event()
        self._moved = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._held: dict[int, Held] = {}
        self._recent: deque[tuple[int, str]] = deque(maxlen=BATCH)
        self._acknowledged = 0
        self._forgotten = 0
        """Up to which number the file knows that RenderAPI has everything."""
        self._timer: asyncio.TimerHandle | None = None
        self._last_seq = 0
        self._on_report: Callable[[], None] = lambda: None
        self.full = ""
        """Why nothing can be written at present, "" when it can."""

    async def open(self) -> tuple[Held, ...]:
        """Open the file; gives the attempts that an earlier run left without an end.

        When the disk refuses, `full` says so, and it is tried again in the background.
        """
        await self._try_open()
        self._writer = asyncio.create_task(self._write())
        return tuple(held for held in self._held.values() if held.exited_seq is None)

    async def close(self) -> None:
        """Write what waits (once) and close the file."""
        if self._timer is not None:
            self._timer.cancel()
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
        if self._outbox is None and self._waiting:
            log.error("reports are lost", reason=self.full, reports=len(self._waiting))
        if self._outbox is not None:
            batch = [*(change for change, _ in self._waiting), Acknowledge(self._acknowledged)]
            try:
                await self._in_thread(self._outbox.commit, batch)
            except NoSpace as error:
                log.error("reports are lost", reason=str(error), reports=len(batch))  # noqa: TRY400
            await self._in_thread(self._outbox.close)
        self._thread.shutdown()

    def on_report(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever new reports can be sent."""
        self._on_report = call

    # -- what the runner says

    def holds(self, attempt: int) -> bool:
        """Whether an attempt is kept already, or about to be."""
        return attempt in self._held

    async def store(self, held: Held) -> None:
        """Keep an attempt before it starts. Raises `NoSpace` when it can't be."""
        self._held[held.attempt] = held
        try:
            await self._enqueue(Store(held))
        except NoSpace:
            del self._held[held.attempt]
            raise

    def report(self, report: Report) -> None:
        """Keep a report until it is acknowledged, on disk before it is sent, however long the disk refuses.

        Reports are kept and sent in the order of these calls; nobody has to wait for one.
        """
        body = encode(replace(report, seq=0))
        self._waiting.append((Append(report.attempt, body, last=isinstance(report, Exited)), None))
        self._wake.set()

    # -- what the link says

    @property
    def last_seq(self) -> int:
        """The number of the newest report that is on disk."""
        return self._last_seq

    @property
    def acknowledged(self) -> int:
        """Up to which number RenderAPI has everything."""
        return self._acknowledged

    @property
    def is_settled(self) -> bool:
        """Whether every report is on disk and acknowledged."""
        return self._acknowledged >= self._last_seq and not self._waiting

    async def moved(self) -> None:
        """Wait for the next report that is written or acknowledged."""
        self._moved.clear()
        await self._moved.wait()

    def held(self) -> tuple[Held, ...]:
        """Attempts that run or have reports that were not acknowledged (R5.4)."""
        return tuple(self._held.values())

    async def after(self, seq: int, limit: int = BATCH) -> Sequence[tuple[int, str]]:
        """The next reports to send: number and JSON text."""
        if self._recent and self._recent[0][0] <= seq + 1:
            return [entry for entry in self._recent if entry[0] > seq]
        if self._outbox is None or seq >= self._last_seq:
            return ()
        return await self._in_thread(self._outbox.after, seq, limit)

    def acknowledge(self, seq: int) -> None:
        """RenderAPI has committed everything up to `seq`."""
        seq = min(seq, self._last_seq)
        if seq <= self._acknowledged:
            return
        self._acknowledged = seq
        self._moved.set()
        ended = [held.attempt for held in self._held.values() if held.exited_seq and held.exited_seq <= seq]
        for attempt in ended:
            del self._held[attempt]
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_ACKNOWLEDGE_S, self._forget)

    # -- the writer

    def _forget(self) -> None:
        self._timer = None
        self._wake.set()

    def _enqueue(self, change: Change) -> "asyncio.Future[int]":
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting.append((change, future))
        self._wake.set()
        return future

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting or self._forgotten < self._acknowledged:
                if self._outbox is None and not await self._try_open():
                    self._refuse_attempts(self.full)
                    await asyncio.sleep(RETRY_S)
                    continue
                try:
                    await self._write_batch()
                except Exception:  # whatever it was, reports must go on being written
                    log.exception("the outbox failed")
                    await asyncio.sleep(RETRY_S)

    async def _write_batch(self) -> None:
        assert self._outbox is not None
        batch = [self._waiting[place] for place in range(min(BATCH, len(self._waiting)))]
        acknowledged = self._acknowledged
        changes: list[Change] = [change for change, _ in batch]
        if acknowledged > self._forgotten:
            changes.append(Acknowledge(acknowledged))
        try:
            numbers = await self._in_thread(self._outbox.commit, changes)
        except NoSpace as error:
            self._complain(str(error))
            self._refuse_attempts(str(error))
            await asyncio.sleep(RETRY_S)
            return
        if self.full:
            log.info("the outbox can be written again")
            self.full = ""
        for _ in batch:
            self._waiting.popleft()
        self._forgotten = acknowledged
        self._last_seq = max(self._last_seq, *numbers)
        for number, (change, future) in zip(numbers, batch, strict=False):
            if isinstance(change, Append):
                self._take_note(number, change)
            if future is not None and not future.done():
                future.set_result(number)
        if any(numbers):
            self._moved.set()
            self._on_report()

    def _take_note(self, number: int, change: Append) -> None:
        self._recent.append((number, change.body))
        held = self._held.get(change.attempt)
        if change.last and held is not None:
            self._held[change.attempt] = replace(held, exited_seq=number)

    async def _try_open(self) -> bool:
        try:
            outbox = await self._in_thread(Outbox, self._path)
        except NoSpace as error:
            self._complain(str(error))
            return False
        self._held = {held.attempt: held for held in outbox.held()} | self._held
        self._last_seq = outbox.last_seq
        self._outbox, self.full = outbox, ""
        return True

    def _refuse_attempts(self, reason: str) -> None:
        """Attempts that wait to be stored are not taken; reports stay."""
        kept: list[Entry] = []
        for change, future in self._waiting:
            if not isinstance(change, Store):
                kept.append((change, future))
            elif future is not None and not future.done():
                future.set_exception(NoSpace(reason))
        self._waiting = deque(kept)

    def _complain(self, reason: str) -> None:
        if not self.full:
            log.error("the outbox can't be written", reason=reason)
        self.full = reason

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
