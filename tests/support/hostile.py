"""Requests that no client of ours sends, to a RenderAPI that is a process of its own, and what they leave."""

import contextlib
import http.client
import json
import os
import random
import socket
import stat
import struct
from pathlib import Path
from typing import Any

from tests.support.farm import RealFarm, wait_until

BIG = random.Random(7).randbytes(3_000_000)
"""Over a megabyte, so that a worker thread reads it."""
REQUEST = b'{"engine": "nothing"}'
ENGINE = """
name = "nothing"
label = "Nothing"
extensions = [".bin"]
template = "nothing $RENDERONLINE:@uploaded_file"
"""
TASKS = "/renderapi/v2/tasks"
_ACKED = 120
"""Where the kernel's tcp_info has tcpi_bytes_acked."""


def tree(farm: RealFarm) -> dict[str, int]:
    """Every file (its size) and folder (-1) that RenderAPI keeps for users, without each user's own folder."""
    root, found = farm.data / "files", {}
    for folder, folders, names in os.walk(root):  # which forgives that something is being removed
        for path in (Path(folder, name) for name in (*folders, *names)):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                found[str(path.relative_to(root))] = -1 if stat.S_ISDIR(status.st_mode) else status.st_size
    return {name: size for name, size in found.items() if size >= 0 or "/" in name}


def unchanged(farm: RealFarm, before: dict[str, int], tasks: int) -> None:
    """Nothing is stored but what was there, and RenderAPI works."""
    wait_until(lambda: tree(farm) == before, f"tree as before: {before}", 20)
    assert count(farm) == tasks


def count(farm: RealFarm) -> int:
    """How many tasks there are."""
    return len(list(farm.client.tasks()))


def part(head: str, content: bytes) -> bytes:
    """A part of a form."""
    return f"--B\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + content + b"\r\n"


def form(content: bytes = BIG, *more: bytes, name: str = "big.bin", end: bytes = b"--B--\r\n") -> bytes:
    """A submission of v2."""
    return b"".join([part('name="request"', REQUEST), part(f'name="file"; filename="{name}"', content), *more, end])


def head(farm: RealFarm, length: int | None, *more: str, path: str = TASKS, method: str = "POST") -> bytes:
    """The head of a request. What it usually has is left out where `more` has it; without a length it is chunked."""
    kind = (
        ()
        if any(line.startswith("Content-Type") for line in more)
        else ("Content-Type: multipart/form-data; boundary=B",)
    )
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    who = (f"email: {farm.login.email}", f"token: {farm.login.token}")
    who = () if any(line.startswith("token") for line in more) else who
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *who, *kind, size, *more, "", ""]).encode()


def connect(farm: RealFarm) -> socket.socket:
    """A connection to RenderAPI."""
    connection = socket.create_connection(("127.0.0.1", port(farm)), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def port(farm: RealFarm) -> int:
    """Where RenderAPI listens."""
    return int(farm.url.rpartition(":")[2])


def answer(connection: socket.socket) -> tuple[int, Any]:
    """Status and JSON of one answer."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    body = response.read()
    return response.status, json.loads(body) if body else None


def post(farm: RealFarm, body: bytes, *more: str) -> tuple[int, Any]:
    """Send a whole form; the answer."""
    with connect(farm) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before
            connection.sendall(head(farm, len(body), *more) + body)
        return answer(connection)


def taken(connection: socket.socket) -> int:
    """How many of the bytes sent over this connection RenderAPI's program has read from its own kernel (Linux)."""
    acknowledged = struct.unpack_from("<Q", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232), _ACKED)[0]
    ours, theirs = connection.getsockname()[1], connection.getpeername()[1]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if (int(local.split(":")[1], 16), int(remote.split(":")[1], 16)) == (theirs, ours):
            return int(acknowledged - int(queues.split(":")[1], 16))
    raise AssertionError("RenderAPI has closed the connection")


def upload(farm: RealFarm, size: int, **more: Any) -> str:
    """Announce one file."""
    announced = {"files": [{"name": "big.bin", "size": size, **more}]}
    return str(farm.client.connection.call("POST", "/uploads", data=announced).json()["upload_id"])


def offset(farm: RealFarm, number: str) -> int:
    """How much of an upload's file is there."""
    return int(farm.client.connection.call("GET", f"/uploads/{number}").json()["files"][0]["offset"])


def patch(farm: RealFarm, number: str, start: int, length: int) -> bytes:
    """The head of a request that goes on with an upload's file."""
    path = f"/renderapi/v2/uploads/{number}/files/0"
    return head(farm, length, f"Upload-Offset: {start}", path=path, method="PATCH")
