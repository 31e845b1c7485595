"""An HTTP server that answers by a script and remembers what it was asked; for clients only."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, whole; header names in lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say. `promised` is the content-length if it is not the body's (the connection is cut then);
    `silent` cuts the connection without a word; `early` answers before the body of the request is read."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    promised: int | None = None
    silent: bool = False
    early: bool = False


Script = Callable[[Asked], Answer]


class ScriptedServer:
    """A running server; `asked` grows."""

    def __init__(self, script: Script, context: ssl.SSLContext | None = None) -> None:
        self.asked: list[Asked] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _handle(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                begun = Asked(self.command, self.path, headers)
                answer = script(begun)
                if not answer.early:
                    body = self.rfile.read(int(headers.get("content-length", 0)))
                    begun = Asked(self.command, self.path, headers, body)
                outer.asked.append(begun)
                if answer.silent:
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if "transfer-encoding" not in answer.headers:
                    self.send_header("content-length", str(answer.promised or len(answer.body)))
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(answer.body)
                    self.wfile.flush()
                self.close_connection = self.close_connection or answer.early or answer.promised is not None

            do_GET = do_POST = do_DELETE = do_PATCH = do_PUT = _handle  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if context is not None:
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
            self._server.handle_error = lambda *_: None  # type: ignore[method-assign]
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"

    @contextlib.contextmanager
    def running(self) -> "Iterator[ScriptedServer]":
        """Serve in a thread."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()


def in_turn(*answers: Answer) -> Script:
    """These answers one after the other, the last one for ever."""
    left = list(answers)
    return lambda asked: left.pop(0) if len(left) > 1 else left[0]


def free_port() -> int:
    """A port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
