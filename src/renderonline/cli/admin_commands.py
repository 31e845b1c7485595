"""`renderonline login`, and administration: `machine …`, `user …`, `subscription …`."""

import re
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import typer

from renderonline.cli import terminal
from renderonline.cli.terminal import YES, Output, argument, command, confirm, find, given, group, listing, option
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.machines import hours_in_words
from renderonline.rnoclient.sdk import Client, Item, Login

own = group("One's own account.")
machines = group("The computers of the farm.")
users = group("Accounts.")
subscriptions = group("How many tasks users may have in the queue.")
USER = argument("USER", "The account's number or e-mail.")
TEXT = option("TEXT")
ROLE = "artist, operator or admin."
KEEP_DAYS = "Days after its end when a task is deleted; 0: never."
KEEP_MIB = "MiB that a user's tasks may take on the farm's disk; 0: any."
NAMES = "Names of results that leave the farm, for instance {scene}/{name}_{frame:04}; empty: unchanged."
SUBSCRIPTION = option("NUMBER", "The subscription's number.", min=1)
MACHINE = argument("MACHINE", "The machine's number or name.")
SLOTS_HELP = "Chunks at once that it may have; 0: four, or its cores if fewer."
REASON = option("TEXT", "Why; shown to everybody who looks at the machine.", default="")
MACHINE_COLUMNS: terminal.Columns = {
    ">MACHINE": "machine_id",
    "NAME": "name",
    "STATUS": "status",
    ">SLOTS": "slots",
    "BOX": "sandbox",
    "ENGINES": lambda machine: ", ".join(f"{item['name']} {item['version']}".strip() for item in machine["engines"]),
    "ADDRESS": lambda machine: f"{machine['ip_address']}:{machine['port']}" if machine["ip_address"] else "linked",
    "REASON": "reason",
}
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


