"""The program HPCServer in its two roles: linked to a RenderAPI, or serving `/hpc/*` (design section 5)."""

import asyncio
import contextlib
import os
import secrets
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import structlog

import renderonline
from renderonline.engines.discovery import FoundEngine, find_engines
from renderonline.engines.loading import parse_definition, shipped
from renderonline.farm.errors import InvalidRequest
from renderonline.hpcserver import enrolment, telemetry
from renderonline.hpcserver.enrolment import Identity
from renderonline.hpcserver.home import Home
from renderonline.hpcserver.journal import Journal
from renderonline.hpcserver.link import Link, MachineRefused
from renderonline.hpcserver.processes import Processes
from renderonline.hpcserver.runner import Runner
from renderonline.hpcserver.settings import Settings
from renderonline.hpcserver.v1 import serve_v1
from renderonline.protocol.link import PROTOCOL, EngineOffer, Hello
from renderonline.serving.directories import data_directory
from renderonline.serving.web import run

log = structlog.get_logger(__name__)

JOIN_CODE: Final = "RENDERONLINE_JOIN_CODE"
FAREWELL_S: Final = 5.0
"""How long the last reports are waited for when the program ends."""
KILLED_S: Final = 30.0
"""How long attempts that were handed back may take to end and to check their files."""


def run_linked(
    settings: Settings,
    *,
    url: str,
    code: str | None = None,
    fingerprint: str | None = None,
    idle_exit_s: float | None = None,
) -> int:
    """Join the farm at `url` (once, with a code) and work for it until SIGTERM, SIGINT or `idle_exit_s` idle seconds.

    Gives 0; raises a `RenderOnlineError` that says what to do when the machine can't join or is refused for good.
    The code may also stand in the environment as `RENDERONLINE_JOIN_CODE`.
    """
    code = code or os.environ.get(JOIN_CODE) or None
    with Home(settings.home) as home:
        identity = enrolment.stored(settings.home, url)
        fresh = identity is None
        if identity is None:
            identity = _enrol(settings, url, code, fingerprint)
        try:
            run(_Machine(settings, home, identity, idle_exit_s).live())
        except MachineRefused:
            if fresh or code is None:
                raise
            log.warning("this machine's old membership is refused, joining anew")
            identity = _enrol(settings, url, code, fingerprint)
            run(_Machine(settings, home, identity, idle_exit_s).live())
    return 0


def run_v1(settings: Settings) -> int:
    """Serve `/hpc/*` for an existing RenderAPI, or ours, until SIGTERM or SIGINT. Gives 0."""
    with Home(settings.home) as home:
        run(serve_v1(settings, home, _v1_engines(settings)))
    return 0


def _v1_engines(settings: Settings) -> Mapping[str, Sequence[str]]:
    """The configured engines as they are spelled; only without any, those that are found."""
    if settings.engines:
        return {name: (program,) for name, program in settings.engines.items()}
    return {engine.name: engine.prefix for engine in _find_engines(settings)}


def _enrol(settings: Settings, url: str, code: str | None, fingerprint: str | None) -> Identity:
    if code is None:
        raise InvalidRequest(
            f"This machine has not joined {url} yet. An administrator makes a code with `renderonline machine invite`;"
            " give it with --code.",
            code="no_join_code",
        )
    return enrolment.enrol(settings.home, url, code=code, name=settings.name, fingerprint=fingerprint or "")


