"""Machines as the farm's memory keeps them, and their secrets. What a machine does right now is in memory, not here.

Machines of the existing system have an address and ids below 1000; linked machines have ids from 1000 (R1.1 Unique ids)
and a secret.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select

from renderonline.database.schema import AnyRow, json_object, machines, update, updating
from renderonline.database.statements import portions
from renderonline.farm.errors import NotFound
from renderonline.farm.machines import Wish


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


_NAMES: Final = tuple(field.name for field in fields(MachineRow))
_MACHINE_COLUMNS: Final = [machines.c[name] for name in _NAMES]
_ALL_MACHINES: Final = select(*_MACHINE_COLUMNS).order_by(machines.c.machine_id)
_MACHINES: Final = _ALL_MACHINES.where(machines.c.machine_id.in_(bindparam("ids", expanding=True)))
_DECIDED: Final = tuple(name for name in _NAMES if name not in {"facts", "last_seq", "seen_us"})
"""What people or the farm decided of a machine; the rest is what its program said last."""
_DECIDED_COLUMNS: Final = select(*(machines.c[name] for name in _DECIDED)).order_by(machines.c.machine_id)
_decided: Final = attrgetter(*_DECIDED)


def list_machines(connection: Connection) -> tuple[MachineRow, ...]:
    """All machines by id."""
    return tuple(map(_machine, connection.execute(_ALL_MACHINES)))


def refresh_machines(connection: Connection, known: Mapping[int, MachineRow]) -> list[MachineRow]:
    """All machines by id. A machine of which nothing else was decided than is `known` is the same object: of a thousand
    machines few change, and what each says of itself need not be read again."""
    rows = connection.execute(_DECIDED_COLUMNS).all()
    found = {row.machine_id: known[row.machine_id] for row in rows if _is_known(row, known)}
    for part in portions([row.machine_id for row in rows if row.machine_id not in found]):
        changed = map(_machine, connection.execute(_MACHINES, {"ids": part}))
        found |= {machine.machine_id: machine for machine in changed}
    return [found[row.machine_id] for row in rows]


def _is_known(row: AnyRow, known: Mapping[int, MachineRow]) -> bool:
    machine = known.get(row.machine_id)
    return machine is not None and _decided(machine) == tuple(row)


def get_machine(connection: Connection, machine_id: int) -> MachineRow:
    """One machine, or `NotFound`."""
    row = connection.execute(_MACHINES, {"ids": [machine_id]}).first()
    if row is None:
        raise NotFound(f"There is no machine {machine_id}.")
    return _machine(row)


def bench_machine(connection: Connection, machine_id: int, since_us: int, reason: str) -> None:
    """Assign no work to a machine any more because chunks fail there; 0 and "": assign it work again."""
    update(connection, machines, machine_id, {"benched_us": since_us, "bench_reason": reason})


def disable_machine(connection: Connection, machine_id: int, reason: str) -> MachineRow:
    """Have a machine do nothing until an operator wishes otherwise."""
    update(connection, machines, machine_id, {"wish": Wish.DISABLED.value, "wish_reason": reason})
    return get_machine(connection, machine_id)


_HELLO: Final = updating(machines, ("facts", "instance", "last_seq", "seen_us"))


def hello(
    connection: Connection, machine_id: int, instance: str, facts: Mapping[str, Any], *, now_us: int
) -> MachineRow:
    """Store that a linked machine has connected. The reports of a new instance are numbered from 1 (R5.2 Outbox)."""
    machine = get_machine(connection, machine_id)
    last_seq = machine.last_seq if machine.instance == instance else 0
    machine = replace(machine, facts=facts, instance=instance, last_seq=last_seq, seen_us=now_us)
    values = {"instance": instance, "last_seq": last_seq, "seen_us": now_us}
    connection.execute(_HELLO, {"key": machine_id, "facts": json.dumps(facts), **values})
    return machine


def secret_matches(machine: MachineRow, secret: str) -> bool:
    """Whether this is the machine's secret, in constant time. v1 machines have none."""
    return bool(machine.secret_hash) and hmac.compare_digest(machine.secret_hash, secret_hash(secret))


def secret_hash(text: str) -> str:
    """The hash that is stored of a machine's secret or of a join code."""
    # Secrets are 256 random bits and codes about 59 for a day: a plain hash does.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _machine(row: Sequence[Any]) -> MachineRow:
    values = dict(zip(_NAMES, row, strict=True))
    return MachineRow(**{**values, "facts": json_object(values["facts"]) or None})
