"""One attempt on this machine: from the stored assignment to its last report (R5 Attempts and reports,
R8 Process trees).

stored -> inputs checked or fetched, directory made -> process started -> output read, finished files checked (and
sent) as they are saved -> process tree gone -> the other expected files checked -> outcome decided -> Exited
"""

import asyncio
import contextlib
import errno
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import structlog
from msgspec.structs import replace as replace_fields

from renderonline.engines.command_lines import OutputReader, OutputReading
from renderonline.engines.definition import REFUSED_VARIABLES, ReadingRules
from renderonline.farm import needs
from renderonline.farm.errors import InvalidRequest, NoSpace
from renderonline.farm.machines import NO_DEVICE
from renderonline.farm.tasks import Outcome
from renderonline.hpcserver import outputs
from renderonline.hpcserver.journal import Held
from renderonline.hpcserver.outputs import (
    AttemptVerdict,
    Bad,
    Good,
    MoreOutputs,
    Stamp,
    decide,
    failed,
    handed_back,
    is_picture,
)
from renderonline.hpcserver.processes import (
    MOST_PROCESSES,
    CantStart,
    Ended,
    EngineProcess,
    ProcessUsage,
    kernel_oom_kills,
)
from renderonline.hpcserver.resources import Exchange, Resources, shares_files
from renderonline.protocol.link import Assign, Progress, Result, Started, from_wire
from renderonline.storage.attempt_logs import AttemptLog

log = structlog.get_logger(__name__)
T = TypeVar("T")

CHECKS_AT_ONCE: Final = 8
OWN_PAUSE_S: Final = 10.0
"""When HPCServer itself stood still for longer than this, the silence of an attempt does not count."""
BUSY_SHARE: Final = 0.01
"""The share of one core below which a process tree that writes nothing counts as stalled."""
MAX_GRACE_S: Final = 300.0
MAX_MESSAGE: Final = 200
MOST_WARNINGS: Final = 100
"""Warnings of one attempt that are kept until its end."""
RESERVE: Final = 256 << 20
"""Bytes of the disk that no engine's file may use, as at RenderAPI (`ReserveMib`)."""
LEAST_FILE: Final = 1 << 20
FULL: Final = 2 * RESERVE
"""With more bytes than this free, a disk was not full, whatever an engine or its scene prints."""
LAST_FILES_S: Final = 20.0
"""How long an attempt that is handed back tries to send the files that it has."""
APART: Final = AttemptVerdict(Outcome.FAILED, "no_input", "This machine does not share the farm's directory.")


