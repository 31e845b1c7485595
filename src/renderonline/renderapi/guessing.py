"""Wrong tokens and join codes: counted, logged, and answered the later the more there are.

What was sent is always compared first: the right token never waits and is never locked out, whatever others send.
"""

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from renderonline.serving.admission import source_of

log = structlog.get_logger(__name__)

WINDOW_S: Final = 60.0
"""An address or account that nothing wrong came from for this time starts again at zero."""
FREE: Final = 5
"""Wrong secrets of an address, or for an account, that are answered at once: people mistype."""
FIRST_S: Final = 0.1
LONGEST_S: Final = 2.0
MOST_WAITING: Final = 32
"""Answers that wait at the same time; more are given at once, because each holds a connection."""
MOST_WAITING_OF_ONE: Final = 4
MAX_REMEMBERED: Final = 10_000
LONGEST_ACCOUNT: Final = 255
"""Characters of an account's name that are remembered; a header holds 60,000."""
LINES: Final = 30
"""Lines of the log in a window."""


class Guesses:
    """One for the whole farm: what is tried at one door counts at the others."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._waiting: Counter[str] = Counter()
        self._lines = (0, 0.0)

    async def wrong(self, what: str, client: str, account: str = "") -> None:
        """Somebody at the address `client` sent a wrong secret, for `account` if they named one. Returns when they may
        hear so: after at most `LONGEST_S`."""
        address = source_of(client)
        here = self._count(f"address {address}")
        named = account[:LONGEST_ACCOUNT].casefold()
        counted = max(here, self._count(f"account {named}") if named else 0)
        self._tell(what, here, client, account)
        wait_s = self.delay_s(counted)
        full = self._waiting.total() >= MOST_WAITING or self._waiting[address] >= MOST_WAITING_OF_ONE
        if not wait_s or full:
            return
        self._waiting[address] += 1
        try:
            await asyncio.sleep(wait_s)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    @staticmethod
    def delay_s(count: int) -> float:
        """How long the answer to the `count`th wrong secret waits."""
        return min(FIRST_S * 2 ** min(count - FREE - 1, 10), LONGEST_S) if count > FREE else 0.0

    def _count(self, who: str) -> int:
        now = self._clock()
        count, until = self._counts.pop(who, (0, 0.0))
        count = count + 1 if now < until else 1
        self._counts[who] = (count, now + WINDOW_S)
        if len(self._counts) > MAX_REMEMBERED:
            self._counts.popitem(last=False)
        return count

    def _tell(self, what: str, count: int, client: str, account: str) -> None:
        """A line for the 1st, 10th, 100th … of an address, and never many."""
        if str(count).strip("0") != "1":
            return
        lines, until = self._lines
        if self._clock() >= until:
            lines, until = 0, self._clock() + WINDOW_S
        self._lines = (lines + 1, until)
        if lines < LINES:
            named = account[:100].encode("unicode_escape").decode("ascii")
            log.warning("wrong secret", what=what, client=client, account=named, from_there=count)
