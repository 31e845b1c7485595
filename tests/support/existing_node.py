"""A stand-in for the existing render node: its three endpoints, its windows, and faults to switch on.

Written from the contract (C1 Render node) and the rules R7.2 Confirmed failure and R7.3 Unanswered start, not from our
own node. Real processes, one at a time, started by splitting the one string `Arguments` as .NET does. Like the existing
node it answers without a content type in chunks, sets its task id before the process exists, its exit time before its
success, kills the process alone, and knows nobody's token.

As a program: `python tests/support/existing_node.py PORT ENGINE=EXECUTABLE …`.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, ClassVar, Self


@dataclass
class Faults:
    """What goes wrong; may be changed while the node runs."""

    lost_start_replies: int = 0
    """So many times start does what it should, then the connection is closed without an answer."""
    lost_starts: int = 0
    """So many times the connection is closed before start did anything."""
    late_s: float = 0.0
    """Every answer comes so much later (what it says is of the moment when it is sent)."""
    stale_s: float = 0.0
    """Status says what was true so long ago: an answer that was on its way."""
    other_task: int | None = None
    """Status names this task instead of the node's own, running or ended as its own is."""
    claims_success_of: int | None = None
    """Status says that this task, which is not the one it was given, has ended successfully."""
    never_answers: bool = False
    """Connections are accepted, requests are read, nothing comes back."""
    refuses_start: str = ""
    """Start is answered with 400 and this message."""
    garbage: bool = False
    """Status is answered with a web page."""
    before_process_s: float = 0.0
    """How long the task id is set and the process does not exist yet (R7.2 Confirmed failure)."""
    before_success_s: float = 0.0
    """How long the exit time is set and the success is not yet (R7.2 Confirmed failure)."""


@dataclass
class _State:
    """What the existing node keeps in memory."""

    task_id: int = 0
    success: bool = True
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    ended: float | None = None


@dataclass
class Request:
    """One request as it arrived."""

    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    at: float = field(default_factory=time.monotonic)


class ExistingNode:
    """Runs in a thread; a context manager. `engines`: engine id -> executable."""

    def __init__(self, engines: Mapping[str, str], *, port: int = 0) -> None:
        self.engines = dict(engines)
        self.faults = Faults()
        self.requests: list[Request] = []
        self._state = _State()
        self._closing = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", port), type("Handler", (_Handler,), {"node": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    # -- what tests look at

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def starts(self) -> list[Request]:
        """The starts that arrived, refused ones too."""
        return [request for request in self.requests if request.path == "/hpc/start"]

    @property
    def stops(self) -> list[Request]:
        return [request for request in self.requests if request.path == "/hpc/stop"]

    @property
    def task_id(self) -> int:
        return self._state.task_id

    @property
    def is_running(self) -> bool:
        return self._state.process is not None and self._state.process.poll() is None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._kill()

    def restart(self) -> None:
        """As if the program was ended and started again: its process is gone and it remembers nothing."""
        self._kill()
        self._state = _State()

    def _kill(self) -> None:
        process = self._state.process
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()

    # -- the three calls; (status, JSON) or None for "close the connection"

    def answer(self, path: str, method: str, body: dict[str, Any] | None) -> tuple[int, Any] | None:
        if path == "/hpc/status" and method == "GET":
            return 200, self._status()
        if path == "/hpc/start" and method == "POST":
            return self._start(body)
        if path == "/hpc/stop" and method == "POST":
            return self._stop(body)
        return 404, None

    def _status(self) -> Any:
        state = self._state
        seen = {"EngineIds": list(self.engines), "Task": self._task(state)}
        if self.faults.stale_s:
            self._closing.wait(self.faults.stale_s)
        return seen

    def _task(self, state: _State) -> Any:
        if self.faults.claims_success_of is not None:
            claimed = self.faults.claims_success_of
            return {"TaskId": claimed, "IsSuccess": True, "IsRunning": False, "TotalSeconds": 1}
        if state.process is None:
            return None
        task_id = state.task_id if self.faults.other_task is None else self.faults.other_task
        until = time.monotonic() if state.ended is None else state.ended
        return {
            "TaskId": task_id,
            "IsSuccess": state.success,
            "IsRunning": state.ended is None,
            "TotalSeconds": int(until - state.started),
        }

    def _start(self, body: dict[str, Any] | None) -> tuple[int, Any] | None:
        if self.faults.lost_starts:
            self.faults.lost_starts -= 1
            return None
        if self.faults.refuses_start:
            return _refused(self.faults.refuses_start)
        state = self._state
        if state.process is not None and state.ended is None:
            return _refused("There already is an active render!")
        if body is None or body.get("engineid") is None or body.get("arguments") is None:
            return _refused("Invalid render arguments!")
        state.task_id, state.success = int(body.get("taskid", 0)), False
        self._closing.wait(self.faults.before_process_s)
        engine_id = str(body["engineid"])
        executable = next((path for name, path in self.engines.items() if name.lower() == engine_id.lower()), None)
        if executable is None:
            return _refused(f"Requested rendering engine not configured: {engine_id}")
        self._run(state, [executable, *split_like_dotnet(body["arguments"])])
        if self.faults.lost_start_replies:
            self.faults.lost_start_replies -= 1
            return None
        return _done(f"Rendering using engine with identifier: {engine_id}")

    def _run(self, state: _State, argv: list[str]) -> None:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        state.started, state.ended, state.process = time.monotonic(), None, process

        def watch() -> None:
            code = process.wait()
            state.ended = time.monotonic()
            self._closing.wait(self.faults.before_success_s)
            state.success = code == 0

        threading.Thread(target=watch, daemon=True).start()

    def _stop(self, body: dict[str, Any] | None) -> tuple[int, Any]:
        state = self._state
        if state.process is None or state.ended is not None:
            return _done("No active render!")
        if body is None or body.get("taskid") is None:
            return _refused("Invalid render arguments!")
        if int(body["taskid"]) != state.task_id:
            return _refused("No process running with provided task identifier!")
        state.process.kill()
        return _done("Active render terminated!")

    def closing_within(self, seconds: float) -> bool:
        """Wait so long, or until the node is closed; says whether it is."""
        return self._closing.wait(seconds)


