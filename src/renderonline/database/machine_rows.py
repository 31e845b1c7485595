"""Machines, join codes and secrets. What a machine does right now is in RenderAPI's memory, not here.

v1 machines have an address and ids below 1000; linked machines have ids from 1000 (R1.1 Unique ids) and a secret.
Secrets and join codes are stored as hashes only.
"""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, func, select

from renderonline.database.schema import (
    LIVE_ATTEMPT,
    AnyRow,
    attempts,
    farm,
    from_row,
    join_codes,
    json_object,
    machines,
    refuse_unknown,
    the_row,
    update,
)
from renderonline.farm.errors import Conflict, InvalidRequest, NotAuthenticated
from renderonline.farm.machines import MOST_SLOTS, Wish, checked_address, checked_hours
from renderonline.farm.needs import checked_pool, checked_tags

_FIRST_LINKED: Final = 1000
_WRITTEN: Final[Mapping[str, Callable[[Any], str]]] = {
    "tags": lambda tags: " ".join(checked_tags(tags)),
    "pool": checked_pool,
    "hours": checked_hours,
}
_CODE_LETTERS: Final = "ABCDEFGHJKMNPQRSTVWXYZ23456789"
_CODE_GROUPS: Final = 3


@dataclass(frozen=True, slots=True)
class MachineRow:
    """A machine. `wish`: what its operator wants of it (active, draining, disabled); `instance`: the last program that
    connected with its secret; `last_seq`: the last report of that instance that was applied (R5.2 Outbox); `facts`: of
    its last hello; `benched_us`: since when it gets no work because chunks fail there (R1.5 Machine blame)."""

    machine_id: int
    ip_address: str
    port: int
    name: str
    secret_hash: str
    wish: str
    wish_reason: str
    instance: str
    last_seq: int
    facts: Mapping[str, Any] | None
    created_us: int
    seen_us: int
    benched_us: int
    bench_reason: str
    tags: str
    pool: str
    hours: str
    slots_allowed: int

    @property
    def settings(self) -> tuple[object, ...]:
        """Everything that people, or the farm, decided about it."""
        decided = (self.name, self.wish, self.wish_reason, self.benched_us)
        return *decided, self.tags, self.pool, self.hours, self.slots_allowed

    @property
    def is_linked(self) -> bool:
        """Whether it connects to RenderAPI; otherwise it is a v1 machine with an address."""
        return bool(self.secret_hash)


@dataclass(frozen=True, slots=True)
class JoinCode:
    """A join code (shown once, stored hashed): how many machines may use it, until when, and how many slots each of
    them may have (0: `farm.machines.slots_allowed`)."""

    code: str
    uses: int
    expires_us: int
    slots: int = 0


def list_machines(connection: Connection) -> tuple[MachineRow, ...]:
    """All machines by id."""
    return tuple(_machine(row) for row in connection.execute(select(machines).order_by(machines.c.machine_id)))


def get_machine(connection: Connection, machine_id: int) -> MachineRow:
    """One machine, or `NotFound`."""
    query = select(machines).where(machines.c.machine_id == machine_id)
    return _machine(the_row(connection, query, f"There is no machine {machine_id}."))


def add_v1(connection: Connection, ip_address: str, port: int, *, now_us: int) -> MachineRow:
    """Add a v1 machine. `Conflict` when the address is there already."""
    ip_address = checked_address(ip_address)
    if not 0 < port < 65536:
        raise InvalidRequest("A v1 machine has a port from 1 to 65535.")
    same = (machines.c.ip_address == ip_address) & (machines.c.port == port)
    if connection.scalar(select(func.count()).select_from(machines).where(same)):
        raise Conflict(f"There already is a machine at {ip_address}:{port}.")
    machine_id = _next_id(connection, is_linked=False)
    return _add(connection, machine_id, ip_address=ip_address, port=port, name=ip_address, created_us=now_us)


def change_machine(connection: Connection, machine_id: int, changes: Mapping[str, Any]) -> MachineRow:
    """Change some of wish, wish_reason, name, tags (list), pool, hours, slots_allowed."""
    get_machine(connection, machine_id)
    refuse_unknown(changes, {"wish", "wish_reason", "name", "slots_allowed", *_WRITTEN}, "a machine")
    _check_slots(changes.get("slots_allowed", 0))
    changes = {**changes, **{name: write(changes[name]) for name, write in _WRITTEN.items() if name in changes}}
    if any(len(changes[name]) > 255 for name in _WRITTEN if name in changes):
        raise InvalidRequest("A machine's tags and hours have at most 255 characters.")
    if changes.get("wish", Wish.ACTIVE) not in set(Wish):
        raise InvalidRequest(f"A machine's wish is one of {', '.join(sorted(Wish))}.")
    if len(changes.get("wish_reason", "")) > 255 or len(changes.get("name", "-")) not in range(1, 101):
        raise InvalidRequest("A machine's name has 1 to 100 characters, a reason at most 255.")
    unbench = {"benched_us": 0, "bench_reason": ""} if changes.get("wish") == "active" else {}
    update(connection, machines, machine_id, {**changes, **unbench})
    return get_machine(connection, machine_id)


def bench_machine(connection: Connection, machine_id: int, since_us: int, reason: str) -> None:
    """Give a machine no work any more because chunks fail there; 0 and "": give it work again."""
    update(connection, machines, machine_id, {"benched_us": since_us, "bench_reason": reason})


