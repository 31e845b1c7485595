"""Large bodies between a socket and a worker thread, past the event loop, at the speed of the disk.

Inside our own server (`serving.deadlines`) a thread uses the socket itself, up to a megabyte at a time; under any other
server, and with TLS, bodies come and go by ASGI's way. Memory is bounded either way, and a client that does nothing
holds no thread.
"""

import asyncio
import os
import select
import socket
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Final

from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from renderonline.farm.errors import InvalidRequest
from renderonline.serving.deadlines import DIRECT, READER_S, Loan

Take = Callable[[memoryview], object]
"""Called in a worker thread with one piece after the other, whose memory is another's when it returns. Something true
as its answer: stop here, what follows is for somebody else."""

PIECE_BYTES: Final = 1024 * 1024
BATCH_BYTES: Final = 8 * 1024 * 1024
TURN_S: Final = 0.05
"""A thread reads one socket at most so long before others get their turn."""
QUIET_MS: Final = 5
"""A socket that is silent for so long gives its thread back."""


async def receive_body(
    request: Request, handle: int, *, length: int, update: Callable[[memoryview], object] | None = None
) -> None:
    """Write the request's body, exactly `length` bytes, to the open file `handle` where it stands.

    `update` sees every piece after it was written, in order, in the thread that wrote it. Raises `InvalidRequest` when
    the client sends less (what came is written) or more, and passes on the `OSError` of the disk. Nothing touches
    `handle` any more when this returns or raises, also when it is canceled.
    """

    waiting = 0

    def take(piece: memoryview) -> None:
        nonlocal waiting
        rest = piece
        while rest:
            rest = rest[os.write(handle, rest) :]
        if update is not None:
            update(piece)
        waiting += len(piece)
        if waiting >= BATCH_BYTES and hasattr(os, "posix_fadvise"):
            # On its way to the disk now: a pile of it would hold up whoever waits for a small file there.
            begins = os.lseek(handle, 0, os.SEEK_CUR) - waiting
            os.posix_fadvise(handle, begins, waiting, os.POSIX_FADV_DONTNEED)
            waiting = 0

    with Body(request, length) as body:
        await body.read(take)


async def send_pieces(scope: Scope, pieces: Iterator[bytes]) -> bool:
    """Send an answer's bytes past the event loop; whether that can be. Its head has been sent and says how many.

    Raises what `pieces` raises (they block and are asked for in a thread; an empty one says that more will come), and
    `ClientDisconnect`.
    """
    direct = scope.get("extensions", {}).get(DIRECT)
    loan: Loan | None = direct["lend_out"]() if direct is not None else None
    if loan is None:
        return False
    outlet = _Outlet(loan, pieces)
    try:
        async with asyncio.timeout(READER_S):
            await asyncio.sleep(0)
            while loan.waiting:  # noqa: ASYNC110  (the head, seldom more; nobody tells when it has left)
                await asyncio.sleep(0.01)
        while not outlet.ended:
            async with asyncio.timeout(READER_S):
                await _ready(loan.socket, reads=False)
            before = outlet.sent
            await _in_thread(outlet.turn, loan.threads)
            loan.passed(outlet.sent - before)
    except (TimeoutError, ConnectionError) as gone:
        raise ClientDisconnect from gone
    finally:
        loan.give_back()
        if isinstance(pieces, Generator):
            pieces.close()
    return True


class _Outlet:
    """An answer on its way."""

    def __init__(self, loan: Loan, pieces: Iterator[bytes]) -> None:
        self._loan = loan
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.sent = 0
        self.ended = False

    def turn(self) -> None:
        """One turn of a thread."""
        until = time.monotonic() + TURN_S
        full = select.poll()
        full.register(self._loan.socket, select.POLLOUT)
        while time.monotonic() < until:
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    self.ended = True
                    return
                self._rest = memoryview(piece)
            if not self._rest:
                if any(event & (select.POLLHUP | select.POLLERR) for _, event in full.poll(0)):
                    raise ConnectionResetError
                return
            try:
                count = self._loan.socket.send(self._rest)
            except BlockingIOError:
                if not full.poll(QUIET_MS):
                    return
            else:
                self.sent += count
                self._rest = self._rest[count:]


