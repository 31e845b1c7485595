"""Machines as the dispatcher sees them now: who is reachable, what they offer, what occupies their slots."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

from renderonline.database.machines import MachineRow
from renderonline.farm.machines import MachineStatus, Wish, machine_status
from renderonline.farm.scheduling import Ability, FreeSlots, Policy
from renderonline.renderapi.orders import Order

MOST_SLOTS: Final = 1024
_WISHES: Final = frozenset(Wish)


class MachineLink(Protocol):
    """How a machine is spoken to. Nothing here waits: what can't be sent is sorted out when the machine is back."""

    def assign(self, order: Order) -> None:
        """Have it run this; its lease is committed."""

    def cancel(self, attempt_id: int, reason: str) -> None:
        """Have it end this attempt."""

    def close(self, reason: str) -> None:
        """End the connection."""


class Machine:
    """One machine. `occupied` are the attempts that may still have a process there, also ones that are over for us."""

    __slots__ = (
        "_row",
        "engines",
        "facts",
        "full",
        "given",
        "heard",
        "link",
        "load",
        "occupied",
        "offers",
        "slots",
        "wish",
    )

    def __init__(self, row: MachineRow) -> None:
        self.row = row  # sets `wish` too
        self.link: MachineLink | None = None
        self.engines: frozenset[str] = frozenset()
        self.offers: Mapping[str, str] = {}
        self.slots = 1
        self.occupied: set[int] = set()
        self.full = ""
        self.heard: float | None = None
        """When something was read from it, in awake seconds (`farm.machines.AwakeClock`)."""
        self.load: Mapping[str, Any] = {}
        self.facts: Mapping[str, Any] = row.facts or {}
        self.given = 0

    @property
    def machine_id(self) -> int:
        return self.row.machine_id

    @property
    def name(self) -> str:
        return self.row.name or self.row.ip_address or f"machine {self.machine_id}"

    @property
    def row(self) -> MachineRow:
        """What the database says of it."""
        return self._row

    @row.setter
    def row(self, row: MachineRow) -> None:
        self._row = row
        self.wish = Wish(row.wish) if row.wish in _WISHES else Wish.DISABLED

    @property
    def reachable(self) -> bool:
        return self.link is not None

    @property
    def status(self) -> MachineStatus:
        return machine_status(self.wish, reachable=self.reachable, occupied=len(self.occupied))

    @property
    def takes(self) -> bool:
        """Whether it takes assignments when it has room."""
        return self.reachable and self.wish is Wish.ACTIVE and not self.full

    @property
    def free(self) -> int:
        return max(0, self.slots - len(self.occupied)) if self.takes else 0

    @property
    def ability(self) -> Ability:
        return Ability(self.machine_id, self.engines, self.row.is_linked)

    def offer(self, engines: Mapping[str, str], slots: int) -> None:
        """What it says it can do: engine name -> version, and how many attempts at once."""
        self.offers = engines
        self.engines = frozenset(name.casefold() for name in engines)
        self.slots = max(0, min(slots, MOST_SLOTS))

    def view(self) -> dict[str, Any]:
        """What an operator is shown."""
        facts = self.facts
        return {
            "machine_id": self.machine_id,
            "name": self.name,
            "kind": "linked" if self.row.is_linked else "v1",
            "ip_address": self.row.ip_address,
            "port": self.row.port,
            "status": self.status.value,
            "wish": self.wish.value,
            "reason": self.row.wish_reason or self.full,
            "engines": [{"name": name, "version": version} for name, version in sorted(self.offers.items())],
            "slots": self.slots,
            "attempts": sorted(self.occupied),
            "version": facts.get("version", ""),
            "platform": facts.get("platform", ""),
            "cpu_count": facts.get("cpu_count", 0),
            "memory_mib": facts.get("memory_mib", 0),
            "gpus": list(facts.get("gpus", ())),
            "tags": list(facts.get("tags", ())),
            "load": self.load.get("load", 0.0),
            "memory_free_mib": self.load.get("memory_free_mib", 0),
            "disk_free_mib": self.load.get("disk_free_mib", facts.get("disk_free_mib", 0)),
        }


class Machines:
    """All machines of the farm. `changed` is called after every change of a machine."""

    def __init__(self, changed: Callable[[Machine], None]) -> None:
        self._changed = changed
        self._all: dict[int, Machine] = {}
        self._room: set[int] = set()
        self._policy: Policy | None = None
        self._shares: Mapping[int, int] = {}
        self._given = 0

    def __iter__(self) -> Iterator[Machine]:
        return iter(list(self._all.values()))

    def get(self, machine_id: int) -> Machine | None:
        """A machine by id."""
        return self._all.get(machine_id)

    def add(self, row: MachineRow) -> Machine:
        """A machine that was not known: its row is new."""
        machine = self._all[row.machine_id] = Machine(row)
        self.note(machine)
        return machine

    def update_rows(self, rows: Iterable[MachineRow]) -> tuple[Machine, ...]:
        """Take over what the database says; gives the machines that are no longer in it."""
        seen = set()
        for row in rows:
            seen.add(row.machine_id)
            machine = self._all.get(row.machine_id)
            if machine is None:
                self.add(row)
            elif (machine.row.wish, machine.row.name, machine.row.wish_reason) != (
                row.wish,
                row.name,
                row.wish_reason,
            ):
                machine.row = row
                self.note(machine)
            else:
                machine.row = row
        gone = tuple(machine for machine_id, machine in self._all.items() if machine_id not in seen)
        for machine in gone:
            del self._all[machine.machine_id]
            self._room.discard(machine.machine_id)
            self._policy = None
        return gone

    def update_shares(self, shares: Mapping[int, int]) -> None:
        """The users' shares of the farm."""
        if shares != self._shares:
            self._shares, self._policy = shares, None

    def note(self, machine: Machine) -> None:
        """The machine came, went, or takes other things than before."""
        self._policy = None
        self._room_of(machine)
        self._changed(machine)

    def occupy(self, machine: Machine, attempt_id: int) -> None:
        """An attempt goes to the machine."""
        was = machine.status
        self._given += 1
        machine.given = self._given
        machine.occupied.add(attempt_id)
        self._room_of(machine)
        if machine.status is not was:
            self._changed(machine)

    def release(self, machine: Machine, attempt_id: int) -> bool:
        """An attempt has no process there any more; whether that made room."""
        was = machine.status
        if attempt_id not in machine.occupied:
            return False
        machine.occupied.discard(attempt_id)
        self._room_of(machine)
        if machine.status is not was:
            self._changed(machine)
        return True

    @property
    def policy(self) -> Policy:
        """What holds for the whole farm now."""
        if self._policy is None:
            self._policy = Policy.of((m.ability for m in self._all.values() if m.takes), self._shares)
        return self._policy

    def free_slots(self) -> list[FreeSlots]:
        """Room, the machine that was given something longest ago first."""
        roomy = sorted((self._all[machine_id] for machine_id in self._room), key=lambda machine: machine.given)
        return [FreeSlots(machine.ability, machine.free) for machine in roomy]

    def _room_of(self, machine: Machine) -> None:
        if machine.free and self._all.get(machine.machine_id) is machine:
            self._room.add(machine.machine_id)
        else:
            self._room.discard(machine.machine_id)
