"""Reading an engine's definition from TOML, strictly: what is not understood is refused and named.

A definition comes from an administrator, but it decides what runs on every machine: a misspelt key that is silently
ignored would be found out on the farm.
"""

import dataclasses
import re
import tomllib
import types
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final, get_args, get_origin, get_type_hints

from renderonline.engines.commands import template_words
from renderonline.engines.definition import PROGRESS_KINDS, EngineDefinition, Outputs, Pattern
from renderonline.farm.arguments import ArgType, check_value, placeholders
from renderonline.farm.errors import InvalidRequest

LONGEST_DEFINITION: Final = 64 * 1024
TYPES: Final = frozenset({"file", "path", "extension", "word", "sentence", "natural", "integer", "real"})
SPLITS: Final = frozenset({"frames", "none"})
STOP_SIGNALS: Final = frozenset({"SIGTERM", "SIGINT", "SIGKILL"})
FARM_VALUES: Final = frozenset(
    {"@uploaded_file", "@scene_directory", "@output_directory", "@task_first_frame", "@task_last_frame"}
)
"""The values that the farm itself gives to a template."""


def parse_definition(toml: str) -> EngineDefinition:
    """The definition that `toml` holds.

    Raises `InvalidRequest` that names the line (TOML) or the field (`arguments[2].type`) and what it should be.
    """
    if len(toml) > LONGEST_DEFINITION:
        raise InvalidRequest(f"An engine definition has at most {LONGEST_DEFINITION} characters.")
    try:
        table = tomllib.loads(toml)
    except tomllib.TOMLDecodeError as error:
        raise InvalidRequest(f"The engine definition is not valid TOML: {error}.") from None
    definition: EngineDefinition = _build(EngineDefinition, table, "")
    definition = dataclasses.replace(definition, template=" ".join(definition.template.split()))
    _check(definition)
    return definition


def shipped() -> dict[str, str]:
    """The definitions that come with the program: engine name -> TOML."""
    folder = resources.files("renderonline.engines") / "definitions"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".toml")), key=lambda entry: entry.name)
    return {file.name.removesuffix(".toml"): file.read_text(encoding="utf-8") for file in files}


# Building: TOML values -> dataclasses, by the dataclasses' own annotations.


def _build(cls: Any, value: object, where: str) -> Any:
    """An instance of the dataclass `cls` from a TOML table."""
    if not isinstance(value, dict):
        raise InvalidRequest(f"{_place(where)} must be a table.")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = get_type_hints(cls)
    for key in value:
        if key not in fields:
            known = ", ".join(sorted(fields))
            raise InvalidRequest(f"{_place(_join(where, key))} is not known; known here: {known}.")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise InvalidRequest(f"{_place(_join(where, name))} is missing.")
    return cls(**{key: _convert(hints[key], entry, _join(where, key)) for key, entry in value.items()})


def _convert(hint: Any, value: object, where: str) -> Any:
    if get_origin(hint) is types.UnionType:
        hint = next(option for option in get_args(hint) if option is not type(None))
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise InvalidRequest(f"{_place(where)} must be a list.")
        return tuple(_convert(get_args(hint)[0], entry, f"{where}[{index}]") for index, entry in enumerate(value))
    if get_origin(hint) is Mapping or hint is Mapping:
        return _texts(value, where)
    return _plain(hint, value, where)


def _texts(value: object, where: str) -> Mapping[str, str]:
    if not isinstance(value, dict) or not all(isinstance(entry, str) for entry in value.values()):
        raise InvalidRequest(f"{_place(where)} must be a table of texts.")
    return dict(value)


def _plain(hint: Any, value: object, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        wanted = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[hint]
        raise InvalidRequest(f"{_place(where)} must be {wanted}.")
    return value


def _place(where: str) -> str:
    return f"Field {where} of the engine definition" if where else "The engine definition"


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key


# Checking: what the types can't say.


def _check(definition: EngineDefinition) -> None:
    _check_names(definition)
    _check_arguments(definition)
    _check_template(definition)
    _check_frames(definition)
    if definition.outputs is not None:
        _check_outputs(definition, definition.outputs)
    _check_reading(definition)
    for field in ("stall_s", "time_s", "memory_mib", "chunk_size"):
        if getattr(definition, field) < 0:
            raise _wrong(field, "must not be negative")


def _check_names(definition: EngineDefinition) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,49}", definition.name):
        raise _wrong("name", "has 1 to 50 of a-z, 0-9, _ and -, and begins with a letter")
    if not definition.extensions:
        raise _wrong("extensions", 'names at least one, for instance [".blend"]')
    for extension in definition.extensions:
        if not re.fullmatch(r"\.[a-zA-Z0-9]{1,16}", extension):
            raise _wrong("extensions", f"holds {extension!r}; it must look like .blend")
    _check_regex("version_regex", definition.version_regex)
    if definition.split not in SPLITS:
        raise _wrong("split", f"must be one of {', '.join(sorted(SPLITS))}")


