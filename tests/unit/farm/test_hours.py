"""The hours of machines."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.hours import checked_hours, is_open

MONDAY = datetime(2026, 3, 2)
NIGHTS = "Mon-Fri 18:00-08:00, Sat, Sun"


def at(day: int, hour: int, minute: int = 0) -> datetime:
    return MONDAY + timedelta(days=day, hours=hour, minutes=minute)


@pytest.mark.parametrize(
    ("hours", "when", "expected"),
    [
        ("", at(0, 12), True),
        (NIGHTS, at(0, 7, 59), False),  # Sunday ends at midnight
        (NIGHTS, at(0, 17, 59), False),
        (NIGHTS, at(0, 18), True),
        (NIGHTS, at(1, 7, 59), True),
        (NIGHTS, at(1, 8), False),
        (NIGHTS, at(5, 12), True),
        (NIGHTS, at(6, 23, 59), True),
        ("18:00-08:00", at(0, 3), True),  # the night of Sunday
        ("18:00-08:00", at(3, 12), False),
        ("sun 22:00-06:00", at(0, 5, 59), True),
        ("sun 22:00-06:00", at(6, 21, 59), False),
        ("Mon 8:00-8:00", at(1, 7, 59), True),
        ("tonight", at(0, 12), False),
        ("Fri-Mon", at(0, 23), True),
        ("Fri-Mon", at(1, 0), False),
        ("Mon 8:00-0:00", at(0, 23, 59), True),
    ],
)
def test_machine_takes_work_within_its_hours(hours: str, when: datetime, expected: bool) -> None:
    assert is_open(hours, when) is expected


@pytest.mark.parametrize(
    "hours",
    [
        "nights",
        "Mon-Foo",
        "Mon-Fri 18-8",
        "Mon 25:00-26:00",
        "Mon 10:60-12:00",
        "8:00-24:00",
        "Mon,,Tue",
        "Mon 8:00",
        ",",
    ],
)
def test_hours_that_mean_nothing_are_refused(hours: str) -> None:
    with pytest.raises(InvalidRequest, match="Mon-Fri 18:00-08:00"):
        checked_hours(hours)


@given(st.text(max_size=40))
def test_hours_never_fail_otherwise(text: str) -> None:
    try:
        checked_hours(text)
    except InvalidRequest:
        return
    is_open(text, MONDAY)