class Body:
    """The body of one request, `length` bytes, or None: as many as come. To be read once, inside `with`: piece by piece
    (`async for`), and at any time from there to its end or a stop in a thread (`read`)."""

    def __init__(self, request: Request, length: int | None) -> None:
        self._request = request
        self._length = self._left = length
        self._stream = self._counted()
        self._loan: Loan | None = None

    def __enter__(self) -> "Body":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._loan is not None:
            self._loan.give_back()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._stream

    async def read(self, take: Take) -> bool:
        """Give `take` every piece until it says stop or the body ends; whether it said stop.

        Raises what `take` raises, and `InvalidRequest` when the body is shorter or longer than it was said to be.
        """
        if self._loan is None:
            self._loan = self._borrowed()
        if self._loan is None:
            return await self._read_stream(take)
        return await self._read_socket(self._loan, take)

    def _borrowed(self) -> Loan | None:
        direct = self._request.scope.get("extensions", {}).get(DIRECT)
        said = self._request.headers.get("content-length")
        return direct["lend"]() if direct is not None and self._left and said == str(self._length) else None

    async def _read_socket(self, loan: Loan, take: Take) -> bool:
        while loan.early or loan.left:
            if not loan.early:
                await _ready(loan.socket, reads=True)
            before = loan.left
            stop = await _in_thread(partial(_turn, loan, take), loan.threads)
            loan.passed(before - loan.left)
            if stop:
                return True
        return False

    async def _read_stream(self, take: Take) -> bool:
        pieces: list[bytes] = []
        try:
            async for piece in self._stream:
                pieces.append(piece)
                if sum(map(len, pieces)) >= PIECE_BYTES:
                    whole, pieces = b"".join(pieces), []
                    if await _in_thread(partial(take, memoryview(whole))):
                        return True
        except ClientDisconnect as gone:
            raise _too_short() from gone
        if self._left:
            raise _too_short()
        return bool(pieces and await _in_thread(partial(take, memoryview(b"".join(pieces)))))

    async def _counted(self) -> AsyncIterator[bytes]:
        async for piece in self._request.stream():
            if self._left is not None:
                self._left -= len(piece)
                if self._left < 0:
                    raise InvalidRequest("The body is longer than it was said to be.", code="wrong_length")
            yield piece


def _turn(loan: Loan, take: Take) -> bool:
    """One turn of a thread; whether `take` said stop."""
    if loan.early:
        early, loan.early = loan.early, b""
        return bool(take(memoryview(early)))
    buffer = memoryview(bytearray(min(PIECE_BYTES, loan.left)))
    until = time.monotonic() + TURN_S
    silent = select.poll()
    silent.register(loan.socket, select.POLLIN)
    while loan.left and time.monotonic() < until:
        try:
            count = loan.socket.recv_into(buffer[: loan.left])
        except BlockingIOError:
            if not silent.poll(QUIET_MS):
                break
            continue
        except OSError as error:
            raise _too_short() from error
        if not count:
            raise _too_short()
        loan.left -= count
        if take(buffer[:count]):
            return True
    return False


def _too_short() -> InvalidRequest:
    return InvalidRequest("The connection ended before the whole body was sent. Send it again.", code="incomplete_body")


async def _ready(connection: socket.socket, *, reads: bool) -> None:
    """Wait until there is something to read, or room to write, or the connection has ended."""
    loop = asyncio.get_running_loop()
    add, remove = (loop.add_reader, loop.remove_reader) if reads else (loop.add_writer, loop.remove_writer)
    ready = asyncio.Event()
    add(connection, ready.set)
    try:
        await ready.wait()
    finally:
        remove(connection)


async def _in_thread(work: Callable[[], object], threads: ThreadPoolExecutor | None = None) -> object:
    """Run `work` in a thread; whoever gives up waits for its end first, because it uses files of ours."""
    pending = asyncio.get_running_loop().run_in_executor(threads, work)
    try:
        return await asyncio.shield(pending)
    except asyncio.CancelledError:
        await asyncio.wait({pending})
        if not pending.cancelled():
            pending.exception()
        raise
