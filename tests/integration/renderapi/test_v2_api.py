"""`/renderapi/v2` over HTTP: roles first, then what each part does."""

import asyncio
import hashlib
import json
import re
import zlib
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from renderonline.database import Database
from renderonline.database import schema as tables
from renderonline.renderapi.routes.guard import V2
from tests.support.renderapi import COMMAND_ENGINE, Running, renderapi


@pytest.fixture(name="api")
async def _api(tmp_path: Path, migrated_url: str) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data", connection_string=migrated_url) as running:
        yield running


SCENE = ("a.blend", b"BLENDER scene")


async def submit(api: Running, who: Mapping[str, str] | None = None, **request: Any) -> dict[str, Any]:
    reply = await api.submit({"engine": "blender", **request}, SCENE, version=2, who=who)
    assert reply.status == 201, reply.body
    task: dict[str, Any] = reply.json()
    return task


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


async def test_artists_see_and_touch_their_own_tasks_only(api: Running) -> None:
    artist = await api.new_user("artist@example.org")
    operator = await api.new_user("operator@example.org", "operator")
    foreign, own = (await submit(api))["task_id"], (await submit(api, artist))["task_id"]

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


async def test_submitted_task_is_shown_whole(api: Running) -> None:
    task = await submit(api, frames="1-10x3,20", arguments={"format": "JPEG"}, name="Walk", priority=70, chunk_size=2)
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
        "arguments": {"start_frame": "1", "end_frame": "20", "frame_step": "1", "format": "JPEG", "threads": "0"},
        "frames": "1-10x3,20",
        "frames_total": 5,
        "frames_done": 0,
        "chunk_size": 2,
        "chunks": {"waiting": 3, "assigned": 0, "running": 0, "succeeded": 0, "failed": 0, "canceled": 0},
        "queued": task["queued"],
        "started": None,
        "ended": None,
        "reason": None,
        "machine_ids": [],
        "notify": False,
        "needs": {},
        "progress": 0.0,
        "latest": None,
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", task["queued"])
    chunks = (await api.call("GET", "/tasks/1/chunks")).json()["items"]
    assert [(chunk["frames"], chunk["place"]) for chunk in chunks] == [("1-4x3", 0), ("7-10x3", 2), ("20", 1)]


async def test_tasks_come_in_pages(api: Running) -> None:
    for _ in range(5):
        await submit(api)
    found, cursor = [], ""
    while True:
        page = (await api.call("GET", f"/tasks?limit=2{cursor}")).json()
        found += [task["task_id"] for task in page["items"]]
        if page["next"] is None:
            break
        cursor = f"&cursor={page['next']}"
    assert found == [5, 4, 3, 2, 1]


async def test_tasks_are_found_by_status_engine_and_words(api: Running) -> None:
    await submit(api, name="Walk cycle")
    await submit(api, name="Run cycle", paused=True)
    await api.call("POST", "/tasks/1/cancel")

    async def found(query: str) -> list[int]:
        return [task["task_id"] for task in (await api.call("GET", f"/tasks?{query}")).json()["items"]]

    assert await found("status=canceled") == [1]
    assert await found("status=paused") == [2]
    assert await found("search=cycle") == [2, 1]
    assert await found("search=walk") == [1]
    assert await found("engine=povray") == []
    assert (await api.call("GET", "/tasks?status=odd")).status == 400


async def test_task_is_paused_resumed_canceled_tried_again_and_deleted(api: Running) -> None:
    await submit(api)
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


async def test_task_is_changed(api: Running) -> None:
    await submit(api)
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
    before = await submit(api)
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


async def test_queue_limit_is_told_as_429(api: Running) -> None:
    await api.call("PATCH", "/subscriptions/1", {"queue_limit": 0})
    reply = await api.submit({"engine": "blender"}, SCENE, version=2)
    assert (reply.status, reply.json()["code"]) == (429, "limit_reached")


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


# -- files


async def landed(api: Running, url: str, name: str, content: bytes) -> None:
    """A result as the dispatcher leaves it."""
    directory = api.settings.files / api.tree()[1]
    (directory / name).write_bytes(content)
    row = {
        "task_id": 1,
        "name_hash": hashlib.sha256(name.encode()).hexdigest(),
        "name": name,
        "chunk_id": 1,
        "attempt_id": 1,
        "state": "landed",
        "frame": 1,
        "size": len(content),
        "digest": "d" * 64,
        "crc32": zlib.crc32(content),
        "landed_us": 1,
    }
    with Database.open(url) as database:
        database.write_now(lambda connection: connection.execute(tables.results.insert().values(row)))


