"""`/renderapi/v2` over HTTP: roles first, then tasks, then what those who run the farm see."""

import asyncio
import re
from typing import Any

import pytest

from renderonline.engines.definition import parse_definition, shipped
from renderonline.renderapi.services import V2
from tests.support.renderapi import COMMAND_ENGINE, SCENE, Running

# -- who may do what


ADMIN_ONLY: list[tuple[str, str, Any]] = [
    ("GET", "/users", None),
    ("POST", "/users", {"email": "x@example.org"}),
    ("GET", "/users/1", None),
    ("PATCH", "/users/1", {"first_name": "x"}),
    ("POST", "/users/1/token", None),
    ("GET", "/subscriptions", None),
    ("POST", "/subscriptions", {"name": "x", "queue_limit": 1}),
    ("PATCH", "/subscriptions/1", {"name": "x"}),
    ("POST", "/engines", {"definition": COMMAND_ENGINE}),
    ("PATCH", "/engines/1", {"is_enabled": False}),
    ("DELETE", "/engines/1", None),
    ("PUT", "/argtypes/x", {"type": "word"}),
    ("DELETE", "/argtypes/start_frame", None),
]
OPERATOR_TOO: list[tuple[str, str, Any]] = [
    ("GET", "/machines", None),
    ("POST", "/machines", {"ip_address": "127.0.0.1", "port": 1}),
    ("PATCH", "/machines/1", {"wish": "disabled"}),
    ("POST", "/machines/invite", {}),
    ("DELETE", "/machines/1", None),
]


async def test_roles_decide_who_may_do_what(api: Running) -> None:
    artist = await api.new_user("artist@example.org")
    operator = await api.new_user("operator@example.org", "operator")
    for method, path, body in ADMIN_ONLY:
        for who in (artist, operator):
            reply = await api.call(method, path, body, who=who)
            assert (reply.status, reply.json()["code"]) == (403, "not_allowed"), path
    for method, path, body in OPERATOR_TOO:
        assert (await api.call(method, path, body, who=artist)).status == 403, path
        assert (await api.call(method, path, body, who=operator)).status < 300, path
    for method, path, body in [*ADMIN_ONLY, *OPERATOR_TOO, ("GET", "/tasks", None), ("GET", "/events", None)]:
        reply = await api.call(method, path, body, who={})
        assert (reply.status, reply.headers["Content-Type"]) == (401, "application/problem+json"), path


