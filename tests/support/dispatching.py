"""A dispatcher with a real database and real links, machines that do what a test says, and tasks with real files."""

import asyncio
import contextlib
import hashlib
import itertools
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import select, text
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from renderonline.database import administration_rows, submission_rows, upkeep
from renderonline.database.door import Database, IdBlocks
from renderonline.database.schema import attempts, chunks, results, tasks
from renderonline.database.submission_rows import NewChunk, NewTask
from renderonline.farm.frames import cut, parse_frames
from renderonline.farm.machines import MOST_SLOTS
from renderonline.farm.settling import Patience, RetryPolicy
from renderonline.protocol.link import (
    LINK_PATH,
    PROTOCOL,
    Ack,
    Assign,
    Cancel,
    EngineOffer,
    Exited,
    FromRenderAPI,
    Heartbeat,
    HeldAttempt,
    Hello,
    Refused,
    Result,
    Started,
    Welcome,
    decode,
    decode_frame,
    encode,
)
from renderonline.renderapi.control import Control
from renderonline.renderapi.planner import Dispatcher
from renderonline.renderapi.services import Dispatching
from renderonline.serving.web import serve
from tests.support.farm_rows import add_user

DEADLINE_S = 20.0
QUICK = RetryPolicy(base_s=0.02, cap_s=0.1)
TEMPLATE = (
    "$RENDERONLINE:@uploaded_file",
    "-o",
    "$RENDERONLINE:@output_directory",
    "-s",
    "$RENDERONLINE:start_frame",
    "-e",
    "$RENDERONLINE:end_frame",
)
DEFINITION = f"""
name = "fake"
label = "Fake"
extensions = [".scene"]
template = "{" ".join(TEMPLATE)}"
split = "frames"
[[arguments]]
id = "start_frame"
type = "integer"
default = "1"
[[arguments]]
id = "end_frame"
type = "integer"
default = "1"
[frames]
first = "start_frame"
last = "end_frame"
[outputs]
pattern = "frame_####.png"
"""
_names = itertools.count(1)


async def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
    """Wait until `condition` (plain or a coroutine function) gives something true."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        await asyncio.sleep(0.01)


class Recorder:
    """Takes what is published."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any], int | None]] = []

    def publish(self, type: str, data: dict[str, Any], *, user_id: int | None = None) -> None:  # noqa: A002
        json.dumps(data)
        self.events.append((type, data, user_id))

    def of(self, wanted: str) -> list[dict[str, Any]]:
        return [data for kind, data, _ in self.events if kind == wanted]


