"""The plan against a reference that sorts everything, and the rules that matter one by one (R9 Scheduling)."""

from collections import defaultdict
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import Ability, BoxKind, Needs, box_of
from renderonline.farm.ready import ReadyIndex, ReadyTask, Shape, Signature
from renderonline.farm.scheduling import (
    RESERVE_US,
    Allowance,
    Assignment,
    FreeSlots,
    Policy,
    Usage,
    idle_machine,
    plan,
    reserve,
)

ENGINES = ("blender", "povray", "mitsuba")
BLENDER = (("blender", "5.0.1"),)
Waiting = tuple[ReadyTask, int, int, Signature]
Drawn = tuple["Farm", list[FreeSlots], Usage, Policy]


class Farm:
    """An index and the same things as a plain list."""

    def __init__(self) -> None:
        self.index = ReadyIndex()
        self.waiting: list[Waiting] = []

    def add(self, task: ReadyTask, chunk_id: int, place: int = 0, signature: Signature | None = None) -> None:
        signature = signature or Signature("blender")
        self.index.add(task, chunk_id, place, signature)
        self.waiting.append((task, chunk_id, place, signature))


class Reference:
    """Sorts everything for every single slot."""

    def __init__(self, drawn: Drawn, reserved: dict[int, Signature]) -> None:
        farm, self.free, usage, self.policy = drawn
        self.waiting, self.reserved = list(farm.waiting), reserved
        self.avoided = {machine_id for waiting in farm.waiting for machine_id in waiting[3].avoid}
        self.sized = any(waiting[3].needs.is_large for waiting in farm.waiting)
        self.users, self.tasks = defaultdict(float, usage.users), defaultdict(int, usage.tasks)

    def plan(self) -> list[Assignment]:
        given, left = [], {free.ability.machine_id: free for free in self.free if free.count > 0}
        while left:
            turns, left = left, {}
            while turns:
                free = next(iter(turns.values()))
                if (best := self.best(free)) is None:
                    del turns[free.ability.machine_id]
                    continue
                same = [one for one in best[0].recent if one in turns and self.alike(turns[one], free)]
                free = turns.pop(same[0] if same else free.ability.machine_id)
                given.append(self.give(free, best))
                needs, count = best[3].needs.on(free.ability), free.count - 1
                more = FreeSlots(free.ability, count, free.memory_mib + needs.memory_mib, free.gpus + needs.gpus)
                left |= {free.ability.machine_id: more} if count else {}
        return given

    def best(self, free: FreeSlots) -> Waiting | None:
        fitting = sorted(self.fitting(free), key=self.order)
        kept_for = self.reserved.get(free.ability.machine_id)
        wanted = [one for one in self.startable() if one[3] == kept_for]
        if wanted:
            first = min(wanted, key=self.order)
            fitting = [one for one in fitting if one == first or one[0].priority > first[0].priority]
        return fitting[0] if fitting else None

    def fitting(self, free: FreeSlots) -> list[Waiting]:
        def has_room(needs: Needs) -> bool:
            memory, gpus = free.ability.memory_mib - free.memory_mib, free.ability.gpus - free.gpus
            return needs.memory_mib <= max(0, memory) and needs.gpus <= max(0, gpus)

        may = self.startable()
        return [
            one for one in may if self.policy.takes(free.ability, one[3]) and has_room(one[3].needs.on(free.ability))
        ]

    def startable(self) -> list[Waiting]:
        def may(task: ReadyTask) -> bool:
            limit = self.policy.users.get(task.user_id, Allowance()).running_limit or 10**9
            return self.users[task.user_id] < limit and self.tasks[task.task_id] < (task.running_limit or 10**9)

        return [one for one in self.waiting if may(one[0])]

    def alike(self, one: FreeSlots, other: FreeSlots) -> bool:
        """Whether two machines could be exchanged for each other now."""
        special = self.reserved.keys() | self.avoided
        same = one.ability[1:] == other.ability[1:]
        same &= not self.sized or (one.memory_mib, one.gpus) == (other.memory_mib, other.gpus)
        return one is other or (same and not {one.ability.machine_id, other.ability.machine_id} & special)

    def order(self, one: Waiting) -> tuple[object, ...]:
        task, chunk_id, place, _ = one
        load = self.users[task.user_id] / max(1, self.policy.users.get(task.user_id, Allowance()).share)
        return -task.priority, load, task.queued_us, task.task_id, place, chunk_id

    def give(self, free: FreeSlots, best: Waiting) -> Assignment:
        self.waiting.remove(best)
        self.users[best[0].user_id] += 1
        self.tasks[best[0].task_id] += 1
        return Assignment(free.ability.machine_id, best[0].task_id, best[1])


