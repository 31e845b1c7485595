"""`renderonline submit`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from renderonline.cli import show
from renderonline.cli.options import Json, Url
from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.sdk import Client, Item


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(submit)


def submit(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The scene.")],
    engine: Annotated[
        str | None,
        typer.Option("--engine", "-e", help="The engine; guessed from the file's extension.", metavar="NAME"),
    ] = None,
    frames: Annotated[
        str | None, typer.Option("--frames", "-f", help="Frames: 1-24, 1-100x5, 1,5,9 …", metavar="RANGE")
    ] = None,
    arg: Annotated[
        list[str] | None,
        typer.Option("--arg", "-a", help="An argument of the engine; may be given several times.", metavar="ID=VALUE"),
    ] = None,
    name: Annotated[str, typer.Option(help="What the task is called; the file's name if empty.", metavar="TEXT")] = "",
    priority: Annotated[
        int, typer.Option(help="0 to 100; higher starts earlier.", min=0, max=100, metavar="NUMBER")
    ] = 50,
    chunk: Annotated[int, typer.Option(help="Frames per chunk; 0 leaves it to the farm.", min=0, metavar="NUMBER")] = 0,
    after: Annotated[
        list[int] | None,
        typer.Option(help="Start when this task has succeeded; may be given several times.", min=1, metavar="TASK"),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", "-w", help="Wait until it ends; exit code 1 if it failed.")] = False,
    download: Annotated[
        Path | None, typer.Option("--download", "-d", help="Wait, then download the results here.", metavar="DIR")
    ] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Submit a scene.

    \b
    renderonline submit shot.blend --frames 1-24 --wait --download frames
    renderonline submit glass.pov --arg width=640 --arg height=360
    renderonline submit comp.blend --frames 1-24 --after 12 --json
    """
    from renderonline.cli.logins import connect
    from renderonline.cli.progress import bytes_bar
    from renderonline.cli.tasks import fetch_results, follow

    if not file.is_file():
        raise InvalidRequest(f"{file} is no file.")
    arguments = parse_arguments(arg or [])
    with connect(url) as client:
        chosen = engine or guess_engine(client.admin.engines(), file)
        with bytes_bar(f"Sending {file.name}", quiet=json) as step:
            task = client.submit(
                file,
                engine=chosen,
                arguments=arguments,
                frames=frames,
                name=name,
                priority=priority,
                chunk_size=chunk,
                waits_for=after or [],
                progress=step,
            )
        number = task["task_id"]
        if json:
            show.emit(task)
        else:
            show.say(f"Task {number} is in the queue." + ("" if wait or download else _next_step(number)))
        code = follow(client, number, as_json=json) if wait or download is not None else 0
        if download is not None and code == 0:
            _download(client, fetch_results, number, download, as_json=json)
    raise typer.Exit(code)


def parse_arguments(words: list[str]) -> dict[str, str]:
    """`id=value` words as a dictionary."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"--arg {word} must be written ID=VALUE, for instance --arg format=PNG .")
        if name in found:
            raise InvalidRequest(f"--arg {name} is given twice.")
        found[name] = value
    return found


def guess_engine(engines: list[Item], file: Path) -> str:
    """The name of the one engine that takes files with this extension."""
    extension = file.suffix.casefold()
    fitting = [item["name"] for item in engines if item.get("is_enabled", True) and extension in _extensions(item)]
    if len(fitting) == 1:
        return str(fitting[0])
    known = ", ".join(sorted(str(item["name"]) for item in engines)) or "none"
    if fitting:
        raise InvalidRequest(f"Several engines take {extension} files ({', '.join(fitting)}); choose with --engine.")
    raise InvalidRequest(f"No engine of this farm takes {extension or 'such'} files (engines: {known}). Use --engine.")


def _extensions(engine: Item) -> set[str]:
    found: Any = engine.get("extensions") or [engine.get("extension", "")]
    return {str(item).casefold() for item in found}


def _next_step(number: int) -> str:
    return f" Follow it: renderonline watch {number}"


def _download(client: Client, fetch: Any, number: int, directory: Path, *, as_json: bool) -> None:
    paths = fetch(client, number, directory, quiet=as_json)
    if as_json:
        show.emit({"files": [str(path) for path in paths]})
    else:
        show.say(f"{directory}  ({len(paths)} files)")
