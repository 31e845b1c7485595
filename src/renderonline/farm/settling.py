"""What the farm itself watches of an attempt, so that a machine that lies can't hold a chunk for ever
(R14 Authority first).

A machine ends an attempt at its time limit, and it alone judges stalls (R1.4 Retries); these rules bound one that does
not. All times are awake seconds (`farm.machines.AwakeClock`).

Whose fault it is when chunks fail on a machine: the chunks' or the machine's (R1.5 Machine blame).

What follows from the end of an attempt: is the chunk done, tried again, or failed for good (R1.4 Retries,
R5.5 Late results).
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, NamedTuple

from renderonline.farm.machines import NO_DEVICE
from renderonline.farm.tasks import ChunkState, Outcome

NOT_STARTED: Final = "not_started"
"""Failure class: the machine took the chunk and did nothing with it. The chunk is not to blame."""
OVERTIME: Final = "overtime"
"""Failure class: the machine did not end it at its time limit."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the farm waits, in seconds.

    `start_s`: for a machine that shows neither `started` nor bytes of files on their way; `fetch_s`: for one that only
    ever fetches files; `end_s`: beyond time limit and grace, for the end of an attempt; `sending_s`: the same while its
    files still come in.
    """

    start_s: float = 60.0
    fetch_s: float = 6 * 3600.0
    end_s: float = 60.0
    sending_s: float = 3600.0

    def not_started(self, now: float, assigned: float, moved: float) -> bool:
        """Whether an assignment without `started` is taken back. `moved`: when bytes of files last moved between the
        farm and this machine."""
        return now - max(assigned, moved) >= self.start_s or now - assigned >= self.fetch_s

    def overtime(self, now: float, started: float, moved: float, *, limit_s: float) -> bool:
        """Whether the farm ends an attempt that runs. `limit_s`: its time limit and grace; 0: it has none."""
        over = now - started - limit_s
        return limit_s > 0 and over >= (self.end_s if now - moved >= self.end_s else self.sending_s)


def waits_for_slot(place: int, *, running: int, slots: int) -> bool:
    """Whether the assignment at this `place` (from 0, oldest first) of a machine waits for a slot that another attempt
    of the machine holds: so many of them run."""
    return running > 0 and place >= slots - running


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


FINAL_FAILURES: Final = frozenset({"scene", "arguments", "command", "film", "too_many_processes"})
"""Failure classes that every other machine would see as well: no second try."""
OUT_OF_MEMORY: Final = "out_of_memory"
NO_RENDER_ENGINE: Final = "no_render_engine"
"""The engine lacks the add-on that the scene renders with; another machine's may have it, and none is to blame."""
LOST_PROCESS: Final = "lost_process"
"""HPCServer ended, and the engine with it: nobody's failure, until it happens again and again."""
MOST_NO_DEVICE: Final = 16
"""So often a chunk may meet cards that do not work on one machine and cost no try: then the machine does not learn."""
MOST_LOST_PROCESSES: Final = 10
"""A chunk that ends HPCServer so often without another end in between has failed: perhaps it is the cause."""
HANDED_BACK_S: Final = 1.0
"""How long a chunk waits that its machine handed back of its own accord."""

_NOBODYS: Final = frozenset({LOST_PROCESS, NO_DEVICE, NO_RENDER_ENGINE})
"""Failures that are no try of the chunk."""

