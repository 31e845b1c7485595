"""What the existing system gets wrong (C4 Known faults), and ours does not."""

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support import existing_node
from tests.support.existing_client import Naming, Part
from tests.support.existing_farm import ExistingFarm, address_of, v1_node, wait_until
from tests.support.existing_rig import SCENE, Rig
from tests.support.golden import CONTENT, RenderAPIStates, Row, furnish, rows_of, send

sqlite = pytest.mark.sqlite


def tree(root: Path) -> dict[str, int]:
    """Every file and directory below, but for what belongs to no task."""
    found = sorted(path for path in root.rglob("*") if ".incoming" not in path.parts or path.name.endswith(".part"))
    return {str(path.relative_to(root)): path.lstat().st_size if path.is_file() else -1 for path in found}


def counts(farm: ExistingFarm) -> dict[str, int]:
    tables = ("renders", "tasks", "queue", "chunks", "submissions")
    return {table: farm.sql(f"SELECT count(*) FROM {table}")[0][0] for table in tables}


# -- 1, 2, 3: arguments


@sqlite
def test_fault_01_the_clients_own_rule_is_not_a_rule(rig: Rig) -> None:
    rig.farm.start()
    request = b"""{"EngineId": "1", "Arguments": [
        {"ArgTypeId": "code", "Value": "0 --note x", "Regex": ".*", "regex": ".*", "Type": "sentence"},
        {"ArgTypeId": "note", "Value": "x"}]}"""
    before = counts(rig.farm)
    answer = rig.client.post_parts([Part("request", request), Part("file", SCENE, "a.scene")])
    assert (answer.status, answer.json()["ErrorMessage"]) == (400, "Value 0 --note x must be of type natural.")
    assert counts(rig.farm) == before


NOTES = ["a --exit 9 b", " --exit 9", "it's - so, is it?", "tab\there", "two\nlines", "a  b ", "x ' y"]


@sqlite
def test_fault_02_a_value_with_spaces_stays_one_argument(rig: Rig) -> None:
    rig.add_node(1)
    rig.release()
    rig.farm.start()
    for count, note in enumerate(NOTES, 1):
        rig.assert_ended_well(rig.submit(note=note), started=count)
        argv = rig.runs[-1]["argv"]
        assert isinstance(argv, list)
        assert argv[argv.index("--note") + 1] == note
        assert len(argv) == 9


@sqlite
def test_fault_02_a_value_never_becomes_a_flag(rig: Rig) -> None:
    rig.farm.start()
    before = counts(rig.farm), tree(rig.farm.downloads)
    for note in ("--python-expr", "-P", "-", "-1 -P"):
        answer = rig.client.enqueue(1, {"code": "0", "note": note}, "a.scene", SCENE)
        assert answer.status == 400, note
    assert (counts(rig.farm), tree(rig.farm.downloads)) == before


@sqlite
def test_fault_03_placeholders_are_filled_once_and_wholly(rig: Rig) -> None:
    names = "$RENDERONLINE:start $RENDERONLINE:start_frame a$RENDERONLINE:any,$RENDERONLINE:start"
    template = f'stub --record "{rig.record}" {names}'
    rig.farm.add_engine(2, "stub", ".scene", template)
    rig.farm.add_argtype("start", "natural")
    rig.farm.add_argtype("start_frame", "natural")
    rig.farm.add_argtype("any", "sentence", ".+")
    rig.add_node(1)
    rig.farm.start()
    values = {"start": "1", "start_frame": "22", "any": '$RENDERONLINE:start "$RENDERONLINE:@uploaded_file" \\'}
    answer = rig.client.enqueue(2, values, "a.scene", SCENE)
    assert answer.status == 200, answer.body
    assert rig.farm.wait_for_end(answer.json()["TaskId"])["is_success"] == 1
    assert rig.runs[0]["argv"] == ["--record", str(rig.record), "1", "22", f"a{values['any']},1"]


@sqlite
def test_fault_03_a_placeholder_without_a_value_never_reaches_the_renderer(rig: Rig) -> None:
    rig.farm.start()
    before = counts(rig.farm), tree(rig.farm.downloads)
    answer = rig.client.enqueue(1, {"code": "0"}, "a.scene", SCENE)
    assert answer.status == 400
    assert "note" in answer.json()["ErrorMessage"]
    assert (counts(rig.farm), tree(rig.farm.downloads)) == before


# -- 4: file names

