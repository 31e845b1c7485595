"""The v1 role: `/hpc/status`, `/hpc/start`, `/hpc/stop` exactly as the existing RenderAPI expects (contract section 1).

There is no authentication in that contract: whoever reaches the port runs programs here. So it listens on this
computer only unless told otherwise, can be held to a list of callers, refuses what a web page sends, and says so.
"""

import asyncio
import ipaddress
import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from renderonline.farm.arguments import strip_program
from renderonline.farm.command_line import split
from renderonline.farm.errors import InvalidRequest
from renderonline.hpcserver.attempt_log import AttemptLog
from renderonline.hpcserver.home import Home
from renderonline.hpcserver.processes import CantStart, EngineProcess, Processes
from renderonline.hpcserver.settings import Settings
from renderonline.hpcserver.surroundings import Scratch, clean_environment
from renderonline.protocol import hpc
from renderonline.serving.web import is_loopback, serve

log = structlog.get_logger(__name__)

MAX_BODY: Final = 1024 * 1024
STOP_GRACE_S: Final = 2.0
"""Between SIGTERM and SIGKILL."""
STOP_ANSWER_S: Final = 4.0
"""A stop is answered when nothing of the render is left, or after so long."""


@dataclass(slots=True)
class _Render:
    """The running or the last render."""

    task_id: int
    name: str
    started_at: float
    process: "asyncio.Future[EngineProcess]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    is_success: bool = False
    seconds: int = 0

    def state(self) -> hpc.TaskState:
        running = not self.ended.is_set()
        seconds = int(time.monotonic() - self.started_at) if running else self.seconds
        return hpc.TaskState(self.task_id, self.is_success, running, seconds)


class V1Node:
    """One render at a time, as on the existing node. `engines`: name -> the words its command lines begin with."""

    def __init__(
        self,
        processes: Processes,
        scratch: Scratch,
        logs: Path,
        engines: Mapping[str, Sequence[str]],
        settings: Settings,
    ) -> None:
        self._processes = processes
        self._scratch = scratch
        self._logs = logs
        self._engine_ids = tuple(engines)
        self._engines = {name.casefold(): tuple(prefix) for name, prefix in engines.items()}
        self._settings = settings
        self._render: _Render | None = None
        self._count = 0
        self._watching: set[asyncio.Task[None]] = set()

    def status(self) -> hpc.Status:
        """What runs, or ran last."""
        return hpc.Status(self._engine_ids, self._render.state() if self._render else None)

    async def start(self, body: bytes) -> hpc.Answer:
        """Start a render; between the look whether one runs and the new one's place nothing can come."""
        previous = self._render
        if previous is not None and not previous.ended.is_set():
            return hpc.Answer(is_success=False, message=hpc.ACTIVE_RENDER)
        try:
            request = hpc.parse_start(body)
        except InvalidRequest as error:
            return hpc.Answer(is_success=False, message=str(error))
        prefix = self._engines.get(request.engine_id.casefold())
        if prefix is None:
            return hpc.Answer(is_success=False, message=hpc.not_configured(request.engine_id))
        self._count += 1
        render = self._render = _Render(request.task_id, f"v1.{self._count}", time.monotonic())
        try:
            await self._spawn(render, request, prefix)
        except (CantStart, OSError) as error:
            log.warning("render can't be started", engine=request.engine_id, reason=str(error))
            render.process.cancel()
            render.ended.set()
            self._render = previous
            return hpc.Answer(is_success=False, message=hpc.not_configured(request.engine_id))
        return hpc.Answer(is_success=True, message=hpc.rendering(request.engine_id))

    async def stop(self, body: bytes) -> hpc.Answer:
        """Stop the render with this task id, its children with it."""
        try:
            request = hpc.parse_stop(body)
        except InvalidRequest as error:
            return hpc.Answer(is_success=False, message=str(error))
        render = self._render
        if render is None or render.ended.is_set():
            return hpc.Answer(is_success=True, message=hpc.NO_ACTIVE_RENDER)
        if render.task_id != request.task_id:
            return hpc.Answer(is_success=False, message=hpc.OTHER_TASK)
        await asyncio.wait({render.process}, timeout=STOP_ANSWER_S)
        if render.process.done() and not render.process.cancelled():
            render.process.result().stop("SIGTERM", STOP_GRACE_S)
        try:
            await asyncio.wait_for(render.ended.wait(), STOP_ANSWER_S)
        except TimeoutError:
            log.warning("render does not end", task=request.task_id)
        return hpc.Answer(is_success=True, message=hpc.TERMINATED)

    async def _spawn(self, render: _Render, request: hpc.StartRequest, prefix: Sequence[str]) -> None:
        words = strip_program(split(request.arguments), (request.engine_id, Path(prefix[0]).name))
        place = await asyncio.to_thread(self._scratch.make, render.name)
        output = await asyncio.to_thread(_empty_log, self._logs)
        process = await self._processes.start(
            render.name,
            [*prefix, *words],
            directory=Path.cwd(),
            environment=clean_environment(os.environ, {}, place, also=self._settings.pass_environment),
            on_lines=output.append,
            nice=self._settings.nice,
        )
        render.process.set_result(process)
        log.info("render started", task=render.task_id, engine=request.engine_id, pid=process.pid)
        watching = asyncio.create_task(self._watch(render, process))
        self._watching.add(watching)
        watching.add_done_callback(self._watching.discard)

    async def _watch(self, render: _Render, process: EngineProcess) -> None:
        ended = await process.wait()
        render.seconds = int(time.monotonic() - render.started_at)
        render.is_success = ended.code == 0
        render.ended.set()
        log.info("render ended", task=render.task_id, code=ended.code, seconds=render.seconds)
        await asyncio.to_thread(self._scratch.remove, render.name)


