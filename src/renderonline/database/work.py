"""The work of the farm: leases and the ends of attempts. Every write is guarded by attempt id and token (R3 One writer,
R5 Attempts and reports).

Each function is one operation of a group commit: it locks and reads the rows it touches (tasks, then chunks, then
attempts, each in the order of ids), applies the pure rules of `farm`, and writes by key.
"""

import hmac
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, select

from renderonline.database.schema import attempts, chunks, machines, results, tasks
from renderonline.database.submissions import NewTask, Submitted, submit
from renderonline.database.work_loading import AttemptFacts, QueuedChunk, TaskFacts, is_at_once, load_facts
from renderonline.database.work_sheet import (
    MAKE_STALE,
    AttemptRow,
    ChunkRow,
    Moment,
    Sheet,
    TaskRow,
    landed_among,
    landed_frames,
)
from renderonline.farm.frames import FrameRange, covering, cut, parse_frames
from renderonline.farm.settling import Ending, RetryPolicy, Tried, Verdict, settle
from renderonline.farm.tasks import LIVE, AttemptState, ChunkKind, ChunkState, Landing, Outcome

MOST_PIECES: Final = 200
"""A chunk with more gaps than this is rendered again as a whole."""


class LeasedChunk(NamedTuple):
    """A leased chunk. `missing`: the range of it that is still to be rendered; None: all. `pieces`: the chunks that
    wait because this one was cut again (R4.2 Chunk ranges); `film`: it makes a film."""

    frames: FrameRange | None
    missing: FrameRange | None = None
    pieces: tuple[QueuedChunk, ...] = ()
    film: bool = False


@dataclass(slots=True)
class Assigned:
    """The leases that were made, by attempt; a wanted attempt that is missing here can't be leased now."""

    leases: dict[int, LeasedChunk] = field(default_factory=dict)
    tasks: tuple[TaskRow, ...] = ()
    facts: Mapping[int, TaskFacts] = field(default_factory=dict)


def assign(
    connection: Connection, wanted: Sequence[AttemptFacts], moment: Moment, *, facts_of: Collection[int] = ()
) -> Assigned:
    """Lease chunks to machines. `facts_of`: tasks of which the caller needs the facts as well."""
    assigned = Assigned(facts=load_facts(connection, facts_of))
    sheet = Sheet(connection, moment)
    sheet.load_chunks(new.chunk_id for new in wanted)
    for new in wanted:
        chunk = _leasable(sheet, new)
        lease = None if chunk is None else _lease(sheet, chunk, steps=new.steps)
        if chunk is None or lease is None:
            continue
        sheet.move(chunk, ChunkState.ASSIGNED)
        sheet.task(new.task_id).machine_id = new.machine_id
        sheet.lease(new)
        assigned.leases[new.attempt_id] = lease
    assigned.tasks = sheet.flush()
    return assigned


def submit_and_lease(
    connection: Connection, new: NewTask, ahead: Sequence[AttemptFacts], moment: Moment
) -> tuple[Submitted, Assigned]:
    """Submit a task and lease its first chunks in the same transaction; the task of `ahead` is the new one."""
    submitted = submit(connection, new)
    if submitted.repeated or not ahead:
        return submitted, Assigned()
    wanted = [replace(one, task_id=submitted.task_id) for one in ahead]
    return submitted, assign(connection, wanted, moment, facts_of=(submitted.task_id,))


def _leasable(sheet: Sheet, new: AttemptFacts) -> ChunkRow | None:
    task, chunk = sheet.tasks.get(new.task_id), sheet.chunks.get(new.chunk_id)
    if task is None or chunk is None or chunk.state is not ChunkState.WAITING:
        return None
    if task.paused and not is_at_once(chunk.kind, chunk.stage):
        return None
    return chunk if not new.whole or _make_whole(sheet, chunk) else None


