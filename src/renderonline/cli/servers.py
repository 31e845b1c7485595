"""`renderonline api` and `renderonline node`: the two servers of a farm."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from renderonline.cli.supervise import leash
from renderonline.farm.errors import InvalidRequest

JOIN_CODE = "RENDERONLINE_JOIN_CODE"
LogLevel = Annotated[
    str | None, typer.Option("--log-level", help="debug, info, warning, error or critical.", metavar="LEVEL")
]
DataDirectory = Annotated[
    Path | None, typer.Option("--data-directory", help="Where the program keeps its data.", metavar="DIRECTORY")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command()(api)
    app.command()(node)


def api(
    *,
    config: Annotated[Path | None, typer.Option(help="The settings file, RenderAPI.json.", metavar="FILE")] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; 0.0.0.0 for everybody. Default: this computer only.", metavar="ADDRESS"
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on; 0 takes any free one.", min=0, max=65535, metavar="NUMBER")
    ] = None,
    connection: Annotated[
        str | None,
        typer.Option("--connection", "-c", help="The database; default: a file in the data directory.", metavar="TEXT"),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="PEM file with the certificate chain; HTTPS from then on.", metavar="FILE")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="PEM file with the certificate's key.", metavar="FILE")] = None,
    download_path: Annotated[
        Path | None, typer.Option(help="Where uploads and results go.", metavar="DIRECTORY")
    ] = None,
    data_directory: DataDirectory = None,
    log_level: LogLevel = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines as JSON.")] = False,
) -> None:
    """Run RenderAPI, the centre of a farm.

    It has the queue, the scheduler, the files and the accounts. Ends with Ctrl-C or SIGTERM.

    \b
    renderonline api
    renderonline api --config RenderAPI.json
    renderonline api --host 0.0.0.0 --certificate fullchain.pem --key privkey.pem
    """
    if (certificate is None) != (key is None):
        raise InvalidRequest("--certificate and --key belong together; give both.")
    leash()
    from renderonline.renderapi.main import run
    from renderonline.renderapi.settings import load_settings

    flags: dict[str, Any] = {
        "host": host,
        "port": port,
        "connection_string": connection,
        "download_path": download_path,
        "data_directory": data_directory,
        "log_level": log_level,
        "log_json": log_json or None,
    }
    if certificate is not None and key is not None:
        flags["certificate"] = {"fullchain_pem_path": str(certificate), "priv_pem_path": str(key)}
    run(load_settings(config, flags=flags))


def node(
    *,
    join: Annotated[str | None, typer.Option(help="RenderAPI's address.", metavar="URL")] = None,
    code: Annotated[
        str | None,
        typer.Option(help=f"The code of `renderonline machine invite`; also in {JOIN_CODE}.", metavar="CODE"),
    ] = None,
    fingerprint: Annotated[
        str | None, typer.Option(help="Trust exactly this certificate of RenderAPI.", metavar="sha256:…")
    ] = None,
    v1: Annotated[
        bool, typer.Option("--v1", help="Listen and obey, as the older HPCServer does. Has no authentication.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="The settings file, HPCServer.json.", metavar="FILE")] = None,
    name: Annotated[
        str | None, typer.Option(help="What the machine is called; its host name if empty.", metavar="TEXT")
    ] = None,
    slots: Annotated[int | None, typer.Option(help="Chunks at the same time.", min=1, metavar="NUMBER")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be given several times.", metavar="TEXT")] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(help="The program of an engine; may be given several times.", metavar="NAME=PATH"),
    ] = None,
    idle_exit: Annotated[
        float | None, typer.Option(help="End after so many seconds without work.", min=0, metavar="SECONDS")
    ] = None,
    host: Annotated[str | None, typer.Option(help="With --v1: address to listen on.", metavar="ADDRESS")] = None,
    port: Annotated[
        int | None, typer.Option(help="With --v1: port to listen on.", min=0, max=65535, metavar="NUMBER")
    ] = None,
    data_directory: DataDirectory = None,
    log_level: LogLevel = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Log lines as JSON.")] = False,
) -> None:
    """Run HPCServer: let this computer render for a farm. Ends with Ctrl-C or SIGTERM.

    The code is needed once; the machine keeps its own secret afterwards.

    \b
    renderonline node --join http://farm:5000 --code ABCD-EFGH
    renderonline node --join https://farm:5000 --fingerprint sha256:… --engine blender=/opt/blender/blender
    renderonline node --v1 --config HPCServer.json
    """
    if v1 == (join is not None):
        raise InvalidRequest(
            "Say with --join URL which farm the machine belongs to, or with --v1 that it obeys whoever calls it "
            "(the older way, without authentication)."
        )
    leash()
    from renderonline.hpcserver.main import run_linked, run_v1
    from renderonline.hpcserver.settings import load
    from renderonline.serving import logs

    flags = {
        "name": name,
        "slots": slots,
        "tags": tag or None,
        "host": host,
        "port": port,
        "data_directory": data_directory,
        "rendering_engines": engine_programs(engine) if engine else None,
        "log_level": log_level,
        "log_json": log_json or None,
    }
    settings = load(config, environment=os.environ, flags=flags)
    logs.configure(json_lines=settings.log_json, level=settings.log_level)
    if join is None:
        raise typer.Exit(run_v1(settings))
    given = code or os.environ.pop(JOIN_CODE, None)  # popped: engines must not inherit it
    raise typer.Exit(run_linked(settings, url=join, code=given, fingerprint=fingerprint, idle_exit_s=idle_exit))


def engine_programs(words: list[str]) -> list[dict[str, str]]:
    """`name=path` words as the setting `RenderingEngines`."""
    found = []
    for word in words:
        name, equals, path = word.partition("=")
        if not equals or not name or not path:
            raise InvalidRequest(f"--engine {word} must be written NAME=PATH, like blender=/opt/blender/blender .")
        found.append({"EngineId": name, "ExecutablePath": path})
    return found
