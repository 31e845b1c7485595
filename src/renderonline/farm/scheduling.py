"""Which waiting chunk goes to which free slot (R9).

The `ReadyIndex` is changed by events; `plan` reads its heads and changes nothing. Order: priority class; inside a class
the user with the least running cost per share; then age of the task; inside a task the chunk's place.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from heapq import heapify, heappop, heapreplace
from operator import itemgetter
from typing import NamedTuple

from sortedcontainers import SortedDict


class Shape(StrEnum):
    """How much of its task a chunk is; v1 machines get whole tasks only (R7.4).

    `UNCUT`: of a cut task none of whose chunks had an attempt and whose frames are one range: it can be made whole.
    """

    WHOLE = "whole"
    UNCUT = "uncut"
    PIECE = "piece"


@dataclass(frozen=True, slots=True)
class Signature:
    """What a chunk needs of a machine; chunks with equal needs share one queue. `engine` is case-folded; `avoid` are
    the machines on which the chunk failed."""

    engine: str
    shape: Shape = Shape.PIECE
    avoid: frozenset[int] = frozenset()


@dataclass(slots=True)
class ReadyTask:
    """What the order needs to know of a task. `queued_us` is its age (microseconds since 1970)."""

    task_id: int
    user_id: int
    priority: int
    queued_us: int


class _Chunk(NamedTuple):
    """One object per waiting chunk, shared by the queue and the look-up. Greater is earlier: the chunk that goes next
    is the last of its bucket's list, where taking it out costs nothing. The ids end every comparison."""

    back: int
    id_back: int
    bucket: "_Bucket"

    @property
    def place(self) -> int:
        return -self.back

    @property
    def chunk_id(self) -> int:
        return -self.id_back


class _Bucket:
    """The waiting chunks of one task that share a signature, the next one last."""

    __slots__ = ("age", "chunks", "signature", "task")

    def __init__(self, task: ReadyTask, signature: Signature) -> None:
        self.task, self.signature = task, signature
        self.age = (task.queued_us, task.task_id)
        self.chunks: list[_Chunk] = []

    def add(self, places: Sequence[tuple[int, int]]) -> list[_Chunk]:
        fresh = [_Chunk(-place, -chunk_id, self) for chunk_id, place in places]
        if len(fresh) == 1:
            insort(self.chunks, fresh[0])
        else:
            self.chunks += fresh
            self.chunks.sort()
        return fresh


