"""The work of the farm: leases and the ends of attempts. Every write is guarded by attempt id and token (R3, R5).

Each function is one operation of a group commit: it locks and reads the rows it touches (tasks, then chunks, then
attempts, each in the order of ids), applies the pure rules of `farm`, and writes by key.
"""

import hmac
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, select

from renderonline.database.projection import Moment, TaskState
from renderonline.database.schema import attempts, chunks, machines, results, tasks
from renderonline.database.submissions import NewTask, Submitted, submit
from renderonline.database.work_loading import Attempt, TaskFacts, load_facts
from renderonline.database.work_sheet import AttemptRow, ChunkRow, Sheet, landed_among, landed_of_chunk
from renderonline.farm.frames import FrameRange, cut, parse_frames
from renderonline.farm.settling import Ending, RetryPolicy, Verdict, settle
from renderonline.farm.tasks import LIVE, AttemptState, ChunkState, Outcome


class Lease(NamedTuple):
    """What a leased chunk is, and which of its files have landed already."""

    frames: FrameRange | None
    landed: frozenset[str]


@dataclass(slots=True)
class Assigned:
    """What became of the wanted leases, by attempt; those that are not there can't be leased now."""

    leases: dict[int, Lease] = field(default_factory=dict)
    tasks: tuple[TaskState, ...] = ()
    facts: Mapping[int, TaskFacts] = field(default_factory=dict)


def assign(
    connection: Connection, wanted: Sequence[Attempt], moment: Moment, *, facts_of: Collection[int] = ()
) -> Assigned:
    """Lease chunks to machines. `facts_of`: tasks of which the caller needs the facts as well."""
    assigned = Assigned(facts=load_facts(connection, facts_of))
    sheet = Sheet(connection, moment)
    sheet.load_chunks(new.chunk_id for new in wanted)
    for new in wanted:
        chunk = _leasable(sheet, new)
        if chunk is None:
            continue
        sheet.move(chunk, ChunkState.ASSIGNED)
        sheet.change(new.task_id).values["machine_id"] = new.machine_id
        sheet.lease(new)
        tried = chunk.chunk_id in sheet.begun
        landed = landed_of_chunk(connection, new.task_id, chunk.chunk_id) if tried else frozenset()
        assigned.leases[new.attempt_id] = Lease(chunk.frames, landed)
    assigned.tasks = sheet.flush()
    return assigned


def submit_and_lease(
    connection: Connection, new: NewTask, ahead: Sequence[Attempt], moment: Moment
) -> tuple[Submitted, Assigned]:
    """Submit a task and lease its first chunks in the same transaction; the task of `ahead` is the new one."""
    submitted = submit(connection, new)
    if submitted.repeated or not ahead:
        return submitted, Assigned()
    return submitted, assign(connection, [replace(one, task_id=submitted.task_id) for one in ahead], moment)


def _leasable(sheet: Sheet, new: Attempt) -> ChunkRow | None:
    task, chunk = sheet.tasks.get(new.task_id), sheet.chunks.get(new.chunk_id)
    if task is None or chunk is None or task.canceled or task.paused or chunk.state is not ChunkState.WAITING:
        return None
    return chunk if not new.whole or _make_whole(sheet, chunk) else None


_OF_TASK: Final[Any] = bindparam("task_id")
_ATTEMPTS_OF_TASK: Final = select(func.count()).select_from(attempts).where(attempts.c.task_id == _OF_TASK)
_CHUNKS_OF_TASK: Final = select(func.count()).select_from(chunks).where(chunks.c.task_id == _OF_TASK)
_OTHERS: Final = chunks.delete().where(chunks.c.task_id == bindparam("key"), chunks.c.chunk_id != bindparam("kept"))
_FRAMES: Final = select(tasks.c.frames).where(tasks.c.task_id == _OF_TASK)


def _make_whole(sheet: Sheet, chunk: ChunkRow) -> bool:
    """Replace all chunks of a task, none of which ever had an attempt, by this one (R4)."""
    connection, key = sheet.connection, {"task_id": chunk.task_id}
    frames = connection.scalar(_FRAMES, key)
    ranges = cut(parse_frames(frames), 0) if frames else ()
    if len(ranges) > 1 or connection.scalar(_ATTEMPTS_OF_TASK, key):
        return False
    others = connection.execute(_CHUNKS_OF_TASK, key).scalar_one() - 1
    connection.execute(_OTHERS, {"key": chunk.task_id, "kept": chunk.chunk_id})
    sheet.reshape(chunk, ranges[0] if ranges else None)
    sheet.change(chunk.task_id).add(ChunkState.WAITING, -others)
    return True