def some_needs(random: Random) -> Needs:
    if random.random() < 0.5:
        return Needs()
    version, tags = random.choice(("", "", "4.2", "5.0")), random.choice(((), (), ("fast",)))
    pool, gpus = random.choice(("", "", "", "film")), random.choice((0, 0, 0, 1))
    prefers = not gpus and random.random() < 0.3
    box = random.choice(("", "", "", "landlock", "bwrap"))
    return Needs(version, tags, pool, random.choice((0, 0, 4, 8)), gpus, box, prefers_gpu=prefers)


def some_machine(random: Random, number: int) -> Ability:
    versions = {name: random.choice(("5.0.1", "5.0.1", "4.2", "")) for name in ENGINES}
    engines = tuple((name, version) for name, version in versions.items() if version)
    pool, memory, gpus = random.choice((("", 8, 1), ("", 24, 2), ("", 0, 0), ("film", 16, 2)))
    tags = frozenset(random.choice(((), ("fast",))))
    return Ability(number, engines, True, tags, pool, memory, gpus, random.choice(tuple(BoxKind)))


def some_farm(seed: int) -> Drawn:
    """A farm in which something fits, mostly; Hypothesis prefers simple ones, where nothing does."""
    random, farm, chunk_id = Random(seed), Farm(), 0
    for task_id in range(1, random.randint(1, 9)):
        task = ReadyTask(
            *(task_id, random.randint(1, 3), random.choice((10, 50)), random.randint(0, 3)),
            running_limit=random.choice((0, 0, 1, 3)),
            recent=tuple(random.sample(range(1, 5), random.randint(0, 3))),
        )
        engine, needs = random.choice((*ENGINES, "blender", "blender")), some_needs(random)
        for _ in range(random.randint(1, 4)):
            chunk_id += 1
            avoid = frozenset(random.choice(((), (), (), (1,), (2,), (1, 3))))
            farm.add(task, chunk_id, random.randint(0, 3), Signature(engine, Shape.PIECE, avoid, needs))
    first, alike = some_machine(random, 1), random.random() < 0.7  # locality chooses among equal machines
    numbers = range(1, random.randint(2, 5))
    machines = [first._replace(machine_id=one) if alike else some_machine(random, one) for one in numbers]
    free = [
        FreeSlots(ability, random.randint(0, 4), random.choice((0, 0, 0, 4, 20)), random.choice((0, 0, 1)))
        for ability in machines
    ]
    users = {user: Allowance(random.randint(0, 3), random.choice((0, 0, 2, 6))) for user in (1, 2)}
    running = {user: float(random.randint(0, 5)) for user in range(1, 4)}
    usage = Usage(running, {task: random.randint(0, 2) for task in range(1, 4)})
    return farm, free, usage, Policy.of(machines, users)