def remove_machine(connection: Connection, machine_id: int) -> None:
    """Remove a machine that has no live attempt; its secret is not accepted any more."""
    machine = get_machine(connection, machine_id)
    query = select(func.count()).select_from(attempts).where(LIVE_ATTEMPT, attempts.c.machine_id == machine_id)
    if connection.scalar(query):
        raise Conflict(f"Machine {machine.name or machine_id} has work. Drain it first, or cancel its tasks.")
    connection.execute(machines.delete().where(machines.c.machine_id == machine_id))


def hello(
    connection: Connection, machine_id: int, instance: str, facts: Mapping[str, Any], *, now_us: int
) -> MachineRow:
    """Store that a linked machine has connected. The reports of a new instance are numbered from 1 (R5.2 Outbox)."""
    values: dict[str, Any] = {"facts": json.dumps(facts), "seen_us": now_us}
    if get_machine(connection, machine_id).instance != instance:
        values |= {"instance": instance, "last_seq": 0}
    update(connection, machines, machine_id, values)
    return get_machine(connection, machine_id)


def invite(
    connection: Connection, *, uses: int, expires_us: int, created_by: int, now_us: int, slots: int = 0
) -> JoinCode:
    """Make a join code, and remove those that are expired or used up."""
    _check_slots(slots)
    if not 1 <= uses <= 10_000:
        raise InvalidRequest("A join code is good for 1 to 10,000 machines.")
    if expires_us <= now_us:
        raise InvalidRequest("A join code must end in the future.")
    connection.execute(join_codes.delete().where((join_codes.c.expires_us <= now_us) | (join_codes.c.uses_left < 1)))
    code = "-".join("".join(secrets.choice(_CODE_LETTERS) for _ in range(4)) for _ in range(_CODE_GROUPS))
    values = {"code_hash": _hash_code(code), "uses_left": uses, "expires_us": expires_us, "created_by": created_by}
    connection.execute(join_codes.insert(), {**values, "slots": slots})
    return JoinCode(code, uses, expires_us, slots)


def check_code(connection: Connection, code: str, *, now_us: int, lock: bool = False) -> AnyRow:
    """The row of a join code; `NotAuthenticated` unless a machine may join with it now. `lock`: and lock it."""
    query = select(join_codes).where(join_codes.c.code_hash == _hash_code(code))
    found = connection.execute(query.with_for_update() if lock else query).first()
    if found is None or found.expires_us <= now_us or found.uses_left < 1:
        raise NotAuthenticated("This join code is not valid any more. Ask for a new one: renderonline machine invite.")
    return found


def enroll(connection: Connection, code: str, name: str, secret: str, *, now_us: int) -> MachineRow:
    """Use a join code once: make a linked machine with this secret. `NotAuthenticated` when the code is unknown, used
    up or expired. Returns the same machine when it is run again with the same secret (R3.2 Repeatable operations)."""
    known = connection.execute(select(machines).where(machines.c.secret_hash == _hash(secret))).first()
    if known is not None:
        return _machine(known)
    found = check_code(connection, code, now_us=now_us, lock=True)
    if not name or len(name) > 100 or not name.isprintable():
        raise InvalidRequest("A machine's name has 1 to 100 printable characters.")
    update(connection, join_codes, found.code_hash, {"uses_left": found.uses_left - 1})
    machine_id = _next_id(connection, is_linked=True)
    values: dict[str, str | int] = {"name": name, "secret_hash": _hash(secret), "slots_allowed": found.slots}
    return _add(connection, machine_id, ip_address="", port=0, created_us=now_us, **values)


def _check_slots(slots: int) -> None:
    if not 0 <= slots <= MOST_SLOTS:
        raise InvalidRequest(f"A machine may have 1 to {MOST_SLOTS} slots, or 0: four, or its cores if fewer.")


def secret_matches(machine: MachineRow, secret: str) -> bool:
    """Whether this is the machine's secret, in constant time. v1 machines have none."""
    return bool(machine.secret_hash) and hmac.compare_digest(machine.secret_hash, _hash(secret))


def _add(connection: Connection, machine_id: int, **values: str | int) -> MachineRow:
    connection.execute(machines.insert().values(machine_id=machine_id, **values))
    return get_machine(connection, machine_id)


def _next_id(connection: Connection, *, is_linked: bool) -> int:
    """An id that no machine has or ever had."""
    key, first = ("next_linked_machine_id", _FIRST_LINKED) if is_linked else ("next_v1_machine_id", 1)
    same_kind = machines.c.machine_id >= _FIRST_LINKED if is_linked else machines.c.machine_id < _FIRST_LINKED
    here = farm.c.key == key
    counter = connection.scalar(select(farm.c.value).where(here).with_for_update())
    highest = connection.scalar(select(func.max(machines.c.machine_id)).where(same_kind))
    machine_id = max(int(counter or 0), int(highest or 0) + 1, first)
    if not is_linked and machine_id >= _FIRST_LINKED:
        raise Conflict("There is no number left for another v1 machine. Join it as a linked machine instead.")
    if counter is None:
        connection.execute(farm.insert().values(key=key, value=str(machine_id + 1)))
    else:
        connection.execute(farm.update().where(here).values(value=str(machine_id + 1)))
    return machine_id


def _hash_code(code: str) -> str:
    return _hash("".join(letter for letter in code.upper() if letter.isalnum()))


def _hash(text: str) -> str:
    # Secrets are 256 random bits and codes about 59 for a day: a plain hash does.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _machine(row: AnyRow) -> MachineRow:
    return from_row(MachineRow, row, facts=json_object(row.facts) or None)
