"""The files of attempts, to and from RenderAPI over HTTP (`docs/reference/link.md`). All but `PreviewSender` blocks.

A transfer goes on through cuts and restarts of RenderAPI, at the byte where it stopped, until its session ends.
"""

import asyncio
import contextlib
import http.client
import os
import random
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from io import FileIO
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import structlog

from renderonline.farm.errors import (
    Conflict,
    InvalidRequest,
    LimitReached,
    NoSpace,
    NotAvailable,
    NotFound,
    RenderOnlineError,
)
from renderonline.farm.tasks import InputFile
from renderonline.hpcserver.boxes import in_own_directories
from renderonline.hpcserver.input_cache import DIGEST, InputCache
from renderonline.hpcserver.joining import Identity
from renderonline.hpcserver.outputs import AttemptVerdict, Bad, Good, failed, handed_back, inside
from renderonline.protocol.calls import NO_RENDERAPI, Reply, backoff
from renderonline.protocol.link import Assign, from_wire
from renderonline.storage.staging import write_at

log = structlog.get_logger(__name__)
T = TypeVar("T")

PIECE: Final = 1 << 20
PART: Final = 32 << 20
"""Bytes of a large file that one request asks for."""
CONNECTIONS: Final = 4
"""Connections that fetch one large file."""
PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
FULL_S: Final = 10.0
"""The longest pause while the farm has no room."""
PREVIEW_PATIENCE_S: Final = 2.0
"""The longest that a frame waits for its previews to be sent."""
PREVIEW_QUIET_S: Final = 30.0
"""After a preview that could not be sent, none is tried for this long."""
PREVIEW_THREADS: Final = 2
THREADS: Final = 16
FETCHES: Final = 4
"""Files of one task that are fetched at once."""
MAX_FILES: Final = 100_000
OVER: Final = handed_back("The farm does not want this attempt any more.")
_PATH: Final = "/renderapi/v2/attempts"


class Stopped(Exception):
    """The session is over: its attempt was ended, or its patience."""


