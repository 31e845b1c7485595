"""Files that are served only as they landed (R15 Served as landed), alone or as the members of a ZIP archive.

`file_pieces` compares a file's digest once and remembers the outcome by inode, size and ctime, which can't be set back,
unlike the time of modification. If the ctime changes, the file is compared again; landing, backups and hard links
change it too.

`StoredArchive` is a ZIP that is never written to a disk: its members are not compressed, its length is known at once,
and any byte range can be read. The layout follows from name, size, time and CRC-32 of the members. A member whose CRC
is known has it in its header; others have a data descriptor after their bytes, so that the first byte can be sent
before the member was read. Both depend on `Member.crc32` alone, so that a range that is requested tomorrow fits what
was sent today.
"""

import bisect
import contextlib
import ctypes
import hashlib
import os
import stat
import struct
import threading
import time
import zlib
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import orjson

from renderonline.farm.errors import RenderOnlineError
from renderonline.farm.tasks import Landed
from renderonline.storage.disk import RESULT_SUMS
from renderonline.storage.names import UNFINISHED, unused_folder

PIECE_BYTES: Final = 1024 * 1024
MOST: Final = 100_000
"""Files that are remembered; about 40 MB."""
_FINE_NS, _COARSE_NS = 100_000_000, 2_000_000_000
"""A ctime younger than this may stay the same for a further change: clocks of file systems tick every few hundredths of
a second, those of some (and no other has a ctime without a fraction of a second) every second or two."""
_WAIT_S: Final = 0.002
_MANY: Final = 64
"""From this number of members on, one sync of the whole file system is cheaper than one for each file."""
_PIECES_A_TURN: Final = 16
_REGULAR: Final = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))


class Changed(RenderOnlineError):
    """A file changed while it was being sent; the answer must not be completed."""

    code = "changed"
    status = 409


class Altered(Changed):
    """A file does not have the digest that is known of it. `member`: the expected file."""

    code = "altered"

    def __init__(self, member: "Member") -> None:
        message = f"{member.name} is not the file that it was: somebody has changed it."
        super().__init__(message, names=(member.name,))
        self.member = member


class Member(NamedTuple):
    """One file: its name (with `/`), its path, and its known facts. `digest`: if "", any content is accepted that does
    not change while it is read. `sums` makes a hash object for the digest. `own_name`: what a result is called
    that an archive has under another name, "" for all others."""

    name: str
    path: Path | str
    size: int
    modified_ns: int
    crc32: int | None = None
    digest: str = ""
    sums: Callable[[], Any] = RESULT_SUMS
    own_name: str = ""

    @property
    def landed_as(self) -> str:
        """The name under which it landed."""
        return self.own_name or self.name

    @staticmethod
    def of(name: str, path: Path) -> "Member":
        """Return the member for a regular file. Raises `OSError` for all else, also for a symbolic link. Blocks."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        return Member(name, path, status.st_size, status.st_mtime_ns)


_Identity = tuple[str, int, int, int, int]
IsOnDisk = Callable[[int, os.stat_result], bool]
"""Whether all pages of an open file were written to the disk since it was touched last."""
_syncfs: Final = getattr(ctypes.CDLL(None), "syncfs", None) if os.name == "posix" else None


class Compared:
    """Remembers which files were compared with their digests, and with which outcome. Thread-safe."""

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns
        self._found: OrderedDict[_Identity, bool] = OrderedDict()
        self._comparing: set[_Identity] = set()
        self._lock = threading.Lock()

    def known(self, digest: str, status: os.stat_result) -> bool | None:
        """Whether the file has this digest; None if it has not been compared."""
        return self._found.get(_identity(digest, status))

    def lasts(self, handle: int, status: os.stat_result, is_on_disk: "IsOnDisk | None" = None) -> bool:
        """Whether the outcome of comparing an open file can be remembered; ask before the file is read."""
        if status.st_ctime_ns < 0 or self._age_ns(status) < _tick_ns(status):
            return False
        # A page that somebody has mapped and written to can be written again without another ctime until it is on disk.
        if is_on_disk is not None and is_on_disk(handle, status):
            return True
        with contextlib.suppress(OSError):
            os.fsync(handle)
            return True
        return False

    def will_last(self, status: os.stat_result) -> bool:
        """Whether the outcome can be remembered a moment later, if the file is not touched again."""
        return 0 <= self._age_ns(status) < _tick_ns(status)

    def begin(self, digest: str, status: os.stat_result) -> bool:
        """Return whether no other thread compares this file now; then the caller compares it and calls `end`."""
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
        """Remember the outcome for a file that `lasts`."""
        with self._lock:
            self._found[_identity(digest, status)] = same
            if len(self._found) > MOST:
                self._found.popitem(last=False)


def _identity(digest: str, status: os.stat_result) -> _Identity:
    return digest, status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns


def _tick_ns(status: os.stat_result) -> int:
    return _FINE_NS if status.st_ctime_ns % 1_000_000_000 else _COARSE_NS


def file_pieces(
    member: Member, skip: int, stop: int, compared: Compared, is_on_disk: IsOnDisk | None = None
) -> Iterator[bytes]:
    """Yield the bytes [skip, stop) of a file in pieces of 1 MiB. Blocks; raises `Changed` if `member` does not fit.

    A whole file is sent while it is compared, but for its last piece; a part is only sent after the whole file was
    compared. Meanwhile empty pieces are yielded, so that the caller can give up or serve other requests.
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
            yield from _comparing(handle, member, skip, stop, compared, is_on_disk)
            return
        if same is None:
            yield from _look(handle, member, status, compared)
            same = compared.known(member.digest, status)
        if same is None:  # it can change again without another ctime
            yield from _comparing(handle, member, skip, stop, compared, is_on_disk)
        elif same:
            yield from _unchanged(handle, member, skip, stop, status)
        else:
            raise Altered(member)
    finally:
        os.close(handle)