@pytest.mark.both_databases
async def test_artists_see_and_touch_their_own_tasks_only(api: Running) -> None:
    artist = await api.new_user("artist@example.org")
    operator = await api.new_user("operator@example.org", "operator")
    foreign, own = (await api.new_task())["task_id"], (await api.new_task(artist))["task_id"]

    listed = await api.call("GET", "/tasks?all=1", who=artist)
    assert [task["task_id"] for task in listed.json()["items"]] == [own]
    for method, path in [
        ("GET", ""),
        ("GET", "/chunks"),
        ("GET", "/attempts"),
        ("GET", "/results"),
        ("GET", "/explain"),
        ("GET", "/download"),
        ("GET", "/results/x"),
        ("POST", "/cancel"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("POST", "/retry"),
        ("POST", "/requeue"),
        ("PATCH", ""),
        ("DELETE", ""),
    ]:
        body = {"priority": 1} if method == "PATCH" else None
        reply = await api.call(method, f"/tasks/{foreign}{path}", body, who=artist)
        assert (reply.status, reply.json()["code"]) == (404, "not_found"), path

    everybody = await api.call("GET", "/tasks?all=1", who=operator)
    assert [task["task_id"] for task in everybody.json()["items"]] == [own, foreign]
    assert (await api.call("GET", "/tasks", who=operator)).json()["items"] == []
    assert (await api.call("POST", f"/tasks/{own}/cancel", who=operator)).json()["status"] == "canceled"


# -- tasks


@pytest.mark.both_databases
async def test_submitted_task_is_shown_whole(api: Running) -> None:
    task = await api.new_task(frames="1-10x3,20", arguments={"format": "JPEG"}, name="Walk", priority=70, chunk_size=2)
    assert task == {
        "task_id": 1,
        "name": "Walk",
        "user_id": 1,
        "email": "admin@localhost",
        "engine": "blender",
        "engine_id": 1,
        "status": "queued",
        "priority": 70,
        "running_limit": 0,
        "paused": False,
        "file_name": "a.blend",
        "file_size": 13,
        "arguments": {**task["arguments"], "start_frame": "1", "end_frame": "20", "frame_step": "1", "format": "JPEG"},
        "frames": "1-10x3,20",
        "frames_total": 5,
        "frames_done": 0,
        "chunk_size": 2,
        "chunks": {"waiting": 3, "assigned": 0, "running": 0, "succeeded": 0, "failed": 0, "canceled": 0},
        "integrity": "compared",
        "queued": task["queued"],
        "started": None,
        "ended": None,
        "deletes_at": None,
        "reason": None,
        "machine_ids": [],
        "notify": False,
        "needs": {},
        "film": "",
        "names": "",
        "deliver": "",
        "facts": {},
        "missing_inputs": [],
        "warnings": [],
        "unchecked": "no linked machine was free",
        "stuck": "No machine is connected. Add one: renderonline machine invite.",
        "progress": 0.0,
        "latest": None,
    }
    others = {one.id: one.default for one in parse_definition(shipped()["blender"]).arguments}
    assert task["arguments"] | {"end_frame": "1", "format": "PNG"} == others
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", task["queued"])
    chunks = (await api.call("GET", "/tasks/1/chunks")).json()["items"]
    assert [(chunk["frames"], chunk["place"]) for chunk in chunks] == [("1-4x3", 0), ("7-10x3", 2), ("20", 1)]


@pytest.mark.both_databases
async def test_parts_of_a_task_are_asked_for_by_their_ids(api: Running) -> None:
    for _ in range(2):
        await api.new_task(frames="1-4", chunk_size=1)
    own = [chunk["chunk_id"] for chunk in (await api.call("GET", "/tasks/1/chunks")).json()["items"]]
    [other, *_] = [chunk["chunk_id"] for chunk in (await api.call("GET", "/tasks/2/chunks")).json()["items"]]

    found = (await api.call("GET", f"/tasks/1/chunks?ids={own[3]},{own[1]},{other}")).json()

    assert [chunk["chunk_id"] for chunk in found["items"]] == [own[1], own[3]]
    assert found["next"] is None
    assert (await api.call("GET", "/tasks/1/attempts?ids=7")).json()["items"] == []
    for wrong in ("x", "1,", "-1", "1 2", ",".join(["1"] * 201), "9" * 19):
        assert (await api.call("GET", f"/tasks/1/chunks?ids={wrong}")).status == 400


@pytest.mark.parametrize(("takes", "limit"), [("gzip, br", 500), ("gzip, br", 5), ("identity", 500)])
async def test_long_answers_travel_compressed_to_those_who_take_it(api: Running, takes: str, limit: int) -> None:
    await api.new_task(frames="1-500", chunk_size=1)
    reply = await api.call("GET", f"/tasks/1/chunks?limit={limit}", headers={"Accept-Encoding": takes})
    assert len(reply.json()["items"]) == limit
    if takes == "identity" or limit == 5:
        assert int(reply.headers["Content-Length"]) == len(reply.body)
        assert "Content-Encoding" not in reply.headers
    else:
        assert int(reply.headers["Content-Length"]) < len(reply.body) / 10
        assert reply.headers["Content-Encoding"] == "gzip"
        assert "Accept-Encoding" in reply.headers["Vary"]


@pytest.mark.both_databases
async def test_tasks_come_in_pages(api: Running) -> None:
    for _ in range(5):
        await api.new_task()
    found, cursor = [], ""
    while True:
        page = (await api.call("GET", f"/tasks?limit=2{cursor}")).json()
        found += [task["task_id"] for task in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert found == [5, 4, 3, 2, 1]


@pytest.mark.both_databases
async def test_tasks_are_found_by_status_engine_and_words(api: Running) -> None:
    await api.new_task(name="Walk cycle")
    await api.new_task(name="Run cycle", paused=True)
    await api.call("POST", "/tasks/1/cancel")

    async def found(query: str) -> list[int]:
        return [task["task_id"] for task in (await api.call("GET", f"/tasks?{query}")).json()["items"]]

    assert await found("status=canceled") == [1]
    assert await found("status=paused") == [2]
    assert await found("search=cycle") == [2, 1]
    assert await found("search=walk") == [1]
    assert await found("engine=povray") == []
    assert (await api.call("GET", "/tasks?status=odd")).status == 400


@pytest.mark.both_databases
async def test_task_is_paused_resumed_canceled_tried_again_and_deleted(api: Running) -> None:
    await api.new_task()
    assert (await api.call("POST", "/tasks/1/pause")).json()["status"] == "paused"
    assert (await api.call("GET", "/tasks/1/explain")).json()["reasons"][0].startswith("It is paused")
    assert (await api.call("POST", "/tasks/1/resume")).json()["status"] == "queued"
    assert (await api.call("POST", "/tasks/1/cancel")).json()["status"] == "canceled"
    assert (await api.call("POST", "/tasks/1/cancel")).json()["status"] == "canceled"
    assert (await api.call("POST", "/tasks/1/retry")).json()["status"] == "queued"
    assert (await api.call("POST", "/tasks/1/pause?now=1")).json()["status"] == "paused"
    assert (await api.call("POST", "/tasks/1/requeue")).json()["status"] == "queued"
    deleted = await api.call("DELETE", "/tasks/1")
    assert (deleted.status, deleted.body) == (204, b"")
    assert (await api.call("GET", "/tasks/1")).status == 404


@pytest.mark.both_databases
async def test_task_is_changed(api: Running) -> None:
    await api.new_task()
    for _ in range(2):
        task = (await api.call("PATCH", "/tasks/1", {"name": "Walk", "priority": 80, "running_limit": 3})).json()
        assert (task["name"], task["priority"], task["running_limit"]) == ("Walk", 80, 3)
    assert (await api.call("PATCH", "/tasks/1", {"name": ""})).json()["name"] == "a.blend"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("", {}),
        ("", []),
        ("", {"priority": 101}),
        ("", {"priority": "50"}),
        ("", {"running_limit": -1}),
        ("", {"running_limit": 2**31}),
        ("", {"name": "x" * 256}),
        ("", {"name": "a\nb"}),
        ("", {"user_id": 2}),
        ("/requeue", {"frames": "1-200000"}),
        ("/requeue", {"frames": "99"}),
        ("/requeue", {"frames": ["1"]}),
        ("/requeue", {"chunks": [-1]}),
        ("/requeue", {"chunks": [2**63]}),
        ("/requeue", {"chunks": [4711]}),
        ("/requeue", {"chunks": list(range(10_001))}),
        ("/requeue", {"all": True}),
        ("/pause?now=perhaps", None),
    ],
)
async def test_bad_changes_of_a_task_change_nothing(api: Running, path: str, body: Any) -> None:
    before = await api.new_task()
    reply = await api.call("POST" if path else "PATCH", f"/tasks/1{path}", body)
    assert (reply.status, reply.json()["code"]) == (400, "invalid_request")
    assert (await api.call("GET", "/tasks/1")).json() == before


