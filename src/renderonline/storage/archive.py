"""ZIP archives that are never written anywhere: stored members, a length that is known beforehand, any byte range.

The whole layout follows from (name, size, time, CRC-32) of the members. A member whose CRC is known gets it in its
header; one whose CRC is not gets a data descriptor behind its bytes, so that the first byte can leave before the
member was read. Both layouts depend on `Member.crc32` alone, so that a range asked for tomorrow fits what was sent
today.
"""

import bisect
import hashlib
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from renderonline.farm.errors import RenderOnlineError

PIECE_BYTES: Final = 1024 * 1024
UNFINISHED: Final = ".landing-"
"""What the names of files begin with that are still being copied to their place (`storage.landing`)."""
_BIG: Final = 0xFFFFFFFF
_UTF8: Final = 0x800
_DESCRIPTOR: Final = 0x8
_UNIX: Final = 0x031E


class Changed(RenderOnlineError):
    """A file is not what it was when the archive was laid out; what was sent so far must not be completed."""

    code = "changed"
    status = 409


class Member(NamedTuple):
    """One file of an archive: its name there (with `/`), where it lies, what is known of it."""

    name: str
    path: Path | str
    size: int
    modified_ns: int
    crc32: int | None = None

    @staticmethod
    def of(name: str, path: Path) -> "Member":
        """The member for a regular file; `OSError` for everything else, also for a symbolic link. Blocking."""
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{path} is not a regular file")
        return Member(name, path, status.st_size, status.st_mtime_ns)


def members_of(directory: Path, known: Callable[[str, int], int | None]) -> tuple[Member, ...]:
    """Every regular file below `directory`, by name; symbolic links and special files are left out.

    `known(name, size)` is the CRC-32 of a file if it is known. Blocking.
    """
    return tuple(sorted(_walk(directory, "", known), key=lambda member: member.name))


def _walk(directory: Path, prefix: str, known: Callable[[str, int], int | None]) -> Iterator[Member]:
    with os.scandir(directory) as entries:
        for entry in entries:
            name = prefix + os.fsencode(entry.name).decode(errors="replace").replace("\\", "_")
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), f"{name}/", known)
            elif entry.is_file(follow_symlinks=False) and not entry.name.startswith(UNFINISHED):
                status = entry.stat(follow_symlinks=False)
                size = status.st_size
                yield Member(name, entry.path, size, status.st_mtime_ns, known(name, size))


class _Segment(NamedTuple):
    """Some bytes of an archive: of a member's file, or else what `make` gives."""

    start: int
    length: int
    member: Member | None
    make: Callable[[], bytes]


class StoredArchive:
    """The layout of one archive. `size` and `etag` are known at once; `pieces` reads the files, in order."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self.etag = etag_of(self.members)
        self.size = 0
        self._crcs = {member.path: member.crc32 for member in self.members if member.crc32 is not None}
        self._segments: list[_Segment] = []
        offsets = [self._lay_out(member) for member in self.members]
        begins = self.size
        length = sum(map(_entry_length, self.members, offsets))
        length += len(_closing(len(self.members), length, begins))
        self._add(length, partial(self._directory, offsets, begins))

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in pieces of about 1 MiB. Blocking; raises `Changed` when a file is not as it was."""
        end = self.size if end is None else end
        index = bisect.bisect_right(self._segments, start, key=lambda segment: segment.start) - 1
        waiting: list[bytes] = []
        size = 0
        for segment in self._segments[max(index, 0) :]:
            if segment.start >= end:
                break
            skip, stop = max(start - segment.start, 0), min(segment.length, end - segment.start)
            for piece in self._segment_pieces(segment, skip, stop):
                waiting.append(piece)
                size += len(piece)
                if size >= PIECE_BYTES:
                    yield b"".join(waiting)
                    waiting, size = [], 0
        if size:
            yield b"".join(waiting)

    def _segment_pieces(self, segment: _Segment, skip: int, stop: int) -> Iterator[bytes]:
        member = segment.member
        if member is None:
            yield segment.make()[skip:stop]
        elif member.path in self._crcs or stop - skip < segment.length:
            yield from file_pieces(member, skip, stop)
        else:
            crc = 0
            for piece in file_pieces(member, skip, stop):
                crc = zlib.crc32(piece, crc)
                yield piece
            self._crcs[member.path] = crc

    def _lay_out(self, member: Member) -> int:
        offset = self.size
        self._add(_header_length(member), partial(_header, member))
        if member.size:
            self._add(member.size, bytes, member)
        if member.crc32 is None:
            self._add(len(_descriptor(member, 0)), lambda: _descriptor(member, self._crc(member)))
        return offset

    def _add(self, length: int, make: Callable[[], bytes], member: Member | None = None) -> None:
        self._segments.append(_Segment(self.size, length, member, make))
        self.size += length

    def _directory(self, offsets: Sequence[int], begins: int) -> bytes:
        placed = zip(self.members, offsets, strict=True)
        entries = b"".join(_entry(member, offset, self._crc(member)) for member, offset in placed)
        return entries + _closing(len(self.members), len(entries), begins)

    def _crc(self, member: Member) -> int:
        """The CRC of a member, read now if a range began behind its bytes."""
        if member.path not in self._crcs:
            crc = 0
            for piece in file_pieces(member, 0, member.size):
                crc = zlib.crc32(piece, crc)
            self._crcs[member.path] = crc
        return self._crcs[member.path]


def file_pieces(member: Member, skip: int, stop: int) -> Iterator[bytes]:
    """The bytes [skip, stop) of a file. Blocking; raises `Changed` when it is not what `member` says."""
    try:
        handle = os.open(member.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise Changed(f"{member.name} can't be read any more.") from error
    try:
        status = os.fstat(handle)
        then = (member.size, member.modified_ns)
        if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != then:
            raise Changed(f"{member.name} changed while it was being sent.")
        while skip < stop:
            piece = os.pread(handle, min(PIECE_BYTES, stop - skip), skip)
            if not piece:
                raise Changed(f"{member.name} became shorter while it was being sent.")
            skip += len(piece)
            yield piece
    finally:
        os.close(handle)


def _flags(member: Member) -> int:
    return _UTF8 | (_DESCRIPTOR if member.crc32 is None else 0)


def _header_length(member: Member) -> int:
    return 30 + len(member.name.encode()) + (20 if member.size >= _BIG else 0)


def _entry_length(member: Member, offset: int) -> int:
    wide = 16 * (member.size >= _BIG) + 8 * (offset >= _BIG)
    return 46 + len(member.name.encode()) + (4 + wide if wide else 0)


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
    digest = hashlib.blake2b(digest_size=16)
    for member in members:
        digest.update(f"{member.name}\0{member.size}\0{member.modified_ns}\0{member.crc32}\n".encode())
    return f'"{digest.hexdigest()}"'
