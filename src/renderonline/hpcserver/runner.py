"""The attempts of this machine: accepts assignments, enforces their limits, hands them back (R5 Attempts and reports,
R8 Process trees).
"""

import asyncio
import time
from collections.abc import Collection
from typing import Final

import structlog

from renderonline.hpcserver.attempts import Attempt
from renderonline.hpcserver.outputs import handed_back
from renderonline.hpcserver.resources import Resources
from renderonline.protocol.link import Assign, HeldAttempt
from renderonline.storage.attempt_logs import AttemptLog, AttemptLogs

log = structlog.get_logger(__name__)

WATCH_S: Final = 1.0
CLOSE_S: Final = 30.0


class Runner:
    """Runs at most `resources.slots` attempts at once. `attempts` live; `logs` are those on this machine's disk,
    `progress` what was not sent yet. `draining` (until it is emptied) and `stopping` (for good) say why nothing new is
    taken. `idle` is set while no attempt lives."""

    def __init__(self, resources: Resources) -> None:
        self.attempts: dict[int, Attempt] = {}
        self.logs: dict[int, AttemptLog] = {}
        self.journal, self.progress = resources.journal, resources.progress
        self.draining = self.stopping = ""
        self.idle = asyncio.Event()
        self.idle.set()
        self._idle_since = time.monotonic()
        self._resources = resources
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Open what an earlier run left; its processes must be dead."""
        await self.journal.open()
        self.logs = await self._resources.in_thread(_open_logs, self._resources.logs, set(self.journal.held))
        self._watching = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Wait for the attempts that are left to write their ends; engines must be dead or dying."""
        if self._watching is not None:
            self._watching.cancel()
        for attempt in self.attempts.values():
            attempt.stop_transfers()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_S)
        await self._resources.close()

    def assign(self, assign: Assign) -> None:
        """Start an assignment, once per attempt (R5.1 Stored assignment), or hand it back when the machine is full."""
        number = assign.attempt
        if number in self.attempts or number in self.journal.held:
            return
        if self.full:
            self.refuse(number, assign.token, self.full)
            return
        self.logs[number] = output = AttemptLog(self._resources.logs, number, new=number not in self.logs)
        self.attempts[number] = attempt = Attempt(assign, self._resources, output)
        self.idle.clear()
        task = asyncio.create_task(self._live(attempt), name=f"attempt {number}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self, attempt: int, reason: str) -> None:
        """End an attempt; one that is not here has ended already."""
        if (found := self.attempts.get(attempt)) is not None:
            found.cancel(reason or "RenderAPI canceled it.")

    def keep_only(self, kept: Collection[int]) -> None:
        """End every attempt that RenderAPI did not name in its `welcome` (R5.4 Hello)."""
        for number, attempt in self.attempts.items():
            if number not in kept:
                attempt.cancel("RenderAPI does not know it any more.")

    def refuse(self, attempt: int, token: str, reason: str) -> None:
        """Hand back an assignment that was not accepted; it does not count as a failure."""
        log.warning("assignment is handed back", attempt=attempt, reason=reason)
        self.journal.report(handed_back(reason).report(attempt, token))

    def hand_back_all(self, reason: str, grace_s: float | None = None) -> None:
        """End all attempts; they do not count as failures."""
        for attempt in self.attempts.values():
            attempt.end(handed_back(reason), grace_s)

    def hand_back_waiting(self, reason: str) -> None:
        """End the attempts that wait for a slot; they do not count as failures."""
        for attempt in self.attempts.values():
            if not attempt.has_slot:
                attempt.end(handed_back(reason))

    @property
    def full(self) -> str:
        """Why this machine accepts no assignment, "" when it does (R5.2 Outbox)."""
        return self.stopping or self.draining or self.journal.full

    @property
    def idle_s(self) -> float:
        """For how many seconds nothing has been running here."""
        return 0.0 if self.attempts else time.monotonic() - self._idle_since

    def held(self) -> tuple[HeldAttempt, ...]:
        """What `hello` names: attempts that run, or whose reports are not acknowledged."""
        held = self.journal.held.values()
        return tuple(HeldAttempt(one.attempt, one.token, one.attempt in self.attempts) for one in held)

    def drop_log(self, attempt: int) -> None:
        """Delete the log of an attempt that has ended."""
        if attempt not in self.attempts and (output := self.logs.pop(attempt, None)) is not None:
            output.remove()

    async def _live(self, attempt: Attempt) -> None:
        try:
            await attempt.run()
        finally:
            del self.attempts[attempt.assign.attempt]
            self.progress.pop(attempt.assign.attempt, None)
            if not self.attempts:
                self._idle_since = time.monotonic()
                self.idle.set()

    async def _watch(self) -> None:
        processes = self._resources.processes
        while True:
            await asyncio.sleep(WATCH_S)
            running = [(attempt.process, attempt.name) for attempt in self.attempts.values()]
            live = [
                (process, name)
                for process, name in running
                if process is not None and process.pid and process.is_running
            ]
            roots, keys = {one.pid: name for one, name in live}, {one.key: name for one, name in live}
            if not roots or processes.spawner_pid is None:
                continue
            try:
                used = await self._resources.in_thread(self._resources.usage, processes.spawner_pid, roots, keys)
            except Exception:  # the limits must go on being watched
                log.exception("the process table can't be read")
                continue
            now = time.monotonic()
            for name, usage in used.items():
                if (attempt := self.attempts.get(int(name))) is not None:
                    attempt.observe(usage, now)


def _open_logs(logs: AttemptLogs, held: set[int]) -> dict[int, AttemptLog]:
    """The logs that an earlier run left of attempts that are still held; the others are deleted."""
    for number in set(logs.on_disk()) - held:
        logs.remove(number)
    return {number: AttemptLog(logs, number) for number in logs.on_disk()}
