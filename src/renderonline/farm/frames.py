"""Frame ranges: reading what people write, cutting a task into chunks, naming what is still missing
(R4.2 Chunk ranges).

Frames are integers, negative ones too. The only module of `farm` that imports a package: `fileseq` knows the syntax
that render people write (`1-100x5`, `1-10,20`, `1-10y3`, `10-1`, `1-10:3`).
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Final

from fileseq.frameset import FrameSet

from renderonline.farm.errors import InvalidRequest

MAX_FRAMES: Final = 100_000
"""Frames a task may have (R4.3 Frame limit)."""

LARGEST_FRAME: Final = 2**31 - 1
"""What the database's column and every engine can hold."""

_MAX_TEXT: Final = 65_536
_MAX_SEARCHED: Final = 100
"""Up to so many frames `covering` looks for ranges that interleave; that search is quadratic."""

_FEW: Final = 20
"""Ranges that are looked through one by one."""

_PART = re.compile(r"(-?\d{1,10})(?:-(-?\d{1,10})(?:[xy:](-?\d{1,10}))?)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class FrameRange:
    """The frames `first`, `first + step`, … up to `last`; never empty, always upwards.

    `last` is made a frame of the range, and a single frame has step 1, so that equal ranges compare equal.
    """

    first: int
    last: int
    step: int = 1

    def __post_init__(self) -> None:
        if self.step < 1:
            raise InvalidRequest(f"The frame step must be 1 or more, not {self.step}.")
        if self.last < self.first:
            raise InvalidRequest(f"The last frame {self.last} is before the first frame {self.first}.")
        last = self.last - (self.last - self.first) % self.step
        object.__setattr__(self, "last", last)
        if last == self.first:
            object.__setattr__(self, "step", 1)

    def frames(self) -> range:
        """Its frames in order."""
        return range(self.first, self.last + 1, self.step)

    def __len__(self) -> int:
        return (self.last - self.first) // self.step + 1

    def __str__(self) -> str:
        if self.first == self.last:
            return str(self.first)
        return f"{self.first}-{self.last}" + (f"x{self.step}" if self.step > 1 else "")


def parse_frames(text: str) -> tuple[int, ...]:
    """The frames that `text` names, each once, in the order of the text.

    Takes fileseq's syntax and Blender's `1..5`. `InvalidRequest` when it can't be understood, names no frame or more
    than `MAX_FRAMES`.
    """
    parts = _counted(text)
    try:
        frames = list(dict.fromkeys(chain.from_iterable(map(_of, parts))))
    except ValueError as error:
        raise _not_understood(text) from error
    if len(frames) > MAX_FRAMES:
        raise _too_many()
    return tuple(frames)


def is_among(text: str) -> Callable[[int | None], bool]:
    """Whether a frame is one of those that `text` names; `InvalidRequest` as `parse_frames`. A few ranges are not
    written out: however many frames they have, nobody waits for that."""
    parts = _counted(text)
    ranges = [found for part in parts[:_FEW] if isinstance(found := _of(part), range)]
    if len(ranges) < len(parts):
        return frozenset[int | None](parse_frames(text)).__contains__
    return lambda frame: frame is not None and any(frame in one for one in ranges)


def _counted(text: str) -> list[re.Match[str]]:
    """The parts of a text that do not name too many frames; before anything of that size is made."""
    parts = _parts(text)
    if sum(map(_count, parts)) > 2 * MAX_FRAMES:
        raise _too_many()
    return parts


def _of(part: re.Match[str]) -> Iterable[int]:
    """A part's frames; part by part, because fileseq's time grows with the square of their number. What is plainly a
    range is none of its matters: it takes a hundred times as long."""
    first, last, step = int(part[1]), int(part[2] or part[1]), int(part[3] or 1)
    if step < 1 or "y" in part[0] or ":" in part[0]:
        return map(int, FrameSet(part[0]))
    return range(first, last + 1, step) if first <= last else range(first, last - 1, -step)


def _parts(text: str) -> list[re.Match[str]]:
    if len(text) > _MAX_TEXT:
        raise InvalidRequest(f"The frames are written with more than {_MAX_TEXT} characters.")
    written = (part.replace(" ", "").replace("..", "-") for part in text.split(","))
    matches = [_PART.fullmatch(part) for part in written if part]
    parts = [match for match in matches if match is not None]
    if not parts or len(parts) < len(matches):
        raise _not_understood(text)
    return parts


def _count(part: re.Match[str]) -> int:
    """At most so many frames; exact but for `y`, which leaves some out."""
    first, step = int(part[1]), int(part[3] or 1)
    last = int(part[2] or first)
    if max(abs(first), abs(last)) > LARGEST_FRAME:
        raise InvalidRequest(f"Frames lie between -{LARGEST_FRAME} and {LARGEST_FRAME}.")
    span = abs(last - first)
    return span // abs(step) + 1 if step and "x" in part.group() else span + 1


def _not_understood(text: str) -> InvalidRequest:
    return InvalidRequest(
        f'The frames "{text[:60]}" can\'t be understood. Write for example 1-100, 1-100x5 or 1-10,20.'
    )


def _too_many() -> InvalidRequest:
    return InvalidRequest(f"A task has at most {MAX_FRAMES} frames. Split it into several tasks.")


def format_frames(frames: Iterable[int]) -> str:
    """A short text that `parse_frames` reads back as the same frames in the same order ("" for none)."""
    return ",".join(_written(run) for run in _runs(_unique(frames), 0))


def _written(run: Sequence[int]) -> str:
    if len(run) == 1:
        return str(run[0])
    step = run[1] - run[0]
    if len(run) == 2 and abs(step) > 1:
        return f"{run[0]},{run[1]}"
    return f"{run[0]}-{run[-1]}" + (f"x{step}" if abs(step) > 1 else "")


def cut(frames: Iterable[int], chunk_size: int) -> tuple[FrameRange, ...]:
    """Chunks of at most `chunk_size` frames that together hold every frame once, as few as the order allows.

    Each is one range, because an engine is told first, last and step. `chunk_size` 0: as long as the ranges go.
    """
    if chunk_size < 0:
        raise InvalidRequest(f"The chunk size must be 0 or more, not {chunk_size}.")
    return tuple(_range(run) for run in _runs(_unique(frames), chunk_size))


def covering(frames: Iterable[int], *, steps: bool = True) -> tuple[FrameRange, ...]:
    """The fewest ranges that hold exactly these frames, each once (R4.2 Chunk ranges).

    `steps`: the engine can be told a step; otherwise the ranges have no gaps. For more than a hundred frames ranges
    don't interleave, which may give more of them than would be possible.
    """
    missing = sorted(set(frames))
    if not steps:
        together = groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0])
        return tuple(_range([frame for _, frame in run]) for _, run in together)
    plain = tuple(_range(run) for run in _runs(missing, 0))
    if len(plain) < 3 or len(missing) > _MAX_SEARCHED:
        return plain
    woven = _woven(missing)
    return woven if len(woven) < len(plain) else plain


