"""`renderonline engine …`: engines of the farm, and programs installed on this computer."""

from pathlib import Path
from typing import Annotated

import typer

from renderonline.cli import show
from renderonline.cli.options import Json, Url, Yes, group
from renderonline.farm.errors import InvalidRequest, NotFound
from renderonline.rnoclient.sdk import Client, Item

commands = group("Render engines, of the farm and of this computer.")
Name = Annotated[str, typer.Argument(metavar="ENGINE", help="The engine's name or number.")]


@commands.command()
def install(
    *,
    engine: Annotated[str, typer.Argument(metavar="ENGINE", help="What to install: blender.")] = "blender",
    json: Json = False,
) -> None:
    """Install an engine on this computer (Blender: about 380 MB to fetch, 1 GB on the disk).

    \b
    renderonline engine install blender
    """
    if engine != "blender":
        raise InvalidRequest(f"Only blender can be installed; put {engine} on the PATH and it is found.")
    prefix = install_blender(quiet=json)
    if json:
        show.emit({"engine": engine, "command": list(prefix)})
    else:
        show.say(f"Blender is installed: {' '.join(prefix)}")


def install_blender(*, quiet: bool) -> tuple[str, ...]:
    """Blender's argv prefix on this computer, installed with a progress bar if it is not there."""
    from renderonline.cli.progress import fraction_bar
    from renderonline.engines.blender import install as blender
    from renderonline.serving.directories import data_directory

    with fraction_bar("Blender", quiet=quiet) as step:
        return tuple(blender.install(data_directory() / "engines" / "blender", step))


@commands.command("list")
def list_engines(
    *,
    here: Annotated[bool, typer.Option("--here", help="What is installed on this computer instead.")] = False,
    json: Json = False,
    url: Url = None,
) -> None:
    """List the farm's engines, or those of this computer.

    \b
    renderonline engine list
    renderonline engine list --here
    """
    if here:
        _list_here(as_json=json)
        return
    with _connect(url) as client:
        found = client.admin.engines()
    if json:
        show.emit(found)
        return
    columns = [">ENGINE", "NAME", "EXTENSIONS", "ENABLED", "ARGUMENTS"]
    show.table(columns, map(_row, found))


@commands.command("show")
def show_engine(*, engine: Name, json: Json = False, url: Url = None) -> None:
    """Show an engine and its arguments.

    \b
    renderonline engine show blender
    """
    with _connect(url) as client:
        found = _find(client, engine)
    if json:
        show.emit(found)
        return
    show.fields(found, ["name", "engine_id", "extensions", "split", "is_enabled", "download_path"])
    show.say()
    columns = ["ARGUMENT", "TYPE", "DEFAULT", "CHOICES", "MEANING"]
    show.table(columns, map(_argument_row, found.get("arguments") or []))


