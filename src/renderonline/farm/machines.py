"""Machines: their addresses and states, when one is silent, when two programs use one machine's secret, the hours in
which a machine takes work, and its graphics cards.

Hours are written like "Mon-Fri 18:00-08:00, Sat, Sun", in the server's local time. A time span belongs to the days on
which it begins: Friday's `18:00-08:00` ends on Saturday at 08:00, and it includes Monday before 08:00 only when Sunday
is named. Single days share the span that follows them: `Mon, Wed 09:00-17:00`. Days without a span after them are whole
days, from midnight to midnight.
"""

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache, reduce
from operator import or_
from typing import Final, NamedTuple

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import MAX_GPUS, Needs

ALTERNATION_S: Final = 60.0
LONGEST_ADDRESS: Final = 45
MOST_SLOTS: Final = 1024
"""The most slots of a machine; a machine that is allowed this number may have as many as it claims."""
PLAIN_SLOTS: Final = 4
"""The most slots of a machine for which no operator has set a number."""


def slots_allowed(allowed: int, cores: int) -> int:
    """Return how many slots a machine may have: the number that an operator `allowed`, or if that is 0, four, or its
    `cores` if those are fewer (R14 Authority first). `cores` 0: unknown."""
    return allowed or (min(PLAIN_SLOTS, cores) if cores > 0 else PLAIN_SLOTS)


_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?", re.ASCII)
_SCOPED: Final = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", re.ASCII)


def checked_address(address: str) -> str:
    """Return the address of a v1 machine unchanged. Raises `InvalidRequest` unless it is an IP address or a host name,
    without anything that a URL would treat as user, path, query or fragment."""
    if len(address) <= LONGEST_ADDRESS and (_HOST.fullmatch(address) or _is_ipv6(address)):
        return address
    raise InvalidRequest(
        f"A v1 machine has an IP address or a host name of at most {LONGEST_ADDRESS} characters, such as 192.168.1.20 "
        "or render-1.studio, and its port apart from it."
    )


def _is_ipv6(address: str) -> bool:
    try:
        return bool(_SCOPED.fullmatch(address) and ipaddress.IPv6Address(address))
    except ValueError:
        return False


class MachineStatus(StrEnum):
    """The status of a machine that operators see."""

    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    DISABLED = "disabled"
    OFFLINE = "offline"


class Wish(StrEnum):
    """The state that an operator wants a machine to have."""

    ACTIVE = "active"
    DRAINING = "draining"
    DISABLED = "disabled"


def machine_status(wish: Wish, *, reachable: bool, occupied: int) -> MachineStatus:
    """Return the status of a machine; the first rule that applies decides."""
    if wish is Wish.DISABLED:
        return MachineStatus.DISABLED
    if not reachable:
        return MachineStatus.OFFLINE
    if wish is Wish.DRAINING:
        return MachineStatus.DRAINING
    return MachineStatus.BUSY if occupied else MachineStatus.IDLE


class AwakeClock:
    """A clock that does not count the time in which our own event loop was blocked or suspended (R1.3 Silence).

    `tick` is called about every `interval_s` seconds; when it comes later than twice that, the rest does not count.
    """

    def __init__(self, now: float, interval_s: float = 1.0) -> None:
        self._interval_s = interval_s
        self._last = now
        self._awake = 0.0

    def tick(self, now: float) -> None:
        """Note that our loop runs at this time of the monotonic clock."""
        self._awake, self._last = self.now(now), now

    def now(self, now: float) -> float:
        """Return the awake seconds since the clock was made; they never decrease."""
        return self._awake + min(max(now - self._last, 0.0), 2 * self._interval_s)


class Seen(NamedTuple):
    """An instance of HPCServer, and when it sent its hello."""

    instance: str
    at: float


class Instances:
    """The latest instances of one machine. Each start of HPCServer has a new instance id, so an id that returns after
    another was seen belongs to a second program with the same secret (R5.7 One secret, one program)."""

    def __init__(self) -> None:
        self._seen: tuple[Seen, ...] = ()

    @property
    def latest(self) -> Seen | None:
        """The instance that sent the latest hello."""
        return self._seen[-1] if self._seen else None

    def hello(self, instance: str, now: float) -> bool:
        """Note a hello; return whether two instances alternate within a minute."""
        changed = self.latest is not None and self.latest.instance != instance
        known = any(seen.instance == instance and now - seen.at <= ALTERNATION_S for seen in self._seen)
        self._seen = (*self._seen[-15:], Seen(instance, now))
        return changed and known


