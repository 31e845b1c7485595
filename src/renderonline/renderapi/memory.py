"""The dispatcher's memory: what waits, what is live, who uses how much. Rebuilt from the database at start.

Memory decides, the database records. Everything in `Memory` happens on the event loop; only `reload` waits.
"""

import asyncio
import gc
import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass, replace
from functools import partial, wraps
from itertools import islice
from typing import Any, Final, NamedTuple, ParamSpec, Protocol, TypeVar

import structlog

from renderonline.database.door import Connection, Database
from renderonline.database.queue_rows import AttemptFacts, QueuedChunk, QueuedTask, load_queue
from renderonline.database.submission_rows import EngineRow, NewTask
from renderonline.database.task_rows import Moment, TaskRow
from renderonline.farm.errors import RenderOnlineError
from renderonline.farm.machines import AwakeClock
from renderonline.farm.ready import Bucket, ReadyIndex, Signature
from renderonline.farm.scheduling import SHORT_IN_A_ROW, SHORT_S, Usage
from renderonline.farm.settling import RetryPolicy
from renderonline.farm.tasks import Landing
from renderonline.protocol.link import Progress
from renderonline.renderapi.orders import OURS, Order

_log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

TICK_S: Final = 1.0
"""How often silence is looked at."""
_RECENT: Final = 8
"""The machines that had parts of a task most recently are remembered, because they have its scene."""
MANY_CHUNKS: Final = 1000
"""More than these are prepared in a thread: the event loop would stand still."""


class Announcements(Protocol):
    """Tells those who watch the farm (`events.Announcer`)."""

    def task(self, state: TaskRow) -> None:
        """A task changed."""

    def task_deleted(self, task_id: int, user_id: int) -> None:
        """A task of this user is gone."""

    def result(self, landing: Landing, *, preview: bool) -> None:
        """A result landed; `preview`: it can be shown in a grid."""

    def progress(self, attempt: "LiveAttempt", progress: Progress, now: float) -> None:
        """An attempt came further; `now` is monotonic."""


class Clocks:
    """The time as the dispatcher reads it (R1.3 Silence). `monotonic`: seconds that only go forward (leases, backoff);
    `time`: seconds since 1970 UTC, which people see. Tests replace them."""

    def __init__(self) -> None:
        self.monotonic, self.time = time.monotonic, time.time
        self._awake = AwakeClock(time.monotonic(), TICK_S)

    def now(self) -> Moment:
        return Moment.at(self.time())

    def awake(self) -> float:
        """Seconds in which the event loop was alive."""
        return self._awake.now(self.monotonic())

    async def tick(self) -> float:
        """Wait for the next tick: the event loop is alive then. Returns the awake seconds."""
        await asyncio.sleep(TICK_S)
        self._awake.tick(self.monotonic())
        return self.awake()


class BackgroundWork:
    """Runs the dispatcher's work in the background, wakes the planner, and knows whether memory can be trusted.
    `ready`: memory says what the database says; `woken` and `in_doubt` wake the loops of the dispatcher."""

    def __init__(self) -> None:
        self.woken, self.in_doubt = asyncio.Event(), asyncio.Event()
        self.ready = False
        self._tasks: set[asyncio.Task[Any]] = set()

    def wake(self) -> None:
        """A plan could assign something."""
        self.woken.set()

    def gave_up(self) -> None:
        """A write was given up: memory is in doubt and is rebuilt (R3.2 Repeatable operations)."""
        self.ready = False
        self.in_doubt.set()

    async def guarded(self, work: Coroutine[Any, Any, None]) -> None:
        """Await this; an error must not end the dispatcher, but memory is in doubt afterwards."""
        try:
            await work
        except RenderOnlineError as error:
            _log.warning("The dispatcher could not do something", error=error.message)
            self.gave_up()
        except Exception:  # noqa: BLE001 (logged; the dispatcher goes on)
            _log.exception("The dispatcher failed")
            self.gave_up()

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run this in the background, guarded."""
        return self.keep(self.guarded(work))

    def keep(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run this in the background; its error is its caller's."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def settled(self) -> None:
        """Wait until nothing runs in the background."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


