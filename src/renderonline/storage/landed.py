"""Reading files that must be what they were (R15 Served as landed): their digest is compared, once for as long as
nobody touches them.

A file is remembered by its inode, size and ctime, which nobody can set back, unlike its times of modification. Another
ctime means only that somebody must look again: landing, backups and hard links change it too.
"""

import contextlib
import hashlib
import os
import stat
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from renderonline.farm.errors import RenderOnlineError

PIECE_BYTES: Final = 1024 * 1024
MOST: Final = 100_000
"""Files that are remembered; about 40 MB."""
_FINE_NS, _COARSE_NS = 100_000_000, 2_000_000_000
"""A ctime younger than this may stay the same for a further change: clocks of file systems tick every few hundredths of
a second, those of some (and no other has a ctime without a fraction of a second) every second or two."""
_WAIT_S: Final = 0.002
_PIECES_A_TURN: Final = 16
_REGULAR: Final = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
RESULT_SUMS: Final[Callable[[], Any]] = partial(hashlib.blake2b, digest_size=32)


class Changed(RenderOnlineError):
    """A file is not what it was a moment ago; what was sent so far must not be completed."""

    code = "changed"
    status = 409


class Altered(Changed):
    """A file is not the one whose digest is known. `member`: which one was expected."""

    code = "altered"

    def __init__(self, member: "Member") -> None:
        message = f"{member.name} is not the file that it was: somebody has changed it."
        super().__init__(message, names=(member.name,))
        self.member = member


class Member(NamedTuple):
    """One file: its name (with `/`), where it lies, what is known of it. `digest` "": it may be anything that does not
    change while it is read. `sums` begins a sum of the digest's kind."""

    name: str
    path: Path | str
    size: int
    modified_ns: int
    crc32: int | None = None
    digest: str = ""
    sums: Callable[[], Any] = RESULT_SUMS

    @staticmethod
    def of(name: str, path: Path) -> "Member":
        """The member for a regular file; `OSError` for everything else, also for a symbolic link. Blocking."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        return Member(name, path, status.st_size, status.st_mtime_ns)


_Identity = tuple[str, int, int, int, int]


class Compared:
    """Which files were compared with their digests, and how that ended. For threads. `now_ns`: the time of day."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._found: OrderedDict[_Identity, bool] = OrderedDict()
        self._comparing: set[_Identity] = set()
        self._lock = threading.Lock()

    def known(self, digest: str, status: os.stat_result) -> bool | None:
        """Whether this is the file with this digest; None: somebody must look."""
        return self._found.get(_identity(digest, status))

    def lasts(self, handle: int, status: os.stat_result) -> bool:
        """Before an open file is read: whether what is found can be remembered."""
        if status.st_ctime_ns < 0 or self._age_ns(status) < _tick_ns(status):
            return False
        # A page that somebody has mapped and written to can be written again without another ctime until it is on disk.
        with contextlib.suppress(OSError):
            os.fsync(handle)
            return True
        return False

    def will_last(self, status: os.stat_result) -> bool:
        """Whether it can be remembered in a moment, if nobody touches it again."""
        return 0 <= self._age_ns(status) < _tick_ns(status)

    def begin(self, digest: str, status: os.stat_result) -> bool:
        """Whether the caller is the only one who compares this file now, and has to call `end`."""
        with self._lock:
            before = len(self._comparing)
            self._comparing.add(_identity(digest, status))
            return len(self._comparing) > before

    def end(self, digest: str, status: os.stat_result) -> None:
        with self._lock:
            self._comparing.discard(_identity(digest, status))

    def _age_ns(self, status: os.stat_result) -> int:
        return self._now_ns() - status.st_ctime_ns

    def keep(self, digest: str, status: os.stat_result, *, same: bool) -> None:
        """Remember how a comparison ended of a file that `lasts`."""
        with self._lock:
            self._found[_identity(digest, status)] = same
            if len(self._found) > MOST:
                self._found.popitem(last=False)


def _identity(digest: str, status: os.stat_result) -> _Identity:
    return digest, status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def _tick_ns(status: os.stat_result) -> int:
    return _FINE_NS if status.st_ctime_ns % 1_000_000_000 else _COARSE_NS


