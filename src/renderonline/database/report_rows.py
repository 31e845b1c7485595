"""What machines report: results that land (R6 Landing), and the starts and ends of attempts (R5 Attempts and reports).

A result is unique by (task, output name): the attempt that inserts the row first wins. Its row is `landing` while its
file is on its way to its final name, then `landed`. A result that is to be made again is `stale`: its file keeps the
name, and is shown, until the next result of that name has taken its place.
"""

import hmac
import random
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, and_, bindparam, func, literal_column, select

from renderonline.database.schema import attempts, chunks, from_row, insert, machines, renders, results, tasks, update
from renderonline.database.statements import Statement
from renderonline.database.task_rows import (
    STALE_HASH,
    AttemptRow,
    ChunkRow,
    Moment,
    Sheet,
    TaskRow,
    keep_bytes,
    landed_among,
    result_keys,
)
from renderonline.farm.settling import Ending, RetryPolicy, Tried, Verdict, settle
from renderonline.farm.tasks import LIVE, SETTLED, AttemptState, ChunkKind, ChunkState, Landing, Offer, Outcome


class InPlace(NamedTuple):
    """A file as it lies in a `folder` of a task's directory ("": in the directory itself): its name there, and its
    digest, BLAKE2b-256 in hex."""

    name: str
    folder: str
    size: int
    digest: str
    crc32: int


ATTEMPTS: Final = (
    select(attempts, tasks.c.user_id, tasks.c.results_in, renders.c.file_path, renders.c.file_name, chunks.c.kind)
    .add_columns(and_(tasks.c.canceled != 0, chunks.c.state.in_(SETTLED)).label("canceled"))
    .join(chunks, chunks.c.chunk_id == attempts.c.chunk_id)
    .join(tasks, tasks.c.task_id == attempts.c.task_id)
    .join(renders, renders.c.render_id == tasks.c.render_id)
)
"""Attempts with columns of their tasks. `canceled`: the task was canceled, and this chunk was not requeued since."""
_OFFERING: Final = ATTEMPTS.where(attempts.c.attempt_id.in_(bindparam("ids", expanding=True)))
_KNOWN: Final = (
    select(*(results.c[name] for name in ("name_hash", "result_id", "attempt_id", "state", "digest", "size")))
    .where(results.c.task_id == bindparam("task_id"), results.c.name_hash.in_(bindparam("hashes", expanding=True)))
    .with_for_update()
)
_NAMED: Final = select(results.c.chunk_id, results.c.digest).where(
    results.c.task_id == bindparam("task_id"), results.c.name_hash == bindparam("hash")
)
_REPLACED_ROW: Final = results.alias("replaced")
_OPEN: Final = (
    select(results, attempts.c.directory, attempts.c.machine_id, tasks.c.user_id, renders.c.file_path)
    .add_columns(
        renders.c.file_name, _REPLACED_ROW.c.result_id.label("stale_id"), _REPLACED_ROW.c.digest.label("stale_digest")
    )
    .outerjoin(attempts, attempts.c.attempt_id == results.c.attempt_id)
    .outerjoin(tasks, tasks.c.task_id == results.c.task_id)
    .outerjoin(renders, renders.c.render_id == tasks.c.render_id)
    .outerjoin(
        _REPLACED_ROW, and_(_REPLACED_ROW.c.task_id == results.c.task_id, _REPLACED_ROW.c.name_hash == STALE_HASH)
    )
    .where(results.c.state == literal_column("'landing'"))  # as its index says it
    .order_by(results.c.result_id)
)
_STORED: Final = ("attempt_id", "name", "frame", "of_frame", "size", "digest", "crc32", "facts")


def begin_landing(connection: Connection, offers: Sequence[Offer], machine_id: int) -> tuple[Landing, ...]:
    """Insert the rows of a machine's offers, in order; returns the offers that are to be landed. Refused are offers of
    attempts that are another machine's or over, with a wrong token, of canceled or deleted tasks (R5.5 Late results),
    that have landed before, or whose name another attempt took first."""
    found = _attempts_of(connection, offers).items()
    rows = {key: row for key, row in found if row.machine_id == machine_id and not row.canceled}
    more: dict[int, int] = defaultdict(int)
    begun = [_begin(connection, offer, rows[offer.attempt_id], more) for offer in offers if offer.attempt_id in rows]
    keep_bytes(connection, more)
    return tuple(landing for landing in begun if landing is not None)


