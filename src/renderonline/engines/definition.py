"""An engine's definition: about twenty lines of TOML that say how to speak to a renderer.

Understanding what an engine prints: progress, warnings, failures; line by line, by the definition's rules.

It runs on the machine, on output that a user's scene decides: lines are cut before any pattern sees them, numbers are
bounded, and progress never goes back.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from renderonline.farm.needs import NOTHING, Needs
from renderonline.farm.result_names import NOTHING_MORE, MoreResults

FACT_READERS: Final[Mapping[str, str]] = {"blender": "renderonline.engines.blender.needed_files:survey"}
"""Who can read what a scene says of itself: a definition's `facts` -> the function, for `storage.confined`."""
SCENE_FACTS: Final = ("start", "end", "step", "width", "height", "percent", "fps", "engine", "format", "view")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of an engine; every form (web, desktop, command line) is drawn from it.

    `id` is the argtype's id (`$RENDERONLINE:<id>` in the template), `type` one of the contract's types, `regex` the
    rule that replaces the type's, `choices` the only values allowed if not empty. Without `default` it must be given.
    `fact` (one of `SCENE_FACTS`): what the scene says of it is the default where that is known.
    """

    id: str
    type: str
    label: str = ""
    help: str = ""
    default: str | None = None
    regex: str = ""
    choices: tuple[str, ...] = ()
    fact: str = ""


@dataclass(frozen=True, slots=True)
class FrameArguments:
    """Which arguments are the frame range; each chunk gets its own values for them. "" where there is none.
    `smallest` and `largest`: the frames that the engine can render; None: what the types of the arguments say."""

    first: str
    last: str
    step: str = ""
    smallest: int | None = None
    largest: int | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """Which files a frame gives: `pattern` has one run of `#` for the zero-padded frame and may end in
    `.{extension}`; `extensions` maps the value of argument `format_argument` to the extension."""

    pattern: str
    extension: str = ""
    format_argument: str = ""
    extensions: Mapping[str, str] = field(default_factory=dict)
    width_argument: str = ""
    """The arguments that say how many pixels a picture has from left to right, and from top to bottom."""
    height_argument: str = ""
    suffix_argument: str = ""
    """The argument whose value stands before the extension: of a frame that is several files, the first one's."""
    pad_like_last_frame: bool = False
    """Pad with as many digits as the task's last frame has (POV-Ray) instead of the run of `#`."""
    more: MoreResults = NOTHING_MORE
    """What the engine writes besides, and is a result too."""


_ONE_GROUP = ("frame", "frame_index", "fraction", "percent", "remaining", "memory", "saved", "device")
PROGRESS_KINDS: Final[Mapping[str, int]] = {**dict.fromkeys(_ONE_GROUP, 1), "samples": 2}
"""What a progress pattern can tell -> how many groups it needs.

`frame` is the number of the frame that is being rendered, `frame_index` its place in the chunk counted from 1;
`fraction` (0-1), `percent` and `samples` (done, total) are of that frame; `remaining` is seconds or h:mm:ss of that
frame; `memory` is what the engine says that it uses; `saved` is the path of a file that is complete; `device` is
what it renders on.
"""


MISSING: Final = "missing"
"""The kind of a warning that says: a file that the scene needs is not there."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression on a line of the engine's output. `kind` of a progress pattern is one of `PROGRESS_KINDS`;
    a failure has the failure class (scene, crash, out_of_memory, …), a warning has `MISSING` or "", a reason "". What
    those two say is the first group, or without groups the line."""

    regex: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """What the machine needs to understand the engine's output; travels as JSON in `Assign.reading`. A line that
    matches one of `failures` makes the attempt a failure of that class, even with exit code 0; `exit_codes` maps an
    exit code (as text) to a failure class; `decode`: the results are pictures that must decode wholly; `wrapped`: the
    columns after which the engine breaks its lines, 0: it does not."""

    progress: tuple[Pattern, ...] = ()
    warnings: tuple[Pattern, ...] = ()
    failures: tuple[Pattern, ...] = ()
    reasons: tuple[Pattern, ...] = ()
    """Lines in which the engine itself says why it ends: the last one is what people read of a failure, and makes
    none by itself."""
    exit_codes: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    decode: bool = True
    constant: str = "warn"
    """What a picture means whose pixels all have one colour: `warn` (the log says so: it may be meant) or `fail`."""
    width: int = 0
    """The pixels that a picture must have; 0: the scene decides."""
    height: int = 0
    wrapped: int = 0


FILM_READING: Final = ReadingRules(
    progress=(Pattern(r"^Frame (\d+)/(\d+)$", "samples"),),
    warnings=(Pattern("^Warning: (.+)$"),),
    failures=(Pattern("^Error: ", "film"),),
    decode=False,
)
"""How the farm's own means of making films speaks."""


@dataclass(frozen=True, slots=True)
class SceneCheck:
    """How an engine looks at the scene of a new task without rendering it: its command with these variables besides.
    What it says is read as of an attempt. It is ended after `time_s` seconds; `engine_version`: the oldest that can."""

    environment: Mapping[str, str]
    time_s: float = 30.0
    engine_version: str = ""


@dataclass(frozen=True, slots=True)
class EngineDefinition:
    """How to speak to a renderer.

    `template` is v1's language: words as on a command line, `$RENDERONLINE:<argtype_id>` for values and
    `$RENDERONLINE:@…` for what the farm gives (`engines.commands.FARM_VALUES`). `split`: frames or none (tiles and
    samples come later). `chunk_size`: frames a chunk when the user names none; 0: the farm decides. Without `outputs`
    every new file in the attempt's directory is a result. `executables` are looked for on a machine's PATH; without
    any it is only what the machine's own settings name. With `renderers_arguments` its program lists what it can render
    with, one name a line after the line `renderers_after`. `facts`: who reads its scenes (`FACT_READERS`), "": nobody.
    An attempt may run for `time_s` seconds, and for `frame_time_s` times the frames it renders; 0: no limit.
    `check`: how it looks at a scene before it is rendered, None: it can't.
    `ascii_paths`: it opens no paths with other letters, double quotes or backslashes, nor long ones.
    `network`, `sandbox_read`, `sandbox_write`: what is open to it in its box besides its task's files.
    """

    name: str
    label: str
    extensions: tuple[str, ...]
    template: str
    split: str = "none"
    facts: str = ""
    chunk_size: int = 0
    arguments: tuple[Argument, ...] = ()
    frames: FrameArguments | None = None
    outputs: Outputs | None = None
    reading: ReadingRules = field(default_factory=ReadingRules)
    check: SceneCheck | None = None
    executables: tuple[str, ...] = ()
    version_arguments: tuple[str, ...] = ()
    version_regex: str = ""
    renderers_arguments: tuple[str, ...] = ()
    renderers_after: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    stall_s: float = 900.0
    time_s: float = 0.0
    frame_time_s: float = 0.0
    memory_mib: int = 0
    ascii_paths: bool = False
    network: bool = False
    sandbox_read: tuple[str, ...] = ()
    sandbox_write: tuple[str, ...] = ()
    requirements: Needs = NOTHING


LONGEST_LINE: Final = 2_000
"""Characters of a line that are looked at."""

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
