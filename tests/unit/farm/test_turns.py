"""Whose turn it is: users one after the other, one thing of each at a time, a bounded number in all."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from renderonline.renderapi.scene_surveys import Turns


def begun(turns: Turns[str]) -> list[str]:
    """Everybody whose turn begins now."""
    found = []
    while (one := turns.next()) is not None:
        found.append(one[1])
    return found


def test_one_user_has_one_turn_at_a_time_and_users_go_round() -> None:
    turns = Turns[str](2)
    for name in ("a1", "a2", "a3", "b1", "b2", "c1"):
        turns.ask(ord(name[0]), name)
    assert begun(turns) == ["a1", "b1"]
    turns.end(ord("a"))
    assert begun(turns) == ["c1"]
    turns.end(ord("b"))
    assert begun(turns) == ["a2"]
    turns.end(ord("c"))
    assert begun(turns) == ["b2"]
    turns.end(ord("a"))
    turns.end(ord("b"))
    assert begun(turns) == ["a3"]


def test_who_gives_up_is_not_waited_for() -> None:
    turns = Turns[str](1)
    for name in ("a1", "a2", "b1"):
        turns.ask(ord(name[0]), name)
    turns.give_up(ord("a"), "a1")
    turns.give_up(ord("b"), "b1")
    turns.give_up(ord("b"), "b1")
    assert begun(turns) == ["a2"]
    turns.end(ord("a"))
    assert begun(turns) == []


@given(st.lists(st.integers(0, 4), max_size=60), st.integers(1, 3))
def test_nobody_is_passed_over_more_often_than_there_are_others(users: list[int], at_once: int) -> None:
    turns = Turns[int](at_once)
    for number, user in enumerate(users):
        turns.ask(user, number)
    having: list[int] = []
    order: list[int] = []
    while len(order) < len(users):
        while (found := turns.next()) is not None:
            having.append(found[0])
            order.append(found[1])
        assert len(having) == len(set(having)) <= at_once
        turns.end(having.pop(0))
    assert sorted(order) == list(range(len(users)))
    for user in set(users):
        places = [place for place, number in enumerate(order) if users[number] == user]
        assert places[0] < len(set(users))
        assert all(second - first <= len(set(users)) for first, second in pairwise(places))
        assert [order[place] for place in places] == [number for number, one in enumerate(users) if one == user]
