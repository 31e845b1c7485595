"""The attempts of this machine: takes assignments, keeps them within their limits, hands them back (R5, R8)."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import structlog

from renderonline.database.outbox import Held
from renderonline.farm.errors import NoSpace
from renderonline.farm.tasks import Outcome
from renderonline.hpcserver import telemetry
from renderonline.hpcserver.attempt_log import AttemptLog
from renderonline.hpcserver.attempts import Attempt, Workshop
from renderonline.hpcserver.journal import Journal
from renderonline.hpcserver.outcomes import HANDED_BACK, LOST_PROCESS
from renderonline.hpcserver.outputs import Checkers
from renderonline.hpcserver.processes import Processes
from renderonline.hpcserver.settings import Settings
from renderonline.hpcserver.surroundings import Scratch
from renderonline.protocol.link import Assign, Exited, HeldAttempt, Progress
from renderonline.storage.images import ImageChecker

log = structlog.get_logger(__name__)

WATCH_S: Final = 1.0
MOST_CHECKERS: Final = 4
CLOSE_S: Final = 30.0
FILE_THREADS: Final = 8
"""A shared directory that hangs holds up these threads, never the link."""


class Runner:
    """Runs at most `settings.slots` attempts at once; `journal` keeps what must not be forgotten."""

    def __init__(
        self,
        settings: Settings,
        *,
        home: str,
        engines: Mapping[str, tuple[str, ...]],
        processes: Processes,
        journal: Journal,
    ) -> None:
        self._settings = settings
        self._home = home
        self._processes = processes
        self._journal = journal
        self._logs_directory = settings.home / "logs"
        self._attempts: dict[int, Attempt] = {}
        self._named: frozenset[int] = frozenset()
        """What the newest `hello` named."""
        self._logs: dict[int, AttemptLog] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._slots = asyncio.Semaphore(settings.slots)
        self._threads = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files")
        self._draining = ""
        self._stopping = ""
        self._idle_since = time.monotonic()
        self._idle = asyncio.Event()
        self._idle.set()
        self._watching: asyncio.Task[None] | None = None
        self._on_progress: Callable[[Progress], None] = lambda _: None
        self._workshop = Workshop(
            processes=processes,
            checkers=Checkers(ImageChecker, min(settings.slots, MOST_CHECKERS)),
            scratch=Scratch(settings.home / "scratch"),
            engines=engines,
            inherited=dict(os.environ),
            pass_environment=frozenset(settings.pass_environment),
            nice=settings.nice,
            in_thread=self._in_thread,
            report=journal.report,
            on_progress=lambda progress: self._on_progress(progress),
        )

    async def start(self) -> None:
        """Settle what an earlier run left: its processes are dead by now, its attempts are reported lost."""
        await self._in_thread(self._workshop.scratch.clear)
        unfinished = await self._journal.open()
        for held in unfinished:
            self._journal.report(
                _exited(held.attempt, held.token, Outcome.FAILED, LOST_PROCESS, "HPCServer restarted.")
            )
        kept = {held.attempt for held in self._journal.held()}
        self._logs = await self._in_thread(_open_logs, self._logs_directory, kept)
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Wait for the attempts that are left to write their ends; engines must be dead or dying."""
        if self._watching is not None:
            self._watching.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=CLOSE_S)
        await self._in_thread(self._workshop.checkers.close)
        self._threads.shutdown(wait=False, cancel_futures=True)

    def on_progress(self, call: Callable[[Progress], None]) -> None:
        """Have `call` called with the newest progress of every attempt."""
        self._on_progress = call

    # -- what RenderAPI wants

    def assign(self, assign: Assign) -> None:
        """Take an assignment, idempotent by attempt (R5.1); what can't be taken is handed back."""
        number = assign.attempt
        if number in self._attempts or self._journal.holds(number):
            return
        if self.full:
            self.refuse(number, assign.token, self.full)
            return
        self._logs[number] = output = AttemptLog(self._logs_directory / str(number))
        self._attempts[number] = attempt = Attempt(assign, self._workshop, output, self._slots)
        self._idle.clear()
        task = asyncio.create_task(self._live(attempt), name=f"attempt {number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, attempt: int, reason: str) -> None:
        """End an attempt; one that is not here has ended already."""
        if (found := self._attempts.get(attempt)) is not None:
            found.cancel(reason or "RenderAPI canceled it.")

    def keep_only(self, attempts: frozenset[int]) -> None:
        """End every attempt that `hello` named and RenderAPI does not keep (R5.4)."""
        for number, attempt in self._attempts.items():
            if number in self._named and number not in attempts:
                attempt.cancel("RenderAPI does not know it any more.")

    def refuse(self, attempt: int, token: str, reason: str) -> None:
        """Hand back an assignment that was not taken; it is nobody's failure."""
        log.warning("assignment is handed back", attempt=attempt, reason=reason)
        self._journal.report(_exited(attempt, token, Outcome.CANCELED, HANDED_BACK, reason))

    def drain(self, reason: str) -> None:
        """Take nothing new until `resume`."""
        self._draining = reason

    def resume(self) -> None:
        """Take assignments again; a drain ends with its link."""
        self._draining = ""

    def stop(self, reason: str) -> None:
        """Take nothing new for good."""
        self._stopping = reason

    def hand_back_all(self, reason: str, *, grace_s: float | None = None) -> None:
        """End all attempts, as nobody's failure."""
        for attempt in self._attempts.values():
            attempt.hand_back(reason, grace_s=grace_s)

    # -- what is known

    @property
    def full(self) -> str:
        """Why this machine takes no assignment, "" when it does (R5.2)."""
        return self._stopping or self._draining or self._journal.full

    @property
    def idle_s(self) -> float:
        """For how many seconds nothing has been running here."""
        return 0.0 if self._attempts else time.monotonic() - self._idle_since

    async def wait_idle(self) -> None:
        """Wait until no attempt is left."""
        await self._idle.wait()

    def held(self) -> tuple[HeldAttempt, ...]:
        """What `hello` names: attempts that run, or whose reports are not acknowledged."""
        self._named = frozenset(held.attempt for held in self._journal.held())
        return tuple(
            HeldAttempt(held.attempt, held.token, running=held.attempt in self._attempts)
            for held in self._journal.held()
        )

    # -- logs, for the link

    def logs(self) -> tuple[int, ...]:
        """The attempts whose log is on this machine."""
        return tuple(self._logs)

    def is_live(self, attempt: int) -> bool:
        """Whether its log may still grow."""
        return attempt in self._attempts

    def log_size(self, attempt: int) -> int:
        """Bytes written so far."""
        return self._logs[attempt].size

    def read_log(self, attempt: int, offset: int, limit: int) -> tuple[int, str]:
        """Text from `offset` on and where it begins (`AttemptLog.read`)."""
        return self._logs[attempt].read(offset, limit)

    def drop_log(self, attempt: int) -> None:
        """Delete the log of an attempt that has ended."""
        if not self.is_live(attempt):
            self._logs.pop(attempt).remove()

    # -- inside

    async def _live(self, attempt: Attempt) -> None:
        assign = attempt.assign
        try:
            attempt.prepare()  # while it is being stored
            await self._journal.store(Held(assign.attempt, assign.token, assign.directory))
            await attempt.run()
        except NoSpace as error:
            self.refuse(assign.attempt, assign.token, str(error))
            await attempt.give_up()
        finally:
            del self._attempts[assign.attempt]
            if not self._attempts:
                self._idle_since = time.monotonic()
                self._idle.set()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            roots = {attempt.pid: str(number) for number, attempt in self._attempts.items() if attempt.pid}
            spawner = self._processes.spawner_pid
            if not roots or spawner is None:
                continue
            try:
                used = await self._in_thread(telemetry.usage, spawner, roots, self._home)
            except Exception:  # the limits must go on being watched
                log.exception("the process table can't be read")
                continue
            now = time.monotonic()
            for name, usage in used.items():
                if (attempt := self._attempts.get(int(name))) is not None:
                    attempt.observe(usage.cpu_s, usage.memory_bytes, now)

    async def _in_thread(self, call: Callable[..., Any], *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def _exited(attempt: int, token: str, outcome: Outcome, failure: str, reason: str) -> Exited:
    return Exited(0, attempt, token, time.time_ns() // 1000, outcome, failure=failure, reason=reason)


def _open_logs(directory: Path, kept: set[int]) -> dict[int, AttemptLog]:
    """The logs that an earlier run left of attempts that are still held; the others are deleted."""
    directory.mkdir(parents=True, exist_ok=True)
    logs = {}
    for place in directory.iterdir():
        found = AttemptLog(place)
        if place.name.isdigit() and int(place.name) in kept:
            logs[int(place.name)] = found
        else:
            found.remove()
    return logs
