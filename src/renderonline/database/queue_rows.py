"""What the dispatcher's memory is rebuilt from: tasks in the queue with their waiting chunks, live attempts and their
owners, users' allowances."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, NamedTuple, Self, TypeVar

from sqlalchemy import Connection, Select, bindparam, case, func, not_, or_, select

from renderonline.database.schema import (
    LIVE_ATTEMPT,
    AnyRow,
    attempts,
    chunks,
    engines,
    frames_of,
    machines,
    queue,
    renders,
    subscriptions,
    tasks,
    users,
    waits_for,
)
from renderonline.database.statements import IDS, Statement, portions
from renderonline.farm.frames import FrameRange
from renderonline.farm.needs import NOTHING, Needs
from renderonline.farm.ready import Bucket, ReadyTask, Shape, Signature
from renderonline.farm.result_names import FILM_ENGINE
from renderonline.farm.scheduling import Allowance
from renderonline.farm.tasks import SETTLED, AttemptState, ChunkKind, ChunkState, Outcome
from renderonline.protocol.link import from_wire

_FAILURES: Final = (Outcome.FAILED.value, Outcome.LOST.value, Outcome.TIMED_OUT.value, Outcome.STALLED.value)
_RENDERED: Final = tasks.join(renders, renders.c.render_id == tasks.c.render_id).join(
    engines, engines.c.engine_id == renders.c.engine_id
)


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What is needed to write a task's command. `values` and `template` are None for renders of the existing system,
    whose `arguments` are one finished string. `file_name`: the scene's name, perhaps with folders; `film`: the film of
    its frames (`farm.result_names.Film`), "": none. `results_in`: the folder of its results, "": beside the scene;
    `strict`: a missing file is a failure, not a warning."""

    task_id: int
    engine: str
    definition: str | None
    scene: str
    arguments: str
    frames: str
    file_name: str
    film: str
    results_in: str
    strict: int
    values: Mapping[str, str] | None
    template: tuple[str, ...] | None


_FACTS: Final = Statement(
    select(
        *(tasks.c.task_id, engines.c.name, engines.c.definition, renders.c.file_path, renders.c.arguments),
        *(func.coalesce(tasks.c.frames, ""), renders.c.file_name, tasks.c.film, tasks.c.results_in, tasks.c.strict),
        *(renders.c["values"], renders.c.template),
    )
    .select_from(_RENDERED)
    .where(tasks.c.task_id.in_(bindparam(IDS, expanding=True)))
)
"""Columns in the order of the fields of `TaskFacts`."""


def load_facts(connection: Connection, task_ids: Collection[int]) -> dict[int, TaskFacts]:
    """The facts of these tasks; those that are gone are left out."""
    return {
        row[0]: TaskFacts(*(*row[:-2], row[-2] and json.loads(row[-2]), row[-1] and tuple(json.loads(row[-1]))))
        for row in _FACTS.rows(connection, sorted(task_ids))
    }


