"""Nobody may try out many secrets: wrong guesses are counted, and who makes too many has to wait."""

import time
from collections.abc import Callable
from typing import Final

from renderonline.farm.errors import LimitReached

WINDOW_S: Final = 60.0
MAX_REMEMBERED: Final = 10_000


class Guesses:
    """Wrong guesses of the last minute, by who made them. After `most` of them `check` raises."""

    def __init__(self, most: int, told: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._told, self._clock = most, told, clock
        self._wrong: dict[str, list[float]] = {}

    def check(self, who: str) -> None:
        """Raise `LimitReached` when they have to wait."""
        if len(self._recent(who)) >= self._most:
            raise LimitReached(self._told)

    def wrong(self, who: str) -> None:
        """They have guessed wrong."""
        recent = self._recent(who)
        self._wrong.pop(who, None)
        self._wrong[who] = [*recent, self._clock()]
        while len(self._wrong) > MAX_REMEMBERED:
            del self._wrong[next(iter(self._wrong))]

    def _recent(self, who: str) -> list[float]:
        return [moment for moment in self._wrong.get(who, ()) if moment > self._clock() - WINDOW_S]
