"""The benchmarks run: with a few chunks each, for a figure of so small a run means nothing."""

from pathlib import Path

import pytest

from bench import queues, start_latency, throughput
from bench.simulated import enroll, simulated
from renderonline.database import upkeep
from renderonline.database.door import Database
from tests.support.farm import RealFarm
from tests.support.farm_rows import add_engine, add_user
from tests.support.mariadb import PrivateMariaDB


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


def test_farm_on_mariadb_says_what_the_database_cost() -> None:
    with PrivateMariaDB(durable=True) as server:
        run = throughput.farm_run(throughput.migrated(server), server.pid)

    assert "mariadbd" in run.cost_us


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


def test_simulated_machines_are_linked_and_end_what_they_are_given(tmp_path: Path) -> None:
    with RealFarm(tmp_path) as farm:
        enroll(farm.data / "renderonline.sqlite", 5)
        farm.client.admin.add_engine(throughput.ENGINE)
        scene = tmp_path / "scene.txt"
        scene.write_text("nothing\n")
        with simulated(farm.url, 5, slots=2) as machines:
            machines.wait_for(5)
            task = farm.client.submit(scene, engine="nothing", frames="1-20", chunk_size=1)["task_id"]

            farm.wait_for_status(task, "succeeded")
            assert machines.wait_for(5) > 0


def test_questions_are_asked_of_a_full_database(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in (("TASKS", 30), ("WAITING", 25), ("A_TASK", 10), ("ASKED", 2), ("EVERY", 5)):
        monkeypatch.setattr(queues, name, few)

    answers, restarted, reasons = queues.measured()

    assert answers.keys() == queues.QUESTIONS.keys()
    assert restarted.p50 > 0
    assert reasons.p50 > 0


def test_filled_database_passes_the_check(tmp_path: Path) -> None:
    with Database.open(f"sqlite:///{tmp_path}/farm.sqlite") as database:
        upkeep.migrate(database)
        database.write_now(add_user)
        database.write_now(add_engine)
        queues.fill(tmp_path / "farm.sqlite", 10, 7)

        assert [one.message for one in database.read_now(upkeep.check) if not one.is_warning] == []