def _lease(sheet: Sheet, chunk: ChunkRow, *, steps: bool | None) -> LeasedChunk | None:
    """What is to be rendered of a chunk. None: late results completed it. What a chunk lacks is one range, or it is cut
    again into the fewest ranges of what is missing and of what has landed."""
    if chunk.kind == ChunkKind.FILM:
        sheet.connection.execute(_OLD_FILM, {"key": chunk.task_id})
        return LeasedChunk(None, film=True)
    if chunk.frames is None or chunk.chunk_id not in sheet.begun:
        return LeasedChunk(chunk.frames)
    landed = landed_frames(sheet.connection, chunk.task_id, chunk.frames)
    if not landed:
        return LeasedChunk(chunk.frames)
    stepped = steps or chunk.frames.step > 1
    missing = covering(set(chunk.frames.frames()) - landed, steps=stepped)
    if not missing:
        sheet.move(chunk, ChunkState.SUCCEEDED)
        return None
    if len(missing) == 1:
        return LeasedChunk(chunk.frames, missing[0])
    done = covering(landed, steps=stepped)
    if steps is None or len(missing) + len(done) > MOST_PIECES:
        return LeasedChunk(chunk.frames)
    waiting = sheet.recut(chunk, missing, done)
    return LeasedChunk(chunk.frames, pieces=tuple(QueuedChunk(chunk_id, chunk.place) for chunk_id in waiting))


_FILMS: Final = select(chunks.c.chunk_id).where(
    chunks.c.task_id == bindparam("key"), chunks.c.kind == ChunkKind.FILM.value
)
_OLD_FILM: Final = MAKE_STALE.where(results.c.task_id == bindparam("key"), results.c.chunk_id.in_(_FILMS))


def _make_whole(sheet: Sheet, chunk: ChunkRow) -> bool:
    """Replace all chunks of a task, none of which ever had an attempt, by this one (R4.2 Chunk ranges)."""
    connection, task_id = sheet.connection, chunk.task_id
    frames = connection.scalar(select(tasks.c.frames).where(tasks.c.task_id == task_id))
    ranges = cut(parse_frames(frames), 0) if frames else ()
    tried = select(attempts.c.attempt_id).where(attempts.c.task_id == task_id).limit(1)
    if len(ranges) > 1 or connection.scalar(tried) is not None:
        return False
    others = chunks.delete().where(chunks.c.task_id == task_id, chunks.c.chunk_id != chunk.chunk_id)
    removed = connection.execute(others.where(chunks.c.kind == ChunkKind.RENDER.value)).rowcount
    sheet.reshape(chunk, ranges[0] if ranges else None)
    sheet.task(task_id).add(ChunkState.WAITING, -removed)
    return True


@dataclass(frozen=True, slots=True)
class StartedStep:
    """The engine's process exists. `token` None: RenderAPI itself found out."""

    attempt_id: int
    token: str | None
    at_us: int


@dataclass(frozen=True, slots=True)
class EndedStep:
    """An attempt is over. `token` None: RenderAPI itself decided it. `wanted`: the names that the chunk needs (empty:
    the engine names none); `warnings`: what a person must know of what it made."""

    attempt_id: int
    token: str | None
    ending: Ending
    wanted: Collection[str]
    at_us: int
    peak_memory_mib: int = 0
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WarnedStep:
    """RenderAPI's own warnings about an attempt's results (R16 No false success)."""

    attempt_id: int
    texts: tuple[str, ...]


Step = StartedStep | Landing | EndedStep | WarnedStep
"""What happened to an attempt. A landing: its file lies under its final name (R6 Landing, step 3)."""


class Mark(NamedTuple):
    """The last report of a machine's instance that this transaction applies (R5.2 Outbox)."""

    instance: str
    seq: int


class EndedAttempt(NamedTuple):
    """An attempt that ended, where its chunk stands now, and the verdict."""

    attempt: AttemptRow
    chunk: ChunkRow
    verdict: Verdict