def _done(message: str) -> tuple[int, Any]:
    return 200, {"IsSuccess": True, "Message": message}


def _refused(message: str) -> tuple[int, Any]:
    return 400, {"IsSuccess": False, "Message": message}


class _Handler(BaseHTTPRequestHandler):
    node: ClassVar[ExistingNode]
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "Kestrel", ""

    def do_GET(self) -> None:
        self._call("GET")

    def do_POST(self) -> None:
        self._call("POST")

    def _call(self, method: str) -> None:
        raw = self._body()
        body = self._json(raw)
        self.node.requests.append(Request(self.path, body or {}, dict(self.headers.items())))
        if self.node.faults.never_answers:
            while self.node.faults.never_answers and not self.node.closing_within(0.05):
                pass
            self._hang_up()
            return
        if method == "POST" and not self.headers.get("Content-Type", "").startswith("application/json"):
            self._write(500, None)  # ReadFromJsonAsync throws
            return
        answer = self.node.answer(self.path, method, body)
        self.node.closing_within(self.node.faults.late_s)
        if answer is None:
            self._hang_up()
        elif self.node.faults.garbage and self.path == "/hpc/status":
            self._write(200, "<html><body>It works!</body></html>")
        else:
            self._write(answer[0], None if answer[1] is None else json.dumps(answer[1]))

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces: list[bytes] = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _json(self, raw: bytes) -> dict[str, Any] | None:
        try:
            members = json.loads(raw)
        except ValueError:
            return None
        return {key.lower(): value for key, value in members.items()} if isinstance(members, dict) else None

    def _write(self, status: int, text: str | None) -> None:
        self.send_response(status)
        if text is None:
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_header("Transfer-Encoding", "chunked")  # and no content type, as WriteAsync alone does
        self.end_headers()
        data = text.encode()
        self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))

    def _hang_up(self) -> None:
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the base class's name)
        """Say nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True  # who asked went away


def split_like_dotnet(arguments: str) -> list[str]:
    """.NET's own way from one string to words (on Linux too), as a state machine over characters."""
    words: list[str] = []
    word: list[str] | None = None
    slashes, quoted, skip = 0, False, False
    for place, char in enumerate(arguments + " "):
        if skip:
            skip = False
            continue
        if char == "\\" and place < len(arguments):
            slashes += 1
            continue
        if char == '"':
            word = (word or []) + ["\\" * (slashes // 2)]
            if slashes % 2:
                word.append('"')
            elif quoted and arguments[place + 1 : place + 2] == '"':
                word.append('"')
                skip = True
            else:
                quoted = not quoted
            slashes = 0
            continue
        if slashes:
            word = (word or []) + ["\\" * slashes]
            slashes = 0
        if char in " \t" and (not quoted or place == len(arguments)):
            if word is not None:
                words.append("".join(word))
            word = None
        else:
            word = (word or []) + [char]
    return words


def main(argv: list[str]) -> None:
    engines = dict(item.split("=", 1) for item in argv[2:])
    with ExistingNode(engines, port=int(argv[1])) as node:
        print(f"http://127.0.0.1:{node.port}", flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv)
