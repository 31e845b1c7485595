"""`renderonline engine …`: engines of the farm, and programs installed on this computer."""

from pathlib import Path
from typing import Annotated

from renderonline.cli import show
from renderonline.cli.commands import Json, Output, Url, Yes, argument, command, confirm, flag, group, option, pairs
from renderonline.cli.logins import connect
from renderonline.cli.progress import bar
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.rnoclient.sdk import Client, Item

commands = group("Render engines, of the farm and of this computer.")
Name = Annotated[str, argument("ENGINE", "The engine's name or number.")]
Definition = Annotated[Path, argument("FILE.toml", "The engine's definition.")]


@command(commands, "renderonline engine install blender")
def install(
    *, engine: Annotated[str, argument("ENGINE", "What to install: blender.")] = "blender", json: Json
) -> Output:
    """Install an engine on this computer (Blender: about 380 MB to fetch, 1 GB on the disk)."""
    if engine != "blender":
        raise InvalidRequest(f"Only blender can be installed; put {engine} on the PATH and it is found.")
    prefix = install_blender(quiet=json)
    return {"engine": engine, "command": list(prefix)}, f"Blender is installed: {' '.join(prefix)}"


def install_blender(*, quiet: bool) -> tuple[str, ...]:
    """Blender's argv prefix on this computer, installed with a progress bar if it is not there."""
    from renderonline.engines.blender import install as blender
    from renderonline.serving.directories import data_directory

    with bar("Blender", "share", quiet=quiet) as step:
        directory = data_directory() / "engines" / "blender"
        return tuple(blender.install(directory, lambda fraction, words: step(fraction, 1.0, words)))


@command(commands, "renderonline engine list", "renderonline engine list --here", name="list")
def list_engines(
    *, here: Annotated[bool, flag("--here", "What is installed on this computer instead.")] = False, url: Url
) -> Output:
    """List the farm's engines, or those of this computer."""
    if here:
        return _engines_here()
    with connect(url) as client:
        found = client.admin.engines()
    return found, lambda: show.table([">ENGINE", "NAME", "EXTENSIONS", "ENABLED", "ARGUMENTS"], map(_row, found))


@command(commands, "renderonline engine show blender", name="show")
def show_engine(client: Client, *, engine: Name) -> Output:
    """Show an engine and its arguments."""
    found = _find(client, engine)

    def print_it() -> None:
        show.fields(found, ["name", "engine_id", "extensions", "split", "is_enabled", "download_path"])
        show.say()
        show.table(["ARGUMENT", "TYPE", "DEFAULT", "CHOICES", "MEANING"], map(_argument_row, found["arguments"]))

    return found, print_it


@command(commands, "renderonline engine add examples/engines/sleep.toml")
def add(
    client: Client,
    *,
    file: Definition,
    download_path: Annotated[str | None, option("DIRECTORY", "Where RenderAPI keeps its tasks' files.")] = None,
) -> Output:
    """Add an engine to the farm, from its definition (administrators)."""
    made = client.admin.add_engine(_read(file), download_path)
    return made, f"Engine {made['engine_id']} {made['name']} added."


@command(commands, "renderonline engine test my-engine.toml --frames 1-10 --arg width=640", name="test")
def try_out(
    *,
    file: Definition,
    scene: Annotated[str, option("FILE", "A scene to show the command for.")] = "/path/scene",
    frames: Annotated[str, option("RANGE", "The frames to show the command for.")] = "1-4",
    arg: Annotated[list[str] | None, option("ID=VALUE", None, "--arg", "-a")] = None,
) -> Output:
    """Check a definition without a farm: what would run for a chunk, and is the program here?"""
    from renderonline.cli.engine_check import check_definition

    found = check_definition(_read(file), scene, frames, pairs("--arg", arg or [], "ID=VALUE"))
    return found, lambda: show.fields(found, list(found))


@command(
    commands,
    "renderonline engine argtype",
    "renderonline engine argtype samples --type natural --regex '[1-9][0-9]{0,3}'",
    "renderonline engine argtype samples --delete",
)
def argtype(
    client: Client,
    *,
    argtype_id: Annotated[str | None, argument("[ARGTYPE]", "The type's name.")] = None,
    kind: Annotated[
        str | None, option("TYPE", "file, path, extension, word, sentence, natural, integer or real.", "--type")
    ] = None,
    regex: Annotated[str, option("REGEX", "A rule that replaces the type's.")] = "",
    delete: Annotated[bool, flag("--delete", "Remove it.")] = False,
) -> Output:
    """List the types of arguments, or set one (administrators)."""
    if argtype_id is None:
        found = client.admin.argtypes()
        rows = [(item["argtype_id"], item["type"], item["regex"]) for item in found]
        return found, lambda: show.table(["ARGTYPE", "TYPE", "RULE"], rows)
    if delete:
        client.admin.remove_argtype(argtype_id)
        return {"removed": argtype_id}, f"Argument type {argtype_id} removed."
    if kind is None:
        raise InvalidRequest("Say with --type what its values are, for instance --type natural .")
    made = client.admin.put_argtype(argtype_id, kind, regex or None)
    return made, f"Argument type {argtype_id}: {kind} {regex}".rstrip()


@command(commands, "renderonline engine disable povray")
def disable(client: Client, *, engine: Name) -> Output:
    """Take no new tasks for an engine."""
    changed = client.admin.change_engine(_find(client, engine)["engine_id"], is_enabled=False)
    return changed, f"Engine {changed['name']}: disabled."


@command(commands, "renderonline engine enable povray")
def enable(client: Client, *, engine: Name) -> Output:
    """Take tasks for an engine again."""
    changed = client.admin.change_engine(_find(client, engine)["engine_id"], is_enabled=True)
    return changed, f"Engine {changed['name']}: enabled."


@command(commands, "renderonline engine remove povray")
def remove(client: Client, *, engine: Name, yes: Yes = False, json: Json) -> Output:
    """Remove an engine that no task uses."""
    confirm(f"Remove engine {engine}?", agreed=yes or json)
    found = _find(client, engine)
    client.admin.remove_engine(found["engine_id"])
    return {"removed": found["engine_id"]}, f"Engine {found['name']} removed."


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} can't be read: {error}.") from None


def _find(client: Client, who: str) -> Item:
    for engine in client.admin.engines():
        if who == str(engine["engine_id"]) or who.casefold() == str(engine["name"]).casefold():
            return engine
    raise NotFound(f"There is no engine {who}. See `renderonline engine list`.")


def _engines_here() -> Output:
    from renderonline.cli.engine_check import engines_here

    found = engines_here()
    if not found:
        return found, "No engine was found here. Install Blender: renderonline engine install blender"
    return found, lambda: show.table(["NAME", "VERSION", "COMMAND"], [list(item.values()) for item in found])


def _argument_row(item: Item) -> list[object]:
    return [item["id"], item["type"], item["default"], " ".join(item["choices"]), item["help"]]


def _row(engine: Item) -> list[object]:
    arguments = ", ".join(str(item["id"]) for item in engine["arguments"])
    extensions, enabled = " ".join(engine["extensions"]), show.yes(engine["is_enabled"])
    return [engine["engine_id"], engine["name"], extensions, enabled, arguments]
