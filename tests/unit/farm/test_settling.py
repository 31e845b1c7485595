"""What becomes of a chunk when its attempt ends (R1.4 Retries, R5.5 Late results)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.settling import (
    EXIT_WORDS,
    MOST_LOST_PROCESSES,
    NO_RENDER_ENGINE,
    Ending,
    RetryPolicy,
    Tried,
    advice,
    backoff,
    plain_reason,
    settle,
)
from renderonline.farm.tasks import ChunkState, Outcome

FAILED = Ending(Outcome.FAILED, "crash", "signal 11", 139)
LOST = Ending(Outcome.LOST)
OOM = Ending(Outcome.FAILED, "out_of_memory")
HPCSERVER_DIED = Ending(Outcome.FAILED, "lost_process")
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


@pytest.mark.parametrize("failure", ["scene", "arguments", "command"])
def test_failure_that_every_machine_would_see_is_final(failure: str) -> None:
    verdict = settle(Ending(Outcome.FAILED, failure), tries=0, named=True, missing=(), fraction=0.5)
    assert verdict.chunk is ChunkState.FAILED


@pytest.mark.parametrize("outcome", ENDINGS)
def test_nothing_is_rendered_again_when_every_file_has_landed(outcome: Outcome) -> None:
    verdict = settle(Ending(outcome), tries=0, named=True, missing=(), fraction=0.5)
    assert (verdict.chunk, verdict.outcome, verdict.counts) == (ChunkState.SUCCEEDED, outcome, False)


def test_a_missing_render_engine_is_tried_on_each_machine_once() -> None:
    lacking = Ending(Outcome.FAILED, NO_RENDER_ENGINE, "this Blender has no render engine OCTANE", 1)
    first, second = (Tried(machine_id, Outcome.FAILED, NO_RENDER_ENGINE) for machine_id in (1, 2))
    assert after(lacking, second, first, machine_id=3, max_tries=1) is ChunkState.WAITING
    verdict = settle(lacking, tries=0, named=True, missing=("a",), fraction=0.5, machine_id=1, before=(second, first))
    assert (verdict.chunk, verdict.counts) == (ChunkState.FAILED, True)
    assert verdict.reason.endswith("no render engine OCTANE (and no other machine is left)")
    assert after(lacking, first, second, first, machine_id=1) is ChunkState.WAITING  # somebody asked for it again
    assert advice(verdict.failure, 7).startswith("Set up a Blender that has it, or submit it with another engine")


@pytest.mark.parametrize(
    ("failure", "said", "read"),
    [
        ("scene", "The scene has no camera", "The scene has no camera"),
        ("scene", "Error: Cannot render, no camera", "Cannot render, no camera"),
        ("scene", "no camera", "The scene can't be rendered: no camera"),
        ("arguments", "option -Q is not known", "The engine does not take these arguments: option -Q is not known"),
        ("arguments", f"{EXIT_WORDS} 2.", f"The engine does not take these arguments: {EXIT_WORDS} 2."),
        ("crash", "The disk burns", "The engine crashed: The disk burns"),
    ],
)
def test_people_read_what_the_engine_says_of_its_end(failure: str, said: str, read: str) -> None:
    assert plain_reason(Ending(Outcome.FAILED, failure, said, 1)) == read


def test_engine_that_names_no_files_is_judged_by_its_end() -> None:
    assert settle(FAILED, tries=0, named=False, missing=(), fraction=0.0).chunk is ChunkState.WAITING


@pytest.mark.parametrize(
    ("ending", "delay"), [(Ending(Outcome.CANCELED), 1.0), (Ending(Outcome.CANCELED, given_back=True), 0.0)]
)
def test_what_is_handed_back_counts_not(ending: Ending, delay: float) -> None:
    verdict = settle(ending, tries=2, named=True, missing=("a",), fraction=0.5)
    assert (verdict.chunk, verdict.counts, verdict.delay_s) == (ChunkState.WAITING, False, delay)


def after(
    ending: Ending, *before: Tried, tries: int | None = None, machine_id: int = 2, max_tries: int = 9
) -> ChunkState:
    """What becomes of the chunk; `before` is the latest first."""
    counted = sum(one.counts for one in before) if tries is None else tries
    found = settle(
        ending,
        tries=counted,
        named=True,
        missing=("a",),
        fraction=0.5,
        policy=RetryPolicy(max_tries),
        machine_id=machine_id,
        before=before,
    )
    return found.chunk


@pytest.mark.parametrize("ending", [LOST, OOM])
@pytest.mark.parametrize("earlier", [Tried(1, Outcome.LOST), Tried(1, Outcome.FAILED, "out_of_memory")])
def test_chunk_that_was_lost_or_out_of_memory_on_two_machines_fails_for_good(ending: Ending, earlier: Tried) -> None:
    assert after(ending) is ChunkState.WAITING
    assert after(ending, earlier) is ChunkState.FAILED
    assert after(ending, Tried(3, Outcome.FAILED, "crash"), earlier) is ChunkState.FAILED
    assert after(ending, earlier._replace(machine_id=2)) is ChunkState.WAITING
    assert after(ending, Tried(1, Outcome.FAILED, "crash")) is ChunkState.WAITING
    assert after(FAILED, earlier, earlier._replace(machine_id=3)) is ChunkState.WAITING


def test_what_happened_before_a_retry_is_forgiven() -> None:
    assert after(LOST, Tried(1, Outcome.LOST), tries=0) is ChunkState.WAITING
    assert after(LOST, Tried(4, Outcome.FAILED, "crash"), Tried(1, Outcome.LOST), tries=1) is ChunkState.WAITING


def test_chunk_whose_hpcserver_restarted_has_not_failed() -> None:
    verdict = settle(HPCSERVER_DIED, tries=2, named=True, missing=("a",), fraction=0.5)
    assert (verdict.chunk, verdict.counts, verdict.delay_s) == (ChunkState.WAITING, False, 1.0)
    died = Tried(1, Outcome.FAILED, "lost_process")
    assert after(LOST, died) is ChunkState.WAITING


def test_chunk_that_ends_hpcserver_again_and_again_has_failed_at_last() -> None:
    died = Tried(1, Outcome.FAILED, "lost_process")
    often = (died,) * (MOST_LOST_PROCESSES - 1)
    for before, counts in ((often[1:], False), (often, True), ((*often[1:], Tried(1, Outcome.CANCELED), died), False)):
        found = settle(HPCSERVER_DIED, tries=0, named=True, missing=("a",), fraction=0.5, before=before)
        assert (found.chunk, found.counts) == (ChunkState.WAITING, counts)


@pytest.mark.parametrize(("chunks", "enough"), [(1, 10), (9, 10), (10, 10), (50, 10), (51, 11), (100, 20), (1000, 200)])
def test_task_stops_when_ten_chunks_or_a_fifth_failed_for_good(chunks: int, enough: int) -> None:
    policy = RetryPolicy()
    assert not policy.stops(enough - 1, chunks)
    assert policy.stops(enough, chunks)


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_grows_and_is_bounded(tries: int, fraction: float) -> None:
    policy = RetryPolicy()
    assert 0 <= backoff(tries, policy, fraction) <= min(policy.cap_s, policy.base_s * 2.0 ** min(tries - 1, 30))


def test_reason_is_plain() -> None:
    assert plain_reason(FAILED) == "The engine crashed: signal 11"
    assert plain_reason(Ending(Outcome.FAILED, exit_code=3)) == "The engine failed with exit code 3"
    assert plain_reason(Ending(Outcome.LOST)) == "The machine did not answer any more"
