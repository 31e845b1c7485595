"""Each check finds what it is there to find: in a sound farm nothing, and every planted violation."""

import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults import checker
from tests.faults.checker import Reader, Results, Watch, lasting
from tests.faults.engine import MARK, picture
from tests.support.databases import Templates

KEY = "a scene"
FRAMES = 2


@dataclass
class Planted:
    """A database with one task at rest (two frames, landed) and one that runs (a chunk live, a chunk waiting)."""

    url: str
    reader: Reader
    files: Path
    home: Path

    @property
    def task(self) -> Path:
        return self.files / "1" / "100"

    def sql(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.url.removeprefix("sqlite:///"))) as connection, connection:
            for statement in statements:
                connection.execute(statement)

    def everything(self) -> list[str]:
        """All checks of a moment, and the files of the task at rest."""
        checks = (checker.tasks, checker.leases, checker.limits)
        wrong = [sentence for check in checks for sentence in check(self.reader)]
        return [*wrong, *Results(self.reader).check(), *self.leftovers()]

    def leftovers(self) -> list[str]:
        return checker.leftovers(self.reader, self.files, [self.home])

    def end_the_second(self) -> None:
        """Let the running task be canceled, so that the farm is at rest."""
        self.sql(
            "UPDATE tasks SET canceled = 1, is_running = 0, end_us = 5, chunks_waiting = 0, chunks_running = 0,"
            " chunks_canceled = 2 WHERE task_id = 2",
            "UPDATE chunks SET state = 'canceled' WHERE task_id = 2",
            "UPDATE attempts SET state = 'ended', outcome = 'canceled' WHERE task_id = 2",
            "DELETE FROM queue",
        )


TASK = (
    "INSERT INTO tasks (task_id, user_id, render_id, queue_time, is_running, is_success, end_us, frames_total,"
    " frames_done, chunks_waiting, chunks_running, chunks_succeeded) VALUES "
)
CHUNK = "INSERT INTO chunks (chunk_id, task_id, kind, state, first_frame, last_frame, frame_step) VALUES "
ATTEMPT = (
    "INSERT INTO attempts (attempt_id, chunk_id, task_id, machine_id, token, state, assigned_us, directory) VALUES "
)


@pytest.fixture
def farm(database_templates: Templates, tmp_path: Path) -> Iterator[Planted]:
    url = f"sqlite:///{tmp_path / 'farm.sqlite'}"
    database_templates.copy_sqlite(url)
    made = Planted(url, Reader(url), tmp_path / "files", tmp_path / "home")
    made.home.mkdir()
    for number in (1, 2):
        directory = made.files / "1" / f"{number}00"
        directory.mkdir(parents=True)
        (directory / f"{number}.scene").write_text(json.dumps({"key": KEY}))
        made.sql(
            "INSERT INTO renders (render_id, file_name, file_path, file_size, arguments, engine_id)"
            f" VALUES ({number}, '{number}.scene', '{directory}/{number}.scene', 1, '', 1)"
        )
    made.sql(
        "INSERT INTO subscriptions (subscription_id, name, queue_limit, running_limit) VALUES (1, 'own', 5, 3)",
        "INSERT INTO users (user_id, first_name, last_name, email, subscription_id, is_active, token)"
        " VALUES (1, 'Ada', 'Lovelace', 'ada@example.org', 1, 1, 'x')",
        f"{TASK} (1, 1, 1, '2026-01-01 00:00:00', 0, 1, 5, 2, 2, 0, 0, 1)",
        f"{TASK} (2, 1, 2, '2026-01-01 00:00:00', 1, 0, NULL, 4, 0, 1, 1, 0)",
        "INSERT INTO queue (queue_id, task_id) VALUES (1, 2)",
        f"{CHUNK} (1, 1, 'render', 'succeeded', 1, 2, 1), (2, 2, 'render', 'running', 1, 2, 1)",
        f"{CHUNK} (3, 2, 'render', 'waiting', 3, 4, 1)",
        f"{ATTEMPT} (11, 1, 1, 1000, 't', 'ended', 1, ''), (12, 2, 2, 1000, 't', 'running', 1, '')",
    )
    for frame in range(1, FRAMES + 1):
        data, name = picture(KEY, frame), f"frame_{frame:04d}.png"
        (made.task / name).write_bytes(data)
        made.sql(
            "INSERT INTO results (task_id, chunk_id, attempt_id, name_hash, name, state, frame, size, crc32, digest)"
            f" VALUES (1, 1, 11, '{frame}', '{name}', 'landed', {frame}, {len(data)}, 0,"
            f" '{hashlib.blake2b(data, digest_size=32).hexdigest()}')"
        )
    yield made
    made.reader.close()


