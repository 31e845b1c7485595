"""`renderonline login`, `desktop`, `user …` and `subscription …`."""

import os
import sys
from pathlib import Path

import typer

from renderonline.cli import terminal
from renderonline.cli.terminal import URL, Output, argument, choose, command, given, group, option
from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.sdk import Client, Item, Login

own = group("One's own account.")
commands = group("Accounts.")
subscriptions = group("How many tasks users may have in the queue.")
USER = argument("USER", "The account's number or e-mail.")
TEXT = option("TEXT")
ROLE = "artist, operator or admin."
KEEP_DAYS = "A task is deleted so many days after its end; 0: never."
KEEP_MIB = "MiB that a user's tasks may take on the farm's disk; 0: any."
NAMES = "What results are called that leave the farm, for instance {scene}/{name}_{frame:04}; empty: as they are."
SUBSCRIPTION = option("NUMBER", "The subscription's number.", min=1)


@command(
    own,
    "renderonline login --url http://farm:5000 --email ada@studio.org",
    "renderonline login --url https://farm:5000 --email a@b.org --token-file - < token.txt",
)
def login(
    *,
    url: str | None = option("URL", "RenderAPI's address."),
    email: str | None = option("EMAIL"),
    token_file: Path | None = option("FILE", "Read the token from this file (`-`: standard input)."),
    ca_file: Path | None = option("FILE", "Trust the certificates signed by this authority (PEM)."),
    fingerprint: str | None = option("sha256:…", "Trust exactly this certificate."),
) -> Output:
    """Say which farm the other commands speak to, and as whom. Asks for what is not given."""
    wanted = Login(
        url=url or typer.prompt("RenderAPI's address", default="http://127.0.0.1:5000"),
        email=email or typer.prompt("E-mail"),
        token=_read_token(token_file),
        ca_file=str(ca_file.absolute()) if ca_file else None,
        fingerprint=fingerprint,
    )
    with Client(wanted, patience_s=0.0) as client:
        me = client.me()
    path = terminal.save(wanted)
    return {"user": me, "saved": str(path)}, f"You are {me['email']} ({me['role']}) at {wanted.url}. Kept in {path}."


@command(own, "renderonline desktop", "renderonline desktop --url https://farm.example:5000")
def desktop(*, url: str | None = URL) -> int:
    """The web page in a window of its own, with native dialogs, downloads that resume, and messages when tasks end.

    The login is asked for once and kept in the system's keyring.
    """
    try:
        from renderonline.rnoclient import login_dialog, shell
    except ImportError as error:
        raise InvalidRequest(
            f"The desktop program needs Qt and a keyring ({error}). Install them: pip install 'renderonline[desktop]'"
        ) from None
    if sys.platform == "linux" and not any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"))):
        raise InvalidRequest("There is no screen here (DISPLAY is not set): start it in a desktop session.")
    given = os.environ.get("RENDERONLINE_EMAIL"), os.environ.get("RENDERONLINE_TOKEN")
    if url and all(given):
        return shell.run(Login(url, *map(str, given)))
    kept = login_dialog.remembered()
    known = [one for one in (kept, terminal.saved()) if one is not None and url in (None, one.url)]
    return shell.run(known[0] if known else None, url=url or "", is_new=bool(known) and known[0] is not kept)


@command(commands, "renderonline user add ada@studio.org --first-name Ada --last-name Lovelace")
def add(
    client: Client,
    *,
    email: str = argument("EMAIL"),
    first_name: str = option("TEXT", default=""),
    last_name: str = option("TEXT", default=""),
    subscription: int | None = SUBSCRIPTION,
    role: str = option("ROLE", ROLE, default="artist"),
) -> Output:
    """Add an account and print its token, this once."""
    user = client.admin.add_user(
        email=email, first_name=first_name, last_name=last_name, subscription_id=subscription, role=role
    )
    token = str(user.get("token") or "") or client.admin.new_token(user["user_id"])
    text = f"User {user['user_id']} {email} added. The token is shown only now:\n\n    {token}\n\n"
    text += f"They log in with: renderonline login --url {client.connection.url} --email {email}"
    return {**user, "token": token}, text


@command(commands, "renderonline user list", name="list")
def list_users(client: Client) -> Output:
    """List the accounts."""
    found = client.admin.users()
    columns = [">USER", "EMAIL", "NAME", "ROLE", ">SUBSCRIPTION", "ACTIVE"]
    return found, lambda: terminal.table(columns, map(_row, found))


@command(commands, "renderonline user change ada@studio.org --role operator")
def change(
    client: Client,
    *,
    user: str = USER,
    role: str | None = option("ROLE", ROLE),
    subscription: int | None = SUBSCRIPTION,
    email: str | None = option("EMAIL"),
    first_name: str | None = TEXT,
    last_name: str | None = TEXT,
) -> Output:
    """Change an account."""
    names = {"email": email, "first_name": first_name, "last_name": last_name}
    return _change(client, user, role=role, subscription_id=subscription, **names)


