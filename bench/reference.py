"""The bare reference: the least program that does what a farm does with a chunk that does nothing.

One server, one link (a WebSocket) to each node, one row a chunk. A chunk is leased and ended in SQLite, durably (WAL,
`synchronous=FULL`, one commit for what came together), before it counts; each chunk is one process. There are no users,
no priorities, no limits, no logs and no files, nothing is checked, and a lost node is not noticed. What the farm does
in the same run, as a share of this, is what its promises cost.

    python -m bench.reference server DIRECTORY      writes its port to DIRECTORY/port
    python -m bench.reference node PORT SLOTS PROGRAM
"""

import asyncio
import contextlib
import itertools
import os
import sqlite3
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
import uvicorn
import uvloop
import websockets
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

INSERT = "INSERT INTO chunks (id, state) VALUES (?, 0)"
LEASE = "UPDATE chunks SET state = 1, node = ? WHERE id = ?"
END = "UPDATE chunks SET state = 2, code = ? WHERE id = ?"

Job = tuple[str, Sequence[tuple[int, ...]], asyncio.Future[None]]


class Rows:
    """The chunks in SQLite. What is asked for during one commit shares the next one."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE chunks (id INTEGER PRIMARY KEY, state INT, node INT, code INT)")
        self._waiting: list[Job] = []
        self._asked = asyncio.Event()
        self._thread = ThreadPoolExecutor(1)

    def change(self, statement: str, rows: Sequence[tuple[int, ...]]) -> asyncio.Future[None]:
        """Run a statement for each row; the future is done when they are durable."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((statement, rows, done))
        self._asked.set()
        return done

    def _commit(self, jobs: Sequence[Job]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        for statement, rows, _ in jobs:
            self._connection.executemany(statement, rows)
        self._connection.execute("COMMIT")

    async def run(self) -> None:
        """Commit what is asked for, without end."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            jobs, self._waiting = self._waiting, []
            await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, jobs)
            for _, _, done in jobs:
                done.set_result(None)


class Server:
    """Hands out chunks in the order of their submission, to whichever node has a free slot."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._queue: deque[int] = deque()
        self._free: deque[tuple[int, WebSocket]] = deque()
        self._ids = itertools.count(1)
        self._numbers = itertools.count(1)
        self._ended = 0
        self._last_end = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, request: Request) -> JSONResponse:
        """`{"chunks": 3000}`: queue them."""
        wanted = orjson.loads(await request.body())["chunks"]
        ids = [next(self._ids) for _ in range(wanted)]
        await self._rows.change(INSERT, [(chunk,) for chunk in ids])
        self._queue.extend(ids)
        self._lease()
        return JSONResponse({})

    async def state(self, _: Request) -> JSONResponse:
        """How many slots are free, how many chunks have ended, and when the last one did."""
        return JSONResponse({"free": len(self._free), "ended": self._ended, "last_end": self._last_end})

    async def link(self, socket: WebSocket) -> None:
        """A node: its first message says how many slots it has, each further one that a chunk has ended."""
        await socket.accept()
        number = next(self._numbers)
        self._free.extend([(number, socket)] * orjson.loads(await socket.receive_bytes())["slots"])
        self._lease()
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                ended = orjson.loads(await socket.receive_bytes())
                self._free.append((number, socket))
                self._start(self._end(ended["id"], ended["code"]))
                self._lease()

    def _lease(self) -> None:
        while self._queue and self._free:
            self._start(self._send(self._queue.popleft(), *self._free.popleft()))

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, chunk: int, number: int, socket: WebSocket) -> None:
        await self._rows.change(LEASE, [(number, chunk)])
        await socket.send_bytes(orjson.dumps({"id": chunk}))

    async def _end(self, chunk: int, code: int) -> None:
        await self._rows.change(END, [(code, chunk)])
        self._ended += 1
        self._last_end = time.time()


async def serve(directory: Path) -> None:
    """Serve on a free port of loopback, without end."""
    rows = Rows(directory / "reference.sqlite")
    server = Server(rows)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        commits = asyncio.create_task(rows.run())
        yield
        commits.cancel()

    routes = [Route("/submit", server.submit, methods=["POST"]), Route("/state", server.state)]
    app = Starlette(routes=[*routes, WebSocketRoute("/link", server.link)], lifespan=lifespan)
    options = {"http": "httptools", "ws": "websockets-sansio", "ws_per_message_deflate": False, "access_log": False}
    uvicorn_server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", **options))
    listening = uvicorn_server.config.bind_socket()
    listening.listen()
    (directory / "port.new").write_text(str(listening.getsockname()[1]))
    (directory / "port.new").rename(directory / "port")
    await uvicorn_server.serve([listening])


async def node(port: int, slots: int, program: str) -> None:
    """Start a process for every chunk that arrives, and report its end, until the server goes."""
    nothing = os.open(os.devnull, os.O_RDWR)
    files = [(os.POSIX_SPAWN_DUP2, nothing, stream) for stream in range(3)]
    loop = asyncio.get_running_loop()

    def start() -> int:
        return os.pidfd_open(os.posix_spawn(program, [program], os.environ, file_actions=files, setsid=True))

    def collect(descriptor: int) -> int:
        end = os.waitid(os.P_PIDFD, descriptor, os.WEXITED)
        os.close(descriptor)
        return end.si_status if end else -1

    async def work(chunk: int) -> None:
        descriptor = start()
        over = loop.create_future()
        loop.add_reader(descriptor, over.set_result, None)
        await over
        loop.remove_reader(descriptor)
        await link.send(orjson.dumps({"id": chunk, "code": collect(descriptor)}))

    tasks = set[asyncio.Task[None]]()
    async with websockets.connect(f"ws://127.0.0.1:{port}/link", compression=None) as link:
        await link.send(orjson.dumps({"slots": slots}))
        async for message in link:
            task = asyncio.create_task(work(orjson.loads(message)["id"]))
            tasks.add(task)
            task.add_done_callback(tasks.discard)


def main() -> None:
    """Be the server or a node."""
    role, *values = sys.argv[1:]
    if role == "server":
        uvloop.run(serve(Path(values[0])))
    else:
        uvloop.run(node(int(values[0]), int(values[1]), values[2]))


if __name__ == "__main__":
    main()
