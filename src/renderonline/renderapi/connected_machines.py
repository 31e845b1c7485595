"""Machines as the dispatcher sees them now: who is reachable, what they offer, what occupies their slots."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Final, Protocol

import structlog

from renderonline.database.door import Database
from renderonline.database.machine_rows import MachineRow, bench_machine
from renderonline.database.report_rows import EndedAttempt
from renderonline.farm.machines import (
    Card,
    CardLoad,
    MachineStatus,
    Wish,
    is_open,
    machine_status,
    slots_allowed,
)
from renderonline.farm.needs import NOTHING, Ability, BoxAdvice, Needs, box_of, lacks_box
from renderonline.farm.scheduling import AHEAD, Allowance, FreeSlots, Policy, card_demands
from renderonline.farm.settling import FINAL_FAILURES, NO_RENDER_ENGINE, NOT_STARTED, Blame, may_bench
from renderonline.farm.tasks import Outcome
from renderonline.protocol.link import from_wire
from renderonline.renderapi.memory import BackgroundWork, Clocks, LiveAttempt
from renderonline.renderapi.orders import Order

_log = structlog.get_logger(__name__)

REJECTED_S: Final = 60.0
"""How often the log names a machine whose messages are rejected."""
_QUEUES_SINCE: Final = 2
"""The protocol from which on a machine gets more assignments than it has slots."""
_WISHES: Final = frozenset(Wish)
_SHOWN: Final[Mapping[str, Any]] = {
    **dict.fromkeys(("version", "platform"), ""),
    **dict.fromkeys(("cpu_count", "memory_mib", "memory_free_mib", "disk_free_mib"), 0),
    "gpus": (),
    "load": 0.0,
}
"""What of a machine's facts and load an operator is shown, and what stands for it when it is not known."""


class MachineLink(Protocol):
    """How a machine is spoken to. Nothing here waits: what can't be sent is sorted out when the machine is back."""

    def assign(self, order: Order) -> None:
        """Have it run this; its lease is committed."""

    def cancel(self, attempt_id: int, reason: str) -> None:
        """Have it end this attempt."""

    def close(self, reason: str) -> None:
        """End the connection."""


