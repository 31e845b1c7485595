"""Uploads. `submit` resumes them: it announces files, sends what the farm lacks of them over several connections, and
makes a task of them in the end. After each fault it asks the farm what is there; a later call with the same files goes
on with the same upload. `submit_file` sends a small file in one request.
"""

import base64
import contextlib
import hashlib
import http.client
import importlib
import json
import os
import re
import secrets
import select
import ssl
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from renderonline.farm.errors import Conflict, InvalidRequest, NotAvailable, NotFound, RenderOnlineError
from renderonline.protocol.calls import Reply
from renderonline.rnoclient.sdk.connection import BLOCK, Connection, FileCache, Progress, json_object

SEND_BLOCK: Final = 32 * 1024
"""Bytes; small enough for any socket that is ready to send."""
SEND_TIMEOUT_S: Final = 120.0
PACK_BYTES: Final = 8 * 1024 * 1024
SENDERS: Final = 3
PATIENCE_S: Final = 120.0
"""Seconds without an arriving byte after which an upload is given up."""
FIRST_S: Final = 30.0
"""Seconds after which a farm that does not answer the first call is given up."""
MOST_ANNOUNCED: Final = 24 * 1024 * 1024
"""Bytes of chunks that are announced at once; files beyond are sent whole."""
CHUNK: Final = struct.Struct("<32sI")
RECORD: Final = struct.Struct("<II")
Json = Mapping[str, Any]
_CHANGED: Final = frozenset({"changed", "wrong_chunk", "wrong_digest", "not_found"})
_WAITS: Final = frozenset({"incomplete", "busy", "wrong_offset"})


class Chunker(Protocol):
    """Cuts files into chunks (`cdc:v1`), so that only those are sent which the farm does not have."""

    def __call__(self, path: Path, *, afresh: bool = False) -> bytes:
        """Return the chunks of a file in order, each as BLAKE3 and length (u32, little endian). `afresh`: the file may
        have changed although its size and time did not. Raises `OSError` when it can't be read."""


@dataclass(frozen=True, slots=True)
class UploadOptions:
    """How files are uploaded. `chunker`: None sends them whole; `cache` lets another process go on with an upload that
    was interrupted."""

    chunker: Chunker | None = None
    cache: FileCache = field(default_factory=FileCache)


def default_options() -> UploadOptions:
    """Return the best options for this computer: chunks and the user's cache where all of RenderOnline is installed,
    files as a whole where only the standard library is there, as inside Blender."""
    try:
        chunking = importlib.import_module("renderonline.rnoclient.scenes")
    except ImportError:
        return UploadOptions()
    options: UploadOptions = chunking.upload_options()
    return options


@dataclass(frozen=True, slots=True)
class _Source:
    """A file to send; `chunks` None: from its beginning on."""

    name: str
    path: Path
    size: int
    modified_ns: int
    chunks: bytes | None


@dataclass(frozen=True, slots=True)
class _UploadPiece:
    """Bytes of a file, with a few before them."""

    head: bytes
    path: Path
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class _Job:
    """One request."""

    method: str
    path: str
    pieces: Sequence[_UploadPiece]
    headers: Mapping[str, str]


def submit(
    connection: Connection,
    request: Json,
    files: Mapping[str, Path],
    options: UploadOptions,
    progress: Progress | None = None,
) -> Reply:
    """Send `files` (names there -> paths here) and submit `request`, which counts once (R4.1 Submit once).

    The first call of `progress` says what the farm had already. `NotAvailable` when nothing arrives for `PATIENCE_S`.
    """
    upload = _Upload(connection, request, _sources(files, options.chunker), options.cache, progress)
    try:
        return upload.submit()
    except (InvalidRequest, NotFound) as error:
        if error.reason_code not in _CHANGED:
            raise
    upload.give_up()
    # A file is not what it was when it was looked at, or the farm has removed the upload: look and announce again.
    return _Upload(connection, request, _sources(files, options.chunker, afresh=True), FileCache(), progress).submit()


