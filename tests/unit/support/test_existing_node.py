"""The stand-in for the existing node behaves as the contract says the existing node does."""

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.existing_node import ExistingNode, split_like_dotnet


@pytest.fixture
def node() -> Iterator[ExistingNode]:
    with ExistingNode({"Python": sys.executable}) as running:
        yield running


def call(node: ExistingNode, path: str, body: Any = None, timeout: float = 10) -> tuple[int, Any]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{node.port}{path}", data=data, headers={"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as refused:
        return refused.code, json.load(refused)


def start(node: ExistingNode, task_id: int, code: str) -> tuple[int, Any]:
    arguments = subprocess.list2cmdline(["-c", code])
    return call(node, "/hpc/start", {"EngineId": "python", "TaskId": task_id, "Arguments": arguments})


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def task(node: ExistingNode) -> Any:
    return call(node, "/hpc/status")[1]["Task"]


def test_it_runs_one_process_and_tells_how_it_ended(node: ExistingNode) -> None:
    assert call(node, "/hpc/status") == (200, {"EngineIds": ["Python"], "Task": None})
    assert start(node, 5, "import sys; sys.exit(0)")[1]["IsSuccess"]
    wait_for(lambda: task(node)["IsSuccess"])
    assert task(node) == {"TaskId": 5, "IsSuccess": True, "IsRunning": False, "TotalSeconds": 0}
    assert start(node, 6, "import sys; sys.exit(3)")[0] == 200
    wait_for(lambda: not task(node)["IsRunning"])
    assert task(node)["IsSuccess"] is False


def test_it_refuses_a_second_render_and_stops_only_its_own(node: ExistingNode) -> None:
    start(node, 5, "import time; time.sleep(60)")
    assert start(node, 6, "")[1] == {"IsSuccess": False, "Message": "There already is an active render!"}
    assert call(node, "/hpc/stop", {"TaskId": 6})[1]["Message"] == "No process running with provided task identifier!"
    assert call(node, "/hpc/stop", {"TaskId": 5}) == (200, {"IsSuccess": True, "Message": "Active render terminated!"})
    wait_for(lambda: not task(node)["IsRunning"])
    assert call(node, "/hpc/stop", {"TaskId": 5})[1]["Message"] == "No active render!"


def test_a_failed_start_leaves_its_task_id_behind(node: ExistingNode) -> None:
    start(node, 5, "")
    wait_for(lambda: task(node)["IsSuccess"])
    refused = call(node, "/hpc/start", {"EngineId": "maya", "TaskId": 6, "Arguments": ""})
    assert refused == (400, {"IsSuccess": False, "Message": "Requested rendering engine not configured: maya"})
    assert (task(node)["TaskId"], task(node)["IsSuccess"]) == (6, False)


def test_its_windows_can_be_held_open(node: ExistingNode) -> None:
    node.faults.before_success_s = 0.5
    start(node, 5, "")
    wait_for(lambda: not task(node)["IsRunning"])
    assert task(node)["IsSuccess"] is False
    wait_for(lambda: task(node)["IsSuccess"])


def test_its_faults_can_be_switched_on(node: ExistingNode) -> None:
    node.faults.lost_start_replies = 1
    with pytest.raises(OSError):
        start(node, 5, "import time; time.sleep(60)")
    assert task(node)["TaskId"] == 5
    node.restart()
    assert task(node) is None
    node.faults.other_task = 99
    start(node, 6, "import time; time.sleep(60)")
    assert task(node)["TaskId"] == 99
    node.faults.claims_success_of = 98
    assert task(node) == {"TaskId": 98, "IsSuccess": True, "IsRunning": False, "TotalSeconds": 1}
    node.faults.never_answers = True
    with pytest.raises(TimeoutError):
        call(node, "/hpc/status", timeout=0.2)


@given(st.lists(st.text(alphabet='\\" \tab')))
def test_its_splitting_is_the_inverse_of_list2cmdline(words: list[str]) -> None:
    assert split_like_dotnet(subprocess.list2cmdline(words)) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r'a"b"" c d', ['ab" c d']),
        (r'a\\\b d"e f"g h', [r"a\\\b", "de fg", "h"]),
        ("", []),
        ('""', [""]),
        ('"x y', ["x y"]),
    ],
)
def test_its_splitting_of_microsofts_examples(text: str, words: list[str]) -> None:
    assert split_like_dotnet(text) == words
