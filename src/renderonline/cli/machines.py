"""`renderonline machine …`."""

import re
from typing import Annotated, Any

import typer

from renderonline.cli import show
from renderonline.cli.options import Json, Url, Yes, group
from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.sdk import Client, Item

commands = group("The computers of the farm.")
MachineId = Annotated[int, typer.Argument(metavar="MACHINE", min=1, help="The machine's number.")]
Reason = Annotated[str, typer.Option(help="Why; shown to everybody who looks at the machine.", metavar="TEXT")]


@commands.command()
def invite(
    *,
    uses: Annotated[int, typer.Option(min=1, help="So many machines may join with it.", metavar="NUMBER")] = 1,
    hours: Annotated[float, typer.Option(min=0.01, help="How long it is good.", metavar="HOURS")] = 24,
    json: Json = False,
    url: Url = None,
) -> None:
    """Make a code with which a machine joins, and print the line to type there.

    \b
    renderonline machine invite
    renderonline machine invite --uses 20 --hours 2
    """
    with _connect(url) as client:
        invitation = client.admin.invite(uses, hours)
        address = client.connection.url
    if json:
        show.emit(invitation)
        return
    command = invitation.get("command") or f"renderonline node --join {address} --code {invitation['code']}"
    show.say(f"On the new machine type:\n\n    {command}\n")
    times = "once" if uses == 1 else f"{uses} times"
    show.say(f"The code {invitation['code']} works {times}, until {show.when(invitation.get('expires'))}.")
    if re.match(r"https?://(localhost|127\.|\[::1\])", address):
        show.say(
            f"{address} is this computer itself: on another one write its name or address instead, "
            "and let the farm listen there (renderonline up --host 0.0.0.0)."
        )


@commands.command("list")
def list_machines(*, json: Json = False, url: Url = None) -> None:
    """List the machines and what they do.

    \b
    renderonline machine list
    """
    with _connect(url) as client:
        found = client.admin.machines()
    if json:
        show.emit(found)
        return
    if not found:
        show.say("No machines. Let one join: renderonline machine invite")
        return
    show.table([">MACHINE", "NAME", "STATUS", ">SLOTS", "ENGINES", "ADDRESS", "REASON"], map(_row, found))


@commands.command()
def add(
    *,
    address: Annotated[str, typer.Argument(metavar="ADDRESS", help="IP address, or IP address:port.")],
    port: Annotated[int, typer.Option(min=1, max=65535, metavar="NUMBER")] = 5001,
    json: Json = False,
    url: Url = None,
) -> None:
    """Add a machine that only speaks the first version of the protocol (`HPCServer.json` alone).

    All others join by themselves: see `renderonline machine invite`.

    \b
    renderonline machine add 192.168.1.20 --port 5001
    """
    host, number = split_address(address, port)
    with _connect(url) as client:
        machine = client.admin.add_machine(host, number)
    show.emit(machine) if json else show.say(f"Machine {machine['machine_id']} added.")


@commands.command()
def drain(*, machine: MachineId, reason: Reason = "", json: Json = False, url: Url = None) -> None:
    """Give the machine nothing new; what it renders goes on.

    \b
    renderonline machine drain 1000 --reason "new disk at noon"
    """
    _wish(machine, "draining", reason, as_json=json, url=url)


@commands.command()
def disable(*, machine: MachineId, reason: Reason = "", json: Json = False, url: Url = None) -> None:
    """Take the machine out; what it renders goes to others.

    \b
    renderonline machine disable 1000
    """
    _wish(machine, "disabled", reason, as_json=json, url=url)


@commands.command()
def enable(*, machine: MachineId, json: Json = False, url: Url = None) -> None:
    """Give the machine work again.

    \b
    renderonline machine enable 1000
    """
    _wish(machine, "active", "", as_json=json, url=url)


@commands.command()
def rename(
    *,
    machine: MachineId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new name.")],
    json: Json = False,
    url: Url = None,
) -> None:
    """Give the machine another name.

    \b
    renderonline machine rename 1000 big-box
    """
    with _connect(url) as client:
        changed = client.admin.change_machine(machine, name=name)
    show.emit(changed) if json else show.say(f"Machine {machine} is called {name}.")


@commands.command()
def remove(*, machine: MachineId, yes: Yes = False, json: Json = False, url: Url = None) -> None:
    """Forget the machine; it must be invited again to come back.

    \b
    renderonline machine remove 1000
    """
    if not yes and not json:
        typer.confirm(f"Forget machine {machine}?", abort=True)
    with _connect(url) as client:
        client.admin.remove_machine(machine)
    show.emit({"removed": machine}) if json else show.say(f"Machine {machine} removed.")


def split_address(text: str, port: int) -> tuple[str, int]:
    """`10.0.0.1`, `10.0.0.1:5001`, `[::1]:5001` as address and port."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        number = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, number = text.partition(":")
    else:
        host, number = text, ""
    if not host or (number and not number.isdecimal()):
        raise InvalidRequest(f"{text} is no address; write it like 192.168.1.20:5001 .")
    return host, int(number) if number else port


def _connect(url: str | None) -> Client:
    from renderonline.cli.logins import connect

    return connect(url)


def _wish(machine: int, wish: str, reason: str, *, as_json: bool, url: str | None) -> None:
    with _connect(url) as client:
        changed = client.admin.change_machine(machine, wish=wish, reason=reason)
    show.emit(changed) if as_json else show.say(f"Machine {machine}: {wish}.")


def _row(machine: Item) -> list[object]:
    engines: Any = machine.get("engines") or []
    offers = [
        f"{item['name']} {item.get('version', '')}".strip() if isinstance(item, dict) else str(item) for item in engines
    ]
    address = f"{machine.get('ip_address')}:{machine.get('port')}" if machine.get("ip_address") else "linked"
    return [
        machine["machine_id"],
        machine.get("name"),
        machine.get("status"),
        machine.get("slots"),
        ", ".join(offers),
        address,
        machine.get("reason"),
    ]
