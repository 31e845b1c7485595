"""`renderonline db …`: the only place of the command line that opens a database."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from renderonline.cli import show
from renderonline.cli.commands import Output, argument, command, flag, group, option
from renderonline.farm.errors import Conflict, NotFound

if TYPE_CHECKING:
    from renderonline.database.door import Database

commands = group("The database: migrate, check, backup.")
WHICH = "ADO.NET connection string or URL; else the one of --config, else this computer's own database."
CONNECTION = option("TEXT", WHICH, "--connection", "-c")
CONFIG = option("FILE", "A RenderAPI.json to take the connection from.")


@command(
    commands,
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
    from renderonline.database import migrating

    with _opened(connection, config, ready=False) as database:
        report = asdict(migrating.migrate(database))
        if upgrade_tokens:
            report["upgraded_tokens"] = migrating.upgrade_tokens(database)
    return report, lambda: show.fields(report, list(report))


@command(commands, "renderonline db check")
def check(*, connection: str | None = CONNECTION, config: Path | None = CONFIG, json: bool) -> int:
    """Recompute what the database says of its tasks; exit code 1 when something does not fit."""
    from renderonline.database.check import check as find

    with _opened(connection, config) as database:
        findings = database.read_now(find)
    lines = [
        f"{'Warning' if finding.is_warning else 'Wrong'}: {finding.table} {finding.key}: {finding.message}"
        for finding in findings
    ]
    told = {"findings": [asdict(finding) for finding in findings]}, "\n".join(lines) or "Everything fits."
    show.answer(told, as_json=json)
    return int(any(not finding.is_warning for finding in findings))


@command(commands, "renderonline db backup farm-2026-11-21.sqlite")
def backup(
    *,
    target: Path = argument("FILE", "The file to write; must not exist."),
    connection: str | None = CONNECTION,
    config: Path | None = CONFIG,
) -> Output:
    """Copy the database into a file while the farm goes on."""
    from renderonline.database.backup import backup as copy

    with _opened(connection, config) as database:
        path = copy(database, target)
    size = path.stat().st_size
    return {"file": str(path), "size": size}, f"{path}  {show.size(size)}"


def _opened(connection: str | None, config: Path | None, *, ready: bool = True) -> "Database":
    """The database that the options name; with `ready` only if it is there and has our tables."""
    from renderonline.database import connecting, migrating
    from renderonline.database.door import Database
    from renderonline.renderapi.settings import load_settings

    named = load_settings(config, flags={"connection_string": connection}).database
    place = connecting.parse(named)
    if ready and place.dialect == "sqlite" and not Path(place.database).exists():
        raise NotFound(f"There is no database {place.database}. Make it with `renderonline db migrate`.")
    database = Database.open(named)
    if ready and not migrating.is_current(database):
        database.close_now()
        raise Conflict("The database does not have this version's tables. Type `renderonline db migrate` first.")
    return database
