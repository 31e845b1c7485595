"""What the commands `renderonline db …` do: the only place of the command line that opens a database."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from renderonline.cli import show
from renderonline.database import Database
from renderonline.database.connection_strings import parse
from renderonline.database.migrating import is_current
from renderonline.farm.errors import Conflict, NotFound
from renderonline.renderapi.settings import load_settings


def migrate(connection: str | None, config: Path | None, *, upgrade_tokens: bool, as_json: bool) -> None:
    """Bring the schema up to date; refused while a RenderAPI holds the database."""
    from renderonline.database import migrating
    from renderonline.database.lease import Lease

    with _opened(connection, config) as database, Lease.acquire(database, "renderonline db migrate") as lease:
        report = asdict(migrating.migrate(database, lease=lease))
        if upgrade_tokens:
            report = {**report, "upgraded_tokens": migrating.upgrade_tokens(database)}
    _show(report, as_json=as_json)


def check(connection: str | None, config: Path | None, *, as_json: bool) -> int:
    """Print what does not fit; 1 when something is wrong (a warning is not)."""
    from renderonline.database.check import check as find

    with _ready(connection, config) as database:
        findings = database.read_now(find)
    if as_json:
        show.emit({"findings": [asdict(finding) for finding in findings]})
        return int(any(not finding.is_warning for finding in findings))
    for finding in findings:
        kind = "Warning" if finding.is_warning else "Wrong"
        show.say(f"{kind}: {finding.table} {finding.key}: {finding.message}")
    if not findings:
        show.say("Everything fits.")
    return int(any(not finding.is_warning for finding in findings))


def backup(connection: str | None, config: Path | None, target: Path, *, as_json: bool) -> None:
    """Copy the database into a new file."""
    from renderonline.database.backup import backup as copy

    with _ready(connection, config) as database:
        path = copy(database, target)
    size = path.stat().st_size
    show.emit({"file": str(path), "size": size}) if as_json else show.say(f"{path}  {show.size(size)}")


def _opened(connection: str | None, config: Path | None) -> Database:
    """The database that the options name."""
    return Database.open(load_settings(config, flags={"connection_string": connection}).database)


def _ready(connection: str | None, config: Path | None) -> Database:
    """The same, when it is there and has our tables."""
    place = parse(load_settings(config, flags={"connection_string": connection}).database)
    if place.dialect == "sqlite" and not Path(place.database).exists():
        raise NotFound(f"There is no database {place.database}. Make it with `renderonline db migrate`.")
    database = _opened(connection, config)
    if not is_current(database):
        database.close_now()
        raise Conflict("The database does not have this version's tables. Type `renderonline db migrate` first.")
    return database


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show.emit(report)
    else:
        show.fields(report, list(report))