@dataclass(slots=True, eq=False)
class Machine:
    """One machine. `occupied` are the attempts that may still have a process there, also ones that are over for us,
    and what they need; `offers` engine -> version, `claimed`: how many
    slots it says it has; `full` why it takes nothing; `closed` that these are not its hours; `given` counts what the
    farm gave, for taking turns."""

    row: MachineRow
    link: MachineLink | None = None
    offers: Mapping[str, str] = field(default_factory=dict)
    claimed: int = 1
    occupied: dict[int, Needs] = field(default_factory=dict)
    full: str = ""
    closed: bool = False
    pool_box: str = ""
    """The box that its pool requires, "" for none."""
    heard: float | None = None
    """When something was read from it, in awake seconds (`farm.machines.AwakeClock`)."""
    load: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(init=False)
    given: int = 0
    fetches: int = 0
    fetched_bytes: int = 0
    """How often, and how much, it fetched of tasks' files."""
    moved: float = 0.0
    """When bytes of files last moved between the farm and it, in awake seconds."""
    rejected: int = 0
    """Messages for attempts that are not its own, or gone."""
    quiet_until: float = 0.0
    """When the log may name it for that again (monotonic)."""
    ability: Ability = field(init=False)
    """What it can take: what it said itself, and what people say of it. Made anew by `Machines.note`."""

    def __post_init__(self) -> None:
        self.facts = self.row.facts or {}
        self.claimed = self.facts.get("slots", self.claimed)
        self.describe()

    @property
    def machine_id(self) -> int:
        return self.row.machine_id

    @property
    def name(self) -> str:
        return self.row.name or self.row.ip_address or f"machine {self.machine_id}"

    @property
    def wish(self) -> Wish:
        return Wish(self.row.wish) if self.row.wish in _WISHES else Wish.DISABLED

    @property
    def reachable(self) -> bool:
        return self.link is not None

    @property
    def status(self) -> MachineStatus:
        return machine_status(self.wish, reachable=self.reachable, occupied=len(self.occupied))

    @property
    def hindrance(self) -> str:
        """What keeps it from taking assignments that nobody wished; "" when nothing does."""
        if self.row.benched_us:
            return self.row.bench_reason or "benched"
        if missing := self.lacks_box(NOTHING):
            return f"its pool requires a box: {missing}"
        return f"it takes work {self.row.hours} only" if self.closed else self.full

    @property
    def refuses(self) -> str:
        """Why it takes no assignments, room or not; "" when it does."""
        wanted = self.reachable and self.wish is Wish.ACTIVE
        return self.hindrance if wanted else f"{self.status.value}: {self.row.wish_reason}".removesuffix(": ")

    @property
    def slots_allowed(self) -> int:
        """How many slots it may have."""
        return slots_allowed(self.row.slots_allowed, int(self.facts.get("cpu_count", 0)))

    @property
    def slots(self) -> int:
        """How many attempts it gets at once: what it says, as far as it may."""
        return max(0, min(self.claimed, self.slots_allowed))

    @property
    def free(self) -> int:
        return max(0, self.places[0])

    @property
    def places(self) -> tuple[int, int]:
        """How many slots are free, and how many assignments it may get beyond its slots when none is
        (R9.1 Work ahead): none where its own slots are not those that it may have."""
        if self.refuses:
            return 0, 0
        free = self.slots - len(self.occupied)
        queues = self.claimed == self.slots and self.facts.get("protocol", 0) >= _QUEUES_SINCE
        return free, max(0, free + AHEAD * self.slots) if queues and free <= 0 else 0

    def held_ahead(self, attempts: Iterable["LiveAttempt"]) -> Sequence["LiveAttempt"]:
        """Which of its live attempts (the oldest first) wait there for a slot, as far as its reports say."""
        waiting = [one for one in attempts if not one.running and one.attempt_id in self.occupied]
        in_slots = max(0, self.slots - (len(self.occupied) - len(waiting)))
        return [attempt for attempt in waiting[in_slots:] if attempt.leased]

    @property
    def room(self) -> FreeSlots:
        """What it has free now."""
        return self._room(self.free)

    @property
    def room_ahead(self) -> FreeSlots:
        """What it may get beyond its slots."""
        return self._room(self.places[1])

    def _room(self, count: int) -> FreeSlots:
        used = self.occupied.values()
        demands = tuple(mib for one in used for mib in card_demands(one))
        memory_mib, gpus = sum(one.memory_mib for one in used), sum(one.gpus for one in used)
        return FreeSlots(self.ability, count, memory_mib, gpus, demands)

    @property
    def cards(self) -> list[dict[str, Any]]:
        """Its graphics cards and how they are doing, as it says itself."""
        now = {one["id"]: one for one in self.load.get("cards", ()) if isinstance(one, Mapping) and "id" in one}
        said = [one for one in self.facts.get("cards", ()) if isinstance(one, Mapping)]
        cards = [from_wire(Card, {**one, "unusable": now.get(one["id"], one).get("unusable", "")}) for one in said]
        loads = [from_wire(CardLoad, now.get(card.id, {"id": card.id})) for card in cards]
        return [
            {**asdict(card), "usable": not card.unusable, "load": load.load if load.load >= 0 else None,
             "memory_used_mib": load.memory_used_mib}
            for card, load in zip(cards, loads, strict=True)
        ]  # fmt: skip

    def lacks_box(self, needs: Needs) -> str:
        """Why it may not get work with these needs for want of a box; "" when it may."""
        has = self.ability.sandbox
        return lacks_box(has, self.pool_box) or lacks_box(has, needs.sandbox)

    @property
    def box_advice(self) -> str:
        """What gets a better box there; "" when there is none, or nothing is known."""
        if not self.row.is_linked:
            return "let it join as a linked machine: renderonline machine invite"
        if self.facts and not self.facts.get("sandbox"):
            return "update it: pip install --upgrade renderonline"
        advice = self.facts.get("sandbox_advice", "")
        return advice if advice in set(BoxAdvice) else "on it, renderonline node --check says what" if advice else ""

    def describe(self) -> None:
        usable = [card for card in self.cards if card["usable"]]
        sizes = sorted(((card["kind"], card["memory_mib"]) for card in usable), key=lambda one: -one[1])
        self.ability = Ability(
            self.machine_id,
            tuple(sorted((name.casefold(), version) for name, version in self.offers.items())),
            self.row.is_linked,
            frozenset(tag.casefold() for tag in (*self.facts.get("tags", ()), *self.row.tags.split())),
            self.row.pool,
            self.facts.get("memory_mib", 0),
            len(usable) if self.facts.get("cards") else len(self.facts.get("gpus", ())),
            box_of(self.facts.get("sandbox", "") if self.row.is_linked else ""),
            renderers=frozenset((name, one) for name, found in renderers_said(self).items() for one in found),
            cards=tuple(sizes),
        )

    @property
    def known_ability(self) -> Ability:
        """What it can take, also while it is away."""
        return self.ability if self.offers else self.ability._replace(engines=tuple(sorted(offered(self).items())))

    def offer(self, engines: Mapping[str, str], slots: int) -> None:
        """What it says it can do: engine name -> version, and how many attempts at once."""
        self.offers = engines
        self.claimed = slots

    def view(self) -> dict[str, Any]:
        """What an operator is shown."""
        known = {**self.facts, **self.load}
        return {
            "machine_id": self.machine_id,
            "name": self.name,
            "kind": "linked" if self.row.is_linked else "v1",
            "ip_address": self.row.ip_address,
            "port": self.row.port,
            "status": self.status.value,
            "wish": self.wish.value,
            "benched": bool(self.row.benched_us),
            "reason": self.row.wish_reason or self.hindrance,
            "engines": [
                {"name": name, "version": version, "renderers": renderers_said(self).get(name.casefold(), ())}
                for name, version in sorted(self.offers.items())
            ],
            "slots": self.slots,
            "slots_claimed": self.claimed,
            "slots_allowed": self.slots_allowed,
            "attempts": sorted(self.occupied),
            "tags": sorted(self.ability.tags),
            "own_tags": sorted(self.ability.tags - {tag.casefold() for tag in self.row.tags.split()}),
            "pool": self.row.pool,
            "hours": self.row.hours,
            "cards": self.cards,
            "sandbox": self.ability.sandbox.value,
            "sandbox_advice": self.box_advice,
            "input_downloads": self.fetches,
            "input_bytes": self.fetched_bytes,
            **{name: known.get(name, unknown) for name, unknown in _SHOWN.items()},
        }