WRONG: list[tuple[Any, str]] = [
    ({"engine": "nope"}, "engine_not_found"),
    ({"engine": "blender", "arguments": {"odd": "1"}}, "unknown_argument"),
    ({"engine": "blender", "arguments": {"format": "GIF"}}, "invalid_value"),
    ({"engine": "blender", "arguments": {"start_frame": "x"}}, "invalid_value"),
    ({"engine": "blender", "arguments": {"start_frame": "9", "end_frame": "1"}}, "invalid_request"),
    ({"engine": "blender", "frames": "nonsense"}, "invalid_request"),
    ({"engine": "blender", "frames": "1-200000"}, "invalid_request"),
    ({"engine": "blender", "priority": 101}, "invalid_request"),
    ({"engine": "blender", "chunk_size": -1}, "invalid_request"),
    ({"engine": "blender", "name": "x" * 256}, "invalid_request"),
    ({"engine": "blender", "waits_for": ["x"]}, "invalid_request"),
    ({"engine": None}, "invalid_request"),
    ([], "invalid_request"),
    (None, "invalid_request"),
]


async def test_wrong_requests_are_refused_with_a_code(api: Running) -> None:
    for request_part, code in WRONG:
        reply = await api.submit(request_part, SCENE, version=2)
        assert (reply.status, reply.json()["code"]) == (400, code), request_part
        assert reply.headers["Content-Type"] == "application/problem+json"
    assert api.tree() == []


