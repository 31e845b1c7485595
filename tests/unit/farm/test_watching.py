"""What the farm itself watches of an attempt (R14 Authority first)."""

import pytest

from renderonline.farm.settling import Blame, Patience, waits_for_slot

FARM = Patience()


@pytest.mark.parametrize(
    ("assigned", "moved", "now", "taken_back"),
    [(100, 0, 159, False), (100, 0, 160, True), (100, 130, 189, False), (100, 130, 190, True),
     (100, 21_699, 21_699, False), (100, 21_700, 21_700, True)],
)  # fmt: skip
def test_assignment_that_shows_nothing_for_a_minute_is_taken_back(
    assigned: float, moved: float, now: float, taken_back: bool
) -> None:
    """Bytes on their way keep it, for six hours at most."""
    assert FARM.not_started(now, assigned, moved) is taken_back


@pytest.mark.parametrize(
    ("started", "moved", "now", "limit_s", "over"),
    [(100, 0, 264, 105, False), (100, 0, 265, 105, True), (100, 0, 10**9, 0, False),
     (100, 210, 265, 105, False), (100, 210, 270, 105, True), (100, 3804, 3804, 105, False),
     (100, 3805, 3805, 105, True)],
)  # fmt: skip
def test_attempt_that_goes_on_beyond_its_limit_is_ended(
    started: float, moved: float, now: float, limit_s: float, over: bool
) -> None:
    """A minute after limit and grace; files on their way keep it, for an hour at most; without a limit: never."""
    assert FARM.overtime(now, started, moved, limit_s=limit_s) is over


def test_only_what_runs_makes_an_assignment_wait() -> None:
    assert [waits_for_slot(place, running=1, slots=3) for place in range(3)] == [False, False, True]
    assert not any(waits_for_slot(place, running=0, slots=0) for place in range(3))
    assert waits_for_slot(0, running=1, slots=0)


def test_machine_that_starts_nothing_of_three_tasks_in_a_row_is_to_be_benched() -> None:
    blame = Blame()
    assert [blame.not_started(1, task) for task in (1, 1, 2, 2)] == [""] * 4
    assert blame.not_started(2, 3) == ""
    assert blame.not_started(1, 3) == "it started nothing of 3 tasks in a row"
    assert blame.not_started(1, 4) == "it started nothing of 3 tasks in a row"


@pytest.mark.parametrize("well", ["started", "forgive"])
def test_a_start_in_between_forgives(well: str) -> None:
    blame = Blame()
    blame.not_started(1, 1)
    blame.not_started(1, 2)
    getattr(blame, well)(1)
    assert blame.not_started(1, 3) == ""
