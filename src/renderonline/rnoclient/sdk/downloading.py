"""Files to and from the farm: scenes streamed from the disk; results resumed where they stopped, and there under
their name only when complete.
"""

import contextlib
import hashlib
import http.client
import json
import os
import re
import secrets
import select
import ssl
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final

from renderonline.farm.errors import InvalidRequest, NoSpace, NotAvailable
from renderonline.protocol.calls import Reply
from renderonline.rnoclient.sdk.connection import Connection

BLOCK: Final = 256 * 1024
SEND_BLOCK: Final = 32 * 1024
"""Small enough to be taken at once by a socket that takes anything."""
SEND_TIMEOUT_S: Final = 120.0
RESUME_S: Final = 120.0
"""A download that has begun goes on over so long without RenderAPI."""
Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


def send(connection: Connection, request: Mapping[str, Any], file: Path, progress: Progress | None) -> Reply:
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
            yield head
            yield from _content(to, source, size, progress)
            if not answered(to):
                yield tail

        how = {"headers": headers, "body": blocks, "keep": True, "timeout_s": SEND_TIMEOUT_S}
        return connection.patiently(lambda: connection.ask("POST", "/tasks", **how), patience_s=30)


def fetch(
    connection: Connection, path: str, target: Path, *, digest: str | None = None, progress: Progress | None = None
) -> Path:
    """Download `path` to `target` and return it. What an earlier call left in `target.part` is not sent again.

    With `digest` (BLAKE2b-256 in hex) other bytes are refused. `NotAvailable` when nothing comes for longer than the
    connection's patience, or than `RESUME_S` once something came.
    """
    part = target.with_name(target.name + ".part")
    tag = target.with_name(target.name + ".part.etag")
    with _disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)

    def some() -> bool:
        """Whether it is complete now; what brought a part of it is gone on with at once."""
        before = size_of(part)
        try:
            _some(connection, path, part, tag, progress)
        except NotAvailable:
            if size_of(part) <= before:
                raise
            return False
        return True

    patience_s = None
    while not connection.patiently(some, patience_s=patience_s):
        patience_s = RESUME_S
    with _disk(target):
        if digest is not None and _digest(part) != digest:
            part.unlink()
            raise NotAvailable(f"{target.name} arrived with other bytes than the farm has; download it again.")
        os.replace(part, target)
        tag.unlink(missing_ok=True)
    return target


def safe_path(directory: Path, name: str) -> Path:
    """Where the result `name` belongs below `directory`; a name that leads out of it is refused."""
    pure = PurePosixPath(name)
    if not pure.parts or pure.is_absolute() or ".." in pure.parts or re.search(r'[\x00-\x1f\\:*?"<>|]', name):
        raise InvalidRequest(f"The farm names a file {name!r}, which is no safe name; it is not downloaded.")
    return directory.joinpath(pure)


def digest_of(target: Path) -> str:
    """The digest of a file that is there; "" when there is none, a dash when it can't be read."""
    if not os.path.lexists(target):
        return ""
    try:
        return _digest(target)
    except OSError:
        return "-"


def _head(boundary: str, request: Mapping[str, Any], name: str) -> bytes:
    """The request stands before the file, so that it can be refused before the file is sent."""
    shown = re.sub(r'[\x00-\x1f\x7f"\\]', "_", name)
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="request"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(request)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{shown}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()


def _content(to: http.client.HTTPConnection, source: BinaryIO, size: int, progress: Progress | None) -> Iterator[bytes]:
    """The file, or its beginning when the answer is there already: a refusal comes before all has been read."""
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


def _some(connection: Connection, path: str, part: Path, tag: Path, progress: Progress | None) -> None:
    """One call that goes on where `part` ends; starts again when the file has changed on the farm."""
    have = size_of(part)
    etag = tag.read_text() if have and tag.exists() else ""
    headers = {"range": f"bytes={have}-", "if-range": etag} if etag else {}
    try:
        with connection.open("GET", path, headers=headers, keep=True, timeout_s=60) as response:
            if response.status == http.HTTPStatus.PARTIAL_CONTENT:
                total = _total(response.headers.get("content-range", ""), have)
            else:
                have, total = 0, int(response.headers.get("content-length", "-1"))
            with _disk(tag):
                _remember(tag, response.headers.get("etag", ""))
            _write(response, part, have, total, progress)
    except InvalidRequest as error:
        if not headers:
            raise
        part.unlink(missing_ok=True)  # the range can't be had (416): the next call starts from the beginning
        raise NotAvailable(error.message) from error


def _write(response: http.client.HTTPResponse, part: Path, have: int, total: int, progress: Progress | None) -> None:
    """Faults of the disk are told apart from those of the network, which would be tried again."""
    with _disk(part):
        file = part.open("r+b" if have else "wb")
    with file:
        file.truncate(have)
        file.seek(have)
        while block := response.read1(BLOCK):
            with _disk(part):
                file.write(block)
            have += len(block)
            if progress is not None:
                progress(have, total)
        with _disk(part):
            file.flush()
            os.fsync(file.fileno())
    if total >= 0 and have != total:
        raise http.client.IncompleteRead(b"", total - have)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoSpace(f"{path} can't be written: {error.strerror}.") from None


def _total(content_range: str, have: int) -> int:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", content_range.strip())
    if match is None or int(match[1]) != have:
        raise http.client.HTTPException("an answer with another range than the one asked for")
    return int(match[2])


def _remember(tag: Path, etag: str) -> None:
    """Only a strong tag says that the bytes are the same."""
    tag.unlink(missing_ok=True)
    if etag and not etag.startswith("W/"):
        tag.write_text(etag)


def size_of(file: Path) -> int:
    """The size of a file; 0 when there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