def test_sound_farm_passes_every_check(farm: Planted) -> None:
    assert farm.everything() == []
    farm.end_the_second()
    assert farm.everything() == []
    assert checker.complete(farm.reader, {"1.scene": FRAMES, "2.scene": 4}, {"2.scene"}) == []


OTHER = f"{ATTEMPT} (13, 2, 2, 1001, 't', 'assigned', 1, '')"
WRONG = {
    "two live attempts": ([OTHER], "has 2 live attempts"),
    "live chunk without an attempt": (["DELETE FROM attempts WHERE attempt_id = 12"], "has 0 live attempts"),
    "live attempt of a chunk that waits": (
        ["UPDATE attempts SET chunk_id = 3 WHERE attempt_id = 12"],
        "is not live and has 1",
    ),
    "counter": (["UPDATE tasks SET chunks_waiting = 2 WHERE task_id = 2"], "its chunks are"),
    "queue row outlives its task": (["INSERT INTO queue (task_id) VALUES (1)"], "has 1 queue rows and has ended"),
    "queue row of no task": (["INSERT INTO queue (task_id) VALUES (99)"], "which is gone"),
    "no queue row": (["DELETE FROM queue"], "has 0 queue rows"),
    "chunks of no task": ([f"{CHUNK} (9, 99, 'render', 'waiting', 1, 1, 1)"], "which is gone"),
    "end": (["UPDATE tasks SET end_us = NULL WHERE task_id = 1"], "has end None"),
    "running": (["UPDATE tasks SET is_running = 0 WHERE task_id = 2"], "is_running 0"),
    "success": (["UPDATE tasks SET is_success = 0 WHERE task_id = 1"], "is_success 0"),
    "frames done": (["UPDATE tasks SET frames_done = 1 WHERE task_id = 1"], "1 frames done, 2 have landed"),
    "frame twice": (["UPDATE results SET frame = 1 WHERE frame = 2"], "has 2 results"),
    "digest": (["UPDATE results SET digest = 'x' WHERE frame = 1"], "not what its row says"),
    "limit of a task": (
        ["UPDATE tasks SET running_limit = 1 WHERE task_id = 2", OTHER.replace("(13, 2", "(13, 3")],
        "task 2 runs 2 chunks, its limit is 1",
    ),
    "limit of a user": (["UPDATE subscriptions SET running_limit = 1", OTHER], "user 1 runs 2 chunks"),
    "queue limit": (["UPDATE subscriptions SET queue_limit = 0"], "has 1 tasks in the queue, the limit is 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_rows_that_do_not_fit_are_found(farm: Planted, case: str) -> None:
    statements, words = WRONG[case]
    farm.sql(*statements)
    assert any(words in sentence for sentence in farm.everything()), farm.everything()


def swap(farm: Planted) -> None:
    (farm.task / "frame_0001.png").write_bytes(picture(KEY, 2))


def consistent_but_wrong(farm: Planted) -> None:
    """Row and file fit, and are another picture."""
    data = picture("another", 1)
    (farm.task / "frame_0001.png").write_bytes(data)
    digest = hashlib.blake2b(data, digest_size=32).hexdigest()
    farm.sql(f"UPDATE results SET digest = '{digest}', size = {len(data)} WHERE frame = 1")


def truncate(farm: Planted) -> None:
    (farm.task / "frame_0001.png").write_bytes(picture(KEY, 1)[:100])


def remove(farm: Planted) -> None:
    (farm.task / "frame_0002.png").unlink()


def left_attempt(farm: Planted) -> None:
    (farm.files / ".attempts" / "11").mkdir(parents=True)


def left_upload(farm: Planted) -> None:
    (farm.files / ".incoming").mkdir()
    (farm.files / ".incoming" / "x.part").touch()


def left_scratch(farm: Planted) -> None:
    (farm.home / "scratch" / "11").mkdir(parents=True)


def left_copy(farm: Planted) -> None:
    (farm.task / ".landing-3").touch()


def left_directory(farm: Planted) -> None:
    (farm.files / "1" / "300").mkdir()


FILES = {
    swap: "not what its row says",
    consistent_but_wrong: "has wrong bytes",
    truncate: "has wrong bytes",
    remove: "can't be read",
    left_attempt: "is left",
    left_upload: "is left",
    left_scratch: "is left",
    left_copy: "belongs to nobody",
    left_directory: "belongs to nobody",
}


@pytest.mark.parametrize("plant", FILES)
def test_files_that_do_not_fit_are_found(farm: Planted, plant: Callable[[Planted], None]) -> None:
    plant(farm)
    assert any(FILES[plant] in sentence for sentence in farm.everything()), farm.everything()


REST = {
    "frame missing": ("DELETE FROM results WHERE frame = 2", "has frames [1]"),
    "not succeeded": ("UPDATE tasks SET is_success = 0 WHERE task_id = 1", "has not succeeded"),
    "submitted twice": ("UPDATE renders SET file_name = '1.scene' WHERE render_id = 2", "is 2 tasks"),
    "submission lost": ("DELETE FROM tasks WHERE task_id = 1", "is 0 tasks"),
    "nobody's": ("UPDATE renders SET file_name = '3.scene' WHERE render_id = 2", "Nobody submitted 3.scene"),
    "live": ("UPDATE attempts SET state = 'running' WHERE attempt_id = 12", "attempt 12 lives"),
    "landing": ("UPDATE results SET state = 'landing' WHERE frame = 1", "lands"),
}


@pytest.mark.parametrize("case", REST)
def test_what_is_not_complete_at_rest_is_found(farm: Planted, case: str) -> None:
    farm.end_the_second()
    farm.sql(REST[case][0])
    wrong = checker.complete(farm.reader, {"1.scene": FRAMES, "2.scene": 4}, {"2.scene"})
    assert any(REST[case][1] in sentence for sentence in wrong), wrong


def test_process_that_outlives_its_attempt_is_found(farm: Planted) -> None:
    mark = f"{os.getpid():x}/"
    script = "import sys, time; print(flush=True); time.sleep(60)"

    def start(attempt: int) -> "subprocess.Popen[bytes]":
        environment = {MARK: f"{mark}{attempt}/"}
        process = subprocess.Popen([sys.executable, "-IS", "-c", script], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        return process

    running = [start(12)]
    try:
        assert checker.processes(farm.reader, [mark], slots=1) == []
        assert checker.processes(farm.reader, [mark], slots=0) == [f"A machine of 0 slots runs ['{mark}12/']."]
        running.append(start(11))
        assert checker.processes(farm.reader, [mark], slots=2) == [
            f"Process {running[1].pid} outlives its attempt {mark}11/."
        ]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert checker.processes(farm.reader, [mark], slots=1) == []


def test_watch_remembers_what_was_wrong_for_a_moment(farm: Planted) -> None:
    watch = Watch(farm.url, 1)
    farm.sql(OTHER)
    deadline = time.monotonic() + 30
    while not watch.check() and time.monotonic() < deadline:
        time.sleep(0.01)
    farm.sql("DELETE FROM attempts WHERE attempt_id = 13")
    watch.close()
    assert watch.check() == ["Chunk 2 is running and has 2 live attempts."]


def test_outbox_that_still_holds_something_is_found(farm: Planted) -> None:
    with closing(sqlite3.connect(farm.home / "outbox.db")) as outbox, outbox:
        outbox.execute("CREATE TABLE attempts (attempt INTEGER)")
        outbox.execute("CREATE TABLE reports (seq INTEGER)")
    assert checker.outboxes([farm.home]) == []
    with closing(sqlite3.connect(farm.home / "outbox.db")) as outbox, outbox:
        outbox.execute("INSERT INTO reports VALUES (1)")
    assert checker.outboxes([farm.home]) == [f"{farm.home / 'outbox.db'} still has 1 reports."]


def test_only_what_lasts_is_told() -> None:
    said = iter([["a", "b"], ["b", "c"], ["c"]])
    assert lasting(lambda: next(said), 60.0) == []
    assert lasting(lambda: ["a", str(time.monotonic())], 0.3) == ["a"]
