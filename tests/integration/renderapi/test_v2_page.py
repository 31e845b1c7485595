"""`/renderapi/v2`: what only the web page asks for."""

import pytest

from tests.support.held_attempts import held_attempt
from tests.support.renderapi import COMMAND_ENGINE, Running


@pytest.mark.both_databases
async def test_everybody_learns_how_many_tasks_they_may_have_in_the_queue(api: Running) -> None:
    artist = await api.new_user("artist@example.org")
    added = await api.call("POST", "/subscriptions", {"name": "small", "queue_limit": 7, "keep_days": 30})
    subscription = added.json()
    assert (added.status, subscription["keep_days"], subscription["keep_mib"]) == (201, 30, 0)
    await api.call("PATCH", "/users/2", {"subscription_id": subscription["subscription_id"]})
    me = (await api.call("GET", "/me", who=artist)).json()
    assert (me["queue_limit"], me["sends_mail"]) == (7, False)

    path = f"/subscriptions/{subscription['subscription_id']}"
    assert (await api.call("PATCH", path, {"keep_mib": 5000})).json()["keep_mib"] == 5000
    assert (await api.call("PATCH", path, {"keep_mib": -1})).status == 400
    assert (await api.call("PATCH", path, {"keep_days": 2_000_000})).status == 400


@pytest.mark.both_databases
async def test_engine_says_whether_its_scenes_are_read(api: Running) -> None:
    reads = COMMAND_ENGINE.replace("extensions", 'facts = "blender"\nextensions', 1)
    assert (await api.call("POST", "/engines", {"definition": reads})).json()["facts"] == "blender"
    engines = {one["name"]: one["facts"] for one in (await api.call("GET", "/engines")).json()["items"]}
    assert engines["writer"] == "blender"
    assert engines["povray"] == ""


@pytest.mark.both_databases
async def test_operators_see_what_all_machines_did(api: Running) -> None:
    artist = await api.new_user("artist@example.org")
    operator = await api.new_user("operator@example.org", "operator")
    async with held_attempt(api, COMMAND_ENGINE, ("a.txt", b"x")) as held:
        listed = (await api.call("GET", "/attempts?limit=1", who=operator)).json()
        assert [one["attempt_id"] for one in listed["items"]] == [held.assign.attempt]
        assert listed["items"][0]["machine"] == "far"
        older = await api.call("GET", f"/attempts?cursor={held.assign.attempt}", who=operator)
        assert older.json() == {"items": [], "next": None}
        assert (await api.call("GET", "/attempts", who=artist)).status == 403
        assert (await api.call("GET", "/attempts", who={})).status == 401
        assert (await api.call("GET", "/attempts?limit=501", who=operator)).status == 400
