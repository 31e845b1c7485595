"""The hours of machines."""

from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.machines import checked_hours, hours_in_words, is_open

MONDAY = datetime(2026, 3, 2)
WEEKNIGHTS = "Mon, Tue, Wed and Thu 18:00 to 08:00 of the next day"
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
        ("Mon,Tue,Wed 09:00-17:00", at(0, 12), True),
        ("Mon,Tue,Wed 09:00-17:00", at(0, 8), False),
        ("Mon, Tue, Wed 09:00-17:00", at(1, 18), False),
        ("Mon, Tue, Wed 09:00-17:00", at(2, 16, 59), True),
        (NIGHTS, at(5, 7, 59), True),  # Friday's night
        ("Mon-Fri 18:00-08:00", at(5, 7, 59), True),
        ("Mon-Fri 18:00-08:00", at(5, 8), False),
        ("Mon-Sun 18:00-08:00, Sat, Sun", at(0, 7, 59), True),  # Sunday's night
        ("Mon-Fri 18:00-08:00, Sat, Sun 10:00-12:00", at(5, 13), False),
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
        "Mon 09:00-12:00, 14:00-18:00",
        "18:00-08:00, Sat, Sun",
        "Sat, Sun, Mon-Fri 18:00-08:00",
        "Mon-Wed, Fri 18:00-08:00",
    ],
)
def test_hours_that_mean_nothing_are_refused(hours: str) -> None:
    with pytest.raises(InvalidRequest, match="Mon-Fri 18:00-08:00"):
        checked_hours(hours)


def test_hours_with_two_meanings_are_refused_with_both_written_out() -> None:
    whole, shared = "Mon-Fri 18:00-08:00, Sat, Sun", "Sat 18:00-08:00, Sun 18:00-08:00, Mon-Fri 18:00-08:00"
    with pytest.raises(InvalidRequest, match="can mean two things") as refused:
        checked_hours("Sat, Sun, Mon-Fri 18:00-08:00")
    assert f"Whole days come last: {whole}." in refused.value.message
    assert f"each have them: {shared}." in refused.value.message
    assert not is_open(whole, at(0, 3))
    assert not is_open(shared, at(5, 12))


@pytest.mark.parametrize(
    ("hours", "words"),
    [
        ("", "always"),
        ("Mon-Sun", "always"),
        ("8:00-8:00", "always"),
        ("Mon,Tue,Wed 9:00-17:00", "Mon, Tue and Wed 09:00 to 17:00"),
        ("Sat", "Sat 00:00 to 24:00"),
        ("Sun 22:00-06:00", "Sun 22:00 to 06:00 of Mon"),
        (NIGHTS, f"{WEEKNIGHTS}; Fri 18:00 to 24:00 of Sun"),
        ("Mon-Sun 18:00-08:00, Sat, Sun", f"{WEEKNIGHTS}; Fri 18:00 to 08:00 of Mon"),
        ("sat, sun", "Sat 00:00 to 24:00 of Sun"),
    ],
)
def test_hours_are_told_in_words(hours: str, words: str) -> None:
    assert hours_in_words(hours) == words


PARTS = st.sampled_from(("Mon", "Sun-Tue", "Fri 18:00-2:00", "9:00-9:00", "Wed 7:00-8:00"))


@given(st.text(max_size=40) | st.lists(PARTS).map(", ".join))
def test_hours_never_fail_otherwise(text: str) -> None:
    try:
        checked_hours(text)
    except InvalidRequest:
        return
    is_open(text, MONDAY)
    assert hours_in_words(text)
