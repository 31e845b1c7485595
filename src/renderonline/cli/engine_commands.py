"""`renderonline engine …`: engines of the farm, and programs installed on this computer."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from renderonline.cli import terminal
from renderonline.cli.terminal import URL, YES, Output, argument, command, find, flag, group, listing, option, pairs
from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.sdk import Client

if TYPE_CHECKING:
    from renderonline.engines.definition import EngineDefinition
    from renderonline.engines.discovery import FoundEngine

commands = group("Render engines, of the farm and of this computer.")
ENGINE = argument("ENGINE", "The engine's name or number.")
DEFINITION = argument("FILE.toml", "The engine's definition.")
COLUMNS: terminal.Columns = {
    ">ENGINE": "engine_id",
    "NAME": "name",
    "EXTENSIONS": lambda engine: " ".join(engine["extensions"]),
    "ENABLED": lambda engine: terminal.yes(engine["is_enabled"]),
    "ARGUMENTS": lambda engine: ", ".join(str(item["id"]) for item in engine["arguments"]),
}
ARGUMENT_COLUMNS: terminal.Columns = {
    "ARGUMENT": "id",
    "TYPE": "type",
    "DEFAULT": "default",
    "CHOICES": lambda item: " ".join(item["choices"]),
    "MEANING": "help",
}


@command(commands, "renderonline engine install blender")
def install(*, engine: str = argument("ENGINE", "What to install: blender.", default="blender"), json: bool) -> Output:
    """Install an engine on this computer (Blender: about 380 MB to fetch, 1 GB on the disk)."""
    if engine != "blender":
        raise InvalidRequest(f"Only blender can be installed; put {engine} on the PATH and it is found.")
    prefix = install_blender(quiet=json)
    return {"engine": engine, "command": list(prefix)}, f"Blender is installed: {' '.join(prefix)}"


def install_blender(*, quiet: bool) -> tuple[str, ...]:
    """Return Blender's argv prefix on this computer; install it first, with a progress bar, if it is missing."""
    from renderonline.engines.blender import install as blender
    from renderonline.storage.disk import data_directory

    with terminal.bar("Blender", "share", quiet=quiet) as step:
        directory = data_directory() / "engines" / "blender"
        return tuple(blender.install(directory, lambda fraction, words: step(fraction, 1.0, words)))


@command(commands, "renderonline engine list", "renderonline engine list --here")
def list_engines(
    *, here: bool = flag("--here", "What is installed on this computer instead."), url: str | None = URL
) -> Output:
    """List the farm's engines, or those of this computer."""
    if here:
        none = "No engine was found here. Install Blender: renderonline engine install blender"
        return listing({"NAME": "name", "VERSION": "version", "COMMAND": "command"}, engines_here(), none)
    with terminal.connect(url) as client:
        return listing(COLUMNS, client.admin.engines())


@command(commands, "renderonline engine show blender")
def show_engine(client: Client, *, engine: str = ENGINE) -> Output:
    """Show an engine and its arguments."""
    _, found = find(client, "engine", engine)

    def print_it() -> None:
        terminal.print_fields(found, ["name", "engine_id", "extensions", "split", "is_enabled", "download_path"])
        terminal.say()
        terminal.table(ARGUMENT_COLUMNS, found["arguments"])

    return found, print_it


@command(commands, "renderonline engine add examples/engines/sleep.toml")
def add(
    client: Client,
    *,
    file: Path = DEFINITION,
    download_path: str | None = option("DIRECTORY", "Where RenderAPI keeps its tasks' files."),
) -> Output:
    """Add an engine to the farm, from its definition (administrators)."""
    from renderonline.engines.definition import doubts, parse_definition

    text = _read(file)
    made = client.admin.add_engine(text, download_path)
    with suppress(InvalidRequest):  # the farm, which may be newer, accepted it
        for doubt in doubts(parse_definition(text)):
            terminal.note(f"Warning: {doubt}")
    return made, f"Engine {made['engine_id']} {made['name']} added."


@command(commands, "renderonline engine test my-engine.toml --frames 1-10 --arg width=640", name="test")
def try_out(
    *,
    file: Path = DEFINITION,
    scene: str = option("FILE", "A scene to show the command for.", default="/path/scene"),
    frames: str = option("RANGE", "The frames to show the command for.", default="1-4"),
    arg: list[str] | None = option("ID=VALUE", None, "--arg", "-a"),
) -> Output:
    """Check a definition without a farm: what would run for a chunk, and is the program here?"""
    found = _checked(_read(file), scene, frames, pairs("--arg", arg or [], "ID=VALUE"))
    return found, lambda: terminal.print_fields(found, list(found))