class TransferSession:
    """The transfers of one attempt. `patience_s`: how long they go on without success; None: for ever."""

    def __init__(self, attempt: int, token: str, patience_s: float | None = None) -> None:
        self.attempt = attempt
        self.headers = {"Authorization": f"Attempt {token}"}
        self._over = threading.Event()
        self._until = None if patience_s is None else time.monotonic() + patience_s
        self._lock = threading.Lock()
        self._open: dict[int, http.client.HTTPConnection] = {}

    def stop(self) -> None:
        """End it now, also what waits for the network."""
        self._over.set()
        with self._lock:
            for connection in self._open.values():
                with contextlib.suppress(OSError, AttributeError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def hurry(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def pause(self, seconds: float) -> None:
        """Wait; `Stopped` when it is over."""
        late = self._until is not None and time.monotonic() > self._until
        if self._over.wait(seconds) or late:
            raise Stopped

    def watch(self, connection: http.client.HTTPConnection) -> None:
        """Note the connection that this thread uses, which `stop` shuts down. `Stopped` when the session is over."""
        with self._lock:
            self._open[threading.get_ident()] = connection
        self.pause(0)

    def forget(self) -> None:
        """This thread uses no connection any more."""
        with self._lock:
            self._open.pop(threading.get_ident(), None)


class Transfers:
    """The HTTP calls to the RenderAPI that this machine belongs to."""

    def __init__(self, identity: Identity) -> None:
        self._caller = identity.caller(blocksize=PIECE)
        self.threads = ThreadPoolExecutor(THREADS, thread_name_prefix="transfers")
        self._lock = threading.Lock()

    def close(self) -> None:
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._caller.close()

    def inputs(self, session: TransferSession) -> Any:
        """The task's files, as RenderAPI lists them: {"scene", "files": [{"name", "size", "digest", "crc32"}]}."""

        def ask() -> Any:
            with self._call(session, "GET", "inputs") as response:
                return Reply.of(response).json()

        return _persist(session, ask)

    def fetch(self, session: TransferSession, name: str, size: int, handle: int, done: set[int]) -> None:
        """Write one of the task's files to `handle`. `done`: the parts (numbers, of `PART` bytes) that are there;
        those that come are added to it. OSError of the disk."""
        waiting = iter([number for number in range(-(-size // PART)) if number not in done])

        def work() -> None:
            while True:
                with self._lock:
                    number = next(waiting, None)
                if number is None:
                    return
                self._fetch_part(session, name, range(number * PART, min(size, (number + 1) * PART)), handle)
                done.add(number)

        if size <= PART:
            work()
            return
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            for worker in [threads.submit(work) for _ in range(CONNECTIONS)]:
                worker.result()

    def send(
        self, session: TransferSession, where: str, content: Path | bytes, headers: Mapping[str, str] | None = None
    ) -> None:
        """PUT a file, or bytes, at `where` below the attempt (`outputs/<name>`, quoted, with any query). Raises the
        error with which RenderAPI refuses it, and `InvalidRequest` for a file that is no regular one. While the farm's
        disk is full it waits: to render a frame again would cost more."""

        def put() -> None:
            with contextlib.ExitStack() as stack:
                body: bytes | FileIO = content if isinstance(content, bytes) else stack.enter_context(_regular(content))
                size = len(body) if isinstance(body, bytes) else os.fstat(body.fileno()).st_size
                length = {"Content-Length": str(size)}
                with self._call(session, "PUT", where, body=body, headers={**length, **(headers or {})}) as response:
                    Reply.of(response)

        _persist(session, put)

    def _fetch_part(self, session: TransferSession, name: str, part: range, handle: int) -> None:
        position = part.start

        def get() -> None:
            nonlocal position
            wanted = {"Range": f"bytes={position}-{part.stop - 1}"} if part.stop > position else {}
            with self._call(session, "GET", f"inputs/{quote(name)}", headers=wanted) as response:
                if response.status != HTTPStatus.PARTIAL_CONTENT and (position or response.status != HTTPStatus.OK):
                    raise http.client.HTTPException(f"status {response.status}, where a range was asked for")
                buffer = memoryview(bytearray(min(PIECE, len(part) or 1)))
                while position < part.stop:
                    count = response.readinto(buffer[: part.stop - position])
                    if not count:
                        raise http.client.IncompleteRead(b"")
                    _write(handle, buffer[:count], position, name)
                    position += count
                if response.read(1):
                    raise http.client.HTTPException("more came than was asked for")

        _persist(session, get)

    @contextlib.contextmanager
    def _call(
        self,
        session: TransferSession,
        method: str,
        where: str,
        *,
        headers: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Iterator[http.client.HTTPResponse]:
        path = f"{_PATH}/{session.attempt}/{where}"
        known = {**session.headers, **(headers or {})}
        try:
            with self._caller.open(method, path, headers=known, keep=True, watch=session.watch, **options) as response:
                yield response
        finally:
            session.forget()


@dataclass(frozen=True)
class _Inputs:
    files: tuple[InputFile, ...]


class RemoteFiles:
    """The files of one attempt on a machine that does not share the farm's directory: the task's files are fetched into
    `place` before it begins, and each finished file is sent before it is reported (`docs/reference/link.md`)."""

    def __init__(self, assign: Assign, transfers: Transfers, cache: InputCache, place: Path) -> None:
        self.assign = in_own_directories(assign, place / "input", place / "output")
        session = self._session = TransferSession(assign.attempt, assign.token)
        self.hurry, self.stop = session.hurry, session.stop
        self._transfers, self._cache = transfers, cache
        self._pinned: list[str] = []

    async def fetch(self) -> AttemptVerdict | None:
        """Fetch the task's files; an ending when they can't be had."""
        return await asyncio.get_running_loop().run_in_executor(self._transfers.threads, self._fetch)

    async def send(self, found: Good) -> Bad | AttemptVerdict | None:
        """Send a finished file: what is wrong with it, or why the whole attempt can't go on."""
        return await asyncio.get_running_loop().run_in_executor(self._transfers.threads, self._send, found)

    def release(self) -> None:
        """Its inputs are not needed any more. Blocks."""
        pinned, self._pinned = self._pinned, []
        self._cache.release(pinned)

    def _fetch(self) -> AttemptVerdict | None:
        try:
            Path(self.assign.root).mkdir(parents=True)
            with ThreadPoolExecutor(FETCHES) as threads:
                for _ in threads.map(self._place, _wanted(self._transfers.inputs(self._session))):
                    pass
        except (Stopped, Conflict):
            return OVER
        except RenderOnlineError as error:
            return failed("no_input", error.message)
        except OSError as error:
            return failed("no_space", f"The task's files can't be kept here: {error.strerror}.")
        return None

    def _place(self, one: InputFile) -> None:
        target = inside(Path(self.assign.root), one.name)
        self._pinned.append(one.digest)
        fetch = partial(self._transfers.fetch, self._session, one.name, one.size)
        self._cache.place(one, target, fetch, partial(self._session.pause, 0))

    def _send(self, found: Good) -> Bad | AttemptVerdict | None:
        path, headers = inside(Path(self.assign.directory), found.name), {"X-Digest": found.file.digest}
        try:
            self._transfers.send(self._session, f"outputs/{quote(found.name)}", path, headers)
        except (Stopped, NotFound, Conflict):
            return OVER
        except RenderOnlineError as error:
            return Bad(found.name, f"{found.name} was refused: {error.message}")
        except OSError as error:
            return Bad(found.name, f"{found.name} can't be read: {error.strerror}.")
        return None


class PreviewSender:
    """Sends the previews of frames, in threads of its own. They are looks only: what can't be sent soon is left out."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._threads = ThreadPoolExecutor(PREVIEW_THREADS, thread_name_prefix="previews")
        self._quiet_until = 0.0

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def send(self, attempt: int, token: str, name: str, previews: Mapping[str, bytes]) -> None:
        """Send the previews of one file; never raises, and comes back within `PREVIEW_PATIENCE_S`."""
        if time.monotonic() < self._quiet_until:
            return
        session = TransferSession(attempt, token, PREVIEW_PATIENCE_S)
        try:
            async with asyncio.timeout(PREVIEW_PATIENCE_S):
                await asyncio.get_running_loop().run_in_executor(self._threads, self._send, session, name, previews)
        except RenderOnlineError as error:
            log.info("previews are not wanted", attempt=attempt, name=name, reason=str(error))
        except (TimeoutError, Stopped, OSError) as error:
            log.info("previews could not be sent", attempt=attempt, name=name, reason=str(error))
            self._quiet_until = time.monotonic() + PREVIEW_QUIET_S

    def _send(self, session: TransferSession, name: str, previews: Mapping[str, bytes]) -> None:
        if time.monotonic() >= self._quiet_until:
            for size, jpeg in previews.items():
                self._transfers.send(session, f"previews/{quote(name)}?size={size}", jpeg)


def _persist(session: TransferSession, action: Callable[[], T]) -> T:
    """Run `action` again and again until it succeeds, is refused, or the session is over."""
    pauses = backoff(PAUSE_S, LONGEST_PAUSE_S)
    while True:
        try:
            return action()
        except NoSpace:
            session.pause(random.uniform(0.5, 1.0) * FULL_S)  # noqa: S311 - spreads load, guards nothing
        except RenderOnlineError as error:
            is_fault = isinstance(error, (NotAvailable, LimitReached)) or type(error) is RenderOnlineError
            if not is_fault or error.reason_code == NO_RENDERAPI:
                raise
            log.info("RenderAPI does not answer, trying again", attempt=session.attempt, reason=error.message)
            session.pause(next(pauses))


def _regular(path: Path) -> FileIO:
    file = FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise InvalidRequest(f"{path.name} is no regular file.")


def _write(handle: int, data: memoryview, position: int, name: str) -> None:
    """An error of the disk names the file, which tells it from one of the network."""
    try:
        write_at(handle, data, position)
    except OSError as error:
        raise OSError(error.errno, error.strerror, name) from error


def _wanted(answer: Any) -> tuple[InputFile, ...]:
    found = from_wire(_Inputs, answer).files
    if len(found) > MAX_FILES or not all(DIGEST.fullmatch(one.digest) for one in found):
        raise InvalidRequest("RenderAPI names files of the task that can't be.")
    return found
