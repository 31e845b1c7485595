"""Looking at engine definitions and at the engines of this computer, without a farm."""

from typing import Any

from renderonline.engines.commands import argtypes, build, complete, template_words, values_of_frames
from renderonline.engines.definition import EngineDefinition
from renderonline.engines.discovery import FoundEngine, find_engines
from renderonline.engines.loading import parse_definition, shipped
from renderonline.farm.arguments import check_value
from renderonline.farm.frames import cut, parse_frames
from renderonline.serving.directories import data_directory


def engines_here() -> list[dict[str, str]]:
    """What a machine on this computer would offer."""
    definitions = {name: parse_definition(text) for name, text in shipped().items()}
    return [
        {"name": item.name, "version": item.version, "command": " ".join(item.prefix)} for item in _find(definitions)
    ]


def check_definition(text: str, scene: str, frames: str, values: dict[str, str]) -> dict[str, Any]:
    """What a definition makes of a task's first chunk; `InvalidRequest` for what is wrong with it."""
    definition = parse_definition(text)
    wanted = parse_frames(frames) if definition.split == "frames" else ()
    given = values_of_frames(definition, values, wanted) if wanted else dict(values)
    filled = complete(definition, given)
    for argtype in argtypes(definition):
        check_value(argtype, filled[argtype.argtype_id])
    chunk = cut(wanted, definition.chunk_size)[0] if wanted else None
    command = build(
        definition,
        template_words(definition),
        filled,
        chunk=chunk,
        task_frames=wanted,
        scene=scene,
        output_directory="/path/output",
    )
    found = next(iter(_find({definition.name: definition})), None)
    return {
        "name": definition.name,
        "extensions": list(definition.extensions),
        "split": definition.split,
        "program": " ".join(found.prefix) if found else "not found on this computer",
        "version": found.version if found else "",
        "command": " ".join(command.argv),
        "outputs": [output.name for output in command.expected],
    }


def _find(definitions: dict[str, EngineDefinition]) -> tuple[FoundEngine, ...]:
    return find_engines({}, definitions, data_directory() / "engines")