@dataclass(slots=True)
class Applied:
    """What a batch of steps did. `superseded` are live attempts that late results, or the early end of their task,
    left without work: their machines must stop them. `completed` are waiting or failed chunks that late results
    completed. `dropped` steps had no effect."""

    ended: list[EndedAttempt] = field(default_factory=list)
    superseded: list[EndedAttempt] = field(default_factory=list)
    completed: list[ChunkRow] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    landed: set[int] = field(default_factory=set)
    tasks: tuple[TaskRow, ...] = ()
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
_REPLACED: Final = results.delete().where(results.c.result_id == bindparam("key"), results.c.state == "stale")
_ITS_RESULTS: Final = select(results.c.result_id).where(results.c.state == "landed").limit(1)
_LIVE: Final = select(attempts.c.attempt_id).where(attempts.c.state != AttemptState.ENDED.value)
_BEFORE: Final = (
    select(attempts.c.machine_id, attempts.c.outcome, attempts.c.failure)
    .where(attempts.c.chunk_id == bindparam("key"), attempts.c.outcome.is_not(None))
    .order_by(attempts.c.attempt_id.desc())
    .limit(100)
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
    whose token is wrong is dropped and counted (R5.5 Late results).
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
        if isinstance(step, Landing):
            return self._landed(step, attempt)
        if isinstance(step, WarnedStep):
            self._sheet.task(attempt.task_id).warn(step.texts)
            return True
        if not token_fits(step.token, attempt.token):
            return False
        if attempt.state is AttemptState.ENDED:
            return isinstance(step, EndedStep) and self._warned_late(step, attempt)
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
            self._sheet.task(attempt.task_id).machine_id = attempt.machine_id
        return True

    def _warned_late(self, step: EndedStep, attempt: AttemptRow) -> bool:
        """The results of an attempt that was lost may have landed since (R5.5 Late results): what must be known of them
        counts, and nothing else of its end (R16 No false success)."""
        landed = _ITS_RESULTS.where(results.c.task_id == attempt.task_id, results.c.attempt_id == attempt.attempt_id)
        if not step.warnings or self._sheet.connection.scalar(landed) is None:
            return False
        self._sheet.task(attempt.task_id).warn(step.warnings)
        return True

    def _landed(self, landing: Landing, attempt: AttemptRow) -> bool:
        sheet, offer = self._sheet, landing.offer
        row = {"key": landing.result_id, "attempt": offer.attempt_id, "now": sheet.moment.us}
        if not sheet.connection.execute(_LAND, row).rowcount:
            return False
        if landing.stale_id:
            sheet.connection.execute(_REPLACED, {"key": landing.stale_id})
        self.done.landed.add(landing.result_id)
        sheet.task(attempt.task_id).frames_done += int(offer.frame is not None)
        if landing.late and offer.wanted and not self._missing(attempt, offer.wanted):
            self._complete(sheet.chunks[attempt.chunk_id])
        return True

    def _complete(self, chunk: ChunkRow) -> None:
        """Late results completed the chunk: an attempt that has it now is left without work (R5.5 Late results)."""
        sheet = self._sheet
        if chunk.state in LIVE:
            verdict = Verdict(ChunkState.SUCCEEDED, Outcome.CANCELED, reason="late results completed its frames")
            self._supersede(attempts.c.chunk_id == chunk.chunk_id, verdict)
        elif chunk.state in (ChunkState.WAITING, ChunkState.FAILED):
            sheet.move(chunk, ChunkState.SUCCEEDED)
            self.done.completed.append(chunk)

    def _supersede(self, which: Any, verdict: Verdict) -> None:
        """End those of these attempts that live: they are left without work."""
        sheet = self._sheet
        live = sheet.connection.execute(_LIVE.where(which)).scalars().all()
        sheet.load_attempts(live)
        known = [sheet.attempts[key] for key in live if key in sheet.attempts]
        left = [attempt for attempt in known if attempt.state is not AttemptState.ENDED]
        self.done.superseded += [self._end(attempt, verdict, sheet.moment.us) for attempt in left]

    def _ended(self, step: EndedStep, attempt: AttemptRow) -> bool:
        sheet, chunk = self._sheet, self._sheet.chunks[attempt.chunk_id]
        succeeded = step.ending.outcome is Outcome.SUCCEEDED
        tried = () if succeeded else sheet.connection.execute(_BEFORE, {"key": chunk.chunk_id})
        verdict = settle(
            step.ending,
            tries=chunk.tries,
            named=bool(step.wanted),
            missing=self._missing(attempt, step.wanted),
            fraction=random.random(),  # noqa: S311 (jitter)
            policy=self._policy,
            machine_id=attempt.machine_id,
            before=[Tried(machine_id, Outcome(outcome), failure) for machine_id, outcome, failure in tried],
        )
        attempt.exit_code, attempt.peak_memory_mib = step.ending.exit_code, step.peak_memory_mib
        if step.warnings:
            sheet.task(attempt.task_id).warn(step.warnings)
        self.done.ended.append(self._end(attempt, verdict, _past(step.at_us, sheet.moment)))
        if verdict.chunk is ChunkState.SUCCEEDED and not step.wanted and chunk.frames is not None:
            sheet.task(chunk.task_id).frames_done += len(chunk.frames)
        elif verdict.chunk is ChunkState.FAILED:
            self._failed_for_good(chunk, verdict.reason)
        return True

    def _failed_for_good(self, chunk: ChunkRow, reason: str) -> None:
        """A task stops early when enough of its chunks have failed for good (R1.4 Retries)."""
        sheet, task = self._sheet, self._sheet.task(chunk.task_id)
        now = task.counters
        total = sum(getattr(now, state.value) for state in ChunkState)
        if self._policy.stops(now.failed, total) and not now.settled:
            stopped = f"the task stopped early, because {now.failed} of its {total} parts failed"
            verdict = Verdict(ChunkState.CANCELED, Outcome.CANCELED, reason=stopped)
            self._supersede(attempts.c.task_id == task.task_id, verdict)
            sheet.move_all(task.task_id, (ChunkState.WAITING,), ChunkState.CANCELED, reason=stopped)
            reason = f"{reason}. {stopped[0].upper()}{stopped[1:]}"
        if chunk.kind != ChunkKind.FILM or not task.reason:  # the reason why frames are missing says more
            task.reason = reason

    def _end(self, attempt: AttemptRow, verdict: Verdict, at_us: int) -> EndedAttempt:
        sheet, chunk = self._sheet, self._sheet.chunks[attempt.chunk_id]
        attempt.state, attempt.outcome, attempt.ended_us = AttemptState.ENDED, verdict.outcome, at_us
        attempt.failure, attempt.reason = verdict.failure[:40], verdict.reason or None
        sheet.touch(attempt)
        if chunk.state is not verdict.chunk:
            sheet.move(chunk, verdict.chunk)
        chunk.tries += int(verdict.counts)
        chunk.not_before_us = sheet.moment.us + int(verdict.delay_s * 1_000_000) if verdict.delay_s else 0
        chunk.reason = verdict.reason or None
        return EndedAttempt(attempt, chunk, verdict)

    def _missing(self, attempt: AttemptRow, wanted: Collection[str]) -> tuple[str, ...]:
        if not wanted:
            return ()
        landed = landed_among(self._sheet.connection, attempt.task_id, wanted)
        return tuple(name for name in wanted if name not in landed)


def token_fits(given: str | None, stored: str) -> bool:
    """Whether this token opens an attempt; None is RenderAPI itself. In constant time.

    An attempt without a token (an adopted one, R7.6 Adopted tasks) is opened by nobody else (R14 Authority first).
    """
    if given is None:
        return True
    return bool(stored) and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), stored.encode())


def _past(at_us: int, moment: Moment) -> int:
    """A machine's clock may be wrong: nothing happens in the future or before 1970."""
    return at_us if 0 < at_us <= moment.us else moment.us
