"""The writer: one thread through which everything that changes the database goes, with group commit (R3 One writer).

Operations that wait together share one transaction and one commit. Each caller is answered after that commit. An
operation that raises is taken out and the others are run again; when the database itself gets in the way (deadlock,
lock timeout, lost connection) the whole batch is run again. So **an operation may run several times**: it changes
nothing but the database, and its ids and tokens are made before it. What `guard` raises fails the whole batch
(R10 Standby).
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, event

from renderonline.database.connecting import Place, in_words, is_disconnect, is_transient
from renderonline.farm.errors import NotAvailable

_MAX_BATCH: Final = 256
_BACKOFF_S: Final = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_MANY_FAILURES: Final = 3
"""After so many failures in a batch, the rest is committed one by one: failing clients can't make others wait."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True, eq=False)
class Job:
    """One operation, the one who waits for it, and how it went."""

    operation: Callable[[Connection], Any]
    future: asyncio.Future[Any] | Future[Any]
    loop: asyncio.AbstractEventLoop | None = None
    result: Any = None
    error: BaseException | None = None


class Writer:
    """Runs jobs in one thread of its own until `stop`. `patience_s`: how long a batch is tried again while the database
    does not answer."""

    def __init__(self, engine: Engine, place: Place, *, patience_s: float) -> None:
        self._engine = engine
        self._place = place
        self._patience_s = patience_s
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._down = False
        self._connection: Connection | None = None
        self.guard: Callable[[Connection], None] | None = None
        """Run first in each transaction."""
        self._thread = threading.Thread(target=self._run, name="database-writer", daemon=True)
        event.listen(engine, "before_cursor_execute", _note_write)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Accept a job. What was accepted is run, also when `stop` comes before its turn."""
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
            except BaseException as error:  # noqa: BLE001 - whatever it is, those who wait must hear of it
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
        """Run a group in one transaction, again while the database does not answer. Gives the job that failed."""
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

    def _transaction(self, group: Sequence[Job]) -> Job | None:
        """Run the jobs of a group and commit. A job that failed after it wrote is given back, with all undone; one that
        failed before it wrote anything is simply left out."""
        if self._connection is None:
            self._connection = self._engine.connect()
        connection = self._connection
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


def _deliver(jobs: Sequence[Job]) -> None:
    """Tell everybody who waits, with one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop | None, list[Job]] = {}
    for job in jobs:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, theirs in by_loop.items():
        try:
            _deliver_all(theirs) if loop is None else loop.call_soon_threadsafe(_deliver_all, theirs)
        except RuntimeError:  # the loop has been closed: nobody waits
            continue


def _deliver_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.future.done():  # they have gone
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _note_write(connection: Connection, _cursor: object, statement: str, *_rest: object) -> None:
    if not statement.startswith(("SELECT", "select")):
        connection.info["wrote"] = True