@command(users, "renderonline user add ada@studio.org --first-name Ada --last-name Lovelace")
def add_user(
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


@command(users, "renderonline user list")
def list_users(client: Client) -> Output:
    """List the accounts."""
    return listing(USER_COLUMNS, client.admin.users())


@command(users, "renderonline user change ada@studio.org --role operator")
def change_user(
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
    return _changed_user(client, user, role=role, subscription_id=subscription, **names)


@command(users, "renderonline user token ada@studio.org")
def token(client: Client, *, user: str = USER) -> Output:
    """Make a new token for the account; the old one ends at once."""
    number, _ = find(client, "user", user)
    made = client.admin.new_token(number)
    return {"user_id": number, "token": made}, f"The token is shown only now:\n\n    {made}"


@command(users, "renderonline user logout ada@studio.org")
def logout(client: Client, *, user: str = USER) -> Output:
    """End the account's token and all its logins at once, for instance when its token was stolen."""
    number, _ = find(client, "user", user)
    client.admin.log_out(number)
    text = f"User {number} is logged out everywhere and has no token. Make one: renderonline user token {number}"
    return {"user_id": number}, text


@command(users, "renderonline user disable ada@studio.org")
def disable_user(client: Client, *, user: str = USER) -> Output:
    """Refuse the account everything; its tasks stay."""
    return _changed_user(client, user, is_active=False)


@command(users, "renderonline user enable ada@studio.org")
def enable_user(client: Client, *, user: str = USER) -> Output:
    """Undo `disable`."""
    return _changed_user(client, user, is_active=True)


@command(subscriptions, "renderonline subscription list")
def list_subscriptions(client: Client) -> Output:
    """List the subscriptions."""
    return listing(SUBSCRIPTION_COLUMNS, client.admin.subscriptions())


@command(subscriptions, "renderonline subscription add students --queue-limit 3")
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


@command(subscriptions, "renderonline subscription change 1 --queue-limit 20 --keep-days 30")
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


def _changed_user(client: Client, wanted: str, **changes: object) -> Output:
    number, _ = find(client, "user", wanted)
    user = client.admin.change_user(number, **given(**changes))
    return user, f"User {number} {user['email']} changed."


@command(
    machines,
    "renderonline machine invite",
    "renderonline machine invite --uses 20 --hours 2",
    "renderonline machine invite --slots 16",
)
def invite(
    client: Client,
    *,
    uses: int = option("NUMBER", "How many machines may join with it.", default=1, min=1),
    hours: float = option("HOURS", "How long it is valid.", default=24, min=0.01),
    slots: int = option("NUMBER", SLOTS_HELP, default=0, min=0, max=1024),
) -> Output:
    """Make a code with which a machine joins, and print the line to type there."""
    made = client.admin.invite(uses, hours, slots)
    times = "once" if uses == 1 else f"{uses} times"
    text = f"On the new machine, with RenderOnline installed, type:\n\n    {made['command']}\n\n"
    text += f"The code {made['code']} works {times}, until {terminal.when(made['expires'])}."
    if install := made.get("install"):
        text += f"\nIs RenderOnline not installed there yet? pip install {install}"
    if first := made.get("first"):
        text = f"{first}\n\n{text}"
    return made, text


@command(machines, "renderonline machine list")
def list_machines(client: Client) -> Output:
    """List the machines and what they do."""
    found = client.admin.machines()
    if not found:
        return found, "No machines. Let one join: renderonline machine invite"

    def print_it() -> None:
        terminal.table(MACHINE_COLUMNS, found)
        for machine in found:
            if cards := machine.get("cards"):
                terminal.say(f"Cards of {machine['name']}: {'; '.join(map(_card, cards))}.")
        for note in filter(None, map(_more_slots, found)):
            terminal.note(note)
        for advice, names in better_boxes(found).items():
            terminal.note(f"A better box around the engines of {', '.join(names)}: {advice}")

    return found, print_it


@command(machines, "renderonline machine show 1000")
def show_machine(client: Client, *, machine: str = MACHINE) -> Output:
    """Show everything about a machine."""
    _, found = find(client, "machine", machine)
    return found, lambda: terminal.print_fields(found, list(found))


@command(machines, "renderonline machine add 192.168.1.20 --port 5001")
def add_machine(
    client: Client,
    *,
    address: str = argument("ADDRESS", "IP address, or IP address:port."),
    port: int = option("NUMBER", default=5001, min=1, max=65535),
) -> Output:
    """Add a machine that only speaks the first version of the protocol (`HPCServer.json` alone).

    All others join with a code: see `renderonline machine invite`.
    """
    machine = client.admin.add_machine(*split_address(address, port))
    return machine, f"Machine {machine['machine_id']} added."


@command(machines, 'renderonline machine drain 1000 --reason "new disk at noon"')
def drain_machine(client: Client, *, machine: str = MACHINE, reason: str = REASON) -> Output:
    """Give the machine nothing new; what it renders goes on."""
    return _changed_machine(client, machine, wish="draining", reason=reason)


@command(machines, "renderonline machine restart 1000")
def restart_machine(client: Client, *, machine: str = MACHINE) -> Output:
    """Have its program end after its work; its service starts it again, perhaps a newer version."""
    client.admin.restart_machine(find(client, "machine", machine)[0])
    return {"restarting": machine}, f"Machine {machine} finishes what it renders and ends."


@command(machines, "renderonline machine disable 1000")
def disable_machine(client: Client, *, machine: str = MACHINE, reason: str = REASON) -> Output:
    """Take the machine out; what it renders goes to others."""
    return _changed_machine(client, machine, wish="disabled", reason=reason)


@command(machines, "renderonline machine enable 1000")
def enable_machine(client: Client, *, machine: str = MACHINE) -> Output:
    """Give the machine work again, also when it is benched."""
    return _changed_machine(client, machine, wish="active", reason="")


@command(
    machines,
    'renderonline machine set big-box --tags "gpu fast" --pool film',
    'renderonline machine set 1000 --hours "Mon-Fri 18:00-08:00, Sat, Sun"',
    'renderonline machine set 1000 --pool "" --hours ""',
    "renderonline machine set big-box --slots 16",
)
def set_(
    client: Client,
    *,
    machine: str = MACHINE,
    tags: str | None = option("WORDS", "What tasks may ask for, besides its own tags."),
    pool: str | None = option("NAME", "Only for tasks of this pool."),
    hours: str | None = option("HOURS", "When it takes work, in the farm's local time."),
    slots: int | None = option("NUMBER", SLOTS_HELP, min=0, max=1024),
) -> Output:
    """Set which tasks the machine takes, and when; "" removes a setting."""
    words = None if tags is None else tags.split()
    return _changed_machine(client, machine, **given(tags=words, pool=pool, hours=hours, slots_allowed=slots))


@command(machines, "renderonline machine rename 1000 big-box")
def rename_machine(client: Client, *, machine: str = MACHINE, name: str = argument("NAME", "The new name.")) -> Output:
    """Give the machine another name."""
    return _changed_machine(client, machine, name=name)


@command(machines, "renderonline machine remove 1000")
def remove_machine(client: Client, *, machine: str = MACHINE, yes: bool = YES, json: bool) -> Output:
    """Forget the machine; it must be invited again to come back."""
    confirm(f"Forget machine {machine}?", agreed=yes or json)
    client.admin.remove_machine(find(client, "machine", machine)[0])
    return {"removed": machine}, f"Machine {machine} removed."


def split_address(text: str, port: int) -> tuple[str, int]:
    """Return `10.0.0.1`, `10.0.0.1:5001` or `[::1]:5001` as address and port; `port` is used when it names none."""
    match = re.fullmatch(r"\[([^]]+)\](?::(\d+))?|([^:]+)(?::(\d+))?|([^:]*:[^:]*:.*)", text)
    if match is None:
        raise InvalidRequest(f"{text} is no address; write it like 192.168.1.20:5001 .")
    bracketed, its_port, plain, plain_port, bare = match.groups()
    return bracketed or plain or bare, int(its_port or plain_port or port)


def better_boxes(found: Iterable[Item]) -> dict[str, list[str]]:
    """Return how to get better boxes around engines -> the names of the machines where that helps."""
    names: dict[str, list[str]] = defaultdict(list)
    for machine in found:
        if advice := machine.get("sandbox_advice"):
            names[str(advice)].append(str(machine["name"]))
    return names


def _more_slots(machine: Item) -> str:
    """How to allow a machine the slots that it has beyond those that it may use; "" when it has no more."""
    claimed = machine.get("slots_claimed", 0)
    if claimed <= machine["slots"]:
        return ""
    allow = f"renderonline machine set {machine['name']} --slots {claimed}"
    return f"{machine['name']} says it has {claimed} slots; {machine['slots']} count. Allow more: {allow}"


def _card(card: Item) -> str:
    """A graphics card in words: its memory, how busy it is, why it gets no work."""
    total, load = card["memory_mib"], card["load"]
    parts = [str(card["name"] or card["id"])]
    parts += [f"{card['memory_used_mib']} of {total} MiB"] if total else []
    parts += [] if load is None else [f"{load:.0%} busy"]
    return ", ".join(parts + ([] if card["usable"] else [f"gets no work ({card['unusable']})"]))


def _changed_machine(client: Client, wanted: str, **changes: object) -> Output:
    """Change a machine, and show what is set for it now."""
    number, _ = find(client, "machine", wanted)
    machine = client.admin.change_machine(number, **changes)
    hours = str(machine.get("hours") or "")
    shown = {"tags": " ".join(machine.get("tags", ())), "pool": machine.get("pool"), "hours": hours}
    if "slots_allowed" in changes:
        shown["slots"] = machine["slots_allowed"]
    words = [machine["wish"], *(f"{name} {value}" for name, value in shown.items() if value)]
    text = f"Machine {number} {machine['name']}: {', '.join(words)}."
    if "hours" in changes:
        text += f"\nIt takes work: {hours_in_words(hours)}" + (" (the farm's local time)." if hours else ".")
    return machine, text
