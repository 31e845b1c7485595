"""What a machine must not lose, its attempts and the reports that RenderAPI has not acknowledged yet, is on its disk
before it takes effect (R5.1 Stored assignment, R5.2 Outbox).

`Outbox` is the file: SQLite, brought to its full size when it is opened, so that a report can still be written when the
disk is full. Reports are numbered from 1 at each start, because sequence numbers belong to one run of HPCServer.

`Journal` is the outbox as the event loop uses it. Reports that arrive during a commit share the next one. A report that
the disk refuses waits and is tried again; an attempt that the disk refuses is not accepted.
"""

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import structlog

from renderonline.farm.errors import NoSpace
from renderonline.hpcserver.outputs import LOST
from renderonline.protocol.link import Exited, Report, Started, encode

log = structlog.get_logger(__name__)
T = TypeVar("T")

BATCH: Final = 256
RETRY_S: Final = 1.0
"""Seconds after which the disk is tried again that has refused a report."""
STARTED_S: Final = 0.02
"""How long a `started` waits for other reports, to share their commit: an engine that ends at once needs only one."""
IDLE_ACKNOWLEDGE_S: Final = 0.5
"""An acknowledgement alone is written after this time; when one is lost, a report is only sent twice."""

FULL_SIZE: Final = 8 * 1024 * 1024
"""Bytes reserved in the file and in its write-ahead log: some ten thousand reports."""
PAGE: Final = 4096

