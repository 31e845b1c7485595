"""The work of the farm: leases and the ends of attempts. Every write is guarded by attempt id and token (R3, R5).

Each function is one operation of a group commit: it locks and reads the rows it touches (tasks, then chunks, then
attempts, each in the order of ids), applies the pure rules of `farm`, and writes by key.
"""

import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlalchemy import Connection, bindparam, func, select

from renderonline.database.projection import Moment, TaskState
from renderonline.database.schema import attempts, chunks, machines, results, tasks
from renderonline.database.work_loading import TaskFacts, load_facts
from renderonline.database.work_sheet import AttemptRow, ChunkRow, Sheet, landed_among, landed_of_chunk
from renderonline.farm.frames import FrameRange, cut, parse_frames
from renderonline.farm.settling import Ending, RetryPolicy, Verdict, settle
from renderonline.farm.tasks import LIVE, AttemptState, ChunkState, Outcome

# -- leases


@dataclass(frozen=True, slots=True)
class NewAttempt:
    """A lease that the dispatcher wants. `whole`: make the task one chunk first (R7.4)."""

    attempt_id: int
    token: str
    chunk_id: int
    task_id: int
    machine_id: int
    directory: str
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A committed lease: what the chunk is, and which of its files have landed already."""

    attempt_id: int
    chunk_id: int
    frames: FrameRange | None
    place: int
    landed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Assigned:
    """What became of the wanted leases; chunks that can't be leased now are `refused`."""

    leases: tuple[Lease, ...] = ()
    refused: tuple[int, ...] = ()
    tasks: tuple[TaskState, ...] = ()
    facts: Mapping[int, TaskFacts] = field(default_factory=dict)


def assign(
    connection: Connection, wanted: Sequence[NewAttempt], moment: Moment, *, facts_of: Collection[int] = ()
) -> Assigned:
    """Lease chunks to machines. `facts_of`: tasks of which the caller needs the facts as well."""
    sheet = Sheet(connection, moment)
    sheet.load_chunks(new.chunk_id for new in wanted)
    leases: list[Lease] = []
    refused: list[int] = []
    for new in wanted:
        chunk = _leasable(sheet, new)
        if chunk is None:
            refused.append(new.chunk_id)
            continue
        sheet.move(chunk, ChunkState.ASSIGNED)
        sheet.change(new.task_id).machine_id = new.machine_id
        sheet.insert_attempt(new.attempt_id, new.chunk_id, new.task_id, new.machine_id, new.token, new.directory)
        landed = (
            landed_of_chunk(connection, new.task_id, chunk.chunk_id) if chunk.chunk_id in sheet.begun else frozenset()
        )
        leases.append(Lease(new.attempt_id, chunk.chunk_id, chunk.frames, chunk.place, landed))
    changed = sheet.flush()
    return Assigned(tuple(leases), tuple(refused), changed, load_facts(connection, facts_of))


def _leasable(sheet: Sheet, new: NewAttempt) -> ChunkRow | None:
    task, chunk = sheet.tasks.get(new.task_id), sheet.chunks.get(new.chunk_id)
    if task is None or chunk is None or task.canceled or task.paused or chunk.state is not ChunkState.WAITING:
        return None
    if new.whole and not _make_whole(sheet, chunk):
        return None
    return chunk


_ATTEMPTS_OF_TASK: Final = select(func.count()).select_from(attempts).where(attempts.c.task_id == bindparam("task_id"))
_CHUNKS_OF_TASK: Final = select(func.count()).select_from(chunks).where(chunks.c.task_id == bindparam("task_id"))
_OTHER_CHUNKS: Final = chunks.delete().where(
    chunks.c.task_id == bindparam("key"), chunks.c.chunk_id != bindparam("kept")
)
_FRAMES: Final = select(tasks.c.frames).where(tasks.c.task_id == bindparam("task_id"))


def _make_whole(sheet: Sheet, chunk: ChunkRow) -> bool:
    """Replace all chunks of a task, none of which ever had an attempt, by this one (R4)."""
    connection, key = sheet.connection, {"task_id": chunk.task_id}
    if connection.execute(_ATTEMPTS_OF_TASK, key).scalar_one():
        return False
    frames = connection.execute(_FRAMES, key).scalar_one() or ""
    ranges = cut(parse_frames(frames), 0) if frames else ()
    if len(ranges) > 1:
        return False
    others = connection.execute(_CHUNKS_OF_TASK, key).scalar_one() - 1
    connection.execute(_OTHER_CHUNKS, {"key": chunk.task_id, "kept": chunk.chunk_id})
    sheet.reshape(chunk, ranges[0] if ranges else None)
    deltas = sheet.change(chunk.task_id).deltas
    deltas[ChunkState.WAITING] = deltas.get(ChunkState.WAITING, 0) - others
    return True


