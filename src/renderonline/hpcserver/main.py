"""HPCServer, in its two roles: linked to a RenderAPI, or serving `/hpc/*` for an existing one."""

import asyncio
import contextlib
import secrets
import signal
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import msgspec
import structlog

import renderonline
from renderonline.engines.definition import parse_definition, shipped
from renderonline.engines.discovery import FoundEngine, find_engines
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import BoxKind
from renderonline.hpcserver import joining, telemetry
from renderonline.hpcserver.boxes import Boxes, Scratch
from renderonline.hpcserver.card_rack import find_cards
from renderonline.hpcserver.engine_setup import ENGINE, AttemptSetup, Kernels
from renderonline.hpcserver.existing import serve_v1
from renderonline.hpcserver.farm_link import Link, MachineRefused
from renderonline.hpcserver.file_exchange import InputCache, PreviewSender, RemoteFiles, Transfers
from renderonline.hpcserver.film_maker import film_engine
from renderonline.hpcserver.joining import Identity
from renderonline.hpcserver.journal import Journal
from renderonline.hpcserver.outputs import Checkers
from renderonline.hpcserver.processes import Processes
from renderonline.hpcserver.resources import Resources
from renderonline.hpcserver.runner import Runner
from renderonline.hpcserver.settings import Home, NodeSettings, locked
from renderonline.protocol.link import PROTOCOL, Assign, EngineOffer, Hello
from renderonline.sandbox.box import Found, probe
from renderonline.sandbox.privacy import keep_private, taken_from_environment
from renderonline.serving.web import run
from renderonline.storage.attempt_logs import AttemptLogs
from renderonline.storage.disk import data_directory
from renderonline.storage.images import ImageChecker

log = structlog.get_logger(__name__)

JOIN_CODE: Final = "RENDERONLINE_JOIN_CODE"
LAST_REPORTS_S: Final = 5.0
"""How long the program waits for its last reports to be acknowledged when it ends."""
KILLED_S: Final = 30.0
"""How long attempts that were handed back may take to end and to check their files."""
MOST_CHECKERS: Final = 4
"""Processes that decode pictures."""
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def run_linked(
    settings: NodeSettings,
    *,
    url: str,
    code: str | None = None,
    fingerprint: str | None = None,
    idle_exit_s: float | None = None,
) -> int:
    """Join the farm at `url` (once, with a code) and work for it until SIGTERM, SIGINT or `idle_exit_s` idle seconds.
    Returns 0. Raises a `RenderOnlineError` that says what to do when the machine can't join or is refused for good. The
    code may also be in the environment variable `RENDERONLINE_JOIN_CODE`."""
    keep_private()
    code = code or taken_from_environment(JOIN_CODE) or None
    with locked(settings.home) as home:
        identity = joining.identity_at(settings.home, url)
        if identity is not None:
            try:
                run(_Machine(settings, home, idle_exit_s).live(identity))
                return 0
            except MachineRefused:
                if code is None:
                    raise
                log.warning("the secret of an earlier join is refused, joining again")
        if code is None:
            raise InvalidRequest(
                f"This machine has not joined {url} yet. An administrator makes a code with"
                " `renderonline machine invite`; give it with --code.",
                code="no_join_code",
            )
        identity = joining.enrol(settings.home, url, code=code, name=settings.name, fingerprint=fingerprint or "")
        run(_Machine(settings, home, idle_exit_s).live(identity))
    return 0


def run_v1(settings: NodeSettings) -> int:
    """Serve `/hpc/*` for an existing RenderAPI, or ours, until SIGTERM or SIGINT. Returns 0."""
    keep_private()
    # The configured engines as they are spelled; only without any, those that are found.
    engines = {name: (program,) for name, program in settings.engines.items()}
    with locked(settings.home) as home:
        found = () if engines else _find_engines(settings)
        run(serve_v1(settings, home, engines or {engine.name: engine.prefix for engine in found}, found_box(settings)))
    return 0


def check(settings: NodeSettings, *, url: str = "", fingerprint: str = "") -> list[joining.CheckResult]:
    """Check whether this computer is fit to render for the farm at `url` ("": the farm that it has joined)."""
    film = film_engine()
    engines = (*_find_engines(settings), *([film] if film is not None else []))
    return list(joining.findings(settings, engines, url, fingerprint))


