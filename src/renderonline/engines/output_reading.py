"""What an engine prints, understood line by line by its definition's rules: progress, warnings, failures.

This runs on the machine, on output that a user's scene decides: lines are cut before any pattern sees them, numbers are
bounded, and progress never goes back.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from renderonline.engines.definition import LONGEST_LINE, Pattern, ReadingRules

_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Za-z0-9])")
_LARGEST: Final = 1e9

Compiled = tuple[tuple[re.Pattern[str], str], ...]
Told = dict[str, tuple[str, ...]]
"""Kind of a progress pattern -> the groups of its match."""


@dataclass(frozen=True, slots=True)
class OutputReading:
    """What one line told; None and "" where it told nothing. `fraction` is of the whole attempt (0-1), `remaining_s` of
    the frame that is being rendered, in seconds; `failure` is the failure class and the line, `reason` why the engine
    says that it ends, `device` what it renders on."""

    fraction: float | None = None
    frame: int | None = None
    remaining_s: float | None = None
    saved: str | None = None
    warning: str | None = None
    failure: tuple[str, str] | None = None
    reason: str | None = None
    device: str | None = None
    message: str = ""

    @property
    def progress(self) -> bool:
        """Whether the line told something of how far the engine is."""
        return self.fraction is not None


class OutputReader:
    """Reads the output of one attempt that renders `frames`, in the order given."""

    def __init__(self, rules: ReadingRules, frames: Sequence[int]) -> None:
        self._progress = _compiled(rules.progress)
        self._warnings = _compiled(rules.warnings)
        self._failures = _compiled(rules.failures)
        self._reasons = _compiled(rules.reasons)
        self._frames = tuple(frames)
        self._place: dict[float | None, int] = {frame: place for place, frame in enumerate(frames)}
        self._index = 0
        """The place of the frame that is being rendered."""
        self._within = 0.0
        """How much of that frame is done."""
        self._fraction = 0.0
        self._width = rules.wrapped
        self._held = self._tail = ""
        """A line that may go on in the next one, and the last piece of it."""

    def lines(self, texts: Iterable[str]) -> Iterator[OutputReading]:
        """What the next lines tell. Those that the engine broke at its width are one; a long line is held until the
        next one, or `rest`, says that it is whole."""
        for text in texts:
            piece = _ESCAPES.sub("", text[:LONGEST_LINE]) if self._width else text
            if self._held and self._goes_on(piece):
                self._held, self._tail = (self._held + piece)[:LONGEST_LINE], piece
                continue
            yield from self.rest()
            if self._width and len(piece) > self._width // 2:
                self._held = self._tail = piece
            else:
                yield self.line(piece)

    def rest(self) -> Iterator[OutputReading]:
        """What the line tells that was held: nothing follows it."""
        held, self._held = self._held, ""
        if held:
            yield self.line(held)

    def _goes_on(self, piece: str) -> bool:
        """Whether this piece belongs to the line before: a word that is too long is cut at the width (POV-Ray 3.7 may
        lose a letter there); otherwise the line is broken before a space, where the next word has no room."""
        word = re.match(r" [^ ]+", piece)
        room = self._width - len(self._tail)
        return room <= 1 or (word is not None and len(word[0]) > room)

    def line(self, text: str) -> OutputReading:
        """What `text` (one whole line, without its end) tells."""
        text = _ESCAPES.sub("", text[:LONGEST_LINE]).strip()
        if not text:
            return OutputReading()
        failure, reason = _first(self._failures, text), _told(self._reasons, text)
        if failure is not None or reason is not None:
            return OutputReading(failure=None if failure is None else (failure, text), reason=reason, message=text)
        if (warning := _told(self._warnings, text)) is not None:
            return OutputReading(warning=warning, message=text)
        told = {kind: match.groups() for regex, kind in self._progress if (match := regex.search(text)) is not None}
        return self._advance(told, text) if told else OutputReading()

    def _advance(self, told: Told, text: str) -> OutputReading:
        """Take the line's facts: first which frame, then how far within it."""
        place = self._place_of(told)
        if place is not None and place != self._index:
            self._index, self._within = place, 0.0
        within = 1.0 if "saved" in told else _within(told)
        if within is not None:
            self._within = within
        done = (self._index + self._within) / max(len(self._frames), 1)
        self._fraction = max(self._fraction, min(done, 1.0))
        return OutputReading(
            fraction=self._fraction,
            frame=self._frames[self._index] if self._frames else None,
            remaining_s=seconds(told["remaining"][0]) if "remaining" in told else None,
            saved=told["saved"][0] if "saved" in told else None,
            device=told["device"][0] if "device" in told else None,
            message=text,
        )

    def _place_of(self, told: Told) -> int | None:
        if "frame" in told:
            return self._place.get(_number(told["frame"][0]))
        number = _number(told["frame_index"][0]) if "frame_index" in told else None
        return int(number) - 1 if number is not None and 1 <= number <= len(self._frames) else None


def failure_of_exit(rules: ReadingRules, exit_code: int) -> str:
    """The failure class of an exit code other than 0, as far as it tells: the definition's, else `out_of_memory`
    after SIGKILL (the kernel's way), `crash` after another signal, `error` otherwise.

    Negative codes and those above 128 are signals, as Python and shells write them.
    """
    signal = -exit_code if exit_code < 0 else exit_code - 128
    named = rules.exit_codes.get(str(exit_code)) or rules.exit_codes.get(str(128 + signal))
    if named:
        return named
    if signal == 9:
        return "out_of_memory"
    return "crash" if signal > 0 else "error"


def seconds(text: str) -> float | None:
    """`12.5`, `01:02.50` or `1:02:03` in seconds; None when it is none of these."""
    total = 0.0
    for part in text.split(":"):
        number = _number(part)
        if number is None:
            return None
        total = total * 60 + number
    return min(total, _LARGEST)


def _within(told: Told) -> float | None:
    """How much of the frame is done by this line, 0 to 1."""
    whole: float | None = 1.0
    if "fraction" in told:
        done = _number(told["fraction"][0])
    elif "percent" in told:
        done, whole = _number(told["percent"][0]), 100.0
    elif "samples" in told:
        done, whole = _number(told["samples"][0]), _number(told["samples"][1])
    else:
        return None
    return min(max(done / whole, 0.0), 1.0) if done is not None and whole else None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) <= _LARGEST else None


def _compiled(patterns: Sequence[Pattern]) -> Compiled:
    return tuple((re.compile(pattern.regex), pattern.kind) for pattern in patterns)


def _told(patterns: Compiled, text: str) -> str | None:
    """What the first pattern that matches tells: its first group, or without groups the line."""
    found = next((match for regex, _ in patterns if (match := regex.search(text))), None)
    return None if found is None else found[1] or text if found.re.groups else text


def _first(patterns: Compiled, text: str) -> str | None:
    """The kind of the first pattern that matches."""
    return next((kind for regex, kind in patterns if regex.search(text)), None)