@command(commands, "renderonline user token ada@studio.org")
def token(client: Client, *, user: str = USER) -> Output:
    """Give the account a new token; the old one ends at once."""
    number = _number(client, user)
    made = client.admin.new_token(number)
    return {"user_id": number, "token": made}, f"The token is shown only now:\n\n    {made}"


@command(commands, "renderonline user logout ada@studio.org")
def logout(client: Client, *, user: str = USER) -> Output:
    """End the account's token and all its logins at once, for instance when its token was stolen."""
    number = _number(client, user)
    client.admin.log_out(number)
    text = f"User {number} is logged out everywhere and has no token. Make one: renderonline user token {number}"
    return {"user_id": number}, text


@command(commands, "renderonline user disable ada@studio.org")
def disable(client: Client, *, user: str = USER) -> Output:
    """Let the account do nothing any more; its tasks stay."""
    return _change(client, user, is_active=False)


@command(commands, "renderonline user enable ada@studio.org")
def enable(client: Client, *, user: str = USER) -> Output:
    """Undo `disable`."""
    return _change(client, user, is_active=True)


@command(subscriptions, "renderonline subscription list", name="list")
def list_subscriptions(client: Client) -> Output:
    """List the subscriptions."""
    found = client.admin.subscriptions()
    columns = [">SUBSCRIPTION", "NAME", ">QUEUE LIMIT", ">SHARE", ">RUNNING LIMIT", ">KEEP DAYS", ">KEEP MIB", "NAMES"]
    names = ("subscription_id", "name", "queue_limit", "share", "running_limit", "keep_days", "keep_mib", "names")
    rows = [[item.get(name, "") for name in names] for item in found]
    return found, lambda: terminal.table(columns, rows)


@command(subscriptions, "renderonline subscription add students --queue-limit 3", name="add")
def add_subscription(
    client: Client,
    *,
    name: str = argument("NAME"),
    queue_limit: int = option("NUMBER", "Tasks that a user may have in the queue.", default=10, min=0),
    share: int = option("NUMBER", "Twice the share is served twice as often.", default=1, min=1),
    running_limit: int = option("NUMBER", "Chunks of a user that run at once; 0: any.", default=0, min=0),
    keep_days: int = option("NUMBER", KEEP_DAYS, default=0, min=0),
    keep_mib: int = option("NUMBER", KEEP_MIB, default=0, min=0),
    names: str = option("TEMPLATE", NAMES, default=""),
) -> Output:
    """Add a subscription."""
    limits = {"queue_limit": queue_limit, "running_limit": running_limit, "keep_days": keep_days, "keep_mib": keep_mib}
    made = client.admin.add_subscription(name=name, share=share, **limits, **({"names": names} if names else {}))
    return made, f"Subscription {made['subscription_id']} added."


@command(subscriptions, "renderonline subscription change 1 --queue-limit 20 --keep-days 30", name="change")
def change_subscription(
    client: Client,
    *,
    subscription: str = argument("SUBSCRIPTION", "Its number or name."),
    name: str | None = TEXT,
    queue_limit: int | None = option("NUMBER", min=0),
    share: int | None = option("NUMBER", min=1),
    running_limit: int | None = option("NUMBER", "Chunks of a user that run at once.", min=0),
    keep_days: int | None = option("NUMBER", KEEP_DAYS, min=0),
    keep_mib: int | None = option("NUMBER", KEEP_MIB, min=0),
    names: str | None = option("TEMPLATE", NAMES),
) -> Output:
    """Change a subscription."""
    kept = {"keep_days": keep_days, "keep_mib": keep_mib, "names": names}
    wanted = given(name=name, queue_limit=queue_limit, share=share, running_limit=running_limit, **kept)
    found = choose(client.admin.subscriptions(), "subscription_id", "name", subscription)
    changed = client.admin.change_subscription(found["subscription_id"], **wanted)
    return changed, f"Subscription {changed['subscription_id']} {changed['name']} changed."


def _row(user: Item) -> list[object]:
    name = f"{user['first_name']} {user['last_name']}".strip()
    return [
        user["user_id"],
        user["email"],
        name,
        user["role"],
        user["subscription_id"],
        terminal.yes(user["is_active"]),
    ]


def _read_token(file: Path | None) -> str:
    if file is None:
        return str(typer.prompt("Token", hide_input=True))
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{file} is no text with a token. Copy the token into it again.") from None


def _number(client: Client, who: str) -> int:
    return int(choose(client.admin.users(), "user_id", "email", who)["user_id"])


def _change(client: Client, who: str, **wanted: object) -> Output:
    user = client.admin.change_user(_number(client, who), **given(**wanted))
    return user, f"User {user['user_id']} {user['email']} changed."
