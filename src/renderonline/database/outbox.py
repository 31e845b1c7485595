"""A machine's outbox: the attempts it holds and the reports that RenderAPI has not acknowledged yet (R5.2).

One SQLite file of its own. It is brought to its full size when it is opened, so that a report can still be written
when the disk is full. Reports are numbered from 1 at each start, because sequence numbers belong to one run of
HPCServer. Synchronous; one thread at a time.
"""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from renderonline.farm.errors import NoSpace

FULL_SIZE: Final = 8 * 1024 * 1024
"""Bytes that are set aside in the file and in its write-ahead log: some ten thousand reports."""
PAGE: Final = 4096

_TABLES: Final = (
    """CREATE TABLE IF NOT EXISTS attempts
       (attempt INTEGER PRIMARY KEY, token TEXT NOT NULL, directory TEXT NOT NULL, exited_seq INTEGER)""",
    "CREATE TABLE IF NOT EXISTS reports (seq INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, body TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS filler (bytes BLOB)",
)


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt that was assigned and whose end is not acknowledged. `exited_seq`: its last report, when it ended."""

    attempt: int
    token: str
    directory: str
    exited_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """Keep an attempt before anything of it starts (R5.1)."""

    held: Held


@dataclass(frozen=True, slots=True)
class Append:
    """Keep a report (JSON text); `last` says that no further report of its attempt follows."""

    attempt: int
    body: str
    last: bool = False


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Forget all reports up to `seq`, and the attempts that ended with them."""

    seq: int


Change = Store | Append | Acknowledge


class Outbox:
    """The open file. Every method raises `NoSpace` when the disk refuses; what was committed before stays."""

    def __init__(self, path: Path, *, full_size: int = FULL_SIZE) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
        except (sqlite3.Error, OSError) as error:
            raise self._refused(error) from error
        try:
            self._prepare(full_size)
        except sqlite3.Error as error:
            self._connection.close()
            raise self._refused(error) from error

    def _prepare(self, full_size: int) -> None:
        # Exclusive: no shared-memory file beside it (which a full disk would refuse) and no second program in it.
        for pragma in (f"page_size={PAGE}", "locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            self._connection.execute(f"PRAGMA {pragma}")
        with _Transaction(self._connection):
            for table in _TABLES:
                self._connection.execute(table)
            self._connection.execute("INSERT INTO filler VALUES (zeroblob(?))", (full_size,))
        with _Transaction(self._connection):
            self._connection.execute("DELETE FROM filler")
            first = self._connection.execute("SELECT min(seq) FROM reports").fetchone()[0]
            if first is not None:
                self._connection.execute("UPDATE reports SET seq = seq - ?", (first - 1,))
                self._connection.execute("UPDATE attempts SET exited_seq = exited_seq - ?", (first - 1,))
        # The log file keeps its size and is written from its beginning again, long before it would have to grow.
        self._connection.execute(f"PRAGMA wal_autocheckpoint={max(full_size // PAGE // 2, 16)}")
        self._connection.execute("PRAGMA wal_checkpoint(RESTART)")
        last = self._connection.execute("SELECT max(seq) FROM reports").fetchone()[0]
        self._last_seq: int = last or 0

    @property
    def last_seq(self) -> int:
        """The number of the newest report, 0 when there was none in this run."""
        return self._last_seq

    def commit(self, changes: Sequence[Change]) -> list[int]:
        """Apply all changes or none, durably. Gives for each the number of its report, 0 where it is none.

        Without a report among them they survive the death of every process, but perhaps not a power cut, which ends
        the engines too: an attempt that nobody remembers then is sent again or lost by RenderAPI's own rule (R5.4).
        """
        last_seq = self._last_seq
        reports = any(isinstance(change, Append) for change in changes)
        try:
            self._connection.execute(f"PRAGMA synchronous={'FULL' if reports else 'NORMAL'}")
            with _Transaction(self._connection):
                numbers = [self._apply(change) for change in changes]
        except BaseException as error:
            self._last_seq = last_seq
            if isinstance(error, (sqlite3.Error, OSError)):
                raise self._refused(error) from error
            raise
        return numbers

    def _apply(self, change: Change) -> int:
        if isinstance(change, Store):
            held = change.held
            self._connection.execute(
                "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, NULL)", (held.attempt, held.token, held.directory)
            )
            return 0
        if isinstance(change, Append):
            return self._append(change)
        self._connection.execute("DELETE FROM reports WHERE seq <= ?", (change.seq,))
        self._connection.execute("DELETE FROM attempts WHERE exited_seq <= ?", (change.seq,))
        return 0

    def _append(self, change: Append) -> int:
        self._last_seq += 1
        self._connection.execute("INSERT INTO reports VALUES (?, ?, ?)", (self._last_seq, change.attempt, change.body))
        if change.last:
            self._connection.execute(
                "UPDATE attempts SET exited_seq = ? WHERE attempt = ?", (self._last_seq, change.attempt)
            )
        return self._last_seq

    def held(self) -> tuple[Held, ...]:
        """All attempts that are kept."""
        rows = self._connection.execute("SELECT attempt, token, directory, exited_seq FROM attempts ORDER BY attempt")
        return tuple(Held(*row) for row in rows)

    def after(self, seq: int, limit: int) -> list[tuple[int, str]]:
        """The oldest `limit` reports with a number above `seq`: number and JSON text."""
        return self._connection.execute(
            "SELECT seq, body FROM reports WHERE seq > ? ORDER BY seq LIMIT ?", (seq, limit)
        ).fetchall()

    def close(self) -> None:
        """Close the file; a later commit is refused."""
        self._connection.close()

    def _refused(self, error: Exception) -> NoSpace:
        return NoSpace(f"The outbox {self._path} can't be written ({error}). Free some disk space or mend the disk.")


class _Transaction:
    """BEGIN … COMMIT; anything raised rolls back."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            try:
                self._connection.execute("COMMIT")
            except sqlite3.Error:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")
