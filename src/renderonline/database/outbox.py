"""A machine's outbox: the attempts it holds and the reports that RenderAPI has not acknowledged yet (R5.2 Outbox).

One SQLite file of its own, brought to its full size when it is opened, so that a report can still be written when the
disk is full. Reports are numbered from 1 at each start, because sequence numbers belong to one run of HPCServer.
Synchronous; one thread at a time.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from renderonline.farm.errors import NoSpace

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
    """The open file. `NoSpace` when the disk refuses a change; what was committed before stays."""

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
