"""The end of an attempt and its consequences: whether the chunk is done, tried again or failed for good (`settle`,
R1.4 Retries, R5.5 Late results), whether the machine is to blame (`Blame`, R1.5 Machine blame), and when the farm ends
an attempt itself (`Patience`).

A machine ends an attempt at its time limit, and it alone detects stalls. `Patience` limits how long a machine that does
not do so, or that lies, can hold a chunk (R14 Authority first). All times are awake seconds
(`farm.machines.AwakeClock`).
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
"""Failure class: the machine accepted the chunk and did not start it. The chunk is not to blame."""
NOT_BEGUN: Final = "not_begun"
"""Failure class: the machine was lost while the chunk waited there for a slot (R9.1 Work ahead). It costs no try until
it has happened on as many machines as a chunk may take down: perhaps the chunk had begun, and does that."""
OVERTIME: Final = "overtime"
"""Failure class: the machine did not end the attempt at its time limit."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the farm waits for a machine, in seconds.

    `start_s`: while it neither reports `started` nor transfers files; `fetch_s`: while it only fetches files; `end_s`:
    beyond time limit and grace, for the end of an attempt; `sending_s`: the same while its files still arrive.
    """

    start_s: float = 60.0
    fetch_s: float = 6 * 3600.0
    end_s: float = 60.0
    sending_s: float = 3600.0

    def not_started(self, now: float, assigned: float, moved: float) -> bool:
        """Return whether an assignment without `started` is taken back. `moved`: when a file transfer with this machine
        last made progress."""
        return now - max(assigned, moved) >= self.start_s or now - assigned >= self.fetch_s

    def overtime(self, now: float, started: float, moved: float, *, limit_s: float) -> bool:
        """Return whether the farm ends a running attempt. `limit_s`: its time limit and grace; 0: none."""
        over = now - started - limit_s
        return limit_s > 0 and over >= (self.end_s if now - moved >= self.end_s else self.sending_s)


def waits_for_slot(place: int, *, running: int, slots: int) -> bool:
    """Return whether the assignment at this `place` (from 0, oldest first) of a machine waits for a slot, while
    `running` of the machine's `slots` are occupied."""
    return running > 0 and place >= slots - running


MOST_FAILURES: Final = 3
"""A machine is benched after this number of failures that count against it, of different tasks that failed there, or of
tasks of which it started nothing."""
BENCHED_SHARE: Final = 4
"""The farm itself benches at most one of this number of machines."""
_KEPT: Final = 100


@dataclass(slots=True)
class _Failure:
    """A chunk that failed on a machine. `counts`: it succeeded elsewhere, so the machine is to blame."""

    task_id: int
    counts: bool = False


class Blame:
    """The failures on each machine since something last succeeded there."""

    def __init__(self) -> None:
        self._failures: dict[int, dict[int, _Failure]] = defaultdict(dict)
        self._untouched: dict[int, set[int]] = defaultdict(set)

    def failed(self, machine_id: int, task_id: int, chunk_id: int) -> str:
        """Note that a chunk failed on a machine; return why the machine is to be benched, or ""."""
        failures = self._failures[machine_id]
        failures[chunk_id] = _Failure(task_id)
        if len(failures) > _KEPT:
            del failures[next(iter(failures))]
        return self._verdict(machine_id)

    def succeeded(self, machine_id: int, chunk_id: int) -> dict[int, str]:
        """Note that a chunk succeeded on a machine, which clears the machine's failures. Return the machines to bench
        where the chunk had failed, and why."""
        self.forgive(machine_id)
        others = [other for other, failures in self._failures.items() if chunk_id in failures]
        for other in others:
            self._failures[other][chunk_id].counts = True
        return {other: reason for other in others if (reason := self._verdict(other))}

    def not_started(self, machine_id: int, task_id: int) -> str:
        """Note that a machine did not start a chunk; return why it is to be benched, or "". It counts tasks instead of
        chunks, so that one task that is hard to start does not bench a machine."""
        tasks = self._untouched[machine_id]
        if len(tasks) < MOST_FAILURES:
            tasks.add(task_id)
        return f"it started nothing of {len(tasks)} tasks in a row" if len(tasks) >= MOST_FAILURES else ""

    def started(self, machine_id: int) -> None:
        """Note that a machine started a chunk."""
        self._untouched.pop(machine_id, None)

    def forgive(self, machine_id: int) -> None:
        """Forget all failures of this machine."""
        self._failures.pop(machine_id, None)
        self._untouched.pop(machine_id, None)

    def _verdict(self, machine_id: int) -> str:
        failures = self._failures[machine_id].values()
        counted, tasks = sum(failure.counts for failure in failures), len({failure.task_id for failure in failures})
        if tasks >= MOST_FAILURES:
            return f"parts of {tasks} tasks failed there and none succeeded in between"
        return f"{counted} parts failed there that succeeded elsewhere" if counted >= MOST_FAILURES else ""


