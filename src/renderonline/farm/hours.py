"""When a machine takes work: "Mon-Fri 18:00-08:00, Sat, Sun", in the server's local time.

A span belongs to the days on which it begins: Friday's `18:00-08:00` runs until Saturday 08:00, and Monday before 08:00
is only in it when Sunday is named. Single days share the span that follows them: `Mon, Wed 09:00-17:00`. Days without a
span after them are whole days, from midnight to midnight.
"""

import re
from datetime import datetime
from functools import lru_cache
from typing import Final, NamedTuple

from renderonline.farm.errors import InvalidRequest

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY: Final = 24 * 60
_WEEK: Final = 7 * _DAY
_D, _T = f"({'|'.join(_DAYS)})", r"([01]?\d|2[0-3]):([0-5]\d)"
_PART: Final = re.compile(rf"(?:{_D}(?:-{_D})?)?\s*(?:{_T}-{_T})?", re.ASCII)
_EXAMPLE: Final = "Mon-Fri 18:00-08:00, Sat, Sun"


class _Part(NamedTuple):
    """What stands between two commas. `days`: numbers from 0 (Monday), none for a time alone; `clock`: begin and end in
    minutes of a day, the end perhaps on the next one; None without a time."""

    text: str
    days: tuple[int, ...]
    clock: tuple[int, int] | None


def checked_hours(text: str) -> str:
    """Hours that can be understood in one way only, "" for always; `InvalidRequest` says how to write them."""
    _spans(text)
    return text.strip()


def is_open(hours: str, local: datetime) -> bool:
    """Whether a machine with these hours takes work now; never, when nobody can understand them."""
    now = local.weekday() * _DAY + local.hour * 60 + local.minute
    try:
        spans = _spans(hours)
    except InvalidRequest:
        return False
    return not spans or any(start <= at < end for start, end in spans for at in (now, now + _WEEK))


def told(hours: str) -> str:
    """What hours that can be understood mean, in words: `Mon and Tue 09:00 to 17:00`."""
    joined = _joined(_spans(hours))
    if not joined or joined[0][1] - joined[0][0] >= _WEEK:
        return "always"
    alike: dict[tuple[int, int], list[int]] = {}
    for start, end in joined:
        alike.setdefault((start % _DAY, end - start), []).append(start // _DAY)
    return "; ".join(_words(days, begin, begin + minutes) for (begin, minutes), days in alike.items())


def _words(days: list[int], begin: int, end: int) -> str:
    """The days on which a time begins, and when it ends. One that is longer than the next day names the day."""
    names = [_DAYS[day].capitalize() for day in days]
    *others, last = names
    which = f"{', '.join(others)} and {last}" if others else last
    later = (end - 1) // _DAY
    until = {0: "", 1: " of the next day"}.get(later, f" {later} days later")
    if len(days) == 1 and later:
        until = f" of {_DAYS[(days[0] + later) % 7].capitalize()}"
    clock = end - later * _DAY
    return f"{which} {begin // 60:02}:{begin % 60:02} to {clock // 60:02}:{clock % 60:02}{until}"


def _joined(spans: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
    """Spans that overlap or touch as one, also over the end of the week; by their beginnings."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    while len(joined) > 1 and joined[-1][1] >= joined[0][0] + _WEEK:
        first = joined.pop(0)
        joined[-1] = (joined[-1][0], max(joined[-1][1], first[1] + _WEEK))
    if len(joined) == 1 and joined[0][1] >= joined[0][0] + _WEEK:
        return [(0, _WEEK)]
    return joined


@lru_cache(1000)
def _spans(text: str) -> tuple[tuple[int, int], ...]:
    """Beginnings and ends in minutes since the week began, none for ""; an end may lie in the next week."""
    parts = [_part(part) for part in text.split(",")] if text.strip() else []
    if any(part.days for part in parts) and (alone := [part for part in parts if not part.days]):
        time = alone[0].text
        raise InvalidRequest(f'On which days is "{time}"? Write them with it: Mon-Sun {time}, as in {_EXAMPLE}.')
    spans: list[tuple[int, int]] = []
    waiting: list[_Part] = []
    for part in parts:
        waiting.append(part)
        if part.clock is not None:
            if len(waiting) > 1 and any(len(one.days) > 1 for one in waiting):
                raise _two_meanings(waiting, part)
            spans += _of(waiting, part.clock)
            waiting = []
    return (*spans, *_of(waiting, (0, _DAY)))


def _of(parts: list[_Part], clock: tuple[int, int]) -> list[tuple[int, int]]:
    days = [day for part in parts for day in part.days or range(7)]
    return [(day * _DAY + clock[0], day * _DAY + clock[1]) for day in days]


def _two_meanings(parts: list[_Part], last: _Part) -> InvalidRequest:
    """Days before a range of days with a span: they may be whole days, or share it."""
    before, times = [part.text for part in parts[:-1]], last.text.split()[-1]
    whole, shared = ", ".join((last.text, *before)), ", ".join([*(f"{one} {times}" for one in before), last.text])
    return InvalidRequest(
        f'"{", ".join((*before, last.text))}" can mean two things. Whole days come last: {whole}. '
        f"Days of the same hours each have them: {shared}. Another example: {_EXAMPLE}."
    )


def _part(text: str) -> _Part:
    text = text.strip()
    match = _PART.fullmatch(text.casefold())
    if match is None or not text:
        raise InvalidRequest(f'"{text}" are no hours. Write days, times or both, with commas between: {_EXAMPLE}.')
    first, last, *clock = match.groups()
    day = _DAYS.index(first or "mon")
    count = (_DAYS.index(last or first or "mon") - day) % 7 + 1 if first else 0
    days = tuple((day + number) % 7 for number in range(count))
    if clock[0] is None:
        return _Part(text, days, None)
    begin, end = (int(clock[at]) * 60 + int(clock[at + 1]) for at in (0, 2))
    return _Part(text, days, (begin, end if end > begin else end + _DAY))  # it ends on the next day
