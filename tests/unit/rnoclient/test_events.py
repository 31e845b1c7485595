"""The SDK's event stream and watching a task."""

import itertools
import json
from typing import Any

import pytest

from renderonline.farm import errors
from renderonline.rnoclient.sdk import Client, Login, connection
from renderonline.rnoclient.sdk.connection import stream
from tests.support.scripted_server import Answer, Asked, ScriptedServer

TASK = {"task_id": 7, "status": "running", "frames_done": 0}


def sse(*events: tuple[str, str, dict[str, Any]]) -> bytes:
    lines = [f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n" for number, kind, data in events]
    return b"retry: 2000\n\n" + "".join(lines).encode()


def test_stream_goes_on_after_a_cut_at_the_last_event() -> None:
    bodies = [sse(("e-1", "task", {"task_id": 1})), b": quiet\n\n" + sse(("e-2", "task", {"task_id": 2}))]

    def script(asked: Asked) -> Answer:
        return Answer(body=bodies.pop(0) if bodies else b"", headers={"content-type": "text/event-stream"})

    with ScriptedServer(script).running() as server:
        connection = Client(Login(server.url)).connection
        found = list(itertools.islice((event for event in stream(connection) if event.type), 3))
        asked = [item.headers.get("last-event-id") for item in server.asked]
    assert [(event.type, event.data.get("task_id")) for event in found] == [("resync", None), ("task", 1), ("task", 2)]
    assert asked == [None, "e-1"]


def test_event_that_was_cut_is_not_believed() -> None:
    bodies = [b'event: task\ndata: {"task_id"', sse(("e-2", "task", {"task_id": 2}))]
    with ScriptedServer(lambda _: Answer(body=bodies.pop(0) if bodies else b"")).running() as server:
        found = [e.data for e in itertools.islice(stream(Client(Login(server.url)).connection), 3) if e.type == "task"]
    assert found == [{"task_id": 2}]


def test_broken_data_is_an_empty_event_and_no_crash() -> None:
    with ScriptedServer(lambda _: Answer(body=b"event: task\ndata: {{{\n\n")).running() as server:
        found = list(itertools.islice(stream(Client(Login(server.url)).connection), 2))
    assert found[1].data == {}


def test_refusal_ends_the_stream() -> None:
    answer = Answer(401, b'{"title": "x", "detail": "Unknown.", "code": "not_authenticated"}')
    with ScriptedServer(lambda _: answer).running() as server, pytest.raises(errors.NotAuthenticated):
        next(stream(Client(Login(server.url)).connection))


FULL = Answer(429, b'{"title": "x", "detail": "Eight streams are open.", "code": "too_many_streams"}')


def test_without_a_stream_it_asks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "POLL_S", 0.0)
    answers = [FULL, FULL, Answer(body=sse(("e-1", "task", {"task_id": 1})))]
    with ScriptedServer(lambda _: answers.pop(0) if answers else FULL).running() as server:
        found = [event for event in itertools.islice(stream(Client(Login(server.url)).connection), 5) if event.type]
    assert [event.type for event in found] == ["resync", "resync", "resync", "task", "resync"]


def test_watch_without_a_stream_sees_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "POLL_S", 0.0)
    states = [TASK, {**TASK, "frames_done": 1}, {**TASK, "status": "succeeded", "frames_done": 2}]

    def script(asked: Asked) -> Answer:
        return FULL if asked.path.endswith("/events") else Answer(body=json.dumps(states.pop(0)).encode())

    with ScriptedServer(script).running() as server:
        seen = [task["frames_done"] for task in Client(Login(server.url)).watch(7)]
    assert seen == [0, 1, 2]


def test_watch_ends_with_the_task_and_shows_each_change_once() -> None:
    states = [TASK, TASK, {**TASK, "frames_done": 1}, {**TASK, "status": "succeeded", "frames_done": 2}]
    body = sse(*((f"e-{n}", "task", {"task_id": 7 if n != 2 else 8}) for n in range(6)))

    def script(asked: Asked) -> Answer:
        if asked.path.endswith("/events"):
            return Answer(body=body)
        return Answer(body=json.dumps(states.pop(0) if len(states) > 1 else states[0]).encode())

    with ScriptedServer(script).running() as server:
        seen = [task["frames_done"] for task in Client(Login(server.url)).watch(7)]
    assert seen == [0, 1, 2]
