"""What a machine offers is held to what its attempt was asked for (R14 Authority first)."""

from dataclasses import replace

import pytest
from msgspec import structs

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.result_names import MoreResults
from renderonline.protocol.link import Assign, Result
from renderonline.renderapi.landings import Besides, offer_of
from renderonline.renderapi.orders import Order

ASSIGN = Assign(1, "t", 1, 1, "e", (), "/a", frames=(3, 4), more=MoreResults(take=("*",), leave=("*.tmp",), files=1))
ORDER = Order(ASSIGN, {"f_3.png": 3, "f_4.png": 4}, uses_directory=True, of_others=lambda name: name == "f_5.png")


def told(name: str) -> Result:
    return Result(1, 1, "t", 1, name, 10, "0" * 64, 5)


def test_files_besides_are_no_frames_and_belong_to_one() -> None:
    frame, mask = offer_of(told("f_3.png"), ORDER), offer_of(told("mask/m_4.png"), ORDER)
    assert (frame.frame, frame.of_frame, frame.more) == (3, None, False)
    assert (mask.frame, mask.of_frame, mask.more) == (None, 4, True)


@pytest.mark.parametrize("name", ["f_5.png", "f_5.png/x", "a.tmp", "../x", "a\\b", ".landing-1"])
def test_what_is_anothers_or_can_t_be_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        offer_of(told(name), ORDER)


def test_the_centre_keeps_the_bounds_of_an_attempt() -> None:
    besides = Besides()
    besides.admit(ORDER, "a.svg", 10)
    besides.admit(ORDER, "a.svg", 10)
    with pytest.raises(InvalidRequest, match="beyond the 1 files"):
        besides.admit(ORDER, "b.svg", 10)
    besides.forget([1])
    besides.admit(ORDER, "b.svg", 10)


def test_files_of_attempts_that_ended_long_ago_take_no_memory() -> None:
    """A machine has the tokens of all its attempts, and may send files for them again."""
    besides = Besides(most_names=10)
    for attempt in range(100):
        order = replace(ORDER, assign=structs.replace(ASSIGN, attempt=attempt, more=MoreResults(take=("*",), files=3)))
        for name in "abc":
            besides.admit(order, name, 10)
    assert sum(map(len, besides._bounds.values())) <= 10
    with pytest.raises(InvalidRequest, match="beyond the 3 files"):
        besides.admit(order, "d", 10)
    besides.forget(range(100))
    assert (besides._names, len(besides._bounds)) == (0, 0)
