"""From an engine's definition and a task's values to the command line that a machine runs and the files that it
writes; and what the lines that the engine prints meanwhile mean (`OutputReader`).

The template's language is v1's (C2.6 Argument rules): words first, values filled in word by word.

An engine's output is read on the machine, and a user's scene decides what it says: lines are cut before any pattern
sees them, numbers are bounded, and progress never goes back.
"""

import math
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Final

from renderonline.engines.definition import (
    LONGEST_LINE,
    MISSING,
    SCENE_DIRECTORY,
    TASK_FIRST_FRAME,
    TASK_LAST_FRAME,
    EngineDefinition,
    Outputs,
    Pattern,
    ReadingRules,
    template_words,
)
from renderonline.farm.arguments import (
    OUTPUT_DIRECTORY,
    UPLOADED_FILE,
    ArgType,
    fill,
    placeholders,
)
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.frames import LARGEST_FRAME, MAX_FRAMES, FrameRange, cut
from renderonline.farm.result_names import padded
from renderonline.protocol.link import ExpectedOutput

_WHOLE_NUMBER = re.compile(r"-?\d{1,10}", re.ASCII)
_PIXELS = re.compile(r"\d{1,6}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Command:
    """What a machine is asked to run: `argv` without the program, the files that must be there at the end (empty:
    whatever appears), the frames, and what the engine wants in its environment."""

    argv: tuple[str, ...]
    expected: tuple[ExpectedOutput, ...] = ()
    frames: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


def argtypes(definition: EngineDefinition) -> tuple[ArgType, ...]:
    """The rows that the table `argtypes` must hold for this engine."""
    return tuple(ArgType(argument.id, argument.type, argument.regex) for argument in definition.arguments)


def complete(definition: EngineDefinition, values: Mapping[str, str]) -> dict[str, str]:
    """The values of all arguments in the definition's order, defaults filled in. Whether a value obeys its argtype is
    the database's rule and checked elsewhere (`farm.arguments.check_value`). `InvalidRequest` names an argument that
    the engine does not have, that is missing, or not one of its choices."""
    name, known = definition.name, [argument.id for argument in definition.arguments]
    for unknown in values.keys() - set(known):
        has = ", ".join(known) or "none"
        raise InvalidRequest(f"Engine {name} has no argument {unknown[:50]}; it has: {has}.", code="unknown_argument")
    completed: dict[str, str] = {}
    for argument in definition.arguments:
        value = values.get(argument.id, argument.default)
        if value is None:
            raise InvalidRequest(f"Engine {name} needs a value for argument {argument.id}.", code="missing_argument")
        if argument.choices and value not in argument.choices:
            choices = ", ".join(argument.choices)
            raise InvalidRequest(f"Argument {argument.id} must be one of {choices}.", code="invalid_value")
        completed[argument.id] = value
    return completed


def values_of_scene(definition: EngineDefinition, scene: Mapping[str, object]) -> dict[str, str]:
    """What a scene says of itself (`definition.SCENE_FACTS`) as values; what an argument can't take is left out, and so
    is one beyond the command line whose default is "": the engine then does what the scene says."""
    beyond = _beyond(definition)
    asked = [argument for argument in definition.arguments if argument.id not in beyond or argument.default != ""]
    known = {argument: str(scene[argument.fact]) for argument in asked if argument.fact in scene}
    return {argument.id: value for argument, value in known.items() if value in (argument.choices or (value,))}


def without_frames(definition: EngineDefinition, values: Mapping[str, str]) -> dict[str, str]:
    """The values of all arguments but those that are the frame range."""
    names = definition.frames
    frames = {names.first, names.last, names.step} if names else set()
    return {name: value for name, value in values.items() if name not in frames}


def beyond_command_line(definition: EngineDefinition, values: Mapping[str, str]) -> frozenset[str]:
    """The arguments whose values reach the engine only through its environment, as far as something else is asked for
    than their default. v1 machines set no environment."""
    defaults = {argument.id: argument.default or "" for argument in definition.arguments}
    beyond = _beyond(definition) & defaults.keys()
    return frozenset(name for name in beyond if values.get(name, defaults[name]) != defaults[name])


def spelled(definition: EngineDefinition, values: Mapping[str, str]) -> dict[str, str]:
    """The values as the database keeps them, in ASCII: other letters of what is beyond the command line, names of a
    scene's parts, become escapes as Python writes them (`\\xfc`). The engine's launcher knows them."""
    beyond = _beyond(definition)
    return {name: in_ascii(value) if name in beyond else value for name, value in values.items()}


def in_ascii(text: str) -> str:
    """A text with other letters than ASCII's, and then backslashes, as escapes; one that is ASCII stays as it is."""
    return text if text.isascii() else text.replace("\\", r"\x5c").encode("ascii", "backslashreplace").decode()


def scene_asked_for(facts: Mapping[str, Any], values: Mapping[str, str]) -> Mapping[str, Any]:
    """What a file says of the scene that the values name, or else of its active one; {} where it says nothing."""
    scenes, asked = facts.get("scenes", ()), in_ascii(values.get("scene", ""))
    named = (scene for scene in scenes if in_ascii(str(scene.get("name", ""))) == asked)
    return next(named, next(iter(scenes), {}))


def as_written(value: str) -> str:
    """A value with the letters that its escapes stand for."""
    return value.encode("ascii", "backslashreplace").decode("unicode_escape", "replace") if "\\" in value else value


def _beyond(definition: EngineDefinition) -> set[str]:
    return placeholders(definition.environment.values()) - placeholders(template_words(definition))


def frames_of(definition: EngineDefinition, values: Mapping[str, str]) -> tuple[int, ...]:
    """The frames that complete `values` ask for, () for an engine without frames. `InvalidRequest` when they are no
    frame range or more than a task may have (R4.3 Frame limit)."""
    names = definition.frames
    if names is None:
        return ()
    first, last = _number(values, names.first), _number(values, names.last)
    asked = FrameRange(first, last, _number(values, names.step) if names.step else 1)
    if len(asked) > MAX_FRAMES:
        raise InvalidRequest(f"A task has at most {MAX_FRAMES} frames; {asked} are {len(asked)}. Split it.")
    return tuple(asked.frames())


def check_frames(definition: EngineDefinition, frames: Sequence[int]) -> None:
    """Raise `InvalidRequest` for a frame that this engine can't render: below or above what its definition says, or
    below 0 where the type of its frame argument has no negative numbers."""
    names = definition.frames
    if names is None or not frames:
        return
    natural = any(argument.id == names.first and argument.type == "natural" for argument in definition.arguments)
    smallest, largest = names.smallest, LARGEST_FRAME if names.largest is None else names.largest
    if smallest is None:
        smallest = 0 if natural else -LARGEST_FRAME
    wrong = min(frames) if min(frames) < smallest else max(frames)
    if not smallest <= wrong <= largest:
        words = f"{definition.label} renders frames from {smallest} to {largest}, not frame {wrong}."
        raise InvalidRequest(words, code="invalid_value")


def reading_of(definition: EngineDefinition, values: Mapping[str, str], *, strict: bool = False) -> ReadingRules:
    """The definition's rules for reading, with the pictures' size where complete `values` ask for one. `strict`: what
    is a warning of a missing file otherwise is a failure."""
    outputs, rules = definition.outputs or Outputs(""), definition.reading
    if strict:
        missing = (replace(warning, kind="scene") for warning in rules.warnings if warning.kind == MISSING)
        rules = replace(rules, failures=(*rules.failures, *missing))
    width, height = values.get(outputs.width_argument, ""), values.get(outputs.height_argument, "")
    if not (_PIXELS.fullmatch(width) and _PIXELS.fullmatch(height)):
        return rules
    return replace(rules, width=int(width), height=int(height))


def _number(values: Mapping[str, str], name: str) -> int:
    text = values.get(name)
    if text is None:
        raise InvalidRequest(f"A value for argument {name} is missing.", code="missing_argument")
    if not _WHOLE_NUMBER.fullmatch(text) or abs(int(text)) > LARGEST_FRAME:
        raise InvalidRequest(f"Argument {name} must be a frame number.", code="invalid_value")
    return int(text)


def values_of_frames(
    definition: EngineDefinition, values: Mapping[str, str], frames: Sequence[int] | FrameRange
) -> dict[str, str]:
    """`values` with the frame arguments set so that they span `frames` (exactly, when those are one range)."""
    names = definition.frames
    if names is None:
        raise InvalidRequest(f"Engine {definition.name} does not render frames.", code="no_frames")
    if not frames:
        raise InvalidRequest("Name at least one frame.", code="no_frames")
    if isinstance(frames, FrameRange):
        span = frames
    else:
        ranges = cut(sorted(set(frames)), 0)
        span = ranges[0] if len(ranges) == 1 else FrameRange(min(frames), max(frames))
    spanned = {**values, names.first: str(span.first), names.last: str(span.last)}
    return {**spanned, names.step: str(span.step)} if names.step else spanned


def chunks_of(definition: EngineDefinition, frames: Iterable[int], chunk_size: int) -> tuple[FrameRange, ...]:
    """`farm.frames.cut` for this engine: where it takes no step, a range with gaps becomes single frames."""
    ranges = cut(frames, chunk_size)
    if definition.frames is not None and definition.frames.step:
        return ranges
    parts = ([chunk] if chunk.step == 1 else [FrameRange(frame, frame) for frame in chunk.frames()] for chunk in ranges)
    return tuple(chain.from_iterable(parts))


def build(
    definition: EngineDefinition | None,
    words: Sequence[str],
    values: Mapping[str, str],
    *,
    chunk: FrameRange | None,
    task_frames: Sequence[int],
    scene: str,
    output_directory: str,
    with_outputs: bool = True,
) -> Command:
    """The command that renders `chunk` (None: the whole task).

    `definition` is None for an engine that only has v1's template: then nothing is known of frames and files. Where
    `chunk` is given, the smallest and the largest of `task_frames` suffice.
    `words` are the template's, without the program's name; `values` the task's, complete; `scene` and
    `output_directory` paths on the machine. `InvalidRequest` when a placeholder has no value or a value would become
    an option. Without `with_outputs` the expected files, of which there may be many,
    are left out.
    """
    directory = posixpath.dirname(scene) or "."
    farm_values = {UPLOADED_FILE: scene, SCENE_DIRECTORY: directory, OUTPUT_DIRECTORY: output_directory}
    if definition is None:
        return Command(fill(words, {**values, **farm_values}))
    frames = tuple(chunk.frames()) if chunk is not None else tuple(task_frames)
    if definition.frames is not None and frames:
        values = values_of_frames(definition, values, chunk or frames)
        first, last = _span(definition, task_frames or frames)
        farm_values |= {TASK_FIRST_FRAME: str(first), TASK_LAST_FRAME: str(last)}
    everything, wanted = {**values, **farm_values}, definition.environment
    environment = dict(zip(wanted, fill(tuple(wanted.values()), everything), strict=True))
    expected = expected_outputs(definition, values, frames, task_frames or frames) if with_outputs else ()
    return Command(fill(words, everything), expected, frames, environment)


def _span(definition: EngineDefinition, task_frames: Sequence[int]) -> tuple[int, int]:
    """The task's first and last frame for the template. POV-Ray makes a still of an animation from frame 1 to frame 1,
    and leaves the number out of the file's name: a task of one frame is an animation of two of which it renders the
    first."""
    first, last = min(task_frames), max(task_frames)
    pads_like_last = definition.outputs is not None and definition.outputs.pad_like_last_frame
    return first, max(last, first + 1) if pads_like_last else last


def expected_outputs(
    definition: EngineDefinition, values: Mapping[str, str], frames: Sequence[int], task_frames: Sequence[int]
) -> tuple[ExpectedOutput, ...]:
    """The files that `frames` give, by name relative to the attempt's directory; () when the engine names none."""
    pattern = frames_pattern(definition, values, task_frames)
    if "#" not in pattern:
        return (ExpectedOutput(pattern),) if pattern else ()
    return tuple(ExpectedOutput(name_of_frame(pattern, frame), frame) for frame in frames)


def frames_pattern(definition: EngineDefinition, values: Mapping[str, str], task_frames: Sequence[int]) -> str:
    """What the files of a task's frames are called, with as many `#` as the frame's number has digits; "" when the
    engine names none."""
    outputs = definition.outputs
    if outputs is None:
        return ""
    extension = outputs.extensions.get(values.get(outputs.format_argument, ""), outputs.extension)
    pattern = outputs.pattern.replace("{extension}", extension, 1)
    stem, dot, ending = pattern.rpartition(".")
    pattern = f"{stem}{values.get(outputs.suffix_argument, '')}{dot}{ending}" if dot else pattern
    if outputs.pad_like_last_frame and task_frames:
        return re.sub("#+", "#" * len(str(_span(definition, task_frames)[1])), pattern, count=1)
    return pattern


def name_of_frame(pattern: str, frame: int) -> str:
    return re.sub("#+", lambda run: padded(frame, len(run[0])), pattern, count=1)


def frame_of_name(pattern: str, name: str) -> int | None:
    """The frame whose file is called so by `frames_pattern`; None for every other name."""
    before, run, after = re.split("(#+)", pattern, maxsplit=1) if "#" in pattern else (pattern, "", "")
    number = name.removeprefix(before).removesuffix(after)
    if not run or not re.fullmatch(r"-?\d{1,10}", number, re.ASCII):
        return None
    return int(number) if name_of_frame(pattern, int(number)) == name else None


_ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|[()][A-Za-z0-9])")
_LARGEST: Final = 1e9