class Attempt:
    """A live attempt; `run` is its whole life and reports its end. `has_slot`: it had its turn."""

    def __init__(self, assign: Assign, resources: Resources, output: AttemptLog) -> None:
        self.assign = assign
        self.name = str(assign.attempt)
        self.process: EngineProcess | None = None
        self.has_slot = False
        self._remote: Exchange | None = None
        self._resources, self._log = resources, output
        self._log_failed = False
        self._root = Path(assign.directory)
        self._rules = ReadingRules()
        self._reader = OutputReader(self._rules, assign.frames)
        self._queueing: asyncio.Task[bool] | None = None
        self._looking: asyncio.Future[AttemptVerdict | None] | None = None
        self._verdict: AttemptVerdict | None = None
        self._failure: tuple[str, str] | None = None
        self._reason = ""
        self._warnings: dict[str, None] = {}
        self._before: Mapping[str, Stamp] = {}
        self._expected = {output.name: output.frame for output in assign.expected}
        self._more = MoreOutputs(assign.more, self._expected)
        self._good: dict[str, Good] = {}
        self._checking: dict[str, asyncio.Task[Bad | None]] = {}
        self._one_picture = asyncio.Lock()
        """One at a time, so that slow pictures leave checkers for the other attempts."""
        self._ended = Ended(None)
        self._used = ProcessUsage(0.0, 0)
        self._seen_at = self._active_at = 0.0
        self._peak_bytes = self._oom_kills = self._file_bytes = 0
        self._newest = ""
        self._setup = resources.setup(assign, self._write_log, resources.in_thread)
        self._device = ""
        """The device that the engine says it renders on."""

    def end(self, ending: AttemptVerdict, grace_s: float | None = None) -> None:
        """End it for this reason; the first reason counts, a later call can only shorten the grace (seconds)."""
        if self._verdict is None:
            self._verdict = ending
            log.info("attempt is ended", attempt=self.name, outcome=ending.outcome, reason=ending.reason)
        if self._queueing is not None:
            self._queueing.cancel()
        if self._remote is not None and ending.outcome == Outcome.CANCELED:
            self._remote.end_after(LAST_FILES_S) if ending.failure else self._remote.stop()
        if self.process is not None:
            grace = self.assign.limits.grace_s if grace_s is None else grace_s
            self.process.stop(self._rules.stop_signal, min(grace, MAX_GRACE_S))

    def cancel(self, reason: str) -> None:
        """End it because RenderAPI does not want it any more."""
        self.end(AttemptVerdict(Outcome.CANCELED, "", reason))

    def stop_transfers(self) -> None:
        """Fetch and send nothing more, because HPCServer ends."""
        if self._remote is not None:
            self._remote.stop()

    async def run(self) -> None:
        """Run the attempt from start to end. Whatever happens, reports exactly one `Exited` at its end."""
        resources, assign = self._resources, self.assign
        preparing: asyncio.Task[AttemptVerdict | None] | None = None
        try:
            await resources.journal.store(Held(assign.attempt, assign.token, assign.directory))
            if resources.free_slots.locked():
                preparing = asyncio.create_task(self._prepare())  # while it waits for a slot
            self.has_slot = await self._take_slot()
            if self.has_slot:
                try:
                    ending = await self._live(preparing)
                finally:
                    self._setup.release_cards()
                    resources.free_slots.release()  # before its end is reported: the next assignment may come at once
            else:
                ending = self._verdict or AttemptVerdict(Outcome.CANCELED)
        except NoSpace as error:
            ending = handed_back(str(error))
        code, peak = self._ended.code, max(self._peak_bytes >> 20, self._ended.peak_memory_mib)
        report = partial(ending.report, assign.attempt, assign.token, warnings=self._warnings)
        resources.journal.report(report(exit_code=code, peak_memory_mib=peak))
        note = log.debug if ending.outcome == Outcome.SUCCEEDED else log.info
        note("attempt ended", attempt=self.name, **ending._asdict(), results=len(self._good))
        for check in self._checking.values():
            check.cancel()
        self.stop_transfers()
        if preparing is not None and not preparing.done():
            await asyncio.wait({preparing})
        if self._remote is not None:
            resources.threads.submit(self._remote.release)
        self._setup.remove(reuse=self._remote is None and self._ended.cleared)

    async def _take_slot(self) -> bool:
        """Wait for a slot; returns False when the attempt was ended before it had one."""
        slots = self._resources.free_slots
        if not slots.locked():
            return await slots.acquire()
        self._queueing = asyncio.create_task(slots.acquire())
        if self._verdict is not None:
            self._queueing.cancel()
        await asyncio.wait({self._queueing})
        return not self._queueing.cancelled()

    async def _live(self, preparing: "asyncio.Task[AttemptVerdict | None] | None") -> AttemptVerdict:
        try:
            ending = await (preparing or self._prepare())
            if (ending := self._verdict or ending or self._setup.take_cards()) is not None:
                return ending
            self._ended = await self._run_engine()
            if self._looking is not None:
                await asyncio.wait({self._looking})
            if not self._ended.began and self._verdict is None:
                return failed("no_engine", f"The engine can't be started in its box: {self._newest}")
            return await self._judge(self._ended)
        except CantStart as error:
            missing = None if self._remote else await self._resources.in_thread(self._look_for_files)
            return self._verdict or missing or failed("no_engine", f"The engine can't be started: {error}")
        except Exception as error:
            log.exception("attempt failed by a fault of HPCServer", attempt=self.name)
            if self.process is not None:
                self.process.stop("SIGKILL", 0.0)
                self._ended = await self.process.wait()
            return failed("machine", f"HPCServer failed: {type(error).__name__}: {error}")

    async def _prepare(self) -> AttemptVerdict | None:
        """Prepare files and directories; returns a verdict when that fails."""
        resources = self._resources
        if resources.has_shared(self.assign) and not self._names_directory():
            return self._make_ready(looks=False)  # nothing of this waits for a network disk
        ending = await resources.in_thread(self._make_ready)
        if ending is APART:
            self._remote = resources.exchange(self.assign)
            self.assign, self._root = self._remote.assign, Path(self._remote.assign.directory)
            ending = self._verdict or await self._remote.fetch() or await resources.in_thread(self._make_ready)
        return ending

    def _names_directory(self) -> bool:
        """Whether the engine's command names the attempt's directory, or files are expected there. Another engine works
        in a scratch directory, and the attempt's is made only for files that it leaves."""
        assign = self.assign
        words = (*assign.argv, *assign.environment.values(), *assign.sandbox_write)
        return bool(assign.expected) or any(assign.directory in word for word in words)

    def _make_ready(self, *, looks: bool = True) -> AttemptVerdict | None:
        """Blocks. Returns `APART` when the task's files have to be fetched first. Unless it `looks` for them, that is
        done once the engine has started."""
        assign = self.assign
        if assign.engine.casefold() not in self._resources.engines:
            return failed("no_engine", f"This machine has no engine {assign.engine}.")
        if refused := REFUSED_VARIABLES & {name.upper() for name in assign.environment}:
            return failed("command", f"The engine's definition sets {min(refused)}, which is refused.")
        if not self._root.is_absolute() or ".." in self._root.parts:
            return failed("machine", f"{self._root} is not an absolute path.")
        try:
            place = self._setup.make() if self._remote is None else None
            if looks and (ending := self._look_for_files()) is not None:
                return ending
            self._rules = from_wire(ReadingRules, assign.reading)
            self._reader = OutputReader(self._rules, assign.frames)
            if place is not None and not self._names_directory():
                self._root = place / "work"
            else:
                self._make_root()
            self._file_bytes = max(LEAST_FILE, shutil.disk_usage(self._root).free - RESERVE)
        except (InvalidRequest, ValueError) as error:
            return failed("machine", f"The assignment can't be carried out: {error}")
        except OSError as error:
            kind = "no_space" if error.errno in {errno.ENOSPC, errno.EDQUOT} else "no_input"
            return failed(kind, f"{error.filename} can't be made: {error.strerror}.")
        return None

    def _look_for_files(self) -> AttemptVerdict | None:
        assign, shared = self.assign, self._remote is None
        if shared and self._resources.has_seen(assign):
            return None
        if shared and not shares_files(assign):
            self._resources.lost(assign)
            return APART
        if missing := [name for name in assign.inputs if not os.path.isfile(name)]:
            reason = f"{missing[0]} is not there on this machine. Does it see the farm's shared directory?"
            return failed("no_input", reason)
        if shared:
            self._resources.saw(assign)
        return None

    def _make_root(self) -> None:
        try:
            self._root.mkdir(parents=True)
        except FileExistsError:
            self._before = outputs.stamps(self._root)

    def _move_results(self) -> None:
        """Move what an engine left in its scratch directory to the attempt's. Blocks. Raises OSError."""
        work, self._root = self._root, Path(self.assign.directory)
        self._root.mkdir(parents=True)
        for entry in os.listdir(work):
            shutil.move(work / entry, self._root / entry)

    async def _run_engine(self) -> Ended:
        resources, assign = self._resources, self.assign
        self._active_at = self._seen_at = time.monotonic()
        launch = await self._setup.launch(replace_fields(assign, directory=str(self._root)))
        self._oom_kills = resources.oom_kills()
        self.process = process = await resources.processes.start(
            self.name,
            [*resources.engines[assign.engine.casefold()], *launch.argv],
            directory=self._root,
            environment=launch.environment,
            on_lines=self._read,
            on_started=self._has_started,
            nice=resources.nice,
            box=launch.box,
            file_bytes=self._file_bytes,
        )
        if self._verdict is not None:
            self.end(self._verdict)  # it was canceled while it was being started
        limit = assign.limits.time_s
        late = AttemptVerdict(Outcome.TIMED_OUT, "timed_out", f"It ran longer than {limit:g} s.")
        timer = asyncio.get_running_loop().call_later(limit, self.end, late) if limit > 0 else None
        try:
            return await process.wait()
        finally:
            if timer is not None:
                timer.cancel()
            self._take(self._reader.rest())
            await self._setup.remove_links()

    def _has_started(self, process: EngineProcess) -> None:
        assign, resources = self.assign, self._resources
        if self._remote is None and not resources.has_seen(assign):
            self._looking = resources.in_thread(self._look_for_files)
            self._looking.add_done_callback(self._has_looked)
        resources.journal.report(Started(0, assign.attempt, assign.token, process.at_us, process.pid))

    def _has_looked(self, looking: "asyncio.Future[AttemptVerdict | None]") -> None:
        if not looking.cancelled() and looking.exception() is None and (missing := looking.result()) is not None:
            self.end(missing, grace_s=0.0)

    def observe(self, used: ProcessUsage, now: float) -> None:
        """Record what the process tree uses, and end the attempt when it exceeds a limit."""
        limits, passed = self.assign.limits, now - self._seen_at
        if passed > OWN_PAUSE_S or abs(used.cpu_s - self._used.cpu_s) > BUSY_SHARE * passed:
            self._active_at = now
        self._used, self._seen_at = used, now
        self._peak_bytes = max(self._peak_bytes, used.memory_bytes)
        if limits.memory_mib and used.memory_bytes > limits.memory_mib << 20:
            reason = f"It used {used.memory_bytes >> 20} MiB, more than the {limits.memory_mib} MiB it may."
            self.end(failed("out_of_memory", reason), grace_s=0.0)
        elif used.threads > MOST_PROCESSES:
            reason = f"It had {used.threads} processes and threads, more than the {MOST_PROCESSES} that an engine may."
            self.end(failed("too_many_processes", reason), grace_s=0.0)
        elif limits.stall_s and now - self._active_at > limits.stall_s:
            reason = f"It wrote nothing and used no CPU time for {limits.stall_s:g} s."
            self.end(AttemptVerdict(Outcome.STALLED, "stalled", reason))

    def _read(self, lines: Sequence[str]) -> None:
        self._active_at = time.monotonic()
        self._write_log(lines)
        self._newest = lines[-1] if lines else self._newest
        self._setup.read(lines)
        newest = self._take(self._reader.lines(lines))
        if newest is not None:
            number, fraction, message = self.assign.attempt, newest.fraction or 0.0, newest.message[:MAX_MESSAGE]
            progress = Progress(number, fraction, newest.frame, newest.remaining_s, message)
            self._resources.progress[number] = progress
            self._resources.journal.news.set()

    def _take(self, readings: Iterable[OutputReading]) -> OutputReading | None:
        """Act on what was read from the output; returns the newest reading about progress."""
        newest: OutputReading | None = None
        for reading in readings:
            self._failure = self._failure or reading.failure
            self._reason = reading.reason or self._reason
            if reading.warning is not None:
                self._warn(reading.warning)
            if reading.saved is not None:
                self._saved(reading.saved)
            self._device = reading.device or self._device
            if reading.progress:
                newest = reading
        return newest

    def _warn(self, text: str) -> None:
        """Keep a warning about the pictures for the report of the end."""
        if len(self._warnings) < MOST_WARNINGS:
            self._warnings[needs.cleaned(text)] = None

    def _write_log(self, lines: Sequence[str]) -> None:
        try:
            self._log.append(lines)
        except OSError as error:
            if not self._log_failed:
                log.warning("the log of an attempt can't be written", attempt=self.name, reason=str(error))
            self._log_failed = True

    def _saved(self, path: str) -> None:
        """Check and report a file that the engine says is complete. A bad file is checked again at the end."""
        name = os.path.relpath(os.path.normpath(self._root / path), self._root)
        room = len(self._checking) < len(self._expected) + self.assign.more.files  # more are found at the end
        taken = name in self._expected or (room and self._more.wants(name))
        if taken and name not in self._good and name not in self._checking:
            self._checking[name] = asyncio.create_task(self._check_saved(name))

    async def _check_saved(self, name: str) -> Bad | None:
        if self._more.wants(name) and not await self._resources.in_thread(self._admitted, name):
            return None
        return await self._check(name)

    async def _judge(self, ended: Ended) -> AttemptVerdict:
        for check in self._checking.values():
            await check
        verdict = self._verdict
        if verdict is not None and verdict.outcome == Outcome.CANCELED and not verdict.failure:
            return verdict
        succeeded = verdict is None and ended.code == 0 and self._failure is None
        bad: list[Bad] = []
        claimed, self._failure = self._failure, await self._setup.believed(self._failure)
        no_device = claimed is not None and claimed[0] == NO_DEVICE  # what was made all the same was not made there
        # Without decoding nothing tells a half-written file from a whole one but the engine's success.
        if succeeded or (self._expected and self._rules.decode and not no_device):
            bad = await (self._check_expected() if self._expected else self._report_all_files())
        if self._more and not no_device:
            await self._report_more(succeeded=succeeded, complete=not bad)
        if verdict is not None:
            return verdict
        oom = ended.code in {-9, 137} and kernel_oom_kills() > self._oom_kills
        outside = await self._setup.outside_box()
        for sentence in outside:
            self._write_log([f"RenderOnline: warning: {sentence}"])
            self._warn(sentence)
        full = not (succeeded and not bad) and await self._resources.in_thread(self._has_full_disk)
        said = partial(decide, failure=self._failure, reason=self._reason, bad=bad)
        ending = said(code=ended.code, rules=self._rules, out_of_memory=oom, disk_full=full)
        return ending if ending.outcome == Outcome.SUCCEEDED else ending.because(outside)

    def _has_full_disk(self) -> bool:
        return shutil.disk_usage(self._root).free < FULL

    async def _check_expected(self) -> list[Bad]:
        """Check the files that were not reported yet, and that no reported file has changed since."""
        changed = await self._changed([one for name, one in self._good.items() if name in self._expected])
        bad = [Bad(name, f"{name} was changed after the engine said that it was complete.") for name in changed]
        return bad + await self._check_all([name for name in self._expected if name not in self._good])

    async def _changed(self, good: Sequence[Good]) -> list[str]:
        stamps = await self._resources.in_thread(lambda: [outputs.stamp_of(self._root / one.name) for one in good])
        return [one.name for one, stamp in zip(good, stamps, strict=True) if stamp != one.stamp]

    async def _report_more(self, *, succeeded: bool, complete: bool) -> None:
        """Report the files that the engine wrote besides the frames. When it failed, only files that are known to be
        whole; if its frames are `complete`, nothing is rendered again, and warnings name what is missing."""
        more = self._more
        for name in await self._changed([one for name, one in self._good.items() if name not in self._expected]):
            more.refuse(name, f"{name} was written more than once by one attempt; its first version was kept.")
        try:
            there = await self._resources.in_thread(outputs.list_files, self._root, len(self._expected))
        except (InvalidRequest, OSError) as error:
            more.refuse("", f"What the engine wrote besides its frames was not taken. {error}")
            there = []
        decodes = self._rules.decode
        new = [name for name in there if more.wants(name) and name not in self._good]
        wanted = [name for name in new if succeeded or (decodes and is_picture(name))]
        unsure = sorted(set(new).difference(wanted)) if complete and decodes else []
        for name in await self._resources.in_thread(lambda: list(filter(self._is_new, unsure))):
            more.refuse(name, f"{name} was not taken: the engine failed, and the file may not be whole.")
        admitted = await self._resources.in_thread(lambda: list(filter(self._admitted, wanted)))
        for bad in await self._check_all(admitted):
            if not bad.missing:  # what was there before is no result
                more.refuse(bad.name, bad.reason)
        for sentence in more.warnings():
            self._warn(sentence)
            self._write_log([f"RenderOnline: warning: {sentence}"])

    def _is_new(self, name: str) -> bool:
        return outputs.stamp_of(self._root / name) != self._before.get(name)

    def _admitted(self, name: str) -> bool:
        stamp = outputs.stamp_of(self._root / name)
        return stamp is None or stamp == self._before.get(name) or self._more.admit(name, stamp[1])

    async def _report_all_files(self) -> list[Bad]:
        work = self._root != Path(self.assign.directory)  # on a disk of this machine
        if work and not os.listdir(self._root):
            return []
        try:
            if work:
                await self._resources.in_thread(self._move_results)
            names = await self._resources.in_thread(outputs.list_files, self._root)
        except (InvalidRequest, OSError) as error:
            return [Bad("", str(error))]
        return [bad for bad in await self._check_all(names) if not bad.missing]  # what was there before is no result

    async def _check_all(self, names: Sequence[str]) -> list[Bad]:
        found: list[Bad | None] = []
        for start in range(0, len(names), CHECKS_AT_ONCE):
            found += await asyncio.gather(*map(self._check, names[start : start + CHECKS_AT_ONCE]))
        return [bad for bad in found if bad is not None]

    async def _check(self, name: str) -> Bad | None:
        """Check one file, and report it if it is good."""
        resources, assign, is_more = self._resources, self.assign, self._more.wants(name)
        decodes = self._expected and self._rules.decode and (not is_more or is_picture(name))
        checkers, rules = resources.checkers if decodes else None, ReadingRules() if is_more else self._rules
        about = (self._root, name, self._before.get(name), checkers, rules)
        async with self._one_picture if checkers is not None else contextlib.nullcontext():
            found = await resources.in_thread(outputs.check_file, *about)
        if isinstance(found, Bad):
            return found
        if found.facts.get("constant") and not is_more:
            self._write_log([f"RenderOnline: warning: {name}: {outputs.ONE_COLOUR}"])
        if self._remote is not None and (wrong := await self._remote.send(found)) is not None:
            if isinstance(wrong, Bad):
                return wrong
            self.end(wrong)
            return Bad(name, wrong.reason)
        if found.previews:
            await resources.send_previews(assign.attempt, assign.token, name, found.previews)
        self._good[name] = replace(found, previews={})
        file, at_us, frame = found.file, time.time_ns() // 1000, self._expected.get(name)
        facts = {**found.facts, "device": self._device[: outputs.MAX_FACT]} if self._device else found.facts
        measured = (name, file.size, file.digest, file.crc32, frame, facts)
        resources.journal.report(Result(0, assign.attempt, assign.token, at_us, *measured))
        return None
