"""Engine processes as the rest of HPCServer sees them: the door to the spawner (R8).

`Processes` starts the spawner as a process of its own, starts a new one if it dies (whose first act is to kill every
engine that the old one left), and tells every engine process that was lost with it.
"""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from renderonline.farm.errors import NotAvailable
from renderonline.hpcserver.spawner import frame, take_frames

log = structlog.get_logger(__name__)

Lines = Callable[[Sequence[str]], None]

READY_S: Final = 60.0
"""A new spawner first ends what is left of an earlier one; an unkillable process may hold that up."""
RESTART_S: Final = 0.5
STOP_SIGNALS: Final = frozenset({"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL"})
_BOOT: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from renderonline.hpcserver.spawner import main; main()"
)
_SOURCE: Final = str(Path(__file__).resolve().parents[2])


class CantStart(NotAvailable):
    """An engine's process could not be started."""

    code = "no_engine"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended. `code` is negative for a signal and None when `lost`: the spawner died with it."""

    code: int | None
    peak_memory_mib: int = 0
    lost: bool = False


class EngineProcess:
    """A running engine. `at_us` is when it was started, in microseconds since 1970."""

    def __init__(self, owner: "Processes", name: str, pid: int, at_us: int, ended: "asyncio.Future[Ended]") -> None:
        self.name = name
        self.pid = pid
        self.at_us = at_us
        self._owner = owner
        self._ended = ended

    async def wait(self) -> Ended:
        """Wait until nothing of its process tree is left; its last line of output was passed on before."""
        return await asyncio.shield(self._ended)

    @property
    def is_running(self) -> bool:
        """Whether the end was not reported yet."""
        return not self._ended.done()

    def stop(self, signal_name: str = "SIGTERM", grace_s: float = 5.0) -> None:
        """Signal its group; after the grace SIGKILL to the whole tree. Can be called again to shorten the grace."""
        if self.is_running:
            known = signal_name if signal_name in STOP_SIGNALS else "SIGTERM"
            self._owner.send({"do": "stop", "id": self.name, "signal": known, "grace_s": max(0.0, grace_s)})


@dataclass(slots=True)
class _Engine:
    started: "asyncio.Future[tuple[int, int]]"
    ended: "asyncio.Future[Ended]"
    on_lines: Lines


class Processes:
    """Starts engines through the spawner. `home` names the data directory in the engines' mark."""

    def __init__(self, home: str) -> None:
        self._home = home
        self._engines: dict[str, _Engine] = {}
        self._lost: dict[str, _Engine] = {}
        self._spawner: subprocess.Popen[bytes] | None = None
        self._commands: asyncio.WriteTransport | None = None
        self._reading: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._closing = False

    async def open(self) -> None:
        """Start the spawner; returns when engines that an earlier run left are dead."""
        self._reading = asyncio.create_task(self._serve())
        ready = asyncio.create_task(self._ready.wait())
        done, _ = await asyncio.wait({self._reading, ready}, timeout=READY_S, return_when=asyncio.FIRST_COMPLETED)
        if ready not in done:
            ready.cancel()
            await self.close()
            raise NotAvailable("The process that starts engines did not come up; the log has the reason.")

    async def close(self) -> None:
        """Kill every engine and end the spawner."""
        self._closing = True
        if self._commands is not None:
            self._commands.close()
        if self._reading is not None:
            try:
                await asyncio.wait_for(self._reading, READY_S)
            except TimeoutError:
                log.warning("the spawner does not end")

    @property
    def spawner_pid(self) -> int | None:
        """The spawner's process id while it runs; every engine descends from it."""
        return self._spawner.pid if self._spawner is not None else None

    async def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        on_lines: Lines,
        nice: int = 0,
    ) -> EngineProcess:
        """Start a process; `on_lines` is called with its output. Raises `CantStart` with the reason."""
        await asyncio.wait_for(self._ready.wait(), READY_S)
        if name in self._engines:
            raise CantStart(f"Attempt {name} runs already.")
        loop = asyncio.get_running_loop()
        engine = _Engine(loop.create_future(), loop.create_future(), on_lines)
        self._engines[name] = engine
        command = {"do": "start", "id": name, "argv": list(argv), "cwd": str(directory), "nice": nice}
        self.send({**command, "env": dict(environment)})
        pid, at_us = await asyncio.shield(engine.started)
        return EngineProcess(self, name, pid, at_us, engine.ended)

    def send(self, message: dict[str, Any]) -> None:
        """Hand a command to the spawner; without one it has nothing to act on."""
        if self._commands is not None:
            self._commands.write(frame(message))

    # -- the spawner's life

    async def _serve(self) -> None:
        while not self._closing:
            try:
                await self._run_once()
            except Exception:  # whatever happened, engines must be startable again
                log.exception("the spawner's door failed")
            self._lost.update(self._engines)
            self._engines.clear()
            if not self._closing:
                log.error("the spawner ended, a new one is started")
                await asyncio.sleep(RESTART_S)
        self._lose()

    async def _run_once(self) -> None:
        loop = asyncio.get_running_loop()
        spawner = subprocess.Popen(  # noqa: ASYNC220 - vfork: half a millisecond, once
            [sys.executable, "-I", "-S", "-c", _BOOT, _SOURCE, self._home],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self._spawner = spawner
        reader = asyncio.StreamReader(limit=1 << 20)
        events, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), spawner.stdout)
        commands, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, spawner.stdin)
        self._commands = commands
        if self._closing:
            commands.close()
        try:
            buffer = bytearray()
            while data := await reader.read(1 << 18):
                buffer += data
                for message in take_frames(buffer):
                    self._take(message)
        finally:
            self._ready.clear()
            self._commands = None
            for pipe in (commands, events):
                if not pipe.is_closing():
                    pipe.close()
            await asyncio.to_thread(_end, spawner)
            self._spawner = None

    def _take(self, message: dict[str, Any]) -> None:
        if message["event"] == "ready":
            if message["left"]:
                log.error("processes of an earlier run can't be killed", pids=message["left"])
            self._lose()
            self._ready.set()
            return
        engine = self._engines.get(message["id"])
        if engine is None:
            return
        if message["event"] == "output":
            self._pass_on(engine, message["lines"])
        elif message["event"] == "started":
            _resolve(engine.started, (message["pid"], message["at_us"]))
        elif message["event"] == "refused":
            del self._engines[message["id"]]
            _refuse(engine.started, CantStart(message["error"]))
        elif message["event"] == "exited":
            del self._engines[message["id"]]
            if message["left"]:
                log.error("processes of an attempt can't be killed", attempt=message["id"], pids=message["left"])
            _resolve(engine.ended, Ended(message["code"], message["peak_kib"] // 1024))

    def _pass_on(self, engine: _Engine, lines: Sequence[str]) -> None:
        try:
            engine.on_lines(lines)
        except Exception:
            log.exception("output could not be read")

    def _lose(self) -> None:
        """Tell the engines of an earlier spawner; by now the new one has killed what was left of them."""
        for engine in self._lost.values():
            _refuse(engine.started, CantStart("The process that starts engines ended."))
            _resolve(engine.ended, Ended(None, lost=True))
        self._lost.clear()


def _resolve(future: "asyncio.Future[Any]", value: object) -> None:
    if not future.done():
        future.set_result(value)


def _refuse(future: "asyncio.Future[Any]", error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # nobody may be waiting


def _end(spawner: "subprocess.Popen[bytes]") -> None:
    """Wait for a spawner whose pipes are closed; it kills its engines first."""
    try:
        spawner.wait(READY_S)
    except subprocess.TimeoutExpired:
        os.kill(spawner.pid, signal.SIGKILL)
        spawner.wait()
