"""The dispatcher's memory: what waits, what is live, who uses how much. Rebuilt from the database at start.

Memory decides, the database records. Everything here happens on the event loop and never waits.
"""

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from renderonline.database.work_loading import LiveAttempt, QueuedChunk, QueuedTask
from renderonline.farm.frames import FrameRange
from renderonline.farm.scheduling import Assignment, ReadyIndex, ReadyTask, Shape, Signature
from renderonline.farm.settling import RetryPolicy
from renderonline.protocol.link import Progress
from renderonline.renderapi.orders import Order


@dataclass(slots=True)
class Task:
    """A task in the queue."""

    ready: ReadyTask
    engine: str
    download_path: str
    chunk_count: int
    one_range: bool
    begun: bool
    paused: bool
    waits_for: frozenset[int]
    troubles: "Troubles | None" = None
    """None while nothing of it ever failed, which is the rule: a farm has very many tasks."""

    @property
    def shape(self) -> Shape:
        if self.chunk_count == 1:
            return Shape.WHOLE
        return Shape.UNCUT if self.one_range and not self.begun else Shape.PIECE

    @property
    def may_start(self) -> bool:
        return not self.paused and not self.waits_for


@dataclass(slots=True)
class Troubles:
    """Chunks of one task that failed: on which machines, and those that wait for a time or for a machine."""

    avoid: dict[int, frozenset[int]] = field(default_factory=dict)
    delayed: set[int] = field(default_factory=set)
    held: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Attempt:
    """A live attempt. `order` is None after a restart, until it is needed."""

    attempt_id: int
    token: str
    chunk_id: int
    task_id: int
    user_id: int
    machine_id: int
    directory: str
    place: int
    frames: FrameRange | None = None
    running: bool = False
    leased: bool = False
    """Whether its lease is committed."""
    order: Order | None = None
    progress: Progress | None = None
    told_at: float = 0.0


@dataclass(frozen=True, slots=True)
class _Later:
    """A chunk that waits for a time (`due`, monotonic) or for a machine."""

    task_id: int
    chunk: QueuedChunk
    due: float = 0.0