def file_pieces(member: Member, skip: int, stop: int, compared: Compared) -> Iterator[bytes]:
    """The bytes [skip, stop) of a file in pieces of 1 MiB. Blocking; raises `Changed` when it isn't what `member` says.

    A whole file that must be compared is sent meanwhile, but for its last piece; of a part nothing leaves before the
    whole was compared. While nothing leaves, empty pieces say that reading goes on: who asks can give up, and lets
    others have their turn.
    """
    try:
        handle = os.open(member.path, _REGULAR)
    except OSError as error:
        raise _gone(member) from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_size != member.size:
            raise _gone(member)
        if not member.digest:
            if status.st_mtime_ns != member.modified_ns:
                raise _gone(member)
            yield from _pieces(handle, member, skip, stop)
            return
        same = compared.known(member.digest, status)
        if same is None and (skip, stop) == (0, member.size):
            yield from _comparing(handle, member, skip, stop, compared)
            return
        if same is None:
            yield from _look(handle, member, status, compared)
            same = compared.known(member.digest, status)
        if same is None:  # it can change again without another ctime
            yield from _comparing(handle, member, skip, stop, compared)
        elif same:
            yield from _unchanged(handle, member, skip, stop, status)
        else:
            raise Altered(member)
    finally:
        os.close(handle)


def _look(handle: int, member: Member, status: os.stat_result, compared: Compared) -> Iterator[bytes]:
    """Compare the whole for those who ask for parts of it, as a machine does for many at a time: one of them reads it
    while the others wait, and not before the outcome can be remembered."""
    while compared.will_last(status) or not compared.begin(member.digest, status):
        time.sleep(_WAIT_S)
        yield b""
    try:
        if compared.known(member.digest, status) is None:
            for number, _ in enumerate(_comparing(handle, member, 0, member.size, compared), 1):
                if number % _PIECES_A_TURN == 0:
                    yield b""
    finally:
        compared.end(member.digest, status)


def is_as_known(member: Member, compared: Compared) -> bool:
    """Whether a file is still the one with its digest. Blocking: it may read all of it."""
    try:
        deque(file_pieces(member, 0, member.size, compared), maxlen=0)
    except Changed:
        return False
    return True


def _gone(member: Member) -> Changed:
    if member.digest:
        return Altered(member)
    return Changed(f"{member.name} changed while it was being sent.")


def _comparing(handle: int, member: Member, skip: int, stop: int, compared: Compared) -> Iterator[bytes]:
    """[skip, stop), of which the last piece comes when the whole was read and is what it should be."""
    status, sums, held, at = os.fstat(handle), member.sums(), b"", 0
    lasts = compared.lasts(handle, status)
    for piece in _pieces(handle, member, 0, member.size):
        sums.update(piece)
        part = piece[max(skip - at, 0) : max(stop - at, 0)]
        at += len(piece)
        if at < member.size:
            yield held if part else b""
        elif part and held:
            yield held
        held = part or held
    same = sums.hexdigest() == member.digest
    if lasts and _identity("", os.fstat(handle)) == _identity("", status):
        compared.keep(member.digest, status, same=same)
    if not same:
        raise Altered(member)
    if held:
        yield held


def _unchanged(handle: int, member: Member, skip: int, stop: int, status: os.stat_result) -> Iterator[bytes]:
    """[skip, stop) of a file that was compared; the last piece comes when it still is that file."""
    at = skip
    for piece in _pieces(handle, member, skip, stop):
        at += len(piece)
        if at >= stop and _identity("", os.fstat(handle)) != _identity("", status):
            raise Changed(f"{member.name} was touched while it was being sent. Ask again.")
        yield piece


def _pieces(handle: int, member: Member, skip: int, stop: int) -> Iterator[bytes]:
    while skip < stop:
        piece = os.pread(handle, min(PIECE_BYTES, stop - skip), skip)
        if not piece:
            raise Changed(f"{member.name} became shorter while it was being sent.")
        skip += len(piece)
        yield piece
