"""An engine's definition: about twenty lines of TOML that say how to speak to a renderer.

They are read strictly. A definition comes from an administrator, but it decides what runs on every machine: a misspelt
key that was silently ignored would be noticed on the farm only, so what is not understood is refused and named.
"""

import dataclasses
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Final, get_args, get_type_hints

from renderonline.farm.arguments import (
    OUTPUT_DIRECTORY,
    TYPES,
    UPLOADED_FILE,
    ArgType,
    check_value,
    is_plain_directory,
    placeholders,
    split,
    strip_program,
)
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import NOTHING, Needs
from renderonline.farm.result_names import NOTHING_MORE, MoreResults
from renderonline.protocol.link import from_wire

SCENE_DIRECTORY: Final = "@scene_directory"
TASK_FIRST_FRAME: Final = "@task_first_frame"
TASK_LAST_FRAME: Final = "@task_last_frame"
FARM_VALUES: Final = frozenset({UPLOADED_FILE, SCENE_DIRECTORY, OUTPUT_DIRECTORY, TASK_FIRST_FRAME, TASK_LAST_FRAME})
"""The values that the farm itself fills into a template."""
LONGEST_DEFINITION: Final = 64 * 1024
SPLITS: Final = ("frames", "none")
CONSTANTS: Final = ("fail", "warn")
STOP_SIGNALS: Final = ("SIGINT", "SIGKILL", "SIGTERM")
REFUSED_VARIABLES: Final = frozenset({"LD_PRELOAD", "LD_AUDIT", "PYTHONSTARTUP"})
LOADERS: Final = ("LD_", "PYTHON")
"""What the variables of the system's loader and of Python begin with."""
MOST_MORE_FILES: Final = 10_000
MOST_MORE_MIB: Final = 1 << 20
LONGEST_CHECK_S: Final = 30.0
FAILURE_CLASS: Final = "[a-z_]{1,40}"
LONGEST_LINE: Final = 2_000
"""Characters of a line of output that are looked at."""
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
    """Which files a frame becomes: `pattern` has one run of `#` for the zero-padded frame and may end in
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
"""What a progress pattern can say -> how many groups it needs.

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
    `$RENDERONLINE:@…` for what the farm fills in (`FARM_VALUES`). `split`: frames or none (tiles and
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


def parse_definition(toml: str) -> EngineDefinition:
    """The definition that `toml` holds. Raises `InvalidRequest` that names the line (TOML) or the field
    (`arguments[2].type`) and what it should be."""
    if len(toml) > LONGEST_DEFINITION:
        raise InvalidRequest(f"An engine definition has at most {LONGEST_DEFINITION} characters.")
    try:
        table = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"The engine definition is not valid TOML: {error}.") from None
    _refuse_unknown(EngineDefinition, table, "")
    try:
        definition = from_wire(EngineDefinition, table)
    except InvalidRequest as error:
        where, _, what = error.message.removeprefix("EngineDefinition.").rstrip(".").partition(" ")
        raise _wrong(where, what.replace("an object", "a table")) from None
    definition = dataclasses.replace(definition, template=" ".join(definition.template.split()))
    _check(definition)
    try:
        definition = dataclasses.replace(definition, requirements=definition.requirements.checked())
    except InvalidRequest as error:
        raise _wrong("requirements", f"can't be met. {error.message}".rstrip(".")) from None
    return definition


def shipped() -> dict[str, str]:
    """The definitions that come with the program: engine name -> TOML."""
    folder = resources.files("renderonline.engines") / "definitions"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in files}


def template_words(definition: EngineDefinition) -> tuple[str, ...]:
    """The template's words without a leading name of the program."""
    return strip_program(split(definition.template), (definition.name, *definition.executables))


def _refuse_unknown(cls: Any, table: dict[str, Any], where: str) -> None:
    """Refuse keys that are no fields of the dataclass `cls` or of the dataclasses in it."""
    hints = get_type_hints(cls)
    for key, value in table.items():
        if key not in hints:
            raise _wrong(f"{where}{key}", f"is not known; known here: {', '.join(sorted(hints))}")
        inner = next((hint for hint in (hints[key], *get_args(hints[key])) if dataclasses.is_dataclass(hint)), None)
        numbered = {f"{key}[{number}]": entry for number, entry in enumerate(value)} if isinstance(value, list) else {}
        for place, entry in (numbered or {key: value}).items():
            if inner is not None and isinstance(entry, dict):
                _refuse_unknown(inner, entry, f"{where}{place}.")


