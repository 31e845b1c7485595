"""`renderonline machine …`."""

import re
from typing import Annotated

from renderonline.cli import show
from renderonline.cli.commands import Json, Output, Yes, argument, command, confirm, group, option
from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.sdk import Client, Item

commands = group("The computers of the farm.")
MachineId = Annotated[int, argument("MACHINE", "The machine's number.", min=1)]
Reason = Annotated[str, option("TEXT", "Why; shown to everybody who looks at the machine.")]


@command(commands, "renderonline machine invite", "renderonline machine invite --uses 20 --hours 2")
def invite(
    client: Client,
    *,
    uses: Annotated[int, option("NUMBER", "So many machines may join with it.", min=1)] = 1,
    hours: Annotated[float, option("HOURS", "How long it is good.", min=0.01)] = 24,
) -> Output:
    """Make a code with which a machine joins, and print the line to type there."""
    made, address = client.admin.invite(uses, hours), client.connection.url
    times = "once" if uses == 1 else f"{uses} times"
    text = f"On the new machine type:\n\n    {made['command']}\n\n"
    text += f"The code {made['code']} works {times}, until {show.when(made['expires'])}."
    if re.match(r"https?://(localhost|127\.|\[::1\])", address):
        text += (
            f"\n{address} is this computer itself: on another one write its name or address instead, "
            "and let the farm listen there (renderonline up --host 0.0.0.0)."
        )
    return made, text


@command(commands, "renderonline machine list", name="list")
def list_machines(client: Client) -> Output:
    """List the machines and what they do."""
    found = client.admin.machines()
    if not found:
        return found, "No machines. Let one join: renderonline machine invite"
    columns = [">MACHINE", "NAME", "STATUS", ">SLOTS", "ENGINES", "ADDRESS", "REASON"]
    return found, lambda: show.table(columns, map(_row, found))


@command(commands, "renderonline machine add 192.168.1.20 --port 5001")
def add(
    client: Client,
    *,
    address: Annotated[str, argument("ADDRESS", "IP address, or IP address:port.")],
    port: Annotated[int, option("NUMBER", min=1, max=65535)] = 5001,
) -> Output:
    """Add a machine that only speaks the first version of the protocol (`HPCServer.json` alone).

    All others join by themselves: see `renderonline machine invite`.
    """
    machine = client.admin.add_machine(*split_address(address, port))
    return machine, f"Machine {machine['machine_id']} added."


@command(commands, 'renderonline machine drain 1000 --reason "new disk at noon"')
def drain(client: Client, *, machine: MachineId, reason: Reason = "") -> Output:
    """Give the machine nothing new; what it renders goes on."""
    return client.admin.change_machine(machine, wish="draining", reason=reason), f"Machine {machine}: draining."


@command(commands, "renderonline machine disable 1000")
def disable(client: Client, *, machine: MachineId, reason: Reason = "") -> Output:
    """Take the machine out; what it renders goes to others."""
    return client.admin.change_machine(machine, wish="disabled", reason=reason), f"Machine {machine}: disabled."


@command(commands, "renderonline machine enable 1000")
def enable(client: Client, *, machine: MachineId) -> Output:
    """Give the machine work again."""
    return client.admin.change_machine(machine, wish="active", reason=""), f"Machine {machine}: active."


@command(commands, "renderonline machine rename 1000 big-box")
def rename(client: Client, *, machine: MachineId, name: Annotated[str, argument("NAME", "The new name.")]) -> Output:
    """Give the machine another name."""
    return client.admin.change_machine(machine, name=name), f"Machine {machine} is called {name}."


@command(commands, "renderonline machine remove 1000")
def remove(client: Client, *, machine: MachineId, yes: Yes = False, json: Json) -> Output:
    """Forget the machine; it must be invited again to come back."""
    confirm(f"Forget machine {machine}?", agreed=yes or json)
    client.admin.remove_machine(machine)
    return {"removed": machine}, f"Machine {machine} removed."


def split_address(text: str, port: int) -> tuple[str, int]:
    """`10.0.0.1`, `10.0.0.1:5001`, `[::1]:5001` as address and port."""
    match = re.fullmatch(r"\[([^]]+)\](?::(\d+))?|([^:]+)(?::(\d+))?|([^:]*:[^:]*:.*)", text)
    if match is None:
        raise InvalidRequest(f"{text} is no address; write it like 192.168.1.20:5001 .")
    bracketed, its_port, plain, plain_port, bare = match.groups()
    return bracketed or plain or bare, int(its_port or plain_port or port)


def _row(machine: Item) -> list[object]:
    offers = [f"{item['name']} {item.get('version', '')}".strip() for item in machine["engines"]]
    address = f"{machine['ip_address']}:{machine['port']}" if machine["ip_address"] else "linked"
    known = [machine[name] for name in ("machine_id", "name", "status", "slots")]
    return [*known, ", ".join(offers), address, machine["reason"]]
