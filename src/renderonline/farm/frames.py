"""Frame ranges: reading what people write, cutting a task into chunks, naming what is still missing
(R4.2 Chunk ranges).

Frames are integers, negative ones too. Ranges are written as in the package fileseq, whose syntax render people know:
`1-10,20` and `10-1`; `1-100x5` every fifth frame; `1-10y3` all frames except every third; `1-10:3` every third frame,
then every second, then the rest.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Final

from renderonline.farm.errors import InvalidRequest

MAX_FRAMES: Final = 100_000
"""Frames a task may have (R4.3 Frame limit)."""

LARGEST_FRAME: Final = 2**31 - 1
"""What the database's column and every engine can hold."""

_MAX_TEXT: Final = 65_536
_FEW: Final = 20
"""Ranges that are looked through one by one."""

_PART = re.compile(r"(-?\d{1,10})(?:-(-?\d{1,10})(?:([xy:])(-?\d{1,10}))?)?", re.ASCII)


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
    frames = _unique(chain.from_iterable(map(_of, _counted(text))))
    if not frames:
        raise _not_understood(text)
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
    return lambda frame: frame is not None and any(frame in part for part in ranges)


def _counted(text: str) -> list[re.Match[str]]:
    """The parts of a text that do not name too many frames; before anything of that size is made."""
    parts = _parts(text)
    if sum(map(_count, parts)) > 2 * MAX_FRAMES:
        raise _too_many()
    return parts


def _of(part: re.Match[str]) -> Iterable[int]:
    """A part's frames in order; a range unless frames are left out (`y`) or come in turns (`:`)."""
    first, last, step = int(part[1]), int(part[2] or part[1]), abs(int(part[4] or 1))
    sign = 1 if first <= last else -1

    def every(step: int) -> range:
        return range(first, last + sign, sign * step)

    if part[3] == "y":
        return [frame for frame in every(1) if frame not in every(step)]
    if part[3] == ":":
        longest = min(step, len(every(1)))  # a longer step names the first frame only
        return _unique(chain.from_iterable(map(every, range(longest, 0, -1))))
    return every(step)


def _parts(text: str) -> list[re.Match[str]]:
    if len(text) > _MAX_TEXT:
        raise InvalidRequest(f"The frames are written with more than {_MAX_TEXT} characters.")
    written = (part.replace(" ", "").replace("..", "-") for part in text.split(","))
    matches = [_PART.fullmatch(part) for part in written if part]
    parts = [match for match in matches if match is not None]
    if not parts or len(parts) < len(matches) or any(part[4] and not int(part[4]) for part in parts):
        raise _not_understood(text)
    return parts


def _count(part: re.Match[str]) -> int:
    """How many frames a part has at most; exact except for `y`, which leaves some out."""
    first, step = int(part[1]), int(part[4] or 1)
    last = int(part[2] or first)
    if max(abs(first), abs(last)) > LARGEST_FRAME:
        raise InvalidRequest(f"Frames lie between -{LARGEST_FRAME} and {LARGEST_FRAME}.")
    span = abs(last - first)
    return span // abs(step) + 1 if part[3] == "x" else span + 1


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

    Each is one range, because an engine takes first, last and step. `chunk_size` 0: as long as the ranges go.
    """
    if chunk_size < 0:
        raise InvalidRequest(f"The chunk size must be 0 or more, not {chunk_size}.")
    return tuple(_range(run) for run in _runs(_unique(frames), chunk_size))


def covering(frames: Iterable[int], *, steps: bool = True) -> tuple[FrameRange, ...]:
    """The fewest consecutive ranges that hold exactly these frames, each once (R4.2 Chunk ranges).

    `steps`: whether the engine takes a step; otherwise the ranges have no gaps.
    """
    missing = sorted(set(frames))
    if steps:
        return cut(missing, 0)
    together = groupby(enumerate(missing), key=lambda pair: pair[1] - pair[0])
    return tuple(_range([frame for _, frame in run]) for _, run in together)


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