@dataclass
class Rig:
    """A farm without RenderAPI's routes: database, dispatcher, and the link's endpoint on a real port."""

    database: Database
    directory: Path
    silence_s: float = 30.0
    return_s: float = 60.0
    policy: RetryPolicy = QUICK
    pool_sandbox: dict[str, str] = field(default_factory=dict)
    reserve_mib: int = 0
    patience: Patience = field(default_factory=Patience)
    events: Recorder = field(default_factory=Recorder)
    farm: Dispatching = field(init=False)
    dispatcher: Dispatcher = field(init=False)
    control: Control = field(init=False)
    url: str = ""
    user_id: int = 0
    engine_id: int = 0
    secrets: dict[int, str] = field(default_factory=dict)
    _serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the rows that every test needs, and start."""
        self.files.mkdir(parents=True, exist_ok=True)
        self.user_id = (await self.database.write(lambda c: add_user(c, limit=1000))).user_id
        new = submission_rows.NewEngine("fake", ".scene", str(self.files), "fake x", DEFINITION)
        self.engine_id = (await self.database.write(lambda c: administration_rows.add_engine(c, new))).engine_id
        await self.start()

    @property
    def files(self) -> Path:
        return self.directory / "files"

    async def start(self) -> None:
        """Start the dispatcher, and serve its links."""
        ids = await asyncio.to_thread(IdBlocks, self.database)
        self.farm = Dispatching(
            self.database,
            ids,
            self.events,
            data_directory=self.directory / "data",
            policy=self.policy,
            patience=self.patience,
            reserve_mib=self.reserve_mib,
            silence_s=self.silence_s,
            return_s=self.return_s,
            pool_sandbox=self.pool_sandbox,
        )
        self.ids = ids
        self.dispatcher, self.control = self.farm.dispatcher, self.farm.control
        await self.dispatcher.start()
        app = Starlette(routes=[WebSocketRoute(LINK_PATH, self.farm.links.endpoint)])
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._serving = asyncio.create_task(serve(app, host="127.0.0.1", port=0, on_ready=ready.set_result))
        self.url = (await ready).replace("http", "ws") + LINK_PATH

    async def explain(self, task_id: int, *, user_id: int | None) -> tuple[str, ...]:
        """Why a task is where it is."""
        return await self.farm.task_views().explain(task_id, user_id=user_id)

    async def stop(self) -> None:
        """Stop as RenderAPI does."""
        await self.dispatcher.stop()
        assert self._serving is not None
        self._serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._serving

    async def restart(self) -> None:
        """Stop, then start with an empty memory."""
        await self.stop()
        await self.start()

    async def add_machine(self, name: str = "", *, slots: int = MOST_SLOTS) -> int:
        """A linked machine's row; `secrets` has its secret."""
        name = name or f"machine{next(_names)}"

        def make(connection: Any) -> int:
            code = administration_rows.invite(
                connection, uses=1, expires_us=2**60, created_by=self.user_id, now_us=1, slots=slots
            )
            return administration_rows.enroll(connection, code.code, name, f"secret of {name}", now_us=1).machine_id

        machine_id = await self.database.write(make)
        self.secrets[machine_id] = f"secret of {name}"
        return machine_id

    async def add_v1(self, port: int) -> int:
        """A v1 machine's row."""
        row = await self.database.write(lambda c: administration_rows.add_v1(c, "127.0.0.1", port, now_us=1))
        await self.dispatcher.refresh()
        return row.machine_id

    async def submit(self, frames: str = "", chunk_size: int = 1, **more: Any) -> int:
        """Submit a task with a real file in a directory of its own."""
        numbers = parse_frames(frames) if frames else ()
        ranges: Sequence[Any] = cut(numbers, chunk_size) if frames else (None,)
        chunk_ids = await self.ids.next_chunk_ids(len(ranges))
        ticks = 638_000_000_000_000_000 + next(_names)
        folder = self.files / str(self.user_id) / str(ticks)
        folder.mkdir(parents=True)
        scene = folder / "a.scene"
        scene.write_text("scene")
        now = time.time()
        values = {
            "user_id": self.user_id,
            "engine_id": self.engine_id,
            "file_name": scene.name,
            "file_path": str(scene),
            "file_size": 5,
            "arguments": "fake x",
            "values": "{}",
            "template": json.dumps(TEMPLATE),
            "queue_us": int(now * 1e6),
            "queue_time": datetime.fromtimestamp(int(now)),
            "chunks": [NewChunk(number, part) for number, part in zip(chunk_ids, ranges, strict=True)],
            "frames": frames,
            "frames_total": len(numbers),
            "chunk_size": chunk_size,
        }
        new = NewTask(**{**values, **more})
        row = await self.database.read(lambda c: administration_rows.get_engine(c, new.engine_id))
        return (await self.dispatcher.submit(new, row)).task_id

    # -- looking

    async def rows(self, table: Any, **where: Any) -> list[Any]:
        """Rows of a table by id."""
        query = select(table).order_by(*table.primary_key.columns)
        for name, value in where.items():
            query = query.where(table.c[name] == value)
        return await self.database.read(lambda c: list(c.execute(query)))

    async def task(self, task_id: int) -> Any:
        """A task's row; None when it is gone."""
        found = await self.rows(tasks, task_id=task_id)
        return found[0] if found else None

    async def chunks(self, task_id: int) -> list[Any]:
        return await self.rows(chunks, task_id=task_id)

    async def attempts(self, task_id: int) -> list[Any]:
        return await self.rows(attempts, task_id=task_id)

    async def landed(self, task_id: int) -> list[str]:
        """The names of results that have landed."""
        return sorted(row.name for row in await self.rows(results, task_id=task_id) if row.state == "landed")

    async def in_queue(self, task_id: int) -> bool:
        query = text("select count(*) from queue where task_id = :task_id")
        return bool(await self.database.read(lambda c: c.execute(query, {"task_id": task_id}).scalar()))

    async def ended(self, task_id: int, seconds: float = DEADLINE_S) -> Any:
        """Wait for a task's end; gives its row."""

        async def has_ended() -> Any:
            row = await self.task(task_id)
            return row if row is not None and row.end_us is not None else None

        return await until(has_ended, f"end of task {task_id}", seconds)

    def folder(self, task_id: int, file_path: str) -> Path:
        return Path(file_path).parent

    async def scene_of(self, task_id: int) -> Path:
        query = text(
            "select renders.file_path from renders, tasks"
            " where renders.render_id = tasks.render_id and tasks.task_id = :task_id"
        )
        return Path(await self.database.read(lambda c: c.execute(query, {"task_id": task_id}).scalar()))

    def left_attempts(self) -> list[str]:
        """Names of attempt directories that are still there."""
        folder = self.files / ".attempts"
        return sorted(path.name for path in folder.iterdir()) if folder.exists() else []

    async def assert_sound(self) -> None:
        """The database keeps R2 Task status and its invariants."""
        found = [one for one in await self.database.read(upkeep.check) if not one.is_warning]
        assert not found, found


