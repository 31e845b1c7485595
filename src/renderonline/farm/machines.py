"""Machines: their states, when one is silent, and when two programs use one machine's secret (R1.3 Silence,
R5.7 One secret, one program).

When a machine takes work: "Mon-Fri 18:00-08:00, Sat, Sun", in the server's local time.

A span belongs to the days on which it begins: Friday's `18:00-08:00` runs until Saturday 08:00, and Monday before 08:00
is only in it when Sunday is named. Single days share the span that follows them: `Mon, Wed 09:00-17:00`. Days without a
span after them are whole days, from midnight to midnight.

Graphics cards: what a machine says of each, and what a task's argument `device` asks for. Pure.
"""

import ipaddress
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from typing import Final, NamedTuple

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import MAX_GPUS, Needs

GRACE_S: Final = 60.0
"""After a start every live attempt has this long until its machine must have been heard."""
ALTERNATION_S: Final = 60.0


LONGEST_ADDRESS: Final = 45
MOST_SLOTS: Final = 1024
"""No machine has more slots; so many are allowed where a machine may have as many as it says."""
PLAIN_SLOTS: Final = 4
"""A machine of which nobody said anything has at most so many slots."""


def slots_allowed(allowed: int, cores: int) -> int:
    """How many slots a machine may have: as many as an operator `allowed`; if nobody did (0), four, or its `cores` if
    those are fewer (R14 Authority first). 0 cores: that is not known."""
    return allowed or (min(PLAIN_SLOTS, cores) if cores > 0 else PLAIN_SLOTS)


_HOST: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?\.?", re.ASCII)
_SCOPED: Final = re.compile(r"[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?", re.ASCII)


def checked_address(address: str) -> str:
    """The address of a v1 machine: an IP address or a host name, nothing that a URL reads as user, path, query or
    fragment. `InvalidRequest` otherwise."""
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
    """What an operator sees of a machine."""

    IDLE = "idle"
    BUSY = "busy"
    DRAINING = "draining"
    DISABLED = "disabled"
    OFFLINE = "offline"


class Wish(StrEnum):
    """What an operator wants of a machine."""

    ACTIVE = "active"
    DRAINING = "draining"
    DISABLED = "disabled"


def machine_status(wish: Wish, *, reachable: bool, occupied: int) -> MachineStatus:
    """The status of a machine; the first rule that holds decides."""
    if wish is Wish.DISABLED:
        return MachineStatus.DISABLED
    if not reachable:
        return MachineStatus.OFFLINE
    if wish is Wish.DRAINING:
        return MachineStatus.DRAINING
    return MachineStatus.BUSY if occupied else MachineStatus.IDLE


class AwakeClock:
    """Seconds in which our own loop was alive: time in which it stood still does not count (R1.3 Silence).

    `tick` is called about every `interval_s`; whatever a tick comes later than twice that is taken as standing still.
    """

    def __init__(self, now: float, interval_s: float = 1.0) -> None:
        self._interval_s = interval_s
        self._last = now
        self._awake = 0.0

    def tick(self, now: float) -> None:
        """Our loop lives at this moment of the monotonic clock."""
        self._awake, self._last = self.now(now), now

    def now(self, now: float) -> float:
        """Awake seconds since the clock was made; never goes back."""
        return self._awake + min(max(now - self._last, 0.0), 2 * self._interval_s)


class Seen(NamedTuple):
    """An instance of HPCServer that said hello, and when."""

    instance: str
    at: float


class Instances:
    """The latest instances of one machine: an instance that comes back after another one was there is a second
    program with the same secret, because a restarted program has a new instance id (R5.7 One secret, one program)."""

    def __init__(self) -> None:
        self._seen: deque[Seen] = deque(maxlen=16)

    @property
    def latest(self) -> Seen | None:
        """Who said hello last."""
        return self._seen[-1] if self._seen else None

    def hello(self, instance: str, now: float) -> bool:
        """Note a hello; whether two instances alternate within a minute."""
        changed = self.latest is not None and self.latest.instance != instance
        known = any(seen.instance == instance and now - seen.at <= ALTERNATION_S for seen in self._seen)
        self._seen.append(Seen(instance, now))
        return changed and known


_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY: Final = 24 * 60
_WEEK: Final = 7 * _DAY
_D, _T = f"({'|'.join(_DAYS)})", r"([01]?\d|2[0-3]):([0-5]\d)"
_PART: Final = re.compile(rf"(?:{_D}(?:-{_D})?)?\s*(?:{_T}-{_T})?", re.ASCII)
_EXAMPLE: Final = "Mon-Fri 18:00-08:00, Sat, Sun"


