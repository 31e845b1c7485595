"""The plan against a reference that sorts everything, and the rules that matter one by one (R9)."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from renderonline.farm.scheduling import (
    Ability,
    Assignment,
    FreeSlots,
    Policy,
    ReadyIndex,
    ReadyTask,
    Shape,
    Signature,
    plan,
)

ENGINES = ("blender", "povray", "mitsuba")


class Farm:
    """An index and the same things as a plain list."""

    def __init__(self) -> None:
        self.index = ReadyIndex()
        self.waiting: list[tuple[ReadyTask, int, int, Signature]] = []

    def add(self, task: ReadyTask, chunk_id: int, place: int = 0, signature: Signature | None = None) -> None:
        signature = signature or Signature("blender")
        self.index.add(task, chunk_id, place, signature)
        self.waiting.append((task, chunk_id, place, signature))


def reference(farm: Farm, free: list[FreeSlots], usage: dict[int, float], policy: Policy) -> list[Assignment]:
    """Sorts everything for every single slot."""
    waiting, cost, given = list(farm.waiting), defaultdict(float, usage), []
    left = [[slots.ability, slots.count] for slots in free]
    while any(count > 0 for _, count in left):
        for slot in left:
            ability, count = slot
            fitting = [one for one in waiting if count > 0 and policy.takes(ability, one[3])]
            slot[1] = count - 1 if fitting else 0
            if fitting:
                best = min(fitting, key=lambda one: order(one, cost, policy))
                waiting.remove(best)
                cost[best[0].user_id] += 1
                given.append(Assignment(ability.machine_id, best[0].task_id, best[1]))
    return given


def order(one: tuple[ReadyTask, int, int, Signature], cost: dict[int, float], policy: Policy) -> tuple[object, ...]:
    task, chunk_id, place, _ = one
    load = cost[task.user_id] / policy.share(task.user_id)
    return -task.priority, load, task.queued_us, task.task_id, place, chunk_id


@st.composite
def farms(draw: st.DrawFn) -> tuple[Farm, list[FreeSlots], dict[int, float], Policy]:
    farm = Farm()
    chunk_id = 0
    for task_id in range(1, draw(st.integers(0, 8)) + 1):
        task = ReadyTask(task_id, draw(st.integers(1, 3)), draw(st.sampled_from((10, 50))), draw(st.integers(0, 3)))
        engine = draw(st.sampled_from(ENGINES))
        for _ in range(draw(st.integers(1, 4))):
            chunk_id += 1
            avoid = frozenset(draw(st.sets(st.integers(1, 4), max_size=2)))
            farm.add(task, chunk_id, draw(st.integers(0, 3)), Signature(engine, Shape.PIECE, avoid))
    abilities = [
        Ability(number, frozenset(draw(st.sets(st.sampled_from(ENGINES)))), linked=True)
        for number in range(1, draw(st.integers(1, 4)) + 1)
    ]
    free = [FreeSlots(ability, draw(st.integers(0, 4))) for ability in abilities]
    shares = {user: draw(st.integers(0, 3)) for user in range(1, 3)}
    usage = {user: float(draw(st.integers(0, 5))) for user in range(1, 4)}
    return farm, free, usage, Policy.of(abilities, shares)


@given(farms())
@settings(max_examples=300, deadline=None)
def test_plan_gives_what_the_reference_gives(
    drawn: tuple[Farm, list[FreeSlots], dict[int, float], Policy],
) -> None:
    farm, free, usage, policy = drawn
    assert plan(farm.index, free, usage, policy) == reference(farm, free, usage, policy)


@given(farms())
@settings(max_examples=100, deadline=None)
def test_plan_changes_nothing_and_gives_no_chunk_twice(
    drawn: tuple[Farm, list[FreeSlots], dict[int, float], Policy],
) -> None:
    farm, free, usage, policy = drawn
    before = len(farm.index)
    first = plan(farm.index, free, usage, policy)
    assert len(farm.index) == before
    assert plan(farm.index, free, usage, policy) == first
    given_chunks = [one.chunk_id for one in first]
    assert len(set(given_chunks)) == len(given_chunks)
    for machine in {one.machine_id for one in first}:
        count = sum(slots.count for slots in free if slots.ability.machine_id == machine)
        assert sum(one.machine_id == machine for one in first) <= count


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
        assert set(index.chunks_of(task_id)) == {chunk for chunk, task in expected.items() if task == task_id}
        index.remove_task(task_id)
    assert len(index) == 0
    assert not list(index.signatures)


LINKED = Ability(1000, frozenset({"blender"}))
SECOND = Ability(1001, frozenset({"blender"}))
V1 = Ability(1, frozenset({"blender"}), linked=False)


def one_task(shape: Shape, avoid: frozenset[int] = frozenset(), chunks: int = 1) -> Farm:
    farm = Farm()
    for chunk_id in range(1, chunks + 1):
        farm.add(ReadyTask(1, 1, 50, 0), chunk_id, chunk_id, Signature("blender", shape, avoid))
    return farm


def given_to(farm: Farm, *free: Ability, machines: tuple[Ability, ...] | None = None) -> list[Assignment]:
    policy = Policy.of(free if machines is None else machines, {})
    return plan(farm.index, [FreeSlots(ability) for ability in free], {}, policy)


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


def test_task_made_whole_is_given_once() -> None:
    other = Ability(2, frozenset({"blender"}), linked=False)
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
    assert sorted(farm.index.chunks_of(1)) == [1, 2, 3, 9]
    assert all(farm.index.remove(chunk_id) for chunk_id in (1, 2, 3, 9))
    assert not list(farm.index.signatures)


def test_user_with_a_larger_share_gets_more() -> None:
    farm = Farm()
    for user in (1, 2):
        for number in range(10):
            farm.add(ReadyTask(user, user, 50, 0), user * 100 + number)
    policy = Policy.of([LINKED], {1: 3, 2: 1})
    assignments = plan(farm.index, [FreeSlots(LINKED, 8)], {}, policy)
    assert sum(one.task_id == 1 for one in assignments) == 6


def test_engine_that_nobody_has_waits() -> None:
    assert given_to(one_task(Shape.WHOLE), Ability(1000, frozenset({"povray"}))) == []
