"""Access to the database: `Database` is asynchronous outside and uses threads inside; `IdBlocks` reserves ids.

    db = Database.open("sqlite:///farm.db")
    task = await db.write(lambda connection: submission_rows.submit(connection, new_task))
    page = await db.read(lambda connection: listing_rows.v1_newest(connection, user_id))
    await db.close()

Neither call ever blocks the event loop. A few threads read, each query in one transaction that sees one moment. One
thread writes, with group commit (R3 One writer): operations that wait together share one transaction and one commit,
and each caller is answered after that commit. An operation that raises is left out and the others are run again; after
a deadlock, a lock timeout or a lost connection the whole batch is run again. So **an operation may run several times**:
it changes nothing but the database, and its ids and tokens are made before it.
"""

import asyncio
import contextlib
import os
import queue
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import structlog
from sqlalchemy import Connection, Engine, event

from renderonline.database import connecting
from renderonline.database.connecting import DatabasePlace, in_words, is_disconnect, is_transient, parse
from renderonline.database.schema import farm_value, set_farm_value
from renderonline.farm.errors import NotAvailable

__all__ = ["Connection", "Database"]

_MAX_BATCH: Final = 256
_BACKOFF_S: Final = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_MANY_FAILURES: Final = 3
"""After this many failures in a batch, the rest is committed one by one: failing clients can't make others wait."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """An operation, the future of its caller, and its result or error."""

    operation: Callable[[Connection], Any]
    future: asyncio.Future[Any] | Future[Any]
    loop: asyncio.AbstractEventLoop | None = None
    early: Callable[[Any], None] | None = None
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Runs jobs in its own thread until `stop`. `patience_s`: how long a batch is retried while the database does not
    answer."""

    def __init__(self, engine: Engine, place: DatabasePlace, *, patience_s: float) -> None:
        self._engine = engine
        self._place = place
        self._patience_s = patience_s
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._down = False
        self._connection: Connection | None = None
        self._has_log = False
        self._log: int | None = None
        """SQLite's write-ahead log, once it was synced from here."""
        self.guard: Callable[[Connection], None] | None = None
        """Runs first in each transaction; what it raises fails the whole batch (R10 Standby)."""
        self._thread = threading.Thread(target=self._run, name="database-writer", daemon=True)
        event.listen(engine, "before_cursor_execute", _note_write)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Accept a job. An accepted job is run, also when `stop` comes before its turn."""
        if threading.current_thread() is self._thread:
            raise RuntimeError("An operation can't wait for another operation: it would wait for itself.")
        with self._lock:
            if self._closed:
                raise NotAvailable("The database is closed: this program is stopping.")
            self._jobs.put(job)

    def stop(self) -> None:
        """Finish what was accepted, then end the thread. Blocks."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            while len(batch) < _MAX_BATCH and not self._jobs.empty():
                if (job := self._jobs.get()) is None:
                    self._jobs.put(None)  # the end comes after this batch
                    break
                batch.append(job)
            self._settle_batch(batch)
        self._disconnect()

    def _settle_batch(self, batch: list[Job]) -> None:
        """Run a batch until each of its jobs is committed or has failed, and answer."""
        left, failures = batch, 0
        while left:
            group = left if failures < _MANY_FAILURES else left[:1]
            try:
                failed = self._with_patience(group)
                if failed is None and any(job.early for job in group):
                    self._tell_early(group)
            except BaseException as error:  # noqa: BLE001 - the callers must get any error
                for job in left:
                    job.error = self._explained(error)
                break
            if failed is None:
                left = left[len(group) :]
            else:
                left = [job for job in left if job is not failed]
                failures += 1
        _deliver(batch)

    def _with_patience(self, group: Sequence[Job]) -> Job | None:
        """Run a group in one transaction, again while the database does not answer. Returns the job that failed."""
        deadline = time.monotonic() + (0 if self._down else self._patience_s)
        tries = 0
        while True:
            try:
                failed = self._transaction(group)
                self._down = False
                return failed
            except Exception as error:
                if self._connection is not None and is_disconnect(error):
                    self._connection.invalidate()
                    self._disconnect()
                if not is_transient(error):
                    raise
                pause = _BACKOFF_S[min(tries, len(_BACKOFF_S) - 1)]
                if time.monotonic() + pause > deadline:
                    self._down = True
                    _log.warning("The database does not answer; writing was given up", error=str(error.__cause__))
                    raise
                tries += 1
                time.sleep(pause)

    def _tell_early(self, group: Sequence[Job]) -> None:
        """A group is committed: call what need not wait for the disk, then wait for it. MySQL has waited already."""
        for job in group:
            if job.early is not None and job.loop is not None and job.error is None:
                with contextlib.suppress(RuntimeError):  # the loop has been closed
                    job.loop.call_soon_threadsafe(job.early, job.result)
        if self._has_log:
            try:
                if self._log is None:
                    self._log = os.open(f"{self._place.database}-wal", os.O_RDWR | os.O_CLOEXEC)
                os.fdatasync(self._log)
            except OSError as error:
                raise NotAvailable(f"The disk of the database {self._place.label} refuses to be written.") from error

    def _connect(self) -> Connection:
        self._connection = connection = self._engine.connect()
        is_sqlite = self._place.dialect == "sqlite"
        self._has_log = is_sqlite and _driver(connection).execute("PRAGMA journal_mode").fetchone()[0] == "wal"
        return connection

    def _transaction(self, group: Sequence[Job]) -> Job | None:
        """Run the jobs of a group and commit. A job that failed after it wrote something is returned, with everything
        rolled back; a job that failed before it wrote anything is left out."""
        connection = self._connection or self._connect()
        if self._has_log:  # NORMAL: `_tell_early` waits for the disk
            waits = "NORMAL" if any(job.early for job in group) else "FULL"
            _driver(connection).execute(f"PRAGMA synchronous={waits}").close()
        with connection.begin() as transaction:
            if self.guard is not None:
                self.guard(connection)
            for job in group:
                job.result, job.error = None, None
                connection.info["wrote"] = False
                try:
                    job.result = job.operation(connection)
                except BaseException as error:
                    if is_transient(error):
                        raise
                    job.error = self._explained(error)
                    if connection.info["wrote"]:
                        transaction.rollback()
                        return job
        return None

    def _explained(self, error: BaseException) -> BaseException:
        words = in_words(error, self._place)
        if isinstance(words, StopIteration):  # no future takes it
            words = RuntimeError("The operation raised StopIteration.")
        if words is not error:
            words.__cause__ = error
        return words

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._log is not None:
            os.close(self._log)
            self._log = None