@commands.command()
def add(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The engine's definition.")],
    download_path: Annotated[
        str | None, typer.Option(help="Where RenderAPI keeps its tasks' files.", metavar="DIRECTORY")
    ] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Add an engine to the farm, from its definition (administrators).

    \b
    renderonline engine add examples/engines/sleep.toml
    """
    text = read_definition(file)
    with _connect(url) as client:
        made = client.admin.add_engine(text, download_path)
    show.emit(made) if json else show.say(f"Engine {made['engine_id']} {made['name']} added.")


@commands.command("test")
def try_out(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The engine's definition.")],
    scene: Annotated[str, typer.Option(help="A scene to show the command for.", metavar="FILE")] = "/path/scene",
    frames: Annotated[str, typer.Option(help="The frames to show the command for.", metavar="RANGE")] = "1-4",
    arg: Annotated[list[str] | None, typer.Option("--arg", "-a", metavar="ID=VALUE")] = None,
    json: Json = False,
) -> None:
    """Check a definition without a farm: what would run for a chunk, and is the program here?

    \b
    renderonline engine test my-engine.toml --frames 1-10 --arg width=640
    """
    from renderonline.cli.engine_check import check_definition
    from renderonline.cli.submit import parse_arguments

    found = check_definition(read_definition(file), scene, frames, parse_arguments(arg or []))
    if json:
        show.emit(found)
        return
    show.fields(found, ["name", "extensions", "split", "program", "version", "command", "outputs"])


@commands.command()
def argtype(
    *,
    argtype_id: Annotated[str | None, typer.Argument(metavar="[ARGTYPE]", help="The type's name.")] = None,
    kind: Annotated[
        str | None,
        typer.Option("--type", help="file, path, extension, word, sentence, natural, integer or real.", metavar="TYPE"),
    ] = None,
    regex: Annotated[str, typer.Option(help="A rule that replaces the type's.", metavar="REGEX")] = "",
    delete: Annotated[bool, typer.Option("--delete", help="Remove it.")] = False,
    json: Json = False,
    url: Url = None,
) -> None:
    """List the types of arguments, or set one (administrators).

    \b
    renderonline engine argtype
    renderonline engine argtype samples --type natural --regex '[1-9][0-9]{0,3}'
    renderonline engine argtype samples --delete
    """
    with _connect(url) as client:
        if argtype_id is None:
            _list_argtypes(client, as_json=json)
        elif delete:
            client.admin.remove_argtype(argtype_id)
            show.emit({"removed": argtype_id}) if json else show.say(f"Argument type {argtype_id} removed.")
        elif kind is None:
            raise InvalidRequest("Say with --type what its values are, for instance --type natural .")
        else:
            made = client.admin.put_argtype(argtype_id, kind, regex or None)
            show.emit(made) if json else show.say(f"Argument type {argtype_id}: {kind} {regex}".rstrip())


@commands.command()
def disable(*, engine: Name, json: Json = False, url: Url = None) -> None:
    """Take no new tasks for an engine.

    \b
    renderonline engine disable povray
    """
    _change(engine, enabled=False, as_json=json, url=url)


@commands.command()
def enable(*, engine: Name, json: Json = False, url: Url = None) -> None:
    """Take tasks for an engine again.

    \b
    renderonline engine enable povray
    """
    _change(engine, enabled=True, as_json=json, url=url)


@commands.command()
def remove(*, engine: Name, yes: Yes = False, json: Json = False, url: Url = None) -> None:
    """Remove an engine that no task uses.

    \b
    renderonline engine remove povray
    """
    if not yes and not json:
        typer.confirm(f"Remove engine {engine}?", abort=True)
    with _connect(url) as client:
        found = _find(client, engine)
        client.admin.remove_engine(int(found["engine_id"]))
    show.emit({"removed": found["engine_id"]}) if json else show.say(f"Engine {found['name']} removed.")


def read_definition(file: Path) -> str:
    """The text of a definition."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file} can't be read: {error}.") from None


def _connect(url: str | None) -> Client:
    from renderonline.cli.logins import connect

    return connect(url)


def _find(client: Client, who: str) -> Item:
    for engine in client.admin.engines():
        if who == str(engine["engine_id"]) or who.casefold() == str(engine["name"]).casefold():
            return engine
    raise NotFound(f"There is no engine {who}. See `renderonline engine list`.")


def _change(engine: str, *, enabled: bool, as_json: bool, url: str | None) -> None:
    with _connect(url) as client:
        changed = client.admin.change_engine(int(_find(client, engine)["engine_id"]), is_enabled=enabled)
    word = "enabled" if enabled else "disabled"
    show.emit(changed) if as_json else show.say(f"Engine {changed['name']}: {word}.")


def _list_here(*, as_json: bool) -> None:
    from renderonline.cli.engine_check import engines_here

    found = engines_here()
    if as_json:
        show.emit(found)
    elif not found:
        show.say("No engine was found here. Install Blender: renderonline engine install blender")
    else:
        show.table(["NAME", "VERSION", "COMMAND"], ([i["name"], i["version"], i["command"]] for i in found))


def _list_argtypes(client: Client, *, as_json: bool) -> None:
    found = client.admin.argtypes()
    if as_json:
        show.emit(found)
    else:
        show.table(["ARGTYPE", "TYPE", "RULE"], ([i["argtype_id"], i["type"], i.get("regex")] for i in found))


def _argument_row(argument: Item) -> list[object]:
    choices = " ".join(argument.get("choices") or [])
    return [argument["id"], argument["type"], argument.get("default"), choices, argument.get("help")]


def _row(engine: Item) -> list[object]:
    extensions = engine.get("extensions") or [engine.get("extension", "")]
    arguments = ", ".join(str(item["id"]) for item in engine.get("arguments") or [])
    enabled = "yes" if engine.get("is_enabled", True) else "no"
    return [engine["engine_id"], engine["name"], " ".join(extensions), enabled, arguments]
