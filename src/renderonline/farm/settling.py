"""What follows from the end of an attempt: is the chunk done, tried again, or failed for good (R1.4 Retries,
R5.5 Late results)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final, NamedTuple

from renderonline.farm.cards import NO_DEVICE
from renderonline.farm.tasks import ChunkState, Outcome
from renderonline.farm.watching import OVERTIME

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
