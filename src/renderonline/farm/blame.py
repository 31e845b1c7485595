"""Whose fault it is when chunks fail on a machine: the chunks' or the machine's (R1.5 Machine blame)."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

MOST_FAILURES: Final = 3
"""So many failures that count against a machine, or so many different tasks that failed there, bench it; also so many
of which it started nothing."""
BENCHED_SHARE: Final = 4
"""Of so many machines the farm benches at most one by itself."""
_KEPT: Final = 100


@dataclass(slots=True)
class _Failure:
    """A chunk that failed on a machine. `counts`: it succeeded elsewhere, so it was the machine."""

    task_id: int
    counts: bool = False


class Blame:
    """Remembers what failed on each machine since something succeeded there last."""

    def __init__(self) -> None:
        self._failures: dict[int, dict[int, _Failure]] = defaultdict(dict)
        self._untouched: dict[int, set[int]] = defaultdict(set)

    def failed(self, machine_id: int, task_id: int, chunk_id: int) -> str:
        """A chunk failed on a machine; gives why the machine is to be benched, or ""."""
        failures = self._failures[machine_id]
        failures[chunk_id] = _Failure(task_id)
        if len(failures) > _KEPT:
            del failures[next(iter(failures))]
        return self._verdict(machine_id)

    def succeeded(self, machine_id: int, chunk_id: int) -> dict[int, str]:
        """A chunk succeeded on a machine: that one is well; gives the others that are to be benched, and why."""
        self.forgive(machine_id)
        others = [other for other, failures in self._failures.items() if chunk_id in failures]
        for other in others:
            self._failures[other][chunk_id].counts = True
        return {other: reason for other in others if (reason := self._verdict(other))}

    def not_started(self, machine_id: int, task_id: int) -> str:
        """A machine did nothing with a chunk that it was given; gives why it is to be benched, or "". The tasks count,
        so that one that is hard to begin does not bench a machine."""
        tasks = self._untouched[machine_id]
        if len(tasks) < MOST_FAILURES:
            tasks.add(task_id)
        return f"it started nothing of {len(tasks)} tasks in a row" if len(tasks) >= MOST_FAILURES else ""

    def started(self, machine_id: int) -> None:
        """A machine has started a chunk."""
        self._untouched.pop(machine_id, None)

    def forgive(self, machine_id: int) -> None:
        """Nothing is held against this machine any more."""
        self._failures.pop(machine_id, None)
        self._untouched.pop(machine_id, None)

    def _verdict(self, machine_id: int) -> str:
        failures = self._failures[machine_id].values()
        counted, tasks = sum(one.counts for one in failures), len({one.task_id for one in failures})
        if tasks >= MOST_FAILURES:
            return f"parts of {tasks} tasks failed there and none succeeded in between"
        return f"{counted} parts failed there that succeeded elsewhere" if counted >= MOST_FAILURES else ""


def may_bench(machines: int, benched: int) -> bool:
    """Whether the farm may bench another one of so many machines by itself, so many of which are benched already."""
    return (benched + 1) * BENCHED_SHARE <= machines