# -- what attempts report


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
    wanted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class EndedStep:
    """An attempt is over. `token` None: RenderAPI itself decided it. `wanted`: the names that the chunk needs (empty:
    the engine names none); `fraction`: a random number for the backoff."""

    attempt_id: int
    token: str | None
    ending: Ending
    wanted: tuple[str, ...]
    fraction: float
    at_us: int
    peak_memory_mib: int = 0


Step = StartedStep | LandedStep | EndedStep


@dataclass(frozen=True, slots=True)
class Mark:
    """The last report of a machine's instance that this transaction applies (R5.2)."""

    machine_id: int
    instance: str
    seq: int


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that ended, and where its chunk stands now."""

    attempt_id: int
    chunk_id: int
    task_id: int
    machine_id: int
    outcome: Outcome
    chunk: ChunkState
    place: int
    not_before_us: int
    failure: str
    reason: str
    directory: str
    given_back: bool = False


@dataclass(frozen=True, slots=True)
class Applied:
    """What a batch of steps did. `superseded` are live attempts that late results left without work: their machines
    are to be told. `completed` are waiting or failed chunks (task, chunk) that late
    results completed."""

    ended: tuple[Ended, ...] = ()
    superseded: tuple[Ended, ...] = ()
    completed: tuple[tuple[int, int], ...] = ()
    started: tuple[int, ...] = ()
    landed: frozenset[int] = frozenset()
    tasks: tuple[TaskState, ...] = ()
    dropped: int = 0


def apply_steps(
    connection: Connection,
    steps: Sequence[Step],
    moment: Moment,
    *,
    machine_id: int | None = None,
    mark: Mark | None = None,
    policy: RetryPolicy | None = None,
) -> Applied:
    """Apply what attempts reported, in order, and note how far the machine's reports were applied.

    `machine_id`: the machine that reports; attempts of others are not touched. A step whose attempt is not live or
    whose token is wrong is dropped and counted (R5.5).
    """
    sheet = Sheet(connection, moment)
    sheet.load_attempts(step.attempt_id for step in steps)
    applier = _Applier(sheet, policy or RetryPolicy(), machine_id)
    for step in steps:
        applier.apply(step)
    changed = sheet.flush()
    if mark is not None:
        connection.execute(_MARK, {"key": mark.machine_id, "its": mark.instance, "seq": mark.seq})
    return Applied(
        tuple(applier.ended),
        tuple(applier.superseded),
        tuple(applier.completed),
        tuple(applier.started),
        frozenset(applier.landed),
        changed,
        applier.dropped,
    )


_MARK: Final = (
    machines.update()
    .where(
        machines.c.machine_id == bindparam("key"),
        machines.c.instance == bindparam("its"),
        machines.c.last_seq < bindparam("seq"),
    )
    .values(last_seq=bindparam("seq"))
)
_LAND: Final = (
    results.update()
    .where(
        results.c.result_id == bindparam("key"),
        results.c.attempt_id == bindparam("attempt"),
        results.c.state == "landing",
    )
    .values(state="landed", landed_us=bindparam("now"))
)
_LIVE_OF_CHUNK: Final = (
    select(attempts.c.attempt_id)
    .where(attempts.c.chunk_id == bindparam("chunk_id"), attempts.c.state != AttemptState.ENDED.value)
    .order_by(attempts.c.attempt_id)
)


class _Applier:
    """Applies steps to a sheet, one after the other."""

    def __init__(self, sheet: Sheet, policy: RetryPolicy, machine_id: int | None) -> None:
        self._sheet = sheet
        self._policy = policy
        self._machine_id = machine_id
        self.ended: list[Ended] = []
        self.superseded: list[Ended] = []
        self.completed: list[tuple[int, int]] = []
        self.started: list[int] = []
        self.landed: list[int] = []
        self.dropped = 0

    def apply(self, step: Step) -> None:
        attempt = self._sheet.attempts.get(step.attempt_id)
        if attempt is None or self._machine_id not in (None, attempt.machine_id):
            self.dropped += 1
        elif isinstance(step, LandedStep):
            self._landed(step, attempt)
        elif attempt.state is AttemptState.ENDED or not token_fits(step.token, attempt.token):
            self.dropped += 1
        elif isinstance(step, StartedStep):
            self._started(step, attempt)
        else:
            self._ended(step, attempt)

    def _started(self, step: StartedStep, attempt: AttemptRow) -> None:
        if attempt.state is not AttemptState.ASSIGNED:
            self.dropped += 1
            return
        self.started.append(attempt.attempt_id)
        attempt.state = AttemptState.RUNNING
        attempt.started_us = _past(step.at_us, self._sheet.moment)
        self._sheet.touch(attempt)
        chunk = self._sheet.chunks[attempt.chunk_id]
        if chunk.state is ChunkState.ASSIGNED:
            self._sheet.move(chunk, ChunkState.RUNNING)
            self._sheet.change(attempt.task_id).machine_id = attempt.machine_id

    def _landed(self, step: LandedStep, attempt: AttemptRow) -> None:
        sheet = self._sheet
        parameters = {"key": step.result_id, "attempt": step.attempt_id, "now": sheet.moment.us}
        if not sheet.connection.execute(_LAND, parameters).rowcount:
            self.dropped += 1
            return
        self.landed.append(step.result_id)
        sheet.change(attempt.task_id).frames_done += int(step.counts)
        if attempt.state is AttemptState.ENDED and step.wanted and not self._missing(attempt, step.wanted):
            self._complete(sheet.chunks[attempt.chunk_id])

    def _complete(self, chunk: ChunkRow) -> None:
        """Late results gave the chunk all it needs: whoever has it now is left without work (R5.5)."""
        if chunk.state in (ChunkState.SUCCEEDED, ChunkState.CANCELED):
            return
        if chunk.state not in LIVE:
            self._sheet.move(chunk, ChunkState.SUCCEEDED)
            self.completed.append((chunk.task_id, chunk.chunk_id))
            return
        sheet = self._sheet
        live = sheet.connection.execute(_LIVE_OF_CHUNK, {"chunk_id": chunk.chunk_id}).scalars().all()
        sheet.load_attempts(live)
        verdict = Verdict(ChunkState.SUCCEEDED, Outcome.CANCELED, reason="late results completed its frames")
        for attempt_id in live:
            self.superseded.append(self._end(sheet.attempts[attempt_id], chunk, verdict, sheet.moment.us))

    def _ended(self, step: EndedStep, attempt: AttemptRow) -> None:
        chunk = self._sheet.chunks[attempt.chunk_id]
        verdict = settle(
            step.ending,
            tries=chunk.tries,
            named=bool(step.wanted),
            missing=self._missing(attempt, step.wanted),
            fraction=step.fraction,
            policy=self._policy,
        )
        sheet = self._sheet
        attempt.exit_code, attempt.peak_memory_mib = step.ending.exit_code, step.peak_memory_mib
        ended = self._end(attempt, chunk, verdict, _past(step.at_us, sheet.moment), given_back=step.ending.given_back)
        self.ended.append(ended)
        if verdict.chunk is ChunkState.SUCCEEDED and not step.wanted and chunk.frames is not None:
            sheet.change(chunk.task_id).frames_done += len(chunk.frames)
        if verdict.chunk is ChunkState.FAILED:
            sheet.change(chunk.task_id).reason = verdict.reason

    def _end(
        self, attempt: AttemptRow, chunk: ChunkRow, verdict: Verdict, at_us: int, *, given_back: bool = False
    ) -> Ended:
        sheet = self._sheet
        attempt.state, attempt.outcome, attempt.ended_us = AttemptState.ENDED, verdict.outcome, at_us
        attempt.failure, attempt.reason = verdict.failure, verdict.reason or None
        sheet.touch(attempt)
        if chunk.state is not verdict.chunk:
            sheet.move(chunk, verdict.chunk)
        chunk.tries += int(verdict.counts)
        chunk.not_before_us = sheet.moment.us + int(verdict.delay_s * 1_000_000) if verdict.delay_s else 0
        chunk.reason = verdict.reason or None
        return Ended(
            attempt.attempt_id,
            chunk.chunk_id,
            chunk.task_id,
            attempt.machine_id,
            verdict.outcome,
            verdict.chunk,
            chunk.place,
            chunk.not_before_us,
            verdict.failure,
            verdict.reason,
            attempt.directory,
            given_back,
        )

    def _missing(self, attempt: AttemptRow, wanted: Sequence[str]) -> tuple[str, ...]:
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