async def test_download_is_resumed_by_ranges(api: Running, migrated_url: str) -> None:
    await submit(api)
    await landed(api, migrated_url, "frame_0001.png", b"png" * 10_000)
    whole = await api.call("GET", "/tasks/1/download")
    size, tag = len(whole.body), whole.headers["ETag"]
    assert (whole.status, int(whole.headers["Content-Length"])) == (200, size)
    assert 'filename="task-1.zip"' in whole.headers["Content-Disposition"]

    get = partial(api.call, "GET", "/tasks/1/download")
    for asked, part in [
        ("bytes=0-0", whole.body[:1]),
        ("bytes=100-199", whole.body[100:200]),
        ("bytes=20000-", whole.body[20000:]),
        ("bytes=-50", whole.body[-50:]),
        (f"bytes={size - 1}-{size + 100}", whole.body[-1:]),
    ]:
        reply = await get(headers={"Range": asked, "If-Range": tag})
        assert (reply.status, reply.body) == (206, part), asked
        assert reply.headers["Content-Range"].endswith(f"/{size}")
    assert (await get(headers={"Range": f"bytes={size}-"})).status == 416
    for other in ("bytes=1-2,4-5", "lines=1-2", "bytes=-", "bytes=5-2"):
        assert (await get(headers={"Range": other})).body == whole.body
    assert (await get(headers={"If-None-Match": tag})).status == 304

    await landed(api, migrated_url, "frame_0002.png", b"more")
    changed = await get(headers={"Range": "bytes=100-", "If-Range": tag})
    assert changed.status == 200
    assert changed.headers["ETag"] != tag


async def test_result_is_one_file(api: Running, migrated_url: str) -> None:
    await submit(api)
    await landed(api, migrated_url, "frame #1.png", b"png")
    listed = (await api.call("GET", "/tasks/1/results")).json()["items"]
    assert [(result["name"], result["size"], result["frame"]) for result in listed] == [("frame #1.png", 3, 1)]
    reply = await api.call("GET", "/tasks/1/results/frame%20%231.png")
    assert (reply.status, reply.body) == (200, b"png")
    assert (await api.call("GET", "/tasks/1/results/frame%20%231.png", headers={"Range": "bytes=1-"})).body == b"ng"
    assert (await api.call("GET", "/tasks/1/results/a.blend")).status == 404


async def test_a_task_shows_the_picture_that_landed_last(api: Running, migrated_url: str) -> None:
    await submit(api)
    for name in ("frame_0001.png", "frame_0002.png"):
        await landed(api, migrated_url, name, b"png")
    with Database.open(migrated_url) as database:
        facts = tables.results.update().values(facts='{"width": 640, "render_time_s": 1.5}')
        database.write_now(lambda connection: connection.execute(facts))
        database.write_now(lambda connection: connection.execute(tables.tasks.update().values(frames_done=1)))
    latest = (await api.call("GET", "/tasks/1")).json()["latest"]
    assert (latest["name"], latest["facts"]) == ("frame_0002.png", {"width": 640, "render_time_s": 1.5})


async def test_files_that_are_gone_are_told(api: Running) -> None:
    await submit(api)
    scene = api.settings.files / next(path for path in api.tree() if path.endswith(".blend"))
    await asyncio.to_thread(scene.unlink)
    await asyncio.to_thread(scene.parent.rmdir)
    reply = await api.call("GET", "/tasks/1/download")
    assert (reply.status, reply.json()["code"]) == (404, "files_gone")


async def test_log_of_no_attempt_is_not_there(api: Running) -> None:
    assert (await api.call("GET", "/attempts/5/log")).status == 404
    assert (await api.call("GET", "/attempts/5/log?offset=x")).status == 400


# -- administration


async def test_user_is_added_changed_and_gets_another_token(api: Running) -> None:
    added = await api.call("POST", "/users", {"email": "ada@example.org", "first_name": "Ada"})
    user = added.json()
    assert (user["role"], user["is_active"], user["subscription_id"]) == ("artist", True, 1)
    who = {"email": "ada@example.org", "token": user["token"]}
    me = (await api.call("GET", "/me", who=who)).json()
    assert (me["user_id"], me["permissions"]) == (2, ["tasks.own"])
    assert "token" not in json.dumps((await api.call("GET", "/users")).json())

    assert (await api.call("PATCH", "/users/2", {"role": "operator"})).json()["role"] == "operator"
    assert "machines" in (await api.call("GET", "/me", who=who)).json()["permissions"]
    renewed = (await api.call("POST", "/users/2/token", who=who)).json()["token"]
    assert (await api.call("GET", "/me", who=who)).status == 401
    assert (await api.call("GET", "/me", who={**who, "token": renewed})).status == 200

    assert (await api.call("POST", "/users", {"email": "ADA@example.org"})).status == 409
    for wrong in ({"email": "nobody"}, {"email": "b@example.org", "role": "king"}, {}, {"email": "c@x.org", "odd": 1}):
        assert (await api.call("POST", "/users", wrong)).status == 400
    assert (await api.call("PATCH", "/users/1", {"is_active": False})).status == 409


async def test_stored_tokens_are_hashes(api: Running, migrated_url: str) -> None:
    await api.new_user("ada@example.org")
    with Database.open(migrated_url) as database:
        stored = database.read_now(lambda c: [row.token for row in c.execute(tables.users.select())])
    assert all(token.startswith("$rno1$") for token in stored)
    assert (await api.call("GET", "/me", who={**api.who, "token": stored[0]})).status == 401


