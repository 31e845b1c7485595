"""A small client of upload sessions for tests: announces, sends what is missing, submits."""

import base64
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from blake3 import blake3
from pyfastcdc import FastCDC

from renderonline.storage.manifests import AVERAGE, LARGEST, SMALLEST
from tests.support.renderapi import Reply, Running

SCRIBE = """
name = "scribe"
label = "Scribe"
extensions = [".txt"]
template = "scribe $RENDERONLINE:@uploaded_file -o $RENDERONLINE:@output_directory/page_ -s $RENDERONLINE:first"

[[arguments]]
id = "first"
type = "integer"
default = "1"
"""
"""An engine whose scenes may be anything."""


def pieces(content: bytes) -> list[bytes]:
    """The chunks of a file."""
    cutter = FastCDC(avg_size=AVERAGE, min_size=SMALLEST, max_size=LARGEST)
    return [bytes(one.data) for one in cutter.cut_buf(content)] if content else []


def manifest(chunks: Iterable[bytes]) -> str:
    """The chunks as they are announced."""
    return base64.b64encode(b"".join(blake3(one).digest() + struct.pack("<I", len(one)) for one in chunks)).decode()


def announced(name: str, content: bytes, *, chunked: bool = True) -> dict[str, Any]:
    """A file as it is announced."""
    about = {"name": name, "size": len(content), "digest": blake3(content).hexdigest()}
    return about | ({"chunks": manifest(pieces(content))} if chunked else {})


def record(index: int, chunk: int, content: bytes) -> bytes:
    """One chunk of a pack."""
    return struct.pack("<II", index, chunk) + content


def pack(files: Sequence[bytes], upload: Mapping[str, Any]) -> bytes:
    """Everything that the answer `upload` says is missing."""
    found = b""
    for index, (content, about) in enumerate(zip(files, upload["files"], strict=True)):
        chunks = pieces(content)
        for first, count in about["missing"]:
            found += b"".join(record(index, number, chunks[number]) for number in range(first, first + count))
    return found


class Uploader:
    """One user's uploads."""

    def __init__(self, api: Running, who: Mapping[str, str] | None = None) -> None:
        self.api = api
        self.who = who

    async def call(self, method: str, path: str, json: Any = None, **more: Any) -> Reply:
        return await self.api.call(method, path, json, who=self.who, **more)

    async def announce(self, *files: dict[str, Any]) -> dict[str, Any]:
        """The answer to new files."""
        reply = await self.call("POST", "/uploads", {"files": files})
        assert reply.status == 201, reply.body
        found: dict[str, Any] = reply.json()
        return found

    async def look(self, upload_id: str) -> dict[str, Any]:
        """What is there now."""
        reply = await self.call("GET", f"/uploads/{upload_id}")
        assert reply.status == 200, reply.body
        found: dict[str, Any] = reply.json()
        return found

    async def append(self, upload_id: str, index: int, offset: int, content: bytes) -> Reply:
        headers = {"Upload-Offset": str(offset)}
        return await self.call("PATCH", f"/uploads/{upload_id}/files/{index}", data=content, headers=headers)

    async def put(self, upload_id: str, content: bytes) -> Reply:
        return await self.call("PUT", f"/uploads/{upload_id}/pack", data=content)

    async def submit(self, upload_id: str, **request: Any) -> Reply:
        key = request.pop("key", None)
        headers = {"Idempotency-Key": key} if key else {}
        return await self.call("POST", "/tasks", {"engine": "scribe", "upload": upload_id, **request}, headers=headers)

    async def send(self, files: Mapping[str, bytes], **request: Any) -> tuple[dict[str, Any], int]:
        """Everything: the task, and how many bytes of chunks went."""
        upload = await self.announce(*(announced(name, content) for name, content in files.items()))
        body = pack(tuple(files.values()), upload)
        if body:
            reply = await self.put(upload["upload_id"], body)
            assert reply.status == 204, reply.body
        reply = await self.submit(upload["upload_id"], **request)
        assert reply.status == 201, reply.body
        return reply.json(), len(body)
