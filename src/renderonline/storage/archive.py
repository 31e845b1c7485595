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
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from renderonline.farm.errors import RenderOnlineError

PIECE_BYTES: Final = 1024 * 1024
UNFINISHED: Final = ".landing-"
"""What the names of files begin with that are still being copied to their place (`storage.landing`)."""
_BIG: Final = 0xFFFFFFFF
_UTF8: Final = 0x800
_DESCRIPTOR: Final = 0x8


class Changed(RenderOnlineError):
    """A file is not what it was when the archive was laid out; what was sent so far must not be completed."""

    code = "changed"
    status = 409


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive: its name there (with `/`), where it lies, what is known of it."""

    name: str
    path: Path
    size: int
    modified_ns: int
    crc32: int | None = None


def members_of(directory: Path, known: Callable[[str, int], int | None]) -> tuple[Member, ...]:
    """Every regular file below `directory`, by name; symbolic links and special files are left out.

    `known(name, size)` is the CRC-32 of a file if it is known. Blocking.
    """
    found: list[Member] = []
    _walk(directory, "", known, found)
    return tuple(sorted(found, key=lambda member: member.name))


def _walk(directory: Path, prefix: str, known: Callable[[str, int], int | None], found: list[Member]) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            name = prefix + os.fsencode(entry.name).decode(errors="replace").replace("\\", "_")
            if entry.is_dir(follow_symlinks=False):
                _walk(Path(entry.path), f"{name}/", known, found)
            elif entry.is_file(follow_symlinks=False) and not entry.name.startswith(UNFINISHED):
                status = entry.stat(follow_symlinks=False)
                found.append(
                    Member(name, Path(entry.path), status.st_size, status.st_mtime_ns, known(name, status.st_size))
                )


@dataclass(slots=True)
class _Checksum:
    """The CRC-32 of a member: known, or found out when its bytes are read."""

    member: Member
    value: int | None


@dataclass(frozen=True, slots=True)
class _Segment:
    start: int
    length: int
    member: Member | None
    """Bytes of this file, or else what `make` gives."""
    make: Callable[[], bytes] | None


class StoredArchive:
    """The layout of one archive. `size` and `etag` are known at once; `pieces` reads the files, in order."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = tuple(members)
        self.etag = _etag(self.members)
        self._checksums = {member.path: _Checksum(member, member.crc32) for member in self.members}
        self._segments: list[_Segment] = []
        self._end = 0
        offsets = [self._lay_out(member) for member in self.members]
        self._directory_at = self._end
        sizes = sum(len(_entry(member, offset, 0)) for member, offset in zip(self.members, offsets, strict=True))
        length = sizes + len(_closing(len(self.members), sizes, self._directory_at))
        self._add(length, None, lambda: self._directory(offsets))
        self.size = self._end

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in pieces of about 1 MiB. Blocking; raises `Changed` when a file is not as it was."""
        end = self.size if end is None else end
        index = bisect.bisect_right(self._segments, start, key=lambda segment: segment.start) - 1
        small = bytearray()
        for segment in self._segments[max(index, 0) :]:
            if segment.start >= end:
                break
            skip, stop = max(start - segment.start, 0), min(segment.length, end - segment.start)
            for piece in self._segment_pieces(segment, skip, stop):
                small += piece
                if len(small) >= PIECE_BYTES:
                    yield bytes(small)
                    small.clear()
        if small:
            yield bytes(small)

    def _segment_pieces(self, segment: _Segment, skip: int, stop: int) -> Iterator[bytes]:
        if segment.member is None:
            assert segment.make is not None
            yield segment.make()[skip:stop]
            return
        checksum = self._checksums[segment.member.path]
        whole = skip == 0 and stop == segment.length
        crc = 0
        for piece in file_pieces(segment.member, skip, stop):
            if checksum.value is None and whole:
                crc = zlib.crc32(piece, crc)
            yield piece
        if checksum.value is None and whole:
            checksum.value = crc

    def _lay_out(self, member: Member) -> int:
        offset = self._end
        header = _header(member)
        self._add(len(header), None, lambda: header)
        if member.size:
            self._add(member.size, member, None)
        if member.crc32 is None:
            self._add(len(_descriptor(member, 0)), None, lambda: _descriptor(member, self._crc(member)))
        return offset

    def _add(self, length: int, member: Member | None, make: Callable[[], bytes] | None) -> None:
        self._segments.append(_Segment(self._end, length, member, make))
        self._end += length

    def _directory(self, offsets: Iterable[int]) -> bytes:
        entries = b"".join(
            _entry(member, offset, self._crc(member)) for member, offset in zip(self.members, offsets, strict=True)
        )
        return entries + _closing(len(self.members), len(entries), self._directory_at)

    def _crc(self, member: Member) -> int:
        """The CRC of a member, read now if a range began behind its bytes."""
        checksum = self._checksums[member.path]
        if checksum.value is None:
            crc = 0
            for piece in file_pieces(member, 0, member.size):
                crc = zlib.crc32(piece, crc)
            checksum.value = crc
        return checksum.value


def file_pieces(member: Member, skip: int, stop: int) -> Iterator[bytes]:
    """The bytes [skip, stop) of a file. Blocking; raises `Changed` when it is not what `member` says."""
    try:
        handle = os.open(member.path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise Changed(f"{member.name} can't be read any more.") from error
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or (status.st_size, status.st_mtime_ns) != (
            member.size,
            member.modified_ns,
        ):
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


def _header(member: Member) -> bytes:
    name = member.name.encode()
    big = member.size >= _BIG
    date, time = _dos_time(member.modified_ns)
    # With a descriptor CRC and sizes stand behind the bytes; an empty ZIP64 field says that they are 8 bytes wide.
    known = member.crc32 is not None
    size = _BIG if big else (member.size if known else 0)
    wide = member.size if known else 0
    extra = struct.pack("<HHQQ", 1, 16, wide, wide) if big else b""
    return (
        struct.pack(
            "<4sHHHHHLLLHH",
            b"PK\3\4",
            45 if big else 20,
            _flags(member),
            0,
            time,
            date,
            member.crc32 or 0,
            size,
            size,
            len(name),
            len(extra),
        )
        + name
        + extra
    )


def _descriptor(member: Member, crc: int) -> bytes:
    form = "<4sLQQ" if member.size >= _BIG else "<4sLLL"
    return struct.pack(form, b"PK\7\x08", crc, member.size, member.size)


def _entry(member: Member, offset: int, crc: int) -> bytes:
    name = member.name.encode()
    big, far = member.size >= _BIG, offset >= _BIG
    wide = (struct.pack("<QQ", member.size, member.size) if big else b"") + (struct.pack("<Q", offset) if far else b"")
    extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
    size = _BIG if big else member.size
    date, time = _dos_time(member.modified_ns)
    return (
        struct.pack(
            "<4sHHHHHHLLLHHHHHLL",
            b"PK\1\2",
            0x031E,  # made on Unix
            45 if wide else 20,
            _flags(member),
            0,
            time,
            date,
            crc,
            size,
            size,
            len(name),
            len(extra),
            0,
            0,
            0,
            (stat.S_IFREG | 0o644) << 16,
            _BIG if far else offset,
        )
        + name
        + extra
    )


def _closing(count: int, directory_size: int, directory_at: int) -> bytes:
    end = b""
    if count >= 0xFFFF or directory_at >= _BIG or directory_size >= _BIG:
        end = struct.pack(
            "<4sQHHLLQQQQ", b"PK\6\6", 44, 0x031E, 45, 0, 0, count, count, directory_size, directory_at
        ) + struct.pack("<4sLQL", b"PK\6\7", 0, directory_at + directory_size, 1)
    short = min(count, 0xFFFF)
    return end + struct.pack(
        "<4sHHHHLLH", b"PK\5\6", 0, 0, short, short, min(directory_size, _BIG), min(directory_at, _BIG), 0
    )


def _dos_time(modified_ns: int) -> tuple[int, int]:
    """Date and time as ZIP has them: the server's local time, two seconds fine, from 1980 on."""
    seconds = min(max(modified_ns // 1_000_000_000, 0), 4_102_444_800)
    local = datetime.fromtimestamp(seconds)  # noqa: DTZ006  (ZIP knows local time only)
    if local.year < 1980:
        return (1 << 5) | 1, 0
    date = (local.year - 1980) << 9 | local.month << 5 | local.day
    return date, local.hour << 11 | local.minute << 5 | local.second // 2


def _etag(members: Iterable[Member]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for member in members:
        digest.update(f"{member.name}\0{member.size}\0{member.modified_ns}\0{member.crc32}\n".encode())
    return f'"{digest.hexdigest()}"'
