"""The writer: one thread through which everything that changes the database goes, with group commit (R3).

Operations that wait together share one transaction and one commit. Each caller is answered after that commit. An
operation that raises is taken out and the others are run again; when the database itself gets in the way (deadlock,
lock timeout, lost connection) the whole batch is run again. So **an operation may run several times**: it changes
nothing but the database, and its ids and tokens are made before it.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final

import structlog
from sqlalchemy import Connection, Engine, event

from renderonline.database.connecting import in_words, is_disconnect, is_transient
from renderonline.database.connection_strings import Place
from renderonline.farm.errors import NotAvailable

Operation = Callable[[Connection], Any]

MAX_BATCH: Final = 256
PATIENCE_S: Final = 30.0
"""How long a batch is tried again while the database does not answer."""
_BACKOFF_S: Final = (0.0, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
_MANY_FAILURES: Final = 3
"""After so many failures in a batch, the rest is committed one by one: failing clients can't make others wait."""

_log = structlog.get_logger(__name__)


class Job:
    """One operation, the one who waits for it, and how it went."""

    __slots__ = ("error", "future", "loop", "operation", "result")

    def __init__(
        self,
        operation: Operation,
        future: "asyncio.Future[Any] | Future[Any]",
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        self.operation = operation
        self.future = future
        self.loop = loop
        self.result: Any = None
        self.error: BaseException | None = None

    def deliver(self) -> None:
        """Tell the one who waits; in their own thread. Nothing happens when they have gone."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.result)


class Writer:
    """Runs jobs in one thread of its own, from `start` to `stop`."""

    def __init__(self, engine: Engine, place: Place, *, patience_s: float = PATIENCE_S) -> None:
        self._engine = engine
        self._place = place
        self._patience_s = patience_s
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._down = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._run, name="database-writer", daemon=True)
        event.listen(engine, "before_cursor_execute", _note_write)

    def start(self) -> None:
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
        goes_on = True
        while goes_on:
            batch, goes_on = self._take()
            if batch:
                self._settle_batch(batch)
        self._disconnect()

    def _take(self) -> tuple[list[Job], bool]:
        """The jobs that wait, at most `MAX_BATCH`; False when no more will come."""
        batch: list[Job] = []
        job = self._jobs.get()
        while job is not None:
            batch.append(job)
            if len(batch) == MAX_BATCH:
                return batch, True
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return batch, True
        return batch, False

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
        deliver(batch)

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
                self._recover(error)
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
        connection = self._connect()
        with connection.begin() as transaction:
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

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = self._engine.connect()
        return self._connection

    def _recover(self, error: BaseException) -> None:
        if self._connection is not None and is_disconnect(error):
            self._connection.invalidate()
            self._disconnect()

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def deliver(jobs: Sequence[Job]) -> None:
    """Tell everybody who waits, with one wake-up for each event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Job]] = {}
    for job in jobs:
        if job.loop is None:
            job.deliver()
        else:
            by_loop.setdefault(job.loop, []).append(job)
    for loop, theirs in by_loop.items():
        try:
            loop.call_soon_threadsafe(_deliver_all, theirs)
        except RuntimeError:  # the loop has been closed: nobody waits
            continue


def _deliver_all(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.deliver()


def _note_write(
    connection: Connection, _cursor: object, statement: str, _parameters: object, _context: object, _many: object
) -> None:
    if not statement.startswith(("SELECT", "select")):
        connection.info["wrote"] = True
