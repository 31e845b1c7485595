"""Statuses, transitions, counters (R2 Task status)."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.errors import Conflict
from renderonline.farm.tasks import (
    CHUNK_TRANSITIONS,
    LIVE,
    SETTLED,
    AttemptState,
    ChunkKind,
    ChunkState,
    Counters,
    Outcome,
    TaskStatus,
    check_transition,
    task_status,
)

numbers = st.integers(0, 3)
counters = st.builds(Counters, numbers, numbers, numbers, numbers, numbers, numbers)


def test_the_table_knows_every_state_and_leads_to_no_other() -> None:
    assert set(CHUNK_TRANSITIONS) == set(ChunkState)
    assert all(following <= set(ChunkState) for following in CHUNK_TRANSITIONS.values())
    assert all(state not in following for state, following in CHUNK_TRANSITIONS.items())


def test_every_state_can_be_reached_and_settled_again() -> None:
    def reachable(start: ChunkState) -> set[ChunkState]:
        found, todo = {start}, [start]
        while todo:
            new = CHUNK_TRANSITIONS[todo.pop()] - found
            found |= new
            todo += new
        return found

    assert reachable(ChunkState.WAITING) == set(ChunkState)
    assert all(reachable(state) & SETTLED for state in ChunkState)


def test_nothing_goes_on_behind_a_settled_chunk_unless_it_waits_again() -> None:
    for settled in SETTLED:
        assert not CHUNK_TRANSITIONS[settled] & LIVE


@pytest.mark.parametrize(("old", "new"), list(itertools.product(ChunkState, repeat=2)))
def test_a_change_that_is_not_in_the_table_is_refused(old: ChunkState, new: ChunkState) -> None:
    if new in CHUNK_TRANSITIONS[old]:
        check_transition(old, new)
    else:
        with pytest.raises(Conflict, match=f"A chunk that is {old} can't become {new}"):
            check_transition(old, new)


@given(counters, st.booleans(), st.booleans())
def test_every_task_has_one_status_and_the_first_rule_that_holds_decides(
    count: Counters, canceled: bool, paused: bool
) -> None:
    status = task_status(count, canceled=canceled, paused=paused)
    assert status in TaskStatus
    settled = count.waiting + count.assigned + count.running == 0
    assert count.settled is settled
    if settled and canceled:
        assert status is TaskStatus.CANCELED
    elif settled:
        assert status is (TaskStatus.FAILED if count.failed + count.canceled else TaskStatus.SUCCEEDED)
    elif count.live:
        assert status is TaskStatus.RUNNING
    else:
        assert status is (TaskStatus.PAUSED if paused else TaskStatus.QUEUED)


def test_words_travel_in_lower_case() -> None:
    for words in (TaskStatus, ChunkState, ChunkKind, AttemptState, Outcome):
        assert all(word.value == word.value.lower() == str(word) for word in words)
