"""SIGKILL of HPCServer, of its spawner, of both: no process is left, no report is lost (R5 Attempts and reports,
R8 Process trees)."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fake_renderapi import FakeRenderAPI
from tests.support.machines import Node, kill, linked_node, until

STUBBORN = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep 600' &) ; sleep 600 & wait; sleep 600"
STUBBORN_PROCESSES = 4  # the shell, its sleep, the orphan shell in its own session and the orphan's sleep


@pytest.fixture
async def api() -> AsyncIterator[FakeRenderAPI]:
    async with FakeRenderAPI() as server:
        yield server


async def _run_stubborn(api: FakeRenderAPI, node: Node, directory: Path, attempt: int = 1) -> None:
    await api.assign(attempt, ["-c", STUBBORN], directory)
    await api.report(attempt, "started")
    await until(lambda: len(node.engines()) == STUBBORN_PROCESSES, "process tree")


async def test_sigkill_of_hpcserver_kills_every_engine_and_the_restart_says_so(
    api: FakeRenderAPI, tmp_path: Path
) -> None:
    with linked_node(tmp_path, api) as node:
        first = await api.linked()
        await _run_stubborn(api, node, tmp_path / "1")
        kill(node.pid)
        await until(lambda: not node.engines(), "end of the engines", seconds=5.0)
        assert node.process is not None
        node.process.wait()
        node.start()
        hello = await api.linked(2)
        assert hello["instance"] != first["instance"]
        assert [(held["attempt"], held["token"], held["running"]) for held in hello["held"]] == [(1, "token-1", False)]
        exited = await api.report(1, "exited")
        assert (exited["outcome"], exited["failure"]) == ("failed", "lost_process")
        await api.assign(2, ["-c", "exit 0"], tmp_path / "2")
        assert (await api.report(2, "exited"))["outcome"] == "succeeded"


async def test_sigkill_of_the_spawner_loses_the_attempt_and_nothing_else(api: FakeRenderAPI, tmp_path: Path) -> None:
    with linked_node(tmp_path, api) as node:
        await api.linked()
        await _run_stubborn(api, node, tmp_path / "1")
        kill(node.spawner())
        exited = await api.report(1, "exited")
        assert (exited["outcome"], exited["failure"]) == ("failed", "lost_process")
        assert not node.engines()
        await api.assign(2, ["-c", "exit 0"], tmp_path / "2")
        assert (await api.report(2, "exited"))["outcome"] == "succeeded"


async def test_after_sigkill_of_both_the_next_start_kills_what_is_left(api: FakeRenderAPI, tmp_path: Path) -> None:
    with linked_node(tmp_path, api, sandbox="off") as node:  # in bubblewrap nothing outlives the two
        await api.linked()
        await _run_stubborn(api, node, tmp_path / "1")
        kill(node.spawner())  # first: it would kill the engines when HPCServer is gone
        kill(node.pid)
        assert node.process is not None
        node.process.wait()
        left = node.engines()
        node.start()
        await api.linked(2)
        assert not node.engines()
        assert left
        assert (await api.report(1, "exited"))["failure"] == "lost_process"


async def test_two_hpcservers_leave_each_others_engines_alone(api: FakeRenderAPI, tmp_path: Path) -> None:
    with linked_node(tmp_path, api, "left") as left:
        await api.linked()
        await _run_stubborn(api, left, tmp_path / "1")
        engines = left.engines()
        with linked_node(tmp_path, api, "right") as right:
            await api.linked(2)
            await _run_stubborn(api, right, tmp_path / "2", attempt=2)
            kill(right.pid)
            await until(lambda: not right.engines(), "end of the right one's engines")
        assert left.engines() == engines


async def test_reports_survive_sigkill_until_they_are_acknowledged(api: FakeRenderAPI, tmp_path: Path) -> None:
    with linked_node(tmp_path, api) as node:
        await api.linked()
        api.acknowledge = False
        await api.assign(1, ["-c", "printf abc > a.txt"], tmp_path / "1")
        await api.report(1, "exited")
        before = [{**report, "seq": 0} for report in api.reports(1)]
        kill(node.pid)
        assert node.process is not None
        node.process.wait()
        node.start()
        await api.linked(2)
        await api.until(lambda: len(api.reports(1, "exited")) == 2, "repeated reports")
        again = api.reports(1)[3:]
        assert [report["seq"] for report in again] == [1, 2, 3]
        assert [{**report, "seq": 0} for report in again] == before
        api.acknowledge = True
        await api.ack()
        await api.assign(2, ["-c", "exit 0"], tmp_path / "2")
        await api.report(2, "exited")
        await api.cut()
        assert (await api.linked(3))["held"] == []


async def test_outbox_that_can_not_be_written_is_said_and_mended(api: FakeRenderAPI, tmp_path: Path) -> None:
    home = tmp_path / "node"
    (home / "outbox.db").mkdir(parents=True)  # no file can be opened there
    with linked_node(tmp_path, api) as node:
        assert "outbox" in (await api.linked())["full"]
        await api.assign(1, ["-c", "exit 0"], tmp_path / "1")
        await api.until(
            lambda: any(message["type"] == "heartbeat" and message["full"] for message in api.messages), "full"
        )
        (home / "outbox.db").rmdir()
        exited = await api.report(1, "exited")
        assert (exited["outcome"], exited["failure"]) == ("canceled", "handed_back")
        await api.assign(2, ["-c", "exit 0"], tmp_path / "2")
        assert (await api.report(2, "exited"))["outcome"] == "succeeded"
        assert json.loads((node.home / "machine.json").read_text())["machine_id"] == 1000