def first_last_middle(count: int) -> list[int]:
    """The order in which `count` things show the whole early: first, last, middle, then the middles of what is left."""
    order = [0, count - 1][: max(count, 0)]
    gaps = [(0, count - 1)]
    for first, last in gaps:  # grows while it is walked: breadth first
        middle = (first + last) // 2
        if first < middle:
            order.append(middle)
            gaps += [(first, middle), (middle, last)]
    return order


def _unique(frames: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(frames))


def _runs(frames: Sequence[int], limit: int) -> list[list[int]]:
    """Cut a sequence into runs of one step each. Greedy is the fewest: a part of a run is a run."""
    runs: list[list[int]] = []
    for frame in frames:
        run = runs[-1] if runs else []
        fits = len(run) < 2 or frame - run[-1] == run[1] - run[0]
        if not run or not fits or len(run) == limit:
            runs.append([frame])
        else:
            run.append(frame)
    return runs


def _range(run: Sequence[int]) -> FrameRange:
    return FrameRange(min(run), max(run), abs(run[1] - run[0]) if len(run) > 1 else 1)


def _woven(missing: Sequence[int]) -> tuple[FrameRange, ...]:
    """Take the longest range again and again."""
    left = set(missing)
    ranges: list[FrameRange] = []
    while left:
        longest = _longest(left)
        left.difference_update(longest.frames())
        ranges.append(longest)
    return tuple(sorted(ranges, key=lambda found: found.first))


def _longest(left: set[int]) -> FrameRange:
    ordered = sorted(left)
    best = FrameRange(ordered[0], ordered[0])
    for place, first in enumerate(ordered):
        for second in ordered[place + 1 :]:
            step = second - first
            if first - step in left or first + step * len(best) > ordered[-1]:
                continue  # seen from its start, or can't be longer
            last = second
            while last + step in left:
                last += step
            if (last - first) // step + 1 > len(best):
                best = FrameRange(first, last, step)
    return best
