"""The files of attempts, to and from RenderAPI over HTTP (`docs/reference/link.md`). All but `PreviewSender` blocks.

Whoever asks goes on through every cut and restart of RenderAPI, where it had stopped; its `Errand` ends it.
"""

import asyncio
import contextlib
import http.client
import os
import random
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, urlsplit

import orjson
import structlog

from renderonline.farm.errors import InvalidRequest, NoSpace, NotAvailable, RenderOnlineError
from renderonline.hpcserver.enrolment import Identity
from renderonline.storage.staging import write_at

log = structlog.get_logger(__name__)
T = TypeVar("T")

PIECE: Final = 1 << 20
PART: Final = 32 << 20
"""So much of a large file is asked for at once."""
CONNECTIONS: Final = 4
"""So many of them fetch one large file."""
TIMEOUT_S: Final = 30.0
PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 2.0
FULL_S: Final = 10.0
"""The longest pause while the farm has no room."""
MAX_ANSWER: Final = 64 << 20
PREVIEW_PATIENCE_S: Final = 2.0
"""So long a frame waits at most for its previews to be sent."""
PREVIEW_QUIET_S: Final = 30.0
"""After one that could not be sent none is tried for so long."""
PREVIEW_THREADS: Final = 2
_AWAY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_PATH: Final = "/renderapi/v2/attempts"


class Stopped(Exception):
    """The errand is over: its attempt was ended, or it had no more time."""


class Refused(RenderOnlineError):
    """RenderAPI will not do this, however often it is asked. `answered` is the status of its answer."""

    def __init__(self, message: str, *, code: str, status: int) -> None:
        super().__init__(message, code=code)
        self.answered = status


