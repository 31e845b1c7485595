"""Where messages arrive in tests: a webhook and a mail server on loopback, real ones."""

import base64
import json
import socketserver
import threading
import time
from collections.abc import Callable
from email import message_from_bytes, policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


class _Sink:
    """A server in a thread. `got`: what arrived; `waits`: for so many seconds it does not answer."""

    def __init__(self, server: socketserver.BaseServer) -> None:
        self.got: list[Any] = []
        self.waits = threading.Event()
        self.waits.set()
        self._server = server
        self.port: int = server.server_address[1]  # type: ignore[index, assignment]
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.waits.set()
        self._server.shutdown()
        self._server.server_close()


class Webhook(_Sink):
    """Takes JSON as Apprise's `json://` sends it; `answers` are the status codes of the next calls, then 200."""

    def __init__(self, *answers: int) -> None:
        sink, self.answers, self.calls = self, list(answers), 0

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                sink.calls += 1
                sink.waits.wait(20)
                status = sink.answers.pop(0) if sink.answers else 200
                if status == 200:
                    sink.got.append(body)
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(ThreadingHTTPServer(("127.0.0.1", 0), Handler))

    @property
    def url(self) -> str:
        return f"json://user:s3cret-word@127.0.0.1:{self.port}/hook"


class MailServer(_Sink):
    """Takes mail; `got` holds (recipients, message)."""

    def __init__(self) -> None:
        sink = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                self.say("220 sink")
                recipients: list[str] = []
                while line := self.rfile.readline().strip():
                    word = line.split(b" ")[0].upper().split(b":")[0]
                    if word == b"RCPT":
                        recipients.append(line.decode().partition("<")[2].partition(">")[0])
                    if word == b"DATA":
                        self.say("354 go on")
                        data = b"".join(iter(self.rfile.readline, b".\r\n"))
                        message = message_from_bytes(data.replace(b"\r\n..", b"\r\n."), policy=policy.default)
                        sink.got.append((tuple(recipients), message))
                    if word == b"QUIT":
                        return self.say("221 bye")
                    self.say("250 fine")
                return None

            def say(self, text: str) -> None:
                self.wfile.write(f"{text}\r\n".encode())

        super().__init__(socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler))

    @property
    def url(self) -> str:
        return f"mailto://127.0.0.1:{self.port}?from=farm@example.org&mode=insecure&format=text"


def attached(message: dict[str, Any] | EmailMessage) -> list[tuple[str, bytes]]:
    """The files that came with a message."""
    if isinstance(message, EmailMessage):
        return [(part.get_filename() or "", part.get_content()) for part in message.iter_attachments()]
    return [(one["filename"], base64.b64decode(one["base64"])) for one in message["attachments"]]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 15.0) -> Any:
    """Wait in a thread."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.01)
    return found