@pytest.mark.parametrize("seeds", [range(first, first + 500) for first in range(0, 3000, 500)], ids=str)
def test_plan_gives_what_the_reference_gives(seeds: range) -> None:
    for seed in seeds:
        drawn, random = some_farm(seed), Random(seed)
        farm, free, usage, policy = drawn
        pairs = [(slots.ability, one[3]) for slots in free for one in farm.waiting]
        able = [(ability.machine_id, signature) for ability, signature in pairs if policy.takes(ability, signature)]
        reserved = dict(random.sample(able, min(len(able), random.choice((0, 0, 1, 2)))))
        assert plan(farm.index, free, usage, policy, reserved) == Reference(drawn, reserved).plan(), seed
        check_rules(farm, free, usage, policy)


def check_rules(farm: Farm, free: list[FreeSlots], usage: Usage, policy: Policy) -> None:
    """A plan changes nothing, exceeds no limit and no room, and gives no chunk twice."""
    before = len(farm.index)
    first = plan(farm.index, free, usage, policy)
    assert len(farm.index) == before
    assert plan(farm.index, free, usage, policy) == first
    assert len({one.chunk_id for one in first}) == len(first)
    by_chunk = {chunk_id: (task, signature) for task, chunk_id, _, signature in farm.waiting}
    given_to = [(one.machine_id, *by_chunk[one.chunk_id]) for one in first]
    for slots in free:
        ability = slots.ability
        there = [
            signature.needs.on(ability) for machine_id, _, signature in given_to if machine_id == ability.machine_id
        ]
        assert len(there) <= slots.count
        assert sum(needs.memory_mib for needs in there) <= max(0, slots.ability.memory_mib - slots.memory_mib)
        assert sum(needs.gpus for needs in there) <= max(0, slots.ability.gpus - slots.gpus)
    for task, count in ((task, sum(one == task for _, one, _ in given_to)) for task, _, _, _ in farm.waiting):
        running = usage.tasks.get(task.task_id, 0)
        assert not task.running_limit or not count or running + count <= task.running_limit
    for user, allowance in policy.users.items():
        count = sum(task.user_id == user for _, task, _ in given_to)
        assert not allowance.running_limit or not count or usage.users[user] + count <= allowance.running_limit


def chunks_of(index: ReadyIndex, task_id: int) -> list[int]:
    buckets = index._buckets.get(task_id, {}).values()
    return sorted(chunk.chunk_id for bucket in buckets for chunk in bucket.chunks)


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 40), st.booleans()), max_size=60))
def test_index_forgets_what_is_taken_out(changes: list[tuple[int, int, bool]]) -> None:
    index, expected = ReadyIndex(), {}
    for task_id, chunk_id, come in changes:
        if come:
            task = ReadyTask(task_id, task_id % 3, 50, 0)
            index.add(task, chunk_id, chunk_id, Signature("blender", Shape.PIECE, frozenset({chunk_id % 2})))
            expected[chunk_id] = task_id
        else:
            assert index.remove(chunk_id) == (expected.pop(chunk_id, None) is not None)
    assert len(index) == len(expected)
    for task_id in range(1, 7):
        assert chunks_of(index, task_id) == sorted(chunk for chunk, task in expected.items() if task == task_id)
        index.remove_task(task_id)
    assert len(index) == 0
    assert not list(index.signatures)


LINKED = Ability(1000, BLENDER)
SECOND = Ability(1001, BLENDER)
V1 = Ability(1, BLENDER, linked=False)


def one_task(shape: Shape, avoid: frozenset[int] = frozenset(), chunks: int = 1) -> Farm:
    farm = Farm()
    for chunk_id in range(1, chunks + 1):
        farm.add(ReadyTask(1, 1, 50, 0), chunk_id, chunk_id, Signature("blender", shape, avoid))
    return farm


def given_to(farm: Farm, *free: Ability, machines: tuple[Ability, ...] | None = None) -> list[Assignment]:
    policy = Policy.of(free if machines is None else machines, {})
    return plan(farm.index, [FreeSlots(ability) for ability in free], Usage(), policy)


def test_chunk_goes_not_where_it_failed_when_another_machine_can_take_it() -> None:
    farm = one_task(Shape.PIECE, frozenset({1000}))
    assert given_to(farm, LINKED, machines=(LINKED, SECOND)) == []
    assert given_to(farm, LINKED, SECOND) == [Assignment(1001, 1, 1)]