_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY: Final = 24 * 60
_WEEK: Final = 7 * _DAY
_ALWAYS: Final = (1 << _WEEK) - 1
_D, _T = f"({'|'.join(_DAYS)})", r"([01]?\d|2[0-3]):([0-5]\d)"
_PART: Final = re.compile(rf"(?:{_D}(?:-{_D})?)?\s*(?:{_T}-{_T})?", re.ASCII)
_EXAMPLE: Final = "Mon-Fri 18:00-08:00, Sat, Sun"


class _Span(NamedTuple):
    """The text between two commas. `days`: numbers from 0 (Monday), () for a time without days; `clock`: begin and end
    in minutes of a day, where the end may be on the next day; None without a time."""

    text: str
    days: tuple[int, ...]
    clock: tuple[int, int] | None


def checked_hours(text: str) -> str:
    """Return the hours without spaces around them; "" means always. Raises `InvalidRequest`, which explains how to
    write hours, when they can't be understood or have two meanings."""
    _minutes(text)
    return text.strip()


def is_open(hours: str, local: datetime) -> bool:
    """Return whether a machine with these hours takes work now; False for invalid hours."""
    try:
        return _is_in(_minutes(hours), local.weekday() * _DAY + local.hour * 60 + local.minute)
    except InvalidRequest:
        return False


