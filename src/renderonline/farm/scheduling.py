"""Which waiting chunk goes to which free slot (R9 Scheduling).

`plan` reads the heads of the `ReadyIndex` and changes nothing. Order: priority class; inside a class the user with the
least running cost per share; then age of the task; inside a task the chunk's place. Limits of tasks and users hold back
what would exceed them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from heapq import heapify, heappop, heapreplace
from typing import Final, NamedTuple

from sortedcontainers import SortedDict

from renderonline.farm.needs import NOTHING, Ability, Needs
from renderonline.farm.ready import Bucket, Chunk, ReadyIndex, ReadyTask, Shape, Signature
from renderonline.farm.result_names import FILM_ENGINE

RESERVE_US: Final = 5 * 60 * 1_000_000
"""After so long a large request that finds no room reserves a machine."""
SHORT_S: Final = 1.0
"""A chunk that takes less time than this is short: the round trip to the next one is a good part of it."""
SHORT_IN_A_ROW: Final = 4
"""How many chunks of a task in a row must be short before machines hold its chunks ahead."""
AHEAD: Final = 2
"""How many assignments a machine may hold beyond its slots, for each of them."""
_SHARE_KEPT: Final = 4
"""At most every fourth machine is reserved."""


@dataclass(frozen=True, slots=True)
class FreeSlots:
    """Room on one machine. `memory_mib` and `gpus` are what its running chunks need, `card_mib` the memory that those
    cards must have of which some was asked for."""

    ability: Ability
    count: int = 1
    memory_mib: int = 0
    gpus: int = 0
    card_mib: tuple[int, ...] = ()

    def missing(self, needs: Needs) -> tuple[int, int]:
        """How many graphics cards and MiB are in use that these needs would want."""
        needs = needs.on(self.ability)
        memory = needs.memory_mib - self.ability.memory_mib + self.memory_mib
        return (self._missing_cards(needs) if needs.gpus else 0, max(0, memory) if needs.memory_mib else 0)

    def _missing_cards(self, needs: Needs) -> int:
        """A machine gives each chunk the smallest card that will do: there is room when the k largest demands fit the k
        largest cards, for every k."""
        wanted = sorted((*self.card_mib, *card_demands(needs)), reverse=True)
        largest = sorted((memory_mib for _, memory_mib in self.ability.cards), reverse=True)
        small = sum(mib > has for mib, has in zip(wanted, [*largest, *[0] * len(wanted)], strict=False))
        return max(small, needs.gpus - self.ability.gpus + self.gpus, 0)

    def less(self, needs: Needs) -> "FreeSlots":
        """What is left when a chunk with these needs runs there as well."""
        needs = needs.on(self.ability)
        memory_mib, gpus = self.memory_mib + needs.memory_mib, self.gpus + needs.gpus
        return FreeSlots(self.ability, self.count - 1, memory_mib, gpus, (*self.card_mib, *card_demands(needs)))


def card_demands(needs: Needs) -> tuple[int, ...]:
    """The memory (MiB) that each card of these needs must have; () when any will do."""
    return (needs.gpu_memory_mib,) * needs.gpus if needs.gpu_memory_mib else ()


class Allowance(NamedTuple):
    """A user's share of the farm, how many chunks of theirs may run at once, and how many MiB their tasks may take
    (0: any)."""

    share: int = 1
    running_limit: int = 0
    keep_mib: int = 0


class Usage(NamedTuple):
    """What runs now: the cost (occupied slots) of each user, the number of chunks of each task."""

    users: Mapping[int, float] = {}
    tasks: Mapping[int, int] = {}


@dataclass(frozen=True, slots=True)
class Policy:
    """What holds for the whole farm: every machine that takes assignments now (free or busy), what users may have."""

    machines: Mapping[int, Ability] = field(default_factory=dict)
    users: Mapping[int, Allowance] = field(default_factory=dict)
    linked_engines: frozenset[str] = frozenset()
    _with_card: dict[Signature, bool] = field(default_factory=dict, init=False, compare=False, repr=False)

    @classmethod
    def of(cls, machines: Iterable[Ability], users: Mapping[int, Allowance]) -> "Policy":
        """The policy for these machines and users (share 1 and no limit where there is none)."""
        abilities = {ability.machine_id: ability for ability in machines}
        linked = frozenset(name for one in abilities.values() if one.linked for name, _ in one.engines)
        return cls(abilities, users, linked)

    def fits(self, ability: Ability, signature: Signature) -> bool:
        """Whether the machine can run it at all, wherever it failed before."""
        if ability.lacks(signature.engine, signature.needs) or self.lacks_card(ability, signature):
            return False
        if ability.linked or signature.shape is Shape.WHOLE:
            return True
        return signature.shape is Shape.UNCUT and signature.engine not in self.linked_engines

    def lacks_card(self, ability: Ability, signature: Signature) -> bool:
        """Whether the machine has no usable card for a chunk that prefers one, while another that fits has."""
        needs = signature.needs
        if not needs.prefers_gpu or ability.gpus:
            return False
        if signature not in self._with_card:
            able = (one for one in self.machines.values() if one.gpus)
            self._with_card[signature] = any(not one.lacks(signature.engine, needs) for one in able)
        return self._with_card[signature]

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
    """This chunk goes to this machine; `whole` means that the task's chunks become one first (R7.4 Whole tasks);
    `needs` is what it takes there."""

    machine_id: int
    task_id: int
    chunk_id: int
    whole: bool = False
    needs: Needs = field(default=NOTHING, compare=False)


def plan_round(
    index: ReadyIndex,
    free_slots: Sequence[FreeSlots],
    usage: Usage,
    policy: Policy,
    now_us: int,
    reserved: Mapping[int, Signature],
) -> tuple[list[Assignment], dict[int, Signature]]:
    """What free slots get now, and which machines are kept for large requests afterwards. `reserved` are those that
    were kept before. The planner and a submission's own transaction both ask this, each with its index."""
    kept = reserve(index, free_slots, usage, policy, now_us, reserved)
    assignments = plan(index, free_slots, usage, policy, kept)
    served = {one.machine_id for one in assignments}
    return assignments, {machine_id: signature for machine_id, signature in kept.items() if machine_id not in served}