Compiled = tuple[tuple[re.Pattern[str], str], ...]
Said = dict[str, tuple[str, ...]]
"""Kind of a progress pattern -> the groups of its match."""


@dataclass(frozen=True, slots=True)
class OutputReading:
    """What one line of output says; None and "" where it says nothing. `fraction` is of the whole attempt (0-1),
    `remaining_s` of the frame that is being rendered, in seconds; `failure` is the failure class and the line, `reason`
    why the engine says that it ends, `device` what it renders on."""

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
        """Whether the line says how far the engine is."""
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
        """What the next lines say. Those that the engine broke at its width are one; a long line is held until the
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
        """What the line says that was held: nothing follows it."""
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
        """What `text` (one whole line, without its end) says."""
        text = _ESCAPES.sub("", text[:LONGEST_LINE]).strip()
        if not text:
            return OutputReading()
        failure, reason = _first_match(self._failures, text), _first_match(self._reasons, text)
        if failure or reason:
            return OutputReading(
                failure=(failure[0], text) if failure else None, reason=reason[1] if reason else None, message=text
            )
        if warning := _first_match(self._warnings, text):
            return OutputReading(warning=warning[1], message=text)
        said = {kind: match.groups() for regex, kind in self._progress if (match := regex.search(text)) is not None}
        return self._advance(said, text) if said else OutputReading()

    def _advance(self, said: Said, text: str) -> OutputReading:
        """Take the line's facts: first which frame, then how far within it."""
        place = self._place_of(said)
        if place is not None and place != self._index:
            self._index, self._within = place, 0.0
        within = 1.0 if "saved" in said else _within(said)
        if within is not None:
            self._within = within
        done = (self._index + self._within) / max(len(self._frames), 1)
        self._fraction = max(self._fraction, min(done, 1.0))
        return OutputReading(
            fraction=self._fraction,
            frame=self._frames[self._index] if self._frames else None,
            remaining_s=seconds(said["remaining"][0]) if "remaining" in said else None,
            saved=said["saved"][0] if "saved" in said else None,
            device=said["device"][0] if "device" in said else None,
            message=text,
        )

    def _place_of(self, said: Said) -> int | None:
        if "frame" in said:
            return self._place.get(_decimal(said["frame"][0]))
        number = _decimal(said["frame_index"][0]) if "frame_index" in said else None
        return int(number) - 1 if number is not None and 1 <= number <= len(self._frames) else None


