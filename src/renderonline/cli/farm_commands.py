"""A farm and its programs: `renderonline demo`, `up`, `api`, `node` and `desktop`.

`renderonline db …`: the only place of the command line that opens a database.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from renderonline.cli import terminal
from renderonline.cli.terminal import URL, Output, argument, command, flag, group, option, pairs
from renderonline.farm.errors import Conflict, InvalidRequest, NotFound

if TYPE_CHECKING:
    from renderonline.database.door import Database
    from renderonline.hpcserver.joining import CheckResult

WARNED: Final = 6
"""The exit code of `node --check` when nothing is worse than a warning."""
commands = group("A farm and its programs.")
JOIN_CODE = "RENDERONLINE_JOIN_CODE"
PORT = option("NUMBER", "Port to listen on; 0 takes any free one.", min=0, max=65535)
LOG_LEVEL = option("LEVEL", "debug, info, warning, error or critical.")
LOG_JSON = flag("--log-json", "Log lines as JSON.")
DATA_DIRECTORY = option("DIRECTORY", "Where the program keeps its data.")


@command(commands, "renderonline demo", "renderonline demo --output /tmp/frames --keep")
def demo(
    *,
    output: Path = option("DIRECTORY", "Where frames, film and scene go.", "--output", "-o", default="demo-output"),
    keep: bool = flag("--keep", "Keep the farm's directory (database, logs, files)."),
    json: bool,
) -> int:
    """Render an animation on a farm of two machines here.

    Fetches Blender the first time (380 MB, once). Starts one RenderAPI and two HPCServers on this computer, submits
    an example scene through the public API, downloads the frames and the film, stops everything.
    """
    from renderonline.cli.local_farm import run_demo

    return run_demo(output, keep=keep, as_json=json)


@command(commands, "renderonline up", "renderonline up --host 0.0.0.0 --port 8080")
def up(
    *,
    port: int = option("NUMBER", "RenderAPI's port; 0 takes any free one.", default=5000, min=0, max=65535),
    host: str = option("ADDRESS", "Address to listen on; 0.0.0.0 lets other computers in.", default="127.0.0.1"),
    slots: int | None = option(
        "NUMBER", "Chunks that this computer renders at the same time; one, or one for each graphics card.", min=1
    ),
    json: bool,
) -> int:
    """Run a farm on this computer: RenderAPI and one HPCServer. Ctrl-C or SIGTERM stops both.

    Everything is kept in the data directory (RENDERONLINE_DATA), and is there again the next time.
    """
    from renderonline.cli.local_farm import run_up

    return run_up(host=host, port=port, slots=slots, as_json=json)


@command(commands, "renderonline desktop", "renderonline desktop --url https://farm.example:5000")
def desktop(*, url: str | None = URL) -> int:
    """The web page in a window of its own, with native dialogs, downloads that resume, and messages when tasks end.

    Its login is that of `renderonline login`.
    """
    try:
        from renderonline.rnoclient import shell
    except ImportError as error:
        raise InvalidRequest(
            f"The desktop program needs Qt ({error}). Install it: pip install 'renderonline[desktop]'"
        ) from None
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))):
        raise InvalidRequest("There is no screen here (DISPLAY is not set): start it in a desktop session.")
    return shell.run(terminal.current(url))


@commands.command()
def api(
    *,
    config: Path | None = option("FILE", "The settings file, RenderAPI.json."),
    host: str | None = option("ADDRESS", "Address to listen on; 0.0.0.0 for everybody. Default: this computer only."),
    port: int | None = PORT,
    connection: str | None = option(
        "TEXT", "The database; default: a file in the data directory.", "--connection", "-c"
    ),
    certificate: Path | None = option("FILE", "PEM file with the certificate chain; HTTPS from then on."),
    key: Path | None = option("FILE", "PEM file with the certificate's key."),
    download_path: Path | None = option("DIRECTORY", "Where uploads and results go."),
    data_directory: Path | None = DATA_DIRECTORY,
    log_level: str | None = LOG_LEVEL,
    log_json: bool = LOG_JSON,
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
    from renderonline.cli.local_farm import leash

    leash()
    from renderonline.renderapi.main import run
    from renderonline.renderapi.settings import load_settings
    from renderonline.rnoclient import WEB_PAGE

    flags: dict[str, Any] = {"host": host, "port": port, "connection_string": connection}
    flags |= {"download_path": download_path, "data_directory": data_directory}
    flags |= {"log_level": log_level, "log_json": log_json or None}
    if certificate is not None:
        flags["certificate"] = {"fullchain_pem_path": str(certificate), "priv_pem_path": str(key)}
    run(load_settings(config, flags=flags), WEB_PAGE)


@commands.command()
def node(
    *,
    join: list[str] | None = option(
        "URL", "RenderAPI's address; several, with commas or given again, stand in for another."
    ),
    code: str | None = option("CODE", f"The code of `renderonline machine invite`; also in {JOIN_CODE}."),
    fingerprint: str | None = option("sha256:…", "Trust exactly this certificate of RenderAPI."),
    v1: bool = flag("--v1", "Listen and obey, as the older HPCServer does. Has no authentication."),
    config: Path | None = option("FILE", "The settings file, HPCServer.json."),
    name: str | None = option("TEXT", "What the machine is called; its host name if empty."),
    slots: int | None = option("NUMBER", "Chunks at the same time; one, or one for each graphics card.", min=1),
    tag: list[str] | None = option("TEXT", "A tag; may be given several times."),
    engine: list[str] | None = option("NAME=PATH", "The program of an engine; may be given several times."),
    idle_minutes: float | None = option("MINUTES", "Take work only when nobody was at the desk for this long.", min=0),
    max_load: float | None = option(
        "NUMBER", "Take work only while other programs keep at most this many processors busy.", min=0
    ),
    idle_exit: float | None = option("SECONDS", "End after this many seconds without work.", min=0),
    check: bool = flag("--check", "Only look whether this computer is fit for it, print that, and end."),
    json: bool = flag("--json", "With --check: print JSON for programs."),
    host: str | None = option("ADDRESS", "With --v1: address to listen on."),
    port: int | None = option("NUMBER", "With --v1: port to listen on.", min=0, max=65535),
    data_directory: Path | None = DATA_DIRECTORY,
    log_level: str | None = LOG_LEVEL,
    log_json: bool = LOG_JSON,
) -> int:
    """Run HPCServer: let this computer render for a farm. Ends with Ctrl-C or SIGTERM.

    The code is needed once; the machine keeps its own secret afterwards. --check changes nothing; its exit code is 0
    when all is well, 6 with warnings, 1 when the machine would not render.

    \b
    renderonline node --check
    renderonline node --join http://farm:5000 --code ABCD-EFGH
    renderonline node --join https://farm:5000 --fingerprint sha256:… --engine blender=/opt/blender/blender
    renderonline node --v1 --config HPCServer.json
    """
    if v1 == bool(join) and (v1 or not check):
        raise InvalidRequest(
            "Say with --join URL which farm the machine belongs to, or with --v1 that it obeys every caller "
            "(the older way, without authentication)."
        )
    if code is not None:
        _hide_code(code)
    from renderonline.cli.local_farm import leash

    leash()
    from renderonline.hpcserver import main
    from renderonline.hpcserver.settings import load
    from renderonline.sandbox.privacy import taken_from_environment
    from renderonline.serving.settings import configure_logs

    flags: dict[str, Any] = {"name": name, "slots": slots, "tags": tag or None, "host": host, "port": port}
    flags |= {"data_directory": data_directory, "rendering_engines": engine_programs(engine) if engine else None}
    flags |= {"log_level": log_level, "log_json": log_json or None}
    flags |= {"idle_minutes": idle_minutes, "max_load": max_load}
    settings = load(config, environment=os.environ, flags=flags)
    configure_logs(json_lines=settings.log_json, level="error" if check else settings.log_level)
    if check:
        found = main.check(settings, url=",".join(join or ()), fingerprint=fingerprint or "")
        return show_findings(found, as_json=json)
    if not join:
        return main.run_v1(settings)
    given = taken_from_environment(JOIN_CODE)  # engines must neither inherit it nor find it
    return main.run_linked(
        settings, url=",".join(join), code=code or given or None, fingerprint=fingerprint, idle_exit_s=idle_exit
    )


def without_code(argv: Sequence[str]) -> list[str]:
    """A command line without `--code CODE`."""
    return [
        word
        for before, word in zip(("", *argv), argv, strict=False)
        if "--code" not in (before, word) and not word.startswith("--code=")
    ]


def _hide_code(code: str) -> None:
    """Begin again in the same process, with the code in the environment: every user of this computer can read command
    lines, and the code may be good for other machines (R12 Tokens). Windows shows them to their own user only, and
    can't replace a process: there nothing happens."""
    argv = without_code(sys.orig_argv)
    if os.name == "posix" and argv != sys.orig_argv:
        os.environ[JOIN_CODE] = code
        os.execv(sys.executable, [sys.executable, *argv[1:]])  # noqa: S606 (this program itself)