@pytest.mark.both_databases
async def test_queue_limit_is_told_as_429(api: Running) -> None:
    await api.call("PATCH", "/subscriptions/1", {"queue_limit": 0})
    reply = await api.submit({"engine": "blender"}, SCENE, version=2)
    assert (reply.status, reply.json()["code"]) == (429, "limit_reached")


@pytest.mark.both_databases
async def test_same_key_gives_the_same_task_even_at_once(api: Running) -> None:
    key = {"Idempotency-Key": "4f2c1d"}
    replies = await asyncio.gather(
        *(api.submit({"engine": "blender"}, SCENE, version=2, headers=key) for _ in range(6))
    )
    assert {(reply.status, reply.json()["task_id"]) for reply in replies} == {(201, 1)}
    assert sum(path.endswith(".blend") for path in api.tree()) == 1
    too_long = await api.submit({"engine": "blender"}, SCENE, version=2, headers={"Idempotency-Key": "x" * 65})
    assert too_long.status == 400


async def test_key_belongs_to_its_user(api: Running) -> None:
    key = {"Idempotency-Key": "4f2c1d"}
    who = await api.new_user("ada@example.org")
    first = await api.submit({"engine": "blender"}, SCENE, version=2, headers=key)
    second = await api.submit({"engine": "blender"}, SCENE, version=2, headers=key, who=who)
    assert first.json()["task_id"] != second.json()["task_id"]


# -- for those who run the farm


async def test_health_needs_no_login_and_tells_nothing(api: Running) -> None:
    async with api.http.get(f"{api.url}/healthz") as response:
        assert response.status == 200
        assert sorted(await response.json()) == ["status", "version"]


@pytest.mark.both_databases
async def test_metrics_count_what_happens(api: Running) -> None:
    await api.new_task()
    async with api.http.get(f"{api.url}/metrics") as response:
        text = await response.text()
    assert 'renderonline_requests_total{endpoint="submit",method="POST",status="201"} 1.0' in text
    assert "renderonline_tasks_queued 1.0" in text


async def test_api_page_documents_every_call(api: Running) -> None:
    async with api.http.get(f"{api.url}{V2}/openapi.json") as response:
        paths = (await response.json())["paths"]
    assert {f"{V2}/tasks", f"{V2}/events", f"{V2}/tasks/{{task_id}}/download", f"{V2}/machines/invite"} <= set(paths)
    assert set(paths[f"{V2}/tasks"]) == {"get", "post"}
    async with api.http.get(f"{api.url}/docs") as response:
        page = await response.text()
    assert response.status == 200
    assert all(path in page for path in paths)
    assert "<script" not in page


async def test_what_is_not_there_is_a_problem(api: Running) -> None:
    for method, path, status in [("GET", "/nothing", 404), ("PUT", "/tasks", 405), ("GET", "/tasks/x", 404)]:
        reply = await api.call(method, path)
        assert reply.status in (status, 400), path
        assert reply.headers["Content-Type"] == "application/problem+json"