_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS attempts
       (attempt INTEGER PRIMARY KEY, token TEXT NOT NULL, directory TEXT NOT NULL, exited_seq INTEGER)""",
    "CREATE TABLE IF NOT EXISTS reports (seq INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS filler (bytes BLOB)",
)


class Held(NamedTuple):
    """An attempt that was assigned and whose end is not acknowledged. `exited_seq`: its last report, when it ended."""

    attempt: int
    token: str
    directory: str
    exited_seq: int | None = None


class Append(NamedTuple):
    """A report to keep (JSON text); `last` says that no further report of its attempt follows."""

    attempt: int
    body: str
    last: bool = False


class Outbox:
    """The open file; one thread at a time. `NoSpace` when the disk refuses a change; what was committed stays."""

    def __init__(self, path: Path, *, full_size: int = FULL_SIZE) -> None:
        self._path = path
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
            try:
                self._prepare(full_size)
            except BaseException:
                self._connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise self._refused(error) from error

    def _prepare(self, full_size: int) -> None:
        # Exclusive: no shared-memory file beside it (which a full disk would refuse) and no second program in it.
        for pragma in (f"page_size={PAGE}", "locking_mode=EXCLUSIVE", "journal_mode=WAL"):
            self._connection.execute(f"PRAGMA {pragma}")
        with self._transaction() as connection:
            for table in _TABLES:
                connection.execute(table)
            connection.execute("INSERT INTO filler VALUES (zeroblob(?))", (full_size,))
        with self._transaction() as connection:
            connection.execute("DELETE FROM filler")
            (first,) = connection.execute("SELECT min(seq) FROM reports").fetchone()
            if first is not None:
                connection.execute("UPDATE reports SET seq = seq - ?", (first - 1,))
                connection.execute("UPDATE attempts SET exited_seq = exited_seq - ?", (first - 1,))
        # The log file keeps its size and is written from its beginning again, long before it would have to grow.
        self._connection.execute(f"PRAGMA wal_autocheckpoint={max(full_size // PAGE // 2, 16)}")
        self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
        self.last_seq: int = self._connection.execute("SELECT ifnull(max(seq), 0) FROM reports").fetchone()[0]
        """The number of the newest report, 0 when there was none in this run."""

    def store(self, held: Held) -> None:
        """Keep an attempt before anything of it starts (R5.1 Stored assignment), without waiting for the disk.

        It survives the death of every process, but perhaps not a power cut, which ends the engines too: RenderAPI then
        sends the attempt again or counts it as lost (R5.4 Hello).
        """
        with self._transaction(synchronous="NORMAL") as connection:
            connection.execute("INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?)", held)

    def commit(self, reports: Sequence[Append], acknowledged: int = 0) -> Sequence[int]:
        """Keep all reports or none, durably; returns their numbers. Forget those up to `acknowledged`, and the attempts
        that ended with them; that alone does not wait for the disk."""
        numbers = range(self.last_seq + 1, self.last_seq + 1 + len(reports))
        with self._transaction(synchronous="FULL" if reports else "NORMAL") as connection:
            for seq, report in zip(numbers, reports, strict=True):
                connection.execute("INSERT INTO reports VALUES (?, ?, ?)", (seq, report.attempt, report.body))
                if report.last:
                    connection.execute("UPDATE attempts SET exited_seq = ? WHERE attempt = ?", (seq, report.attempt))
            if acknowledged:
                connection.execute("DELETE FROM reports WHERE seq <= ?", (acknowledged,))
                connection.execute("DELETE FROM attempts WHERE exited_seq <= ?", (acknowledged,))
        self.last_seq += len(reports)
        return numbers

    def held(self) -> tuple[Held, ...]:
        """All attempts that are kept."""
        rows = self._connection.execute("SELECT attempt, token, directory, exited_seq FROM attempts ORDER BY attempt")
        return tuple(Held(*row) for row in rows)

    def after(self, seq: int, limit: int) -> list[tuple[int, str]]:
        """The oldest `limit` reports with a number above `seq`: number and JSON text."""
        query = "SELECT seq, body FROM reports WHERE seq > ? ORDER BY seq LIMIT ?"
        return self._connection.execute(query, (seq, limit)).fetchall()

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    @contextmanager
    def _transaction(self, synchronous: str = "FULL") -> Iterator[sqlite3.Connection]:
        """Commits at its end; anything raised rolls back."""
        try:
            with self._connection as connection:
                connection.execute(f"PRAGMA synchronous={synchronous}")
                connection.execute("BEGIN IMMEDIATE")
                yield connection
        except sqlite3.Error as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> NoSpace:
        return NoSpace(f"The outbox {self._path} can't be written ({error}). Free some disk space or mend the disk.")


class Journal:
    """The attempts that this machine holds and its unacknowledged reports. `held`: attempts that run or have reports
    that were not acknowledged (R5.4 Hello). `last_seq`: number of the newest report on disk; `acknowledged`: number of
    the newest that RenderAPI has committed. `news` is set when new reports can be sent; `full`: why the machine accepts
    nothing at present, "" when it does."""

    def __init__(self, path: Path) -> None:
        self.held: dict[int, Held] = {}
        self.last_seq = self.acknowledged = 0
        self.news = asyncio.Event()
        self.full = ""
        self._path = path
        self._outbox: Outbox | None = None
        self._file = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="outbox")
        self._waiting: deque[Append] = deque()
        self._recent: deque[tuple[int, str]] = deque(maxlen=BATCH)
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._forgotten = 0
        """The newest acknowledged number that the file has."""
        self._closing = False

    async def open(self) -> None:
        """Open the file; attempts that an earlier run left without an end are reported lost. When the disk refuses,
        `full` says so, and it is tried again in the background."""
        try:
            await self._open_file()
        except NoSpace as error:
            self._complain(error)
        self._wake.set()
        self._writer = asyncio.create_task(self._write())

    async def close(self) -> None:
        """Write what waits, trying once more if the disk refuses, and close the file."""
        self._closing = True
        self._wake.set()
        if self._writer is not None:
            await self._writer
        for timer in (self._timer, self._soon):
            if timer is not None:
                timer.cancel()
        if self._outbox is not None:
            await self._in_thread(self._outbox.close)
        self._thread.shutdown()

    async def store(self, held: Held) -> None:
        """Store an attempt before it starts; waits only for a commit. Raises `NoSpace` when the disk refuses."""
        self.held[held.attempt] = held
        try:
            async with self._file:
                self._opened().store(held)
        except NoSpace as error:
            del self.held[held.attempt]
            self._complain(error)
            raise

    def report(self, report: Report) -> None:
        """Keep a report until it is acknowledged; it is on disk before it is sent, however long the disk refuses. Keeps
        the order of the calls, and never waits."""
        self._waiting.append(Append(report.attempt, encode(report), last=isinstance(report, Exited)))
        if not isinstance(report, Started):
            self._wake.set()
        elif self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(STARTED_S, self._write_soon)

    def acknowledge(self, seq: int) -> None:
        """RenderAPI has committed everything up to `seq`."""
        seq = min(seq, self.last_seq)
        if seq <= self.acknowledged:
            return
        self.acknowledged = seq
        for held in [held for held in self.held.values() if held.exited_seq and held.exited_seq <= seq]:
            del self.held[held.attempt]
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE_ACKNOWLEDGE_S, self._forget)

    @property
    def is_settled(self) -> bool:
        """Whether every report is on disk and acknowledged."""
        return self.acknowledged >= self.last_seq and not self._waiting

    async def after(self, seq: int) -> Sequence[tuple[int, str]]:
        """The next reports to send: number and JSON text, numbered 0."""
        if self._recent and self._recent[0][0] <= seq + 1:
            newer = takewhile(lambda entry: entry[0] > seq, reversed(self._recent))
            return list(newer)[::-1]
        if self._outbox is None or seq >= self.last_seq:
            return ()
        async with self._file:
            return await self._in_thread(self._outbox.after, seq, BATCH)

    def _write_soon(self) -> None:
        self._soon = None
        self._wake.set()

    def _forget(self) -> None:
        self._timer = None
        self._wake.set()

    async def _write(self) -> None:
        while not self._closing:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting or self._forgotten < self.acknowledged or self._outbox is None:
                try:
                    await self._write_batch()
                    continue
                except NoSpace as error:
                    self._complain(error)
                except Exception:  # whatever it was, reports must go on being written
                    log.exception("the outbox failed")
                if self._closing:
                    if self._waiting:
                        log.error("reports are lost", reason=self.full, reports=len(self._waiting))
                    return
                await asyncio.sleep(RETRY_S)

    async def _write_batch(self) -> None:
        outbox = self._outbox or await self._open_file()
        batch = [self._waiting[place] for place in range(min(BATCH, len(self._waiting)))]
        acknowledged = self.acknowledged
        async with self._file:
            news = acknowledged if acknowledged > self._forgotten else 0
            numbers = await self._in_thread(outbox.commit, batch, news)
        if self.full:
            log.info("the outbox can be written again")
            self.full = ""
        self._forgotten = acknowledged
        for number, report in zip(numbers, batch, strict=True):
            self._waiting.popleft()
            self._recent.append((number, report.body))
            self.last_seq = number
            if report.last and (held := self.held.get(report.attempt)) is not None:
                self.held[report.attempt] = held._replace(exited_seq=number)
        if batch:
            self.news.set()

    async def _open_file(self) -> Outbox:
        outbox: Outbox = await self._in_thread(Outbox, self._path)
        for held in outbox.held():
            self.held[held.attempt] = held
            if held.exited_seq is None:
                self.report(LOST.report(held.attempt, held.token))
        self.last_seq = outbox.last_seq
        self._outbox = outbox
        return outbox

    def _opened(self) -> Outbox:
        if self._outbox is None:
            raise NoSpace(self.full)
        return self._outbox

    def _complain(self, error: NoSpace) -> None:
        if not self.full:
            log.error("the outbox can't be written", reason=str(error))
        self.full = str(error)

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
