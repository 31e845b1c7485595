"""Numbers that no id, offset or count can be."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.renderapi import Running, renderapi


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data") as running:
        yield running


@pytest.mark.parametrize("number", ["-1", "-2", str(-(2**63) - 1), str(2**63), "1e9", "x"])
async def test_numbers_beyond_their_bounds_are_refused(api: Running, number: str) -> None:
    upload = await api.call("POST", "/uploads", {"files": [{"name": "a.blend", "size": 1}]})
    upload_id = upload.json()["upload_id"]
    for method, path in (
        ("PATCH", f"/uploads/{upload_id}/files/{number}"),
        ("GET", f"/tasks/{number}"),
        ("GET", f"/tasks/{number}/chunks"),
        ("GET", f"/tasks?cursor={number}"),
        ("GET", f"/tasks?limit={number}"),
        ("GET", f"/attempts/{number}/log"),
        ("GET", f"/engines/{number}"),
        ("GET", f"/users/{number}"),
        ("DELETE", f"/machines/{number}"),
        ("DELETE", f"/engines/{number}"),
    ):
        reply = await api.call(method, path, headers={"Upload-Offset": "0"}, data=b"x")
        assert (reply.status, reply.json()["code"]) == (400, "invalid_request"), path
    assert (await api.call("GET", f"/attempts/{number}/inputs", who={})).status == 404
    offset = await api.call("PATCH", f"/uploads/{upload_id}/files/0", headers={"Upload-Offset": number}, data=b"x")
    assert offset.status in (400, 409)  # the second: a number, but not where the file goes on
    assert (await api.call("GET", f"/uploads/{upload_id}")).json()["files"][0]["offset"] == 0


@pytest.mark.parametrize("task_id", [-1, 2**63, 2**64, -(2**63) - 1, 10**25, "-2", 1.5, True])
async def test_v1_refuses_such_numbers_in_the_words_of_its_contract(api: Running, task_id: object) -> None:
    for call in ("dequeue", "download", "delete"):
        reply = await api.call("POST", f"/renderapi/v1/{call}", {"TaskId": task_id})
        assert reply.status == 400
        told = reply.json()["ErrorMessage"]
        assert told in (
            "Request content has an invalid format.",
            f"Task with identifier {task_id} not found for the current user.",
        )
