"""`renderonline login`, `desktop`, `user …` and `subscription …`: one's own login, accounts and their limits."""

import os
import sys
from pathlib import Path

import typer

from renderonline.cli import terminal
from renderonline.cli.terminal import URL, Output, argument, command, find, given, group, listing, option
from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.sdk import Client, Login

own = group("One's own account.")
commands = group("Accounts.")
subscriptions = group("How many tasks users may have in the queue.")
USER = argument("USER", "The account's number or e-mail.")
TEXT = option("TEXT")
ROLE = "artist, operator or admin."
KEEP_DAYS = "Days after its end when a task is deleted; 0: never."
KEEP_MIB = "MiB that a user's tasks may take on the farm's disk; 0: any."
NAMES = "Names of results that leave the farm, for instance {scene}/{name}_{frame:04}; empty: unchanged."
SUBSCRIPTION = option("NUMBER", "The subscription's number.", min=1)
USER_COLUMNS: terminal.Columns = {
    ">USER": "user_id",
    "EMAIL": "email",
    "NAME": lambda user: f"{user['first_name']} {user['last_name']}".strip(),
    "ROLE": "role",
    ">SUBSCRIPTION": "subscription_id",
    "ACTIVE": lambda user: terminal.yes(user["is_active"]),
}
SUBSCRIPTION_COLUMNS: terminal.Columns = {
    ">SUBSCRIPTION": "subscription_id",
    "NAME": "name",
    ">QUEUE LIMIT": "queue_limit",
    ">SHARE": "share",
    ">RUNNING LIMIT": "running_limit",
    ">KEEP DAYS": "keep_days",
    ">KEEP MIB": "keep_mib",
    "NAMES": "names",
}


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
    """Save which farm the other commands call, and as which user. Asks for what is not given."""
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
    return {"user": me, "saved": str(path)}, f"You are {me['email']} ({me['role']}) at {wanted.url}. Saved in {path}."


@command(own, "renderonline desktop", "renderonline desktop --url https://farm.example:5000")
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
    return listing(USER_COLUMNS, client.admin.users())


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
    return _changed(client, user, role=role, subscription_id=subscription, **names)


@command(commands, "renderonline user token ada@studio.org")
def token(client: Client, *, user: str = USER) -> Output:
    """Make a new token for the account; the old one ends at once."""
    number, _ = find(client, "user", user)
    made = client.admin.new_token(number)
    return {"user_id": number, "token": made}, f"The token is shown only now:\n\n    {made}"


@command(commands, "renderonline user logout ada@studio.org")
def logout(client: Client, *, user: str = USER) -> Output:
    """End the account's token and all its logins at once, for instance when its token was stolen."""
    number, _ = find(client, "user", user)
    client.admin.log_out(number)
    text = f"User {number} is logged out everywhere and has no token. Make one: renderonline user token {number}"
    return {"user_id": number}, text


@command(commands, "renderonline user disable ada@studio.org")
def disable(client: Client, *, user: str = USER) -> Output:
    """Refuse the account everything; its tasks stay."""
    return _changed(client, user, is_active=False)


@command(commands, "renderonline user enable ada@studio.org")
def enable(client: Client, *, user: str = USER) -> Output:
    """Undo `disable`."""
    return _changed(client, user, is_active=True)


@command(subscriptions, "renderonline subscription list", name="list")
def list_subscriptions(client: Client) -> Output:
    """List the subscriptions."""
    return listing(SUBSCRIPTION_COLUMNS, client.admin.subscriptions())


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
    limits = {"queue_limit": queue_limit, "running_limit": running_limit, "keep_days": keep_days, "keep_mib": keep_mib}
    number, _ = find(client, "subscription", subscription)
    changed = client.admin.change_subscription(number, **given(name=name, share=share, names=names, **limits))
    return changed, f"Subscription {number} {changed['name']} changed."


def _read_token(file: Path | None) -> str:
    if file is None:
        return str(typer.prompt("Token", hide_input=True))
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidRequest(f"{file} is no text with a token. Copy the token into it again.") from None


def _changed(client: Client, wanted: str, **changes: object) -> Output:
    number, _ = find(client, "user", wanted)
    user = client.admin.change_user(number, **given(**changes))
    return user, f"User {number} {user['email']} changed."
