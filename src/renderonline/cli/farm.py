"""`renderonline demo` and `renderonline up`: a whole farm on this computer."""

from pathlib import Path
from typing import Annotated

import typer

from renderonline.cli.options import Json


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(demo)
    app.command()(up)


def demo(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where frames, film and scene go.", metavar="DIRECTORY")
    ] = Path("demo-output"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the farm's directory (database, logs, files).")] = False,
    json: Json = False,
) -> None:
    """Render an animation on a farm of two machines here.

    Fetches Blender the first time (380 MB, once). Starts one RenderAPI and two HPCServers on this computer, submits
    a generated scene through the public API, downloads and checks the frames, encodes the film, stops everything.

    \b
    renderonline demo
    renderonline demo --output /tmp/frames --keep
    """
    from renderonline.cli.demo import run

    raise typer.Exit(run(output, keep=keep, as_json=json))


def up(
    *,
    port: Annotated[
        int, typer.Option(help="RenderAPI's port; 0 takes any free one.", min=0, max=65535, metavar="NUMBER")
    ] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets other computers in.", metavar="ADDRESS")
    ] = "127.0.0.1",
    slots: Annotated[
        int, typer.Option(help="Chunks that this computer renders at the same time.", min=1, metavar="NUMBER")
    ] = 1,
    json: Json = False,
) -> None:
    """Run a farm on this computer: RenderAPI and one HPCServer. Ctrl-C or SIGTERM stops both.

    Everything is kept in the data directory (RENDERONLINE_DATA), and is there again the next time.

    \b
    renderonline up
    renderonline up --host 0.0.0.0 --port 8080
    """
    from renderonline.cli.up import run

    raise typer.Exit(run(host=host, port=port, slots=slots, as_json=json))
