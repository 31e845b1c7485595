"""Files of tasks on a machine that does not share the farm's directory: fetched once, kept for the next attempts."""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import structlog
from blake3 import blake3

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import InputFile

log = structlog.get_logger(__name__)

WAIT_S: Final = 0.2
Fetch = Callable[[int, set[int]], None]
"""Writes the file to a handle; the numbers of the parts that are there, to be added to."""
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_CHANGED_NS: Final = 1_000_000_000
"""The modification time of every file in the cache (ns): another one tells that somebody wrote into it."""
_FICLONE: Final = 0x40049409
_TRIES: Final = 2


class InputCache:
    """Files of tasks that were fetched, kept by their digest for the next attempts in the directory `root`; at most
    `limit` bytes of them that are not in use (0: a tenth of the disk). Blocks.

    One fetch serves all attempts that want a file at the same time. A file lies here read-only, keeps one fixed time
    of change, and is thrown away when an engine changed it. What was used longest ago makes room.
    """

    def __init__(self, root: Path, limit: int) -> None:
        self._root = root
        self._limit = limit
        self._pins: Counter[str] = Counter()
        self._parts: dict[str, set[int]] = {}
        self._fetching: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def open(self) -> None:
        """Make the directory; throw away what is not ours, and what was changed meanwhile."""
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._limit = self._limit or shutil.disk_usage(self._root).total // 10
        for path in list(self._root.iterdir()):
            if not DIGEST.fullmatch(path.name) or not _is_unchanged(path):
                path.unlink()
        self._make_room(0)

    def place(self, wanted: InputFile, target: Path, fetch: Fetch, check: Callable[[], None]) -> None:
        """Have the file at `target`, read-only; fetched unless it is here. It is pinned until `release`, whatever
        happens. `check` is called while somebody else fetches it, and raises when we don't want it any more.

        Raises what `fetch` and `check` raise, `InvalidRequest` for a file that is not what the task was submitted with,
        and OSError of the disk.
        """
        with self._lock:
            self._pins[wanted.digest] += 1
            single = self._fetching.setdefault(wanted.digest, threading.Lock())
        kept = self._root / wanted.digest
        while not single.acquire(timeout=WAIT_S):
            check()
        try:
            if not (kept.exists() and _is_unchanged(kept) and kept.stat().st_size == wanted.size):
                self._fetch(wanted, fetch)
            os.utime(kept, ns=(time.time_ns(), _CHANGED_NS))
        finally:
            single.release()
        target.parent.mkdir(parents=True, exist_ok=True)
        _share(kept, target)

    def release(self, digests: Sequence[str]) -> None:
        """These are not in use any more (once each)."""
        for digest in digests:
            kept = self._root / digest
            with self._lock:
                self._pins[digest] -= 1
                if self._pins[digest] <= 0:
                    del self._pins[digest]
                    self._fetching.pop(digest, None)
            with contextlib.suppress(OSError):
                if not _is_unchanged(kept):
                    log.warning("an engine wrote into a file of its task; it is fetched anew next time", digest=digest)
                    kept.unlink()
        with contextlib.suppress(OSError):
            self._make_room(0)

    def _fetch(self, wanted: InputFile, fetch: Fetch) -> None:
        begun = self._root / f"{wanted.digest}.part"
        self._make_room(wanted.size)
        for _ in range(_TRIES):
            done = self._parts.setdefault(wanted.digest, set())
            handle = os.open(begun, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.truncate(handle, wanted.size)
                fetch(handle, done)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._make_room(self._limit):
                    raise
                continue
            finally:
                os.close(handle)
            right = _digest(begun) == wanted.digest
            del self._parts[wanted.digest]
            if right:
                begun.chmod(0o444)
                os.utime(begun, ns=(time.time_ns(), _CHANGED_NS))
                begun.replace(self._root / wanted.digest)
                return
            log.warning("what came is not what was asked for", name=wanted.name, digest=wanted.digest)
            begun.unlink()
        raise InvalidRequest(
            f"{wanted.name} on the farm is not what the task was submitted with. Submit the task again."
        )

    def _make_room(self, size: int) -> bool:
        """Remove what was used longest ago until `size` more bytes fit; whether anything was removed."""
        found: list[tuple[int, int, Path]] = []
        for path in self._root.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has just got its name
                found.append(((status := path.stat()).st_atime_ns, status.st_size, path))
        total, removed = size + sum(one for _, one, _ in found), False
        for _, freed, path in sorted(found):
            with self._lock:
                if total > self._limit and path.stem not in self._pins:
                    path.unlink(missing_ok=True)
                    self._parts.pop(path.stem, None)
                    total, removed = total - freed, True
        return removed


def _digest(path: Path) -> str:
    return blake3().update_mmap(path).hexdigest() if path.stat().st_size else blake3().hexdigest()


def _is_unchanged(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISREG(status.st_mode) and status.st_mtime_ns == _CHANGED_NS


def _share(kept: Path, target: Path) -> None:
    """The same bytes under another name: as a copy that shares them, as a second name, or as a plain copy."""
    with kept.open("rb") as source, contextlib.suppress(OSError):
        with target.open("xb") as copy:
            fcntl.ioctl(copy.fileno(), _FICLONE, source.fileno())
        target.chmod(0o444)
        return
    target.unlink(missing_ok=True)
    try:
        os.link(kept, target)
    except OSError:
        shutil.copyfile(kept, target)
        target.chmod(0o444)
