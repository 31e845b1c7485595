"""The clocks that the dispatcher reads: one that only goes forward, and the wall's (R1.3). Tests give their own."""

from typing import Protocol

from renderonline.database.projection import Moment


class Clock(Protocol):
    """The module `time` is one."""

    def monotonic(self) -> float:
        """Seconds that only go forward: silence, leases, backoff."""

    def time(self) -> float:
        """Seconds since 1970 UTC: what people see."""


def moment(clock: Clock) -> Moment:
    """Now, as the database records it."""
    return Moment.at(clock.time())
