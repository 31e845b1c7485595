"""A stand-in for the existing client: the requests of .NET's HttpClient, byte for byte, over a plain socket.

`MultipartFormDataContent` puts its boundary in quotes, writes a part's content type before its disposition, names
with or without quotes, and for `Add(content, name, file name)` a second `filename*`. `PostAsJsonAsync` writes
camelCase keys in chunks.
"""

import base64
import json
import socket
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any, Literal, cast
from urllib.parse import quote, urlsplit

CRLF = b"\r\n"

Naming = Literal["quoted", "plain", "starred"]
"""How a part is named: as the existing client does it (`quoted`), `Add(content, "name")` (`plain`),
`Add(content, "name", "file")` (`starred`)."""


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Part:
    """One part of a multipart body."""

    name: str
    content: bytes
    file_name: str | None = None
    content_type: str | None = None


class ExistingClient:
    """Calls of the existing client; each on a connection of its own."""

    def __init__(self, url: str, email: str, token: str) -> None:
        parts = urlsplit(url)
        self._address = (parts.hostname or "127.0.0.1", parts.port or 80)
        self._who = {"email": email, "token": token}

    def info(self) -> Answer:
        return self.send(b"".join([b"GET /renderapi/v1/info HTTP/1.1\r\n", *self._headers({}), CRLF]))

    def dequeue(self, task_id: int) -> Answer:
        return self.post_json("/renderapi/v1/dequeue", {"taskId": task_id})

    def download(self, task_id: int) -> Answer:
        return self.post_json("/renderapi/v1/download", {"taskId": task_id})

    def delete(self, task_id: int) -> Answer:
        return self.post_json("/renderapi/v1/delete", {"taskId": task_id})

    def post_json(self, path: str, members: Mapping[str, Any]) -> Answer:
        """As `PostAsJsonAsync`: camelCase, in chunks because its length is not known before."""
        body = json.dumps(members, separators=(",", ":")).encode()
        headers = self._headers({"Transfer-Encoding": "chunked", "Content-Type": "application/json; charset=utf-8"})
        chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        return self.send(b"".join([f"POST {path} HTTP/1.1\r\n".encode(), *headers, CRLF, chunks]))

    def enqueue(
        self,
        engine_id: int | str,
        arguments: Mapping[str, str],
        file_name: str,
        content: bytes,
        *,
        naming: Naming = "quoted",
        request_type: str = "application/json; charset=utf-8",
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Submit one file as the existing client does; `headers` are more than it would send."""
        pairs = [{"ArgTypeId": name, "Value": value} for name, value in arguments.items()]
        request = json.dumps({"EngineId": str(engine_id), "Arguments": pairs}).encode()
        return self.post_parts(
            [
                Part("request", request, content_type=request_type),
                Part("file", content, file_name, "application/octet-stream"),
            ],
            naming=naming,
            headers=headers,
        )

    def post_parts(
        self, parts: Sequence[Part], *, naming: Naming = "quoted", headers: Mapping[str, str] | None = None
    ) -> Answer:
        """`POST /enqueue` with these parts."""
        boundary = str(uuid.uuid4())
        body = multipart(parts, boundary, naming)
        about = {"Content-Type": f'multipart/form-data; boundary="{boundary}"', "Content-Length": str(len(body))}
        lines = self._headers({**about, **(headers or {})})
        return self.send(b"".join([b"POST /renderapi/v1/enqueue HTTP/1.1\r\n", *lines, CRLF, body]))

    def send(self, request: bytes) -> Answer:
        """Bytes out, the answer back."""
        with socket.create_connection(self._address, timeout=60) as connection:
            connection.sendall(request)
            response = HTTPResponse(connection)
            response.begin()
            body = response.read()
            return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def _headers(self, more: Mapping[str, str]) -> Iterable[bytes]:
        host = f"{self._address[0]}:{self._address[1]}"
        for name, value in {"Host": host, **self._who, **more}.items():
            yield f"{name}: {value}\r\n".encode()


def multipart(parts: Iterable[Part], boundary: str, naming: Naming) -> bytes:
    """The body of a `MultipartFormDataContent`."""
    pieces: list[bytes] = []
    for part in parts:
        pieces.append(f"--{boundary}\r\n".encode())
        if part.content_type:
            pieces.append(f"Content-Type: {part.content_type}\r\n".encode())
        pieces += [f"Content-Disposition: {disposition(part, naming)}\r\n".encode(), CRLF, part.content, CRLF]
    pieces.append(f"--{boundary}--\r\n".encode())
    return b"".join(pieces)


def disposition(part: Part, naming: Naming) -> str:
    """`ContentDispositionHeaderValue` as text."""
    quoted = naming == "quoted"
    words = ["form-data", f'name="{part.name}"' if quoted else f"name={part.name}"]
    if part.file_name is not None:
        words.append(f"filename={_file_name(part.file_name, quoted=quoted)}")
        if naming == "starred":
            words.append(f"filename*=utf-8''{quote(part.file_name, safe='')}")
    return "; ".join(words)


def _file_name(name: str, *, quoted: bool) -> str:
    """.NET encodes what is not ASCII as a MIME word, and quotes what is no token."""
    if not name.isascii():
        return f'"=?utf-8?B?{base64.b64encode(name.encode()).decode()}?="'
    is_token = all(char.isalnum() or char in "!#$%&'*+-.^_`|~" for char in name)
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"' if quoted or not is_token else name


def task_id_of(answer: Answer) -> int:
    """Our addition to the answer of enqueue."""
    return cast("int", answer.json()["TaskId"])