NAMES = [
    *("../../x.scene", "/tmp/renderonline-fault-4.scene", "..\\..\\x.scene", "C:\\x.scene", "a/../../b.scene"),
    *("..scene", ".../x.scene", "~/x.scene", "-rf.scene", "a b.scene", "con.scene", "ä ö.scene", "x\u202e.scene"),
    *("a;b|c&d.scene", "`id`.scene", "$(id).scene", 'q"uote.scene', "x" * 400 + ".scene", ".attempts/x.scene"),
]


@sqlite
def test_fault_04_client_file_name_never_leaves_the_task_directory(rig: Rig, tmp_path: Path) -> None:
    rig.farm.start()
    around = tree(tmp_path / "farm").keys()
    namings: list[Naming] = ["quoted", "plain", "starred"]
    for name in NAMES:
        for naming in namings:
            answer = rig.client.enqueue(1, {"code": "0", "note": "x"}, name, SCENE, naming=naming)
            assert answer.status == 200, (name, naming, answer.body)
            task_id = answer.json()["TaskId"]
            directory = rig.farm.directory_of(task_id)
            (saved,) = directory.iterdir()
            assert directory.parent == rig.farm.downloads / "10"
            assert directory.name.isdecimal()
            assert saved.read_bytes() == SCENE
            assert saved.resolve().parent == directory.resolve()
            assert not saved.name.startswith("-")
            assert not any(mark in saved.name for mark in '/\\:*?"<>|\0\n')
            for path in (saved, directory, directory.parent):
                assert path.stat().st_mode & 0o002 == 0, f"{path} is world-writable"
            assert rig.client.delete(task_id).status == 200
    assert not Path("/tmp/renderonline-fault-4.scene").exists()
    new = tree(tmp_path / "farm").keys() - around
    assert all(name.startswith(("downloads", "renderapi", "program.log")) for name in new), new


# -- 5: what is refused leaves nothing; the limit holds

REFUSED: list[Row] = [
    row for row in rows_of("renderapi") if row["send"].endswith("/enqueue") and row["status"] in (400, 401, 403, 500)
]


@sqlite
def test_fault_05_a_refused_upload_leaves_no_file_and_no_row(farm: ExistingFarm) -> None:
    furnish(farm)
    farm.start()
    states = RenderAPIStates(farm)
    for row in REFUSED:
        states.play(row)
        # What the row's own state needed is all that there may be.
        tasks = farm.sql("SELECT task_id FROM tasks")
        files = [path for path in farm.downloads.rglob("*") if path.is_file()]
        assert counts(farm)["renders"] == counts(farm)["chunks"] == len(tasks), row["name"]
        assert sorted(path.parent for path in files) == sorted(farm.directory_of(task[0]) for task in tasks), row[
            "name"
        ]
    assert len(REFUSED) > 15


@sqlite
def test_fault_05_an_upload_that_breaks_off_leaves_no_file_and_no_row(rig: Rig) -> None:
    rig.farm.start()
    before = counts(rig.farm)
    for cut in (10, 200, 400, 600, 20_000):
        body = _request(rig, b"x" * 30_000)
        with socket.create_connection(address_of(rig.farm.url)) as connection:
            connection.sendall(body[: body.index(b"\r\n\r\n") + 4 + cut])
            time.sleep(0.05)  # so that it is read before the end comes
    wait_until(lambda: not any(files for *_, files in os.walk(rig.farm.downloads)), "end of what was stored")
    assert counts(rig.farm) == before
    task_id = rig.submit()
    assert rig.farm.in_queue(task_id)


def _request(rig: Rig, content: bytes) -> bytes:
    """The bytes of an enqueue."""
    sent: list[bytes] = []
    client = rig.client
    original, client.send = client.send, sent.append  # type: ignore[assignment,method-assign]
    try:
        client.enqueue(1, {"code": "0", "note": "x"}, "a.scene", content)
    finally:
        client.send = original  # type: ignore[method-assign]
    return sent[0]


@pytest.fixture
def limited(database_url: str, tmp_path: Path) -> Iterator[ExistingFarm]:
    """A farm on each database; user 50 may have 3 tasks."""
    with ExistingFarm(tmp_path / "farm", database_url) as made:
        furnish(made)
        made.add_user(50, queue_limit=3)
        made.start()
        yield made


def test_fault_05_parallel_uploads_never_pass_the_queue_limit(limited: ExistingFarm) -> None:
    ready = threading.Barrier(12)

    def enqueue(_: int) -> int:
        client = limited.client(50)
        ready.wait()
        return client.enqueue(1, {"start_frame": "1", "end_frame": "2"}, "a.blend", CONTENT * 1000).status

    with ThreadPoolExecutor(12) as pool:
        statuses = sorted(pool.map(enqueue, range(12)))
    assert statuses == [200] * 3 + [403] * 9
    assert counts(limited)["queue"] == counts(limited)["tasks"] == counts(limited)["renders"] == 3
    assert len([path for path in limited.downloads.rglob("*") if path.is_file()]) == 3


