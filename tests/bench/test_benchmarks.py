"""The benchmarks run: with a few chunks each, for a figure of so small a run means nothing."""

import pytest

from bench import start_latency, throughput


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput, "CHUNKS", 20)
    monkeypatch.setattr(throughput, "WARM_UP", 4)
    monkeypatch.setattr(throughput, "MACHINES", 2)
    monkeypatch.setattr(throughput, "POLL_S", 0.02)


def test_farm_ends_every_chunk_and_says_what_each_cost() -> None:
    run = throughput.farm_run()

    assert run.chunks_s > 0
    assert set(run.cost_us) == {"RenderAPI", "HPCServer", "spawner", "engine"}


def test_reference_ends_every_chunk() -> None:
    run = throughput.reference_run()

    assert run.chunks_s > 0
    assert set(run.cost_us) == {"server", "nodes", "engine"}


def test_hyperqueue_ends_every_chunk() -> None:
    assert throughput.hyperqueue_chunks(2, 2, 20, throughput.PROGRAM) > 0


def test_starts_are_timed_inside_the_started_process() -> None:
    with start_latency.starts() as measured:
        assert all(taken > 0 for taken in measured.ms(3, 0.01) + measured.direct_ms(3))


def test_starts_of_hyperqueue_are_timed_in_the_same_way() -> None:
    assert all(taken > 0 for taken in start_latency.hyperqueue_starts(3, 0.01))
