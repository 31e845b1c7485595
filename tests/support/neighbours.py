"""How long somebody waits while others are up to something, beside how long they waited before, in the same run."""

import time
from collections.abc import Awaitable, Callable, Sequence
from statistics import fmean, quantiles
from typing import Final

MOST_TIMES: Final = 3
FLOOR_S: Final = 0.05
"""A shorter wait counts as so long: what one other process takes of a machine with two processors now and then."""


async def waits(call: Callable[[], Awaitable[object]], count: int) -> list[float]:
    """The seconds that each of so many calls took, one after the other."""
    found = []
    for _ in range(count):
        began = time.perf_counter()
        await call()
        found.append(time.perf_counter() - began)
    return found


def p99(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=100)[98]


def spared(before: Sequence[float], during: Sequence[float], of: Callable[[Sequence[float]], float] = fmean) -> str:
    """What tells that a neighbour waits more than three times as long as before, "" when that is not so. By default
    all waits together count."""
    if of(during) <= MOST_TIMES * max(of(before), FLOOR_S):
        return ""
    return f"{of(during):.3f} s against {of(before):.3f} s before; longest {max(during):.3f} s, {max(before):.3f} s"
