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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from operator import itemgetter
from pathlib import Path, PurePosixPath
from typing import Final

import orjson

from renderonline.farm.tasks import Landed
from renderonline.storage.landed import PIECE_BYTES, Compared, Member, file_pieces
from renderonline.storage.names import UNFINISHED, unused_folder

SUBMITTED: Final = "submitted"
"""The folder in an archive for what a task was submitted with, where that has the name of a result."""
_BIG: Final = 0xFFFFFFFF
_UTF8: Final = 0x800
_DESCRIPTOR: Final = 0x8
_UNIX: Final = 0x031E


def members_of(directory: Path, known: Mapping[str, Landed]) -> tuple[Member, ...]:
    """Every regular file below `directory`, by name; symbolic links and special files are left out.

    A file that is `known` (by name) is listed as it landed, without asking the file system, which takes longer than all
    else: reading it compares it. Blocks.
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
    """The members of a task's directory as people know them: results, which lie in a `folder` ("": beside the rest),
    are called without it, and as `called` says (own name -> what it is called). Where anything else has the name of
    one, all of that is in a folder of its own."""
    if not folder and not called:
        return tuple(members)
    results, others = [], []
    for one in members:
        own = one.name[len(folder) + 1 :] if folder and one.name.startswith(f"{folder}/") else one.name
        if own != one.name or own in called:
            results.append(one._replace(name=called.get(own, own)))
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
"""What gives some of the bytes of a part of an archive, from a first to before a last."""


class StoredArchive:
    """The layout of one archive. `size` and `etag` are known at once; `pieces` reads the files, in order."""

    def __init__(self, members: Sequence[Member], compared: Compared) -> None:
        self.members = tuple(members)
        self._compared = compared
        self.etag = etag_of(self.members)
        self._found: dict[Path | str, int] = {}
        self._offsets: list[int] = []
        behind = entries = 0
        for name, _, size, _, crc32, _, _ in self.members:
            self._offsets.append(behind)
            length, entry = _lengths(name, size, behind, known=crc32 is not None)
            behind += length
            entries += entry
        self._begins = behind
        self._length = entries + len(_closing(len(self.members), entries, behind))
        self.size = behind + self._length

    def pieces(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes [start, end) in pieces of about 1 MiB. Blocking; raises `Changed` when a file is not as it was."""
        end = self.size if end is None else end
        waiting: list[bytes] = []
        size = 0
        for piece in self._between(start, end):
            if not piece:
                yield piece  # reading goes on
                continue
            waiting.append(piece)
            size += len(piece)
            if size >= PIECE_BYTES:
                yield b"".join(waiting)
                waiting, size = [], 0
        if size:
            yield b"".join(waiting)

    def _between(self, start: int, end: int) -> Iterator[bytes]:
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
        for piece in file_pieces(member, skip, stop, self._compared):
            if member.crc32 is None:
                crc = zlib.crc32(piece, crc)
            yield piece
        if member.crc32 is None and stop - skip == member.size:
            self._found[member.path] = crc

    def _descriptor(self, member: Member, skip: int, stop: int) -> Iterator[bytes]:
        yield from self._read((member,))
        yield from _cut(_descriptor(member, self._crc(member)), skip, stop)

    def _directory(self, skip: int, stop: int) -> Iterator[bytes]:
        yield from self._read(self.members)
        placed = zip(self.members, self._offsets, strict=True)
        entries = b"".join(_entry(member, offset, self._crc(member)) for member, offset in placed)
        yield from _cut(entries + _closing(len(self.members), len(entries), self._begins), skip, stop)

    def _read(self, members: Iterable[Member]) -> Iterator[bytes]:
        """Read those whose CRC nobody knows, because a range began behind their first byte; empty pieces."""
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
    """Of everything that stands at the place of a member, and of its entry in the directory. `known`: its CRC-32 is."""
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
    """What changes whenever a member does, as an HTTP header has it."""
    # A file's time may be one that 64 bits can't hold.
    facts = [(name, size, modified_ns % 2**64, crc32) for name, _, size, modified_ns, crc32, _, _ in members]
    return f'"{hashlib.blake2b(orjson.dumps(facts), digest_size=16).hexdigest()}"'
