"""Machines: their states, when one is silent, and when two programs use one machine's secret (R1.3 Silence,
R5.7 One secret, one program)."""

import ipaddress
import re
from collections import deque
from enum import StrEnum
from typing import Final, NamedTuple

from renderonline.farm.errors import InvalidRequest

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
