"""What machines hold ahead of their slots, and what it costs a chunk when they are lost (R9.1 Work ahead)."""

import pytest

from renderonline.farm.needs import Ability, Needs
from renderonline.farm.ready import ReadyIndex, ReadyTask, Signature
from renderonline.farm.result_names import FILM_ENGINE
from renderonline.farm.scheduling import SHORT_IN_A_ROW, Allowance, FreeSlots, Policy, Usage, next_classes, plan
from renderonline.farm.settling import NOT_BEGUN, Ending, RetryPolicy, Tried, Verdict, settle
from renderonline.farm.tasks import ChunkState, Outcome

MACHINE = Ability(1000, (("blender", "4.2"), (FILM_ENGINE, "7")), memory_mib=64, gpus=1)
PLAIN = Signature("blender")


def task(number: int, *, short: bool = True, user: int = 1, priority: int = 0, limit: int = 0) -> ReadyTask:
    count = SHORT_IN_A_ROW if short else SHORT_IN_A_ROW - 1
    return ReadyTask(number, user, priority, number, running_limit=limit, short=count)


def index_of(*tasks: ReadyTask, signature: Signature = PLAIN) -> ReadyIndex:
    """Three chunks of each task, numbered 10 times the task."""
    index = ReadyIndex()
    for one in tasks:
        index.add_many(one, [(one.task_id * 10 + place, place) for place in range(3)], signature)
    return index


def held(index: ReadyIndex, count: int = 2, users: dict[int, Allowance] | None = None) -> list[int]:
    """The chunks that the machine gets beyond its slots."""
    policy = Policy.of([MACHINE], users or {})
    return [one.chunk_id for one in plan(index, [FreeSlots(MACHINE, count)], Usage(), policy, ahead=True)]


def test_short_chunks_are_held_ahead_in_the_order_of_the_farm() -> None:
    assert held(index_of(task(1), task(2)), 4) == [10, 11, 12, 20]


def test_task_of_which_it_is_not_known_is_not() -> None:
    assert held(index_of(task(1, short=False))) == []


@pytest.mark.parametrize(
    ("first", "gets"),
    [(task(1, short=False), []), (task(9, short=False, priority=1), []), (task(9, short=False, user=2), [20])],
)
def test_nothing_overtakes_what_is_next(first: ReadyTask, gets: list[int]) -> None:
    """An older task, one of a higher class, one of a user who then has less: the slot that gets free is theirs."""
    assert held(index_of(task(2), task(3), first), 4) == gets


@pytest.mark.parametrize(
    "signature",
    [
        Signature("blender", needs=Needs(memory_mib=1)),
        Signature("blender", needs=Needs(gpus=1)),
        Signature("blender", needs=Needs(prefers_gpu=True)),
        Signature(FILM_ENGINE),
    ],
)
def test_what_needs_something_for_itself_is_not_held_ahead(signature: Signature) -> None:
    assert held(index_of(task(1), signature=signature)) == []


def test_limits_count_what_is_held_ahead() -> None:
    assert held(index_of(task(1, limit=1)), 3) == [10]
    assert held(index_of(task(1)), 3, {1: Allowance(running_limit=2)}) == [10, 11]


def test_class_of_what_is_next_is_that_of_what_may_start() -> None:
    policy = Policy.of([MACHINE], {2: Allowance(running_limit=1)})
    index = index_of(task(1), task(2, priority=5, user=2), task(3, priority=3, limit=1))
    room = [FreeSlots(MACHINE, 0)]
    assert index.highest_class == 5
    assert next_classes(index, room, Usage(), policy) == {1000: 5}
    assert next_classes(index, room, Usage({2: 1}), policy) == {1000: 3}
    assert next_classes(index, room, Usage({2: 1}, {3: 1}), policy) == {1000: 0}
    assert next_classes(ReadyIndex(), room, Usage(), policy) == {}
    assert ReadyIndex().highest_class is None


def waited(machine_id: int, *before: int, tries: int = 0) -> Verdict:
    """The verdict on a chunk that waited on a machine that was lost, and had waited on these."""
    tried = [Tried(other, Outcome.LOST, NOT_BEGUN) for other in before]
    ending = Ending(Outcome.LOST, NOT_BEGUN, "it is silent")
    return settle(
        ending, tries=tries, named=False, missing=(), fraction=0.0, policy=RetryPolicy(), machine_id=machine_id,
        before=tried,
    )  # fmt: skip


def test_what_waited_for_a_slot_of_a_lost_machine_costs_no_try_until_it_happened_on_two() -> None:
    for before in ((), (1,), (1, 1, 1)):
        verdict = waited(2, *before)
        assert (verdict.chunk, verdict.outcome, verdict.counts) == (ChunkState.WAITING, Outcome.LOST, False)
        assert verdict.failure == NOT_BEGUN
    verdict = waited(3, 2, 1)
    assert (verdict.chunk, verdict.counts, verdict.failure) == (ChunkState.WAITING, True, "")
    assert waited(4, 2, 1, tries=2).chunk is ChunkState.FAILED
