"""When failures count against a machine, and when the farm benches it (R1.5 Machine blame)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.settling import Blame, may_bench

A, B = 1000, 1001


def test_three_different_tasks_that_failed_in_a_row_bench_a_machine() -> None:
    blame = Blame()
    assert [bool(blame.failed(A, task, task * 10)) for task in (1, 2, 3)] == [False, False, True]


def test_chunks_of_one_task_that_fail_are_the_tasks_fault() -> None:
    blame = Blame()
    assert not any(blame.failed(A, 1, chunk) for chunk in range(50))


def test_success_in_between_clears_a_machine() -> None:
    blame = Blame()
    for task in range(20):
        assert not blame.failed(A, task, task)
        if task % 2:
            blame.succeeded(A, 100 + task)


def test_chunks_that_succeed_elsewhere_count_against_the_machine_where_they_failed() -> None:
    blame = Blame()
    for chunk in (1, 2, 3):
        blame.failed(A, 1, chunk)
    assert blame.succeeded(B, 1) == {}
    assert blame.succeeded(B, 2) == {}
    assert blame.succeeded(B, 3) == {A: "3 parts failed there that succeeded elsewhere"}


def test_chunk_that_fails_everywhere_counts_against_nobody() -> None:
    blame = Blame()
    assert not any(blame.failed(machine, 1, 1) for machine in range(1000, 1100))
    assert blame.succeeded(A, 2) == {}


def test_chunk_that_succeeds_where_it_failed_counts_against_nobody() -> None:
    blame = Blame()
    for chunk in (1, 2, 3):
        blame.failed(A, 1, chunk)
    assert [blame.succeeded(A, chunk) for chunk in (1, 2, 3)] == [{}, {}, {}]


def test_benched_machine_that_fails_again_is_benched_again_and_a_forgiven_one_is_not() -> None:
    blame = Blame()
    for task in (1, 2, 3):
        blame.failed(A, task, task)
    assert blame.failed(A, 1, 7)
    blame.forgive(A)
    assert not blame.failed(A, 1, 8)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4), st.integers(1, 6), st.integers(1, 500)), max_size=600))
def test_what_is_remembered_stays_small(steps: list[tuple[bool, int, int, int]]) -> None:
    blame = Blame()
    for failed, machine, task, chunk in steps:
        if failed:
            blame.failed(machine, task, chunk)
        else:
            blame.succeeded(machine, chunk)
    assert all(len(chunks) <= 100 for chunks in blame._failures.values())


@pytest.mark.parametrize(("machines", "most"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2), (100, 25)])
def test_at_most_a_quarter_of_the_machines_is_benched(machines: int, most: int) -> None:
    assert [benched for benched in range(machines + 1) if may_bench(machines, benched)] == list(range(most))
