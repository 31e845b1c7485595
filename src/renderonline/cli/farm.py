"""A farm and its programs: `renderonline demo`, `up`, `api` and `node`."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from renderonline.cli.commands import Json, command, flag, group, option, pairs
from renderonline.farm.errors import InvalidRequest

commands = group("A farm and its programs.")
JOIN_CODE = "RENDERONLINE_JOIN_CODE"
PORT = {"min": 0, "max": 65535}
Port = Annotated[int | None, option("NUMBER", "Port to listen on; 0 takes any free one.", **PORT)]
LogLevel = Annotated[str | None, option("LEVEL", "debug, info, warning, error or critical.")]
LogJson = Annotated[bool, flag("--log-json", "Log lines as JSON.")]
DataDirectory = Annotated[Path | None, option("DIRECTORY", "Where the program keeps its data.")]


@command(commands, "renderonline demo", "renderonline demo --output /tmp/frames --keep")
def demo(
    *,
    output: Annotated[Path, option("DIRECTORY", "Where frames, film and scene go.", "--output", "-o")] = Path(
        "demo-output"
    ),
    keep: Annotated[bool, flag("--keep", "Keep the farm's directory (database, logs, files).")] = False,
    json: Json,
) -> int:
    """Render an animation on a farm of two machines here.

    Fetches Blender the first time (380 MB, once). Starts one RenderAPI and two HPCServers on this computer, submits
    a generated scene through the public API, downloads and checks the frames, encodes the film, stops everything.
    """
    from renderonline.cli.demo import run

    return run(output, keep=keep, as_json=json)


@command(commands, "renderonline up", "renderonline up --host 0.0.0.0 --port 8080")
def up(
    *,
    port: Annotated[int, option("NUMBER", "RenderAPI's port; 0 takes any free one.", **PORT)] = 5000,
    host: Annotated[str, option("ADDRESS", "Address to listen on; 0.0.0.0 lets other computers in.")] = "127.0.0.1",
    slots: Annotated[int, option("NUMBER", "Chunks that this computer renders at the same time.", min=1)] = 1,
    json: Json,
) -> int:
    """Run a farm on this computer: RenderAPI and one HPCServer. Ctrl-C or SIGTERM stops both.

    Everything is kept in the data directory (RENDERONLINE_DATA), and is there again the next time.
    """
    from renderonline.cli.up import run

    return run(host=host, port=port, slots=slots, as_json=json)


@commands.command()
def api(
    *,
    config: Annotated[Path | None, option("FILE", "The settings file, RenderAPI.json.")] = None,
    host: Annotated[
        str | None, option("ADDRESS", "Address to listen on; 0.0.0.0 for everybody. Default: this computer only.")
    ] = None,
    port: Port = None,
    connection: Annotated[
        str | None, option("TEXT", "The database; default: a file in the data directory.", "--connection", "-c")
    ] = None,
    certificate: Annotated[
        Path | None, option("FILE", "PEM file with the certificate chain; HTTPS from then on.")
    ] = None,
    key: Annotated[Path | None, option("FILE", "PEM file with the certificate's key.")] = None,
    download_path: Annotated[Path | None, option("DIRECTORY", "Where uploads and results go.")] = None,
    data_directory: DataDirectory = None,
    log_level: LogLevel = None,
    log_json: LogJson = False,
) -> None:
    """Run RenderAPI, the centre of a farm.

    It has the queue, the scheduler, the files and the accounts. Ends with Ctrl-C or SIGTERM.

    \b
    renderonline api
    renderonline api --config RenderAPI.json
    renderonline api --host 0.0.0.0 --certificate fullchain.pem --key privkey.pem
    """
    from renderonline.cli.supervise import leash

    if (certificate is None) != (key is None):
        raise InvalidRequest("--certificate and --key belong together; give both.")
    leash()
    from renderonline.renderapi.main import run
    from renderonline.renderapi.settings import load_settings
    from renderonline.rnoclient.web import DIRECTORY

    flags: dict[str, Any] = {"host": host, "port": port, "connection_string": connection}
    flags |= {"download_path": download_path, "data_directory": data_directory}
    flags |= {"log_level": log_level, "log_json": log_json or None}
    if certificate is not None:
        flags["certificate"] = {"fullchain_pem_path": str(certificate), "priv_pem_path": str(key)}
    run(load_settings(config, flags=flags), DIRECTORY)


@commands.command()
def node(
    *,
    join: Annotated[
        list[str] | None,
        option("URL", "RenderAPI's address; several, with commas or given again, stand in for another."),
    ] = None,
    code: Annotated[
        str | None, option("CODE", f"The code of `renderonline machine invite`; also in {JOIN_CODE}.")
    ] = None,
    fingerprint: Annotated[str | None, option("sha256:…", "Trust exactly this certificate of RenderAPI.")] = None,
    v1: Annotated[bool, flag("--v1", "Listen and obey, as the older HPCServer does. Has no authentication.")] = False,
    config: Annotated[Path | None, option("FILE", "The settings file, HPCServer.json.")] = None,
    name: Annotated[str | None, option("TEXT", "What the machine is called; its host name if empty.")] = None,
    slots: Annotated[int | None, option("NUMBER", "Chunks at the same time.", min=1)] = None,
    tag: Annotated[list[str] | None, option("TEXT", "A tag; may be given several times.")] = None,
    engine: Annotated[
        list[str] | None, option("NAME=PATH", "The program of an engine; may be given several times.")
    ] = None,
    idle_minutes: Annotated[
        float | None, option("MINUTES", "Take work only when nobody was at the desk for so long.", min=0)
    ] = None,
    max_load: Annotated[
        float | None, option("NUMBER", "Take work only while others keep at most so many processors busy.", min=0)
    ] = None,
    idle_exit: Annotated[float | None, option("SECONDS", "End after so many seconds without work.", min=0)] = None,
    host: Annotated[str | None, option("ADDRESS", "With --v1: address to listen on.")] = None,
    port: Annotated[int | None, option("NUMBER", "With --v1: port to listen on.", **PORT)] = None,
    data_directory: DataDirectory = None,
    log_level: LogLevel = None,
    log_json: LogJson = False,
) -> None:
    """Run HPCServer: let this computer render for a farm. Ends with Ctrl-C or SIGTERM.

    The code is needed once; the machine keeps its own secret afterwards.

    \b
    renderonline node --join http://farm:5000 --code ABCD-EFGH
    renderonline node --join https://farm:5000 --fingerprint sha256:… --engine blender=/opt/blender/blender
    renderonline node --v1 --config HPCServer.json
    """
    from renderonline.cli.supervise import leash

    if v1 == bool(join):
        raise InvalidRequest(
            "Say with --join URL which farm the machine belongs to, or with --v1 that it obeys whoever calls it "
            "(the older way, without authentication)."
        )
    leash()
    from renderonline.hpcserver.main import run_linked, run_v1
    from renderonline.hpcserver.settings import load
    from renderonline.serving import logs

    flags: dict[str, Any] = {"name": name, "slots": slots, "tags": tag or None, "host": host, "port": port}
    flags |= {"data_directory": data_directory, "rendering_engines": engine_programs(engine) if engine else None}
    flags |= {"log_level": log_level, "log_json": log_json or None}
    flags |= {"idle_minutes": idle_minutes, "max_load": max_load}
    settings = load(config, environment=os.environ, flags=flags)
    logs.configure(json_lines=settings.log_json, level=settings.log_level)
    if not join:
        raise typer.Exit(run_v1(settings))
    given = code or os.environ.pop(JOIN_CODE, None)  # popped: engines must not inherit it
    raise typer.Exit(
        run_linked(settings, url=",".join(join), code=given, fingerprint=fingerprint, idle_exit_s=idle_exit)
    )


def engine_programs(words: list[str]) -> list[dict[str, str]]:
    """`name=path` words as the setting `RenderingEngines`."""
    programs = pairs("--engine", words, "NAME=PATH")
    if not all(programs.values()):
        raise InvalidRequest("--engine must be written NAME=PATH, like blender=/opt/blender/blender .")
    return [{"EngineId": name, "ExecutablePath": path} for name, path in programs.items()]