class _Machine:
    """One run of a linked HPCServer."""

    def __init__(self, settings: Settings, home: Home, identity: Identity, idle_exit_s: float | None) -> None:
        self._settings = settings
        self._home = home
        self._identity = identity
        self._idle_exit_s = idle_exit_s
        self._stop = asyncio.Event()
        self._at_once = asyncio.Event()

    async def live(self) -> None:
        """Everything up, work, everything down."""
        settings = self._settings
        found = await asyncio.to_thread(_find_engines, settings)
        computer = await asyncio.to_thread(telemetry.computer)
        engines = {engine.name.casefold(): engine.prefix for engine in found}
        processes = Processes(self._home.name)
        journal = Journal(settings.home / "outbox.db")
        async with contextlib.AsyncExitStack() as down:
            await processes.open()  # what an earlier run left is dead after this
            down.push_async_callback(journal.close)
            runner = Runner(settings, home=self._home.name, engines=engines, processes=processes, journal=journal)
            down.push_async_callback(runner.close)
            down.push_async_callback(processes.close)
            await runner.start()
            link = Link(
                self._identity,
                hello=_hello(settings, self._identity, found, computer, runner),
                load=lambda: telemetry.load(settings.home),
                runner=runner,
                journal=journal,
                on_welcome=lambda: self._home.say_ready(machine_id=self._identity.machine_id, name=settings.name),
            )
            with _signals(self._signaled):
                await self._work(runner, link, journal)

    async def _work(self, runner: Runner, link: Link, journal: Journal) -> None:
        dialling = asyncio.create_task(link.run())
        waiting = [
            asyncio.create_task(self._stop.wait()),
            asyncio.create_task(_drained(runner, link)),
            asyncio.create_task(self._idle(runner)),
        ]
        try:
            await asyncio.wait({dialling, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            if dialling.done():
                dialling.result()
            await self._wind_down(runner, link, journal)
        finally:
            for task in (dialling, *waiting):
                task.cancel()
            await asyncio.gather(dialling, *waiting, return_exceptions=True)

    async def _wind_down(self, runner: Runner, link: Link, journal: Journal) -> None:
        """No new attempt; the running ones may finish for the grace, then they are handed back."""
        runner.stop("HPCServer is ending.")
        link.nudge()
        grace = self._settings.stop_grace
        if runner.idle_s == 0.0:
            log.info("waiting for running attempts", seconds=grace)
        at_once = asyncio.create_task(self._at_once.wait())
        if not await _within(grace, runner.wait_idle(), at_once):
            runner.hand_back_all("HPCServer is ending.", grace_s=0.0 if self._at_once.is_set() else None)
            await _within(KILLED_S, runner.wait_idle(), at_once)
        if not self._at_once.is_set():
            await _within(FAREWELL_S if link.linked else 0.0, _acknowledged(journal), at_once)
        at_once.cancel()

    async def _idle(self, runner: Runner) -> None:
        """Wait until nothing has run here for the wanted time; for ever without one."""
        if self._idle_exit_s is None:
            await asyncio.Event().wait()
        limit = self._idle_exit_s or 0.0
        while (left := limit - runner.idle_s) > 0:
            await asyncio.sleep(left)
            await runner.wait_idle()
        log.info("idle for long enough", seconds=limit)

    def _signaled(self) -> None:
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()


async def _drained(runner: Runner, link: Link) -> None:
    await link.exit_wanted.wait()
    await runner.wait_idle()


async def _acknowledged(journal: Journal) -> None:
    while not journal.is_settled:
        await journal.moved()


async def _within(seconds: float, wanted: Any, interrupted: "asyncio.Task[Any]") -> bool:
    """Whether `wanted` was done in time and before the interruption."""
    task = asyncio.ensure_future(wanted)
    await asyncio.wait({task, interrupted}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return True
    task.cancel()
    return False


@contextlib.contextmanager
def _signals(call: Callable[[], None]) -> Iterator[None]:
    """Have `call` called for SIGTERM and SIGINT."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, call)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _find_engines(settings: Settings) -> tuple[FoundEngine, ...]:
    definitions = {name: parse_definition(text) for name, text in shipped().items()}
    found = find_engines(settings.engines, definitions, data_directory() / "engines")
    for engine in found:
        log.info("engine found", engine=engine.name, version=engine.version, program=engine.prefix[0])
    if not found:
        log.warning("no engine found; name one in HPCServer.json or run `renderonline engine install blender`")
    return found


def _hello(
    settings: Settings,
    identity: Identity,
    found: tuple[FoundEngine, ...],
    computer: telemetry.Computer,
    runner: Runner,
) -> Callable[[], Hello]:
    instance = secrets.token_hex(8)

    def hello() -> Hello:
        load = telemetry.load(settings.home)
        return Hello(
            PROTOCOL,
            identity.machine_id,
            identity.secret,
            instance,
            computer.boot,
            renderonline.__version__,
            settings.name,
            settings.slots,
            engines=tuple(EngineOffer(engine.name, engine.version) for engine in found),
            held=runner.held(),
            cpu_count=computer.cpu_count,
            memory_mib=computer.memory_mib,
            disk_free_mib=load.disk_free_mib,
            gpus=computer.gpus,
            tags=settings.tags,
            platform=computer.platform,
            full=runner.full,
        )

    return hello