def plan(
    index: ReadyIndex,
    free_slots: Sequence[FreeSlots],
    usage: Usage,
    policy: Policy,
    reserved: Mapping[int, Signature] | None = None,
    *,
    ahead: bool = False,
) -> list[Assignment]:
    """Give free slots work, machine by machine in the given order, one slot a machine and round; of machines that can
    take the same, one that had a part of the task before goes first.

    `reserved` is what `reserve` gave: such a machine takes only what it is kept for, or of a higher priority class.
    `ahead`: the slots are not free yet. A machine gets what would be its next if they were, and nothing when that may
    not be held ahead (R9.1 Work ahead).

    Reads one head per waiting user of the classes that it touches, then costs O(log n) a slot; nothing is changed.
    """
    loads = _Loads(usage, policy)
    ranking = _Ranking(index, loads, policy, reserved or {})
    assignments: list[Assignment] = []
    again = {free.ability.machine_id: free for free in free_slots if free.count > 0}
    while again:
        turn, again = again, {}
        for machine_id in list(turn):
            while (free := turn.get(machine_id)) is not None:
                choices = ranking.choices(free)
                cursor = ranking.best(free, choices)
                if cursor is None or (ahead and not cursor.is_short):
                    del turn[machine_id]
                    continue
                near = (turn[one] for one in cursor.head.bucket.task.recent if one in turn)
                served = next((one for one in near if ranking.choices(one) is choices), free)
                del turn[served.ability.machine_id]
                assignments.append(cursor.take(served.ability))
                if served.count > 1:
                    again[served.ability.machine_id] = served.less(cursor.signature.needs)
    return assignments


def next_classes(index: ReadyIndex, machines: Iterable[FreeSlots], usage: Usage, policy: Policy) -> dict[int, int]:
    """The priority class of what each of these machines would get next; those that would get nothing are left out."""
    ranking = _Ranking(index, _Loads(usage, policy), policy, {})
    found = ((free.ability.machine_id, ranking.choices(free).best()) for free in machines)
    return {machine_id: -best[0][0] for machine_id, best in found if best is not None}