def differing(connection: Connection, offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """The offers under whose name another chunk of their task has landed, or is landing, other bytes."""
    rows = _attempts_of(connection, offers)
    return tuple(offer for offer in offers if _differs(connection, offer, rows.get(offer.attempt_id)))


def _differs(connection: Connection, offer: Offer, row: Any) -> bool:
    if row is None:
        return False
    known = connection.execute(_NAMED, {"task_id": row.task_id, "hash": result_keys(offer.name)[0]}).first()
    return known is not None and known.chunk_id != row.chunk_id and known.digest != offer.digest


def _attempts_of(connection: Connection, offers: Sequence[Offer]) -> dict[int, Any]:
    found = connection.execute(_OFFERING, {"ids": [offer.attempt_id for offer in offers]})
    return {row.attempt_id: row for row in found}


def _begin(connection: Connection, offer: Offer, row: Any, more: dict[int, int]) -> Landing | None:
    late = row.state == AttemptState.ENDED.value
    if not token_fits(offer.token, row.token) or (late and row.outcome != Outcome.LOST.value):
        return None
    key, stale_key = result_keys(offer.name)
    found = connection.execute(_KNOWN, {"task_id": row.task_id, "hashes": (key, stale_key)})
    rows = {result.name_hash: result for result in found}
    known, old = rows.get(key), rows.get(stale_key)
    if known is not None and (known.attempt_id != offer.attempt_id or known.state == "landed"):
        return None
    if late and old is not None:  # perhaps it was made before the frame was requeued
        return None
    values = {name: getattr(offer, name) for name in _STORED}
    more[row.user_id] += offer.size - (known.size if known is not None else 0)
    if known is not None:
        result_id = known.result_id
        update(connection, results, result_id, values)
    else:
        values |= {"task_id": row.task_id, "name_hash": key, "chunk_id": row.chunk_id, "state": "landing"}
        result_id = insert(connection, results, {**values, "folder": row.results_in})
    stale = (old.result_id, old.digest) if old else (0, "")
    return _landing(row, result_id, offer, folder=row.results_in, stale=stale, late=late)


def _landing(
    row: Any, result_id: int, offer: Offer, *, folder: str, stale: tuple[int | None, str | None], late: bool = False
) -> Landing:
    """A landing with columns of its attempt and task, which are null when these are gone."""
    return Landing(
        result_id,
        offer,
        task_id=row.task_id,
        user_id=row.user_id or 0,
        machine_id=row.machine_id or 0,
        source=row.directory or "",
        scene=row.file_path or "",
        file_name=row.file_name or "",
        folder=folder,
        late=late,
        stale_id=stale[0] or 0,
        stale_digest=stale[1] or "",
    )


_FIRST: Final = (
    select(chunks.c.chunk_id, tasks.c.user_id)
    .join(tasks, tasks.c.task_id == chunks.c.task_id)
    .where(chunks.c.task_id == bindparam("task_id"))
    .order_by(chunks.c.chunk_id)
    .limit(1)
)


def take_in_place(connection: Connection, task_id: int, files: Sequence[InPlace], now_us: int) -> None:
    """Make the files that lie in a task's directory its results. A result of a file's name gets that file's digest; a
    file without a result gets one of the task's first chunk and no attempt (id 0). Results that are landing stay."""
    first = connection.execute(_FIRST, {"task_id": task_id}).first()
    if first is None:  # the task is gone
        return
    more = 0
    for file in files:
        key, stale_key = result_keys(file.name)
        rows = connection.execute(_KNOWN, {"task_id": task_id, "hashes": (key, stale_key)}).all()
        values = file._asdict()
        for row in rows:
            if row.state != "landing":
                more += file.size - row.size
                update(connection, results, row.result_id, values)
        if not rows:
            about = {"task_id": task_id, "chunk_id": first.chunk_id, "attempt_id": 0, "name_hash": key}
            insert(connection, results, {**about, **values, "state": "landed", "landed_us": now_us})
            more += file.size
    keep_bytes(connection, {first.user_id: more})


def drop_landing(connection: Connection, result_ids: Sequence[int]) -> None:
    """Delete rows whose file steps failed: their names are free again."""
    ours = results.c.result_id.in_(result_ids) & (results.c.state == "landing")
    sizes = select(tasks.c.user_id, func.sum(results.c.size)).join(tasks, tasks.c.task_id == results.c.task_id)
    found = connection.execute(sizes.where(ours).group_by(tasks.c.user_id)).all()
    keep_bytes(connection, {user_id: -int(size) for user_id, size in found})
    connection.execute(results.delete().where(ours))


def open_landings(connection: Connection) -> tuple[Landing, ...]:
    """Every row `landing` that a stop of RenderAPI left behind, to be settled at start."""
    return tuple(
        _landing(
            row,
            row.result_id,
            from_row(Offer, row, token=None, facts="{}", more=False, wanted=()),
            folder=row.folder,
            stale=(row.stale_id, row.stale_digest),
        )
        for row in connection.execute(_OPEN)
    )


@dataclass(frozen=True, slots=True)
class StartedStep:
    """The engine's process has started. `token` None: RenderAPI itself reports it."""

    attempt_id: int
    token: str | None
    at_us: int


@dataclass(frozen=True, slots=True)
class EndedStep:
    """An attempt is over. `token` None: RenderAPI itself reports it. `wanted`: the names that the chunk needs (empty:
    the engine names none); `warnings`: about its results; `unbegun`: it ends only if its process has not started."""

    attempt_id: int
    token: str | None
    ending: Ending
    wanted: Collection[str]
    at_us: int
    peak_memory_mib: int = 0
    warnings: tuple[str, ...] = ()
    unbegun: bool = False


@dataclass(frozen=True, slots=True)
class WarnedStep:
    """RenderAPI's own warnings about an attempt's results (R16 No false success)."""

    attempt_id: int
    texts: tuple[str, ...]


Step = StartedStep | Landing | EndedStep | WarnedStep


class Mark(NamedTuple):
    """The number of the last report of a machine's instance that this transaction applies (R5.2 Outbox)."""

    instance: str
    seq: int


class Reported(NamedTuple):
    """What one machine reports, in order, and the number of its last report. `machine_id` None: RenderAPI itself
    reports, of attempts of any machine."""

    steps: Sequence[Step]
    machine_id: int | None = None
    mark: Mark | None = None


class EndedAttempt(NamedTuple):
    """An attempt that ended, its chunk after that, and the verdict."""

    attempt: AttemptRow
    chunk: ChunkRow
    verdict: Verdict


@dataclass(slots=True)
class Applied:
    """The effects of a batch of steps. `superseded`: live attempts that are not needed any more, because of late
    results or the early end of their task; their machines must stop them. `completed`: waiting or failed chunks that
    late results completed. `dropped`: how many steps had no effect."""

    ended: list[EndedAttempt] = field(default_factory=list)
    superseded: list[EndedAttempt] = field(default_factory=list)
    completed: list[ChunkRow] = field(default_factory=list)
    started: list[int] = field(default_factory=list)
    landed: set[int] = field(default_factory=set)
    tasks: tuple[TaskRow, ...] = ()
    dropped: int = 0


_MARK: Final = Statement(
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
_OLD: Final = (results.c.result_id == bindparam("key"), results.c.state == "stale")
_REPLACED: Final = results.delete().where(*_OLD)
_REPLACED_SIZE: Final = select(results.c.size).where(*_OLD)
_ITS_RESULTS: Final = select(results.c.result_id).where(results.c.state == "landed").limit(1)
_LIVE: Final = select(attempts.c.attempt_id).where(attempts.c.state != AttemptState.ENDED.value)
_BEFORE: Final = (
    select(attempts.c.machine_id, attempts.c.outcome, attempts.c.failure)
    .where(attempts.c.chunk_id == bindparam("key"), attempts.c.outcome.is_not(None))
    .order_by(attempts.c.attempt_id.desc())
    .limit(100)
)


def apply_steps(connection: Connection, reported: Sequence[Reported], moment: Moment, policy: RetryPolicy) -> Applied:
    """Apply what machines report, and store the numbers of their last applied reports.

    Attempts of other machines than the one that reports are not touched. A step whose attempt is not live or whose
    token is wrong is dropped and counted (R5.5 Late results).
    """
    sheet = Sheet(connection, moment)
    sheet.load_attempts(step.attempt_id for one in reported for step in one.steps)
    applier = _Applier(sheet, policy)
    for steps, machine_id, _ in reported:
        for step in steps:
            attempt = sheet.attempts.get(step.attempt_id)
            if attempt is None or machine_id not in (None, attempt.machine_id) or not applier.apply(step, attempt):
                applier.done.dropped += 1
    applier.done.tasks = sheet.flush()
    marks = {one.machine_id: one.mark for one in reported if one.machine_id is not None and one.mark is not None}
    rows = [{"key": key, "its": mark.instance, "seq": mark.seq} for key, mark in sorted(marks.items())]
    _MARK.run(connection, rows)
    return applier.done


class _Applier:
    """Applies steps to a sheet. Each method returns whether the step had an effect."""

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
        """The results of a lost attempt may have landed since (R5.5 Late results): of its end only the warnings about
        them count (R16 No false success)."""
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
        task = sheet.task(attempt.task_id)
        if landing.stale_id:
            sheet.kept[task.user_id] -= sheet.connection.scalar(_REPLACED_SIZE, {"key": landing.stale_id}) or 0
            sheet.connection.execute(_REPLACED, {"key": landing.stale_id})
        self.done.landed.add(landing.result_id)
        task.frames_done += int(offer.frame is not None)
        if landing.late and offer.wanted and not self._missing(attempt, offer.wanted):
            self._complete(sheet.chunks[attempt.chunk_id])
        return True

    def _complete(self, chunk: ChunkRow) -> None:
        """Late results completed the chunk: an attempt that has it now is superseded (R5.5 Late results)."""
        sheet = self._sheet
        if chunk.state in LIVE:
            verdict = Verdict(ChunkState.SUCCEEDED, Outcome.CANCELED, reason="late results completed its frames")
            self._supersede(attempts.c.chunk_id == chunk.chunk_id, verdict)
        elif chunk.state in (ChunkState.WAITING, ChunkState.FAILED):
            sheet.move(chunk, ChunkState.SUCCEEDED)
            self.done.completed.append(chunk)

    def _supersede(self, which: Any, verdict: Verdict) -> None:
        """End the live ones of these attempts, which are not needed any more."""
        sheet = self._sheet
        live = sheet.connection.execute(_LIVE.where(which)).scalars().all()
        sheet.load_attempts(live)
        known = [sheet.attempts[key] for key in live if key in sheet.attempts]
        left = [attempt for attempt in known if attempt.state is not AttemptState.ENDED]
        self.done.superseded += [self._end(attempt, verdict, sheet.moment.us) for attempt in left]

    def _ended(self, step: EndedStep, attempt: AttemptRow) -> bool:
        if step.unbegun and attempt.state is AttemptState.RUNNING:
            return True
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
        if chunk.kind != ChunkKind.FILM or not task.reason:  # why frames are missing is the better reason
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
    """Whether this token is the attempt's; None is RenderAPI itself. In constant time.

    No token fits an attempt without one, as adopted attempts are (R7.6 Adopted tasks, R14 Authority first).
    """
    if given is None:
        return True
    return bool(stored) and hmac.compare_digest(given.encode("utf-8", "surrogatepass"), stored.encode())


def _past(at_us: int, moment: Moment) -> int:
    """A machine's clock may be wrong: no time in the future or before 1970 is accepted."""
    return at_us if 0 < at_us <= moment.us else moment.us
