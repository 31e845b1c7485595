"""Uploads that arrive in pieces, staged in `.incoming` of a download path until a task takes their files.

Their state is read from the disk, so that an upload can continue after any stop. A file arrives from its beginning on
(`append`), or in chunks whose digests were announced (`put`) and are checked first. All functions block. Several
threads may put chunks of one upload at once.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import struct
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from renderonline.farm.errors import Conflict, InvalidRequest, NoSpace, NotFound, RenderOnlineError, Unfit
from renderonline.farm.tasks import InputFile
from renderonline.sandbox.privacy import sync, write_private
from renderonline.storage import disk, names
from renderonline.storage.disk import Sums

MOST_FILES: Final = 100_000
LARGEST_CHUNK: Final = 1024 * 1024
DIGEST_BYTES: Final = 32
SENT_CHUNK: Final = struct.Struct("<32sI")
"""A chunk as clients announce it: BLAKE3 and length."""
LARGE: Final = 1000
"""Going through more files than this takes long."""
MANY: Final = 64
"""Up to this number, files are synced one by one; more of them by a single `sync` of all disks."""
_PLACED: Final = struct.Struct("<32sIQ")
_RECORD: Final = struct.Struct("<II")
_PIECE: Final = 1024 * 1024
MOST_SUMS: Final = 1000
"""The most unfinished files whose digests are kept in memory, 2 KB each; others are read again in the end."""
_FACTS: Final = "upload.json"
"""A JSON array for each file, a line each: parsing all at once would block every other thread."""
_BYTES: Final = "bytes"
_MISSING, _THERE, _PROMISED = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Announced:
    """A file that a client will send. `digest`: BLAKE3 in hex, or "" if not announced; `chunks`: records of
    `SENT_CHUNK`, or None for a file that is sent from its beginning on."""

    name: str
    size: int
    digest: str = ""
    chunks: bytes | None = None


@dataclass(frozen=True, slots=True)
class _File:
    """`first`: its first chunk among those of the whole upload; `count`: the number of its chunks, or None; `sent`: the
    client's name for it, or "" for a file that the farm adds."""

    name: str
    size: int
    digest: str
    first: int
    count: int | None
    sent: str


@dataclass(frozen=True, slots=True)
class Place:
    """Where the bytes of a chunk already are."""

    path: Path
    offset: int


