"""Receiving one file: streamed once into its final place, and gone without a trace when it is refused.

The body is read exactly once. Whether and where the file may be stored is asked (`Gate`) as soon as it begins; if
that can't be known yet, because the part `request` comes after the file, it is staged in `.incoming` of the same
download path and renamed. Nothing is decided here about who may upload what.
"""

import asyncio
import contextlib
import errno
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from renderonline.farm.errors import InvalidRequest, NoSpace, RenderOnlineError, TooLarge
from renderonline.storage import names
from renderonline.storage.multipart import Event, Field, FileBegins, FileData, FileEnds, MultipartReader

BATCH_BYTES: Final = 1024 * 1024
DISCARD_BYTES: Final = 16 * 1024 * 1024
"""After a refusal is known so much of the body is still read, to find out what else is wrong with the request."""


@dataclass(slots=True)
class Received:
    """What one multipart body held."""

    requests: list[bytes] = field(default_factory=list)
    """The values of the parts named `request`."""
    file_names: list[str] = field(default_factory=list)
    """What the client called the files, uncleaned, in order."""
    path: Path | None = None
    """The first file, where it was stored; None when it was refused or there was none."""
    directory: Path | None = None
    """The task directory that holds it; None while it is only staged."""
    size: int = 0

    @property
    def request(self) -> bytes | None:
        """The part `request`; two of them are as good as a broken one."""
        return b", ".join(self.requests) if self.requests else None


class Gate(Protocol):
    """What an upload asks the one who knows the rules."""

    async def check(self, received: Received) -> None:
        """Raise the first rule that is broken by what is known so far.

        Called when the first file begins after a part `request`, and again at the end whenever more is known then.
        """

    async def place(self) -> Path:
        """Make the task's directory; called once, after a check that passed."""

    async def stage(self) -> Path:
        """The download path in whose `.incoming` a file is staged that comes before its request."""


class Upload:
    """One upload: `receive` it, then `keep` it (its row is committed) or `discard` it."""

    def __init__(self, content_type: str, *, limit: int) -> None:
        self.received = Received()
        self._reader = MultipartReader(content_type)
        self._limit = limit
        self._writer: _Writer | None = None
        self._refusal: RenderOnlineError | None = None
        self._staged: Path | None = None
        self._checked: tuple[int, int] | None = None
        self._read = 0
        self._discarded = 0

    async def receive(self, stream: AsyncIterator[bytes], gate: Gate) -> Received:
        """Read the body to its end; then the file is durable under its name. Raises what the gate raised,
        `InvalidRequest`, `TooLarge` or `NoSpace`.

        `limit` is the largest body in bytes. Whatever is raised, `discard` is to be called by the caller.
        """
        async for piece in stream:
            self._read += len(piece)
            if self._read > self._limit:
                raise too_large(self._limit)
            if self._is_refused():
                self._discarded += len(piece)
            for event in self._reader.feed(piece):
                await self._take(event, gate)
            if self._discarded > DISCARD_BYTES:
                break
        else:
            self._reader.finish()
        if self._is_refused() or self._checked != self._known():
            await gate.check(self.received)  # now that everything is known: the first broken rule is the one to name
        if self._is_refused():
            raise self._refusal or InvalidRequest("An upload holds one file.")
        if self._staged is not None:
            path = await self._place(gate)
            await asyncio.to_thread(_move, self._staged, path)
            self.received.path, self._staged = path, None
        return self.received

    def keep(self) -> None:
        """The row is committed."""
        if self.received.directory is not None:
            names.keep(self.received.directory)

    async def discard(self) -> None:
        """Remove everything that was stored. May be called at any time, also twice."""
        if self._writer is not None:
            await self._writer.abandon()
        await asyncio.to_thread(self._remove)

    def _remove(self) -> None:
        if self._staged is not None:
            self._staged.unlink(missing_ok=True)
        if self.received.directory is not None:
            names.discard(self.received.directory)

    def _known(self) -> tuple[int, int]:
        return len(self.received.requests), len(self.received.file_names)

    def _is_refused(self) -> bool:
        return self._refusal is not None or len(self.received.file_names) > 1

    async def _take(self, event: Event, gate: Gate) -> None:
        match event:
            case Field("request", value):
                self.received.requests.append(value)
            case FileBegins(name):
                self.received.file_names.append(name)
                if not self._is_refused():
                    try:
                        await self._open(gate)
                    except RenderOnlineError as error:
                        self._refusal = error
            case FileData(data) if self._writer is not None:
                await self._writer.write(data)
            case FileEnds() if self._writer is not None:
                self.received.size = await self._writer.close(() if self._staged else _above(self._writer.path))
                self._writer = None

    async def _open(self, gate: Gate) -> None:
        if self.received.requests:
            self._checked = self._known()
            await gate.check(self.received)
            path = await self._place(gate)
        else:
            path = self._staged = _staged_path(await gate.stage())
        self._writer = _Writer(path)
        self.received.path = path

    async def _place(self, gate: Gate) -> Path:
        self.received.directory = await gate.place()
        return self.received.directory / names.clean_file_name(self.received.file_names[0])