@dataclass
class Machine:
    """A linked machine that does what a test says; `works`: renders whatever it is given, at once."""

    rig: Rig
    machine_id: int
    slots: int = 1
    works: bool = True
    engines: tuple[str, ...] = ("Fake",)
    instance: str = ""
    held: tuple[HeldAttempt, ...] = ()
    secret: str = ""
    protocol: int = PROTOCOL
    hello: dict[str, Any] = field(default_factory=dict)
    link: ClientConnection | None = None
    welcome: Welcome | None = None
    refused: Refused | None = None
    assigned: dict[int, Assign] = field(default_factory=dict)
    times_assigned: list[int] = field(default_factory=list)
    canceled: list[int] = field(default_factory=list)
    acked: int = 0
    seq: int = 0
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: str = "succeeded"
    mute: bool = False
    """Whether it sends no heartbeats."""
    _reading: asyncio.Task[None] | None = None

    async def dial(self) -> None:
        """Say hello; `welcome` or `refused` is set afterwards."""
        self.instance = self.instance or f"instance{next(_names)}"
        self.link = await connect(self.rig.url, compression=None)
        self.closed.clear()
        self.welcome = self.refused = None
        hello = Hello(
            protocol=self.protocol,
            machine_id=self.machine_id,
            secret=self.secret or self.rig.secrets.get(self.machine_id, "unknown"),
            instance=self.instance,
            boot="boot",
            version="0",
            name="fake",
            slots=self.slots,
            engines=tuple(EngineOffer(name, "1.0") for name in self.engines),
            held=self.held,
            **self.hello,
        )
        await self.send(hello)
        self._reading = asyncio.create_task(self._read())
        await until(lambda: self.welcome or self.refused or self.closed.is_set(), "answer to hello")

    async def hang_up(self) -> None:
        """Go away without a word."""
        if self.link is not None:
            self.link.transport.abort()
        await self.closed.wait()

    async def send(self, message: Any) -> None:
        """Send a message, or text as it is."""
        assert self.link is not None
        await self.link.send(message if isinstance(message, str) else encode(message))

    async def _read(self) -> None:
        assert self.link is not None
        beating = asyncio.create_task(self._beat())
        try:
            await self._take(decode(await self.link.recv(), Welcome | Refused))  # a frame of its own
            async for received in self.link:
                for message in decode_frame(str(received), FromRenderAPI):
                    await self._take(message)
        except ConnectionClosed:
            pass
        finally:
            beating.cancel()
            self.closed.set()

    async def _beat(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while not self.mute:
                await asyncio.sleep(0.2)
                await self.send(Heartbeat(load=0.5, full=self.hello.get("full", "")))

    async def _take(self, message: object) -> None:
        if isinstance(message, Welcome):
            self.welcome = message
        elif isinstance(message, Refused):
            self.refused = message
        elif isinstance(message, Ack):
            self.acked = message.seq
        elif isinstance(message, Cancel):
            self.canceled.append(message.attempt)
            if self.works and message.attempt in self.assigned:
                await self.exit(message.attempt, "canceled")
        elif isinstance(message, Assign):
            self.assigned[message.attempt] = message
            self.times_assigned.append(message.attempt)
            if self.works:
                await self.render(message.attempt)

    # -- what a machine does

    def _next(self) -> int:
        self.seq += 1
        return self.seq

    async def render(self, attempt: int) -> None:
        """Do an attempt to its end."""
        await self.start(attempt)
        for output in self.assigned[attempt].expected:
            await self.write(attempt, output.name)
        await self.exit(attempt, self.outcome)

    async def start(self, attempt: int) -> None:
        assign = self.assigned[attempt]
        await asyncio.to_thread(Path(assign.directory).mkdir, parents=True, exist_ok=True)
        await self.send(Started(self._next(), attempt, assign.token, at_us=int(time.time() * 1e6), pid=1))

    async def write(self, attempt: int, name: str, content: bytes | None = None, **more: Any) -> None:
        """Write a file and report it."""
        assign = self.assigned[attempt]
        data = content if content is not None else f"{name} of {assign.chunk}".encode()
        path = Path(assign.directory, name)
        _put(path, data)
        await self.send(self.result(attempt, name, data, **more))

    def result(self, attempt: int, name: str, data: bytes, **more: Any) -> Result:
        values = {
            "seq": more.pop("seq", None) or self._next(),
            "attempt": attempt,
            "token": self.assigned[attempt].token,
            "at_us": int(time.time() * 1e6),
            "name": name,
            "size": len(data),
            "digest": hashlib.blake2b(data, digest_size=32).hexdigest(),
            "crc32": zlib.crc32(data),
            "facts": {"width": 4},
        }
        return Result(**{**values, **more})

    async def exit(self, attempt: int, outcome: str = "succeeded", **more: Any) -> None:
        assign = self.assigned[attempt]
        values = {"exit_code": 0 if outcome == "succeeded" else 1, **more}
        await self.send(Exited(self._next(), attempt, assign.token, int(time.time() * 1e6), outcome, **values))

    async def given(self, count: int = 1) -> list[Assign]:
        """Wait until so many different attempts were assigned."""
        await until(lambda: len(self.assigned) >= count, f"{count} assignments")
        return list(self.assigned.values())

    async def all_acked(self) -> None:
        """Wait until everything that was reported is acknowledged."""
        await until(lambda: self.acked >= self.seq, f"ack of {self.seq}")


def _put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@contextlib.asynccontextmanager
async def opened_rig(database: Database, directory: Path, **options: Any) -> AsyncIterator[Rig]:
    """A rig that is stopped at the end."""
    rig = Rig(database, directory, **options)
    await rig.open()
    try:
        yield rig
    finally:
        await rig.stop()


async def joined(rig: Rig, **options: Any) -> Machine:
    """A new machine, linked."""
    machine = Machine(rig, await rig.add_machine(), **options)
    await machine.dial()
    assert machine.welcome is not None, machine.refused
    return machine


async def begun(rig: Rig, frames: str = "1", chunk_size: int = 1) -> tuple[Machine, int, Assign]:
    """A machine that has started the first chunk of a new task, and does nothing more by itself."""
    machine = await joined(rig, works=False)
    task_id = await rig.submit(frames, chunk_size)
    (assign,) = await machine.given()
    await machine.start(assign.attempt)
    await machine.all_acked()
    return machine, task_id, assign