def idle_machine(
    free_slots: Iterable[FreeSlots], policy: Policy, signature: Signature, reserved: Mapping[int, Signature]
) -> int | None:
    """The linked machine that may look at a scene now, by what its task's chunks need; None when none is free. It is
    one with the most of the `free_slots` that the plan left. A look uses no graphics card."""
    needs = without_cards(signature.needs)
    able = [
        free
        for free in free_slots
        if free.ability.linked and free.count > 0 and free.ability.machine_id not in reserved
        and policy.fits(free.ability, signature) and not any(free.missing(needs))
    ]  # fmt: skip
    return max(able, key=lambda free: free.count).ability.machine_id if able else None


def without_cards(needs: Needs) -> Needs:
    """The same without graphics cards."""
    return replace(needs, gpus=0, gpu_memory_mib=0, prefers_gpu=False, draws=False)


def reserve(
    index: ReadyIndex,
    free_slots: Sequence[FreeSlots],
    usage: Usage,
    policy: Policy,
    now_us: int,
    before: Mapping[int, Signature],
) -> dict[int, Signature]:
    """Which machines are kept for large requests: one for each kind whose head has waited `RESERVE_US` and finds room
    on no free machine. `before` is what was kept so far; it goes on until `plan` gives the machine something."""
    loads = _Loads(usage, policy)
    cursors = [_Cursor(index, one, loads) for one in index.signatures if one.needs.may_starve]
    heads = [(key, cursor.signature) for cursor in cursors if (key := cursor.key()) is not None]
    due = sorted((key, signature) for key, signature in heads if key[2][0] <= now_us - RESERVE_US)
    earlier = {signature: policy.machines.get(machine_id) for machine_id, signature in before.items()}
    kept: dict[int, Signature] = {}
    for _, signature in due[: max(1, len(policy.machines) // _SHARE_KEPT)]:
        others = (one for one in free_slots if one.ability.machine_id not in kept)
        able = [one for one in others if policy.takes(one.ability, signature)]
        nearest = min(able, key=lambda one: one.missing(signature.needs), default=None)
        finds_room = nearest is not None and not any(nearest.missing(signature.needs))
        old = earlier.get(signature)
        if old is not None and not finds_room and old.machine_id not in kept and policy.takes(old, signature):
            kept[old.machine_id] = signature
        elif nearest is not None and (old is not None or not finds_room):
            kept[nearest.ability.machine_id] = signature
    return kept


class _Loads:
    """What runs while a plan is made, including what the plan has assigned so far."""

    def __init__(self, usage: Usage, policy: Policy) -> None:
        self._users, self._tasks = dict(usage.users), dict(usage.tasks)
        self._allowances = policy.users

    def of(self, user_id: int) -> float:
        """Running cost per share."""
        return self._users.get(user_id, 0.0) / max(1, self._allowances.get(user_id, _PLAIN).share)

    def user_may(self, user_id: int) -> bool:
        """Whether another chunk of the user may run."""
        limit = self._allowances.get(user_id, _PLAIN).running_limit
        return not limit or self._users.get(user_id, 0.0) < limit

    def task_may(self, task: ReadyTask) -> bool:
        """Whether another chunk of the task may run."""
        return not task.running_limit or self._tasks.get(task.task_id, 0) < task.running_limit

    def give(self, task: ReadyTask) -> None:
        self._users[task.user_id] = self._users.get(task.user_id, 0.0) + 1.0
        self._tasks[task.task_id] = self._tasks.get(task.task_id, 0) + 1


_PLAIN: Final = Allowance()
Key = tuple[int, float, tuple[int, int], int, int]
"""Where a chunk stands in the order of the whole farm: class, load of its user, age of its task, place, id."""


class _Waiting:
    """One user's chunks in one class, oldest task first; a lazy walk."""

    __slots__ = ("_buckets", "_chunks", "head")

    def __init__(self, tasks: SortedDict) -> None:
        self._buckets: Iterator[Bucket] = iter(tasks.values())
        self._chunks: Iterator[Chunk] = iter(())
        self.head: Chunk | None = None
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
    """The heads of one signature: users of the highest class that still has something, in a heap by load and age.

    Keys only grow while a plan is made: what a heap says of the order is never too late.
    """

    def __init__(self, index: ReadyIndex, signature: Signature, loads: _Loads) -> None:
        self.signature = signature
        self._loads = loads
        self._classes = index.classes(signature)
        self._priority = 0
        self._heap: list[tuple[float, tuple[int, int], int, _Waiting]] = []

    def key(self) -> Key | None:
        """Where the best head stands that may start; None when nothing is left."""
        loads = self._loads
        while self._heap or self._next_class():
            load, age, user_id, waiting = self._heap[0]
            while waiting.head is not None and not loads.task_may(waiting.head.bucket.task):
                waiting.skip_task()
            head = waiting.head
            if head is None or not loads.user_may(user_id):
                heappop(self._heap)
                continue
            now = loads.of(user_id), head.bucket.age
            if now == (load, age):
                return -self._priority, load, age, head.place, head.chunk_id
            heapreplace(self._heap, (*now, user_id, waiting))
        return None

    def take(self, ability: Ability) -> Assignment:
        """Give the best head to a machine."""
        chunk, waiting = self.head, self._heap[0][3]
        task = chunk.bucket.task
        whole = not ability.linked and self.signature.shape is Shape.UNCUT
        if whole:
            waiting.skip_task()
        else:
            waiting.step()
        self._loads.give(task)
        return Assignment(ability.machine_id, task.task_id, chunk.chunk_id, whole, self.signature.needs.on(ability))

    @property
    def head(self) -> Chunk:
        """The best head; `key` was asked before."""
        head = self._heap[0][3].head
        assert head is not None
        return head

    @property
    def is_short(self) -> bool:
        """Whether the best head may be held ahead: chunks of its task are short, and it needs nothing for itself that
        a machine could not give it when its turn comes."""
        plain = not self.signature.needs.is_large and self.signature.engine != FILM_ENGINE
        return plain and self.head.bucket.task.short >= SHORT_IN_A_ROW

    def _next_class(self) -> bool:
        self._priority, users = next(self._classes, (0, {}))
        for user_id, tasks in users.items():
            waiting = _Waiting(tasks)
            assert waiting.head is not None
            self._heap.append((self._loads.of(user_id), waiting.head.bucket.age, user_id, waiting))
        heapify(self._heap)
        return bool(self._heap)


class _Choices:
    """The cursors that some machines can take from, in a heap by their heads."""

    def __init__(self, cursors: Iterable[_Cursor]) -> None:
        self._heap = [(key, cursor) for cursor in cursors if (key := cursor.key()) is not None]
        heapify(self._heap)

    def best(self) -> tuple[Key, _Cursor] | None:
        """The cursor with the earliest head."""
        while self._heap:
            known, cursor = self._heap[0]
            key = cursor.key()
            if key == known:
                return known, cursor
            if key is None:
                heappop(self._heap)
            else:
                heapreplace(self._heap, (key, cursor))
        return None


class _Ranking:
    """Which cursors each machine can take from; machines that can take the same share their `choices`."""

    def __init__(self, index: ReadyIndex, loads: _Loads, policy: Policy, reserved: Mapping[int, Signature]) -> None:
        cursors = {one: _Cursor(index, one, loads) for one in index.signatures}
        self._cursors, self._policy, self._reserved = cursors, policy, reserved
        self._sized = any(signature.needs.is_large for signature in cursors)
        self._single = {machine_id for signature in cursors for machine_id in signature.avoid} | reserved.keys()
        self._known: dict[object, _Choices] = {}

    def choices(self, free: FreeSlots) -> _Choices:
        """What a machine with this room can take."""
        ability, used = free.ability, (free.memory_mib, free.gpus, free.card_mib) if self._sized else None
        key = (ability[1:], used, ability.machine_id if ability.machine_id in self._single else None)
        if key not in self._known:
            takes = [cursor for one, cursor in self._cursors.items() if self._policy.takes(ability, one)]
            self._known[key] = _Choices(one for one in takes if not any(free.missing(one.signature.needs)))
        return self._known[key]

    def best(self, free: FreeSlots, choices: _Choices) -> _Cursor | None:
        """From which cursor the machine takes next."""
        found = choices.best()
        kept_for = self._reserved.get(free.ability.machine_id)
        kept = None if kept_for is None else self._cursors.get(kept_for)
        if found is None or kept is None or (key := kept.key()) is None or found[0][0] < key[0]:
            return None if found is None else found[1]
        return None if any(free.missing(kept.signature.needs)) else kept
