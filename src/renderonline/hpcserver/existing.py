"""The node of the existing system: `/hpc/status`, `/hpc/start` and `/hpc/stop` as its RenderAPI expects them
(C1 Render node).

That contract has no authentication: everybody who reaches the port runs programs here. So the node listens on this
computer only by default, can be limited to a list of callers, refuses what a web page sends, and logs a warning.
"""

import asyncio
import ipaddress
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from renderonline.farm.arguments import split, strip_program
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import BoxKind
from renderonline.hpcserver.boxes import Boxes, Scratch, clean_environment
from renderonline.hpcserver.processes import CantStart, EngineProcess, Processes
from renderonline.hpcserver.settings import Home, NodeSettings
from renderonline.protocol import existing
from renderonline.sandbox.box import Found, NoBox
from renderonline.serving.web import is_loopback, serve
from renderonline.storage.attempt_logs import AttemptLog, AttemptLogs

log = structlog.get_logger(__name__)

MAX_BODY: Final = 1024 * 1024
STOP_GRACE_S: Final = 2.0
"""Between SIGTERM and SIGKILL."""
STOP_ANSWER_S: Final = 4.0
"""A stop is answered when nothing of the render is left, or after so long."""


class _Render:
    """The running or the last render."""

    def __init__(self, task_id: int, process: EngineProcess) -> None:
        self.task_id, self.process = task_id, process
        self.ended = asyncio.Event()
        self.ended_at = 0.0
        self.is_success = False
        self._started_at = time.monotonic()

    def state(self) -> existing.TaskState:
        running = not self.ended.is_set()
        seconds = int((time.monotonic() if running else self.ended_at) - self._started_at)
        return existing.TaskState(self.task_id, self.is_success, running, seconds)


class V1Node:
    """One render at a time, as on the existing node. `engines`: name -> the words its command lines begin with."""

    def __init__(
        self, processes: Processes, settings: NodeSettings, engines: Mapping[str, Sequence[str]], box: Found
    ) -> None:
        self._processes = processes
        prefixes = {name.casefold(): prefix for name, prefix in engines.items()}
        self._boxes = Boxes(box, settings, prefixes)
        self._scratch = Scratch(settings.home / "scratch")
        self._scratch.clear()
        self._engine_ids = tuple(engines)
        self._engines = prefixes
        self._settings = settings
        self._log = AttemptLog(AttemptLogs(settings.home / "logs"), 0)
        """Of the latest render; no attempt of a farm has the number 0."""
        self._render: _Render | None = None
        self._one_call = asyncio.Lock()
        self._count = 0
        self._watching: asyncio.Task[None] | None = None

    async def status(self, _: bytes) -> existing.Status:
        return existing.Status(self._engine_ids, self._render.state() if self._render else None)

    async def start(self, body: bytes) -> existing.NodeAnswer:
        """Start a render; between the look whether one runs and the new one's place no other call can come."""
        async with self._one_call:
            if self._render is not None and not self._render.ended.is_set():
                return existing.NodeAnswer(is_success=False, message=existing.ACTIVE_RENDER)
            request = existing.parse_start(body)
            prefix = self._engines.get(request.engine_id.casefold())
            if prefix is None:
                return existing.NodeAnswer(is_success=False, message=existing.not_configured(request.engine_id))
            try:
                self._render = _Render(request.task_id, await self._spawn(request, prefix))
            except (CantStart, OSError) as error:
                log.warning("render can't be started", engine=request.engine_id, reason=str(error))
                return existing.NodeAnswer(is_success=False, message=existing.not_configured(request.engine_id))
            self._watching = asyncio.create_task(self._watch(self._render))
        return existing.NodeAnswer(is_success=True, message=existing.rendering(request.engine_id))

    async def stop(self, body: bytes) -> existing.NodeAnswer:
        """Stop the render with this task id, its children with it."""
        request = existing.parse_stop(body)
        async with self._one_call:
            render = self._render
        if render is None or render.ended.is_set():
            return existing.NodeAnswer(is_success=True, message=existing.NO_ACTIVE_RENDER)
        if render.task_id != request.task_id:
            return existing.NodeAnswer(is_success=False, message=existing.OTHER_TASK)
        render.process.stop("SIGTERM", STOP_GRACE_S)
        try:
            await asyncio.wait_for(render.ended.wait(), STOP_ANSWER_S)
        except TimeoutError:
            log.warning("render does not end", task=request.task_id)
        return existing.NodeAnswer(is_success=True, message=existing.TERMINATED)

    async def _spawn(self, request: existing.StartRequest, prefix: Sequence[str]) -> EngineProcess:
        words = strip_program(split(request.arguments), (request.engine_id, Path(prefix[0]).name))
        self._count += 1
        name = f"v1.{self._count}"
        place = self._scratch.make(name)
        self._log.remove()
        box = self._boxes.of_v1(request.engine_id, place)
        process = await self._processes.start(
            name,
            [*prefix, *words],
            directory=Path.cwd() if box is None else place / "home",
            environment=clean_environment(os.environ, {}, place, also=self._settings.pass_environment),
            on_lines=self._log.append,
            nice=self._settings.nice,
            box=box,
        )
        log.info("render started", task=request.task_id, engine=request.engine_id, pid=process.pid)
        return process

    async def _watch(self, render: _Render) -> None:
        ended = await render.process.wait()
        render.ended_at = time.monotonic()
        render.is_success = ended.code == 0
        render.ended.set()
        log.info("render ended", task=render.task_id, code=ended.code)
        await asyncio.to_thread(self._scratch.remove, render.process.name)