@dataclass(slots=True)
class LiveAttempt(AttemptFacts):
    """A live attempt. `leased`: its lease is committed; `order` is None after a restart, until it is needed; `since`:
    from when its machine has to start it, or since when it runs, in awake seconds; None: that is not known yet."""

    leased: bool = False
    order: Order | None = None
    progress: Progress | None = None
    told_at: float = 0.0
    since: float | None = None


class _Later(NamedTuple):
    """A chunk that waits for a time (`due`, monotonic), or for the machine that holds it."""

    chunk: QueuedChunk
    due: float | None


class Memory:
    """What the dispatcher knows. `wake` is called whenever a plan could assign something. `short`: the tasks whose
    chunks may be held ahead (R9.1 Work ahead)."""

    def __init__(self, database: Database, wake: Callable[[], None], clock: Clocks, policy: RetryPolicy) -> None:
        self._database = database
        self._wake = wake
        self._clock = clock
        self._policy = policy
        self.checked_first: set[int] = set()
        """Tasks of which nothing starts before a machine has looked at the scene."""
        self.newest = 0
        """An attempt id of this start."""
        self.load((), ())

    def load(self, queue: Iterable[QueuedTask], live: Iterable[LiveAttempt]) -> None:
        """Forget everything, and rebuild it."""
        self.index = ReadyIndex()
        self.tasks: dict[int, QueuedTask] = {}
        self.attempts: dict[int, LiveAttempt] = {}
        self.reserved: dict[int, Signature] = {}
        self.short: set[int] = set()
        self._running: dict[int, float] = defaultdict(float)
        self._timers: list[tuple[float, int, int]] = []
        self._later: dict[int, dict[int, _Later]] = {}
        self._held: dict[int, set[tuple[int, int]]] = defaultdict(set)
        self._avoid: dict[int, dict[int, frozenset[int]]] = {}
        self._dependents: dict[int, set[int]] = defaultdict(set)
        self._by_task: dict[int, dict[int, LiveAttempt]] = defaultdict(dict)
        self._by_machine: dict[int, dict[int, LiveAttempt]] = defaultdict(dict)
        for attempt in live:
            attempt.leased = True
            self._know(attempt)
        for task in queue:
            self.add_task(task)

    def add_task(self, task: QueuedTask) -> None:
        """A task came into the queue, or is read again; its chunks that wait become ready when they may."""
        if (known := self.tasks.get(task.task_id)) is not None:
            task.recent, task.short = known.recent, known.short
        self.forget_task(task.task_id)
        self.tasks[task.task_id] = task
        self._note_short(task)
        task.is_checked_first = task.task_id in self.checked_first
        task.engine = task.engine.casefold()
        plain, task.plain = task.sorted_out().plain, None
        odd, task.chunks = task.chunks, ()
        live = {attempt.chunk_id for attempt in self.attempts_of(task.task_id)}
        task.begun = task.begun or bool(live)
        for other in task.waits_for:
            self._dependents[other].add(task.task_id)
        if plain is not None and task.may_start:
            self.index.add_bucket(plain, task.signature())
        for chunk_id in live:
            self.index.remove(chunk_id)
        for chunk in odd:
            self.chunk_back(task.task_id, chunk)
        self._wake()

    async def reload(self, task_ids: Collection[int]) -> None:
        """Read tasks again: they were resumed, tried again, or added by hand. In the writer's turn, so that memory does
        not miss what is committed meanwhile."""
        queued = await self._database.write(partial(queue_of, task_ids=task_ids))
        for task_id in set(task_ids) - {task.task_id for task in queued}:
            self.forget_task(task_id)
        for task in queued:
            self.add_task(task)
        self._wake()

    def is_ours(self, attempt_id: int) -> bool:
        """Whether a number on a v1 machine's wire is one of this farm's attempts (R7.1 Attempt id on the wire)."""
        return attempt_id in self.attempts or abs(self.newest - attempt_id) < OURS

    def forget_task(self, task_id: int) -> None:
        """A task ended, was paused, or is read again: nothing of it starts. Live attempts stay known."""
        task = self.tasks.pop(task_id, None)
        if task is None:
            return
        self.index.remove_task(task_id)
        self.short.discard(task_id)
        self._later.pop(task_id, None)
        self._avoid.pop(task_id, None)
        for other in task.waits_for:
            self._dependents[other].discard(task_id)

    def task_ended(self, task_id: int, *, succeeded: bool) -> frozenset[int]:
        """A task has nothing left to do; returns the tasks that waited for it and may start now."""
        self.forget_task(task_id)
        dependents = self._dependents.pop(task_id, set()) if succeeded else set()
        freed = [task for dependent in dependents if (task := self.tasks.get(dependent)) is not None]
        for task in freed:
            task.waits_for -= {task_id}
        return frozenset(task.task_id for task in freed if task.may_start)

    def chunk_back(self, task_id: int, chunk: QueuedChunk) -> None:
        """A chunk waits, perhaps for a while. A time further away than the largest backoff is due now
        (R1.3 Silence)."""
        task = self.tasks.get(task_id)
        live = (attempt.chunk_id for attempt in self._by_task.get(task_id, {}).values())
        if task is None or not (task.may_start or chunk.at_once) or chunk.chunk_id in live:
            return
        if chunk.avoid:
            task.recent = tuple(machine_id for machine_id in task.recent if machine_id not in chunk.avoid)
            avoid = self._avoid.setdefault(task_id, {})
            avoid[chunk.chunk_id] = avoid.get(chunk.chunk_id, frozenset()) | chunk.avoid
        delay_s = chunk.not_before_us / 1_000_000 - self._clock.time()
        if chunk.held_by is not None:
            self._held[chunk.held_by].add((task_id, chunk.chunk_id))
            self._later.setdefault(task_id, {})[chunk.chunk_id] = _Later(chunk, None)
        elif 0 < delay_s <= self._policy.cap_s:
            due = self._clock.monotonic() + delay_s
            heapq.heappush(self._timers, (due, task_id, chunk.chunk_id))
            self._later.setdefault(task_id, {})[chunk.chunk_id] = _Later(chunk, due)
        else:
            self._make_ready(task, chunk)
        self._wake()

    def recut(self, task_id: int, chunk_id: int, pieces: Iterable[QueuedChunk]) -> None:
        """A chunk was cut again: these pieces wait as well."""
        avoid = self._avoid.get(task_id, {}).get(chunk_id, frozenset())
        for piece in pieces:
            if (task := self.tasks.get(task_id)) is not None:
                task.chunk_count += 1
                self.chunk_back(task_id, replace(piece, avoid=avoid))

    def chunk_done(self, task_id: int, chunk_id: int) -> None:
        """A chunk that waited is done (late results, R5.5 Late results)."""
        self.index.remove(chunk_id)
        self._take_later(task_id, chunk_id)

    def took(self, task_id: int, seconds: float | None) -> None:
        """A chunk of a task took so long; None: it can't be said."""
        if (task := self.tasks.get(task_id)) is not None:
            task.short = task.short + 1 if seconds is not None and seconds < SHORT_S else 0
            self._note_short(task)

    def _note_short(self, task: QueuedTask) -> None:
        if task.short >= SHORT_IN_A_ROW:
            self.short.add(task.task_id)
        else:
            self.short.discard(task.task_id)

    def release_due(self) -> float | None:
        """Make ready what has waited long enough; returns when the next chunk is due (monotonic)."""
        now = self._clock.monotonic()
        while self._timers:
            due, task_id, chunk_id = self._timers[0]
            later = self._later.get(task_id, {}).get(chunk_id)
            current = later is not None and later.due == due
            if current and due > now:
                return due
            heapq.heappop(self._timers)
            if later is not None and current:
                self._take_later(task_id, chunk_id)
                self._make_ready(self.tasks[task_id], later.chunk)
        return None

    def release_held(self, machine_id: int) -> None:
        """A v1 machine answers and is idle: what it lost may start again, anywhere (R7.4 Whole tasks)."""
        for task_id, chunk_id in self._held.pop(machine_id, ()):
            later = self._later.get(task_id, {}).get(chunk_id)
            if later is not None and later.chunk.held_by == machine_id:
                self._take_later(task_id, chunk_id)
                self.chunk_back(task_id, replace(later.chunk, held_by=None))

    def held_machines(self, task_id: int) -> tuple[int, ...]:
        """The v1 machines that must answer before chunks of the task start again."""
        holders = {later.chunk.held_by for later in self._later.get(task_id, {}).values()}
        return tuple(sorted(machine_id for machine_id in holders if machine_id is not None))

    def next_try(self, task_id: int) -> float | None:
        """When the next chunk of the task that waits after a failure is due (monotonic)."""
        dues = (later.due for later in self._later.get(task_id, {}).values())
        return min((due for due in dues if due is not None), default=None)

    def waits(self, task_id: int) -> bool:
        """Whether some chunk of the task is ready, or will be by itself."""
        return task_id in self._later or bool(self.index.signatures_of(task_id))

    def _take_later(self, task_id: int, chunk_id: int) -> None:
        later = self._later.get(task_id, {})
        later.pop(chunk_id, None)
        if not later:
            self._later.pop(task_id, None)

    def _make_ready(self, task: QueuedTask, chunk: QueuedChunk) -> None:
        avoid = self._avoid.get(task.task_id, {}).get(chunk.chunk_id, frozenset())
        self.index.add(task, chunk.chunk_id, chunk.place, task.signature(avoid, film=chunk.film))

    def lease(self, attempt: LiveAttempt) -> None:
        """A chunk was planned for a machine: it does not wait any more."""
        task = self.tasks[attempt.task_id]
        if attempt.whole:
            self.index.remove_task(attempt.task_id)
            task.chunk_count = 1
        else:
            self.index.remove(attempt.chunk_id)
            if not task.begun:
                self.index.begun(attempt.task_id)
        task.begun = True
        others = (machine_id for machine_id in task.recent if machine_id != attempt.machine_id)
        task.recent = (attempt.machine_id, *islice(others, _RECENT - 1))
        self._know(attempt)

    def _know(self, attempt: LiveAttempt) -> None:
        self.attempts[attempt.attempt_id] = attempt
        self._by_task[attempt.task_id][attempt.attempt_id] = attempt
        self._by_machine[attempt.machine_id][attempt.attempt_id] = attempt
        self.count(attempt.user_id, 1)

    @property
    def usage(self) -> Usage:
        """What runs now, and what of new tasks is about to."""
        return Usage(self._running, {task_id: len(live) for task_id, live in self._by_task.items()})

    def count(self, user_id: int, chunks: int) -> None:
        """Change the number of this user's chunks that are live or being committed."""
        self._running[user_id] += chunks
        if self._running[user_id] <= 0:
            del self._running[user_id]
        if chunks < 0 and len(self.index):  # a limit may have kept back what waits
            self._wake()

    def end_attempt(self, attempt_id: int) -> None:
        """An attempt is over, or was already."""
        attempt = self.attempts.pop(attempt_id, None)
        if attempt is None:
            return
        for known, key in ((self._by_task, attempt.task_id), (self._by_machine, attempt.machine_id)):
            del known[key][attempt_id]
            if not known[key]:
                del known[key]
        self.count(attempt.user_id, -1)

    def attempts_on(self, machine_id: int) -> tuple[LiveAttempt, ...]:
        return tuple(self._by_machine.get(machine_id, {}).values())

    def attempts_of(self, task_id: int) -> tuple[LiveAttempt, ...]:
        return tuple(self._by_task.get(task_id, {}).values())


