"""Needs, limits and what machines are for, over `/renderapi/v2`."""

import json
import re
from typing import Any

import pytest

from tests.support.renderapi import Running

SCENE = ("a.blend", b"BLENDER scene")


@pytest.mark.both_databases
async def test_task_shows_what_it_needs(api: Running) -> None:
    wanted = {"tags": ["GPU", "gpu"], "memory_mib": 9, "sandbox": "Bwrap"}
    request = {"engine": "blender", "needs": wanted, "running_limit": 4}
    reply = await api.submit(request, SCENE, version=2)
    assert reply.status == 201, reply.body
    needs = {
        "engine_version": "",
        "tags": ["gpu"],
        "pool": "",
        "memory_mib": 9,
        "gpus": 0,
        "sandbox": "bwrap",
        "linked": False,
        "gpu_memory_mib": 0,
        "prefers_gpu": False,
        "draws": True,
    }
    for task in (reply.json(), (await api.call("GET", "/tasks/1")).json()):
        assert (task["needs"], task["running_limit"]) == (task["needs"] | needs, 4)
    plain = (await api.submit({"engine": "blender"}, SCENE, version=2)).json()
    assert (plain["needs"], plain["running_limit"]) == ({}, 0)


@pytest.mark.parametrize(
    ("request_part", "named"),
    [
        ({"needs": {"memory_mib": -1}}, "memory_mib"),
        ({"needs": {"memory_mib": 2**63}}, "memory_mib"),
        ({"needs": {"memory_mib": "9"}}, "memory_mib"),
        ({"needs": {"gpus": 1000}}, "gpus"),
        ({"needs": {"gpu_memory_mib": -1}}, "gpu_memory_mib"),
        ({"needs": {"gpus": 1}, "arguments": {"device": "cpu"}}, "device is cpu"),
        ({"needs": {"sandbox": "jail"}}, "sandbox"),
        ({"needs": {"tags": ["two words"]}}, "Tags"),
        ({"needs": {"tags": [f"t{number}" for number in range(99)]}}, "Tags"),
        ({"needs": {"pool": "x" * 300}}, "pool"),
        ({"needs": {"engine_version": "new"}}, "version"),
        ({"needs": []}, "needs"),
        ({"running_limit": -1}, "running_limit"),
        ({"running_limit": 2**40}, "running_limit"),
    ],
)
async def test_needs_that_make_no_sense_leave_nothing(api: Running, request_part: dict[str, Any], named: str) -> None:
    reply = await api.submit({"engine": "blender", **request_part}, SCENE, version=2)
    assert (reply.status, named in reply.json()["detail"]) == (400, True), reply.body
    assert (await api.call("GET", "/tasks")).json()["items"] == []
    assert not [path for path in api.tree() if path.endswith(".blend")]


@pytest.mark.both_databases
async def test_operator_sets_tags_pool_and_hours(api: Running) -> None:
    await api.call("POST", "/machines", {"ip_address": "127.0.0.1", "port": 1})
    wanted = {"tags": ["Fast", "gpu"], "pool": "film", "hours": "Mon-Fri 18:00-08:00, Sat"}
    changed = await api.call("PATCH", "/machines/1", wanted)
    for shown in (changed.json(), (await api.call("GET", "/machines")).json()["items"][0]):
        assert (shown["tags"], shown["pool"]) == (["fast", "gpu"], "film")
        assert shown["hours"] == "Mon-Fri 18:00-08:00, Sat"
    cleared = await api.call("PATCH", "/machines/1", {"tags": [], "pool": "", "hours": ""})
    assert (cleared.json()["tags"], cleared.json()["pool"], cleared.json()["hours"]) == ([], "", "")


@pytest.mark.parametrize(
    "change",
    [
        {"hours": "at night"},
        {"hours": "Mon 08:00-18:00," * 20},
        {"tags": ["two words"]},
        {"tags": ["x" * 50, "y" * 50, "z" * 50, "a" * 50, "b" * 50, "c" * 50]},
        {"tags": "gpu"},
        {"pool": "a b"},
    ],
)
async def test_what_a_machine_can_not_be_changes_nothing(api: Running, change: dict[str, Any]) -> None:
    await api.call("POST", "/machines", {"ip_address": "127.0.0.1", "port": 1})
    before = (await api.call("GET", "/machines")).json()
    reply = await api.call("PATCH", "/machines/1", change)
    assert 400 <= reply.status < 500, reply.body
    assert (await api.call("GET", "/machines")).json() == before


@pytest.mark.both_databases
async def test_subscription_limits_what_a_user_runs_at_once(api: Running) -> None:
    made = await api.call("POST", "/subscriptions", {"name": "s", "queue_limit": 5, "running_limit": 3})
    assert made.json()["running_limit"] == 3
    number = made.json()["subscription_id"]
    changed = await api.call("PATCH", f"/subscriptions/{number}", {"running_limit": 0})
    assert changed.json()["running_limit"] == 0
    assert (await api.call("PATCH", f"/subscriptions/{number}", {"running_limit": -1})).status >= 400


async def test_every_shape_that_the_documentation_names_is_there(api: Running) -> None:
    text = (await api.call("GET", "/openapi.json")).body.decode()
    named = set(re.findall(r'"\$ref":\s*"([^"]+)"', text))
    shapes = json.loads(text)["components"]["schemas"]
    assert "#/components/schemas/Needs" in named
    assert {ref.removeprefix("#/components/schemas/") for ref in named} <= shapes.keys()