# -- 6: machines that do not answer


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@sqlite
def test_fault_06_machines_that_do_not_answer_hold_up_nobody(rig: Rig) -> None:
    with black_hole() as silent:
        rig.farm.add_machine(1, unused_port())  # connection refused
        rig.farm.add_machine(2, silent)
        rig.farm.add_machine(3, 9, "192.0.2.1")  # an address that nobody has
        rig.farm.add_machine(4, 9, "no such name.invalid")
        mute = rig.add_node(5)
        mute.faults.never_answers = True
        good = rig.add_node(6)
        rig.release()
        rig.farm.start()
        wait_until(lambda: good.requests and mute.requests, "look at both nodes")
        began = time.monotonic()
        task_ids = [rig.submit() for _ in range(3)]
        for task_id in task_ids:
            assert rig.farm.wait_for_end(task_id)["is_success"] == 1
            assert rig.farm.row(task_id)["machine_id"] == 6
        assert time.monotonic() - began < 20
        assert rig.client.info().status == 200


# -- 7: a node that dies

QUICK = {"RENDERAPI_SILENCE_S": "2", "RENDERAPI_RETRY_BASE_S": "0.1"}
NODE = Path(existing_node.__file__)


@contextlib.contextmanager
def node_process(rig: Rig, port: int) -> Iterator[None]:
    """An existing node as a program of its own; killed on the way out, while what it rendered goes on."""
    argv = [sys.executable, str(NODE), str(port), f"stub={rig.engine}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env={"PYTHONPATH": str(NODE.parents[2])}) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield
        process.kill()


@sqlite
def test_fault_07_the_task_of_a_node_that_was_killed_is_tried_again(rig: Rig) -> None:
    port = unused_port()
    rig.farm.add_machine(1, port)
    rig.farm.start(QUICK)
    with node_process(rig, port):
        task_id = rig.submit()
        rig.wait_for_run()
    wait_until(lambda: rig.farm.row(task_id)["is_running"] == 0, "end of what was lost")
    assert rig.farm.in_queue(task_id)
    # perhaps its renderer still writes: it starts when the node has answered (R7.4 Whole tasks)
    assert len(rig.runs) == 1
    with node_process(rig, port):
        rig.wait_for_run(2)
        rig.release()
        rig.assert_ended_well(task_id, started=2)


@sqlite
def test_fault_07_a_node_that_was_killed_too_often_gives_the_queue_place_back(rig: Rig) -> None:
    rig.farm.add_user(11, queue_limit=1)
    port = unused_port()
    rig.farm.add_machine(1, port)
    rig.farm.start({**QUICK, "RENDERAPI_MAX_TRIES": "1"})
    with node_process(rig, port):
        task_id = rig.submit(user_id=11)
        rig.wait_for_run()
    row = rig.farm.wait_for_end(task_id)
    assert (row["is_running"], row["is_success"]) == (0, 0)
    assert rig.farm.in_queue(rig.submit(user_id=11))  # the only place that this user has
    rig.release()


# -- 8, 9: whose success, whose engine


@sqlite
def test_fault_08_another_tasks_success_completes_nothing(rig: Rig) -> None:
    node = rig.add_node(1)
    node.faults.claims_success_of = 1  # as if somebody else had rendered there; 1 will be our task's id
    rig.farm.start()
    task_id = rig.submit()
    rig.wait_for_run()
    looks = len(node.requests)
    wait_until(lambda: len(node.requests) > looks + 3, "some looks at the node")
    assert rig.farm.row(task_id)["is_success"] == 0
    assert rig.farm.in_queue(task_id)


@sqlite
def test_fault_09_tasks_go_only_to_nodes_that_have_the_engine(rig: Rig) -> None:
    without = rig.add_node(1, {"blender": rig.engine})
    rig.release()
    rig.farm.start()
    task_id = rig.submit()
    wait_until(lambda: without.requests, "look at the node without the engine")
    rig.add_node(2, {"STUB": rig.engine})
    rig.assert_ended_well(task_id)
    assert not without.starts
    assert rig.farm.row(task_id)["machine_id"] == 2


# -- 10: the times of a task


@sqlite
def test_fault_10_a_task_that_fails_keeps_its_first_start(rig: Rig) -> None:
    rig.add_node(1)
    rig.farm.start({"RENDERAPI_RETRY_BASE_S": "2.5", "RENDERAPI_RETRY_CAP_S": "2.5", "RENDERAPI_MAX_TRIES": "4"})
    task_id = rig.submit(code=3)
    rig.wait_for_run()
    first = wait_until(lambda: rig.farm.row(task_id)["start_time"], "start time")
    rig.release()
    row = rig.farm.wait_for_end(task_id)
    assert len(rig.runs) == 4
    assert (row["is_running"], row["is_success"], row["start_time"]) == (0, 0, first)
    assert row["end_time"] >= first


@sqlite
def test_fault_10_a_dequeued_task_runs_no_more_and_has_an_end(rig: Rig) -> None:
    node = rig.add_node(1)
    task_id = rig.running_task()
    assert rig.client.dequeue(task_id).status == 200
    row = rig.farm.wait_for_end(task_id)
    assert (row["is_running"], row["is_success"]) == (0, 0)
    assert row["start_time"] <= row["end_time"]
    wait_until(lambda: not node.is_running, "end of its renderer")


# -- 11: process trees, and two starts at once

FAMILY = "#!/bin/sh\ntrap '' TERM\n(setsid sleep 600.25 &)\nsleep 600.25 &\nwait\nsleep 600.25\n"


def family() -> int:
    """How many of the sleeping processes there are."""
    found = [Path("/proc", name, "cmdline") for name in os.listdir("/proc") if name.isdigit()]
    words = []
    for path in found:
        with contextlib.suppress(OSError):
            words.append(path.read_bytes())
    return words.count(b"sleep\x00600.25\x00")


@sqlite
def test_fault_11_dequeuing_a_task_ends_all_that_its_renderer_started(rig: Rig, tmp_path: Path) -> None:
    engine = tmp_path / "family"
    engine.write_text(FAMILY)
    engine.chmod(0o755)
    with v1_node(tmp_path / "node", {"Stub": str(engine)}) as url:
        rig.farm.add_machine(1, address_of(url)[1])
        rig.farm.start()
        task_id = rig.submit()
        wait_until(lambda: family() == 2, "process tree")
        assert rig.client.dequeue(task_id).status == 200
        wait_until(lambda: family() == 0, "end of the process tree")


@sqlite
def test_fault_11_of_several_starts_at_once_one_wins(rig: Rig, tmp_path: Path) -> None:
    ready = threading.Barrier(8)

    def start(number: int) -> int:
        words = f"--record {rig.record} --until {rig.gate} --number {number}"
        body = {"EngineId": "Stub", "Arguments": words, "TaskId": number}
        ready.wait()
        return send(url, "POST", "/hpc/start", {"Content-Type": "application/json"}, json.dumps(body).encode()).status

    with v1_node(tmp_path / "node", {"Stub": rig.engine}) as url, ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(start, range(1, 9))) == [200] + [400] * 7
        rig.wait_for_run()
        rig.release()
    assert len(rig.runs) == 1


