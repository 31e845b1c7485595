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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from renderonline.farm.errors import InvalidRequest, NoSpace, NotFound, RenderOnlineError, TooLarge
from renderonline.storage import manifests, modes, names
from renderonline.storage.digests import InputSums
from renderonline.storage.multipart import Event, Field, FileBegins, FileData, FileEnds, MultipartReader
from renderonline.storage.staging import sync

BATCH_BYTES: Final = 1024 * 1024
_AHEAD: Final = 8 * 1024 * 1024
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
    sums: InputSums = field(default_factory=InputSums)
    """What the bytes of the first file add up to."""

    @property
    def request(self) -> bytes | None:
        """The part `request`; two of them are as good as a broken one."""
        return b", ".join(self.requests) if self.requests else None


ReadInThread = Callable[[Callable[[memoryview], object]], Awaitable[bool]]
"""Calls a function in a thread with every piece of a body until it says stop or the body ends; whether it said so."""


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
        self._waiting: list[Event] = []

    async def receive(self, stream: AsyncIterator[bytes], gate: Gate, read: ReadInThread | None = None) -> Received:
        """Read the body to its end; then the file is durable under its name. Raises what the gate raised,
        `InvalidRequest`, `TooLarge` or `NoSpace`.

        `read` goes on where `stream` stopped, for a body that is not small: a thread takes the file from it, and the
        event loop has no part in its bytes. Whatever is raised, `discard` is to be called by the caller.
        """
        if await self._read_to_end(stream, gate, read):
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

    async def _read_to_end(self, stream: AsyncIterator[bytes], gate: Gate, read: ReadInThread | None) -> bool:
        """Whether the end was reached; a refused body is not read for ever."""
        async for piece in stream:
            if not await self._take_all(self._events_of(piece), gate):
                return False
            if read is not None and self._writer is not None:
                await self._writer.flush()
                while await read(self._store):
                    events, self._waiting = self._waiting, []
                    if not await self._take_all(events, gate):
                        return False
                break
        return True

    def _events_of(self, piece: bytes) -> list[Event]:
        self._read += len(piece)
        if self._read > self._limit:
            raise too_large(self._limit)
        if self._is_refused():
            self._discarded += len(piece)
        return self._reader.feed(piece)

    def _store(self, piece: memoryview) -> bool:
        """Write bytes of the file, in a thread; what is anything else waits, and it is time to stop."""
        for event in self._events_of(bytes(piece)):
            if isinstance(event, FileData) and self._writer is not None and not self._waiting:
                self._writer.store(event.data)
            else:
                self._waiting.append(event)
        return bool(self._waiting)

    async def _take_all(self, events: Sequence[Event], gate: Gate) -> bool:
        for event in events:
            await self._take(event, gate)
        return self._discarded <= DISCARD_BYTES

    async def keep(self) -> None:
        """The row is committed."""
        if self.received.directory is not None and self.received.path is not None:
            names.keep(self.received.directory)
            if self.received.sums.size >= manifests.LARGE:
                later = {self.received.path.name: None}
                await asyncio.to_thread(manifests.remember, self.received.directory, later)

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
                await self._writer.close(() if self._staged else _above(self._writer.path))
                self._writer = None

    async def _open(self, gate: Gate) -> None:
        if self.received.requests:
            self._checked = self._known()
            await gate.check(self.received)
            path = await self._place(gate)
        else:
            path = self._staged = _staged_path(await gate.stage())
        self._writer = _Writer(path, self.received.sums)
        self.received.path = path

    async def _place(self, gate: Gate) -> Path:
        self.received.directory = await gate.place()
        return self.received.directory / names.clean_file_name(self.received.file_names[0])


def too_large(limit: int) -> TooLarge:
    """The refusal of a body over the limit of this server."""
    return TooLarge(f"The upload is larger than the {limit} bytes that this server takes.")


