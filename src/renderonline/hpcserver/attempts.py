"""One attempt on this machine: from the stored assignment to its last report (R5, R8).

stored -> inputs checked, directory made -> process started -> output read, finished files checked as they are
saved -> process tree gone -> the other expected files checked -> outcome decided -> Exited
"""

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import structlog

from renderonline.engines.definition import ReadingRules
from renderonline.engines.reading import OutputReader, Reading
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import Outcome
from renderonline.hpcserver import outputs
from renderonline.hpcserver.attempt_log import AttemptLog
from renderonline.hpcserver.outcomes import HANDED_BACK, Ending, decide
from renderonline.hpcserver.outputs import Bad, Checkers, Good, Stamp
from renderonline.hpcserver.processes import CantStart, Ended, EngineProcess, Processes
from renderonline.hpcserver.surroundings import Scratch, clean_environment
from renderonline.hpcserver.telemetry import kernel_oom_kills
from renderonline.protocol.codec import from_wire
from renderonline.protocol.link import Assign, Exited, Progress, Report, Result, Started

log = structlog.get_logger(__name__)

CHECKS_AT_ONCE: Final = 8
OWN_PAUSE_S: Final = 10.0
"""When HPCServer itself stood still for so long, an attempt's silence means nothing."""
BUSY_SHARE: Final = 0.01
"""A tree that uses less of one core than this, and writes nothing, is standing still."""
MAX_MESSAGE: Final = 200


@dataclass(frozen=True, slots=True)
class Workshop:
    """What every attempt of this machine uses."""

    processes: Processes
    checkers: Checkers
    scratch: Scratch
    engines: Mapping[str, tuple[str, ...]]
    """Engine name in lower case -> the words its command lines begin with."""
    inherited: Mapping[str, str]
    pass_environment: frozenset[str]
    nice: int
    in_thread: Callable[..., Awaitable[Any]]
    report: Callable[[Report], object]
    on_progress: Callable[[Progress], None]


@dataclass(slots=True)
class _Measured:
    """What was last seen of the process tree."""

    cpu_s: float = 0.0
    at: float = 0.0
    active_at: float = 0.0
    peak_bytes: int = 0


