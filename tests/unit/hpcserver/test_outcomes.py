"""How attempts end."""

import pytest

from renderonline.engines.definition import ReadingRules
from renderonline.farm.tasks import Outcome
from renderonline.hpcserver.outputs import MAX_REASON, Bad, decide

RULES = ReadingRules(exit_codes={"3": "scene", "137": "license"})
MISSING = Bad("f.png", "f.png was not written.", missing=True)
BROKEN = Bad("g.png", "g.png is not a whole picture: x")


@pytest.mark.parametrize(
    ("code", "failure", "bad", "kind", "reason"),
    [
        (None, None, [], "lost_process", "ended"),
        (3, None, [], "scene", "exit code 3."),
        (1, None, [], "error", "exit code 1."),
        (1, ("scene", "Error: no camera"), [], "scene", "Error: no camera"),
        (-11, None, [], "crash", "signal 11."),
        (139, None, [], "crash", "exit code 139."),
        (-9, None, [], "license", "signal 9."),
        (0, ("scene", "Error: no camera"), [], "scene", "Error: no camera"),
        (0, None, [BROKEN, MISSING, MISSING], "missing_output", "f.png was not written. (1 more)"),
        (0, None, [BROKEN], "bad_output", "g.png is not a whole picture: x"),
    ],
)
def test_failures_are_classified_and_say_why(
    code: int | None, failure: tuple[str, str] | None, bad: list[Bad], kind: str, reason: str
) -> None:
    ending = decide(code=code, rules=RULES, failure=failure, bad=bad)
    assert (ending.outcome, ending.failure) == (Outcome.FAILED, kind)
    assert reason in ending.reason


@pytest.mark.parametrize(("code", "kind"), [(1, "error"), (3, "scene")])
def test_what_the_engine_says_of_its_end_is_the_reason(code: int, kind: str) -> None:
    told = decide(code=code, rules=RULES, failure=None, bad=[], reason="The scene has no camera")
    assert (told.failure, told.reason) == (kind, "The scene has no camera")
    told = decide(
        code=code, rules=RULES, failure=("scene", "Error: Cannot render, no camera"), bad=[], reason="So it is"
    )
    assert (told.failure, told.reason) == ("scene", "So it is")
    assert decide(code=0, rules=RULES, failure=None, bad=[], reason="Never mind").outcome == Outcome.SUCCEEDED
    assert decide(code=-11, rules=RULES, failure=None, bad=[], reason="Never mind").reason.endswith("signal 11.")


def test_success_needs_everything() -> None:
    assert decide(code=0, rules=RULES, failure=None, bad=[]).outcome == Outcome.SUCCEEDED


@pytest.mark.parametrize(("kernel", "kind"), [(True, "out_of_memory"), (False, "crash")])
def test_sigkill_is_want_of_memory_only_when_the_kernel_says_so(*, kernel: bool, kind: str) -> None:
    ending = decide(code=-9, rules=ReadingRules(), failure=None, bad=[], out_of_memory=kernel)
    assert ending.failure == kind


def test_reason_is_bounded() -> None:
    ending = decide(code=1, rules=RULES, failure=("scene", "x" * 10_000), bad=[])
    assert len(ending.reason) == MAX_REASON


@pytest.mark.parametrize(("full", "kind"), [(True, "no_space"), (False, "error")])
def test_a_printed_line_blames_the_disk_only_when_the_disk_agrees(*, full: bool, kind: str) -> None:
    line = "Error: No space left on device"
    for code in (0, 1):
        ending = decide(code=code, rules=RULES, failure=("no_space", line), bad=[], disk_full=full)
        assert (ending.failure, line in ending.reason) == (kind, True)


@pytest.mark.parametrize("kind", ["machine", "no_engine", "no_input", "lost_process"])
def test_no_printed_line_blames_the_machine(kind: str) -> None:
    assert decide(code=0, rules=RULES, failure=(kind, "printed"), bad=[]).failure == "error"


@pytest.mark.parametrize(("full", "kind"), [(True, "no_space"), (False, "bad_output")])
def test_a_file_that_is_too_large_is_named_as_the_cause(*, full: bool, kind: str) -> None:
    ending = decide(code=-25, rules=RULES, failure=None, bad=[], disk_full=full)
    assert (ending.failure, ending.reason) == (kind, "The engine wrote a file larger than what its disk has free.")