def offered(machine: Machine) -> Mapping[str, str]:
    """Its engines (case-folded) and their versions; of one that is away what it said last."""
    said = [one for one in machine.facts.get("engines", ()) if isinstance(one, Mapping)]
    offers = machine.offers or {str(one.get("name")): str(one.get("version", "")) for one in said}
    return {name.casefold(): version for name, version in offers.items()}


def renderers_said(machine: Machine) -> Mapping[str, tuple[str, ...]]:
    """What each of its engines (case-folded) can render with, as it said last; those that did not say are left out."""
    said = [one for one in machine.facts.get("engines", ()) if isinstance(one, Mapping)]
    return {str(one.get("name")).casefold(): tuple(found) for one in said if (found := one.get("renderers"))}


class Machines:
    """All machines of the farm. `changed` is called after every change of a machine; `boxes` are those that pools
    require."""

    def __init__(self, changed: Callable[[Machine], None], clocks: Clocks, boxes: Mapping[str, str]) -> None:
        self._changed, self._clocks, self._boxes = changed, clocks, boxes
        self._all: dict[int, Machine] = {}
        self._room: set[int] = set()
        self._room_ahead: set[int] = set()
        self._crowded: set[int] = set()
        self._policy: Policy | None = None
        self._users: Mapping[int, Allowance] = {}
        self._given = 0

    def __iter__(self) -> Iterator[Machine]:
        return iter(list(self._all.values()))

    def get(self, machine_id: int) -> Machine | None:
        return self._all.get(machine_id)

    def heard(self, machine: Machine) -> None:
        """Something was read from a machine just now."""
        machine.heard = self._clocks.awake()

    def moved(self, machine_id: int) -> None:
        """Bytes of an attempt's files move to or from this machine just now. For any thread."""
        if (machine := self.get(machine_id)) is not None:
            machine.moved = self._clocks.awake()

    def reject(self, machine: Machine, attempt_id: int) -> None:
        """A machine spoke for an attempt that is not its own, or that is gone: that has no effect
        (R14 Authority first). The log says so once in a while."""
        machine.rejected += 1
        now = self._clocks.monotonic()
        if now >= machine.quiet_until:
            machine.quiet_until = now + REJECTED_S
            _log.warning("A machine speaks for attempts that are gone or not its own", machine_id=machine.machine_id,
                         name=machine.name, attempt=attempt_id, messages=machine.rejected)  # fmt: skip

    def update_row(self, row: MachineRow) -> Machine:
        """Take over what the database says of a machine, which may be new."""
        known = self._all.get(row.machine_id)
        machine = known or self._all.setdefault(row.machine_id, Machine(row))
        before = known and (known.row.settings, known.closed)
        machine.row = row
        machine.closed = bool(row.hours) and not is_open(row.hours, self._clocks.now().local)
        machine.pool_box = self._boxes.get(row.pool, "")
        if before != (row.settings, machine.closed):
            self.note(machine)
        return machine

    def update(self, rows: Iterable[MachineRow], users: Mapping[int, Allowance]) -> tuple[Machine, ...]:
        """Take over what the database says of all machines, and what users may have of the farm; gives the machines
        that are no longer there."""
        present = {self.update_row(row).machine_id for row in rows}
        gone = tuple(machine for machine_id, machine in self._all.items() if machine_id not in present)
        for machine in gone:
            del self._all[machine.machine_id]
            for known in (self._room, self._room_ahead, self._crowded):
                known.discard(machine.machine_id)
        if gone or users != self._users:
            self._users, self._policy = users, None
        return gone

    def note(self, machine: Machine) -> None:
        """The machine came, went, or takes other things than before."""
        self._policy = None
        machine.describe()
        self._room_changed(machine, None)

    def occupy(self, machine: Machine, attempt_id: int, needs: Needs) -> None:
        """An attempt goes to the machine."""
        was = machine.status
        self._given += 1
        machine.given = self._given
        machine.occupied[attempt_id] = needs
        self._room_changed(machine, was)

    def release(self, machine_id: int, attempt_id: int) -> bool:
        """An attempt has no process there any more; whether that made room."""
        machine = self._all.get(machine_id)
        if machine is None or attempt_id not in machine.occupied:
            return False
        was = machine.status
        del machine.occupied[attempt_id]
        self._room_changed(machine, was)
        return True

    def cancel(self, machine_id: int, attempt_id: int, reason: str) -> None:
        """Have a machine end an attempt; one that is away gets it when it is back."""
        if (machine := self._all.get(machine_id)) is not None and machine.link is not None:
            machine.link.cancel(attempt_id, reason)

    @property
    def policy(self) -> Policy:
        """What holds for the whole farm now."""
        if self._policy is None:
            self._policy = Policy.of((m.ability for m in self._all.values() if not m.refuses), self._users)
        return self._policy

    def free_slots(self) -> list[FreeSlots]:
        """Room, the machine that was given something longest ago first; those with graphics cards come last, so that
        they are free for what needs one."""
        there = (self._all[machine_id] for machine_id in self._room)
        roomy = sorted(there, key=lambda machine: (machine.ability.gpus > 0, machine.given))
        return [machine.room for machine in roomy]

    def rooms_ahead(self) -> list[FreeSlots]:
        """What machines without free slots may get beyond them, in the same order (R9.1 Work ahead)."""
        there = (self._all[machine_id] for machine_id in self._room_ahead)
        return [machine.room_ahead for machine in sorted(there, key=lambda one: (one.ability.gpus > 0, one.given))]

    def crowded(self) -> list[Machine]:
        """The machines that have more attempts than slots."""
        return [self._all[machine_id] for machine_id in self._crowded]

    def _room_changed(self, machine: Machine, was: MachineStatus | None) -> None:
        (free, ahead), crowded = machine.places, len(machine.occupied) - machine.slots
        if self._all.get(machine.machine_id) is not machine:
            free = ahead = crowded = 0
        for known, count in ((self._room, free), (self._room_ahead, ahead), (self._crowded, crowded)):
            if count > 0:
                known.add(machine.machine_id)
            else:
                known.discard(machine.machine_id)
        if machine.status is not was:
            self._changed(machine)