def create_app(node: V1Node, *, allow: Sequence[str] = ()) -> Starlette:
    """The application with the contract's three routes and nothing else, for the addresses in `allow` (or all)."""
    networks = [ipaddress.ip_network(address, strict=False) for address in allow]

    def route(
        path: str, method: str, call: Callable[[bytes], Awaitable[existing.NodeAnswer | existing.Status]]
    ) -> Route:
        async def respond(request: Request) -> Response:
            if not _may_call(request, networks):
                log.warning("call is refused", client=request.client, path=path)
                return PlainTextResponse("This node does not take calls from here.", 403)
            try:
                answer = await call(await _body(request))
            except InvalidRequest as error:
                answer = existing.NodeAnswer(is_success=False, message=str(error))
            refused = isinstance(answer, existing.NodeAnswer) and not answer.is_success
            return Response(existing.encode(answer), 400 if refused else 200, media_type="application/json")

        return Route(path, respond, methods=[method])

    start, stop = route(existing.START_PATH, "POST", node.start), route(existing.STOP_PATH, "POST", node.stop)
    return Starlette(routes=[route(existing.STATUS_PATH, "GET", node.status), start, stop])


def _may_call(request: Request, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    """Only allowed addresses, and nothing that a web page sends: a browser always says whose page it was."""
    if "origin" in request.headers or "sec-fetch-site" in request.headers:
        return False
    if not networks:
        return True
    try:
        address = ipaddress.ip_address(request.client.host.partition("%")[0] if request.client else "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in network for network in networks)


async def serve_v1(settings: NodeSettings, home: Home, engines: Mapping[str, Sequence[str]], box: Found) -> None:
    """Serve until SIGTERM or SIGINT; a render that runs then is killed: the contract knows no way to hand it back."""
    warning = "no authentication: whoever reaches this port can run the configured engines"
    if not is_loopback(settings.host) and not settings.allow:
        warning = (
            "NO AUTHENTICATION: everybody on the network who reaches this port can run the configured engines here."
            " Set Allow to the addresses of your RenderAPI, or use `renderonline node --join`."
        )
    log.warning(warning, host=settings.host, port=settings.port)
    if box.kind != BoxKind.NONE and not (settings.sandbox_read or settings.sandbox_write):
        if settings.sandbox != "auto":
            raise NoBox(
                f"The setting Sandbox is {settings.sandbox}, and the files of these renders may lie anywhere. Name the"
                " directories of your farm in SandboxRead and SandboxWrite."
            )
        log.warning(
            "RENDERS RUN WITHOUT A BOX: their files may lie anywhere. Name the directories of your farm in SandboxRead"
            " and SandboxWrite to have one."
        )
    processes = Processes(home.name, box)
    await processes.open()
    try:
        await serve(
            create_app(V1Node(processes, settings, engines, box), allow=settings.allow),
            host=settings.host,
            port=settings.port,
            on_ready=lambda url: home.say_ready(url=url),
            grace_s=settings.stop_grace,
        )
    finally:
        await processes.close()


async def _body(request: Request) -> bytes:
    """The body; an oversized one is cut and so not parseable."""
    body = bytearray()
    with suppress(ClientDisconnect):
        async for piece in request.stream():
            body += piece
            if len(body) > MAX_BODY:
                break
        else:
            return bytes(body)
    return b""
