"""How a linked HPCServer ends: drained, signaled, idle or refused (R5 Attempts and reports)."""

import os
import signal
import statistics
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from renderonline.protocol.link import PROTOCOL, Drain, Limits
from tests.support.fake_renderapi import FakeRenderAPI
from tests.support.machines import Node, linked_node, png, until
from tests.support.pinned_certificates import Certificate


@pytest.fixture
async def api() -> AsyncIterator[FakeRenderAPI]:
    async with FakeRenderAPI() as server:
        yield server


@pytest.fixture
def node(tmp_path: Path, api: FakeRenderAPI) -> Iterator[Node]:
    with linked_node(tmp_path, api) as running:
        yield running


async def test_drain_hands_new_assignments_back_and_exit_ends_the_program(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    await api.assign(1, ["-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"], tmp_path / "1")
    await api.report(1, "started")
    await api.assign(3, ["-c", "exit 0"], tmp_path / "3")
    await api.send(Drain(exit=True))
    await api.assign(2, ["-c", "exit 0"], tmp_path / "2")
    for number in (2, 3):
        exited = await api.report(number, "exited")
        assert (exited["outcome"], exited["failure"]) == ("canceled", "handed_back")
    (tmp_path / "go").touch()
    assert (await api.report(1, "exited"))["outcome"] == "succeeded"
    assert await node.ends() == 0


async def test_sigterm_lets_a_short_attempt_finish(api: FakeRenderAPI, tmp_path: Path) -> None:
    with linked_node(tmp_path, api, stop_grace=15.0) as node:
        await api.linked()
        await api.assign(1, ["-c", f"while [ ! -e {tmp_path}/go ]; do sleep 0.05; done"], tmp_path / "1")
        await api.report(1, "started")
        await api.assign(3, ["-c", "exit 0"], tmp_path / "3")
        os.kill(node.pid, signal.SIGTERM)
        await api.until(
            lambda: any(message["type"] == "heartbeat" and message["full"] for message in api.messages), "full"
        )
        assert (await api.report(3, "exited"))["failure"] == "handed_back"
        await api.assign(2, ["-c", "exit 0"], tmp_path / "2")
        assert (await api.report(2, "exited"))["failure"] == "handed_back"
        (tmp_path / "go").touch()
        assert (await api.report(1, "exited"))["outcome"] == "succeeded"
        assert await node.ends() == 0
        assert not (node.home / "hpcserver.json").exists()


async def test_sigterm_hands_a_long_attempt_back_with_what_is_done(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    picture = tmp_path / "picture.png"
    picture.write_bytes(png())
    await api.assign(1, ["-c", f"cp {picture} f1.png; sleep 600"], tmp_path / "1", names=("f1.png", "f2.png"))
    await until((tmp_path / "1" / "f1.png").exists, "first file")
    os.kill(node.pid, signal.SIGTERM)
    exited = await api.report(1, "exited")
    assert (exited["outcome"], exited["failure"]) == ("canceled", "handed_back")
    assert [result["name"] for result in api.reports(1, "result")] == ["f1.png"]
    assert await node.ends() == 0
    assert not node.engines()


async def test_second_sigterm_ends_at_once(api: FakeRenderAPI, tmp_path: Path) -> None:
    with linked_node(tmp_path, api, stop_grace=60.0) as node:
        await api.linked()
        await api.assign(1, ["-c", "trap '' TERM; sleep 600; sleep 600"], tmp_path / "1", limits=Limits(grace_s=60))
        await api.report(1, "started")
        os.kill(node.pid, signal.SIGTERM)
        await api.until(
            lambda: any(message["type"] == "heartbeat" and message["full"] for message in api.messages), "full"
        )
        os.kill(node.pid, signal.SIGTERM)
        began = time.monotonic()
        assert await node.ends() == 0
        assert time.monotonic() - began < 5.0
        assert not node.engines()


async def test_idle_machine_leaves(api: FakeRenderAPI, tmp_path: Path) -> None:
    node = Node(tmp_path / "node", api.url)
    node.join()
    node.start(idle_exit_s=1.0)
    try:
        await api.linked()
        await api.assign(1, ["-c", "sleep 1.5"], tmp_path / "1")
        assert (await api.report(1, "exited"))["outcome"] == "succeeded"
        assert await node.ends() == 0
    finally:
        node.stop()


async def test_final_refusal_ends_the_program_with_the_message(api: FakeRenderAPI, node: Node) -> None:
    api.refusal = {"code": "unknown_machine", "message": "This machine was removed.", "final": True}
    assert await node.ends() == 3
    assert "REFUSED: This machine was removed." in node.log.read_text()


async def test_refusal_that_is_not_final_is_tried_again(api: FakeRenderAPI, node: Node) -> None:
    api.refusal = {"code": "busy", "message": "Later.", "final": False}
    await api.linked(2)
    api.refusal = None
    await until((node.home / "hpcserver.json").exists, "link")


async def test_machine_dials_again_when_it_is_not_welcomed_in_words_that_it_knows(
    api: FakeRenderAPI, node: Node
) -> None:
    api.refusal = {"type": "unheard_of"}
    await api.linked(2)
    api.refusal = None
    await until((node.home / "hpcserver.json").exists, "link")


async def test_second_program_on_the_same_directory_is_refused(api: FakeRenderAPI, node: Node) -> None:
    await api.linked()
    second = Node(node.home, api.url)
    second.start()
    try:
        assert await second.ends() == 3
        assert f"Another HPCServer (process {node.pid}) uses" in second.log.read_text()
    finally:
        second.stop()


async def test_unreadable_messages_are_survived_and_such_an_assignment_handed_back(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    await api.send({"type": "nonsense"})
    await api.send({"type": "cancel"})
    await api.send({"type": "assign", "attempt": 5, "token": "t", "argv": "no list"})
    assert (await api.report(5, "exited"))["failure"] == "handed_back"
    await api.assign(6, ["-c", "exit 0"], tmp_path / "6")
    assert (await api.report(6, "exited"))["outcome"] == "succeeded"


async def test_messages_of_one_frame_are_taken_in_order_and_an_unreadable_one_alone_is_handed_back(
    api: FakeRenderAPI, node: Node, tmp_path: Path
) -> None:
    await api.linked()
    common = {"type": "assign", "task": 1, "engine": "sh", "token": "t"}
    orders = [
        {**common, "attempt": number, "chunk": number, "argv": argv, "directory": str(tmp_path / str(number))}
        for number, argv in enumerate((["-c", "exit 0"], "no list", ["-c", "exit 3"]), 1)
    ]
    await api.send([*orders, {"type": "cancel", "attempt": 3, "reason": "not wanted"}])
    assert (await api.report(1, "exited"))["outcome"] == "succeeded"
    assert (await api.report(2, "exited"))["failure"] == "handed_back"
    assert (await api.report(3, "exited"))["outcome"] == "canceled"


@pytest.mark.parametrize("protocol", [PROTOCOL - 1, PROTOCOL])
async def test_reports_that_wait_travel_in_one_frame_but_singly_to_a_farm_of_the_version_before(
    api: FakeRenderAPI, node: Node, tmp_path: Path, protocol: int
) -> None:
    """R5.6 Protocol versions."""
    await api.linked()
    api.acknowledge = False
    await api.assign(1, ["-c", "touch a b c d"], tmp_path / "1")
    await api.report(1, "exited")
    api.protocol = protocol
    api.frames.clear()
    api.messages.clear()
    await api.cut()
    await api.report(1, "exited")
    assert [report["seq"] for report in api.reports()] == [1, 2, 3, 4, 5, 6]
    assert max(api.frames) == (1 if protocol < PROTOCOL else 6)


async def test_engine_starts_quickly_after_the_assignment(api: FakeRenderAPI, node: Node, tmp_path: Path) -> None:
    """Against the same number of plain process starts; the bar of 2 ms is the benchmark's."""
    await api.linked()
    waits = []
    for number in range(1, 41):
        began = time.time()
        await api.assign(number, ["-c", "exit 0"], tmp_path / str(number))
        waits.append((await api.report(number, "started"))["at_us"] / 1e6 - began)
        await api.report(number, "exited")
    assert statistics.median(waits) < 0.05


async def test_link_trusts_the_pinned_certificate_and_no_other(tmp_path: Path) -> None:
    certificate, other = Certificate(tmp_path), Certificate(tmp_path, "other")
    async with FakeRenderAPI(certificate=certificate) as api:
        node = Node(tmp_path / "node", api.url)
        node.join(other.chain.read_text())
        node.start()
        try:
            await until(lambda: "not linked, trying again" in node.log.read_text(), "refused certificate")
            assert not api.hellos
            node.stop()
            node.join(certificate.chain.read_text())
            node.start()
            assert (await api.linked())["secret"] == "secret"
            await api.assign(1, ["-c", "exit 0"], tmp_path / "1")
            assert (await api.report(1, "exited"))["outcome"] == "succeeded"
        finally:
            node.stop()