@command(
    commands,
    "renderonline engine argtype",
    "renderonline engine argtype samples --type natural --regex '[1-9][0-9]{0,3}'",
    "renderonline engine argtype samples --delete",
)
def argtype(
    client: Client,
    *,
    argtype_id: str | None = argument("[ARGTYPE]", "The type's name.", default=None),
    kind: str | None = option("TYPE", "file, path, extension, word, sentence, natural, integer or real.", "--type"),
    regex: str = option("REGEX", "A rule that replaces the type's.", default=""),
    delete: bool = flag("--delete", "Remove it."),
) -> Output:
    """List the types of arguments, or set one (administrators)."""
    if argtype_id is None:
        return listing({"ARGTYPE": "argtype_id", "TYPE": "type", "RULE": "regex"}, client.admin.argtypes())
    if delete:
        client.admin.remove_argtype(argtype_id)
        return {"removed": argtype_id}, f"Argument type {argtype_id} removed."
    if kind is None:
        raise InvalidRequest("Say with --type what its values are, for instance --type natural .")
    made = client.admin.put_argtype(argtype_id, kind, regex or None)
    return made, f"Argument type {argtype_id}: {kind} {regex}".rstrip()


@command(commands, "renderonline engine disable povray")
def disable(client: Client, *, engine: str = ENGINE) -> Output:
    """Take no new tasks for an engine."""
    changed = client.admin.change_engine(find(client, "engine", engine)[0], is_enabled=False)
    return changed, f"Engine {changed['name']}: disabled."


@command(commands, "renderonline engine enable povray")
def enable(client: Client, *, engine: str = ENGINE) -> Output:
    """Take tasks for an engine again."""
    changed = client.admin.change_engine(find(client, "engine", engine)[0], is_enabled=True)
    return changed, f"Engine {changed['name']}: enabled."


@command(commands, "renderonline engine remove povray")
def remove(client: Client, *, engine: str = ENGINE, yes: bool = YES, json: bool) -> Output:
    """Remove an engine that no task uses."""
    terminal.confirm(f"Remove engine {engine}?", agreed=yes or json)
    number, found = find(client, "engine", engine)
    client.admin.remove_engine(number)
    return {"removed": number}, f"Engine {found['name']} removed."


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} can't be read: {error}.") from None


def engines_here() -> list[dict[str, str]]:
    """Return the engines that a machine on this computer would offer."""
    from renderonline.engines.definition import parse_definition, shipped

    found = _installed({name: parse_definition(text) for name, text in shipped().items()})
    return [{"name": engine.name, "version": engine.version, "command": " ".join(engine.prefix)} for engine in found]


def _installed(definitions: "dict[str, EngineDefinition]") -> "tuple[FoundEngine, ...]":
    from renderonline.engines.discovery import find_engines
    from renderonline.storage.disk import data_directory

    return find_engines({}, definitions, data_directory() / "engines")


def _checked(text: str, scene: str, frames: str, values: dict[str, str]) -> dict[str, Any]:
    """The command of a task's first chunk by this definition. Raises `InvalidRequest` for a wrong definition."""
    from renderonline.engines import command_lines as lines
    from renderonline.engines.definition import parse_definition, template_words
    from renderonline.farm.arguments import check_value
    from renderonline.farm.frames import cut, parse_frames

    definition = parse_definition(text)
    wanted = parse_frames(frames) if definition.split == "frames" else ()
    lines.check_frames(definition, wanted)
    filled = lines.complete(definition, lines.values_of_frames(definition, values, wanted) if wanted else values)
    checked = lines.without_frames(definition, filled) if wanted else filled
    for argtype in lines.argtypes(definition):
        if argtype.argtype_id in checked:
            check_value(argtype, checked[argtype.argtype_id])
    command = lines.build(
        definition,
        template_words(definition),
        filled,
        chunk=cut(wanted, definition.chunk_size)[0] if wanted else None,
        task_frames=wanted,
        scene=scene,
        output_directory="/path/output",
    )
    found = next(iter(_installed({definition.name: definition})), None)
    return {
        "name": definition.name,
        "extensions": list(definition.extensions),
        "split": definition.split,
        "program": " ".join(found.prefix) if found else "not found on this computer",
        "version": found.version if found else "",
        "command": " ".join(command.argv),
        "outputs": [output.name for output in command.expected],
    }