def heavy(work: Callable[P, T]) -> Callable[P, T]:
    """The same function without garbage collection, for threads that make hundreds of thousands of objects: Python
    would search them for cycles again and again, and all threads stand still meanwhile."""

    @wraps(work)
    def done(*arguments: P.args, **named: P.kwargs) -> T:
        gc.disable()
        try:
            return work(*arguments, **named)
        finally:
            gc.enable()

    return done


@heavy
def queue_of(connection: Connection, task_ids: Collection[int] | None = None) -> tuple[QueuedTask, ...]:
    """The queue, or these tasks of it, as memory takes them without much work."""
    return load_queue(connection, task_ids)


def queued_of(new: NewTask, engine: EngineRow) -> QueuedTask:
    """A new task as memory takes it; the commit makes its id."""
    task = QueuedTask(
        task_id=0,
        user_id=new.user_id,
        priority=new.priority,
        queued_us=new.queue_us,
        engine=engine.name.casefold(),
        download_path=engine.download_path,
        chunk_count=len(new.chunks),
        chunks=(),
        one_range="," not in new.frames,
        paused=new.paused,
        needs=new.needs,
        running_limit=new.running_limit,
    )
    places = ((chunk.chunk_id, place) for place, chunk in enumerate(new.chunks))
    task.plain = Bucket.of(task, places, task.signature())
    return task
