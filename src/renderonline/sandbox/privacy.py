"""What one program or one account has for itself: its memory, its private files, the lock of a directory.

Standard library only: the spawner and the SDK use it.
"""

import ctypes
import os
import sys
import tempfile
from pathlib import Path
from typing import IO, Final

_PR_SET_DUMPABLE: Final = 4
_LOCKED_BYTE: Final = 1 << 20
"""On Windows a locked byte can't be read; this one lies behind every note."""


class Locked(BlockingIOError):
    """Another program has the lock; the message is its note, or "another program"."""


def keep_private() -> None:
    """Let no other program of this account read this one's memory or environment, and write no core of it. Programs
    that it starts are as readable as ever. Linux only; an administrator still can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def taken_from_environment(name: str) -> str:
    """The value of a variable, "" if there is none; then nobody finds it any more: neither a program that we start nor
    one that reads `/proc/<pid>/environ`, where a variable that was unset stays."""
    value = os.environ.get(name, "")
    if value and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        if (place := libc.getenv(os.fsencode(name))) is not None:
            ctypes.memset(place, ord("x"), len(os.fsencode(value)))
    os.environ.pop(name, None)
    return value


def write_private(path: Path, content: str | bytes, *, durable: bool = True, mode: int = 0o600) -> None:
    """Write a file whole or not at all: aside, then in place of an older one. Only this account can read it, unless
    `mode` says otherwise. `durable`: it is on the disk before it gets its name. Raises OSError when the disk refuses;
    then nothing is left of it."""
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


def lock_file(path: Path, note: str = "") -> IO[str]:
    """Lock a file, made if it is not there, until the returned one is closed or this program ends. `note` tells others
    who has the lock. Raises `Locked` when another program has it, OSError when there can be no lock."""
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