class _Upload:
    def __init__(
        self,
        connection: Connection,
        request: Json,
        sources: Sequence[_Source],
        cache: FileCache,
        progress: Progress | None,
    ) -> None:
        self._connection = connection
        self._sources = sources
        self._request = request
        self._progress = progress or (lambda _done, _total: None)
        self._announced = json.dumps({"files": [_announced(source) for source in sources]}).encode()
        self._cache, self._name = cache, self._identity()
        known = json_object(cache.read(self._name))
        self._digest = hashlib.sha256(json.dumps(request).encode()).hexdigest()
        self._id = str(known.get("upload", ""))
        self._remembered = bool(self._id)
        self._key = str(known["key"]) if known.get("request") == self._digest else str(uuid.uuid4())
        self._total = sum(source.size for source in sources)

    def submit(self) -> Reply:
        """Send what is missing until the farm has made the task; return its answer."""
        least, deadline, delay = self._total + 1, 0.0, 0.0
        while (reply := self._committed()) is None:
            jobs, missing = self._missing()
            if missing < least:
                least, deadline, delay = missing, time.monotonic() + PATIENCE_S, 0.1
            elif time.monotonic() > deadline:
                raise NotAvailable(
                    f"The upload stands still, with {missing} bytes to go. Submit again to go on with it."
                )
            else:
                time.sleep(delay)
                delay = min(2 * delay, 5.0)
            _Round(self._connection, jobs).send(partial(self._report, self._total - missing))
        self._progress(self._total, self._total)
        self._cache.write(self._name, b"")
        return reply

    def give_up(self) -> None:
        """Delete the upload on the farm."""
        with contextlib.suppress(RenderOnlineError):
            self._connection.call("DELETE", f"/uploads/{self._id}")

    def _report(self, there: int, sent: int) -> None:
        self._progress(min(there + sent, self._total), self._total)

    def _committed(self) -> Reply | None:
        """The farm's answer to the submission; None while files are missing. The first call comes before anything is
        sent, so that a mistake in the request is reported at once."""
        for source in self._sources:
            if source.chunks is None and _seen(source.path) != (source.size, source.modified_ns):
                raise InvalidRequest(f"{source.path} changed while it was sent. Submit it again.")
        if self._id:
            try:
                return self._post("/tasks", json.dumps({**self._request, "upload": self._id}).encode())
            except NotFound:
                if not self._remembered:
                    raise
            except Conflict as error:
                if error.reason_code in _WAITS:
                    return None
                raise
        self._id, self._remembered = str(self._post("/uploads", self._announced).json()["upload_id"]), False
        noted = {"upload": self._id, "key": self._key, "request": self._digest}
        self._cache.write(self._name, json.dumps(noted).encode())
        return self._committed()

    def _missing(self) -> tuple[deque[_Job], int]:
        """The requests that send what the farm lacks, and their bytes."""
        path = f"/uploads/{self._id}"
        rows = self._connection.patiently(lambda: self._connection.call("GET", path), patience_s=PATIENCE_S).json()
        jobs: deque[_Job] = deque()
        pack: list[_UploadPiece] = []
        missing = size = 0
        for index, (source, row) in enumerate(zip(self._sources, rows["files"], strict=True)):
            there = int(row["offset"])
            if source.chunks is None and there < source.size:
                rest = _UploadPiece(b"", source.path, there, source.size - there)
                jobs.append(_Job("PATCH", f"{path}/files/{index}", [rest], {"upload-offset": str(there)}))
                missing += rest.length
            for piece in _pieces(index, source, row.get("missing", ())):
                pack.append(piece)
                missing, size = missing + piece.length, size + piece.length
                if size >= PACK_BYTES:
                    jobs.append(_Job("PUT", f"{path}/pack", pack, {}))
                    pack, size = [], 0
        if pack:
            jobs.append(_Job("PUT", f"{path}/pack", pack, {}))
        return jobs, missing

    def _post(self, path: str, body: bytes) -> Reply:
        headers = {"content-type": "application/json", "idempotency-key": self._key}
        how = {"body": body, "headers": headers, "keep": True, "timeout_s": SEND_TIMEOUT_S}
        patience_s = PATIENCE_S if self._id else FIRST_S
        return self._connection.patiently(lambda: self._connection.ask("POST", path, **how), patience_s=patience_s)

    def _identity(self) -> str:
        """A name for these files on this farm, made of their content, or else of path and time of change."""
        digest = hashlib.sha256(self._announced)
        login = self._connection.login
        unseen = [(str(file.path.resolve()), file.modified_ns) for file in self._sources if file.chunks is None]
        digest.update(json.dumps([login.url, login.email, unseen]).encode())
        return digest.hexdigest()


class _Round:
    """Sends requests over several connections until all are sent or one fails. What arrived is asked afterwards."""

    def __init__(self, connection: Connection, jobs: deque[_Job]) -> None:
        self._connection, self._jobs = connection, jobs
        self._sent = [0] * min(SENDERS, len(jobs))
        self._failed: list[BaseException] = []

    def send(self, report: Callable[[int], None]) -> None:
        """Call `report` in this thread with the bytes that are sent. Raises errors that another try would not cure."""
        threads = [threading.Thread(target=self._work, args=(mine,), daemon=True) for mine in range(len(self._sent))]
        try:
            report(0)
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.1)
                    report(sum(self._sent))
        except BaseException as error:
            self._failed.append(error)  # the other threads stop, too
            raise
        for fault in self._failed:
            if not isinstance(fault, NotAvailable) and getattr(fault, "reason_code", "") not in _WAITS:
                raise fault

    def _work(self, mine: int) -> None:
        try:
            while not self._failed:
                self._call(self._jobs.popleft(), mine)
        except IndexError:
            return  # nothing is left to send
        except Exception as error:  # noqa: BLE001 - raised by `send`
            self._failed.append(error)

    def _call(self, job: _Job, mine: int) -> None:
        length = sum(len(piece.head) + piece.length for piece in job.pieces)
        headers = {"content-type": "application/octet-stream", "content-length": str(length), **job.headers}
        body = partial(self._body, job, mine)
        self._connection.ask(job.method, job.path, body=body, headers=headers, keep=True, timeout_s=SEND_TIMEOUT_S)

    def _body(self, job: _Job, mine: int, to: http.client.HTTPConnection) -> Iterator[bytes]:
        for block in chain.from_iterable(map(_blocks, job.pieces)):
            if self._failed:
                raise NotAvailable("Another connection broke.")
            if answered(to):
                return
            yield block
            self._sent[mine] += len(block)