class Benching:
    """Looks at every end of an attempt: a machine on which chunks fail gets nothing for a while (R1.5 Machine blame).
    The rules are `farm.blame`'s. What is held against machines lives in memory; who is benched is in the database."""

    def __init__(
        self, database: Database, machines: Machines, background: BackgroundWork, clocks: Clocks, *, bench_s: float
    ) -> None:
        self._database, self._machines, self._background, self._clocks = database, machines, background, clocks
        self.bench_s = bench_s
        self._blame = Blame()
        self._benched: set[int] = set()

    def observe(self, ended: Iterable[EndedAttempt]) -> None:
        """These ends are committed."""
        for attempt, chunk, verdict in ended:
            machine_id = attempt.machine_id
            if verdict.counts and verdict.failure not in {*FINAL_FAILURES, NO_RENDER_ENGINE}:
                self._bench(machine_id, self._blame.failed(machine_id, chunk.task_id, chunk.chunk_id))
            elif verdict.failure == NOT_STARTED:
                self._bench(machine_id, self._blame.not_started(machine_id, chunk.task_id))
            elif attempt.outcome is Outcome.SUCCEEDED:
                for other, reason in self._blame.succeeded(machine_id, chunk.chunk_id).items():
                    self._bench(other, reason)

    def started(self, machine_id: int) -> None:
        """A machine has started what it was given."""
        self._blame.started(machine_id)

    def _bench(self, machine_id: int, reason: str) -> None:
        machine = self._machines.get(machine_id)
        if not reason or machine is None or machine.row.benched_us:
            return
        active = [one for one in self._machines if one.row.wish == Wish.ACTIVE]
        there = [one for one in active if one.reachable or one.row.benched_us or one is machine]
        may = may_bench(len(there), sum(one.row.benched_us > 0 for one in there))
        _log.warning("A machine fails", machine_id=machine_id, name=machine.name, why=reason, benched=may)
        if may:
            self._set(machine, self._clocks.now().us, f"benched: {reason}")

    def _set(self, machine: Machine, since_us: int, reason: str) -> None:
        """Memory first, so that the next one counts it."""
        self._machines.update_row(replace(machine.row, benched_us=since_us, bench_reason=reason))
        operation = partial(bench_machine, machine_id=machine.machine_id, since_us=since_us, reason=reason)
        _ = self._background.spawn(self._database.write(operation))
        self._background.wake()

    def follow(self) -> None:
        """Machines that were benched long enough are tried again; nothing is held against those that somebody enabled.
        A time that lies in the future was written by a clock that went wrong (R1.3 Silence)."""
        now_us, longest_us = self._clocks.now().us, self.bench_s * 1e6
        for machine in self._machines:
            since_us = machine.row.benched_us
            if since_us and 0 <= now_us - since_us < longest_us:
                self._benched.add(machine.machine_id)
            elif since_us:
                self._benched.discard(machine.machine_id)
                self._set(machine, 0, "")
            elif machine.machine_id in self._benched:
                self._benched.discard(machine.machine_id)
                self._blame.forgive(machine.machine_id)
