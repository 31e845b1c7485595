"""The lease: one RenderAPI for each database.

SQLite: a lock on the file `<database>.lock`, which ends with the process. MySQL: a row {holder, epoch, beat}
(R10 Standby). Its holder raises `beat`; a standby that saw the same beat for long enough takes the row over and raises
`epoch`. Every transaction of the writer locks the row and checks its epoch first, so a holder that was only suspended
writes nothing more. MySQL's GET_LOCK would be shorter, but clusters such as Galera do not support it, and after a
restart of the database it would belong to whichever program asks first.
"""

import os
import re
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Final, Self

import psutil
from sqlalchemy import Connection, select

from renderonline.database.door import Database
from renderonline.database.schema import AnyRow, leases
from renderonline.farm.errors import Conflict, NotAvailable
from renderonline.sandbox.privacy import lock_file

LEASE_S: Final = 10.0
"""A holder whose beat did not move for this long has lost the lease."""
BEATS: Final = 5
"""How often the holder raises its beat in that time."""
LOOKS: Final = 10
"""How often a standby looks at it in that time."""
_ROW: Final = leases.c.name == "dispatcher"
_EPOCH: Final = "SELECT epoch FROM leases WHERE name = 'dispatcher' FOR UPDATE"


class Overtaken(NotAvailable):
    """Another program has taken the lease: this one writes nothing more and must end."""

    code = "overtaken"


class Lease(ABC):
    """The right to write to a database, from `take` until `release`, the end of the process or, on MySQL, a takeover.

    `holder` says in words who has it. `on_lost` is called in the writer's thread when another program took it.
    """

    def __init__(self, database: Database, program: str) -> None:
        self._database = database
        self.holder = f"{program} (process {os.getpid()} on {socket.gethostname()})"

    @staticmethod
    def of(
        database: Database, program: str, *, lease_s: float = LEASE_S, on_lost: Callable[[], None] = lambda: None
    ) -> "Lease":
        """The lease of a database for `program`, not yet taken."""
        if database.dialect == "sqlite":
            return _FileLease(database, program)
        return _RowLease(database, program, lease_s, on_lost)

    @abstractmethod
    def take(self) -> bool:
        """Take the lease if it is free or its holder's beat has not moved; call it again every `lease_s` / 10. Raises
        `Conflict` where waiting makes no sense (SQLite). Blocks."""

    @abstractmethod
    def hold(self) -> Self:
        """Take the lease, in a database without any tables too, and keep it fresh in a thread until `release`.
        `Conflict` says who has it. Blocks; for `lease_s` when its holder may be dead."""

    @abstractmethod
    def verify(self) -> None:
        """Raise the beat; call it every `lease_s` / 5. `Overtaken` when the lease is no longer ours. Blocks."""

    @abstractmethod
    def release(self) -> None:
        """Give the lease back, if it is ours."""

    def _in_use(self) -> Conflict:
        label = self._database.place.label
        return Conflict(f"The database {label} is in use by {self.holder}. Stop it first, or name another database.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.release()


class _FileLease(Lease):
    _file: IO[str] | None = None

    def take(self) -> bool:
        try:
            self._file = lock_file(Path(f"{self._database.place.database}.lock"), f"{self.holder}\n")
        except OSError as error:
            self.holder = str(error)
            raise self._in_use() from None
        return True

    def hold(self) -> Self:
        self.take()
        return self

    def verify(self) -> None:
        if self._file is None:
            raise Overtaken("The lease was given back.")

    def release(self) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate(0)
            self._file.close()
            self._file = None


class _RowLease(Lease):
    def __init__(self, database: Database, program: str, lease_s: float, on_lost: Callable[[], None]) -> None:
        super().__init__(database, program)
        self._me = f"{self.holder}, {_process_space()} {secrets.token_hex(8)}"
        self._lease_s = lease_s
        self._on_lost = on_lost
        self._epoch: int | None = None
        self._seen: AnyRow | None = None
        self._looked_at = self._still_s = 0.0
        self._beating: threading.Thread | None = None
        self._ended = threading.Event()

    def take(self) -> bool:
        seen, before, now = self._database.read_now(_row), self._seen, time.monotonic()
        # A pause of this program or of the database says nothing about the holder.
        passed = min(now - self._looked_at, 2 * self._lease_s / LOOKS)
        self._still_s = self._still_s + passed if seen == before else 0.0
        self._seen, self._looked_at = seen, now
        if seen is not None and seen.holder:
            self.holder = seen.holder.rpartition(", ")[0]
            if self._still_s < self._lease_s and not _is_dead(seen.holder):
                return False
        epoch = self._database.write_now(partial(_take_over, seen=seen, me=self._me))
        if epoch is None:
            return False
        self._epoch = epoch
        self._database.guard(self._check)
        return True

    def hold(self) -> Self:
        self._database.write_now(lambda connection: leases.create(connection, checkfirst=True))
        first = None
        while not self.take():
            first = first or self._seen
            if self._seen != first:
                raise self._in_use()
            # Looked at often: one beat is enough to know that the holder lives.
            time.sleep(self._lease_s / LOOKS / 5)
        self._beating = threading.Thread(target=self._beat_for_ever, name="lease", daemon=True)
        self._beating.start()
        return self

    def _beat_for_ever(self) -> None:
        while not self._ended.wait(self._lease_s / BEATS):
            with suppress(NotAvailable):
                self.verify()

    def _check(self, connection: Connection) -> None:
        """First in each of the writer's transactions."""
        if connection.exec_driver_sql(_EPOCH).scalar() != self._epoch:
            self._on_lost()
            label = self._database.place.label
            raise Overtaken(f"Another RenderAPI has taken over the database {label}. This one writes nothing more.")

    def verify(self) -> None:
        if self._epoch is None:
            raise Overtaken("The lease was given back.")
        self._database.write_now(_beat)

    def release(self) -> None:
        self._ended.set()
        if self._beating is not None:
            self._beating.join()
        if self._epoch is not None:
            with suppress(NotAvailable):
                self._database.write_now(partial(_beat, holder=""))
            self._database.guard(None)
            self._epoch = None


def _row(connection: Connection) -> AnyRow | None:
    return connection.execute(select(leases.c.holder, leases.c.epoch, leases.c.beat).where(_ROW)).first()


def _take_over(connection: Connection, *, seen: AnyRow | None, me: str) -> int | None:
    """Take the row if it is still as it was `seen`; returns our epoch, None when another program was first."""
    if seen is None:
        first = {"name": "dispatcher", "holder": "", "epoch": 0, "beat": 0}
        connection.execute(leases.insert().prefix_with("IGNORE").values(first))
    epoch, beat = (seen.epoch, seen.beat) if seen else (0, 0)
    as_seen = _ROW & (leases.c.epoch == epoch) & (leases.c.beat == beat)
    connection.execute(leases.update().where(as_seen).values(holder=me, epoch=epoch + 1, beat=beat + 1))
    now = _row(connection)  # it may be ours already, by a commit whose answer was lost
    return now.epoch if now is not None and now.holder == me else None


def _beat(connection: Connection, **more: str) -> None:
    connection.execute(leases.update().where(_ROW).values(beat=leases.c.beat + 1, **more))


def _process_space() -> str:
    """Where a process id means the same process: this boot of this computer or container; "" when unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _is_dead(holder: str) -> bool:
    """Whether the process that took the lease has certainly ended."""
    found = re.search(r"\(process (\d+) on .*\), (\S+) \w+$", holder)
    return found is not None and found[2] == _process_space() and not psutil.pid_exists(int(found[1]))