def _driver(connection: Connection) -> Any:
    """The driver's own connection: what SQLAlchemy runs begins a transaction."""
    return connection.connection.driver_connection


def _deliver(jobs: Sequence[Job]) -> None:
    """Answer all callers, with one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[Job]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, theirs in by_loop.items():
        try:
            _deliver_all(theirs) if loop is None else loop.call_soon_threadsafe(_deliver_all, theirs)
        except RuntimeError:  # the loop has been closed, and its callers with it
            continue


def _deliver_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.future.done():  # the caller was canceled
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _note_write(connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
    if not statement.startswith(("SELECT", "select")):
        connection.info["wrote"] = True


T = TypeVar("T")

_READ_PATIENCE_S: Final = 5.0


class Database:
    """A database of the farm, open. Safe to use from any thread and any event loop."""

    def __init__(self, place: DatabasePlace, writer_engine: Engine, *, readers: int, patience_s: float) -> None:
        self.place = place
        self._writer_engine = writer_engine
        self._writer = Writer(writer_engine, place, patience_s=patience_s)
        self._reader_engine = connecting.reader_engine(place, readers)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="database-reader")
        self._closed = False

    @classmethod
    def open(cls, connection: str, *, readers: int = 3, patience_s: float = 30.0, idle_s: float = 10.0) -> "Database":
        """Open the database that a connection string names (ADO.NET form or URL) and start its threads.

        A SQLite file that does not exist is created, empty. `patience_s`: how long a write is retried while the
        database does not answer. `idle_s`: MySQL rolls back the writer's transaction and frees its locks after this
        long without a statement. Raises `NotAvailable`, which says what to check, when it can't be reached. Blocks.
        """
        place = parse(connection)
        if place.dialect == "sqlite":
            connecting.make_file(place)
        engine = connecting.writer_engine(place, idle_s)
        with connecting.explained(place), engine.connect() as probe:
            probe.exec_driver_sql("SELECT 1")
        return cls(place, engine, readers=readers, patience_s=patience_s)

    @property
    def dialect(self) -> str:
        """`sqlite` or `mysql` (MariaDB too)."""
        return self.place.dialect

    async def write(self, operation: Callable[[Connection], T], *, early: Callable[[T], None] | None = None) -> T:
        """Run `operation` in the writer's next transaction; returns its value when it is on the disk.

        `early` is called with the value as soon as it is committed; on SQLite a power cut may still undo it then, with
        everything after it. What `operation` raises is raised here and changes nothing. It may run several times, and
        it is run even if the caller is canceled. `NotAvailable`: the database did not answer for `patience_s`; the
        operation may or may not have been committed (R3.2 Repeatable operations).
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._writer.put(Job(operation, future, loop, early))
        return await future

    def write_now(self, operation: Callable[[Connection], T]) -> T:
        """`write` for programs without an event loop. Blocks."""
        future: Future[T] = Future()
        self._writer.put(Job(operation, future))
        return future.result()

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in a reader's thread, in one transaction that sees one moment. It must not write."""
        if self._closed:
            raise NotAvailable("The database is closed: this program is stopping.")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self.read_now, query)

    def read_now(self, query: Callable[[Connection], T]) -> T:
        """`read` for programs without an event loop. Blocks."""
        deadline = time.monotonic() + _READ_PATIENCE_S
        with connecting.explained(self.place):
            while True:
                try:
                    with self._reader_engine.connect() as connection, connection.begin():
                        return query(connection)
                except Exception as error:
                    if not connecting.is_transient(error) or time.monotonic() > deadline:
                        raise
                    time.sleep(0.1)

    def guard(self, check: Callable[[Connection], None] | None) -> None:
        """Run `check` first in each transaction of the writer from now on; what it raises rolls it back."""
        self._writer.guard = check

    async def close(self) -> None:
        """Finish all accepted operations, then close."""
        await asyncio.to_thread(self.close_now)

    def close_now(self) -> None:
        """`close` for programs without an event loop. Blocks."""
        self._closed = True
        self._writer.stop()
        self._readers.shutdown(wait=True)
        self._reader_engine.dispose()
        self._writer_engine.dispose()

    def __enter__(self) -> "Database":
        return self

    def __exit__(self, *_exception: Any) -> None:
        self.close_now()

    async def __aenter__(self) -> "Database":
        return self

    async def __aexit__(self, *_exception: Any) -> None:
        await self.close()


