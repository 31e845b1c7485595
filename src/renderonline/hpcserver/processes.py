"""Engine processes as the rest of HPCServer uses them; the spawner starts them (R8 Process trees).

`Processes` starts the spawner as a process of its own. When the spawner dies it starts a new one, which first kills
every engine that the old one left, and ends each `EngineProcess` that was lost.
"""

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeVar

import structlog

from renderonline.farm.errors import NotAvailable
from renderonline.protocol.link import to_wire

log = structlog.get_logger(__name__)
T = TypeVar("T")

READY_S: Final = 60.0
"""Time for a new spawner to kill what an earlier one left; a process that can't be killed may delay it."""
RESTART_S: Final = 0.5
STOP_SIGNALS: Final = frozenset({"SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGKILL"})
MOST_PROCESSES: Final = 4096
"""Processes and threads that an engine may have."""
_BOOT: Final = "import sys; sys.path.insert(0, sys.argv[2]); from renderonline.hpcserver.spawner import main; main()"
_SOURCE: Final = str(Path(__file__).resolve().parents[2])


class CantStart(NotAvailable):
    """An engine's process could not be started."""

    code = "no_engine"


class Described(Protocol):
    """A dataclass that travels to the spawner as its fields: a `Box` or a `Found` of `sandbox.box`."""

    __dataclass_fields__: ClassVar[dict[str, Any]]


class ProcessUsage(NamedTuple):
    """What a process tree uses: CPU seconds since it began, resident bytes and threads (a process has one) now."""

    cpu_s: float
    memory_bytes: int
    threads: int = 0


def kernel_oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since the computer started; 0 if that is unknown."""
    try:
        with open("/proc/vmstat", "rb") as file:
            return int(file.read().partition(b"\noom_kill ")[2].split(maxsplit=1)[0])
    except (OSError, ValueError, IndexError):
        return 0


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended. `code` is negative for a signal and None when it was lost: the spawner died with it."""

    code: int | None
    peak_memory_mib: int = 0
    began: bool = True
    """False when the engine's box could not be made; its last output says why."""
    cleared: bool = True
    """False when processes of its tree could not be killed."""