class Attempt:
    """A live attempt; `run` is its whole life and reports its end."""

    def __init__(self, assign: Assign, workshop: Workshop, output: AttemptLog, slots: asyncio.Semaphore) -> None:
        self.assign = assign
        self.log = output
        self._workshop = workshop
        self._slots = slots
        self._root = Path(assign.directory)
        self._rules = ReadingRules()
        self._reader = OutputReader(self._rules, assign.frames)
        self._preparing: asyncio.Task[Ending | None]
        self._process: EngineProcess | None = None
        self._verdict: Ending | None = None
        self._ending = asyncio.Event()
        self._failure: tuple[str, str] | None = None
        self._warnings = 0
        self._before: Mapping[str, Stamp] = {}
        self._good: dict[str, Good] = {}
        self._checking: dict[str, asyncio.Task[None]] = {}
        self._measured = _Measured()
        self._expected = {output.name: output.frame for output in assign.expected}
        self._log_failed = False
        self._out_of_memory = False

    @property
    def pid(self) -> int | None:
        """The engine's process id while it runs."""
        return self._process.pid if self._process is not None and self._process.is_running else None

    def end(self, ending: Ending, *, grace_s: float | None = None) -> None:
        """End it for this reason; the first reason counts, a later call can only shorten the grace (seconds)."""
        if self._verdict is None:
            self._verdict = ending
            log.info("attempt is ended", attempt=self.assign.attempt, outcome=ending.outcome, reason=ending.reason)
        self._ending.set()
        if self._process is not None:
            grace = self.assign.limits.grace_s if grace_s is None else grace_s
            self._process.stop(self._rules.stop_signal, min(grace, 300.0))

    def cancel(self, reason: str) -> None:
        """RenderAPI, or whoever has the word, wants it no more."""
        self.end(Ending(Outcome.CANCELED, "", reason))

    def hand_back(self, reason: str, *, grace_s: float | None = None) -> None:
        """This machine can't go on with it; somebody else may, and nobody failed."""
        self.end(Ending(Outcome.CANCELED, HANDED_BACK, reason), grace_s=grace_s)

    def prepare(self) -> None:
        """Begin to make everything ready; nothing starts before `run`."""
        self._preparing = asyncio.create_task(self._prepare())

    async def give_up(self) -> None:
        """Undo `prepare`: the attempt is not taken."""
        await asyncio.wait({self._preparing})
        await self._workshop.in_thread(self._workshop.scratch.remove, self._name)

    async def run(self) -> None:
        """Live through it, after `prepare`. Whatever happens, exactly one `Exited` is reported at the end."""
        if await self._take_slot():
            try:
                ending, ended = await self._live()
            finally:
                self._slots.release()  # before the end is told: the next assignment may come at once
        else:
            ending, ended = self._verdict or Ending(Outcome.CANCELED), None
        self._report_end(ending, ended)
        for check in self._checking.values():
            check.cancel()
        await self._workshop.in_thread(self._workshop.scratch.remove, self._name)

    async def _take_slot(self) -> bool:
        """Wait for a slot; False when it was ended before there was one."""
        if self._slots.locked():
            slot = asyncio.create_task(self._slots.acquire())
            ending = asyncio.create_task(self._ending.wait())
            await asyncio.wait({slot, ending}, return_when=asyncio.FIRST_COMPLETED)
            ending.cancel()
            if not slot.done():
                slot.cancel()
                await asyncio.wait({slot})
            return not slot.cancelled()
        return await self._slots.acquire()

    async def _live(self) -> tuple[Ending, Ended | None]:
        ended: Ended | None = None
        try:
            ending = await self._preparing
            ending = self._verdict or ending
            if ending is None:
                ended = await self._run_engine()
                ending = await self._judge(ended)
        except CantStart as error:
            ending = self._verdict or Ending(Outcome.FAILED, "no_engine", f"The engine can't be started: {error}")
        except Exception as error:
            log.exception("attempt failed by a fault of HPCServer", attempt=self.assign.attempt)
            ending = Ending(Outcome.FAILED, "machine", f"HPCServer failed: {type(error).__name__}: {error}")
            if self._process is not None:
                self._process.stop("SIGKILL", 0.0)
                ended = await self._process.wait()
        return ending, ended

    @property
    def _name(self) -> str:
        return str(self.assign.attempt)

    # -- before

    async def _prepare(self) -> Ending | None:
        """Make everything ready; an ending when it can't be."""
        try:
            self._rules = from_wire(ReadingRules, self.assign.reading)
            self._reader = OutputReader(self._rules, self.assign.frames)
        except (InvalidRequest, ValueError) as error:
            return Ending(Outcome.FAILED, "machine", f"The engine's definition can't be understood: {error}")
        if self.assign.engine.casefold() not in self._workshop.engines:
            return Ending(Outcome.FAILED, "no_engine", f"This machine has no engine {self.assign.engine}.")
        problem: Ending | None = await self._workshop.in_thread(self._prepare_files)
        return problem

    def _prepare_files(self) -> Ending | None:
        missing = [name for name in self.assign.inputs if not os.path.isfile(name)]
        if missing:
            reason = f"{missing[0]} is not there on this machine. Does it see the farm's shared directory?"
            return Ending(Outcome.FAILED, "no_input", reason)
        if not self._root.is_absolute() or ".." in self._root.parts:
            return Ending(Outcome.FAILED, "machine", f"{self._root} is not an absolute path.")
        try:
            self._root.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._root.mkdir()
            except FileExistsError:
                self._before = outputs.stamps(self._root)
            self._workshop.scratch.make(self._name)
        except InvalidRequest as error:
            return Ending(Outcome.FAILED, "machine", f"{self._root} can't be used: {error}")
        except OSError as error:
            kind = "no_space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "no_input"
            return Ending(Outcome.FAILED, kind, f"{error.filename} can't be made: {error.strerror}.")
        return None

    # -- while it runs

    async def _run_engine(self) -> Ended:
        workshop, assign = self._workshop, self.assign
        environment = clean_environment(
            workshop.inherited, assign.environment, workshop.scratch.place(self._name), also=workshop.pass_environment
        )
        self._measured.active_at = self._measured.at = time.monotonic()
        oom_kills = kernel_oom_kills()
        self._process = process = await workshop.processes.start(
            self._name,
            [*workshop.engines[assign.engine.casefold()], *assign.argv],
            directory=self._root,
            environment=environment,
            on_lines=self._read,
            nice=workshop.nice,
        )
        self._send(Started(0, assign.attempt, assign.token, process.at_us, process.pid))
        if self._verdict is not None:
            self.end(self._verdict)  # it was canceled while it was being started
        timer = self._start_timer()
        try:
            ended = await process.wait()
        finally:
            if timer is not None:
                timer.cancel()
        self._out_of_memory = kernel_oom_kills() > oom_kills
        return ended

    def _start_timer(self) -> asyncio.TimerHandle | None:
        limit = self.assign.limits.time_s
        if limit <= 0:
            return None
        ending = Ending(Outcome.TIMED_OUT, "timed_out", f"It ran longer than {limit:g} s.")
        return asyncio.get_running_loop().call_later(limit, self.end, ending)

    def observe(self, cpu_s: float, memory_bytes: int, now: float) -> None:
        """Take note of what the process tree uses (CPU seconds, resident bytes) and hold it to its limits."""
        measured, limits = self._measured, self.assign.limits
        passed = now - measured.at
        if passed > OWN_PAUSE_S or abs(cpu_s - measured.cpu_s) > BUSY_SHARE * passed:
            measured.active_at = now
        measured.cpu_s, measured.at = cpu_s, now
        measured.peak_bytes = max(measured.peak_bytes, memory_bytes)
        if limits.memory_mib and memory_bytes > limits.memory_mib << 20:
            used = f"It used {memory_bytes >> 20} MiB, more than the {limits.memory_mib} MiB it may."
            self.end(Ending(Outcome.FAILED, "out_of_memory", used), grace_s=0.0)
        elif limits.stall_s and now - measured.active_at > limits.stall_s:
            stood = f"It wrote nothing and used no CPU time for {limits.stall_s:g} s."
            self.end(Ending(Outcome.STALLED, "stalled", stood))

    def _read(self, lines: Sequence[str]) -> None:
        self._measured.active_at = time.monotonic()
        try:
            self.log.append(lines)
        except OSError as error:
            if not self._log_failed:
                self._log_failed = True
                log.warning("the log of an attempt can't be written", attempt=self.assign.attempt, reason=str(error))
        newest: Reading | None = None
        for line in lines:
            reading = self._reader.line(line)
            if reading.failure is not None:
                self._failure = self._failure or reading.failure
            if reading.saved is not None:
                self._saved(reading.saved)
            if reading.progress:
                newest = reading
        if newest is not None:
            self._tell(newest)

    def _tell(self, reading: Reading) -> None:
        self._workshop.on_progress(
            Progress(
                self.assign.attempt,
                reading.fraction or 0.0,
                frame=reading.frame,
                remaining_s=reading.remaining_s,
                message=reading.message[:MAX_MESSAGE],
            )
        )

    def _saved(self, path: str) -> None:
        """The engine says that a file is complete: check and report it now."""
        name = os.path.relpath(os.path.normpath(self._root / path), self._root)
        if name in self._expected and name not in self._good and name not in self._checking:
            self._checking[name] = asyncio.create_task(self._check_saved(name))

    async def _check_saved(self, name: str) -> None:
        await self._check(name)  # what is bad now may be good in the end

    # -- afterwards

    async def _judge(self, ended: Ended) -> Ending:
        await asyncio.gather(*self._checking.values())
        verdict = self._verdict
        if verdict is not None and verdict.outcome == Outcome.CANCELED and verdict.failure != HANDED_BACK:
            return verdict
        bad: list[Bad] = []
        if self._expected:
            # Without decoding nothing tells a half-written file from a whole one but the engine's success.
            whole = self._rules.decode or (verdict is None and ended.code == 0 and self._failure is None)
            bad = await self._check_expected() if whole else []
        elif verdict is None and ended.code == 0 and self._failure is None:
            bad = await self._report_all_files()
        if verdict is not None:
            return verdict
        return decide(
            code=ended.code,
            rules=self._rules,
            failure=self._failure,
            bad=bad,
            out_of_memory=self._out_of_memory,
        )

    async def _check_expected(self) -> list[Bad]:
        """Check what was not reported yet, and that nothing reported has changed since."""
        bad = await self._workshop.in_thread(self._changed)
        waiting = [name for name in self._expected if name not in self._good]
        bad += [found for found in await self._check_all(waiting) if found is not None]
        return list(bad)

    def _changed(self) -> list[Bad]:
        changed = [good.name for good in self._good.values() if outputs.stamp_of(self._root / good.name) != good.stamp]
        return [Bad(name, f"{name} was changed after the engine said that it was complete.") for name in changed]

    async def _report_all_files(self) -> list[Bad]:
        try:
            names: list[str] = await self._workshop.in_thread(outputs.list_files, self._root)
        except (InvalidRequest, OSError) as error:
            return [Bad("", str(error))]
        found = await self._check_all(names)
        return [bad for bad in found if bad is not None and not bad.missing]  # what was there before is no result

    async def _check_all(self, names: Sequence[str]) -> list[Bad | None]:
        found: list[Bad | None] = []
        for start in range(0, len(names), CHECKS_AT_ONCE):
            found += await asyncio.gather(*(self._check(name) for name in names[start : start + CHECKS_AT_ONCE]))
        return found

    async def _check(self, name: str) -> Bad | None:
        """Check one file and report it if it is good."""
        checkers = self._workshop.checkers if self._expected and self._rules.decode else None
        found: Good | Bad = await self._workshop.in_thread(
            _check_file, self._root, name, self._before.get(name), checkers
        )
        if isinstance(found, Bad):
            return found
        self._good[name] = found
        self._send(
            Result(
                0,
                self.assign.attempt,
                self.assign.token,
                _now_us(),
                name,
                found.file.size,
                found.file.digest,
                found.file.crc32,
                frame=self._expected.get(name),
                facts=found.facts,
            )
        )
        return None

    # -- reports

    def _report_end(self, ending: Ending, ended: Ended | None) -> None:
        peak = max(self._measured.peak_bytes >> 20, ended.peak_memory_mib if ended else 0)
        self._send(
            Exited(
                0,
                self.assign.attempt,
                self.assign.token,
                _now_us(),
                ending.outcome,
                exit_code=ended.code if ended else None,
                failure=ending.failure,
                reason=ending.reason,
                peak_memory_mib=peak,
            )
        )
        log.info(
            "attempt ended",
            attempt=self.assign.attempt,
            outcome=ending.outcome,
            failure=ending.failure,
            reason=ending.reason,
            results=len(self._good),
        )

    def _send(self, report: Report) -> None:
        self._workshop.report(report)


def _check_file(root: Path, name: str, before: Stamp | None, checkers: Checkers | None) -> Good | Bad:
    return outputs.check_file(root, name, before=before, checkers=checkers)


def _now_us() -> int:
    return time.time_ns() // 1000