@lru_cache(1000)
def hours_in_words(hours: str) -> str:
    """Return the meaning of valid hours in words: `Mon and Tue 09:00 to 17:00`."""
    minutes = _minutes(hours)
    if minutes == _ALWAYS:
        return "always"
    alike: dict[tuple[int, int], list[int]] = {}
    for start in range(_WEEK):
        if _is_in(minutes, start) and not _is_in(minutes, start - 1):
            length = next(number for number in range(_WEEK) if not _is_in(minutes, start + number))
            alike.setdefault((start % _DAY, length), []).append(start // _DAY)
    return "; ".join(_words(days, begin, begin + minutes) for (begin, minutes), days in alike.items())


def _words(days: list[int], begin: int, end: int) -> str:
    """The days on which a span begins, and when it ends; the day of the end is named when it is not the same."""
    names = [_DAYS[day].capitalize() for day in days]
    *others, last = names
    which = f"{', '.join(others)} and {last}" if others else last
    later = (end - 1) // _DAY
    until = {0: "", 1: " of the next day"}.get(later, f" {later} days later")
    if len(days) == 1 and later:
        until = f" of {_DAYS[(days[0] + later) % 7].capitalize()}"
    clock = end - later * _DAY
    return f"{which} {begin // 60:02}:{begin % 60:02} to {clock // 60:02}:{clock % 60:02}{until}"


def _is_in(minutes: int, minute: int) -> bool:
    return bool(minutes >> minute % _WEEK & 1)


@lru_cache(1000)
def _minutes(text: str) -> int:
    """The minutes of a week, one bit for each: the lowest is Monday 00:00."""
    if not text.strip():
        return _ALWAYS
    parts = [_part(part) for part in text.split(",")]
    if any(part.days for part in parts) and (alone := [part for part in parts if not part.days]):
        time = alone[0].text
        raise InvalidRequest(f'On which days is "{time}"? Write them with it: Mon-Sun {time}, as in {_EXAMPLE}.')
    minutes = 0
    waiting: list[_Span] = []
    for part in parts:
        waiting.append(part)
        if part.clock is not None:
            if len(waiting) > 1 and any(len(span.days) > 1 for span in waiting):
                raise _two_meanings(waiting, part)
            minutes |= _of(waiting, part.clock)
            waiting = []
    minutes |= _of(waiting, (0, _DAY))
    return minutes & _ALWAYS | minutes >> _WEEK  # Sunday's end may be in the next week


def _of(parts: list[_Span], clock: tuple[int, int]) -> int:
    span = (1 << clock[1]) - (1 << clock[0])
    return reduce(or_, (span << day * _DAY for part in parts for day in part.days or range(7)), 0)


def _two_meanings(parts: list[_Span], last: _Span) -> InvalidRequest:
    """The error for days before a range of days with a span: they may be whole days, or share the span."""
    before, times = [part.text for part in parts[:-1]], last.text.split()[-1]
    whole, shared = ", ".join((last.text, *before)), ", ".join([*(f"{days} {times}" for days in before), last.text])
    return InvalidRequest(
        f'"{", ".join((*before, last.text))}" can mean two things. Whole days come last: {whole}. '
        f"Days of the same hours each have them: {shared}. Another example: {_EXAMPLE}."
    )


def _part(text: str) -> _Span:
    text = text.strip()
    match = _PART.fullmatch(text.casefold())
    if match is None or not text:
        raise InvalidRequest(f'"{text}" are not hours. Write days, times or both, with commas between: {_EXAMPLE}.')
    first, last, *clock = match.groups()
    day = _DAYS.index(first or "mon")
    count = (_DAYS.index(last or first or "mon") - day) % 7 + 1 if first else 0
    days = tuple((day + number) % 7 for number in range(count))
    if clock[0] is None:
        return _Span(text, days, None)
    begin, end = (int(clock[at]) * 60 + int(clock[at + 1]) for at in (0, 2))
    return _Span(text, days, (begin, end if end > begin else end + _DAY))  # it ends on the next day


DEVICE: Final = "device"
"""The argument that selects the device on which an engine renders. An engine without this argument gets no cards of its
own unless its task asks for some: it sees all of them."""
NO_DEVICE: Final = "no_device"
"""The failure class of an engine that was given a card and found none."""
LONGEST_TEXT: Final = 200
DRAWING: Final = frozenset({"BLENDER_EEVEE", "BLENDER_EEVEE_NEXT", "BLENDER_WORKBENCH", ""})
"""Rasterizing renderers, which can share any card with others; "" is an unknown renderer."""


class CardKind(StrEnum):
    """The programming interface of a card."""

    CUDA = "cuda"
    HIP = "hip"
    ONEAPI = "oneapi"
    METAL = "metal"


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card of a machine. `id` is stable across restarts: the maker's UUID where there is one, else its
    number. `memory_mib`: 0 when unknown. `unusable`: why it gets no work, "" when it does."""

    id: str
    name: str = ""
    kind: str = CardKind.CUDA.value
    memory_mib: int = 0
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class CardLoad:
    """The current state of a card. `load`: how busy it is, 0 to 1; -1 when unknown."""

    id: str
    load: float = -1.0
    memory_used_mib: int = 0
    unusable: str = ""


def check_cards(cards: Sequence[Card | CardLoad]) -> None:
    """Raise `InvalidRequest` unless the cards that a machine reports are within bounds, each with an id of its own."""
    values = [value for card in cards for value in asdict(card).values()]
    bounded = all(len(item) <= LONGEST_TEXT if isinstance(item, str) else -1 <= item < 2**40 for item in values)
    if not bounded or len(cards) > MAX_GPUS or len({card.id for card in cards}) < len(cards):
        raise InvalidRequest("The machine reports graphics cards that are not possible.")


def with_device(needs: Needs, values: Mapping[str, str], scene: Mapping[str, object]) -> Needs:
    """Return the needs with those of the argument `device` (auto, cpu, gpu). `auto` follows the scene's own facts
    (`scene`: its `device` and `engine`): a card, where a machine has one. Raises `InvalidRequest` for device=cpu with
    graphics cards."""
    device = values.get(DEVICE)
    if device is None:
        return needs
    if device == "cpu" and needs.gpus:
        raise InvalidRequest(
            "Argument device is cpu, but the task needs graphics cards: leave out device=cpu, or the cards.",
            code="invalid_value",
        )
    engine = values.get("engine") or scene.get("engine") or ""
    if device == "gpu":
        return replace(needs, gpus=max(1, needs.gpus), prefers_gpu=False)
    prefers = device == "auto" and not needs.gpus and engine == "CYCLES" and scene.get("device") == "gpu"
    return replace(needs, prefers_gpu=prefers, draws=engine in DRAWING)