def _look(handle: int, member: Member, status: os.stat_result, compared: Compared) -> Iterator[bytes]:
    """Compare a whole file of which parts are requested, as a machine does many at a time: one thread reads it while
    the others wait, and only once the outcome can be remembered."""
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
    """Return whether a file still has its digest. Blocks; it may read the whole file."""
    try:
        deque(file_pieces(member, 0, member.size, compared), maxlen=0)
    except Changed:
        return False
    return True


def _gone(member: Member) -> Changed:
    if member.digest:
        return Altered(member)
    return Changed(f"{member.name} changed while it was being sent.")


def _comparing(
    handle: int, member: Member, skip: int, stop: int, compared: Compared, is_on_disk: IsOnDisk | None = None
) -> Iterator[bytes]:
    """Yield [skip, stop); the last piece follows once the whole file was read and has the expected digest."""
    status, sums, held, at = os.fstat(handle), member.sums(), b"", 0
    lasts = compared.lasts(handle, status, is_on_disk)
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
    """Yield [skip, stop) of a file that was compared; the last piece follows if the file has not been touched."""
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


SUBMITTED: Final = "submitted"
"""The folder in an archive for what a task was submitted with, where that has the name of a result."""
_BIG: Final = 0xFFFFFFFF
_UTF8: Final = 0x800
_DESCRIPTOR: Final = 0x8
_UNIX: Final = 0x031E


def members_of(directory: Path, known: Mapping[str, Landed]) -> tuple[Member, ...]:
    """Return every regular file below `directory`, by name, without symbolic links and special files. Blocks.

    A file that is `known` (by name) is listed as it landed, without looking at it, which would take most of the time;
    it is compared when it is read.
    """
    members: list[Member] = []
    waiting = [(str(directory), "")]
    while waiting:
        folder, prefix = waiting.pop()
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for entry in os.listdir(handle):
                path = f"{folder}/{entry}"
                if (one := known.get(prefix + entry)) is not None and one.digest:
                    written_ns = (one.landed_us or 0) * 1000
                    members.append(Member(prefix + entry, path, one.size, written_ns, one.crc32, one.digest))
                    continue
                status = os.stat(entry, dir_fd=handle, follow_symlinks=False)
                name = prefix + _shown(entry)
                if stat.S_ISDIR(status.st_mode):
                    waiting.append((path, f"{name}/"))
                elif stat.S_ISREG(status.st_mode) and not entry.startswith(UNFINISHED):
                    members.append(Member(name, path, status.st_size, status.st_mtime_ns))
        finally:
            os.close(handle)
    return tuple(sorted(members, key=itemgetter(0)))