class Stage:
    """The files of one upload. Its directory may be removed at any time; calls then raise `FileNotFoundError`."""

    def __init__(self, directory: Path, received: InputFile | None = None) -> None:
        """Load the upload that was created in `directory`. `received`: a single file that was completely written there
        (`open_single`), which is not kept over a restart."""
        self.directory = directory
        self._data = str(directory / "data")
        self._added: dict[int, InputFile] = {}
        if received is None:
            self.files = tuple(_File(*json.loads(row)) for row in (directory / _FACTS).read_bytes().splitlines())
            self._state = bytearray((directory / "have").read_bytes())
        else:
            self.files = (_File(received.name, received.size, received.digest, 0, None, received.name),)
            self._state = bytearray()
            self._added[0] = received
        self._lock = threading.Lock()
        self._sums: dict[int, Sums] = {}
        self._summing = threading.Lock()

    @classmethod
    def create(cls, directory: Path, files: Sequence[Announced]) -> "Stage":
        """Create an upload of files that were `checked`, in a directory that must not exist yet."""
        directory.mkdir(mode=disk.DIRECTORY)
        rows, table, held = list[str](), bytearray(), names.fitted([file.name for file in files])
        for file in files:
            first, count = len(table) // _PLACED.size, _lay_out(file.chunks, table)
            rows.append(json.dumps((held[file.name], file.size, file.digest, first, count, file.name)))
        renamed = {sent: name for sent, name in held.items() if sent != name}
        mapping = json.dumps(renamed).encode() if renamed else b""
        if mapping:
            rows.append(json.dumps((names.MAPPING, len(mapping), "", len(table) // _PLACED.size, None, "")))
        (directory / "data").mkdir(mode=disk.DIRECTORY)
        have, size = bytes(len(table) // _PLACED.size), sum(file.size for file in files) + len(mapping)
        contents = {"chunks": bytes(table), "have": have, _BYTES: str(size).encode()}
        contents |= {f"data/{len(files)}": mapping} if mapping else {}
        for name, content in contents.items():
            with open(directory / name, "wb", opener=disk.private) as made:
                made.write(content)
        write_private(directory / _FACTS, "\n".join(rows), durable=False)
        return cls(directory)

    def held(self, sent: str) -> str:
        """Return our name of the file that the client calls `sent`; the same if there is none."""
        return next((file.name for file in self.files if sent and file.sent == sent), sent)

    def touch(self) -> None:
        """Record that the upload is in use, which keeps it from being swept for a while."""
        os.utime(self.directory / _FACTS)

    def offset(self, index: int) -> int:
        """Return how many bytes of a file have arrived, counted from its beginning to the first gap."""
        file = self.files[index]
        if file.count is None:
            try:
                return os.stat(f"{self._data}/{index}").st_size
            except FileNotFoundError:
                return 0
        gap = re.compile(rb"[^\x01]").search(self._state, file.first, file.first + file.count)
        return self._chunk(gap.start())[2] if gap else file.size

    def missing(self, index: int) -> list[tuple[int, int]] | None:
        """Return the runs (first, count) of chunks of a file that are missing; None for a file without chunks."""
        file = self.files[index]
        if file.count is None:
            return None
        runs = re.compile(b"\0+").finditer(self._state, file.first, file.first + file.count)
        return [(run.start() - file.first, run.end() - run.start()) for run in runs]

    @property
    def is_large(self) -> bool:
        """Whether going through all its files takes long."""
        return len(self.files) > LARGE

    def described(self) -> Iterator[dict[str, Any]]:
        """What has arrived of each file that the client sends, under the client's name."""
        for index, file in enumerate(self.files):
            if not file.sent:
                continue
            missing, offset = self.missing(index), self.offset(index)
            one: dict[str, Any] = {"name": file.sent, "size": file.size, "offset": offset}
            yield one if missing is None else one | {"missing": missing}

    def open(self, index: int) -> int:
        """Return a handle to write at the end of a file, which is made if needed."""
        handle = os.open(self.path(index), os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, disk.FILE)
        os.lseek(handle, 0, os.SEEK_END)
        return handle

    def length_of(self, index: int, chunk: int) -> int:
        """Return the announced length of a chunk. Raises `Unfit` if there is none with this number."""
        return self._chunk(self._number(index, chunk))[1]

    def put(self, chunks: Iterable[tuple[int, int, bytes]]) -> None:
        """Store chunks (file, chunk, bytes). Raises `Unfit` (`wrong_chunk`) for the first with another digest; those
        before it are kept."""
        for index, chunk, data in chunks:
            number = self._number(index, chunk)
            digest, length, offset = self._chunk(number)
            if len(data) != length or blake3(data).digest() != digest:
                message = f"Chunk {chunk} of {self.files[index].name} is not what was announced. Send it again."
                raise Unfit(message, code="wrong_chunk")
            # One file open at a time: a megabyte can hold chunks of more files than there are descriptors.
            handle = self.open(index)
            try:
                write_at(handle, data, offset)
            finally:
                os.close(handle)
            self._mark(number, _THERE)

    def wanted(self) -> Iterator[tuple[int, bytes]]:
        """Yield the number and the digest of each missing chunk."""
        table = (self.directory / "chunks").read_bytes()
        for found in re.finditer(rb"[^\x01]", self._state):
            number = found.start()
            yield number, table[number * _PLACED.size : number * _PLACED.size + DIGEST_BYTES]

    def promise(self, numbers: Iterable[int]) -> None:
        """Mark chunks that the client need not send, because `fill` will copy them."""
        for number in numbers:
            self._state[number] = _PROMISED

    def fill(self, places: Mapping[int, Place]) -> None:
        """Copy promised chunks from other files; a chunk that is gone there counts as missing again."""
        for index, file in enumerate(self.files):
            for number in range(file.first, file.first + (file.count or 0)):
                place = places.get(number)
                if place is None or self._state[number] != _PROMISED:
                    continue
                try:
                    data = _read_at(place, self._chunk(number)[1])
                    self.put([(index, number - file.first, data)])
                except (OSError, Unfit):
                    self._state[number] = _MISSING

    def add_up(self, index: int) -> None:
        """Hash a file as far as it has arrived, so that little is left to do in the end."""
        with self._summing:
            if index in self._added:
                return
            sums, end = self._sums.pop(index, None) or Sums(), self.offset(index)
            if sums.size < end:
                with self.path(index).open("rb", buffering=0) as file:
                    file.seek(sums.size)
                    while sums.size < end and (piece := file.read(min(_PIECE, end - sums.size))):
                        sums.update(piece)
            if sums.size == self.files[index].size:
                self._added[index] = sums.of(self.files[index].name)
                return
            self._sums[index] = sums
            if len(self._sums) > MOST_SUMS:
                del self._sums[next(iter(self._sums))]

    def finish(self) -> tuple[InputFile, ...]:
        """Return all files, which are complete now. Raises `Incomplete` if something is missing, `Unfit`
        (`wrong_digest`) for a file that differs from what was announced and must be sent again."""
        if lacking := list(islice(filter(is_lacking, self.described()), LARGE)):
            raise Incomplete("The upload is not complete. Send what is missing, then submit again.", files=lacking)
        return tuple(self._finished(index) for index in range(len(self.files)))

    def _finished(self, index: int) -> InputFile:
        file, path = self.files[index], self.path(index)
        if not file.size:
            path.touch(mode=disk.FILE)
        self.add_up(index)
        found = self._added.get(index)
        if found is None or path.stat().st_size != file.size or file.digest not in ("", found.digest):
            self._added.pop(index, None)
            self._sums.pop(index, None)
            path.unlink(missing_ok=True)
            for number in range(file.first, file.first + (file.count or 0)):
                self._mark(number, _MISSING)
            raise Unfit(f"{file.name} is not what was announced. Send it again.", code="wrong_digest")
        return found

    def link_into(self, directory: Path) -> None:
        """Give the files their names below a task's directory, durably."""
        folders = {directory}
        for index, file in enumerate(self.files):
            target = directory / file.name
            if target.parent not in folders:
                with contextlib.suppress(FileExistsError):
                    disk.make_below(directory, target.parent)
                folders.update(parent for parent in target.parents if parent.is_relative_to(directory))
            _link(self.path(index), target)
            disk.open_file(target, directory)
        if len(self.files) > MANY and hasattr(os, "sync"):
            os.sync()
            return
        above = (directory.parent, directory.parent.parent)
        sync(*(directory / file.name for file in self.files), *folders, *above)

    def chunks_of(self, index: int) -> bytes | None:
        """The announced chunks of a file, records of `SENT_CHUNK`; None for a file without."""
        file = self.files[index]
        if file.count is None:
            return None
        with (self.directory / "chunks").open("rb") as table:
            table.seek(file.first * _PLACED.size)
            rows = _PLACED.iter_unpack(table.read(file.count * _PLACED.size))
            return b"".join(SENT_CHUNK.pack(digest, length) for digest, length, _ in rows)

    def known(self, large: int) -> dict[str, bytes | None]:
        """Return the chunks of each file that was announced in chunks; None for others of at least `large` bytes."""
        kept = (index for index, file in enumerate(self.files) if file.count is not None or file.size >= large)
        return {self.files[index].name: self.chunks_of(index) for index in kept}

    def states(self) -> dict[str, tuple[str, str]]:
        """Return where each file is staged, and a text that changes with its content; "" and "" for an incomplete
        file."""
        return {file.name: self._state_of(index) for index, file in enumerate(self.files)}

    def _state_of(self, index: int) -> tuple[str, str]:
        file, path = self.files[index], f"{self._data}/{index}"
        if not self.has(index):
            return "", ""
        if (added := self._added.get(index)) is not None:
            return path, added.digest
        if not file.size:
            return path, "empty"
        status = os.stat(path)
        return path, f"{status.st_ino} {status.st_ctime_ns}"

    def has(self, index: int) -> bool:
        """Whether a file is complete."""
        return self.offset(index) == self.files[index].size

    def path(self, index: int) -> Path:
        """Return where a file is staged."""
        return Path(self._data, str(index))

    def _number(self, index: int, chunk: int) -> int:
        if index < len(self.files) and chunk < (self.files[index].count or 0):
            return self.files[index].first + chunk
        raise Unfit("The upload has no such chunk.", code="wrong_chunk")

    def _chunk(self, number: int) -> tuple[bytes, int, int]:
        with (self.directory / "chunks").open("rb", buffering=0) as table:
            table.seek(number * _PLACED.size)
            digest, length, offset = _PLACED.unpack(table.read(_PLACED.size))
            return digest, length, offset

    def _mark(self, number: int, state: int) -> None:
        with self._lock, (self.directory / "have").open("r+b", buffering=0) as have:
            have.seek(number)
            have.write(bytes((state,)))
            self._state[number] = state


@dataclass(frozen=True, slots=True)
class SmallFile:
    """The one file of an upload that came at once, and is written where it stays."""

    name: str
    content: bytes

    def facts(self) -> InputFile:
        """The input that it becomes."""
        sums = Sums()
        sums.update(self.content)
        return sums.of(self.name)

    def link_into(self, directory: Path) -> None:
        """Write it into a task's directory, durably."""
        handle = os.open(directory / self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, disk.FILE)
        try:
            write_at(handle, self.content, 0)
            disk.open_file(handle, directory)
            os.fsync(handle)
        finally:
            os.close(handle)
        sync(directory, directory.parent, directory.parent.parent)

    def stage(self, directory: Path) -> Stage:
        """The upload of this file alone, in a directory that must not exist yet."""
        handle = open_single(directory)
        try:
            write_at(handle, self.content, 0)
        finally:
            os.close(handle)
        return Stage(directory, self.facts())


class PackReader:
    """Reads packs: records of file and chunk (u32, little endian) and the chunk's bytes. `touched`: the files that got
    bytes."""

    def __init__(self, stage: Stage) -> None:
        self.touched: set[int] = set()
        self._stage = stage
        self._rest = bytearray()

    def take(self, piece: memoryview) -> None:
        """Store every chunk that is complete now. Raises `Unfit` for one that differs from what was announced."""
        self._rest += piece
        chunks, at = [], 0
        while len(self._rest) - at >= _RECORD.size:
            index, chunk = _RECORD.unpack_from(self._rest, at)
            begin = at + _RECORD.size
            end = begin + self._stage.length_of(index, chunk)
            if end > len(self._rest):
                break
            chunks.append((index, chunk, bytes(self._rest[begin:end])))
            at = end
        self.touched.update(index for index, _, _ in chunks)
        self._stage.put(chunks)
        del self._rest[:at]

    def finish(self) -> None:
        """Raise `InvalidRequest` when the pack ended inside a chunk."""
        if self._rest:
            raise InvalidRequest("The pack ends in the middle of a chunk. Send it again.", code="incomplete_body")


class Incomplete(Conflict):
    """Some bytes of an upload are still to be sent."""

    code = "incomplete"


def open_single(directory: Path) -> int:
    """Make the directory of an upload of a single file; return a handle to write the file."""
    for made in (directory, directory / "data"):
        made.mkdir(mode=disk.DIRECTORY)
    return os.open(directory / "data" / "0", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, disk.FILE)


def staged(incoming: Path, user_id: int | None = None) -> list[Path]:
    """Return the directories of all open uploads, or those of one user, the least recently used first."""
    whose = r"\d+" if user_id is None else str(user_id)
    found = [path for path in incoming.glob("*-*") if re.fullmatch(rf"{whose}-[0-9a-f]{{32}}", path.name)]
    return sorted(found, key=touched)


def announced_bytes(directory: Path) -> int:
    """Return how many bytes an upload has when it is complete; 0 if it does not exist."""
    try:
        return int((directory / _BYTES).read_bytes())
    except (OSError, ValueError):
        return 0


def touched(directory: Path) -> float:
    """Return when an upload was last used, in seconds since 1970; 0 if it does not exist."""
    for path in (directory / _FACTS, directory):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0


def sweep(incoming: Path, keep_s: float) -> int:
    """Remove uploads that were not used for `keep_s` seconds; return how many."""
    old = [path for path in staged(incoming) if touched(path) < time.time() - keep_s]
    for path in old:
        disk.remove_tree(path)
    return len(old)


def is_lacking(described: Mapping[str, Any]) -> bool:
    """Return whether something of a file is still missing."""
    return bool(described.get("missing", described["offset"] != described["size"]))


def _lay_out(chunks: bytes | None, table: bytearray) -> int | None:
    if chunks is None:
        return None
    offset = 0
    for digest, length in SENT_CHUNK.iter_unpack(chunks):
        table += _PLACED.pack(digest, length, offset)
        offset += length
    return len(chunks) // SENT_CHUNK.size


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if isinstance(error, FileExistsError):
            raise
        shutil.copyfile(source, target)  # another file system, or one without hard links


def disk_error(error: OSError) -> RenderOnlineError:
    """Return the error that an upload's client gets for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace("The server's disk is full; nothing was stored. Try again when there is room.")
    return RenderOnlineError(f"The server can't store the file: {error.strerror}.", code="storage_failed")


@contextlib.contextmanager
def disk_errors(gone: str = "") -> Iterator[None]:
    """Turn each `OSError` into a `disk_error`; with `gone`, a missing file into `NotFound` with this message."""
    try:
        yield
    except OSError as error:
        if gone and isinstance(error, FileNotFoundError):
            raise NotFound(gone) from error
        raise disk_error(error) from error


def write_at(handle: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of it."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(handle, rest, offset)
        rest, offset = rest[written:], offset + written


def _read_at(place: Place, length: int) -> bytes:
    handle = os.open(place.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        return os.pread(handle, length, place.offset)
    finally:
        os.close(handle)
