"""Work ahead: while the chunks of a task are short, machines hold a few assignments more than they have slots, so
that no slot waits for a round trip (R9.1 Work ahead).

Nobody marks such an assignment. A machine starts its assignments in their order, so those beyond its slots are the ones
that it holds ahead; each that ends moves the others up.
"""

from collections.abc import Callable, Sequence
from typing import Final

from renderonline.farm.scheduling import Assignment, next_classes, plan
from renderonline.renderapi.connected_machines import Machine, Machines
from renderonline.renderapi.memory import BackgroundWork, Clocks, LiveAttempt, Memory
from renderonline.renderapi.reports import Reports

LONGEST_S: Final = 5.0
"""What waits for a slot longer than this goes back: the chunks before it are not short."""
_LOOK_S: Final = 0.05

Why = Callable[[Machine, LiveAttempt], str]


class WorkAhead:
    """What machines get beyond their slots, and what of it is taken back."""

    def __init__(
        self, memory: Memory, machines: Machines, reports: Reports, background: BackgroundWork, clocks: Clocks
    ) -> None:
        self._memory, self._machines, self._reports = memory, machines, reports
        self._background, self._clocks = background, clocks
        self._since: dict[int, float] = {}
        """Since when an attempt was seen to be held ahead (awake seconds)."""
        self._going: set[int] = set()
        self._looked = 0.0

    def plan(self) -> list[Assignment]:
        """What machines get beyond their slots now, when everything that fits into slots is planned."""
        memory = self._memory
        if not memory.short or not len(memory.index):
            return []
        rooms = [room for room in self._machines.rooms_ahead() if room.ability.machine_id not in memory.reserved]
        return plan(memory.index, rooms, memory.usage, self._machines.policy, ahead=True) if rooms else []

    def follow(self) -> float | None:
        """Begin to take back what is to be held no more. Returns when to look again (monotonic), or None."""
        now, crowded = self._clocks.awake(), self._machines.crowded()
        if not crowded:
            return None
        if now < self._looked + _LOOK_S:
            return self._clocks.monotonic() + _LOOK_S
        self._looked = now
        machines = [machine for machine in crowded if machine.row.is_linked and machine.reachable]
        held = [
            (machine, attempt)
            for machine in machines
            for attempt in machine.held_ahead(self._memory.attempts_on(machine.machine_id))
        ]
        ids = {attempt.attempt_id for _, attempt in held}
        self._since = {attempt_id: self._since.get(attempt_id, now) for attempt_id in ids}
        if not held:
            return None
        why = self._why(machines, now)
        stays = [(machine, attempt) for machine, attempt in held if attempt.attempt_id not in self._going]
        back = [(attempt, reason) for machine, attempt in stays if (reason := why(machine, attempt))]
        if back:
            _ = self._background.spawn(self._take_back(back))
        return self._clocks.monotonic() + max(_LOOK_S, min(self._since.values()) + LONGEST_S - now)

    async def _take_back(self, back: Sequence[tuple[LiveAttempt, str]]) -> None:
        ids = {attempt.attempt_id for attempt, _ in back}
        self._going |= ids
        try:
            await self._reports.take_back(back)
        finally:
            self._going -= ids

    def _why(self, machines: list[Machine], now: float) -> Why:
        """Gives why an attempt is to be held no more, "" when it stays."""
        memory = self._memory
        index, highest = memory.index, memory.index.highest_class
        following: dict[int, int] | None = None

        def outranked(machine: Machine, priority: int) -> bool:
            nonlocal following
            if highest is None or highest <= priority:
                return False
            if following is None:
                rooms = [one.room_ahead for one in machines]
                following = next_classes(index, rooms, memory.usage, self._machines.policy)
            return following.get(machine.machine_id, priority) > priority

        def why(machine: Machine, attempt: LiveAttempt) -> str:
            task = memory.tasks.get(attempt.task_id)
            if machine.refuses:
                return "its machine takes no work now"
            if not attempt.film and (task is None or not task.may_start):
                return "its task starts nothing now"
            if now - self._since[attempt.attempt_id] >= LONGEST_S:
                memory.took(attempt.task_id, None)
                return f"its machine had no slot for it within {LONGEST_S:g} s"
            return "something of a higher class waits" if task and outranked(machine, task.priority) else ""

        return why
