"""What the attempts of a machine use: `main.py` makes it, mostly of modules that attempts don't import themselves."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from renderonline.hpcserver.journal import Journal
from renderonline.hpcserver.outputs import AttemptVerdict, Bad, Checkers, Good
from renderonline.hpcserver.processes import Described, Processes, ProcessUsage, kernel_oom_kills
from renderonline.protocol.link import Assign, Progress
from renderonline.storage.attempt_logs import AttemptLogs

T = TypeVar("T")

InThread = Callable[..., "asyncio.Future[Any]"]
"""Begins a call with its arguments in a thread for what may wait for a disk."""

FILE_THREADS: Final = 8
"""A shared directory that hangs holds up these threads, never the link."""

SEEN_S: Final = 2.0
"""For how long a file that was there is not looked for again."""
SHARED_S: Final = 60.0
"""For how long a machine that has seen the farm's directory may start an engine before it looks there again."""
MOST_SEEN: Final = 1000
COUNT_S: Final = 1.0
"""How old the count of the kernel's kills may be when an engine starts."""


class Launch(NamedTuple):
    """How the engine of an attempt is started, besides the words that its engine's command lines begin with."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    box: Described | None


class EngineSetup(Protocol):
    """What surrounds the engine of one attempt: scratch directories, graphics cards, box, environment
    (`engine_setup.AttemptSetup`)."""

    def make(self) -> Path:
        """Provide the scratch directories on a disk of this machine (`boxes.Scratch.place`). Raises OSError."""

    def take_cards(self) -> AttemptVerdict | None:
        """Reserve the graphics cards that the assignment asks for; a verdict when they are not free."""

    def release_cards(self) -> None:
        """Free them: nothing of the attempt runs any more."""

    async def launch(self, assign: Assign) -> Launch:
        """Prepare the start of the engine, also in the attempt's directory. Raises OSError."""

    async def remove_links(self) -> None:
        """Remove what `launch` put into the attempt's directory."""

    def read(self, lines: Sequence[str]) -> None:
        """Take note of files that the engine complains about."""

    async def outside_box(self) -> Sequence[str]:
        """A sentence for each directory that the engine lacked because its box does not open it."""

    async def believed(self, failure: tuple[str, str] | None) -> tuple[str, str] | None:
        """The failure that the engine printed (class, line), with another class if its graphics cards do work."""

    def remove(self, *, reuse: bool) -> None:
        """Delete the scratch directories, or keep them for another attempt when they are as they were made and may be
        used again."""


class Exchange(Protocol):
    """Fetches the inputs of one attempt and sends its outputs, on a machine that does not share the farm's directory
    (`file_exchange.RemoteFiles`). `assign`: the assignment with directories of this machine."""

    @property
    def assign(self) -> Assign: ...
    async def fetch(self) -> AttemptVerdict | None:
        """Fetch the task's files; a verdict when that fails."""

    async def send(self, found: Good) -> Bad | AttemptVerdict | None:
        """Send a finished file; `Bad` when it is refused, a verdict when the whole attempt can't go on."""

    def end_after(self, seconds: float) -> None:
        """Give up after this time."""

    def stop(self) -> None:
        """Give up now."""

    def release(self) -> None:
        """The inputs are not needed any more. Blocks."""


@dataclass
class Resources:
    """What every attempt of this machine uses. `engines`: name in lower case -> the words its command lines begin with.
    `usage`: what engines use now, from the spawner's process id, the engines' (-> attempt) and their keys (-> attempt);
    it blocks. `slots`: attempts that run at once. `progress`: the newest of every attempt, until it is sent."""

    engines: Mapping[str, tuple[str, ...]]
    processes: Processes
    journal: Journal
    logs: AttemptLogs
    checkers: Checkers
    setup: Callable[[Assign, Callable[[Sequence[str]], None], InThread], EngineSetup]
    exchange: Callable[[Assign], Exchange]
    send_previews: Callable[[int, str, str, Mapping[str, bytes]], Awaitable[None]]
    usage: Callable[[int, Mapping[int, str], Mapping[str, str]], Mapping[str, ProcessUsage]]
    slots: int = 1
    nice: int = 0
    progress: dict[int, Progress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free_slots = asyncio.Semaphore(self.slots)
        self.threads = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files")
        self._seen: dict[str, float] = {}
        self._oom_kills, self._counted_at = 0, -COUNT_S

    async def close(self) -> None:
        """End the picture checkers and the threads; what the threads have not begun is dropped."""
        await self.in_thread(self.checkers.close)
        self.threads.shutdown(wait=False, cancel_futures=True)

    def oom_kills(self) -> int:
        """What `kernel_oom_kills` said at most a second ago."""
        now = time.monotonic()
        if now - self._counted_at >= COUNT_S:
            self._oom_kills, self._counted_at = kernel_oom_kills(), now
        return self._oom_kills

    def has_seen(self, assign: Assign) -> bool:
        """Whether the files that an attempt needs were all there a moment ago, so that nobody has to look again and
        wait for a network disk."""
        since = time.monotonic() - SEEN_S
        return all(self._seen.get(name, 0.0) > since for name in _needed(assign))

    def has_shared(self, assign: Assign) -> bool:
        """Whether this machine has seen RenderAPI's files lately, so that those of an attempt will be there too."""
        return self._seen.get(_mark(assign), -SHARED_S) > time.monotonic() - SHARED_S

    def lost(self, assign: Assign) -> None:
        """Record that this machine does not share RenderAPI's files any more."""
        self._seen.pop(_mark(assign), None)

    def saw(self, assign: Assign) -> None:
        """Record that the files that an attempt needs are all there."""
        if len(self._seen) > MOST_SEEN:
            self._seen.clear()
        self._seen.update(dict.fromkeys(_needed(assign), time.monotonic()))

    def in_thread(self, call: Callable[..., T], *arguments: object) -> "asyncio.Future[T]":
        """Begin what may wait for a disk."""
        return asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)


def _needed(assign: Assign) -> tuple[str, ...]:
    return (_mark(assign), *assign.inputs)


def _mark(assign: Assign) -> str:
    return f"{assign.mark}\0{assign.mark_token}"


def shares_files(assign: Assign) -> bool:
    """Whether this machine sees the files of RenderAPI's computer: the file that the assignment names holds its token.
    Blocks, for as long as a network disk does."""
    if not assign.mark:
        return True
    try:
        with open(assign.mark, "rb") as file:
            return file.read(len(assign.mark_token) + 1) == assign.mark_token.encode()
    except OSError:
        return False
