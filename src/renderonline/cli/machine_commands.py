"""`renderonline machine …`: the computers of the farm."""

import re
from collections import defaultdict
from collections.abc import Iterable

from renderonline.cli import terminal
from renderonline.cli.terminal import YES, Output, argument, command, confirm, find, given, group, option
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.machines import hours_in_words
from renderonline.rnoclient.sdk import Client, Item

commands = group("The computers of the farm.")
MACHINE = argument("MACHINE", "The machine's number or name.")
SLOTS_HELP = "Chunks at once that it may have; 0: four, or its cores if fewer."
REASON = option("TEXT", "Why; shown to everybody who looks at the machine.", default="")
COLUMNS: terminal.Columns = {
    ">MACHINE": "machine_id",
    "NAME": "name",
    "STATUS": "status",
    ">SLOTS": "slots",
    "BOX": "sandbox",
    "ENGINES": lambda machine: ", ".join(f"{item['name']} {item['version']}".strip() for item in machine["engines"]),
    "ADDRESS": lambda machine: f"{machine['ip_address']}:{machine['port']}" if machine["ip_address"] else "linked",
    "REASON": "reason",
}


@command(
    commands,
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


@command(commands, "renderonline machine list", name="list")
def list_machines(client: Client) -> Output:
    """List the machines and what they do."""
    found = client.admin.machines()
    if not found:
        return found, "No machines. Let one join: renderonline machine invite"

    def print_it() -> None:
        terminal.table(COLUMNS, found)
        for machine in found:
            if cards := machine.get("cards"):
                terminal.say(f"Cards of {machine['name']}: {'; '.join(map(_card, cards))}.")
        for note in filter(None, map(_more_slots, found)):
            terminal.note(note)
        for advice, names in better_boxes(found).items():
            terminal.note(f"A better box around the engines of {', '.join(names)}: {advice}")

    return found, print_it


@command(commands, "renderonline machine show 1000", name="show")
def show_machine(client: Client, *, machine: str = MACHINE) -> Output:
    """Show everything about a machine."""
    _, found = find(client, "machine", machine)
    return found, lambda: terminal.print_fields(found, list(found))


@command(commands, "renderonline machine add 192.168.1.20 --port 5001")
def add(
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


@command(commands, 'renderonline machine drain 1000 --reason "new disk at noon"')
def drain(client: Client, *, machine: str = MACHINE, reason: str = REASON) -> Output:
    """Give the machine nothing new; what it renders goes on."""
    return _changed(client, machine, wish="draining", reason=reason)


@command(commands, "renderonline machine restart 1000")
def restart(client: Client, *, machine: str = MACHINE) -> Output:
    """Have its program end after its work; its service starts it again, perhaps a newer version."""
    client.admin.restart_machine(find(client, "machine", machine)[0])
    return {"restarting": machine}, f"Machine {machine} finishes what it renders and ends."


@command(commands, "renderonline machine disable 1000")
def disable(client: Client, *, machine: str = MACHINE, reason: str = REASON) -> Output:
    """Take the machine out; what it renders goes to others."""
    return _changed(client, machine, wish="disabled", reason=reason)


@command(commands, "renderonline machine enable 1000")
def enable(client: Client, *, machine: str = MACHINE) -> Output:
    """Give the machine work again, also when it is benched."""
    return _changed(client, machine, wish="active", reason="")


@command(
    commands,
    'renderonline machine set big-box --tags "gpu fast" --pool film',
    'renderonline machine set 1000 --hours "Mon-Fri 18:00-08:00, Sat, Sun"',
    'renderonline machine set 1000 --pool "" --hours ""',
    "renderonline machine set big-box --slots 16",
    name="set",
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
    return _changed(client, machine, **given(tags=words, pool=pool, hours=hours, slots_allowed=slots))


@command(commands, "renderonline machine rename 1000 big-box")
def rename(client: Client, *, machine: str = MACHINE, name: str = argument("NAME", "The new name.")) -> Output:
    """Give the machine another name."""
    return _changed(client, machine, name=name)


@command(commands, "renderonline machine remove 1000")
def remove(client: Client, *, machine: str = MACHINE, yes: bool = YES, json: bool) -> Output:
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


def better_boxes(machines: Iterable[Item]) -> dict[str, list[str]]:
    """Return how to get better boxes around engines -> the names of the machines where that helps."""
    found: dict[str, list[str]] = defaultdict(list)
    for machine in machines:
        if advice := machine.get("sandbox_advice"):
            found[str(advice)].append(str(machine["name"]))
    return found


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


def _changed(client: Client, wanted: str, **changes: object) -> Output:
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