def may_bench(machines: int, benched: int) -> bool:
    """Return whether the farm itself may bench another of its `machines`, of which `benched` are benched already."""
    return (benched + 1) * BENCHED_SHARE <= machines


FINAL_FAILURES: Final = frozenset({"scene", "arguments", "command", "film", "too_many_processes"})
"""Failure classes that would be the same on every machine: no second try."""
OUT_OF_MEMORY: Final = "out_of_memory"
NO_RENDER_ENGINE: Final = "no_render_engine"
"""The engine lacks the add-on that the scene renders with. Another machine may have it, and none is to blame."""
LOST_PROCESS: Final = "lost_process"
"""HPCServer ended, and the engine with it. It costs no try until it happens `MOST_LOST_PROCESSES` times in a row."""
MOST_NO_DEVICE: Final = 16
"""After this number of failed cards on one machine the next costs a try, because the machine keeps offering them."""
MOST_LOST_PROCESSES: Final = 10
"""After HPCServer has ended this number of times in a row the chunk has failed: it may be the cause."""
HANDED_BACK_S: Final = 1.0
"""How long a chunk waits that its machine handed back."""

_NO_TRY: Final = frozenset({LOST_PROCESS, NO_DEVICE, NO_RENDER_ENGINE, NOT_BEGUN})
"""Failures that do not count as a try of the chunk."""

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
"""Advice for failures where another try does not help."""
EXIT_WORDS: Final = "The engine ended with exit code"
"""The beginning of a machine's own reason where the engine printed none."""
_SELF_EXPLAINING: Final = frozenset({"scene", "arguments"})
"""Failure classes in which the engine's own sentence is shown alone."""
_OUTCOME_WORDS: Final[Mapping[Outcome, str]] = {
    Outcome.FAILED: "The engine failed",
    Outcome.TIMED_OUT: "The time limit was reached",
    Outcome.STALLED: "The engine gave no sign of life",
    Outcome.LOST: "The machine did not answer any more",
}


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a chunk is tried again, and when the farm gives up (R1.4 Retries, R1.5 Machine blame).

    `base_s`, `cap_s`: first and longest backoff in seconds. `max_kills`: a chunk has failed for good when it was lost
    or out of memory on this number of machines. A task stops when `stop_chunks` or `stop_share` of its chunks,
    whichever is more, have failed for good. `bench_s`: seconds after which a benched machine is tried again.
    """

    max_tries: int = 3
    base_s: float = 5.0
    cap_s: float = 300.0
    max_kills: int = 2
    stop_chunks: int = 10
    stop_share: float = 0.2
    bench_s: float = 600.0

    def stops(self, failed: int, chunks: int) -> bool:
        """Return whether a task stops early when `failed` of its `chunks` have failed for good."""
        return failed >= max(self.stop_chunks, math.ceil(self.stop_share * chunks))


@dataclass(frozen=True, slots=True)
class Ending:
    """How an attempt ended, as reported by the machine. `given_back`: it never really ran, so nothing counts."""

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
        return self.outcome not in (Outcome.CANCELED, Outcome.SUCCEEDED) and self.failure not in _NO_TRY

    @property
    def kills(self) -> bool:
        """Whether it may have brought its machine down."""
        return self.outcome is Outcome.LOST or self.failure == OUT_OF_MEMORY


@dataclass(frozen=True, slots=True)
class Verdict:
    """The next state of the chunk and the outcome of the attempt. `counts`: it was a try; `delay_s`: the seconds after
    which the chunk may start again."""

    chunk: ChunkState
    outcome: Outcome
    failure: str = ""
    counts: bool = False
    delay_s: float = 0.0
    reason: str = ""


def backoff(tries: int, policy: RetryPolicy, fraction: float) -> float:
    """Return the seconds until the next try after `tries` failures: exponential with full jitter, where `fraction` is a
    random number in [0, 1)."""
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
    """Decide what follows from the end of an attempt on a machine.

    `tries`: the failures counted before; `named`: whether the engine's outputs have known names; `missing`: the chunk's
    expected files that have not landed; `before`: how its other attempts ended, the latest first.
    """
    if ending.given_back:
        return Verdict(ChunkState.WAITING, Outcome.CANCELED, ending.failure, reason=ending.reason)
    if ending.outcome is Outcome.CANCELED:  # its machine stops, or never began
        return Verdict(ChunkState.WAITING, Outcome.CANCELED, delay_s=HANDED_BACK_S, reason=ending.reason)
    ending = _perhaps_begun(ending, before, policy)
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
    since = [tried for tried in before if tried.counts][:tries]  # earlier ones were forgiven by a retry
    killed = {tried.machine_id for tried in (this, *since) if tried.kills}
    if this.kills and len(killed) >= policy.max_kills:
        return replace(failed, reason=f"{failed.reason} (lost or out of memory on {len(killed)} machines)")
    if tries + 1 >= policy.max_tries:
        return replace(failed, reason=f"{failed.reason} (tried {tries + 1} times)")
    return replace(failed, chunk=ChunkState.WAITING, delay_s=backoff(tries + 1, policy, fraction))


def _perhaps_begun(ending: Ending, before: Sequence[Tried], policy: RetryPolicy) -> Ending:
    """A chunk that waited for a slot on as many machines that were lost as it may take down is lost like any other from
    then on."""
    waited_on = {tried.machine_id for tried in before if tried.failure == NOT_BEGUN}
    lost = ending.failure == NOT_BEGUN and len(waited_on) >= policy.max_kills
    return replace(ending, failure="") if lost else ending


def _counts(ending: Ending, machine_id: int, before: Sequence[Tried]) -> bool:
    """Whether a failure that another try may cure counts as a try of the chunk."""
    if ending.failure == LOST_PROCESS:
        in_a_row = sum(1 for _ in takewhile(lambda tried: tried.failure == LOST_PROCESS, before))
        return in_a_row + 1 >= MOST_LOST_PROCESSES
    if ending.failure == NO_DEVICE:  # its machine stops offering that card
        here = sum(tried.failure == NO_DEVICE and tried.machine_id == machine_id for tried in before)
        return here + 1 >= MOST_NO_DEVICE
    if ending.failure == NOT_BEGUN:
        return False
    if ending.failure == NO_RENDER_ENGINE:  # a chunk comes back only when no other machine can take it (R9 Scheduling)
        return machine_id in _lacking(before)
    return True


def _lacking(before: Sequence[Tried]) -> frozenset[int]:
    """The machines known to lack the scene's render engine. When one of them fails so a second time, the chunk fails
    for good, and a retry by the user starts with none."""
    found = frozenset[int]()
    for tried in reversed(before):
        if tried.failure == NO_RENDER_ENGINE:
            found = frozenset() if tried.machine_id in found else found | {tried.machine_id}
    return found


def plain_reason(ending: Ending) -> str:
    """Return what went wrong as one sentence without a full stop: the engine's own sentence if it printed one, such as
    "The scene has no camera"."""
    reason = ending.reason.removeprefix("Error: ").removeprefix("Warning: ")
    if ending.failure in _SELF_EXPLAINING and reason[:1].isupper() and not reason.startswith(EXIT_WORDS):
        return reason.rstrip(".")
    words = _WORDS.get(ending.failure) or _OUTCOME_WORDS.get(ending.outcome, "The attempt ended")
    if ending.outcome is Outcome.FAILED and not ending.failure and ending.exit_code is not None:
        words = f"{words} with exit code {ending.exit_code}"
    return f"{words}: {reason}" if reason else words


def advice(failure: str, task_id: int) -> str:
    """Return advice for a task that failed for good; `failure`: the class of the attempt that decided it, or ""."""
    text = _ADVICE.get(failure)
    if text is None:
        return f"Try it again with: renderonline retry {task_id}."
    return f"{text} The engine's log: renderonline logs {task_id}"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