def test_chunk_goes_where_it_failed_when_no_other_machine_can_take_it() -> None:
    assert given_to(one_task(Shape.PIECE, frozenset({1000})), LINKED) == [Assignment(1000, 1, 1)]


def test_v1_machine_takes_whole_tasks_only() -> None:
    assert given_to(one_task(Shape.PIECE), V1) == []
    assert given_to(one_task(Shape.WHOLE), V1) == [Assignment(1, 1, 1)]


def test_v1_machine_makes_a_cut_task_whole_only_without_linked_machines() -> None:
    assert given_to(one_task(Shape.UNCUT, chunks=3), V1) == [Assignment(1, 1, 1, whole=True)]
    assert given_to(one_task(Shape.UNCUT, chunks=3), V1, machines=(V1, LINKED)) == []


def test_a_scene_is_looked_at_by_the_linked_machine_with_the_most_free_slots() -> None:
    policy = Policy.of((LINKED, SECOND, V1), {})
    wanted, both = Signature("blender"), [FreeSlots(LINKED), FreeSlots(SECOND, 2)]
    assert idle_machine([*both, FreeSlots(V1, 9)], policy, wanted, {}) == 1001
    assert idle_machine(both, policy, wanted, {1001: wanted}) == 1000
    assert idle_machine([FreeSlots(V1)], policy, wanted, {}) is None
    assert idle_machine(both, policy, Signature("povray"), {}) is None


def test_a_look_needs_what_the_task_needs_but_no_card() -> None:
    able = LINKED._replace(memory_mib=1000, gpus=1)
    wanted = Signature("blender", needs=Needs(memory_mib=600, gpus=1))
    policy = Policy.of((able, SECOND), {})
    assert idle_machine([FreeSlots(SECOND), FreeSlots(able, gpus=1)], policy, wanted, {}) == 1000
    assert idle_machine([FreeSlots(able, memory_mib=500)], policy, wanted, {}) is None


def test_task_made_whole_is_given_once() -> None:
    other = Ability(2, BLENDER, linked=False)
    assert given_to(one_task(Shape.UNCUT, chunks=3), V1, other) == [Assignment(1, 1, 1, whole=True)]


def test_begun_task_is_pieces_from_then_on() -> None:
    farm = one_task(Shape.UNCUT, chunks=3)
    farm.index.remove(1)
    farm.index.begun(1)
    assert {one.shape for one in farm.index.signatures_of(1)} == {Shape.PIECE}
    assert len(farm.index) == 2


def test_pieces_of_a_begun_task_join_those_that_are_pieces_already() -> None:
    farm = one_task(Shape.UNCUT, chunks=3)
    farm.add(ReadyTask(1, 1, 50, 0), 9, 9, Signature("blender", Shape.PIECE))
    farm.index.begun(1)
    assert farm.index.signatures_of(1) == (Signature("blender", Shape.PIECE),)
    assert chunks_of(farm.index, 1) == [1, 2, 3, 9]
    assert all(farm.index.remove(chunk_id) for chunk_id in (1, 2, 3, 9))
    assert not list(farm.index.signatures)


def test_user_with_a_larger_share_gets_more() -> None:
    farm = Farm()
    for user in (1, 2):
        for number in range(10):
            farm.add(ReadyTask(user, user, 50, 0), user * 100 + number)
    policy = Policy.of([LINKED], {1: Allowance(3), 2: Allowance(1)})
    assignments = plan(farm.index, [FreeSlots(LINKED, 8)], Usage(), policy)
    assert sum(one.task_id == 1 for one in assignments) == 6


def test_engine_that_nobody_has_waits() -> None:
    assert given_to(one_task(Shape.WHOLE), Ability(1000, (("povray", "3.8"),))) == []


