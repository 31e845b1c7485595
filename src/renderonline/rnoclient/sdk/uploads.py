"""Sending a scene: one file and its request as `multipart/form-data`, streamed from the disk."""

import http.client
import json
import os
import re
import secrets
import select
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from renderonline.farm.errors import InvalidRequest, NotAvailable
from renderonline.rnoclient.sdk.connection import Connection, Reply, lower_case

BLOCK: Final = 256 * 1024
Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes in all."""


def send_file(
    connection: Connection,
    path: str,
    *,
    request: Mapping[str, Any],
    file: Path,
    key: str,
    progress: Progress | None = None,
) -> Reply:
    """POST `file` with `request` to `path`. Repeated after a fault of the network: `key` makes it count once (R4)."""
    boundary = f"renderonline{secrets.token_hex(16)}"
    head = _head(boundary, request, file.name)
    tail = f"\r\n--{boundary}--\r\n".encode()
    try:
        source = file.open("rb")
    except OSError as error:
        raise InvalidRequest(f"{file} can't be read: {error.strerror}.") from None
    with source:
        size = os.fstat(source.fileno()).st_size

        def send(to: http.client.HTTPConnection) -> None:
            source.seek(0)
            _stream(to, head, source, size, tail, progress)

        def once() -> Reply:
            headers = {
                "content-type": f"multipart/form-data; boundary={boundary}",
                "content-length": str(len(head) + size + len(tail)),
                "idempotency-key": key,
            }
            with connection.open("POST", path, headers=headers, send=send, timeout_s=120) as response:
                return Reply(response.status, lower_case(response), response.read())

        reply: Reply = connection.patiently(once, patience_s=30)
        return reply


def _head(boundary: str, request: Mapping[str, Any], name: str) -> bytes:
    """The request stands before the file, so that it can be refused before the file is sent."""
    shown = re.sub(r'[\x00-\x1f\x7f"\\]', "_", name)
    return (
        f'--{boundary}\r\nContent-Disposition: form-data; name="request"\r\n'
        f"Content-Type: application/json\r\n\r\n{json.dumps(request)}\r\n"
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{shown}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    ).encode()


def _stream(
    to: http.client.HTTPConnection, head: bytes, source: BinaryIO, size: int, tail: bytes, progress: Progress | None
) -> None:
    """Send everything, or stop as soon as the answer is there: a refusal comes before the file has been read."""
    try:
        to.send(head)
        sent = 0
        while sent < size:
            if _answered(to):
                return
            block = source.read(min(BLOCK, size - sent))
            if not block:
                raise NotAvailable("The file became shorter while it was sent; save it and submit again.")
            to.send(block)
            sent += len(block)
            if progress is not None:
                progress(sent, size)
        to.send(tail)
    except (BrokenPipeError, ConnectionResetError):
        return  # the answer that explains it may already be here; if not, reading it fails in the same way


def _answered(connection: http.client.HTTPConnection) -> bool:
    if connection.sock is None or isinstance(connection.sock, ssl.SSLSocket):
        return False  # TLS has messages of its own; there the refusal is seen when sending fails
    return bool(select.select([connection.sock], [], [], 0)[0])