def show_findings(findings: "Sequence[CheckResult]", *, as_json: bool) -> int:
    """Print what `node --check` found; its exit code."""
    from renderonline.hpcserver.joining import Level

    data = {"findings": [finding._asdict() for finding in findings]}
    width = min(100, max(len(finding.text) for finding in findings))
    lines = [f"{subject:<8}  {text:<{width}}  {level}" for subject, text, level in findings]
    terminal.print_answer((data, "\n".join(lines)), as_json=as_json)
    levels = {finding.level for finding in findings}
    return 1 if Level.ERROR in levels else WARNED if Level.WARNING in levels else 0


def engine_programs(words: list[str]) -> list[dict[str, str]]:
    """`name=path` words as the setting `RenderingEngines`."""
    programs = pairs("--engine", words, "NAME=PATH")
    if not all(programs.values()):
        raise InvalidRequest("--engine must be written NAME=PATH, like blender=/opt/blender/blender .")
    return [{"EngineId": name, "ExecutablePath": path} for name, path in programs.items()]


database_commands = group("The database: migrate, check, backup.")
WHICH = "ADO.NET connection string or URL; else the one of --config, else this computer's own database."
CONNECTION = option("TEXT", WHICH, "--connection", "-c")
CONFIG = option("FILE", "A RenderAPI.json to take the connection from.")


