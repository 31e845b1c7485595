"""What the farm itself watches of an attempt, so that a machine that lies can't hold a chunk for ever
(R14 Authority first).

A machine ends an attempt at its time limit, and it alone judges stalls (R1.4 Retries); these rules bound one that does
not. All times are awake seconds (`farm.machines.AwakeClock`).
"""

from dataclasses import dataclass
from typing import Final

NOT_STARTED: Final = "not_started"
"""Failure class: the machine took the chunk and did nothing with it. The chunk is not to blame."""
OVERTIME: Final = "overtime"
"""Failure class: the machine did not end it at its time limit."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the farm waits, in seconds.

    `start_s`: for a machine that shows neither `started` nor bytes of files on their way; `fetch_s`: for one that only
    ever fetches files; `end_s`: beyond time limit and grace, for the end of an attempt; `sending_s`: the same while its
    files still come in.
    """

    start_s: float = 60.0
    fetch_s: float = 6 * 3600.0
    end_s: float = 60.0
    sending_s: float = 3600.0

    def not_started(self, now: float, assigned: float, moved: float) -> bool:
        """Whether an assignment without `started` is taken back. `moved`: when bytes of files last moved between the
        farm and this machine."""
        return now - max(assigned, moved) >= self.start_s or now - assigned >= self.fetch_s

    def overtime(self, now: float, started: float, moved: float, *, limit_s: float) -> bool:
        """Whether the farm ends an attempt that runs. `limit_s`: its time limit and grace; 0: it has none."""
        over = now - started - limit_s
        return limit_s > 0 and over >= (self.end_s if now - moved >= self.end_s else self.sending_s)


def waits_for_slot(place: int, *, running: int, slots: int) -> bool:
    """Whether the assignment at this `place` (from 0, oldest first) of a machine waits for a slot that another attempt
    of the machine holds: so many of them run."""
    return running > 0 and place >= slots - running