_WORDS: Final[Mapping[str, str]] = {
    "scene": "The scene can't be rendered",
    "arguments": "The engine does not take these arguments",
    "film": "The film can't be made",
    LOST_PROCESS: "The program on the machine ended",
    NO_DEVICE: "The engine found no graphics card that it can use",
    "command": "The engine's command can't be written",
    "crash": "The engine crashed",
    OUT_OF_MEMORY: "The engine ran out of memory",
    "missing_output": "The engine ended without writing every file",
    "bad_output": "The engine wrote a file that can't be read",
    "too_many_processes": "The engine started too many processes",
    "no_engine": "The machine does not have the engine",
    NO_RENDER_ENGINE: "The machine's Blender lacks what the scene renders with",
    "no_input": "The machine can't read the scene file",
    "no_space": "The machine's disk is full",
    OVERTIME: "The machine did not end it at its time limit",
}
_ADVICE: Final[Mapping[str, str]] = {
    "scene": "Correct the scene and submit it again.",
    "arguments": "Correct the arguments and submit it again.",
    NO_RENDER_ENGINE: "Set up a Blender that has it, or submit it with another engine: --arg engine=CYCLES.",
    "command": "An administrator has to correct the engine's definition: renderonline engine.",
}
"""Of failures that another try does not help."""
EXIT_WORDS: Final = "The engine ended with exit code"
"""How a machine says it where the engine said nothing."""
_SPEAKS: Final = frozenset({"scene", "arguments"})
"""Classes in which a whole sentence of the engine is all that people need to read."""
_OUTCOME_WORDS: Final[Mapping[Outcome, str]] = {
    Outcome.FAILED: "The engine failed",
    Outcome.TIMED_OUT: "The time limit was reached",
    Outcome.STALLED: "The engine gave no sign of life",
    Outcome.LOST: "The machine did not answer any more",
}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a chunk is tried again, and when the farm gives up (R1.4 Retries, R1.5 Machine blame).

    `max_kills`: a chunk that was lost or out of memory on so many machines has failed for good. A task stops when
    `stop_chunks` or `stop_share` of its chunks, whichever is more, have failed for good. `bench_s`: seconds after which
    a benched machine is tried again.
    """

    max_tries: int = 3
    base_s: float = 5.0
    cap_s: float = 300.0
    max_kills: int = 2
    stop_chunks: int = 10
    stop_share: float = 0.2
    bench_s: float = 600.0

    def stops(self, failed: int, chunks: int) -> bool:
        """Whether a task stops early of whose `chunks` so many have failed for good."""
        return failed >= max(self.stop_chunks, math.ceil(self.stop_share * chunks))


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, as it was reported. `given_back`: it never really ran; nothing counts."""

    outcome: Outcome
    failure: str = ""
    reason: str = ""
    exit_code: int | None = None
    given_back: bool = False