class Errand:
    """What one attempt fetches and sends. `patience_s`: how long it goes on without success; None: for ever."""

    def __init__(self, attempt: int, token: str, patience_s: float | None = None) -> None:
        self.attempt = attempt
        self.headers = {"Authorization": f"Attempt {token}"}
        self._over = threading.Event()
        self._until = None if patience_s is None else time.monotonic() + patience_s
        self._lock = threading.Lock()
        self._open: set[http.client.HTTPConnection] = set()

    def stop(self) -> None:
        """End it now, also what waits for the network."""
        self._over.set()
        with self._lock:
            for connection in self._open:
                _shut(connection)

    def hurry(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def pause(self, seconds: float) -> None:
        """Wait; `Stopped` when it is over."""
        late = self._until is not None and time.monotonic() > self._until
        if self._over.wait(seconds) or late:
            raise Stopped

    @contextlib.contextmanager
    def using(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        """This connection is closed when the errand is stopped."""
        with self._lock:
            self._open.add(connection)
        try:
            self.pause(0)
            yield
        finally:
            with self._lock:
                self._open.discard(connection)


@dataclass(frozen=True, slots=True)
class _Line:
    """A connection to one of RenderAPI's addresses. `fresh`: nothing was asked over it yet."""

    identity: Identity
    http: http.client.HTTPConnection
    fresh: bool

    def open(self) -> None:
        if self.http.sock is None:
            self.http.connect()
            if isinstance(self.http.sock, ssl.SSLSocket):
                self.identity.check_peer(self.http.sock.getpeercert(binary_form=True))

    def ask(self, errand: Errand, method: str, where: str, body: Any = None, **headers: str) -> None:
        address = f"{urlsplit(self.identity.url).path}{_PATH}/{errand.attempt}/{where}"
        self.http.request(method, address, body, {**errand.headers, **headers})


class Transfers:
    """Speaks HTTP with the RenderAPI that this machine belongs to, with its addresses in turn and its certificate."""

    def __init__(self, identity: Identity) -> None:
        self._turns = identity.turns()
        self._identity = next(self._turns)
        self._idle: list[_Line] = []
        self._lock = threading.Lock()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for line in idle:
            line.http.close()

    def inputs(self, errand: Errand) -> Any:
        """The task's files, as RenderAPI says it: {"scene", "files": [{"name", "size", "digest", "crc32"}]}."""

        def ask(line: _Line) -> Any:
            line.ask(errand, "GET", "inputs")
            return orjson.loads(_answer(line.http.getresponse()))

        return self._persist(errand, ask)

    def fetch(self, errand: Errand, name: str, size: int, handle: int, done: set[int]) -> None:
        """Write one of the task's files to `handle`. `done`: the parts (numbers, of `PART` bytes) that are there;
        those that come are added to it."""
        waiting = iter([number for number in range(-(-size // PART)) if number not in done])

        def work() -> None:
            while True:
                with self._lock:
                    number = next(waiting, None)
                if number is None:
                    return
                self._fetch_part(errand, name, range(number * PART, min(size, (number + 1) * PART)), handle)
                done.add(number)

        if size <= PART:
            work()
            return
        with ThreadPoolExecutor(CONNECTIONS) as threads:
            for worker in [threads.submit(work) for _ in range(CONNECTIONS)]:
                worker.result()

    def send(self, errand: Errand, where: str, content: Path | bytes, headers: Mapping[str, str] | None = None) -> None:
        """PUT a file, or bytes, at `where` below the attempt (`outputs/<name>`, quoted, with any query). `Refused`
        when RenderAPI does not want it, `InvalidRequest` for a file that is no regular one. While the farm's disk is
        full it waits: to render a frame again would be dearer."""

        def put(line: _Line) -> None:
            with contextlib.ExitStack() as stack:
                body: bytes | FileIO = content if isinstance(content, bytes) else stack.enter_context(_regular(content))
                size = len(body) if isinstance(body, bytes) else os.fstat(body.fileno()).st_size
                length = {"Content-Length": str(size)}
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before
                    line.ask(errand, "PUT", where, body, **length, **(headers or {}))
            _answer(line.http.getresponse())

        self._persist(errand, put)

    def _fetch_part(self, errand: Errand, name: str, part: range, handle: int) -> None:
        position = part.start

        def get(line: _Line) -> None:
            nonlocal position
            wanted = {"Range": f"bytes={position}-{part.stop - 1}"} if part.stop > position else {}
            line.ask(errand, "GET", f"inputs/{quote(name)}", **wanted)
            response = line.http.getresponse()
            if wanted and response.status == 200 and position:
                raise http.client.HTTPException("a range was asked for, the whole file came")
            if response.status not in (200, 206):
                _answer(response)
                raise http.client.HTTPException(f"unexpected status {response.status}")
            buffer = memoryview(bytearray(min(PIECE, len(part) or 1)))
            while position < part.stop:
                count = response.readinto(buffer[: part.stop - position])
                if not count:
                    raise http.client.IncompleteRead(b"")
                write_at(handle, buffer[:count], position)
                position += count
            if response.read(1):
                raise http.client.HTTPException("more came than was asked for")

        self._persist(errand, get)

    def _persist(self, errand: Errand, do: Callable[[_Line], T]) -> T:
        """Do something over a line, again and again until it works, is refused, or the errand is over."""
        pause_s = 0.0
        while True:
            line = self._line()
            try:
                with errand.using(line.http):
                    line.open()
                    errand.pause(0)  # stopped while it connected, when there was nothing to close
                    done = do(line)
            except (http.client.HTTPException, OSError, NotAvailable, NoSpace) as error:
                line.http.close()
                if isinstance(error, OSError) and error.filename is not None:
                    raise  # a file of ours, not the network
                if line.fresh:
                    log.info("RenderAPI does not answer, trying again", attempt=errand.attempt, reason=str(error))
                    pause_s = min(LONGEST_PAUSE_S, max(PAUSE_S, pause_s * 2))
                    with self._lock:
                        self._identity = next(self._turns)
                longest = FULL_S if isinstance(error, NoSpace) else pause_s
                errand.pause(random.uniform(0.5, 1.0) * longest)  # noqa: S311
            except BaseException:
                line.http.close()
                raise
            else:
                with self._lock:
                    self._idle.append(replace(line, fresh=False))
                return done

    def _line(self) -> _Line:
        with self._lock:
            if self._idle:
                return self._idle.pop()
            identity = self._identity
        return _Line(identity, identity.connection(TIMEOUT_S, blocksize=PIECE), fresh=True)


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
        errand = Errand(attempt, token, PREVIEW_PATIENCE_S)
        try:
            async with asyncio.timeout(PREVIEW_PATIENCE_S):
                await asyncio.get_running_loop().run_in_executor(self._threads, self._send, errand, name, previews)
        except RenderOnlineError as error:
            log.info("previews are not wanted", attempt=attempt, name=name, reason=str(error))
        except (TimeoutError, Stopped, OSError) as error:
            log.info("previews could not be sent", attempt=attempt, name=name, reason=str(error))
            self._quiet_until = time.monotonic() + PREVIEW_QUIET_S

    def _send(self, errand: Errand, name: str, previews: Mapping[str, bytes]) -> None:
        if time.monotonic() >= self._quiet_until:
            for size, jpeg in previews.items():
                self._transfers.send(errand, f"previews/{quote(name)}?size={size}", jpeg)


def _regular(path: Path) -> FileIO:
    file = FileIO(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK))
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise InvalidRequest(f"{path.name} is no regular file.")


def _answer(response: http.client.HTTPResponse) -> bytes:
    body = response.read(MAX_ANSWER)
    if response.length:  # `read` says nothing when the connection ends too early
        raise http.client.IncompleteRead(body, response.length)
    if response.status // 100 == 2:
        return body
    if response.status in _AWAY:
        raise http.client.HTTPException(f"status {response.status}")
    problem: Any = None
    with contextlib.suppress(ValueError):
        problem = orjson.loads(body)
    problem = problem if isinstance(problem, dict) else {}
    message = str(problem.get("detail") or f"RenderAPI answered with status {response.status}.")[:500]
    if response.status == NoSpace.status:
        raise NoSpace(message)
    raise Refused(message, code=str(problem.get("code") or "refused")[:50], status=response.status)


def _shut(connection: http.client.HTTPConnection) -> None:
    with contextlib.suppress(OSError, AttributeError):
        connection.sock.shutdown(socket.SHUT_RDWR)
