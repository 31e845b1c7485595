"""`/renderapi/v1` over HTTP, on every database: the contract's answers, word for word."""

import asyncio
import io
import re
import zipfile
from typing import Any

import pytest

from renderonline.database import schema as tables
from renderonline.database.door import Database
from tests.support.renderapi import COMMAND_ENGINE, Running


def request(engine: Any = 1, **arguments: Any) -> dict[str, Any]:
    return {
        "EngineId": engine,
        "Arguments": [{"ArgTypeId": name, "Value": value} for name, value in arguments.items()],
    }


SCENE = ("a.blend", b"BLENDER scene")


@pytest.mark.both_databases
async def test_enqueue_info_download_delete(api: Running) -> None:
    added = await api.submit(request("1", start_frame="1", end_frame=10), ("My scene.blend", b"x" * 5000))
    assert (added.status, added.json()) == (
        200,
        {"IsAdded": True, "ErrorMessage": "Task successfully enqueued.", "TaskId": 1},
    )

    info = (await api.call("GET", "/renderapi/v1/info")).json()
    assert info["User"]["Email"] == "admin@localhost"
    entry = info["Tasks"][0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", entry["Task"]["QueueTime"])
    assert (entry["Task"]["StartTime"], entry["Task"]["IsRunning"], entry["Task"]["MachineId"]) == (None, False, None)
    assert (entry["Render"]["FileName"], entry["Render"]["FilePath"]) == ("My scene.blend", "")
    assert entry["Render"]["FileSize"] == 5000
    assert "-s 1 -e 10" in entry["Render"]["Arguments"]
    assert entry["Engine"]["Name"] == "blender"

    zipped = await api.call("POST", "/renderapi/v1/download", {"TaskId": "1"})
    assert zipped.headers["Content-Type"] == "application/zip"
    assert re.fullmatch(r"attachment; filename=[0-9a-f-]{36}\.zip", zipped.headers["Content-Disposition"])
    assert int(zipped.headers["Content-Length"]) == len(zipped.body)
    with zipfile.ZipFile(io.BytesIO(zipped.body)) as archive:
        assert archive.read("My scene.blend") == b"x" * 5000

    deleted = await api.call("POST", "/renderapi/v1/delete", {"taskid": 1})
    assert deleted.json() == {
        "IsDeleted": True,
        "ErrorMessage": "Task and associated render successfully deleted.",
    }
    assert (await api.call("GET", "/renderapi/v1/info")).json()["Tasks"] == []
    assert [path for path in api.tree() if path.endswith(".blend")] == []


@pytest.mark.both_databases
async def test_dequeue_ends_a_task_once(api: Running) -> None:
    await api.submit(request(), SCENE)
    first = await api.call("POST", "/renderapi/v1/dequeue", {"TaskId": 1})
    assert (first.status, first.json()) == (
        200,
        {"IsRemoved": True, "ErrorMessage": "Task successfully dequeued."},
    )
    again = await api.call("POST", "/renderapi/v1/dequeue", {"TaskId": 1})
    assert (again.status, again.json()) == (
        400,
        {"IsRemoved": False, "ErrorMessage": "Task with identifier 1 is not in the queue."},
    )
    task = (await api.call("GET", "/renderapi/v1/info")).json()["Tasks"][0]["Task"]
    assert (task["IsRunning"], task["IsSuccess"]) == (False, False)
    assert task["EndTime"] is not None


@pytest.mark.parametrize("path", ["dequeue", "download", "delete"])
async def test_bodies_that_name_no_task_are_refused(api: Running, path: str) -> None:
    key, done = {"dequeue": "IsRemoved", "download": "DownloadProvided", "delete": "IsDeleted"}[path], False
    address = f"/renderapi/v1/{path}"
    text = {"Content-Type": "text/plain"}
    json_type = {"Content-Type": "application/json"}
    refusals = [
        (await api.call("POST", address, data=b"{}", headers=text), "Request content type must be application/json."),
        (await api.call("POST", address, data=b"{", headers=json_type), "Request content has an invalid format."),
        (await api.call("POST", address, data=b"[1]", headers=json_type), "Request content has an invalid format."),
        (await api.call("POST", address, {"TaskId": "x"}), "Request content has an invalid format."),
        (
            await api.call("POST", address, data=b" " * 100_000 + b"{}", headers=json_type),
            "Request content has an invalid format.",
        ),
        (
            await api.call("POST", address, {"TaskId": 77}),
            "Task with identifier 77 not found for the current user.",
        ),
        (
            await api.call("POST", address, {"TaskId": 2**63 + 5}),
            f"Task with identifier {2**63 + 5} not found for the current user.",
        ),
    ]
    for reply, message in refusals:
        assert (reply.status, reply.json()) == (400, {key: done, "ErrorMessage": message})


async def test_refusals_of_enqueue_come_in_the_contracts_order(api: Running, migrated_url: str) -> None:
    two = (SCENE, ("b.blend", b"y"))
    cases: list[tuple[Any, tuple[tuple[str, bytes], ...], str]] = [
        (None, (), "No files were uploaded."),
        (request(), (), "No files were uploaded."),
        (None, two, 'Header "request" is empty.'),
        ("  ", two, 'Header "request" is empty.'),
        ("{nonsense", two, "Invalid enqueue request arguments."),
        ({"EngineId": 1}, two, "Invalid enqueue request arguments."),
        (request(9), two, "Only 1 file may be uploaded per request."),
        (request(9, foo="1"), (("a.txt", b"x"),), "Engine with identifier 9 not found."),
        (request("blender"), (SCENE,), "Engine with identifier blender not found."),
        (
            request(foo="1"),
            (("a.txt", b"x"),),
            "Engine extension .blend not matching with files extension .txt.",
        ),
        (request(foo="1", start_frame="x"), (SCENE,), "Argument type identifier foo must be present in database."),
        (request(start_frame="x"), (SCENE,), "Value x must be of type natural."),
        (request(start_frame="1\n"), (SCENE,), "Value 1\n must be of type natural."),
        (request(start_frame="١"), (SCENE,), "Value ١ must be of type natural."),
    ]
    before = api.tree()
    for sent, files, message in cases:
        reply = await api.submit(sent, *files)
        assert (reply.status, reply.json()) == (400, {"IsAdded": False, "ErrorMessage": message})

    with Database.open(migrated_url) as database:
        database.write_now(
            lambda c: c.execute(tables.argtypes.insert().values(argtype_id="odd", type="foo", regex=None))
        )
    reply = await api.submit(request(odd="1"), SCENE)
    assert (reply.status, reply.json()["ErrorMessage"]) == (500, "Type foo is not valid for RenderOnline.")
    assert api.tree() == before


async def test_clients_own_rule_is_ignored(api: Running) -> None:
    sent = {"EngineId": 1, "Arguments": [{"ArgTypeId": "start_frame", "Value": "; rm", "Regex": ".*"}]}
    assert (await api.submit(sent, SCENE)).json()["ErrorMessage"] == "Value ; rm must be of type natural."


async def test_who_is_not_known_gets_nothing(api: Running) -> None:
    for who in ({}, {"email": "admin@localhost", "token": "x"}, {"email": "x", "token": api.who["token"]}):
        for path in ("dequeue", "download", "delete"):
            reply = await api.call("POST", f"/renderapi/v1/{path}", {"TaskId": 1}, who=who)
            assert (reply.status, reply.body) == (401, b"")
        info = await api.call("GET", "/renderapi/v1/info", who=who)
        assert (info.status, info.body) == (401, b"")
        added = await api.submit(request(), SCENE, who=who)
        assert (added.status, added.json()) == (401, {"IsAdded": False, "ErrorMessage": "Unauthorized."})
    assert api.tree() == []


@pytest.mark.both_databases
async def test_inactive_user_is_not_known(api: Running) -> None:
    who = await api.new_user("ada@example.org")
    assert (await api.call("GET", "/renderapi/v1/info", who=who)).status == 200
    await api.call("PATCH", "/users/2", {"is_active": False})
    assert (await api.call("GET", "/renderapi/v1/info", who=who)).status == 401


@pytest.mark.both_databases
async def test_email_is_compared_without_regard_to_case(api: Running) -> None:
    who = {"email": "ADMIN@LocalHost", "token": api.who["token"]}
    assert (await api.call("GET", "/renderapi/v1/info", who=who)).status == 200


@pytest.mark.both_databases
async def test_others_tasks_are_not_there(api: Running) -> None:
    await api.submit(request(), SCENE)
    who = await api.new_user("op@example.org", "operator")
    for path in ("dequeue", "download", "delete"):
        reply = await api.call("POST", f"/renderapi/v1/{path}", {"TaskId": 1}, who=who)
        assert reply.json()["ErrorMessage"] == "Task with identifier 1 not found for the current user."
    assert (await api.call("GET", "/renderapi/v1/info", who=who)).json()["Tasks"] == []


@pytest.mark.both_databases
async def test_info_shows_the_fifteen_newest(api: Running) -> None:
    for _ in range(17):
        await api.submit(request(), SCENE)
    tasks = (await api.call("GET", "/renderapi/v1/info")).json()["Tasks"]
    assert [entry["Task"]["TaskId"] for entry in tasks] == list(range(17, 2, -1))


@pytest.mark.both_databases
async def test_parallel_requests_don_t_pass_the_queue_limit(api: Running) -> None:
    subscription = (await api.call("POST", "/subscriptions", {"name": "small", "queue_limit": 3})).json()
    who = await api.new_user("ada@example.org", subscription_id=subscription["subscription_id"])
    replies = await asyncio.gather(*(api.submit(request(), SCENE, who=who) for _ in range(12)))
    assert sorted(reply.status for reply in replies) == [200] * 3 + [403] * 9
    refused = next(reply for reply in replies if reply.status == 403)
    assert refused.json() == {"IsAdded": False, "ErrorMessage": "Queue limit 3 reached for your subscription."}
    assert sum(path.endswith(".blend") for path in api.tree()) == 3


@pytest.mark.both_databases
async def test_engine_of_the_existing_system_without_definition(api: Running, migrated_url: str) -> None:
    with Database.open(migrated_url) as database:
        database.write_now(
            lambda c: c.execute(
                tables.engines.insert().values(
                    name="maya",
                    extension=".ma",
                    download_path=str(api.settings.files),
                    render_argument="maya -b $RENDERONLINE:@uploaded_file -s $RENDERONLINE:start_frame -r s",
                )
            )
        )
    missing = await api.submit(request(3), ("a.ma", b"x"))
    assert (missing.status, missing.json()["ErrorMessage"]) == (400, "A value for argument start_frame is missing.")
    added = await api.submit(request(3, start_frame=4), ("a b.ma", b"x"))
    assert added.json()["IsAdded"]
    line = (await api.call("GET", "/renderapi/v1/info")).json()["Tasks"][0]["Render"]["Arguments"]
    assert re.fullmatch(r'maya -b "/.*/1/\d{18}/a b\.ma" -s 4 -r s', line)


async def test_value_never_becomes_a_second_word(api: Running) -> None:
    await api.call("POST", "/engines", {"definition": COMMAND_ENGINE})
    added = await api.submit(request(3, words="a b -x c"), ("a.txt", b"x"))
    assert added.json()["IsAdded"]
    line = (await api.call("GET", "/renderapi/v1/info")).json()["Tasks"][0]["Render"]["Arguments"]
    assert line.endswith('-w "a b -x c"')
    flag = await api.submit(request(3, words="-x"), ("a.txt", b"x"))
    assert flag.status == 400


async def test_browsers_from_anywhere_may_call(api: Running) -> None:
    origin = {"Origin": "https://client.example"}
    info = await api.call("GET", "/renderapi/v1/info", headers=origin)
    assert info.headers["Access-Control-Allow-Origin"] == "*"
    assert "Access-Control-Allow-Credentials" not in info.headers
    asked = {**origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "email,token"}
    preflight = await api.call("OPTIONS", "/renderapi/v1/enqueue", who={}, headers=asked)
    assert preflight.status == 200
    assert "token" in preflight.headers["Access-Control-Allow-Headers"]


@pytest.mark.both_databases
async def test_repeated_submission_gets_the_first_answer(api: Running) -> None:
    sent = {**request(), "ClientKey": "6f1e"}
    first = await api.submit(sent, SCENE)
    tree = api.tree()
    assert (await api.submit(sent, SCENE)).json() == first.json()
    assert api.tree() == tree
    assert len((await api.call("GET", "/renderapi/v1/info")).json()["Tasks"]) == 1
