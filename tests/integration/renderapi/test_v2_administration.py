"""`/renderapi/v2`: accounts, engines, argument types and machines."""

import asyncio
import json
import subprocess
from pathlib import Path

import pytest
import uv

import renderonline
from renderonline.database import schema as tables
from renderonline.database.door import Database
from tests.support.renderapi import COMMAND_ENGINE, Running


@pytest.mark.both_databases
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


@pytest.mark.both_databases
async def test_stored_tokens_are_hashes(api: Running, migrated_url: str) -> None:
    await api.new_user("ada@example.org")
    with Database.open(migrated_url) as database:
        stored = database.read_now(lambda c: [row.token for row in c.execute(tables.users.select())])
    assert all(token.startswith("$rno1$") for token in stored)
    assert (await api.call("GET", "/me", who={**api.who, "token": stored[0]})).status == 401


@pytest.mark.both_databases
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


@pytest.mark.both_databases
async def test_argtypes_are_rules_that_work(api: Running) -> None:
    assert (await api.call("PUT", "/argtypes/shot", {"type": "word", "regex": "[a-z]{3}"})).status == 200
    for wrong in ({"type": "nonsense"}, {"type": "word", "regex": "["}):
        assert (await api.call("PUT", "/argtypes/shot", wrong)).status == 400
    assert (await api.call("DELETE", "/argtypes/start_frame")).status == 409
    assert (await api.call("DELETE", "/argtypes/shot")).status == 204
    assert (await api.call("DELETE", "/argtypes/shot")).status == 404


@pytest.mark.both_databases
async def test_operator_says_how_many_slots_a_machine_may_have(api: Running) -> None:
    for slots in (-1, 1025, 2**70):
        assert (await api.call("POST", "/machines/invite", {"slots": slots})).status == 400
    for slots, shown in ((0, 4), (16, 16)):
        invited = (await api.call("POST", "/machines/invite", {"slots": slots})).json()
        assert ("--slots" in invited["command"]) is bool(slots)
        await api.call("POST", "/machines/enroll", {"code": invited["code"], "name": "render"}, who={})
        machine = (await api.call("GET", "/machines")).json()["items"][-1]
        assert machine["slots_allowed"] == shown
    path = f"/machines/{machine['machine_id']}"
    assert (await api.call("PATCH", path, {"slots_allowed": 2})).json()["slots_allowed"] == 2
    assert (await api.call("PATCH", path, {"slots_allowed": 1025})).status == 400


async def test_other_computer_installs_the_farms_own_version(api: Running, tmp_path: Path) -> None:
    place = (await api.call("POST", "/machines/invite", {})).json()["install"]
    async with api.http.get(place) as reply:
        wheel = tmp_path / place.rpartition("/")[2]
        wheel.write_bytes(await reply.read())
    there = tmp_path / "there"
    words = ["pip", "install", "--quiet", "--offline", "--no-deps", "--target", there, wheel]
    await asyncio.to_thread(subprocess.run, [uv.find_uv_bin(), *words], check=True)  # which compares every digest
    installed, here = there / "renderonline", Path(renderonline.__file__).parent
    names = {path.relative_to(here) for path in here.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert all((installed / name).read_bytes() == (here / name).read_bytes() for name in names)
    assert "renderonline" in {path.name for path in (there / "bin").iterdir()}
    async with api.http.get(f"{api.url}/install/renderonline-0-py3-none-any.whl") as reply:
        assert reply.status == 404


@pytest.mark.both_databases
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


async def test_artists_do_not_see_where_the_farm_keeps_its_files(api: Running) -> None:
    files = str(api.settings.files)
    for role, seen in (("artist", ""), ("operator", files), ("admin", files)):
        who = await api.new_user(f"{role}@example.org", role)
        engines = (await api.call("GET", "/engines", who=who)).json()["items"]
        assert {one["download_path"] for one in engines} == {seen}
        one = await api.call("GET", f"/engines/{engines[0]['engine_id']}", who=who)
        assert one.json()["download_path"] == seen
        assert (files in json.dumps(one.json())) is bool(seen)
