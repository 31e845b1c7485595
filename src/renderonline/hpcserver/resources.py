"""What the attempts of a machine use: `main.py` makes it, mostly of modules that attempts don't import themselves."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, TypeVar

from renderonline.hpcserver.journal import Journal
from renderonline.hpcserver.outputs import AttemptVerdict, Bad, Checkers, Good
from renderonline.hpcserver.processes import Described, Processes, ProcessUsage
from renderonline.protocol.link import Assign, Progress
from renderonline.storage.attempt_logs import AttemptLogs

T = TypeVar("T")

FILE_THREADS: Final = 8
"""A shared directory that hangs holds up these threads, never the link."""


class Launch(NamedTuple):
    """How the engine of an attempt is started, besides the words that its engine's command lines begin with."""

    argv: Sequence[str]
    environment: Mapping[str, str]
    box: Described | None


class EngineSetup(Protocol):
    """What surrounds the engine of one attempt: scratch directories, graphics cards, box, environment
    (`engine_setup.AttemptSetup`). `make`, `launch`, `remove_links`, `outside_box` and `remove` block."""

    def make(self) -> None:
        """Make the scratch directories. Raises OSError."""

    def take_cards(self) -> AttemptVerdict | None:
        """Reserve the graphics cards that the assignment asks for; a verdict when they are not free."""

    def release_cards(self) -> None:
        """Free them: nothing of the attempt runs any more."""

    def launch(self, assign: Assign) -> Launch:
        """Prepare the start of the engine, also in the attempt's directory. Raises OSError."""

    def remove_links(self) -> None:
        """Remove what `launch` put into the attempt's directory."""

    def read(self, lines: Sequence[str]) -> None:
        """Take note of files that the engine complains about."""

    def outside_box(self) -> Sequence[str]:
        """A sentence for each directory that the engine lacked because its box does not open it."""

    async def believed(self, failure: tuple[str, str] | None) -> tuple[str, str] | None:
        """The failure that the engine printed (class, line), with another class if its graphics cards do work."""

    def remove(self) -> None:
        """Delete the scratch directories."""


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
    setup: Callable[[Assign, Callable[[Sequence[str]], None]], EngineSetup]
    exchange: Callable[[Assign], Exchange]
    send_previews: Callable[[int, str, str, Mapping[str, bytes]], Awaitable[None]]
    usage: Callable[[int, Mapping[int, str], Mapping[str, str]], Mapping[str, ProcessUsage]]
    slots: int = 1
    nice: int = 0
    progress: dict[int, Progress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.free_slots = asyncio.Semaphore(self.slots)
        self.threads = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files")

    async def close(self) -> None:
        """End the picture checkers and the threads; what the threads have not begun is dropped."""
        await self.in_thread(self.checkers.close)
        self.threads.shutdown(wait=False, cancel_futures=True)

    def in_thread(self, call: Callable[..., T], *arguments: object) -> "asyncio.Future[T]":
        """Begin what may wait for a disk."""
        return asyncio.get_running_loop().run_in_executor(self.threads, call, *arguments)


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