@pytest.mark.parametrize(
    ("needs", "missing"),
    [
        (Needs(), ""),
        (Needs(engine_version="5"), ""),
        (Needs(engine_version="5.0.1"), ""),
        (Needs(engine_version="5.0.10"), "blender 5.0.1, not 5.0.10 or newer"),
        (Needs(tags=("fast", "gpu")), "no tag gpu"),
        (Needs(pool="film"), "not in the pool film"),
        (Needs(memory_mib=16), ""),
        (Needs(memory_mib=17), "16 MiB of memory, not 17"),
        (Needs(gpus=2), "1 graphics cards, not 2"),
        (Needs(sandbox="landlock"), ""),
        (Needs(sandbox="bwrap"), "only the box landlock, not bwrap"),
    ],
)
def test_machine_says_what_it_lacks(needs: Needs, missing: str) -> None:
    machine = Ability(1, BLENDER, True, frozenset({"fast"}), "", 16, 1, BoxKind.LANDLOCK)
    assert machine.lacks("blender", needs) == missing


def test_machine_of_a_pool_is_kept_for_it() -> None:
    lists = Ability(1, BLENDER, renderers=frozenset({("blender", "CYCLES"), ("other", "OCTANE")}))
    assert lists.lacks("blender", Needs(renderer="OCTANE")) == "its blender can't render with OCTANE"
    assert not lists.lacks("blender", Needs(renderer="CYCLES"))
    assert not Ability(1, BLENDER).lacks("blender", Needs(renderer="OCTANE"))  # it does not say
    assert Ability(1, BLENDER, pool="film").lacks("blender", Needs()) == "kept for the pool film"
    assert not Ability(1, BLENDER, pool="film").lacks("blender", Needs(pool="film"))


@pytest.mark.parametrize("box", ["", "none", "a box of the future"])
def test_machine_without_a_box_that_is_known_has_none(box: str) -> None:
    machine = Ability(1, BLENDER, sandbox=box_of(box))
    assert machine.lacks("blender", Needs(sandbox="landlock")) == "no box around engines, not landlock"
    assert machine.lacks("blender", Needs()) == ""


def test_unknown_version_satisfies_no_minimum() -> None:
    assert "not known" in Ability(1, (("blender", ""),)).lacks("blender", Needs(engine_version="0.1"))


def test_needs_have_one_canonical_form() -> None:
    sent = Needs("4.2", ("GPU", " fast", "gpu"), " Film ", 8, 1, " Bwrap")
    assert sent.checked() == Needs("4.2", ("fast", "gpu"), "film", 8, 1, "bwrap")


@pytest.mark.parametrize(
    "needs",
    [
        Needs(engine_version="4.x"),
        Needs(engine_version="9" * 300),
        Needs(tags=("two words",)),
        Needs(tags=tuple(f"t{number}" for number in range(17))),
        Needs(pool="a" * 51),
        Needs(memory_mib=-1),
        Needs(gpus=65),
        Needs(sandbox="none"),
    ],
)
def test_needs_that_nobody_can_have_are_refused(needs: Needs) -> None:
    with pytest.raises(InvalidRequest):
        needs.checked()


def test_submitter_adds_to_the_needs_of_the_engine() -> None:
    engine, own = Needs("4.10", ("gpu",), "film", 8, 0, "bwrap"), Needs("4.9", ("fast",), "", 4, 1, "landlock")
    assert engine.joined(own) == Needs("4.10", ("fast", "gpu"), "film", 8, 1, "bwrap")


def test_chunk_prefers_a_machine_that_had_its_task() -> None:
    farm = Farm()
    farm.add(ReadyTask(1, 1, 50, 0, recent=(1001,)), 1)
    assert given_to(farm, LINKED, SECOND) == [Assignment(1001, 1, 1)]


