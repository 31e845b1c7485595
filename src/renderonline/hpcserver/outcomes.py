"""How an attempt ended, decided from all that is known of it. Pure.

An exit code alone is never believed: six engines return 0 on failure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from renderonline.engines.definition import ReadingRules
from renderonline.engines.reading import failure_of_exit
from renderonline.farm.tasks import Outcome
from renderonline.hpcserver.outputs import Bad

MAX_REASON: Final = 1_000


@dataclass(frozen=True, slots=True)
class Ending:
    """Outcome, failure class ("" when it succeeded or was canceled) and a reason in plain words."""

    outcome: Outcome
    failure: str = ""
    reason: str = ""


HANDED_BACK: Final = "handed_back"
"""Failure class of an attempt that the machine itself gives back unharmed: canceled, and nobody's fault."""
LOST_PROCESS: Final = "lost_process"
"""Failure class of an attempt whose process ended with HPCServer."""


def decide(
    *,
    code: int | None,
    rules: ReadingRules,
    failure: tuple[str, str] | None,
    bad: Sequence[Bad],
    out_of_memory: bool = False,
) -> Ending:
    """The ending of a process that ended by itself.

    `code` None: it was lost. `failure` is the first line that matched a failure pattern, with its class; `bad` the
    expected files that are no results; `out_of_memory`: the kernel ended processes for want of memory meanwhile.
    """
    if code is None:
        return _failed(LOST_PROCESS, "The process that starts engines ended, and the engine with it.")
    if code != 0:
        kind, line = failure or (_class_of(rules, code, out_of_memory=out_of_memory), "")
        return _failed(kind, _sentence(code) + (f": {line}" if line else "."))
    if failure is not None:
        return _failed(failure[0], failure[1])
    missing = [output for output in bad if output.missing]
    if missing:
        return _failed("missing_output", _first_of(missing, "The engine says that it succeeded, but "))
    if bad:
        return _failed("bad_output", _first_of(bad, ""))
    return Ending(Outcome.SUCCEEDED)


def _class_of(rules: ReadingRules, code: int, *, out_of_memory: bool) -> str:
    """SIGKILL is taken for the kernel's memory rescue only when there was one; anybody can send it."""
    kind = failure_of_exit(rules, code)
    by_kill = code in {-9, 137} and not {"-9", "137"} & set(rules.exit_codes)
    return "crash" if kind == "out_of_memory" and by_kill and not out_of_memory else kind


def _failed(failure: str, reason: str) -> Ending:
    return Ending(Outcome.FAILED, failure, reason[:MAX_REASON])


def _sentence(code: int) -> str:
    return f"The engine was ended by signal {-code}" if code < 0 else f"The engine ended with exit code {code}"


def _first_of(bad: Sequence[Bad], start: str) -> str:
    more = f" ({len(bad) - 1} more)" if len(bad) > 1 else ""
    return f"{start}{bad[0].reason}{more}"