def too_large(limit: int) -> TooLarge:
    """The refusal of a body over the limit of this server."""
    return TooLarge(f"The upload is larger than the {limit} bytes that this server takes.")


class _Writer:
    """Writes a file in batches in a thread, one batch ahead of the reader; bounded memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with _disk_errors():
            self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o644)
        self._open = True
        self._batch: list[memoryview] = []
        self._batched = 0
        self._size = 0
        self._pending: asyncio.Future[None] | None = None

    async def write(self, data: memoryview) -> None:
        self._batch.append(data)
        self._batched += len(data)
        if self._batched >= BATCH_BYTES:
            await self._flush()

    async def close(self, directories: Sequence[Path]) -> int:
        """Write what is left, make the file and these directories durable, close the file; its size in bytes."""
        await self._flush(directories)
        await self._settle()
        return self._size

    async def abandon(self) -> None:
        """Close the file without writing what is left."""
        if self._pending is not None:
            await asyncio.wait({self._pending})
            self._pending.exception()
        if self._open:
            self._open = False
            os.close(self._handle)

    async def _flush(self, last: Sequence[Path] | None = None) -> None:
        await self._settle()
        batch, self._batch = self._batch, []
        self._size, self._batched = self._size + self._batched, 0
        loop = asyncio.get_running_loop()
        if last is None:
            self._pending = loop.run_in_executor(None, _write_all, self._handle, batch)
        else:
            self._open = False
            self._pending = loop.run_in_executor(None, _write_last, self._handle, batch, last)

    async def _settle(self) -> None:
        if self._pending is not None:
            with _disk_errors():
                # Shielded: the thread goes on whoever gives up, and the file may only be closed after it.
                await asyncio.shield(self._pending)


def _write_all(handle: int, batch: list[memoryview]) -> None:
    for data in batch:
        rest = data
        while rest:
            rest = rest[os.write(handle, rest) :]


def _write_last(handle: int, batch: list[memoryview], directories: Sequence[Path]) -> None:
    try:
        _write_all(handle, batch)
        os.fsync(handle)
    finally:
        os.close(handle)
    _sync(directories)


def disk_error(error: OSError) -> RenderOnlineError:
    """What a failed write means to the one who uploads."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace("The server's disk is full; nothing was stored. Try again when there is room.")
    return RenderOnlineError(f"The server can't store the file: {error.strerror}.", code="storage_failed")


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error) from error


def _staged_path(staging: Path) -> Path:
    with _disk_errors():
        return names.incoming_directory(staging) / f"{os.urandom(16).hex()}.part"


def _move(source: Path, target: Path) -> None:
    """Rename; where the target is on another file system, copy and remove."""
    with _disk_errors():
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copyfile(source, target)
            with target.open("rb") as copy:
                os.fsync(copy.fileno())
            source.unlink()
        _sync(_above(target))


def _above(path: Path) -> Sequence[Path]:
    """The directories whose entries must be durable for `path` to be: its own, and those above that may be new."""
    return (path.parent, path.parent.parent, path.parent.parent.parent) if os.name == "posix" else ()


def _sync(directories: Sequence[Path]) -> None:
    for directory in directories:
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