# -- 13: no waiting, no temporary file


@sqlite
def test_fault_13_a_task_starts_at_once(rig: Rig) -> None:
    node = rig.add_node(1)
    rig.release()
    rig.farm.start()
    rig.assert_ended_well(rig.submit())  # the node is known by now
    waits: list[float] = []
    for _ in range(5):
        began = time.monotonic()
        assert rig.farm.wait_for_end(rig.submit())["is_success"] == 1
        waits.append(node.starts[-1].at - began)
    assert sorted(waits)[len(waits) // 2] < 1, waits  # the existing one waits for a poll of 15 s


@sqlite
def test_fault_13_the_zip_is_sent_while_it_is_made(rig: Rig, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    rig.farm.start({"TMPDIR": str(temporary)})
    task_id = rig.submit()
    large = rig.farm.directory_of(task_id) / "frame_0001.exr"
    with large.open("wb") as file:
        file.write(os.urandom(1024 * 1024) * 300)
    before = tree(tmp_path)
    body = b'{"taskId":%d}' % task_id
    with socket.create_connection(address_of(rig.farm.url), timeout=30) as connection:
        connection.sendall(
            b"POST /renderapi/v1/download HTTP/1.1\r\nHost: x\r\nemail: user10@example.org\r\n"
            b"token: token-of-10\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        # The first bytes are here, most are not asked for yet: nothing of the ZIP may lie on the disk.
        grown = {name: size for name, size in tree(tmp_path).items() if size > before.get(name, 0) + 1024 * 1024}
        assert not grown
        assert list(temporary.iterdir()) == []
    answer = rig.client.download(task_id)
    with zipfile.ZipFile(io.BytesIO(answer.body)) as archive:
        assert sorted(archive.namelist()) == ["a.scene", "frame_0001.exr"]
        assert archive.testzip() is None
