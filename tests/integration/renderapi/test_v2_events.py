"""`/renderapi/v2`: the stream of events: resumed, resynced, and only what one may hear."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from renderonline.renderapi import events
from renderonline.renderapi.services import V2
from tests.support.renderapi import Running


async def read_events(api: Running, who: Mapping[str, str], last: str = "", count: int = 1) -> list[dict[str, Any]]:
    """The next `count` events with data."""
    headers = {**who, **({"Last-Event-ID": last} if last else {})}
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(15), api.http.get(f"{api.url}{V2}/events", headers=headers) as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        event: dict[str, Any] = {}
        async for line in response.content:
            key, _, value = line.decode().rstrip("\n").partition(": ")
            if key == "data":
                found.append({**event, "data": json.loads(value)})
                if len(found) == count:
                    return found
            elif key:
                event[key] = value
    return found


async def test_events_are_resumed_where_they_broke_off(api: Running) -> None:
    await api.new_task()
    begin = await read_marker(api)
    await api.call("POST", "/tasks/1/pause")
    first = (await read_events(api, api.who, begin))[0]
    await api.call("POST", "/tasks/1/resume")
    await read_events(api, api.who, first["id"])  # quick changes of one task are told as one
    await api.call("POST", "/tasks/1/cancel")
    rest = await read_events(api, api.who, first["id"], count=2)
    assert [event["event"] for event in (first, *rest)] == ["task"] * 3
    assert [event["data"]["status"] for event in (first, *rest)] == ["paused", "queued", "canceled"]


async def test_unknown_last_event_means_resync(api: Running) -> None:
    for last in ("0000-5", "nonsense", "99"):
        assert (await read_events(api, api.who, last))[0]["event"] == "resync"


@pytest.mark.both_databases
async def test_artists_hear_of_their_own_tasks_only(api: Running) -> None:
    artist = await api.new_user("artist@example.org")
    marker = await read_marker(api)
    await api.new_task()
    await api.call("POST", "/tasks/1/cancel")
    await api.call("POST", "/machines", {"ip_address": "127.0.0.1", "port": 1})
    await api.new_task(artist)
    await api.call("POST", "/tasks/2/cancel", who=artist)
    heard = await read_events(api, artist, marker, count=1)
    assert {event["data"].get("task_id") for event in heard} == {2}


async def test_stream_ends_with_the_rights_of_who_reads_it(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "KNOWN_S", 0.0)
    monkeypatch.setattr(events, "QUIET_S", 0.1)
    artist = await api.new_user("artist@example.org")
    number = (await api.call("GET", "/me", who=artist)).json()["user_id"]
    async with asyncio.timeout(30), api.http.get(f"{api.url}{V2}/events", headers=artist) as response:
        assert await response.content.readline()
        assert (await api.call("PATCH", f"/users/{number}", {"is_active": False})).status == 200
        await response.content.read()  # to its end


async def read_marker(api: Running) -> str:
    """An id of now, to resume from."""
    event = (await read_events(api, api.who, "0000-1"))[0]
    return str(event["id"])