def _check(definition: EngineDefinition) -> None:
    """What the types can't say."""
    plain_name = "has 1 to 50 of a-z, 0-9, _ and -, and begins with a letter"
    _must_match(r"[a-z][a-z0-9_-]{0,49}", definition.name, "name", plain_name)
    _must(definition.extensions, "extensions", 'names at least one, for instance [".blend"]')
    for extension in definition.extensions:
        _must_match(r"\.[a-zA-Z0-9]{1,16}", extension, "extensions", f"holds {extension!r}; it must look like .blend")
    _check_regex("version_regex", definition.version_regex)
    _must_be_one_of(SPLITS, definition.split, "split")
    _must_be_one_of(("", *FACT_READERS), definition.facts, "facts")
    _check_arguments(definition)
    words = template_words(definition)
    _must(words, "template", "is empty")
    for unknown in sorted(placeholders(words) - {argument.id for argument in definition.arguments} - FARM_VALUES):
        raise _wrong("template", f"uses $RENDERONLINE:{unknown}, which is not one of its arguments")
    if definition.frames is not None:
        _check_frames(definition, definition.frames)
    elif definition.split == "frames":
        raise _wrong("frames", "is missing: split = frames needs to know which arguments are the frame range")
    if definition.outputs is not None:
        _check_outputs(definition, definition.outputs)
    _check_reading(definition.reading)
    _check_environment("environment", definition.environment)
    if definition.check is not None:
        _check_check(definition.check)
    for key in ("sandbox_read", "sandbox_write"):
        for path in getattr(definition, key):
            plain = "holds absolute directories without .. and placeholders, for instance /mnt/nas/tex"
            _must(is_plain_directory(path), key, plain)
    for key in ("stall_s", "time_s", "frame_time_s", "memory_mib", "chunk_size"):
        _must(getattr(definition, key) >= 0, key, "must not be negative")


def _check_check(check: SceneCheck) -> None:
    version = "must be numbers with dots between them, such as 3.4"
    _must_match(r"([0-9]{1,6}(\.[0-9]{1,6}){0,5})?", check.engine_version, "check.engine_version", version)
    _must(check.environment, "check.environment", "must name a variable: without one the engine would render")
    _check_environment("check.environment", check.environment)
    _must(not placeholders(check.environment.values()), "check.environment", "must not hold placeholders")
    _must(0 < check.time_s <= LONGEST_CHECK_S, "check.time_s", f"must be more than 0 and at most {LONGEST_CHECK_S:g}")


def _check_environment(field: str, environment: Mapping[str, str]) -> None:
    """What decides which code a program loads is not a definition's, and still less a task's, to say."""
    for name, value in environment.items():
        where = f"{field}.{name}"
        _must(name.upper() not in REFUSED_VARIABLES, where, "makes programs load code of its choice and is refused")
        given = placeholders((value,)) and name.upper().startswith(LOADERS)
        _must(not given, where, "decides what code is loaded, so it must not hold a placeholder")


def doubts(definition: EngineDefinition) -> tuple[str, ...]:
    """What is taken but may be a mistake, a sentence each."""
    names = [name for name in definition.environment if name.upper().startswith(LOADERS)]
    return tuple(f"{name} in its environment decides what code the engine loads; is it needed?" for name in names)


def _check_arguments(definition: EngineDefinition) -> None:
    seen: set[str] = set()
    for index, argument in enumerate(definition.arguments):
        where = f"arguments[{index}]"
        _must_match(r"[A-Za-z0-9_]{1,50}", argument.id, f"{where}.id", "has 1 to 50 of A-Z, a-z, 0-9 and _")
        _must(argument.id not in seen, f"{where}.id", f"repeats {argument.id}")
        seen.add(argument.id)
        _must_be_one_of(TYPES, argument.type, f"{where}.type")
        _must_be_one_of(("", *SCENE_FACTS), argument.fact, f"{where}.fact")
        _check_regex(f"{where}.regex", argument.regex)
        given = () if argument.default is None else (argument.default,)
        for value in (*argument.choices, *given):
            check_value(ArgType(argument.id, argument.type, argument.regex), value)
        if argument.choices:
            _must({*given} <= {*argument.choices}, f"{where}.default", "must be one of the choices")


def _check_frames(definition: EngineDefinition, frames: FrameArguments) -> None:
    types = {argument.id: argument.type for argument in definition.arguments}
    names = {"frames.first": frames.first, "frames.last": frames.last, "frames.step": frames.step or frames.first}
    for key, name in names.items():
        _must(name in types, key, f"names {name!r}, which is not one of the arguments")
        _must(types[name] in {"natural", "integer"}, key, "must be an argument of type natural or integer")
    low, high = frames.smallest, frames.largest
    _must(low is None or high is None or low <= high, "frames.largest", "must not be less than frames.smallest")


