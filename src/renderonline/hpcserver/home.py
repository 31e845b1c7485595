"""HPCServer's data directory: one program at a time, with an identity of its own and a note when it is ready."""

import fcntl
import json
import os
import secrets
from pathlib import Path
from types import TracebackType
from typing import Final

from renderonline.farm.errors import Conflict, NoSpace

LOCK: Final = "hpcserver.lock"
READY: Final = "hpcserver.json"
IDENTITY: Final = "identity"


class Home:
    """The locked directory, as a context. `name` is its identity: it marks the engines of this HPCServer (R8).

    Raises `Conflict` when another HPCServer has it, `NoSpace` when it can't be made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = -1
        self.name = ""

    def __enter__(self) -> "Home":
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self._path / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
            self._take_lock()
            self.name = self._identity()
            (self._path / READY).unlink(missing_ok=True)
        except OSError as error:
            self._unlock()
            raise NoSpace(f"The data directory {self._path} can't be used: {error.strerror}.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._path / READY).unlink(missing_ok=True)
        self._unlock()

    def say_ready(self, **facts: object) -> None:
        """Write `hpcserver.json` {pid, …} for whoever started this program; it goes when the program ends."""
        temporary = self._path / f".{READY}"
        temporary.write_text(json.dumps({"pid": os.getpid(), **facts}), encoding="utf-8")
        temporary.replace(self._path / READY)

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip() or "unknown"
            self._unlock()
            raise Conflict(
                f"Another HPCServer (process {holder}) uses {self._path}. Stop it, or give this one a data directory"
                " of its own (DataDirectory)."
            ) from error
        os.truncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def _unlock(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _identity(self) -> str:
        path = self._path / IDENTITY
        name = path.read_text(encoding="ascii").strip() if path.exists() else ""
        if len(name) != 16 or any(digit not in "0123456789abcdef" for digit in name):
            name = secrets.token_hex(8)
            path.write_text(name, encoding="ascii")
        return name