def failure_of_exit(rules: ReadingRules, exit_code: int) -> str:
    """The failure class of an exit code other than 0: the definition's, else `out_of_memory` after SIGKILL (the
    kernel's way), `crash` after another signal, `error` otherwise.

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
        number = _decimal(part)
        if number is None:
            return None
        total = total * 60 + number
    return min(total, _LARGEST)


def _within(said: Said) -> float | None:
    """How much of the frame is done by this line, 0 to 1."""
    whole: float | None = 1.0
    if "fraction" in said:
        done = _decimal(said["fraction"][0])
    elif "percent" in said:
        done, whole = _decimal(said["percent"][0]), 100.0
    elif "samples" in said:
        done, whole = _decimal(said["samples"][0]), _decimal(said["samples"][1])
    else:
        return None
    return min(max(done / whole, 0.0), 1.0) if done is not None and whole else None


def _decimal(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if math.isfinite(number) and abs(number) <= _LARGEST else None


def _compiled(patterns: Sequence[Pattern]) -> Compiled:
    return tuple((re.compile(pattern.regex), pattern.kind) for pattern in patterns)


def _first_match(patterns: Compiled, text: str) -> tuple[str, str] | None:
    """The kind of the first pattern that matches, and its first group, or the whole line where it has no groups."""
    found = next(((kind, match) for regex, kind in patterns if (match := regex.search(text))), None)
    return found and (found[0], found[1][1] or text if found[1].re.groups else text)