def _check_outputs(definition: EngineDefinition, outputs: Outputs) -> None:
    one_run = definition.frames is None or len(re.findall(r"#+", outputs.pattern)) == 1
    _must(one_run, "outputs.pattern", "must have exactly one run of # for the frame number")
    known = {"", *(argument.id for argument in definition.arguments)}
    _must_be_one_of(known, outputs.suffix_argument, "outputs.suffix_argument")
    _must_be_one_of(known, outputs.width_argument, "outputs.width_argument")
    _must_be_one_of(known, outputs.height_argument, "outputs.height_argument")
    _check_more(outputs.more)
    bare = outputs.pattern.replace("{extension}", "x", 1)
    plain_file = "must be a plain file name of letters, digits, _ . - and #"
    _must_match(r"[A-Za-z0-9_#][A-Za-z0-9_.#-]{0,99}", bare, "outputs.pattern", plain_file)
    if bare == outputs.pattern:
        return
    extensions = {"extension": outputs.extension}
    if name := outputs.format_argument:
        choices = {argument.id: argument.choices or (name,) for argument in definition.arguments}
        _must(name in choices, "outputs.format_argument", "is not one of the arguments")
        chosen = {choice: outputs.extensions.get(choice, outputs.extension) for choice in choices[name]}
        extensions = {f"extensions.{choice}": extension for choice, extension in chosen.items()}
    for where, extension in extensions.items():
        without_dot = "must be an extension without the dot, for instance png"
        _must_match(r"[a-zA-Z0-9]{1,16}", extension, f"outputs.{where}", without_dot)


def _check_more(more: MoreResults) -> None:
    for key in ("take", "leave"):
        for pattern in getattr(more, key):
            plain = f"holds {pattern[:50]!r}; it must be a file name's pattern of at most 100 characters, such as *.svg"
            _must_match(r"[^\\\x00-\x1f]{1,100}", pattern, f"outputs.more.{key}", plain)
    for key, most in (("files", MOST_MORE_FILES), ("mib", MOST_MORE_MIB)):
        _must(0 < getattr(more, key) <= most, f"outputs.more.{key}", f"must be from 1 to {most}")


def _check_reading(reading: ReadingRules) -> None:
    kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(PROGRESS_KINDS.items()))
    for key in ("progress", "warnings", "failures", "reasons"):
        for index, pattern in enumerate(getattr(reading, key)):
            where = f"reading.{key}[{index}]"
            groups = _check_regex(f"{where}.regex", pattern.regex)
            if key == "progress":
                fits = PROGRESS_KINDS.get(pattern.kind, groups + 1) <= groups
                _must(fits, f"{where}.kind", f"must be one of (with this number of groups in its regex): {kinds}")
            elif key == "warnings":
                _must_be_one_of(("", MISSING), pattern.kind, f"{where}.kind")
            elif key == "failures":
                named = "must name the failure class, for instance scene"
                _must_match(FAILURE_CLASS, pattern.kind, f"{where}.kind", named)
    _must(0 <= reading.wrapped <= LONGEST_LINE, "reading.wrapped", f"must be from 0 to {LONGEST_LINE} columns")
    _must_be_one_of(CONSTANTS, reading.constant, "reading.constant")
    _must_be_one_of(STOP_SIGNALS, reading.stop_signal, "reading.stop_signal")
    for code, kind in reading.exit_codes.items():
        maps = "maps an exit code to a failure class"
        _must_match(rf"\d{{1,3}} {FAILURE_CLASS}", f"{code} {kind}", "reading.exit_codes", maps)


def _check_regex(where: str, regex: str) -> int:
    """How many groups it has."""
    try:
        return re.compile(regex).groups
    except re.error as error:
        raise _wrong(where, f"is not a regular expression: {error}") from None


def _must(holds: object, field: str, what: str) -> None:
    if not holds:
        raise _wrong(field, what)


def _must_match(pattern: str, text: str, field: str, what: str) -> None:
    _must(re.fullmatch(pattern, text), field, what)


def _must_be_one_of(choices: Collection[str], value: str, field: str) -> None:
    _must(value in choices, field, f"must be one of {', '.join(sorted(choices))}")


def _wrong(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"Field {field} of the engine definition {what}.")