@dataclass(frozen=True, slots=True)
class StartedStep:
    """The engine's process exists."""

    attempt_id: int
    token: str
    at_us: int


@dataclass(frozen=True, slots=True)
class LandedStep:
    """A file lies under its final name (R6 c). `counts`: it is one of the task's frames. `wanted`: the names that the
    attempt's chunk needs, to see whether a late result completes it (R5.5)."""

    attempt_id: int
    result_id: int
    counts: bool
    wanted: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class EndedStep:
    """An attempt is over. `token` None: RenderAPI itself decided it. `wanted`: the names that the chunk needs (empty:
    the engine names none)."""

    attempt_id: int
    token: str | None
    ending: Ending
    wanted: Collection[str]
    at_us: int
    peak_memory_mib: int = 0


Step = StartedStep | LandedStep | EndedStep


class Mark(NamedTuple):
    """The last report of a machine's instance that this transaction applies (R5.2)."""

    instance: str
    seq: int


class Ended(NamedTuple):
    """An attempt that ended, and where its chunk stands now."""

    attempt: AttemptRow
    chunk: ChunkRow


@dataclass(slots=True)
class Applied:
    """What a batch of steps did. `superseded` are live attempts that late results left without work: their machines
    are to be told. `completed` are waiting or failed chunks that late results completed. `dropped` steps had no
    effect."""

    ended: list[Ended] = field(default_factory=list)
    superseded: list[Ended] = field(default_factory=list)
    completed: list[ChunkRow] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    landed: set[int] = field(default_factory=set)
    tasks: tuple[TaskState, ...] = ()
    dropped: int = 0


_MARK: Final = (
    machines.update()
    .where(machines.c.machine_id == bindparam("key"), machines.c.instance == bindparam("its"))
    .where(machines.c.last_seq < bindparam("seq"))
    .values(last_seq=bindparam("seq"))
)
_LAND: Final = (
    results.update()
    .where(results.c.result_id == bindparam("key"), results.c.attempt_id == bindparam("attempt"))
    .where(results.c.state == "landing")
    .values(state="landed", landed_us=bindparam("now"))
)
_LIVE_OF_CHUNK: Final = (
    select(attempts.c.attempt_id)
    .where(attempts.c.chunk_id == bindparam("chunk_id"), attempts.c.state != AttemptState.ENDED.value)
    .order_by(attempts.c.attempt_id)
)


def apply_steps(
    connection: Connection,
    steps: Sequence[Step],
    moment: Moment,
    policy: RetryPolicy,
    *,
    machine_id: int | None = None,
    mark: Mark | None = None,
) -> Applied:
    """Apply what attempts reported, in order, and note how far the machine's reports were applied.

    `machine_id`: the machine that reports; attempts of others are not touched. A step whose attempt is not live or
    whose token is wrong is dropped and counted (R5.5).
    """
    sheet = Sheet(connection, moment)
    sheet.load_attempts(step.attempt_id for step in steps)
    applier = _Applier(sheet, policy)
    for step in steps:
        attempt = sheet.attempts.get(step.attempt_id)
        if attempt is None or machine_id not in (None, attempt.machine_id) or not applier.apply(step, attempt):
            applier.done.dropped += 1
    applier.done.tasks = sheet.flush()
    if mark is not None:
        connection.execute(_MARK, {"key": machine_id, "its": mark.instance, "seq": mark.seq})
    return applier.done