class _Span(NamedTuple):
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


def hours_in_words(hours: str) -> str:
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
    waiting: list[_Span] = []
    for part in parts:
        waiting.append(part)
        if part.clock is not None:
            if len(waiting) > 1 and any(len(one.days) > 1 for one in waiting):
                raise _two_meanings(waiting, part)
            spans += _of(waiting, part.clock)
            waiting = []
    return (*spans, *_of(waiting, (0, _DAY)))


def _of(parts: list[_Span], clock: tuple[int, int]) -> list[tuple[int, int]]:
    days = [day for part in parts for day in part.days or range(7)]
    return [(day * _DAY + clock[0], day * _DAY + clock[1]) for day in days]


def _two_meanings(parts: list[_Span], last: _Span) -> InvalidRequest:
    """Days before a range of days with a span: they may be whole days, or share it."""
    before, times = [part.text for part in parts[:-1]], last.text.split()[-1]
    whole, shared = ", ".join((last.text, *before)), ", ".join([*(f"{one} {times}" for one in before), last.text])
    return InvalidRequest(
        f'"{", ".join((*before, last.text))}" can mean two things. Whole days come last: {whole}. '
        f"Days of the same hours each have them: {shared}. Another example: {_EXAMPLE}."
    )


def _part(text: str) -> _Span:
    text = text.strip()
    match = _PART.fullmatch(text.casefold())
    if match is None or not text:
        raise InvalidRequest(f'"{text}" are no hours. Write days, times or both, with commas between: {_EXAMPLE}.')
    first, last, *clock = match.groups()
    day = _DAYS.index(first or "mon")
    count = (_DAYS.index(last or first or "mon") - day) % 7 + 1 if first else 0
    days = tuple((day + number) % 7 for number in range(count))
    if clock[0] is None:
        return _Span(text, days, None)
    begin, end = (int(clock[at]) * 60 + int(clock[at + 1]) for at in (0, 2))
    return _Span(text, days, (begin, end if end > begin else end + _DAY))  # it ends on the next day


DEVICE: Final = "device"
"""The argument of an engine that says on what it renders. An engine without it gets no cards of its own, unless a task
asks for so many: it sees all of them."""
NO_DEVICE: Final = "no_device"
"""The failure class of an engine that found no card where it was given one."""
LONGEST_TEXT: Final = 200
DRAWING: Final = frozenset({"BLENDER_EEVEE", "BLENDER_EEVEE_NEXT", "BLENDER_WORKBENCH", ""})
"""Renderers that draw as a game does: any card will do, and many can share one. "" is one that nobody knows."""


class CardKind(StrEnum):
    """What programs speak to a card with."""

    CUDA = "cuda"
    HIP = "hip"
    ONEAPI = "oneapi"
    METAL = "metal"


@dataclass(frozen=True, slots=True)
class Card:
    """A graphics card of a machine. `id` stays the same over restarts: the maker's UUID where there is one, else its
    number. `memory_mib`: 0 when nobody can tell. `unusable`: why it gets no work, "" when it does."""

    id: str
    name: str = ""
    kind: str = CardKind.CUDA.value
    memory_mib: int = 0
    unusable: str = ""


@dataclass(frozen=True, slots=True)
class CardLoad:
    """How a card is doing. `load`: how busy it is, 0 to 1, -1 when nobody can tell."""

    id: str
    load: float = -1.0
    memory_used_mib: int = 0
    unusable: str = ""


def check_cards(cards: Sequence[Card | CardLoad]) -> None:
    """What a machine says of its cards has bounds, and each an id of its own. `InvalidRequest` for what can't be."""
    said = [value for one in cards for value in asdict(one).values()]
    shown = all(len(one) <= LONGEST_TEXT if isinstance(one, str) else -1 <= one < 2**40 for one in said)
    if not shown or len(cards) > MAX_GPUS or len({one.id for one in cards}) < len(cards):
        raise InvalidRequest("What a machine says of its graphics cards can't be.")


def with_device(needs: Needs, values: Mapping[str, str], scene: Mapping[str, object]) -> Needs:
    """The needs with what the argument `device` (auto, cpu, gpu) asks for; `scene`: what the scene says of itself, its
    `device` and `engine` among it. `auto` is what the scene says: a card, where one is to be had. `InvalidRequest` for
    the CPU and cards at once."""
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