class ReadyIndex:
    """Every chunk that may start now: signature -> priority -> user -> task by age -> chunk by place."""

    def __init__(self) -> None:
        self._queues: dict[Signature, SortedDict] = {}
        self._chunks: dict[int, _Chunk] = {}
        self._buckets: dict[int, dict[Signature, _Bucket]] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def signatures(self) -> Iterable[Signature]:
        """The needs of all that waits."""
        return self._queues.keys()

    def add(self, task: ReadyTask, chunk_id: int, place: int, signature: Signature) -> None:
        """Make a chunk ready; one that is ready already is moved."""
        self.add_many(task, [(chunk_id, place)], signature)

    def add_many(self, task: ReadyTask, places: Sequence[tuple[int, int]], signature: Signature) -> None:
        """Make chunks (chunk id, place) of one task ready, all with the same needs."""
        for chunk_id, _ in places:
            self.remove(chunk_id)
        if not places:
            return
        bucket = self._buckets.get(task.task_id, {}).get(signature)
        if bucket is None:
            bucket = _Bucket(task, signature)
            self._link(bucket)
        self._chunks.update((chunk.chunk_id, chunk) for chunk in bucket.add(places))

    def remove(self, chunk_id: int) -> bool:
        """Take a chunk out; whether it was there."""
        chunk = self._chunks.pop(chunk_id, None)
        if chunk is None:
            return False
        chunks = chunk.bucket.chunks
        del chunks[bisect_left(chunks, chunk)]
        if not chunks:
            self._drop(chunk.bucket)
        return True

    def remove_task(self, task_id: int) -> None:
        """Take all chunks of a task out (canceled, paused, deleted)."""
        for bucket in list(self._buckets.get(task_id, {}).values()):
            for chunk in bucket.chunks:
                del self._chunks[chunk.chunk_id]
            self._drop(bucket)

    def begun(self, task_id: int) -> None:
        """A machine got a chunk of the task: what is left of it are pieces from now on."""
        for old in list(self._buckets.get(task_id, {}).values()):
            if old.signature.shape is not Shape.UNCUT:
                continue
            self._drop(old)
            piece = Signature(old.signature.engine, Shape.PIECE, old.signature.avoid)
            there = self._buckets.get(task_id, {}).get(piece)
            if there is None:  # the whole bucket moves, however many chunks are in it
                old.signature = piece
                self._link(old)
            else:
                moved = there.add([(chunk.chunk_id, chunk.place) for chunk in old.chunks])
                self._chunks.update((chunk.chunk_id, chunk) for chunk in moved)

    def chunks_of(self, task_id: int) -> tuple[int, ...]:
        """The ready chunks of one task."""
        return tuple(one.chunk_id for bucket in self._buckets.get(task_id, {}).values() for one in bucket.chunks)

    def signatures_of(self, task_id: int) -> tuple[Signature, ...]:
        """The needs of the ready chunks of one task; none when none of them is ready."""
        return tuple(self._buckets.get(task_id, ()))

    def classes(self, signature: Signature) -> Iterator[tuple[int, Mapping[int, SortedDict]]]:
        """The priority classes of a signature, highest first: (priority, user -> tasks by age)."""
        for negative, users in self._queues.get(signature, {}).items():
            yield -negative, users

    def _link(self, bucket: _Bucket) -> None:
        task = bucket.task
        self._buckets.setdefault(task.task_id, {})[bucket.signature] = bucket
        users = self._queues.setdefault(bucket.signature, SortedDict()).setdefault(-task.priority, {})
        users.setdefault(task.user_id, SortedDict())[bucket.age] = bucket

    def _drop(self, bucket: _Bucket) -> None:
        task, signature = bucket.task, bucket.signature
        classes = self._queues[signature]
        users = classes[-task.priority]
        del users[task.user_id][bucket.age]
        if not users[task.user_id]:
            del users[task.user_id]
        if not users:
            del classes[-task.priority]
        if not classes:
            del self._queues[signature]
        buckets = self._buckets[task.task_id]
        del buckets[signature]
        if not buckets:
            del self._buckets[task.task_id]


@dataclass(frozen=True, slots=True)
class Ability:
    """What a machine can take: its engines (case-folded names), and whether it is linked or a v1 machine."""

    machine_id: int
    engines: frozenset[str]
    linked: bool = True


@dataclass(frozen=True, slots=True)
class FreeSlots:
    """Room on one machine."""

    ability: Ability
    count: int = 1


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for the whole farm: every machine that takes assignments now (free or busy), the users' shares."""

    machines: Mapping[int, Ability] = field(default_factory=dict)
    shares: Mapping[int, int] = field(default_factory=dict)
    linked_engines: frozenset[str] = frozenset()

    @classmethod
    def of(cls, machines: Iterable[Ability], shares: Mapping[int, int]) -> "Policy":
        """The policy for these machines and shares (user -> share, 1 where there is none)."""
        abilities = {ability.machine_id: ability for ability in machines}
        linked = frozenset(name for ability in abilities.values() if ability.linked for name in ability.engines)
        return cls(abilities, shares, linked)

    def share(self, user_id: int) -> int:
        """The user's share of the farm, at least 1."""
        return max(1, self.shares.get(user_id, 1))

    def fits(self, ability: Ability, signature: Signature) -> bool:
        """Whether the machine can run it at all, wherever it failed before."""
        if signature.engine not in ability.engines:
            return False
        if ability.linked or signature.shape is Shape.WHOLE:
            return True
        return signature.shape is Shape.UNCUT and signature.engine not in self.linked_engines

    def takes(self, ability: Ability, signature: Signature) -> bool:
        """Whether the machine should run it: not where the chunk failed when another machine can take it."""
        if not self.fits(ability, signature):
            return False
        if ability.machine_id not in signature.avoid:
            return True
        others = (other for id_, other in self.machines.items() if id_ not in signature.avoid)
        return not any(self.fits(other, signature) for other in others)


@dataclass(frozen=True, slots=True)
class Assignment:
    """This chunk goes to this machine; `whole` means that the task's chunks become one first (R7.4)."""

    machine_id: int
    task_id: int
    chunk_id: int
    whole: bool = False


