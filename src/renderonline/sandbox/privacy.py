"""What a program or an account keeps: private memory and files, what must survive a power cut, the lock of a directory.

Standard library only, because the spawner and the SDK use it.
"""

import ctypes
import os
import shlex
import stat
import sys
import tempfile
from pathlib import Path
from typing import IO, Final

from renderonline.farm.errors import InvalidRequest

_PR_SET_DUMPABLE: Final = 4
_LOCKED_BYTE: Final = 1 << 20
"""The position of the byte that is locked on Windows, behind every note, because a locked byte can't be read."""


class Locked(BlockingIOError):
    """Another program has the lock; the message is its note, or "another program"."""


def keep_private() -> None:
    """Keep other programs of this account from reading this one's memory and environment, and disable its core dumps.
    Programs that it starts stay readable, and an administrator can read everything. Does nothing outside Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def taken_from_environment(name: str) -> str:
    """Return the value of a variable, or "", and remove it, so that no program that we start inherits it. It is
    overwritten too, because `/proc/<pid>/environ` still shows variables that were unset."""
    value = os.environ.get(name, "")
    if value and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        if (place := libc.getenv(os.fsencode(name))) is not None:
            ctypes.memset(place, ord("x"), len(os.fsencode(value)))
    os.environ.pop(name, None)
    return value


def write_private(path: Path, content: str | bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Write a file completely or not at all: under a temporary name, which then replaces an older file. `mode`: by
    default only this account can read it. `durable`: sync it before it gets its name. Raises OSError when the disk
    refuses; nothing is left of it then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if mode != 0o600:
            os.chmod(aside, mode)
        os.replace(aside, path)
    except BaseException:
        os.unlink(aside)
        raise


def sync(*paths: Path) -> None:
    """Make files, and the entries of directories, survive a power cut."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def private_read(path: Path) -> str:
    """Return the text of a file that `write_private` wrote. Raises `InvalidRequest` if others can read it by now."""
    if sys.platform != "win32" and stat.S_IMODE(path.stat().st_mode) & (stat.S_IRGRP | stat.S_IROTH):
        raise InvalidRequest(f"Others may read {path}, which holds a secret. {_remedy(path)}")
    return path.read_text(encoding="utf-8")


def exposed(path: Path) -> str:
    """Return a warning about a file of the operator's that every account of this computer can read; "" if none can, or
    if it is missing. A group may read it, because keys are often shared that way."""
    try:
        is_open = sys.platform != "win32" and path.stat().st_mode & stat.S_IROTH
    except OSError:  # opening it reports why
        return ""
    return f"Everybody on this computer may read {path}, which may hold secrets. {_remedy(path)}" if is_open else ""


def _remedy(path: Path) -> str:
    return f"Type: chmod 600 {shlex.quote(str(path))}"


def lock_file(path: Path, note: str = "") -> IO[str]:
    """Lock a file, which is made if missing, until the returned file is closed or this program ends. `note` is what
    others see as the holder. Raises `Locked` when another program has the lock, OSError when locking fails."""
    file = os.fdopen(os.open(path, os.O_CREAT | os.O_RDWR, 0o600), "r+", encoding="utf-8")
    try:
        _lock(file)
    except (BlockingIOError, PermissionError):
        holder = file.read(200).strip() or "another program"
        file.close()
        raise Locked(holder) from None
    except BaseException:
        file.close()
        raise
    file.truncate(0)
    file.write(note)
    file.flush()
    return file


def _lock(file: IO[str]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        finally:
            file.seek(0)
    else:
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