async def test_engine_is_added_used_changed_and_removed(api: Running) -> None:
    added = await api.call("POST", "/engines", {"definition": COMMAND_ENGINE})
    engine = added.json()
    assert (added.status, engine["name"], engine["extensions"], engine["split"]) == (201, "writer", [".txt"], "frames")
    assert [argument["id"] for argument in engine["arguments"]] == ["first", "last", "words"]
    assert {"argtype_id": "words", "type": "sentence", "regex": ""} in (await api.call("GET", "/argtypes")).json()[
        "items"
    ]

    number = engine["engine_id"]
    await api.submit({"engine": "writer", "frames": "1-9"}, ("a.txt", b"x"), version=2)
    assert (await api.call("DELETE", f"/engines/{number}")).status == 409
    await api.call("PATCH", f"/engines/{number}", {"is_enabled": False})
    reply = await api.submit({"engine": "writer", "frames": "1-9"}, ("a.txt", b"x"), version=2)
    assert reply.json()["code"] == "engine_not_found"
    await api.call("DELETE", "/tasks/1")
    assert (await api.call("DELETE", f"/engines/{number}")).status == 204
    assert (await api.call("GET", f"/engines/{number}")).status == 404


async def test_engines_that_can_t_work_are_refused(api: Running) -> None:
    other_rule = COMMAND_ENGINE.replace('id = "first"\ntype = "integer"', 'id = "start_frame"\ntype = "integer"')
    other_rule = other_rule.replace('first = "first"', 'first = "start_frame"').replace(":first", ":start_frame")
    cases = [
        ({"definition": "nonsense"}, 400),
        ({"definition": COMMAND_ENGINE, "download_path": "relative/path"}, 400),
        ({"definition": COMMAND_ENGINE.replace("writer", "blender")}, 409),
        ({"definition": other_rule}, 409),
    ]
    for body, status in cases:
        reply = await api.call("POST", "/engines", body)
        assert reply.status == status, reply.body
    assert len((await api.call("GET", "/engines")).json()["items"]) == 2


async def test_argtypes_are_rules_that_work(api: Running) -> None:
    assert (await api.call("PUT", "/argtypes/shot", {"type": "word", "regex": "[a-z]{3}"})).status == 200
    for wrong in ({"type": "nonsense"}, {"type": "word", "regex": "["}):
        assert (await api.call("PUT", "/argtypes/shot", wrong)).status == 400
    assert (await api.call("DELETE", "/argtypes/start_frame")).status == 409
    assert (await api.call("DELETE", "/argtypes/shot")).status == 204
    assert (await api.call("DELETE", "/argtypes/shot")).status == 404


async def test_machine_joins_with_a_code_once(api: Running) -> None:
    invited = (await api.call("POST", "/machines/invite", {})).json()
    assert invited["command"].startswith(f"renderonline node --join {api.url} --code {invited['code']}")
    body = {"code": invited["code"].lower(), "name": "render-1"}
    enrolled = await api.call("POST", "/machines/enroll", body, who={})
    assert (enrolled.status, enrolled.json()["machine_id"]) == (201, 1000)
    assert (await api.call("POST", "/machines/enroll", body, who={})).status == 401
    machine = (await api.call("GET", "/machines")).json()["items"][0]
    assert (machine["name"], machine["kind"], machine["status"]) == ("render-1", "linked", "offline")
    changed = await api.call("PATCH", "/machines/1000", {"wish": "disabled", "reason": "too loud", "name": "r1"})
    assert (changed.json()["wish"], changed.json()["reason"], changed.json()["name"]) == ("disabled", "too loud", "r1")
    assert (await api.call("DELETE", "/machines/1000")).status == 204
    assert (await api.call("GET", "/machines")).json()["items"] == []


# -- events


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
    await submit(api)
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


async def test_artists_hear_of_their_own_tasks_only(api: Running) -> None:
    artist = await api.new_user("artist@example.org")
    marker = await read_marker(api)
    await submit(api)
    await api.call("POST", "/tasks/1/cancel")
    await api.call("POST", "/machines", {"ip_address": "127.0.0.1", "port": 1})
    await submit(api, artist)
    await api.call("POST", "/tasks/2/cancel", who=artist)
    heard = await read_events(api, artist, marker, count=1)
    assert {event["data"].get("task_id") for event in heard} == {2}


async def read_marker(api: Running) -> str:
    """An id of now, to resume from."""
    event = (await read_events(api, api.who, "0000-1"))[0]
    return str(event["id"])


# -- for those who run the farm


async def test_health_needs_no_login_and_tells_nothing(api: Running) -> None:
    async with api.http.get(f"{api.url}/healthz") as response:
        assert response.status == 200
        assert sorted(await response.json()) == ["status", "version"]


async def test_metrics_count_what_happens(api: Running) -> None:
    await submit(api)
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
