"""What becomes of a chunk when its attempt ends (R1.4, R5.5)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.settling import Ending, RetryPolicy, backoff, plain_reason, settle
from renderonline.farm.tasks import ChunkState, Outcome

FAILED = Ending(Outcome.FAILED, "crash", "signal 11", 139)
ENDINGS = [Outcome.FAILED, Outcome.TIMED_OUT, Outcome.STALLED, Outcome.LOST]


def test_success_with_every_file_succeeds() -> None:
    verdict = settle(Ending(Outcome.SUCCEEDED), tries=2, named=True, missing=(), fraction=0.5)
    assert (verdict.chunk, verdict.outcome, verdict.counts) == (ChunkState.SUCCEEDED, Outcome.SUCCEEDED, False)


def test_success_without_every_file_is_a_failure_that_names_them() -> None:
    missing = [f"frame_{number}.png" for number in range(7)]
    verdict = settle(Ending(Outcome.SUCCEEDED), tries=0, named=True, missing=missing, fraction=0.5)
    assert (verdict.chunk, verdict.outcome, verdict.failure) == (ChunkState.WAITING, Outcome.FAILED, "missing_output")
    assert "frame_0.png" in verdict.reason
    assert verdict.reason.endswith("and 2 more")


@pytest.mark.parametrize("outcome", ENDINGS)
def test_failure_is_tried_again_until_the_third(outcome: Outcome) -> None:
    for tries, state in ((0, ChunkState.WAITING), (1, ChunkState.WAITING), (2, ChunkState.FAILED)):
        verdict = settle(Ending(outcome), tries=tries, named=True, missing=("a",), fraction=0.5)
        assert (verdict.chunk, verdict.counts) == (state, True)


@pytest.mark.parametrize("failure", ["scene", "command"])
def test_failure_that_every_machine_would_see_is_final(failure: str) -> None:
    verdict = settle(Ending(Outcome.FAILED, failure), tries=0, named=True, missing=(), fraction=0.5)
    assert verdict.chunk is ChunkState.FAILED


@pytest.mark.parametrize("outcome", ENDINGS)
def test_nothing_is_rendered_again_when_every_file_has_landed(outcome: Outcome) -> None:
    verdict = settle(Ending(outcome), tries=0, named=True, missing=(), fraction=0.5)
    assert (verdict.chunk, verdict.outcome, verdict.counts) == (ChunkState.SUCCEEDED, outcome, False)


def test_engine_that_names_no_files_is_judged_by_its_end() -> None:
    assert settle(FAILED, tries=0, named=False, missing=(), fraction=0.0).chunk is ChunkState.WAITING


@pytest.mark.parametrize(
    ("ending", "delay"), [(Ending(Outcome.CANCELED), 1.0), (Ending(Outcome.CANCELED, given_back=True), 0.0)]
)
def test_what_is_handed_back_counts_not(ending: Ending, delay: float) -> None:
    verdict = settle(ending, tries=2, named=True, missing=("a",), fraction=0.5)
    assert (verdict.chunk, verdict.counts, verdict.delay_s) == (ChunkState.WAITING, False, delay)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_grows_and_is_bounded(tries: int, fraction: float) -> None:
    policy = RetryPolicy()
    assert 0 <= backoff(tries, policy, fraction) <= min(policy.cap_s, policy.base_s * 2.0 ** min(tries - 1, 30))


def test_reason_is_plain() -> None:
    assert plain_reason(FAILED) == "The engine crashed: signal 11"
    assert plain_reason(Ending(Outcome.FAILED, exit_code=3)) == "The engine failed with exit code 3"
    assert plain_reason(Ending(Outcome.LOST)) == "The machine did not answer any more"