@dataclass
class _Machine:
    """One life of a linked HPCServer."""

    _settings: NodeSettings
    _home: Home
    _idle_exit_s: float | None
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _at_once: asyncio.Event = field(default_factory=asyncio.Event)

    async def live(self, identity: Identity) -> None:
        """Open everything, work, close everything."""
        rack = await asyncio.to_thread(find_cards, self._settings.cards)
        settings = replace(self._settings, slots=self._settings.slots or max(1, len(rack.found)))
        box = await asyncio.to_thread(found_box, settings)
        found, hello = await asyncio.to_thread(_about, settings, identity, box, tuple(card.name for card in rack.cards))
        for card in rack.cards:
            log.info("graphics card found", card=card.name, kind=card.kind, id=card.id, memory_mib=card.memory_mib)
        known = {"machine_id": identity.machine_id, "name": settings.name, "sandbox": box.kind.value}
        known |= {"sandbox_told": joining.box_summary(box), "sandbox_advice": box.advice}
        processes = Processes(self._home.name, box)
        journal = Journal(settings.home / "outbox.db")
        async with contextlib.AsyncExitStack() as down:
            await processes.open()  # what an earlier run left is dead after this
            down.push_async_callback(journal.close)
            transfers = Transfers(identity)
            down.callback(transfers.close)
            previews = PreviewSender(transfers)
            down.callback(previews.close)
            scratch = Scratch(settings.home / "scratch")
            await asyncio.to_thread(scratch.clear)  # what an earlier run left
            cache = InputCache(settings.home / "cache", settings.cache_mib << 20)
            await asyncio.to_thread(cache.open)
            prefixes = {engine.name.casefold(): engine.launched for engine in found}
            boxes = Boxes(box, settings, prefixes)
            kernels = Kernels(settings.home, prefixes.get(ENGINE, ()), processes, boxes, scratch)
            slots = settings.slots or 1

            def exchange(assign: Assign) -> RemoteFiles:
                return RemoteFiles(assign, transfers, cache, scratch.place(str(assign.attempt)))

            resources = Resources(
                engines=prefixes,
                processes=processes,
                journal=journal,
                logs=AttemptLogs(settings.home / "logs"),
                checkers=Checkers([ImageChecker(found=box) for _ in range(min(slots, MOST_CHECKERS))]),
                setup=partial(
                    AttemptSetup,
                    boxes=boxes,
                    scratch=scratch,
                    rack=rack,
                    kernels=kernels,
                    passed=settings.pass_environment,
                ),
                exchange=exchange,
                send_previews=previews.send,
                usage=telemetry.usage,
                slots=slots,
                nice=settings.nice,
            )
            runner = Runner(resources)
            down.push_async_callback(runner.close)
            down.push_async_callback(processes.close)
            await runner.start()
            compiling = asyncio.create_task(kernels.compile(rack))
            down.callback(compiling.cancel)
            owners_use = telemetry.OwnersUse(settings.idle_minutes, settings.max_load)
            link = Link(
                identity,
                hello=lambda: msgspec.structs.replace(hello, held=runner.held(), cards=rack.cards),
                load=lambda: telemetry.load(settings.home, runner.full or owners_use.why(), rack.loads()),
                runner=runner,
                on_welcome=lambda: self._home.say_ready(**known),
                heartbeat_s=settings.heartbeat_s,
            )
            rack.on_change = link.nudge
            loop = asyncio.get_running_loop()
            for number in SIGNALS:
                loop.add_signal_handler(number, self._signaled)
                down.callback(loop.remove_signal_handler, number)
            await self._work(runner, link)

    async def _work(self, runner: Runner, link: Link) -> None:
        dialling = asyncio.create_task(link.run())
        reasons = (self._stop.wait(), _drained(runner, link), self._idle(runner))
        waiting = [asyncio.ensure_future(reason) for reason in reasons]
        try:
            await asyncio.wait({dialling, *waiting}, return_when=asyncio.FIRST_COMPLETED)
            if dialling.done():
                dialling.result()
            await self._wind_down(runner, link)
        finally:
            for task in (dialling, *waiting):
                task.cancel()
            await asyncio.gather(dialling, *waiting, return_exceptions=True)

    async def _wind_down(self, runner: Runner, link: Link) -> None:
        """Start no attempt; the running ones may finish within the grace, then they are handed back."""
        runner.stopping = "HPCServer is ending."
        runner.hand_back_waiting(runner.stopping)
        link.nudge()
        if runner.attempts:
            log.info("waiting for running attempts", seconds=self._settings.stop_grace)
        if not await self._within(self._settings.stop_grace, runner.idle.wait()):
            runner.hand_back_all("HPCServer is ending.", grace_s=0.0 if self._at_once.is_set() else None)
            await self._within(KILLED_S, runner.idle.wait())
        if link.linked:
            await self._within(LAST_REPORTS_S, _acknowledged(runner.journal))

    async def _within(self, seconds: float, wanted: Awaitable[Any]) -> bool:
        """Wait for `wanted`; returns whether it was done in time and before a second signal."""
        task, at_once = asyncio.ensure_future(wanted), asyncio.create_task(self._at_once.wait())
        done, left = await asyncio.wait({task, at_once}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for other in left:
            other.cancel()
        return task in done

    async def _idle(self, runner: Runner) -> None:
        """Wait until nothing has run here for `idle_exit_s`; without that setting never return."""
        limit = float("inf") if self._idle_exit_s is None else self._idle_exit_s
        while (left := limit - runner.idle_s) > 0:
            await asyncio.sleep(min(left, 3600.0))
            await runner.idle.wait()
        log.info("idle for long enough", seconds=limit)

    def _signaled(self) -> None:
        if self._stop.is_set():
            self._at_once.set()
        self._stop.set()


async def _drained(runner: Runner, link: Link) -> None:
    await link.exit_wanted.wait()
    await runner.idle.wait()


async def _acknowledged(journal: Journal) -> None:
    while not journal.is_settled:  # noqa: ASYNC110 - both sides of the link change it
        await asyncio.sleep(0.01)


def _find_engines(settings: NodeSettings) -> tuple[FoundEngine, ...]:
    definitions = {name: parse_definition(text) for name, text in shipped().items()}
    found = find_engines(settings.engines, definitions, data_directory() / "engines")
    for engine in found:
        log.info("engine found", engine=engine.name, version=engine.version, program=engine.prefix[0])
    if not found:
        log.warning("no engine found; name one in HPCServer.json or run `renderonline engine install blender`")
    return found


def found_box(settings: NodeSettings) -> Found:
    """The box around engines that the settings ask for. Raises `NoBox` when they require one that can't be made."""
    found = probe(settings.sandbox)
    if found.kind == BoxKind.NONE:
        hint = found.advice or "this system has no such thing"
        log.warning(
            "NO BOX AROUND ENGINES: any scene can read and write what this account can, the other users' frames and"
            " this machine's secret among it",
            advice=hint,
        )
    else:
        log.info("engines run in a box", box=found.version, better=found.advice)
    if joining.account().level != joining.Level.OK:
        log.warning("HPCServer runs as root, and so do engines; make an account for renderers")
    return found


def _about(
    settings: NodeSettings, identity: Identity, box: Found, gpus: tuple[str, ...]
) -> tuple[Sequence[FoundEngine], Hello]:
    """The engines of this machine, and its `Hello` without what changes while it runs."""
    film = film_engine()
    found = (*_find_engines(settings), *([film] if film is not None else []))
    return found, Hello(
        PROTOCOL,
        identity.machine_id,
        identity.secret,
        instance=secrets.token_hex(8),
        version=renderonline.__version__,
        name=settings.name,
        slots=settings.slots or 1,
        engines=tuple(EngineOffer(engine.name, engine.version, engine.renderers) for engine in found),
        disk_free_mib=telemetry.load(settings.home).disk_free_mib,
        tags=settings.tags,
        sandbox=box.kind,
        sandbox_advice=box.advice,
        gpus=gpus,
        **telemetry.computer(),
    )