class _Applier:
    """Applies steps to a sheet, one after the other. Each method says whether the step had an effect."""

    def __init__(self, sheet: Sheet, policy: RetryPolicy) -> None:
        self._sheet = sheet
        self._policy = policy
        self.done = Applied()

    def apply(self, step: Step, attempt: AttemptRow) -> bool:
        if isinstance(step, LandedStep):
            return self._landed(step, attempt)
        if attempt.state is AttemptState.ENDED or not token_fits(step.token, attempt.token):
            return False
        return self._started(step, attempt) if isinstance(step, StartedStep) else self._ended(step, attempt)

    def _started(self, step: StartedStep, attempt: AttemptRow) -> bool:
        if attempt.state is not AttemptState.ASSIGNED:
            return False
        self.done.started.append(attempt.attempt_id)
        attempt.state = AttemptState.RUNNING
        attempt.started_us = _past(step.at_us, self._sheet.moment)
        self._sheet.touch(attempt)
        chunk = self._sheet.chunks[attempt.chunk_id]
        if chunk.state is ChunkState.ASSIGNED:
            self._sheet.move(chunk, ChunkState.RUNNING)
            self._sheet.change(attempt.task_id).values["machine_id"] = attempt.machine_id
        return True

    def _landed(self, step: LandedStep, attempt: AttemptRow) -> bool:
        sheet = self._sheet
        parameters = {"key": step.result_id, "attempt": step.attempt_id, "now": sheet.moment.us}
        if not sheet.connection.execute(_LAND, parameters).rowcount:
            return False
        self.done.landed.add(step.result_id)
        sheet.change(attempt.task_id).frames_done += int(step.counts)
        if attempt.state is AttemptState.ENDED and step.wanted and not self._missing(attempt, step.wanted):
            self._complete(sheet.chunks[attempt.chunk_id])
        return True

    def _complete(self, chunk: ChunkRow) -> None:
        """Late results gave the chunk all it needs: whoever has it now is left without work (R5.5)."""
        sheet = self._sheet
        if chunk.state in LIVE:
            live = sheet.connection.execute(_LIVE_OF_CHUNK, {"chunk_id": chunk.chunk_id}).scalars().all()
            sheet.load_attempts(live)
            verdict = Verdict(ChunkState.SUCCEEDED, Outcome.CANCELED, reason="late results completed its frames")
            for attempt_id in live:
                self.done.superseded.append(self._end(sheet.attempts[attempt_id], verdict, sheet.moment.us))
        elif chunk.state in (ChunkState.WAITING, ChunkState.FAILED):
            sheet.move(chunk, ChunkState.SUCCEEDED)
            self.done.completed.append(chunk)

    def _ended(self, step: EndedStep, attempt: AttemptRow) -> bool:
        sheet, chunk = self._sheet, self._sheet.chunks[attempt.chunk_id]
        verdict = settle(
            step.ending,
            tries=chunk.tries,
            named=bool(step.wanted),
            missing=self._missing(attempt, step.wanted),
            fraction=random.random(),  # noqa: S311 (jitter)
            policy=self._policy,
        )
        attempt.exit_code, attempt.peak_memory_mib = step.ending.exit_code, step.peak_memory_mib
        self.done.ended.append(self._end(attempt, verdict, _past(step.at_us, sheet.moment)))
        if verdict.chunk is ChunkState.SUCCEEDED and not step.wanted and chunk.frames is not None:
            sheet.change(chunk.task_id).frames_done += len(chunk.frames)
        if verdict.chunk is ChunkState.FAILED:
            sheet.change(chunk.task_id).values["reason"] = verdict.reason
        return True

    def _end(self, attempt: AttemptRow, verdict: Verdict, at_us: int) -> Ended:
        sheet, chunk = self._sheet, self._sheet.chunks[attempt.chunk_id]
        attempt.state, attempt.outcome, attempt.ended_us = AttemptState.ENDED, verdict.outcome, at_us
        attempt.failure, attempt.reason = verdict.failure[:40], verdict.reason or None
        sheet.touch(attempt)
        if chunk.state is not verdict.chunk:
            sheet.move(chunk, verdict.chunk)
        chunk.tries += int(verdict.counts)
        chunk.not_before_us = sheet.moment.us + int(verdict.delay_s * 1_000_000) if verdict.delay_s else 0
        chunk.reason = verdict.reason or None
        return Ended(attempt, chunk)

    def _missing(self, attempt: AttemptRow, wanted: Collection[str]) -> tuple[str, ...]:
        if not wanted:
            return ()
        landed = landed_among(self._sheet.connection, attempt.task_id, wanted)
        return tuple(name for name in wanted if name not in landed)


def token_fits(given: str | None, stored: str) -> bool:
    """Whether a report may speak for an attempt; None is RenderAPI itself. In constant time."""
    return given is None or hmac.compare_digest(given.encode("utf-8", "surrogatepass"), stored.encode())


def _past(at_us: int, moment: Moment) -> int:
    """A machine's clock may be wrong: nothing happens in the future or before 1970."""
    return at_us if 0 < at_us <= moment.us else moment.us