def results_first(members: Sequence[Member], folder: str, called: Mapping[str, str] = {}) -> tuple[Member, ...]:
    """Return the members of a task's directory under the names that users know. Results lie in `folder` ("": beside the
    rest), which is removed from their names; `called` maps a result's own name to another one. If another file has the
    name of a result, all files that are not results move to a folder of their own."""
    if not folder and not called:
        return tuple(members)
    results, others = [], []
    for one in members:
        own = one.name[len(folder) + 1 :] if folder and one.name.startswith(f"{folder}/") else one.name
        if own != one.name or own in called:
            results.append(one._replace(name=called.get(own, own), own_name=own))
        else:
            others.append(one)
    taken, above = _places(results)
    used, over = _places(others)
    if taken & (used | over) or used & above:
        apart = unused_folder(SUBMITTED, (one.name for one in results))
        others = [one._replace(name=f"{apart}/{one.name}") for one in others]
    return tuple(sorted((*results, *others), key=itemgetter(0)))


def _places(members: Iterable[Member]) -> tuple[set[str], set[str]]:
    """The names of files and of the folders that they lie in, without regard to letter case."""
    names = {one.name.casefold() for one in members}
    return names, {str(folder) for name in names if "/" in name for folder in PurePosixPath(name).parents}


def _shown(name: str) -> str:
    """The name of an entry of a directory as it is in an archive."""
    return os.fsencode(name).decode(errors="replace").replace("\\", "_")


_Read = Callable[[int, int], Iterable[bytes]]
"""Returns the bytes [skip, stop) of one part of an archive."""