@dataclass(frozen=True, slots=True)
class QueuedChunk:
    """A waiting chunk. `avoid`: machines on which it failed; `held_by`: the v1 machine that must answer first because
    its renderer may still write (R7.4 Whole tasks); `film`: it makes a film of the others' frames; `at_once`: the film
    was requested while frames were still to come, so it is made even if its task is paused."""

    chunk_id: int
    place: int = 0
    not_before_us: int = 0
    avoid: frozenset[int] = frozenset()
    held_by: int | None = None
    film: bool = False
    at_once: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether any machine that fits may have it at any time."""
        return not (self.not_before_us or self.avoid or self.film or self.held_by is not None)


@dataclass(slots=True)
class QueuedTask(ReadyTask):
    """A task in the queue, as the dispatcher keeps it.

    `one_range`: its frames are one range, or it has none; `begun`: some chunk of it ever had an attempt;
    `chunk_count` counts all its chunks but films, `chunks` are those that wait; `waits_for`: tasks that must succeed
    first.
    """

    engine: str
    download_path: str
    chunk_count: int
    chunks: Sequence[QueuedChunk]
    one_range: bool = True
    begun: bool = False
    paused: bool = False
    waits_for: frozenset[int] = frozenset()
    is_checked_first: bool = False
    """Whether a machine still looks at its scene: no chunk of it is rendered before."""
    needs: Needs = NOTHING
    plain: Bucket | None = None
    """Its plain chunks, set by `sorted_out`; `chunks` are then the others."""

    def sorted_out(self, more: Iterable[tuple[int, int]] = ()) -> Self:
        """Set `plain`, of `chunks` and of `more` plain chunks (chunk id, place). It takes long with many chunks: call
        it in any thread, before the task is in memory."""
        if self.plain is None:
            places = ((chunk.chunk_id, chunk.place) for chunk in self.chunks if chunk.is_plain)
            self.plain = Bucket.of(self, chain(places, more), self.signature())
            self.chunks = [chunk for chunk in self.chunks if not chunk.is_plain]
        return self

    def signature(self, avoid: frozenset[int] = frozenset(), *, film: bool = False) -> Signature:
        """What its chunks need of a machine; its film needs another engine, but the same sandbox."""
        if film:
            return Signature(FILM_ENGINE, Shape.PIECE, avoid, film_needs(self.needs))
        return Signature(self.engine, self.shape, avoid, self.needs)

    @property
    def shape(self) -> Shape:
        if self.chunk_count == 1:
            return Shape.WHOLE
        return Shape.UNCUT if self.one_range and not self.begun else Shape.PIECE

    @property
    def may_start(self) -> bool:
        return not (self.paused or self.waits_for or self.is_checked_first)


_FILMS: Final = (
    select(func.count())
    .where(chunks.c.task_id == tasks.c.task_id, chunks.c.kind == ChunkKind.FILM.value)
    .correlate(tasks)
    .scalar_subquery()
)
_QUEUED: Final = (
    select(
        *(tasks.c.task_id, tasks.c.user_id, tasks.c.priority, tasks.c.queue_us, tasks.c.paused, tasks.c.frames),
        *(tasks.c.needs, tasks.c.running_limit, case((tasks.c.film == "", 0), else_=_FILMS).label("films")),
        *(engines.c.name, engines.c.download_path, *(tasks.c[f"chunks_{state.value}"] for state in ChunkState)),
    )
    .select_from(_RENDERED)
    .where(tasks.c.task_id.in_(select(queue.c.task_id)))
)
_IS_WAITING: Final = chunks.c.state == ChunkState.WAITING.value
_TOUCHED: Final = or_(
    *(chunks.c.tries != 0, chunks.c.not_before_us != 0, chunks.c.stage != 0, chunks.c.kind != ChunkKind.RENDER.value)
)
_PLAIN: Final = select(chunks.c.task_id, chunks.c.chunk_id, chunks.c.place).where(_IS_WAITING, not_(_TOUCHED))
"""Nearly all waiting chunks of a large queue: nothing but their places has to be known of them."""
_WAITING: Final = select(
    chunks.c.chunk_id, chunks.c.task_id, chunks.c.place, chunks.c.not_before_us, chunks.c.stage, chunks.c.kind
).where(_IS_WAITING, _TOUCHED)
_STAGES: Final = (
    select(chunks.c.task_id, func.min(chunks.c.stage), func.min(case((chunks.c.state.not_in(SETTLED), chunks.c.stage))))
    .where(chunks.c.state != ChunkState.SUCCEEDED.value)
    .group_by(chunks.c.task_id)
)
"""The lowest stage that has not succeeded, and the lowest that is not settled: a film is made of the frames that there
are."""
_OLD_ATTEMPTS: Final = (
    select(chunks.c.chunk_id, attempts.c.machine_id, attempts.c.outcome, machines.c.secret_hash)
    .select_from(
        chunks.join(attempts, attempts.c.chunk_id == chunks.c.chunk_id).outerjoin(
            machines, machines.c.machine_id == attempts.c.machine_id
        )
    )
    .where(chunks.c.state == ChunkState.WAITING.value, chunks.c.tries > 0, attempts.c.outcome.is_not(None))
    .order_by(attempts.c.attempt_id)
)
_BEGUN: Final = select(attempts.c.task_id).where(attempts.c.task_id.in_(select(queue.c.task_id))).distinct()
BLOCKED: Final = (
    select(waits_for.c.waits_for_task_id, waits_for.c.task_id)
    .join(tasks, tasks.c.task_id == waits_for.c.waits_for_task_id)
    .where(tasks.c.is_success == 0)
)
"""The tasks that have not succeeded and for which others wait."""


def load_queue(connection: Connection, task_ids: Collection[int] | None = None) -> tuple[QueuedTask, ...]:
    """The tasks in the queue (`task_ids`: only these) with their waiting chunks, sorted out."""

    def of(query: Select[Any], column: Any) -> Iterable[AnyRow]:
        return connection.execute(query if task_ids is None else query.where(column.in_(sorted(task_ids)))).all()

    blocked: dict[int, set[int]] = defaultdict(set)
    for other, task_id in of(BLOCKED, waits_for.c.task_id):
        blocked[task_id].add(other)
    old = _old_attempts(of(_OLD_ATTEMPTS, chunks.c.task_id))
    rows = of(_WAITING, chunks.c.task_id)
    staged = of(_STAGES, chunks.c.task_id) if any(row.stage for row in rows) else ()
    stages = {task_id: lowest for task_id, *lowest in staged}
    waiting: dict[int, list[QueuedChunk]] = defaultdict(list)
    for row in rows:
        film = row.kind == ChunkKind.FILM
        if row.task_id not in stages or row.stage <= stages[row.task_id][film]:  # only the lowest that is not done
            avoid, held_by = old.get(row.chunk_id, (frozenset[int](), None))
            chunk = QueuedChunk(
                row.chunk_id,
                place=row.place,
                not_before_us=row.not_before_us,
                avoid=avoid,
                held_by=held_by,
                film=film,
                at_once=is_at_once(row.kind, row.stage),
            )
            waiting[row.task_id].append(chunk)
    plain: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for task_id, chunk_id, place in of(_PLAIN, chunks.c.task_id):
        plain[task_id].append((chunk_id, place))
    begun = {row.task_id for row in of(_BEGUN, attempts.c.task_id)}
    return tuple(
        QueuedTask(
            task_id=row.task_id,
            user_id=row.user_id,
            priority=row.priority,
            queued_us=row.queue_us,
            engine=row.name,
            download_path=row.download_path,
            chunk_count=sum(row[-len(ChunkState) :]) - row.films,
            chunks=waiting.get(row.task_id, ()),
            one_range="," not in (row.frames or ""),
            begun=row.task_id in begun,
            paused=bool(row.paused),
            waits_for=frozenset(blocked.get(row.task_id, ())),
            needs=_needs(row.needs),
            running_limit=row.running_limit,
        ).sorted_out(plain.get(row.task_id, ()))
        for row in of(_QUEUED, tasks.c.task_id)
    )


def is_at_once(kind: str, stage: int) -> bool:
    """Whether a chunk makes a film that was requested while frames were still to come (`QueuedChunk.at_once`)."""
    return kind == ChunkKind.FILM and stage == 0


def film_needs(needs: Needs) -> Needs:
    """What a task's film needs of a machine: the pool and sandbox of its task, but nothing of its engine's needs."""
    return Needs(pool=needs.pool, sandbox=needs.sandbox)


def _needs(text: str | None) -> Needs:
    return from_wire(Needs, json.loads(text)) if text else NOTHING


def _old_attempts(rows: Iterable[AnyRow]) -> dict[int, tuple[frozenset[int], int | None]]:
    """Where chunks failed, and which v1 machine lost them last; by chunk."""
    found: dict[int, tuple[frozenset[int], int | None]] = {}
    for row in rows:
        avoid, _ = found.get(row.chunk_id, (frozenset[int](), None))
        held_by = row.machine_id if row.outcome == Outcome.LOST.value and row.secret_hash == "" else None
        found[row.chunk_id] = (avoid | {row.machine_id} if row.outcome in _FAILURES else avoid, held_by)
    return found


@dataclass(slots=True)
class AttemptFacts:
    """An attempt of a machine: planned, live or ended. `whole`: its task is made one chunk first (R7.4 Whole tasks).
    `steps`: whether its engine takes frame steps; None: its machine takes whole tasks, so its chunk can't be cut again.
    `film`: it makes a film."""

    attempt_id: int
    token: str
    chunk_id: int
    task_id: int
    user_id: int
    machine_id: int
    directory: str
    frames: FrameRange | None = None
    running: bool = False
    whole: bool = False
    steps: bool | None = None
    needs: Needs = NOTHING
    film: bool = False


A = TypeVar("A", bound=AttemptFacts)
_ATTEMPTS: Final = (
    select(
        *(attempts.c.attempt_id, attempts.c.token, attempts.c.chunk_id, attempts.c.task_id, tasks.c.user_id),
        *(attempts.c.machine_id, attempts.c.directory, chunks.c.kind, tasks.c.needs, attempts.c.state),
        *(chunks.c.first_frame, chunks.c.last_frame, chunks.c.frame_step),
    )
    .select_from(
        attempts.join(chunks, chunks.c.chunk_id == attempts.c.chunk_id).join(
            tasks, tasks.c.task_id == attempts.c.task_id
        )
    )
    .order_by(attempts.c.attempt_id)
)


def load_live(connection: Connection, kind: type[A]) -> tuple[A, ...]:
    """Every attempt that has not ended."""
    return tuple(_attempt(row, kind) for row in connection.execute(_ATTEMPTS.where(LIVE_ATTEMPT)))


def load_attempt(connection: Connection, attempt_id: int) -> AttemptFacts | None:
    """One attempt, whatever its state; None when it or its task is gone."""
    row = connection.execute(_ATTEMPTS.where(attempts.c.attempt_id == attempt_id)).one_or_none()
    return None if row is None else _attempt(row, AttemptFacts)


def _attempt(row: AnyRow, kind: type[A]) -> A:
    film, needs = row.kind == ChunkKind.FILM, _needs(row.needs)
    return kind(
        attempt_id=row.attempt_id,
        token=row.token,
        chunk_id=row.chunk_id,
        task_id=row.task_id,
        user_id=row.user_id,
        machine_id=row.machine_id,
        directory=row.directory,
        frames=frames_of(row.first_frame, row.last_frame, row.frame_step),
        running=row.state == AttemptState.RUNNING.value,
        needs=film_needs(needs) if film else needs,
        film=film,
    )


def load_allowances(connection: Connection) -> dict[int, Allowance]:
    """The allowance of each user."""
    query = select(users.c.user_id, *(subscriptions.c[name] for name in Allowance._fields)).join(
        subscriptions, subscriptions.c.subscription_id == users.c.subscription_id
    )
    return {user_id: Allowance(*allowed) for user_id, *allowed in connection.execute(query)}


def load_queued_ids(connection: Connection) -> frozenset[int]:
    """The tasks that have a queue row, for noticing what was added or taken away by hand (R3.4 Changes by hand)."""
    return frozenset(connection.execute(select(queue.c.task_id)).scalars())


def download_paths(connection: Connection) -> frozenset[str]:
    """The download paths of all engines."""
    return frozenset(connection.execute(select(engines.c.download_path)).scalars())


class Owner(NamedTuple):
    """The machine that has or had an attempt, and the attempt's token. `over`: it ended, and not as `lost`: nothing
    more of it is accepted."""

    machine_id: int
    token: str
    over: bool


_OWNERS: Final = select(
    attempts.c.attempt_id, attempts.c.machine_id, attempts.c.token, attempts.c.state, attempts.c.outcome
)


def load_owners(connection: Connection, attempt_ids: Sequence[int]) -> dict[int, Owner]:
    """The owners of these attempts, without attempts that are gone."""
    found: dict[int, Owner] = {}
    for part in portions(attempt_ids):
        for row in connection.execute(_OWNERS.where(attempts.c.attempt_id.in_(part))):
            over = row.state == AttemptState.ENDED.value and row.outcome != Outcome.LOST.value
            found[row.attempt_id] = Owner(row.machine_id, row.token, over)
    return found