class EngineProcess:
    """A running engine. `at_us` is when it was started, in microseconds since 1970."""

    pid = at_us = 0
    key = ""
    """The random key in the environment of every process of its tree."""

    def __init__(
        self,
        owner: "Processes",
        name: str,
        on_lines: Callable[[Sequence[str]], None],
        on_started: "Callable[[EngineProcess], None]",
    ) -> None:
        self.name, self.on_lines, self._on_started, self._owner = name, on_lines, on_started, owner
        self.ended: asyncio.Future[Ended] = asyncio.get_running_loop().create_future()

    async def wait(self) -> Ended:
        """Wait until nothing of its process tree is left and all of its output was passed on. Raises `CantStart` with
        the reason when it could not be started."""
        return await asyncio.shield(self.ended)

    @property
    def is_running(self) -> bool:
        return not self.ended.done()

    def stop(self, signal_name: str = "SIGTERM", grace_s: float = 5.0) -> None:
        """Signal its group; after the grace SIGKILL to the whole tree. Can be called again to shorten the grace."""
        if self.is_running:
            known = signal_name if signal_name in STOP_SIGNALS else "SIGTERM"
            self._owner.send(do="stop", id=self.name, signal=known, grace_s=max(0.0, grace_s))

    def take(self, message: Mapping[str, Any]) -> None:
        if message["event"] == "output":
            try:
                self.on_lines(message["lines"])
            except Exception:
                log.exception("output could not be read")
        elif message["event"] == "started":
            self.pid, self.at_us, self.key = message["pid"], message["at_us"], message["key"]
            self._on_started(self)
        elif message["event"] == "refused":
            _settle(self.ended, CantStart(message["error"]))
        else:
            if message["left"]:
                log.error("processes of an attempt can't be killed", attempt=self.name, pids=message["left"])
            about = {"began": message["began"], "cleared": not message["left"]}
            _settle(self.ended, Ended(message["code"], message["peak_kib"] // 1024, **about))

    def lose(self) -> None:
        """Its spawner died, and what it left has been killed."""
        _settle(self.ended, Ended(None) if self.pid else CantStart("The process that starts engines ended."))


class Processes:
    """Starts engines through the spawner. `home` names the data directory in the engines' mark. `spawner_pid` is the
    spawner's process id while it runs; every engine descends from it. `found`: the boxes that it can make."""

    def __init__(self, home: str, found: Described | None = None) -> None:
        self.home = home
        self._found = {} if found is None else to_wire(found)
        self.spawner_pid: int | None = None
        self._engines: dict[str, EngineProcess] = {}
        self._lost: list[EngineProcess] = []
        self._commands: asyncio.WriteTransport | None = None
        self._serving: asyncio.Task[None] | None = None
        self._ready = asyncio.Event()
        self._closing = False

    async def open(self) -> None:
        """Start the spawner; returns when engines that an earlier run left are dead."""
        self._serving = asyncio.create_task(self._serve())
        try:
            await asyncio.wait_for(self._ready.wait(), READY_S)
        except TimeoutError:
            await self.close()
            raise NotAvailable("The process that starts engines did not come up; the log has the reason.") from None

    async def close(self) -> None:
        """Kill every engine and end the spawner."""
        self._closing = True
        if self._commands is not None:
            self._commands.close()
        if self._serving is not None:
            try:
                await asyncio.wait_for(self._serving, READY_S)
            except TimeoutError:
                log.warning("the spawner does not end")

    async def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        directory: Path,
        environment: Mapping[str, str],
        on_lines: Callable[[Sequence[str]], None],
        on_started: Callable[[EngineProcess], None] | None = None,
        nice: int = 0,
        box: Described | None = None,
        file_bytes: int = 0,
    ) -> EngineProcess:
        """Start a process, in a box if one is given; `on_lines` is called with its output. `file_bytes`: the largest
        file that it may write, 0: any size. With `on_started`, which is called once it runs, this does not wait for
        that; without, it does, and raises `CantStart` with the reason."""
        if not self._ready.is_set():
            await asyncio.wait_for(self._ready.wait(), READY_S)
        if name in self._engines:
            raise CantStart(f"Attempt {name} runs already.")
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        begun = on_started or (lambda _: _settle(started, None))
        self._engines[name] = engine = EngineProcess(self, name, on_lines, begun)
        about = {"cwd": str(directory), "nice": nice, "env": dict(environment), "file_bytes": file_bytes}
        about["processes"] = MOST_PROCESSES
        self.send(do="start", id=name, argv=list(argv), box=None if box is None else to_wire(box), **about)
        if on_started is None:
            either: set[asyncio.Future[Any]] = {started, engine.ended}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not started.done():
                await engine.wait()
        return engine

    def send(self, **message: Any) -> None:
        """Send a command to the spawner; without a spawner no engine runs, and nothing is sent."""
        if self._commands is not None:
            self._commands.write(json.dumps(message).encode() + b"\n")

    async def _serve(self) -> None:
        while not self._closing:
            try:
                await self._run_once()
            except Exception:  # whatever happened, engines must be startable again
                log.exception("the connection to the spawner failed")
            self._lost += self._engines.values()
            self._engines.clear()
            if not self._closing:
                log.error("the spawner ended, a new one is started")
                await asyncio.sleep(RESTART_S)
        self._lose()

    async def _run_once(self) -> None:
        loop = asyncio.get_running_loop()
        spawner = subprocess.Popen(  # noqa: ASYNC220 - vfork: half a millisecond, once
            [sys.executable, "-I", "-S", "-c", _BOOT, self.home, _SOURCE, json.dumps(self._found)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.spawner_pid = spawner.pid
        reader = asyncio.StreamReader(limit=1 << 20)  # a message is at most 64 KiB of output, each byte six letters
        events, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), spawner.stdout)
        self._commands, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, spawner.stdin)
        if self._closing:
            self._commands.close()
        try:
            async for line in reader:
                self._take(json.loads(line))
        finally:
            self._ready.clear()
            self._commands.close()
            events.close()
            self._commands = self.spawner_pid = None
            await asyncio.to_thread(_end, spawner)

    def _take(self, message: dict[str, Any]) -> None:
        if message["event"] == "ready":
            if message["left"]:
                log.error("processes of an earlier run can't be killed", pids=message["left"])
            self._lose()
            self._ready.set()
        elif engine := self._engines.get(message["id"]):
            if message["event"] in {"refused", "exited"}:
                del self._engines[message["id"]]
            engine.take(message)

    def _lose(self) -> None:
        for engine in self._lost:
            engine.lose()
        self._lost.clear()


def _settle(future: "asyncio.Future[T]", value: T | Exception) -> None:
    if future.done():
        return
    if isinstance(value, Exception):
        future.set_exception(value)
        future.exception()  # nobody may be waiting
    else:
        future.set_result(value)


def _end(spawner: "subprocess.Popen[bytes]") -> None:
    """Wait for a spawner whose pipes are closed; it kills its engines first."""
    try:
        spawner.wait(READY_S)
    except subprocess.TimeoutExpired:
        spawner.kill()
        spawner.wait()
