"""The chunks that may start now, in an index that events change and a plan only reads (R9 Scheduling)."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import NamedTuple

from sortedcontainers import SortedDict

from renderonline.farm.needs import NOTHING, Needs


class Shape(StrEnum):
    """How much of its task a chunk is; v1 machines get whole tasks only (R7.4 Whole tasks).

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
    needs: Needs = NOTHING


@dataclass(slots=True)
class ReadyTask:
    """What the order needs to know of a task. `queued_us` is its age (microseconds since 1970), `running_limit` how
    many of its chunks may run at once (0: any), `recent` the machines that had chunks of it, the latest first. `short`:
    how many chunks of it in a row, up to the latest, took less than a second (R9.1 Work ahead)."""

    task_id: int
    user_id: int
    priority: int
    queued_us: int
    running_limit: int = field(default=0, kw_only=True)
    recent: tuple[int, ...] = field(default=(), kw_only=True)
    short: int = field(default=0, kw_only=True)


class Chunk(NamedTuple):
    """One object per waiting chunk, shared by the queue and the look-up. Greater is earlier: the chunk that goes next
    is the last of its bucket's list, where taking it out costs nothing. The ids end every comparison."""

    back: int
    id_back: int
    bucket: "Bucket"

    @property
    def place(self) -> int:
        return -self.back

    @property
    def chunk_id(self) -> int:
        return -self.id_back


class Bucket:
    """The waiting chunks of one task that share a signature, the next one last."""

    __slots__ = ("age", "by_id", "chunks", "signature", "task")

    def __init__(self, task: ReadyTask, signature: Signature) -> None:
        self.task, self.signature = task, signature
        self.age = (task.queued_us, task.task_id)
        self.chunks: list[Chunk] = []
        self.by_id: dict[int, Chunk] = {}
        """Of one that no index has yet."""

    @classmethod
    def of(cls, task: ReadyTask, places: Iterable[tuple[int, int]], signature: Signature) -> "Bucket":
        """Chunks (chunk id, place) that nothing else knows yet; made in any thread, for there may be many."""
        bucket = cls(task, signature)
        bucket.chunks = sorted(Chunk(-place, -chunk_id, bucket) for chunk_id, place in places)
        bucket.by_id = {chunk.chunk_id: chunk for chunk in bucket.chunks}
        return bucket

    def add(self, places: Sequence[tuple[int, int]]) -> list[Chunk]:
        fresh = [Chunk(-place, -chunk_id, self) for chunk_id, place in places]
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
        self._chunks: dict[int, Chunk] = {}
        self._buckets: dict[int, dict[Signature, Bucket]] = {}

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def signatures(self) -> Iterable[Signature]:
        """The needs of all that waits."""
        return self._queues.keys()

    @property
    def highest_class(self) -> int | None:
        """The highest priority class in which something waits; None when nothing does."""
        return max((-users.peekitem(0)[0] for users in self._queues.values()), default=None)

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
            bucket = Bucket(task, signature)
            self._link(bucket)
        self._chunks.update((chunk.chunk_id, chunk) for chunk in bucket.add(places))

    def add_bucket(self, bucket: Bucket, signature: Signature) -> None:
        """Make all chunks of a bucket ready; none of its task is."""
        bucket.signature, bucket.age = signature, (bucket.task.queued_us, bucket.task.task_id)
        if bucket.chunks:
            self._link(bucket)
            self._chunks |= bucket.by_id
        bucket.by_id = {}

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
            piece = replace(old.signature, shape=Shape.PIECE)
            there = self._buckets.get(task_id, {}).get(piece)
            if there is None:  # the whole bucket moves, however many chunks are in it
                old.signature = piece
                self._link(old)
            else:
                moved = there.add([(chunk.chunk_id, chunk.place) for chunk in old.chunks])
                self._chunks.update((chunk.chunk_id, chunk) for chunk in moved)

    def signatures_of(self, task_id: int) -> tuple[Signature, ...]:
        """The needs of the ready chunks of one task; none when none of them is ready."""
        return tuple(self._buckets.get(task_id, ()))

    def classes(self, signature: Signature) -> Iterator[tuple[int, Mapping[int, SortedDict]]]:
        """The priority classes of a signature, highest first: (priority, user -> tasks by age)."""
        for negative, users in self._queues.get(signature, {}).items():
            yield -negative, users

    def _link(self, bucket: Bucket) -> None:
        task = bucket.task
        self._buckets.setdefault(task.task_id, {})[bucket.signature] = bucket
        users = self._queues.setdefault(bucket.signature, SortedDict()).setdefault(-task.priority, {})
        users.setdefault(task.user_id, SortedDict())[bucket.age] = bucket

    def _drop(self, bucket: Bucket) -> None:
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