def create_app(node: V1Node, *, allow: Sequence[str] = ()) -> ASGIApp:
    """The application with the contract's three routes and nothing else."""

    async def status(_: Request) -> Response:
        return _json(hpc.encode(node.status()))

    async def start(request: Request) -> Response:
        return _answer(await node.start(await _body(request)))

    async def stop(request: Request) -> Response:
        return _answer(await node.stop(await _body(request)))

    routes = [
        Route(hpc.STATUS_PATH, status, methods=["GET"]),
        Route(hpc.START_PATH, start, methods=["POST"]),
        Route(hpc.STOP_PATH, stop, methods=["POST"]),
    ]
    return Guard(Starlette(routes=routes), allow)


class Guard:
    """Lets only allowed addresses in, and nothing that a web page sends: a browser always says whose page it was."""

    def __init__(self, app: ASGIApp, allow: Sequence[str]) -> None:
        self._app = app
        self._allow = tuple(ipaddress.ip_network(address, strict=False) for address in allow)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not self._may_call(scope):
            log.warning("call is refused", client=scope.get("client"), path=scope.get("path"))
            await PlainTextResponse("This node does not take calls from here.", 403)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _may_call(self, scope: Scope) -> bool:
        if any(name in {b"origin", b"sec-fetch-site"} for name, _ in scope["headers"]):
            return False
        if not self._allow:
            return True
        try:
            address = ipaddress.ip_address(scope["client"][0].partition("%")[0])
        except (ValueError, TypeError):
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._allow)


async def serve_v1(settings: Settings, home: Home, engines: Mapping[str, Sequence[str]]) -> None:
    """Serve until SIGTERM or SIGINT; a render that runs then is killed: the contract knows no way to hand it back."""
    if not is_loopback(settings.host) and not settings.allow:
        log.warning(
            "NO AUTHENTICATION: everybody on the network who reaches this port can run the configured engines here."
            " Set Allow to the addresses of your RenderAPI, or use `renderonline node --join`.",
            host=settings.host,
            port=settings.port,
        )
    else:
        log.warning("no authentication: whoever reaches this port can run the configured engines", host=settings.host)
    async with _node(settings, home, engines) as node:
        await serve(
            create_app(node, allow=settings.allow),
            host=settings.host,
            port=settings.port,
            on_ready=lambda url: home.say_ready(url=url),
            grace_s=settings.stop_grace,
        )


@asynccontextmanager
async def _node(settings: Settings, home: Home, engines: Mapping[str, Sequence[str]]) -> AsyncIterator[V1Node]:
    processes = Processes(home.name)
    await processes.open()
    try:
        scratch = Scratch(settings.home / "scratch")
        await asyncio.to_thread(scratch.clear)
        yield V1Node(processes, scratch, settings.home / "logs" / "v1", engines, settings)
    finally:
        await processes.close()


def _empty_log(place: Path) -> AttemptLog:
    AttemptLog(place).remove()
    return AttemptLog(place)


async def _body(request: Request) -> bytes:
    """The body; an oversized one is cut and so not parseable."""
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                return b""
    except ClientDisconnect:
        return b""
    return bytes(body)


def _answer(answer: hpc.Answer) -> Response:
    return _json(hpc.encode(answer), 200 if answer.is_success else 400)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")
