"""`renderonline user …` and `renderonline subscription …`."""

from typing import Annotated

import typer

from renderonline.cli import show
from renderonline.cli.options import Json, Url, group
from renderonline.farm.errors import NotFound
from renderonline.rnoclient.sdk import Client, Item

commands = group("Accounts.")
subscriptions = group("How many tasks users may have in the queue.")
Who = Annotated[str, typer.Argument(metavar="USER", help="The account's number or e-mail.")]


@commands.command()
def add(
    *,
    email: Annotated[str, typer.Argument(metavar="EMAIL")],
    first_name: Annotated[str, typer.Option(metavar="TEXT")] = "",
    last_name: Annotated[str, typer.Option(metavar="TEXT")] = "",
    subscription: Annotated[
        int | None, typer.Option(min=1, help="The subscription's number.", metavar="NUMBER")
    ] = None,
    role: Annotated[str, typer.Option(help="artist, operator or admin.", metavar="ROLE")] = "artist",
    json: Json = False,
    url: Url = None,
) -> None:
    """Add an account and print its token, this once.

    \b
    renderonline user add ada@studio.org --first-name Ada --last-name Lovelace
    """
    with _connect(url) as client:
        user = client.admin.add_user(
            email=email, first_name=first_name, last_name=last_name, subscription_id=subscription, role=role
        )
        raw = str(user.get("token") or "") or client.admin.new_token(int(user["user_id"]))
        address = client.connection.url
    if json:
        show.emit({**user, "token": raw})
        return
    show.say(f"User {user['user_id']} {email} added. The token is shown only now:\n\n    {raw}\n")
    show.say(f"They log in with: renderonline login --url {address} --email {email}")


@commands.command("list")
def list_users(*, json: Json = False, url: Url = None) -> None:
    """List the accounts.

    \b
    renderonline user list
    """
    with _connect(url) as client:
        found = client.admin.users()
    if json:
        show.emit(found)
        return
    columns = [">USER", "EMAIL", "NAME", "ROLE", ">SUBSCRIPTION", "ACTIVE"]
    show.table(
        columns,
        (
            [
                user["user_id"],
                user["email"],
                f"{user['first_name']} {user['last_name']}".strip(),
                user["role"],
                user["subscription_id"],
                "yes" if user["is_active"] else "no",
            ]
            for user in found
        ),
    )


@commands.command()
def change(
    *,
    user: Who,
    role: Annotated[str | None, typer.Option(help="artist, operator or admin.", metavar="ROLE")] = None,
    subscription: Annotated[
        int | None, typer.Option(min=1, help="The subscription's number.", metavar="NUMBER")
    ] = None,
    email: Annotated[str | None, typer.Option(metavar="EMAIL")] = None,
    first_name: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    last_name: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Change an account.

    \b
    renderonline user change ada@studio.org --role operator
    """
    wanted = {
        "role": role,
        "subscription_id": subscription,
        "email": email,
        "first_name": first_name,
        "last_name": last_name,
    }
    _change(user, {name: value for name, value in wanted.items() if value is not None}, as_json=json, url=url)


@commands.command()
def token(*, user: Who, json: Json = False, url: Url = None) -> None:
    """Give the account a new token; the old one ends at once.

    \b
    renderonline user token ada@studio.org
    """
    with _connect(url) as client:
        number = _find(client, user)["user_id"]
        raw = client.admin.new_token(int(number))
    show.emit({"user_id": number, "token": raw}) if json else show.say(f"The token is shown only now:\n\n    {raw}")


@commands.command()
def disable(*, user: Who, json: Json = False, url: Url = None) -> None:
    """Let the account do nothing any more; its tasks stay.

    \b
    renderonline user disable ada@studio.org
    """
    _change(user, {"is_active": False}, as_json=json, url=url)


@commands.command()
def enable(*, user: Who, json: Json = False, url: Url = None) -> None:
    """Undo `disable`.

    \b
    renderonline user enable ada@studio.org
    """
    _change(user, {"is_active": True}, as_json=json, url=url)


@subscriptions.command("list")
def list_subscriptions(*, json: Json = False, url: Url = None) -> None:
    """List the subscriptions.

    \b
    renderonline subscription list
    """
    with _connect(url) as client:
        found = client.admin.subscriptions()
    if json:
        show.emit(found)
        return
    columns = [">SUBSCRIPTION", "NAME", ">QUEUE LIMIT", ">SHARE"]
    show.table(columns, ([i["subscription_id"], i["name"], i["queue_limit"], i["share"]] for i in found))


@subscriptions.command("add")
def add_subscription(
    *,
    name: Annotated[str, typer.Argument(metavar="NAME")],
    queue_limit: Annotated[
        int, typer.Option(min=0, help="Tasks that a user may have in the queue.", metavar="NUMBER")
    ] = 10,
    share: Annotated[int, typer.Option(min=1, help="Twice the share is served twice as often.", metavar="NUMBER")] = 1,
    json: Json = False,
    url: Url = None,
) -> None:
    """Add a subscription.

    \b
    renderonline subscription add students --queue-limit 3
    """
    with _connect(url) as client:
        made = client.admin.add_subscription(name=name, queue_limit=queue_limit, share=share)
    show.emit(made) if json else show.say(f"Subscription {made['subscription_id']} added.")


@subscriptions.command("change")
def change_subscription(
    *,
    subscription: Annotated[int, typer.Argument(metavar="SUBSCRIPTION", min=1, help="Its number.")],
    name: Annotated[str | None, typer.Option(metavar="TEXT")] = None,
    queue_limit: Annotated[int | None, typer.Option(min=0, metavar="NUMBER")] = None,
    share: Annotated[int | None, typer.Option(min=1, metavar="NUMBER")] = None,
    json: Json = False,
    url: Url = None,
) -> None:
    """Change a subscription.

    \b
    renderonline subscription change 1 --queue-limit 20
    """
    wanted = {"name": name, "queue_limit": queue_limit, "share": share}
    with _connect(url) as client:
        changed = client.admin.change_subscription(
            subscription, **{key: value for key, value in wanted.items() if value is not None}
        )
    show.emit(changed) if json else show.say(f"Subscription {subscription} changed.")


def _connect(url: str | None) -> Client:
    from renderonline.cli.logins import connect

    return connect(url)


def _find(client: Client, who: str) -> Item:
    fitting = [
        user
        for user in client.admin.users()
        if who in {str(user["user_id"])} or who.casefold() == user["email"].casefold()
    ]
    if not fitting:
        raise NotFound(f"There is no account {who}. See `renderonline user list`.")
    if len(fitting) > 1:
        numbers = ", ".join(str(user["user_id"]) for user in fitting)
        raise NotFound(f"Several accounts have the e-mail {who}; name one by its number ({numbers}).")
    return fitting[0]


def _change(who: str, wanted: dict[str, object], *, as_json: bool, url: str | None) -> None:
    with _connect(url) as client:
        user = client.admin.change_user(int(_find(client, who)["user_id"]), **wanted)
    show.emit(user) if as_json else show.say(f"User {user['user_id']} {user['email']} changed.")