class Tried(NamedTuple):
    """How another attempt of the chunk ended."""

    machine_id: int
    outcome: Outcome
    failure: str = ""

    @property
    def counts(self) -> bool:
        """Whether it was one of the chunk's tries."""
        return self.outcome not in (Outcome.CANCELED, Outcome.SUCCEEDED) and self.failure not in _NOBODYS

    @property
    def kills(self) -> bool:
        """Whether it may have taken its machine with it."""
        return self.outcome is Outcome.LOST or self.failure == OUT_OF_MEMORY


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the chunk and of the attempt. `counts`: it was a try; `delay_s`: when it may start again."""

    chunk: ChunkState
    outcome: Outcome
    failure: str = ""
    counts: bool = False
    delay_s: float = 0.0
    reason: str = ""


def backoff(tries: int, policy: RetryPolicy, fraction: float) -> float:
    """Seconds until the next try after `tries` failures: full jitter, `fraction` is a random number in [0, 1)."""
    return fraction * min(policy.cap_s, policy.base_s * 2.0 ** min(max(tries - 1, 0), 30))


def settle(
    ending: Ending,
    *,
    tries: int,
    named: bool,
    missing: Sequence[str],
    fraction: float,
    policy: RetryPolicy = RetryPolicy(),
    machine_id: int = 0,
    before: Sequence[Tried] = (),
) -> Verdict:
    """The verdict on an attempt's end on a machine.

    `tries` are the failures counted before, `named` says whether the engine names its outputs, `missing` which of
    the chunk's expected files have not landed. `before`: how its other attempts ended, the latest first.
    """
    if ending.given_back:
        return Verdict(ChunkState.WAITING, Outcome.CANCELED, ending.failure, reason=ending.reason)
    if ending.outcome is Outcome.CANCELED:  # its machine stops, or never began
        return Verdict(ChunkState.WAITING, Outcome.CANCELED, delay_s=HANDED_BACK_S, reason=ending.reason)
    complete = named and not missing and ending.failure not in FINAL_FAILURES
    if ending.outcome is Outcome.SUCCEEDED and missing:
        ending = Ending(Outcome.FAILED, "missing_output", f"missing: {_listed(missing)}", ending.exit_code)
    if ending.outcome is Outcome.SUCCEEDED or complete:
        return Verdict(ChunkState.SUCCEEDED, ending.outcome, ending.failure, reason=ending.reason)
    failed = Verdict(ChunkState.FAILED, ending.outcome, ending.failure, counts=True, reason=plain_reason(ending))
    if ending.failure in FINAL_FAILURES:
        return failed
    if not _counts(ending, machine_id, before):
        return replace(failed, chunk=ChunkState.WAITING, counts=False, delay_s=HANDED_BACK_S)
    if ending.failure == NO_RENDER_ENGINE:
        return replace(failed, reason=f"{failed.reason} (and no other machine is left)")
    this = Tried(machine_id, ending.outcome, ending.failure)
    since = [one for one in before if one.counts][:tries]  # what came earlier was forgiven by a retry
    killed = {one.machine_id for one in (this, *since) if one.kills}
    if this.kills and len(killed) >= policy.max_kills:
        return replace(failed, reason=f"{failed.reason} (lost or out of memory on {len(killed)} machines)")
    if tries + 1 >= policy.max_tries:
        return replace(failed, reason=f"{failed.reason} (tried {tries + 1} times)")
    return replace(failed, chunk=ChunkState.WAITING, delay_s=backoff(tries + 1, policy, fraction))


def _counts(ending: Ending, machine_id: int, before: Sequence[Tried]) -> bool:
    """Whether a failure that another try may cure is one of the chunk's tries."""
    if ending.failure == LOST_PROCESS:
        in_a_row = sum(1 for _ in takewhile(lambda one: one.failure == LOST_PROCESS, before))
        return in_a_row + 1 >= MOST_LOST_PROCESSES
    if ending.failure == NO_DEVICE:  # its machine gives that card to nobody any more
        here = sum(1 for one in before if one.failure == NO_DEVICE and one.machine_id == machine_id)
        return here + 1 >= MOST_NO_DEVICE
    if ending.failure == NO_RENDER_ENGINE:  # a chunk comes back only when no other machine can take it (R9 Scheduling)
        return machine_id in _lacking(before)
    return True


def _lacking(before: Sequence[Tried]) -> frozenset[int]:
    """Machines without the scene's render engine, since the chunk last failed for want of it: a retry begins anew."""
    found = frozenset[int]()
    for one in reversed(before):
        if one.failure == NO_RENDER_ENGINE:
            found = frozenset() if one.machine_id in found else found | {one.machine_id}
    return found


def plain_reason(ending: Ending) -> str:
    """What went wrong, in one sentence without a full stop: the engine's own where it said one, such as "The scene has
    no camera"."""
    reason = ending.reason.removeprefix("Error: ").removeprefix("Warning: ")
    if ending.failure in _SPEAKS and reason[:1].isupper() and not reason.startswith(EXIT_WORDS):
        return reason.rstrip(".")
    words = _WORDS.get(ending.failure) or _OUTCOME_WORDS.get(ending.outcome, "The attempt ended")
    if ending.outcome is Outcome.FAILED and not ending.failure and ending.exit_code is not None:
        words = f"{words} with exit code {ending.exit_code}"
    return f"{words}: {reason}" if reason else words


def advice(failure: str, task_id: int) -> str:
    """What helps a task that failed for good; `failure`: the class of the attempt that decided it, "" if none did."""
    again = f"Try it again with: renderonline retry {task_id}"
    what = _ADVICE.get(failure)
    return f"{what} What the engine wrote: renderonline logs {task_id}" if what else f"{again}."


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