def test_machine_that_can_do_more_is_not_taken_for_locality() -> None:
    farm = Farm()
    farm.add(ReadyTask(1, 1, 50, 0, recent=(1001,)), 1)
    farm.add(ReadyTask(2, 1, 50, 0), 2, signature=Signature("povray"))
    both = SECOND._replace(engines=(*BLENDER, ("povray", "3.8")))
    assert given_to(farm, LINKED, both) == [Assignment(1000, 1, 1), Assignment(1001, 2, 2)]


BIG = LINKED._replace(memory_mib=64)
LARGE = Signature("blender", needs=Needs(memory_mib=60))


def crowded(small_priority: int = 50) -> Farm:
    """A large chunk, and small ones that go before it."""
    farm = Farm()
    farm.add(ReadyTask(1, 1, 50, 10), 1, signature=LARGE)
    for number in range(2, 6):
        farm.add(ReadyTask(number, 2, small_priority, 0), number)
    return farm


def step(
    farm: Farm, free: FreeSlots, now_us: int, before: dict[int, Signature]
) -> tuple[list[int], dict[int, Signature]]:
    usage, policy = Usage({1: 9.0}), Policy.of([free.ability], {})
    kept = reserve(farm.index, [free], usage, policy, now_us, before)
    return [one.chunk_id for one in plan(farm.index, [free], usage, policy, kept)], kept


def test_large_request_reserves_a_machine_after_five_minutes() -> None:
    half = FreeSlots(BIG, 2, memory_mib=32)
    assert step(crowded(), half, RESERVE_US + 9, {}) == ([2, 3], {})
    assert step(crowded(), half, RESERVE_US + 10, {}) == ([], {1000: LARGE})


def test_reserved_machine_gives_the_large_request_the_way_once_it_has_room() -> None:
    given_chunks, _ = step(crowded(), FreeSlots(BIG, 2), RESERVE_US + 10, {1000: LARGE})
    assert given_chunks[0] == 1


def test_large_request_that_finds_room_waits_for_its_turn() -> None:
    assert step(crowded(), FreeSlots(BIG, 1), RESERVE_US + 10, {}) == ([2], {})


def test_higher_priority_passes_a_reservation() -> None:
    half = FreeSlots(BIG, 2, memory_mib=32)
    assert step(crowded(small_priority=60), half, RESERVE_US + 10, {}) == ([2, 3], {1000: LARGE})


def test_reservation_moves_to_a_machine_that_has_room_now() -> None:
    other = FreeSlots(BIG._replace(machine_id=1001))
    policy = Policy.of([BIG, other.ability], {})
    kept = reserve(crowded().index, [FreeSlots(BIG, 1, 32), other], Usage(), policy, RESERVE_US + 10, {1000: LARGE})
    assert kept == {1001: LARGE}


def test_reservation_ends_with_what_it_was_for() -> None:
    farm = crowded()
    farm.index.remove(1)
    assert step(farm, FreeSlots(BIG, 1, 32), RESERVE_US + 10, {1000: LARGE}) == ([2], {})


def test_limits_of_task_and_user_are_kept_in_one_plan() -> None:
    farm = Farm()
    for number in range(1, 6):
        farm.add(ReadyTask(1, 1, 50, 0, running_limit=2), number, number)
        farm.add(ReadyTask(2, 2, 50, 0), 10 + number, number)
    policy = Policy.of([LINKED], {2: Allowance(1, 3)})
    assignments = plan(farm.index, [FreeSlots(LINKED, 9)], Usage({2: 1.0}, {1: 1}), policy)
    assert sorted(one.task_id for one in assignments) == [1, 2, 2]


def test_lower_class_goes_on_when_limits_hold_back_the_higher_one() -> None:
    farm = Farm()
    farm.add(ReadyTask(1, 1, 90, 0, running_limit=1), 1)
    farm.add(ReadyTask(2, 1, 10, 0), 2)
    assignments = plan(farm.index, [FreeSlots(LINKED)], Usage({}, {1: 1}), Policy.of([LINKED], {}))
    assert assignments == [Assignment(1000, 2, 2)]
