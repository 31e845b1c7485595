"""The ring of events: nobody waits, nobody misses anything unknowingly."""

import asyncio
import json
import tracemalloc
from collections.abc import AsyncIterator
from unittest.mock import Mock

import pytest

from renderonline.renderapi import events
from renderonline.renderapi.events import Announcer, Events, TaskEvent


def everything(_event: TaskEvent) -> bool:
    return True


async def always() -> bool:
    return True


async def told(stream: AsyncIterator[bytes], count: int) -> list[tuple[str, str, object]]:
    """The next `count` events as (id, type, data)."""
    found: list[tuple[str, str, object]] = []
    async with asyncio.timeout(5):
        async for piece in stream:
            for block in piece.decode().split("\n\n"):
                fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
                if "data" in fields:
                    found.append((fields["id"], fields["event"], json.loads(fields["data"])))
            if len(found) >= count:
                break
    return found


async def test_reader_hears_what_comes_after_it_came() -> None:
    ring = Events("e")
    ring.publish("task", {"task_id": 1})
    reading = asyncio.create_task(told(ring.stream(None, everything, always), 2))
    await asyncio.sleep(0)
    ring.publish("task", {"task_id": 2})
    await asyncio.sleep(0)
    ring.publish("machine", {"machine_id": 3})
    assert await reading == [("e-2", "task", {"task_id": 2}), ("e-3", "machine", {"machine_id": 3})]


async def test_reader_goes_on_where_it_was() -> None:
    ring = Events("e")
    for number in range(5):
        ring.publish("task", {"task_id": number})
    found = await told(ring.stream("e-3", everything, always), 2)
    assert [name for name, _, _ in found] == ["e-4", "e-5"]


@pytest.mark.parametrize("last", ["x-3", "e-9", "e-x", "nonsense", "e-" + "9" * 50, "e--1"])
async def test_unknown_position_means_resync(last: str) -> None:
    ring = Events("e")
    for _ in range(5):
        ring.publish("task", {})
    found = await told(ring.stream(last, everything, always), 1)
    assert found == [("e-5", "resync", {})]


async def test_gap_means_resync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RING", 10)
    ring = Events("e")
    for number in range(30):
        ring.publish("task", {"task_id": number})
    assert (await told(ring.stream("e-5", everything, always), 1))[0][1] == "resync"
    assert (await told(ring.stream("e-20", everything, always), 10))[0][0] == "e-21"


async def test_slow_reader_is_told_that_it_missed_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RING", 10)
    ring = Events("e")
    stream = ring.stream(None, everything, always)
    await anext(stream)
    for _ in range(30):
        ring.publish("task", {})
    assert (await told(stream, 1))[0][1] == "resync"


async def test_what_may_not_be_seen_is_not_sent() -> None:
    ring = Events("e")
    ring.publish("task", {"task_id": 1}, user_id=1)
    ring.publish("task", {"task_id": 2}, user_id=2)
    ring.publish("machine", {}, user_id=None)
    found = await told(ring.stream("e-0", lambda event: event.user_id == 2, always), 1)
    assert found == [("e-2", "task", {"task_id": 2})]


async def test_quiet_stream_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "QUIET_S", 0.01)
    stream = Events("e").stream(None, everything, always)
    assert [await anext(stream), await anext(stream)] == [b"retry: 2000\n\n", b": quiet\n\n"]


async def test_closing_ends_all_streams() -> None:
    ring = Events("e")
    reading = asyncio.create_task(told(ring.stream(None, everything, always), 1))
    await asyncio.sleep(0)
    ring.close()
    assert await reading == []


async def test_stream_ends_when_its_reader_may_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KNOWN_S", 0.0)
    ring, let_in = Events("e"), [True, True]

    async def may_stay() -> bool:
        return bool(let_in) and let_in.pop()

    reading = asyncio.create_task(told(ring.stream(None, everything, may_stay), 9))
    await asyncio.sleep(0)
    ring.publish("task", {"task_id": 1})
    assert len(await reading) == 1


async def test_kept_events_take_little_more_memory_than_their_text() -> None:
    ring = Events("e")
    tracemalloc.start()
    try:
        for number in range(500):
            ring.publish("task", {"task_id": number, "name": "n" * 500})
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 500 * 1500


async def test_change_of_a_machine_is_published_a_moment_later_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "SOON_S", 0.01)
    monkeypatch.setattr(events, "PAUSE_S", 0.01)
    ring, machine = Mock(), Mock(machine_id=1000)
    announcer = Announcer(ring)
    for _ in range(3):
        announcer.machine(machine)
    assert not machine.view.called  # what makes it change is not held up
    await asyncio.sleep(0.1)
    ring.publish.assert_called_once_with("machine", machine.view.return_value)
    announcer.machine(machine)
    await asyncio.sleep(0.1)
    assert ring.publish.call_count == 2
