"""How an attempt ended, decided from all that is known of it. Pure.

An exit code alone is never believed: six engines return 0 on failure.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from renderonline.engines.definition import ReadingRules
from renderonline.engines.reading import failure_of_exit
from renderonline.farm import telling
from renderonline.farm.settling import EXIT_WORDS
from renderonline.farm.tasks import Outcome
from renderonline.hpcserver.outputs import Bad
from renderonline.protocol.link import Exited

MACHINES_FAILURES: Final = frozenset({"machine", "no_engine", "no_input", "no_space", "lost_process"})
"""Classes that blame the machine."""
SIGXFSZ: Final = 25
SIGNALED: Final = 128
"""Exit codes above it are signals, as shells write them."""
MAX_REASON: Final = 1_000


class Ending(NamedTuple):
    """Outcome, failure class ("" when it succeeded or was canceled) and a reason in plain words."""

    outcome: Outcome
    failure: str = ""
    reason: str = ""

    def because(self, sentences: Sequence[str]) -> "Ending":
        """The same with what explains it."""
        return self._replace(reason=" ".join((self.reason, *sentences))[:MAX_REASON])

    def report(
        self,
        attempt: int,
        token: str,
        *,
        exit_code: int | None = None,
        peak_memory_mib: int = 0,
        warnings: Iterable[str] = (),
    ) -> Exited:
        known = (self.outcome, exit_code, self.failure, self.reason, peak_memory_mib)
        told = telling.joined((), warnings, telling.MOST_OF_ATTEMPT)
        return Exited(0, attempt, token, time.time_ns() // 1000, *known, told)


def failed(failure: str, reason: str) -> Ending:
    return Ending(Outcome.FAILED, failure, reason[:MAX_REASON])


def handed_back(reason: str) -> Ending:
    """This machine can't go on with it; somebody else may, and nobody failed."""
    return Ending(Outcome.CANCELED, "handed_back", reason)


LOST: Final = failed("lost_process", "HPCServer, or its process that starts engines, ended, and the engine with it.")


def decide(
    *,
    code: int | None,
    rules: ReadingRules,
    failure: tuple[str, str] | None,
    bad: Sequence[Bad],
    reason: str = "",
    out_of_memory: bool = False,
    disk_full: bool = True,
) -> Ending:
    """The ending of a process that ended by itself. `code` None: it was lost. `failure` is the first line that matched
    a failure pattern, with its class, `reason` why the engine says that it ends; `bad` the expected files that are no
    results; `out_of_memory`: the kernel ended processes for want of memory meanwhile; `disk_full`: whether the disk has
    so little room that it may have been full. What an engine prints, its scene may have printed: only what the machine
    itself sees is its failure."""
    if code is None:
        return LOST
    if failure is not None and failure[0] in MACHINES_FAILURES and not (failure[0] == "no_space" and disk_full):
        failure = ("error", failure[1])
    if code == -SIGXFSZ:
        kind = "no_space" if disk_full else "bad_output"
        return failed(kind, "The engine wrote a file larger than what its disk has free.")
    if code != 0:
        how = f"The engine was ended by signal {-code}" if code < 0 else f"{EXIT_WORDS} {code}"
        kind, line = failure or (failure_of_exit(rules, code), "")
        killed = code in {-9, 137} and not {"-9", "137"} & set(rules.exit_codes)
        if failure is None and killed and not out_of_memory:
            kind = "crash"  # anybody can send SIGKILL, not only a kernel without memory
        if 0 < code < SIGNALED and (told := reason or line):  # a program that ended by itself says why, if anybody does
            return failed(kind, told)
        return failed(kind, f"{how}: {line}" if line else f"{how}.")
    if failure is not None:
        return failed(*failure)
    worst = [output for output in bad if output.missing] or bad
    if not worst:
        return Ending(Outcome.SUCCEEDED)
    why = worst[0].reason + (f" ({len(worst) - 1} more)" if len(worst) > 1 else "")
    if worst[0].missing:
        return failed("missing_output", f"The engine says that it succeeded, but {why}")
    return failed("bad_output", why)