class Memory:
    """What the dispatcher knows. `wake` is called whenever a plan could have something to give."""

    def __init__(self, wake: Callable[[], None], policy: RetryPolicy) -> None:
        self._wake = wake
        self._policy = policy
        self.clear()

    def clear(self) -> None:
        """Forget everything, before it is rebuilt from the database."""
        self.index = ReadyIndex()
        self.tasks: dict[int, Task] = {}
        self.attempts: dict[int, Attempt] = {}
        self.usage: dict[int, float] = defaultdict(float)
        self._timers: list[tuple[float, int]] = []
        self._delayed: dict[int, _Later] = {}
        self._held: dict[int, dict[int, _Later]] = defaultdict(dict)
        self._dependents: dict[int, set[int]] = defaultdict(set)
        self._by_task: dict[int, dict[int, Attempt]] = defaultdict(dict)
        self._by_machine: dict[int, dict[int, Attempt]] = defaultdict(dict)

    # -- tasks

    def add_task(self, queued: QueuedTask, *, now: float, now_us: int) -> None:
        """A task came into the queue, or is read again; its chunks that wait become ready when they may."""
        self.forget_task(queued.task_id)
        ready = ReadyTask(queued.task_id, queued.user_id, queued.priority, queued.queued_us)
        task = Task(
            ready,
            queued.engine.casefold(),
            queued.download_path,
            queued.chunk_count,
            queued.one_range,
            queued.begun,
            queued.paused,
            queued.waits_for,
        )
        self.tasks[queued.task_id] = task
        for other in task.waits_for:
            self._dependents[other].add(queued.task_id)
        if not task.may_start:
            return
        live = {attempt.chunk_id for attempt in self.attempts_of(queued.task_id)}
        plain: list[tuple[int, int]] = []
        for chunk in queued.chunks:
            if chunk.chunk_id in live:
                continue
            if chunk.not_before_us or chunk.avoid or chunk.held_by is not None:
                self._admit(task, chunk, now, now_us)
            else:
                plain.append((chunk.chunk_id, chunk.place))
        self.index.add_many(ready, plain, Signature(task.engine, task.shape))
        self._wake()

    def forget_task(self, task_id: int) -> None:
        """A task ended, was paused, or is read again: nothing of it starts. Live attempts stay known."""
        task = self.tasks.pop(task_id, None)
        if task is None:
            return
        self.index.remove_task(task_id)
        for other in task.waits_for:
            self._dependents[other].discard(task_id)
        if task.troubles is None:
            return
        for chunk_id in task.troubles.delayed:
            del self._delayed[chunk_id]
        for held in self._held.values():
            for chunk_id in task.troubles.held & held.keys():
                del held[chunk_id]

    def task_ended(self, task_id: int, *, succeeded: bool) -> frozenset[int]:
        """A task has nothing left to do; gives the tasks that waited for it and may start now."""
        self.forget_task(task_id)
        if not succeeded:
            return frozenset()
        freed = set()
        for dependent in self._dependents.pop(task_id, ()):
            task = self.tasks.get(dependent)
            if task is not None:
                task.waits_for -= {task_id}
                if task.may_start:
                    freed.add(dependent)
        return frozenset(freed)

    # -- chunks

    def chunk_back(self, task_id: int, chunk: QueuedChunk, *, now: float, now_us: int) -> None:
        """A chunk waits again after an attempt."""
        task = self.tasks.get(task_id)
        if task is not None and task.may_start:
            self._admit(task, chunk, now, now_us)
            self._wake()

    def chunk_done(self, task_id: int, chunk_id: int) -> None:
        """A chunk that waited is done (late results, R5.5)."""
        self.index.remove(chunk_id)
        if self._delayed.pop(chunk_id, None) is not None:
            self._troubles(self.tasks[task_id]).delayed.discard(chunk_id)

    def release_due(self, now: float) -> float | None:
        """Make ready what has waited long enough; gives when the next one is due."""
        while self._timers:
            due, chunk_id = self._timers[0]
            later = self._delayed.get(chunk_id)
            current = later is not None and later.due == due
            if current and due > now:
                return due
            heapq.heappop(self._timers)
            if later is not None and current:
                del self._delayed[chunk_id]
                task = self.tasks[later.task_id]
                self._troubles(task).delayed.discard(chunk_id)
                self._make_ready(task, later.chunk)
        return None

    def release_held(self, machine_id: int, *, now: float, now_us: int) -> None:
        """A v1 machine answers and is idle: what it lost may start again, anywhere (R7.4)."""
        held = self._held.pop(machine_id, {})
        for later in held.values():
            task = self.tasks[later.task_id]
            self._troubles(task).held.discard(later.chunk.chunk_id)
            self._admit(task, replace(later.chunk, held_by=None), now, now_us)
        if held:
            self._wake()

    def held_machines(self, task_id: int) -> tuple[int, ...]:
        """The v1 machines that must answer before chunks of the task start again."""
        task = self.tasks.get(task_id)
        if task is None or task.troubles is None:
            return ()
        chunks = task.troubles.held
        return tuple(machine_id for machine_id, held in self._held.items() if chunks & held.keys())

    def next_try(self, task_id: int) -> float | None:
        """When the next chunk of the task that waits after a failure is due (monotonic)."""
        task = self.tasks.get(task_id)
        if task is None or task.troubles is None:
            return None
        return min((self._delayed[chunk_id].due for chunk_id in task.troubles.delayed), default=None)

    def waits(self, task_id: int) -> bool:
        """Whether some chunk of the task is ready, or will be by itself."""
        task = self.tasks.get(task_id)
        if task is None:
            return False
        later = task.troubles is not None and bool(task.troubles.delayed or task.troubles.held)
        return later or self.index.waits(task_id)

    def _troubles(self, task: Task) -> Troubles:
        if task.troubles is None:
            task.troubles = Troubles()
        return task.troubles

    def _admit(self, task: Task, chunk: QueuedChunk, now: float, now_us: int) -> None:
        """Make a chunk ready, now or later. A time further away than the largest backoff is due now (R1.3)."""
        troubles = self._troubles(task)
        if chunk.avoid:
            troubles.avoid[chunk.chunk_id] = troubles.avoid.get(chunk.chunk_id, frozenset()) | chunk.avoid
        task_id = task.ready.task_id
        if chunk.held_by is not None:
            self._held[chunk.held_by][chunk.chunk_id] = _Later(task_id, chunk)
            troubles.held.add(chunk.chunk_id)
            return
        delay_s = (chunk.not_before_us - now_us) / 1_000_000
        if 0 < delay_s <= self._policy.cap_s:
            later = _Later(task_id, chunk, now + delay_s)
            self._delayed[chunk.chunk_id] = later
            troubles.delayed.add(chunk.chunk_id)
            heapq.heappush(self._timers, (later.due, chunk.chunk_id))
            return
        self._make_ready(task, chunk)

    def _make_ready(self, task: Task, chunk: QueuedChunk) -> None:
        avoid = task.troubles.avoid.get(chunk.chunk_id, frozenset()) if task.troubles else frozenset()
        self.index.add(task.ready, chunk.chunk_id, chunk.place, Signature(task.engine, task.shape, avoid))

    # -- attempts

    def lease(self, assignment: Assignment, attempt: Attempt) -> None:
        """A chunk was planned for a machine: it does not wait any more."""
        task = self.tasks[assignment.task_id]
        if assignment.whole:
            self.index.remove_task(assignment.task_id)
            task.chunk_count = 1
        else:
            self.index.remove(assignment.chunk_id)
            if not task.begun:
                self.index.begun(assignment.task_id)
        task.begun = True
        self._know(attempt)

    def adopt(self, live: LiveAttempt) -> Attempt:
        """An attempt that was live when we were stopped."""
        attempt = Attempt(
            live.attempt_id,
            live.token,
            live.chunk_id,
            live.task_id,
            live.user_id,
            live.machine_id,
            live.directory,
            live.place,
            live.frames,
            running=live.state.value == "running",
            leased=True,
        )
        self._know(attempt)
        return attempt

    def _know(self, attempt: Attempt) -> None:
        self.attempts[attempt.attempt_id] = attempt
        self._by_task[attempt.task_id][attempt.attempt_id] = attempt
        self._by_machine[attempt.machine_id][attempt.attempt_id] = attempt
        self.usage[attempt.user_id] += 1

    def end_attempt(self, attempt_id: int) -> Attempt | None:
        """An attempt is over; None when it was already."""
        attempt = self.attempts.pop(attempt_id, None)
        if attempt is None:
            return None
        for known, key in ((self._by_task, attempt.task_id), (self._by_machine, attempt.machine_id)):
            del known[key][attempt_id]
            if not known[key]:
                del known[key]
        self.usage[attempt.user_id] -= 1
        if self.usage[attempt.user_id] <= 0:
            del self.usage[attempt.user_id]
        return attempt

    def attempts_on(self, machine_id: int) -> tuple[Attempt, ...]:
        """The live attempts of a machine."""
        return tuple(self._by_machine.get(machine_id, {}).values())

    def attempts_of(self, task_id: int) -> tuple[Attempt, ...]:
        """The live attempts of a task."""
        return tuple(self._by_task.get(task_id, {}).values())

    def load(self, queue: Iterable[QueuedTask], live: Iterable[LiveAttempt], *, now: float, now_us: int) -> None:
        """Rebuild everything."""
        self.clear()
        for attempt in live:
            self.adopt(attempt)
        for task in queue:
            self.add_task(task, now=now, now_us=now_us)
