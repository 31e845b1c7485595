"""The one door to the database: asynchronous outside, threads inside.

    db = Database.open("sqlite:///farm.db")
    task = await db.write(lambda connection: submissions.submit(connection, new_task))
    page = await db.read(lambda connection: tasks.v1_newest(connection, user_id))
    await db.close()

Neither call ever blocks the event loop. All writing goes through one thread with group commit (`writer`); reading goes
through a few threads of its own, each query in one transaction that sees one moment.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from sqlalchemy import Connection, Engine

from renderonline.database import connecting
from renderonline.database.connecting import Place, parse
from renderonline.database.writer import Job, Writer
from renderonline.farm.errors import NotAvailable

__all__ = ["Connection", "Database"]

T = TypeVar("T")

_READ_PATIENCE_S: Final = 5.0


class Database:
    """A database of the farm, open. Safe to use from any thread and any event loop."""

    def __init__(self, place: Place, writer_engine: Engine, *, readers: int, patience_s: float) -> None:
        self.place = place
        self._writer_engine = writer_engine
        self._writer = Writer(writer_engine, place, patience_s=patience_s)
        self._reader_engine = connecting.reader_engine(place, readers)
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="database-reader")
        self._closed = False

    @classmethod
    def open(
        cls, connection: str, *, readers: int = 3, patience_s: float = 30.0, silence_s: float = 10.0
    ) -> "Database":
        """Open the database that a connection string names (ADO.NET form or URL) and start its threads.

        A SQLite file that does not exist is created, empty. `patience_s`: how long a write is tried again while the
        database does not answer. `silence_s`: when the writer says nothing for so long, MySQL gives up its transaction
        and what it has locked. Raises `NotAvailable` that says what to check when it can't be reached. Blocks.
        """
        place = parse(connection)
        if place.dialect == "sqlite":
            connecting.make_file(place)
        engine = connecting.writer_engine(place, silence_s)
        with connecting.explained(place), engine.connect() as probe:
            probe.exec_driver_sql("SELECT 1")
        return cls(place, engine, readers=readers, patience_s=patience_s)

    @property
    def dialect(self) -> str:
        """`sqlite` or `mysql` (MariaDB too)."""
        return self.place.dialect

    async def write(self, operation: Callable[[Connection], T]) -> T:
        """Run `operation` in the writer's next transaction; comes back after the commit, with its value.

        What `operation` raises is raised here and changes nothing. It may run several times, and once accepted it is
        run even if the caller is canceled. `NotAvailable`: the database did not answer for 30 s; it may or may not
        have been done (R3.2 Repeatable operations).
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._writer.put(Job(operation, future, loop))
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
        """Run `check` first in each transaction of the writer from now on; what it raises undoes the transaction."""
        self._writer.guard = check

    async def close(self) -> None:
        """Finish everything that was accepted, then close."""
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