class _Writer:
    """Writes a file in batches in a thread, one batch ahead of the reader; bounded memory."""

    def __init__(self, path: Path, sums: InputSums) -> None:
        self.path = path
        self._sums = sums
        with disk_errors():
            self._handle = os.open(
                path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), modes.FILE
            )
            modes.open_file(self._handle, path.parent)
        self._open = True
        self._batch: list[memoryview] = []
        self._batched = 0
        self._pending: asyncio.Future[None] | None = None
        self._adder: ThreadPoolExecutor | None = None
        self._added: Future[None] | None = None
        self._stored = 0

    async def write(self, data: memoryview) -> None:
        self._batch.append(data)
        self._batched += len(data)
        if self._batched >= BATCH_BYTES:
            await self._flush()

    async def close(self, directories: Sequence[Path]) -> None:
        """Write what is left, make the file and these directories durable, close the file."""
        if self._added is not None:
            await asyncio.wrap_future(self._added)
        self._rest()
        await self._flush(directories)
        await self._settle()

    async def abandon(self) -> None:
        """Close the file without writing what is left."""
        if self._pending is not None:
            await asyncio.wait({self._pending})
            self._pending.exception()
        if self._open:
            self._open = False
            os.close(self._handle)
        self._rest()

    def _rest(self) -> None:
        """No more bytes come by `store`."""
        if self._adder is not None:
            self._adder.shutdown(wait=False)

    async def flush(self) -> None:
        """Everything so far is written, and what follows comes by `store`."""
        await self._flush()
        await self._settle()
        self._adder = ThreadPoolExecutor(1)

    def store(self, data: memoryview) -> None:
        """Write at once; blocks. The sums are added up by another thread, one piece behind."""
        assert self._adder is not None
        with disk_errors():
            _write(self._handle, data)
        if self._added is not None:
            self._added.result()
        self._added = self._adder.submit(self._sums.update, data)
        self._stored += len(data)
        if self._stored >= _AHEAD and hasattr(os, "posix_fadvise"):
            # On its way to the disk now: a pile of it would hold up whoever waits for a small file there.
            begins = os.lseek(self._handle, 0, os.SEEK_CUR) - self._stored
            os.posix_fadvise(self._handle, begins, self._stored, os.POSIX_FADV_DONTNEED)
            self._stored = 0

    async def _flush(self, last: Sequence[Path] | None = None) -> None:
        await self._settle()
        batch, self._batch = self._batch, []
        self._batched = 0
        loop = asyncio.get_running_loop()
        if last is None:
            self._pending = loop.run_in_executor(None, _write_all, self._handle, batch, self._sums)
        else:
            self._open = False
            self._pending = loop.run_in_executor(None, _write_last, self._handle, batch, self._sums, last)

    async def _settle(self) -> None:
        if self._pending is not None:
            with disk_errors():
                # Shielded: the thread goes on whoever gives up, and the file may only be closed after it.
                await asyncio.shield(self._pending)


def _write(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _write_all(handle: int, batch: list[memoryview], sums: InputSums) -> None:
    for data in batch:
        _write(handle, data)
        sums.update(data)


def _write_last(handle: int, batch: list[memoryview], sums: InputSums, directories: Sequence[Path]) -> None:
    try:
        _write_all(handle, batch, sums)
        os.fsync(handle)
    finally:
        os.close(handle)
    sync(*directories)


def disk_error(error: OSError) -> RenderOnlineError:
    """What a failed write means to the one who uploads."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return NoSpace("The server's disk is full; nothing was stored. Try again when there is room.")
    return RenderOnlineError(f"The server can't store the file: {error.strerror}.", code="storage_failed")


@contextlib.contextmanager
def disk_errors(gone: str = "") -> Iterator[None]:
    """Errors of the disk as what they mean to the one who uploads. `gone`: what is said when the file is not there."""
    try:
        yield
    except OSError as error:
        if gone and isinstance(error, FileNotFoundError):
            raise NotFound(gone) from error
        raise disk_error(error) from error


def _staged_path(staging: Path) -> Path:
    with disk_errors():
        return names.incoming_directory(staging) / f"{os.urandom(16).hex()}.part"


def _move(source: Path, target: Path) -> None:
    """Rename; where the target is on another file system, copy and remove."""
    with disk_errors():
        try:
            source.rename(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            shutil.copyfile(source, target)
            sync(target)
            source.unlink()
        modes.open_file(target, target.parent)
        sync(*_above(target))


def _above(path: Path) -> Sequence[Path]:
    """The directories whose entries must be durable for `path` to be: its own, and those above that may be new."""
    return (path.parent, path.parent.parent, path.parent.parent.parent) if os.name == "posix" else ()