BLOCK: Final = 100_000
FIRST_ATTEMPT: Final = 2**40
"""Attempt ids begin here, plus a random offset of the farm: so none is an id of another farm or of an adopted task
(R7.1 Attempt id on the wire)."""
_OFFSETS: Final = 2**52

CHUNKS: Final = "next_chunk_id"
ATTEMPTS: Final = "next_attempt_id"


def reserve(connection: Connection, key: str, count: int = BLOCK) -> range:
    """Take `count` numbers from the counter `key` of table `farm`, which must exist."""
    first = farm_value(connection, key, lock=True)
    if first is None:
        raise NotAvailable("The database is not ready. Run `renderonline db migrate` first.")
    taken = range(int(first), int(first) + count)
    set_farm_value(connection, key, str(taken.stop))
    return taken


def make_counters(connection: Connection) -> None:
    """Make the counters of a new farm; those that exist stay."""
    for key, first in ((CHUNKS, 1), (ATTEMPTS, FIRST_ATTEMPT + secrets.randbelow(_OFFSETS))):
        if farm_value(connection, key) is None:
            set_farm_value(connection, key, str(first))


class IdBlocks:
    """Ids of chunks and attempts, made before the transaction that uses them (R3.2 Repeatable operations).

    They come from blocks reserved in table `farm`; what a program leaves of its blocks is lost, for no id is ever used
    twice. To be used from one thread (the event loop's).
    """

    def __init__(self, database: Database) -> None:
        """Reserve the first blocks. Blocks."""
        self._database = database
        self._refilling = asyncio.Lock()
        self._free = {key: database.write_now(partial(reserve, key=key)) for key in (CHUNKS, ATTEMPTS)}

    async def next_chunk_ids(self, count: int) -> range:
        """Ids for the chunks of one task, following each other."""
        while True:
            await self.refill(count)
            if len(self._free[CHUNKS]) >= count:  # another submission may have taken them meanwhile
                return self._take(CHUNKS, count)

    def next_attempt_id(self) -> int:
        """An id for one attempt."""
        return self._take(ATTEMPTS, 1)[0]

    def _take(self, key: str, count: int) -> range:
        free = self._free[key]
        if len(free) < count:
            raise NotAvailable("The farm has run out of reserved ids for a moment. Try again.")
        self._free[key] = free[count:]
        return free[:count]

    async def refill(self, chunks: int = 0) -> None:
        """Make sure that half a block of each kind is there, and this many ids of chunks. Costs nothing when it is."""
        wanted = {CHUNKS: max(chunks, BLOCK // 2), ATTEMPTS: BLOCK // 2}
        if any(len(self._free[key]) < count for key, count in wanted.items()):
            async with self._refilling:
                for key, count in wanted.items():
                    if len(self._free[key]) < count:
                        self._free[key] = await self._database.write(partial(reserve, key=key, count=max(BLOCK, count)))