def _check_arguments(definition: EngineDefinition) -> None:
    seen: set[str] = set()
    for index, argument in enumerate(definition.arguments):
        where = f"arguments[{index}]"
        if not re.fullmatch(r"[A-Za-z0-9_]{1,50}", argument.id):
            raise _wrong(f"{where}.id", "has 1 to 50 of A-Z, a-z, 0-9 and _")
        if argument.id in seen:
            raise _wrong(f"{where}.id", f"repeats {argument.id}")
        seen.add(argument.id)
        if argument.type not in TYPES:
            raise _wrong(f"{where}.type", f"must be one of {', '.join(sorted(TYPES))}")
        _check_regex(f"{where}.regex", argument.regex)
        rule = ArgType(argument.id, argument.type, argument.regex)
        for value in (*argument.choices, *(() if argument.default is None else (argument.default,))):
            check_value(rule, value)
        if argument.choices and argument.default is not None and argument.default not in argument.choices:
            raise _wrong(f"{where}.default", "must be one of the choices")


def _check_template(definition: EngineDefinition) -> None:
    words = template_words(definition)
    if not words:
        raise _wrong("template", "is empty")
    known = {argument.id for argument in definition.arguments} | FARM_VALUES
    unknown = sorted(placeholders(words) - known)
    if unknown:
        raise _wrong("template", f"uses $RENDERONLINE:{unknown[0]}, which is not one of its arguments")


def _check_frames(definition: EngineDefinition) -> None:
    frames = definition.frames
    if frames is None:
        if definition.split == "frames":
            raise _wrong("frames", "is missing: split = frames needs to know which arguments are the frame range")
        return
    arguments = {argument.id: argument for argument in definition.arguments}
    for field in ("first", "last", "step"):
        name = getattr(frames, field)
        if name == "" and field == "step":
            continue
        if name not in arguments:
            raise _wrong(f"frames.{field}", f"names {name!r}, which is not one of the arguments")
        if arguments[name].type not in {"natural", "integer"}:
            raise _wrong(f"frames.{field}", "must be an argument of type natural or integer")


def _check_outputs(definition: EngineDefinition, outputs: Outputs) -> None:
    if definition.frames is not None and len(re.findall(r"#+", outputs.pattern)) != 1:
        raise _wrong("outputs.pattern", "must have exactly one run of # for the frame number")
    bare = outputs.pattern.replace("{extension}", "x", 1)
    if not re.fullmatch(r"[A-Za-z0-9_#][A-Za-z0-9_.#-]{0,99}", bare):
        raise _wrong("outputs.pattern", "must be a plain file name of letters, digits, _ . - and #")
    if "{extension}" not in outputs.pattern:
        return
    if not outputs.format_argument:
        _check_extension("outputs.extension", outputs.extension)
        return
    by_id = {argument.id: argument for argument in definition.arguments}
    if outputs.format_argument not in by_id:
        raise _wrong("outputs.format_argument", "is not one of the arguments")
    for choice in by_id[outputs.format_argument].choices or (outputs.format_argument,):
        _check_extension(f"outputs.extensions.{choice}", outputs.extensions.get(choice, outputs.extension))


def _check_extension(where: str, extension: str) -> None:
    if not re.fullmatch(r"[a-zA-Z0-9]{1,16}", extension):
        raise _wrong(where, "must be an extension without the dot, for instance png")


def _check_reading(definition: EngineDefinition) -> None:
    reading = definition.reading
    for field in ("progress", "warnings", "failures"):
        patterns: tuple[Pattern, ...] = getattr(reading, field)
        for index, pattern in enumerate(patterns):
            where = f"reading.{field}[{index}]"
            groups = _check_regex(f"{where}.regex", pattern.regex)
            if field == "progress" and PROGRESS_KINDS.get(pattern.kind, groups + 1) > groups:
                kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(PROGRESS_KINDS.items()))
                raise _wrong(f"{where}.kind", f"must be one of (with so many groups in its regex): {kinds}")
            if field == "failures" and not re.fullmatch(r"[a-z_]{1,40}", pattern.kind):
                raise _wrong(f"{where}.kind", "must name the failure class, for instance scene")
    if reading.stop_signal not in STOP_SIGNALS:
        raise _wrong("reading.stop_signal", f"must be one of {', '.join(sorted(STOP_SIGNALS))}")
    for code, kind in reading.exit_codes.items():
        if not re.fullmatch(r"\d{1,3}", code) or not re.fullmatch(r"[a-z_]{1,40}", kind):
            raise _wrong("reading.exit_codes", "maps an exit code to a failure class")


def _check_regex(where: str, regex: str) -> int:
    """How many groups `regex` has; refuses one that does not compile."""
    try:
        return re.compile(regex).groups
    except re.error as error:
        raise _wrong(where, f"is not a regular expression: {error}") from None


def _wrong(field: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{_place(field)} {what}.")