def plan(
    index: ReadyIndex, free_slots: Sequence[FreeSlots], usage: Mapping[int, float], policy: Policy
) -> list[Assignment]:
    """Give free slots work, machine by machine in the given order, one slot a machine and round.

    `usage` is each user's running cost (occupied slots). Reads one head per waiting user of the classes that it
    touches, then costs O(log n) a slot; nothing is changed.
    """
    loads = _Loads(usage, policy)
    cursors = {signature: _Cursor(index, signature, loads) for signature in index.signatures}
    left = [
        (free.ability, free.count, [one for needs, one in cursors.items() if policy.takes(free.ability, needs)])
        for free in free_slots
    ]
    assignments: list[Assignment] = []
    while left:
        again = []
        for ability, count, choices in left:
            heads = [(key, cursor) for cursor in choices if (key := cursor.key()) is not None]
            if count > 0 and heads:
                assignments.append(min(heads, key=itemgetter(0))[1].take(ability))
                again.append((ability, count - 1, choices))
        left = again
    return assignments


class _Loads:
    """Running cost per share while a plan is made: what the plan gives counts at once."""

    def __init__(self, usage: Mapping[int, float], policy: Policy) -> None:
        self._cost = dict(usage)
        self._policy = policy

    def of(self, user_id: int) -> float:
        return self._cost.get(user_id, 0.0) / self._policy.share(user_id)

    def give(self, user_id: int) -> None:
        self._cost[user_id] = self._cost.get(user_id, 0.0) + 1.0


class _Waiting:
    """One user's chunks in one class, oldest task first; a lazy walk."""

    __slots__ = ("_buckets", "_chunks", "head")

    def __init__(self, tasks: SortedDict) -> None:
        self._buckets: Iterator[_Bucket] = iter(tasks.values())
        self._chunks: Iterator[_Chunk] = iter(())
        self.head: _Chunk | None = None
        self.step()

    def step(self) -> None:
        self.head = next(self._chunks, None)
        if self.head is None:
            self.skip_task()

    def skip_task(self) -> None:
        bucket = next(self._buckets, None)
        self._chunks = iter(()) if bucket is None else reversed(bucket.chunks)
        self.head = next(self._chunks, None)


class _Cursor:
    """The heads of one signature: users of the highest class that still has something, in a heap by load and age."""

    def __init__(self, index: ReadyIndex, signature: Signature, loads: _Loads) -> None:
        self._shape = signature.shape
        self._loads = loads
        self._classes = index.classes(signature)
        self._priority = 0
        self._heap: list[tuple[float, tuple[int, int], int, _Waiting]] = []

    def key(self) -> tuple[int, float, tuple[int, int], int, int] | None:
        """Where the best head stands in the order of the whole farm; None when nothing is left."""
        while self._heap or self._next_class():
            load, age, user_id, waiting = self._heap[0]
            assert waiting.head is not None
            now = self._loads.of(user_id)
            if now == load:
                return -self._priority, load, age, waiting.head.place, waiting.head.chunk_id
            heapreplace(self._heap, (now, age, user_id, waiting))  # this user got something from another signature
        return None

    def take(self, ability: Ability) -> Assignment:
        """Give the best head to a machine; `key` was asked before."""
        _, _, user_id, waiting = self._heap[0]
        chunk = waiting.head
        assert chunk is not None
        whole = not ability.linked and self._shape is Shape.UNCUT
        if whole:
            waiting.skip_task()
        else:
            waiting.step()
        self._loads.give(user_id)
        if waiting.head is None:
            heappop(self._heap)
        else:
            heapreplace(self._heap, (self._loads.of(user_id), waiting.head.bucket.age, user_id, waiting))
        return Assignment(ability.machine_id, chunk.bucket.task.task_id, chunk.chunk_id, whole)

    def _next_class(self) -> bool:
        self._priority, users = next(self._classes, (0, {}))
        for user_id, tasks in users.items():
            waiting = _Waiting(tasks)
            assert waiting.head is not None
            self._heap.append((self._loads.of(user_id), waiting.head.bucket.age, user_id, waiting))
        heapify(self._heap)
        return bool(self._heap)
