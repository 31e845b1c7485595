"""The v1 role with real processes: atomic start, children that die too, nobody else's orders (C1 Render node)."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from renderonline.farm.arguments import join
from renderonline.farm.needs import BoxKind
from renderonline.hpcserver import process_table
from renderonline.sandbox.box import probe
from tests.support.machines import ROOT, kill, until

V1 = """
import json, sys
from pathlib import Path
from renderonline.hpcserver.main import run_v1
from renderonline.hpcserver.settings import load
sys.exit(run_v1(load(Path(sys.argv[1]), environment={}, flags={})))
"""


class V1Program:
    """HPCServer in its v1 role."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.home = directory / "home"
        config = directory / "HPCServer.json"
        engines = [
            {"EngineId": "Shell", "ExecutablePath": "/bin/sh"},
            {"EngineId": "broken", "ExecutablePath": "/no/such/program"},
        ]
        content = {"Port": "0", "RenderingEngines": engines, "DataDirectory": str(self.home), **settings}
        config.write_text(json.dumps(content))
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "src")}
        self.process = subprocess.Popen([sys.executable, "-c", V1, str(config)], env=environment)

    async def ready(self) -> None:
        await until((self.home / "hpcserver.json").exists, "ready file")
        self.url = json.loads((self.home / "hpcserver.json").read_text())["url"]

    def call(self, path: str, content: Any = None, **headers: str) -> tuple[int, Any]:
        data = content if isinstance(content, bytes) else None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                return response.status, json.loads(response.read())
        except urllib.error.HTTPError as error:
            with error:
                body = error.read()
                return error.code, json.loads(body) if body.startswith(b"{") else body.decode()

    def start(self, script: str, task: int = 1, engine: str = "shell") -> tuple[int, Any]:
        words = join(["-c", script])
        return self.call("/hpc/start", {"EngineId": engine, "TaskId": task, "Arguments": words})

    def task(self) -> dict[str, Any]:
        state: dict[str, Any] = self.call("/hpc/status")[1]["Task"]
        return state

    def engines(self) -> frozenset[int]:
        return process_table.marked(process_table.mark((self.home / "identity").read_text()))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    close = stop


@pytest.fixture
def node(tmp_path: Path) -> Iterator[V1Program]:
    program = V1Program(tmp_path)
    yield program
    program.stop()


async def test_two_simultaneous_starts_have_exactly_one_winner(node: V1Program) -> None:
    await node.ready()
    for turn in range(5):
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda task: node.start("exec sleep 600", task), range(1, 9)))
        assert sorted(status for status, _ in answers) == [200] + [400] * 7, turn
        assert {answer["Message"] for status, answer in answers if status == 400} == {
            "There already is an active render!"
        }
        task = node.task()
        assert task["IsRunning"]
        await until(lambda: len(node.engines()) == 1, "exactly one engine")
        status, answer = node.call("/hpc/stop", {"TaskId": task["TaskId"]})
        assert (status, answer["Message"]) == (200, "Active render terminated!")
        assert not node.engines()


async def test_stop_kills_the_children_too(node: V1Program) -> None:
    await node.ready()
    node.start("trap '' TERM; (setsid sleep 600 &) ; sleep 600 & wait; sleep 600", task=7)
    await until(lambda: len(node.engines()) == 3, "process tree")
    assert node.call("/hpc/stop", {"TaskId": 8}) == (
        400,
        {"IsSuccess": False, "Message": "No process running with provided task identifier!"},
    )
    assert node.call("/hpc/stop", {"TaskId": 7})[0] == 200
    assert not node.engines()
    task = node.task()
    assert task.pop("TotalSeconds") >= 2  # the grace between SIGTERM and SIGKILL
    assert task == {"TaskId": 7, "IsSuccess": False, "IsRunning": False}


async def test_status_tells_success_and_freezes_the_seconds(node: V1Program) -> None:
    await node.ready()
    assert node.call("/hpc/status") == (200, {"EngineIds": ["Shell", "broken"], "Task": None})
    node.start("exit 0", task=1)
    await until(lambda: not node.task()["IsRunning"], "end")
    assert node.task() == {"TaskId": 1, "IsSuccess": True, "IsRunning": False, "TotalSeconds": 0}
    node.start("sleep 1.1; exit 3", task=2)
    assert node.task()["IsRunning"]
    await until(lambda: not node.task()["IsRunning"], "end")
    await asyncio.sleep(1.0)  # time passes, the seconds don't
    assert node.task() == {"TaskId": 2, "IsSuccess": False, "IsRunning": False, "TotalSeconds": 1}