@command(
    database_commands,
    "renderonline db migrate",
    "renderonline db migrate --config RenderAPI.json",
    "renderonline db migrate -c 'Server=localhost;Database=renderonline;User Id=farm;Password=…;'",
)
def migrate(
    *,
    connection: str | None = CONNECTION,
    config: Path | None = CONFIG,
    upgrade_tokens: bool = flag("--upgrade-tokens", "Replace the raw tokens of an older system; no way back."),
) -> Output:
    """Make the tables, or bring those that are there up to date; rows are kept."""
    from renderonline.database import upkeep

    with _opened(connection, config, ready=False) as database:
        report = asdict(upkeep.migrate(database))
        if upgrade_tokens:
            report["upgraded_tokens"] = upkeep.upgrade_tokens(database)
    return report, lambda: terminal.print_fields(report, list(report))


@command(database_commands, "renderonline db check")
def check(*, connection: str | None = CONNECTION, config: Path | None = CONFIG, json: bool) -> int:
    """Recompute what the database says of its tasks; exit code 1 when something does not fit."""
    from renderonline.database.upkeep import check as find

    with _opened(connection, config) as database:
        findings = database.read_now(find)
    lines = [
        f"{'Warning' if finding.is_warning else 'Wrong'}: {finding.table} {finding.key}: {finding.message}"
        for finding in findings
    ]
    output = {"findings": [asdict(finding) for finding in findings]}, "\n".join(lines) or "Everything fits."
    terminal.print_answer(output, as_json=json)
    return int(any(not finding.is_warning for finding in findings))


@command(database_commands, "renderonline db backup farm-2026-11-21.sqlite")
def backup(
    *,
    target: Path = argument("FILE", "The file to write; must not exist."),
    connection: str | None = CONNECTION,
    config: Path | None = CONFIG,
) -> Output:
    """Copy the database into a file while the farm goes on."""
    from renderonline.database.upkeep import backup as copy

    with _opened(connection, config) as database:
        path = copy(database, target)
    size = path.stat().st_size
    return {"file": str(path), "size": size}, f"{path}  {terminal.size(size)}"


def _opened(connection: str | None, config: Path | None, *, ready: bool = True) -> "Database":
    """The database that the options name; with `ready` only if it is there and has our tables."""
    from renderonline.database import connecting, upkeep
    from renderonline.database.door import Database
    from renderonline.renderapi.settings import load_settings

    named = load_settings(config, flags={"connection_string": connection}).database
    place = connecting.parse(named)
    if ready and place.dialect == "sqlite" and not Path(place.database).exists():
        raise NotFound(f"There is no database {place.database}. Make it with `renderonline db migrate`.")
    database = Database.open(named)
    if ready and not upkeep.is_current(database):
        database.close_now()
        raise Conflict("The database does not have this version's tables. Type `renderonline db migrate` first.")
    return database