class StoredArchive:
    """The layout of one archive. `size` and `etag` are known at once; `pieces` reads the files, in order."""

    def __init__(self, members: Sequence[Member], compared: Compared) -> None:
        self.members = tuple(members)
        self._compared = compared
        self.etag = etag_of(self.members)
        self._written: set[_Identity] | None = None
        self._found: dict[Path | str, int] = {}
        self._offsets: list[int] = []
        behind = entries = 0
        for member in self.members:
            self._offsets.append(behind)
            length, entry = _lengths(member.name, member.size, behind, known=member.crc32 is not None)
            behind += length
            entries += entry
        self._begins = behind
        self._length = entries + len(_closing(len(self.members), entries, behind))
        self.size = behind + self._length

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield the bytes [start, end) in pieces, many of them small; an empty one means that reading goes on. Blocks.
        Raises `Changed` when a file is not as it was."""
        end = self.size if end is None else end
        first = max(bisect.bisect_right(self._offsets, start) - 1, 0)
        at = self._offsets[first] if self._offsets else 0
        for length, read in self._parts(first):
            if at >= end:
                return
            if at + length > start:
                yield from read(max(start - at, 0), min(length, end - at))
            at += length

    def _parts(self, first: int) -> Iterator[tuple[int, _Read]]:
        """Length and reader of each part of the members from `first` on, and of the directory behind all."""
        for member in self.members[first:]:
            header = _header(member)
            yield len(header), partial(_cut, header)
            if member.size:
                yield member.size, partial(self._file, member)
            if member.crc32 is None:
                yield len(_descriptor(member, 0)), partial(self._descriptor, member)
        yield self._length, self._directory

    def _file(self, member: Member, skip: int, stop: int) -> Iterator[bytes]:
        crc = 0
        for piece in file_pieces(member, skip, stop, self._compared, self._is_on_disk):
            if member.crc32 is None:
                crc = zlib.crc32(piece, crc)
            yield piece
        if member.crc32 is None and stop - skip == member.size:
            self._found[member.path] = crc

    def _is_on_disk(self, handle: int, status: os.stat_result) -> bool:
        """The whole disk is written once, for all members: each alone would wait for the disk."""
        if self._written is None:
            found = set[_Identity]()
            for member in self.members if len(self.members) >= _MANY else ():
                with contextlib.suppress(OSError):
                    found.add(_identity("", os.lstat(member.path)))
            done = _syncfs is not None and bool(found) and _syncfs(handle) == 0
            self._written = {one for one in found if done and one[1] == status.st_dev}
        return _identity("", status) in self._written

    def _descriptor(self, member: Member, skip: int, stop: int) -> Iterator[bytes]:
        yield from self._read((member,))
        yield from _cut(_descriptor(member, self._crc(member)), skip, stop)

    def _directory(self, skip: int, stop: int) -> Iterator[bytes]:
        yield from self._read(self.members)
        placed = zip(self.members, self._offsets, strict=True)
        entries = b"".join(_entry(member, offset, self._crc(member)) for member, offset in placed)
        yield from _cut(entries + _closing(len(self.members), len(entries), self._begins), skip, stop)

    def _read(self, members: Iterable[Member]) -> Iterator[bytes]:
        """Read the members whose CRC is not known yet, because a range began after their first byte; yields b""."""
        for member in members:
            if member.crc32 is None and member.path not in self._found:
                for _ in self._file(member, 0, member.size):
                    yield b""

    def _crc(self, member: Member) -> int:
        """The CRC of a member that was read."""
        return self._found[member.path] if member.crc32 is None else member.crc32


def _cut(data: bytes, skip: int, stop: int) -> Iterable[bytes]:
    return (data[skip:stop],)


def _flags(member: Member) -> int:
    return _UTF8 | (_DESCRIPTOR if member.crc32 is None else 0)


def _lengths(name: str, size: int, offset: int, *, known: bool) -> tuple[int, int]:
    """Bytes of a member with its headers, and of its entry in the directory. `known`: whether its CRC-32 is known."""
    bare, big, far = len(name.encode()), size >= _BIG, offset >= _BIG
    descriptor = 0 if known else 24 if big else 16
    return 30 + bare + 20 * big + size + descriptor, 46 + bare + 4 * (big or far) + 16 * big + 8 * far


def _header(member: Member) -> bytes:
    name = member.name.encode()
    big, known = member.size >= _BIG, member.crc32 is not None
    # With a descriptor CRC and sizes stand behind the bytes; an empty ZIP64 field says that they are 8 bytes wide.
    wide = member.size if known else 0
    size = _BIG if big else wide
    extra = struct.pack("<HHQQ", 1, 16, wide, wide) if big else b""
    times = _dos_time(member.modified_ns)
    fields = (45 if big else 20, _flags(member), 0, *times, member.crc32 or 0, size, size, len(name), len(extra))
    return struct.pack("<4sHHHHHLLLHH", b"PK\3\4", *fields) + name + extra


def _descriptor(member: Member, crc: int) -> bytes:
    form = "<4sLQQ" if member.size >= _BIG else "<4sLLL"
    return struct.pack(form, b"PK\7\x08", crc, member.size, member.size)


def _entry(member: Member, offset: int, crc: int) -> bytes:
    name = member.name.encode()
    wide = [*([member.size] * 2 if member.size >= _BIG else []), *([offset] if offset >= _BIG else [])]
    extra = struct.pack(f"<HH{len(wide)}Q", 1, 8 * len(wide), *wide) if wide else b""
    version = (_UNIX, 45 if wide else 20)
    size, mode = min(member.size, _BIG), (stat.S_IFREG | 0o644) << 16
    lengths = (crc, size, size, len(name), len(extra), 0, 0, 0)
    fields = (*version, _flags(member), 0, *_dos_time(member.modified_ns), *lengths, mode, min(offset, _BIG))
    return struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", *fields) + name + extra


def _closing(count: int, size: int, begins: int) -> bytes:
    end = b""
    if count >= 0xFFFF or max(begins, size) >= _BIG:
        end = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, _UNIX, 45, 0, 0, count, count, size, begins)
        end += struct.pack("<4sLQL", b"PK\6\7", 0, begins + size, 1)
    short = min(count, 0xFFFF)
    return end + struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, short, short, min(size, _BIG), min(begins, _BIG), 0)


def _dos_time(modified_ns: int) -> tuple[int, int]:
    """Time and date as ZIP has them: the server's local time, two seconds fine, from 1980 on."""
    seconds = min(max(modified_ns // 1_000_000_000, 0), 4_102_444_800)
    local = datetime.fromtimestamp(seconds)  # noqa: DTZ006  (ZIP knows local time only)
    if local.year < 1980:
        return 0, (1 << 5) | 1
    date = (local.year - 1980) << 9 | local.month << 5 | local.day
    return local.hour << 11 | local.minute << 5 | local.second // 2, date


def etag_of(members: Iterable[Member]) -> str:
    """An ETag (with its quotes) that changes whenever a member does."""
    # A file's time may be one that 64 bits can't hold.
    facts = [(one.name, one.size, one.modified_ns % 2**64, one.crc32) for one in members]
    return f'"{hashlib.blake2b(orjson.dumps(facts), digest_size=16).hexdigest()}"'