def _sources(files: Mapping[str, Path], chunker: Chunker | None, *, afresh: bool = False) -> list[_Source]:
    found, room = [], MOST_ANNOUNCED
    for name, path in files.items():
        size, modified_ns = _seen(path)
        try:
            chunks = None if chunker is None else chunker(path, afresh=afresh)
        except OSError as error:
            raise InvalidRequest(f"{path} can't be read: {error.strerror}.") from None
        if chunks is not None:
            size = sum(length for _, length in CHUNK.iter_unpack(chunks))
            room -= len(chunks)
        found.append(_Source(name, path, size, modified_ns, chunks if room > 0 else None))
    return found


def _seen(path: Path) -> tuple[int, int]:
    """Size and time of change; `InvalidRequest` when it is no file that can be read."""
    if not path.is_file() or not os.access(path, os.R_OK):
        raise InvalidRequest(f"{path} can't be read: it is not there, no file, or not yours to read.")
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _announced(source: _Source) -> dict[str, object]:
    known = {"name": source.name, "size": source.size}
    return known if source.chunks is None else {**known, "chunks": base64.b64encode(source.chunks).decode()}


def _pieces(index: int, source: _Source, missing: Sequence[tuple[int, int]]) -> Iterator[_UploadPiece]:
    """The missing chunks of a file."""
    wanted = {chunk for first, count in missing for chunk in range(first, first + count)}
    offset = 0
    for chunk, (_, length) in enumerate(CHUNK.iter_unpack(source.chunks or b"") if wanted else ()):
        if chunk in wanted:
            yield _UploadPiece(RECORD.pack(index, chunk), source.path, offset, length)
        offset += length


def _blocks(piece: _UploadPiece) -> Iterator[bytes]:
    try:
        with piece.path.open("rb", buffering=0) as file:
            file.seek(piece.offset)
            left = piece.length
            head = piece.head
            while left and (block := file.read(min(BLOCK, left))):
                left -= len(block)
                yield head + block
                head = b""
    except OSError as error:
        raise InvalidRequest(f"{piece.path} can't be read any more: {error.strerror}.") from None
    if left:
        raise InvalidRequest(f"{piece.path} became shorter while it was sent. Submit it again.", code="changed")


def submit_file(connection: Connection, request: Mapping[str, Any], file: Path, progress: Progress | None) -> Reply:
    """POST `file` with `request` to `/tasks`, repeated after a fault of the network: its key makes it count once
    (R4.1 Submit once).

    The file is a multipart form's second part, streamed from the disk.
    """
    boundary = f"renderonline{secrets.token_hex(16)}"
    head, tail = _head(boundary, request, file.name), f"\r\n--{boundary}--\r\n".encode()
    try:
        source = file.open("rb")
    except OSError as error:
        raise InvalidRequest(f"{file} can't be read: {error.strerror}.") from None
    with source:
        size = os.fstat(source.fileno()).st_size
        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + size + len(tail)),
            "idempotency-key": str(uuid.uuid4()),
        }

        def blocks(to: http.client.HTTPConnection) -> Iterator[bytes]:
            if size <= SEND_BLOCK:  # in one piece, which is one less to wait for on either side
                content = b"".join(_content(to, source, size, progress))
                yield head + content + (tail if len(content) == size else b"")
                return
            yield head
            yield from _content(to, source, size, progress)
            if not answered(to):
                yield tail

        how = {"headers": headers, "body": blocks, "keep": True, "timeout_s": SEND_TIMEOUT_S}
        return connection.patiently(lambda: connection.ask("POST", "/tasks", **how), patience_s=30)


def _head(boundary: str, request: Mapping[str, Any], name: str) -> bytes:
    """The form up to the file. The request comes first, so that it can be refused before the file is sent."""
    shown = re.sub(r'[\x00-\x1f\x7f"\\]', "_", name)
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="request"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(request)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{shown}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()


def _content(to: http.client.HTTPConnection, source: BinaryIO, size: int, progress: Progress | None) -> Iterator[bytes]:
    """The file; only its beginning when the farm answers before all is sent, which is a refusal."""
    source.seek(0)
    sent = 0
    if progress is not None:
        progress(sent, size)
    while sent < size and not answered(to):
        block = source.read(min(SEND_BLOCK, size - sent))
        if not block:
            raise NotAvailable("The file became shorter while it was sent; save it and submit again.")
        yield block
        sent += len(block)
        if progress is not None:
            progress(sent, size)


def answered(connection: http.client.HTTPConnection) -> bool:
    """Whether the answer is there; waits until it is or more can be sent without waiting."""
    if connection.sock is None or isinstance(connection.sock, ssl.SSLSocket):
        return False  # TLS has messages of its own; there the refusal is seen when sending fails
    return bool(select.select([connection.sock], [connection.sock], [], SEND_TIMEOUT_S)[0])
