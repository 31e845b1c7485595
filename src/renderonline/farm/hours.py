"""When a machine takes work: "Mon-Fri 18:00-08:00, Sat, Sun", in the server's local time."""

import re
from datetime import datetime
from functools import lru_cache
from typing import Final

from renderonline.farm.errors import InvalidRequest

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY: Final = 24 * 60
_D, _T = f"({'|'.join(_DAYS)})", r"([01]?\d|2[0-3]):([0-5]\d)"
_PART: Final = re.compile(rf"(?:{_D}(?:-{_D})?)?\s*(?:{_T}-{_T})?", re.ASCII)


def checked_hours(text: str) -> str:
    """Hours that can be understood, "" for always; `InvalidRequest` says how to write them."""
    _spans(text)
    return text.strip()


def is_open(hours: str, local: datetime) -> bool:
    """Whether a machine with these hours takes work now; never, when nobody can understand them."""
    now = local.weekday() * _DAY + local.hour * 60 + local.minute
    try:
        spans = _spans(hours)
    except InvalidRequest:
        return False
    return not spans or any(start <= at < end for start, end in spans for at in (now, now + 7 * _DAY))


@lru_cache(1000)
def _spans(text: str) -> tuple[tuple[int, int], ...]:
    """Beginnings and ends in minutes since the week began, none for ""; an end may lie in the next week."""
    spans: list[tuple[int, int]] = []
    for part in text.casefold().split(",") if text.strip() else ():
        match = _PART.fullmatch(part.strip())
        if match is None or not part.strip():
            known = "Mon-Fri 18:00-08:00, Sat, Sun"
            raise InvalidRequest(f'"{part}" are no hours. Write days, times or both, with commas between: {known}.')
        first, last, *clock = match.groups()
        begin, end = (int(clock[at] or 0) * 60 + int(clock[at + 1] or 0) for at in (0, 2))
        end += 0 if end > begin else _DAY  # it ends on the next day
        day = _DAYS.index(first or "mon")
        count = (_DAYS.index(last or first or "sun") - day) % 7 + 1
        starts = [(day + number) % 7 * _DAY for number in range(count)]
        spans += [(start + begin, start + end) for start in starts]
    return tuple(spans)
