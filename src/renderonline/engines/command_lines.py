"""From an engine's definition and a task's values to the words that a machine runs, and the files that must come.

The template's language is v1's (C2.6 Argument rules): words first, values filled in word by word.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from renderonline.engines.definition import (
    MISSING,
    SCENE_DIRECTORY,
    TASK_FIRST_FRAME,
    TASK_LAST_FRAME,
    EngineDefinition,
    Outputs,
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
    told = {argument: str(scene[argument.fact]) for argument in asked if argument.fact in scene}
    return {argument.id: value for argument, value in told.items() if value in (argument.choices or (value,))}


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
    named = (one for one in scenes if in_ascii(str(one.get("name", ""))) == asked)
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
        missing = (replace(one, kind="scene") for one in rules.warnings if one.kind == MISSING)
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


def values_of_frames(definition: EngineDefinition, values: Mapping[str, str], frames: Sequence[int]) -> dict[str, str]:
    """`values` with the frame arguments set so that they span `frames` (exactly, when those are one range)."""
    names = definition.frames
    if names is None:
        raise InvalidRequest(f"Engine {definition.name} does not render frames.", code="no_frames")
    if not frames:
        raise InvalidRequest("Name at least one frame.", code="no_frames")
    ranges = cut(sorted(set(frames)), 0)
    spanned = {**values, names.first: str(min(frames)), names.last: str(max(frames))}
    return {**spanned, names.step: str(ranges[0].step if len(ranges) == 1 else 1)} if names.step else spanned


def chunks_of(definition: EngineDefinition, frames: Iterable[int], chunk_size: int) -> tuple[FrameRange, ...]:
    """`farm.frames.cut` for this engine: one that can't be told a step gets only ranges without gaps."""
    return steps_resolved(definition, cut(frames, chunk_size))


def steps_resolved(definition: EngineDefinition, ranges: Iterable[FrameRange]) -> tuple[FrameRange, ...]:
    """The ranges as this engine can render them: a step that it can't be told becomes single frames."""
    if definition.frames is not None and definition.frames.step:
        return tuple(ranges)
    resolved: list[FrameRange] = []
    for chunk in ranges:
        resolved += [chunk] if chunk.step == 1 else [FrameRange(frame, frame) for frame in chunk.frames()]
    return tuple(resolved)


def build(
    definition: EngineDefinition | None,
    words: Sequence[str],
    values: Mapping[str, str],
    *,
    chunk: FrameRange | None,
    task_frames: Sequence[int],
    scene: str,
    output_directory: str,
    told: bool = True,
) -> Command:
    """The command that renders `chunk` (None: the whole task).

    `definition` is None for an engine that only has v1's template: then nothing is known of frames and files. Where
    `chunk` is given, the smallest and the largest of `task_frames` suffice.
    `words` are the template's, without the program's name; `values` the task's, complete; `scene` and
    `output_directory` paths on the machine. `InvalidRequest` when a placeholder has no value or a value would become
    an option. Without `told` nobody wants to know which files are expected, of which there may be many.
    """
    directory = posixpath.dirname(scene) or "."
    farm_values = {UPLOADED_FILE: scene, SCENE_DIRECTORY: directory, OUTPUT_DIRECTORY: output_directory}
    if definition is None:
        return Command(fill(words, {**values, **farm_values}))
    frames = tuple(chunk.frames()) if chunk is not None else tuple(task_frames)
    if definition.frames is not None and frames:
        values = values_of_frames(definition, values, frames)
        first, last = _span(definition, task_frames or frames)
        farm_values |= {TASK_FIRST_FRAME: str(first), TASK_LAST_FRAME: str(last)}
    everything, wanted = {**values, **farm_values}, definition.environment
    environment = dict(zip(wanted, fill(tuple(wanted.values()), everything), strict=True))
    expected = expected_outputs(definition, values, frames, task_frames or frames) if told else ()
    return Command(fill(words, everything), expected, frames, environment)


def _span(definition: EngineDefinition, task_frames: Sequence[int]) -> tuple[int, int]:
    """The task's first and last frame as the template is told them. POV-Ray, told that an animation goes from frame 1
    to frame 1, makes a still and leaves the number out of the file's name: a task of one frame is an animation of two
    of which it renders the first."""
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
