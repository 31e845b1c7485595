"""`renderonline login` and `renderonline db …`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from renderonline.cli import show
from renderonline.cli.options import Json, group

database = group("The database: migrate, check, backup.")
Connection = Annotated[
    str | None,
    typer.Option(
        "--connection",
        "-c",
        help="ADO.NET connection string or URL; else the one of --config, else this computer's own database.",
        metavar="TEXT",
    ),
]
Config = Annotated[Path | None, typer.Option(help="A RenderAPI.json to take the connection from.", metavar="FILE")]


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(login)


def login(
    *,
    url: Annotated[str | None, typer.Option(help="RenderAPI's address.", metavar="URL")] = None,
    email: Annotated[str | None, typer.Option(metavar="EMAIL")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="Read the token from this file (`-`: standard input).", metavar="FILE")
    ] = None,
    ca_file: Annotated[
        Path | None, typer.Option(help="Trust the certificates signed by this authority (PEM).", metavar="FILE")
    ] = None,
    fingerprint: Annotated[str | None, typer.Option(help="Trust exactly this certificate.", metavar="sha256:…")] = None,
    json: Json = False,
) -> None:
    """Say which farm the other commands speak to, and as whom. Asks for what is not given.

    \b
    renderonline login --url http://farm:5000 --email ada@studio.org
    renderonline login --url https://farm:5000 --email a@b.org --token-file - < token.txt
    """
    from renderonline.cli.logins import save
    from renderonline.rnoclient.sdk import Client, Login

    wanted = Login(
        url=url or typer.prompt("RenderAPI's address", default="http://127.0.0.1:5000"),
        email=email or typer.prompt("E-mail"),
        token=_read_token(token_file),
        ca_file=str(ca_file.absolute()) if ca_file else None,
        fingerprint=fingerprint,
    )
    with Client(wanted, patience_s=0.0) as client:
        me = client.me()
    path = save(wanted)
    if json:
        show.emit({"user": me, "saved": str(path)})
    else:
        show.say(f"You are {me['email']} ({me.get('role', 'artist')}) at {wanted.url}. Kept in {path}.")


@database.command()
def migrate(
    *,
    connection: Connection = None,
    config: Config = None,
    upgrade_tokens: Annotated[
        bool, typer.Option("--upgrade-tokens", help="Replace the raw tokens of an older system; no way back.")
    ] = False,
    json: Json = False,
) -> None:
    """Make the tables, or bring those that are there up to date; rows are kept.

    \b
    renderonline db migrate
    renderonline db migrate --config RenderAPI.json
    renderonline db migrate -c 'Server=localhost;Database=renderonline;User Id=farm;Password=…;'
    """
    from renderonline.cli.databases import migrate as run

    run(connection, config, upgrade_tokens=upgrade_tokens, as_json=json)


@database.command()
def check(*, connection: Connection = None, config: Config = None, json: Json = False) -> None:
    """Recompute what the database says of its tasks; exit code 1 when something does not fit.

    \b
    renderonline db check
    """
    from renderonline.cli.databases import check as run

    raise typer.Exit(run(connection, config, as_json=json))


@database.command()
def backup(
    *,
    target: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; must not exist.")],
    connection: Connection = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Copy the database into a file while the farm goes on.

    \b
    renderonline db backup farm-2026-11-21.sqlite
    """
    from renderonline.cli.databases import backup as run

    run(connection, config, target, as_json=json)


def _read_token(file: Path | None) -> str:
    if file is None:
        return str(typer.prompt("Token", hide_input=True)).strip()
    text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    return text.strip()