async def test_words_arrive_as_the_c_runtime_splits_them_without_the_program_name(
    node: V1Program, tmp_path: Path
) -> None:
    await node.ready()
    out = tmp_path / "out"
    command = f'SH -c "echo \\"$1\\" > {out}" name "a b;c"'
    node.call("/hpc/start", {"engineid": "SHELL", "taskid": "5", "arguments": command})
    await until(lambda: not node.task()["IsRunning"], "end")
    assert out.read_text() == "a b;c\n"


async def test_program_that_is_not_there_does_not_replace_the_last_render(node: V1Program) -> None:
    await node.ready()
    node.start("exit 0", task=1)
    await until(lambda: not node.task()["IsRunning"], "end")
    status, answer = node.start("exit 0", task=2, engine="broken")
    assert (status, answer["Message"]) == (400, "Requested rendering engine not configured: broken")
    assert node.task()["TaskId"] == 1


async def test_hostile_bodies_are_refused(node: V1Program) -> None:
    await node.ready()
    for body in (b"", b"{", b"[]", b"null", b"x" * (2 << 20), b'{"TaskId": 1}', b"\xff\xfe"):
        status, answer = node.call("/hpc/start", body)
        assert (status, answer["Message"]) == (400, "Invalid render arguments!"), body[:20]


async def test_web_page_can_not_start_anything(node: V1Program) -> None:
    await node.ready()
    status, _ = node.call("/hpc/start", {"EngineId": "shell", "Arguments": "-c true"}, Origin="http://evil.example")
    assert status == 403
    assert node.task() is None


async def test_only_allowed_addresses_may_call(tmp_path: Path) -> None:
    node = V1Program(tmp_path, Allow=["192.0.2.0/24"])
    try:
        await node.ready()
        assert node.call("/hpc/status")[0] == 403
    finally:
        node.stop()


async def test_listens_on_this_computer_only(node: V1Program) -> None:
    await node.ready()
    port = int(node.url.rpartition(":")[2])
    others = [info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    for address in others:
        if not address.startswith("127."):
            with socket.socket() as probe:
                assert probe.connect_ex((address, port)) != 0
    assert node.url.startswith("http://127.0.0.1:")


async def test_sigterm_and_sigkill_leave_no_render(node: V1Program) -> None:
    await node.ready()
    node.start("trap '' TERM; sleep 600; sleep 600")
    await until(lambda: bool(node.engines()), "engine")
    os.kill(node.process.pid, signal.SIGTERM)
    assert await asyncio.to_thread(node.process.wait, 20) == 0
    assert not node.engines()


async def test_sigkill_leaves_no_render(node: V1Program) -> None:
    await node.ready()
    node.start("trap '' TERM; sleep 600; sleep 600")
    await until(lambda: bool(node.engines()), "engine")
    kill(node.process.pid)
    await until(lambda: not node.engines(), "end of the engines", seconds=5.0)


async def test_renders_have_a_box_when_the_farms_directories_are_named(tmp_path: Path) -> None:
    for name in ("farm", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    with contextlib.closing(V1Program(tmp_path, SandboxWrite=[str(tmp_path / "farm")])) as node:
        await node.ready()
        if probe("auto").kind == BoxKind.NONE:
            pytest.skip("no box here")
        script = f"cat {tmp_path}/farm/file >{tmp_path}/farm/copy; cat {tmp_path}/other/file >{tmp_path}/farm/stolen"
        assert node.start(script)[0] == 200
        await until(lambda: not node.task()["IsRunning"], "end")
        assert not node.task()["IsSuccess"]
        assert (tmp_path / "farm" / "copy").read_text() == "farm"
        assert (tmp_path / "farm" / "stolen").read_text() == ""
        assert node.start("true", engine="broken")[0] == 400


def test_a_required_box_without_the_farms_directories_starts_nothing(tmp_path: Path) -> None:
    with contextlib.closing(V1Program(tmp_path, Sandbox="required")) as node:
        assert node.process.wait(20) == 1
