"""Multipart submissions as no client of ours sends them: names that are paths, parts that are missing or too many."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.renderapi import Reply, Running, renderapi
from tests.support.uploading import SCRIBE

V1, V2 = "/renderapi/v1/enqueue", "/tasks"
FILE = 'name="file"; filename="a.txt"'


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data") as running:
        yield running


@pytest.fixture(name="requests")
async def _requests(api: Running) -> dict[str, bytes]:
    """The part `request` of each version."""
    engine = (await api.call("POST", "/engines", {"definition": SCRIBE})).json()["engine_id"]
    v1 = {"EngineId": engine, "Arguments": [{"ArgTypeId": "first", "Value": "1"}]}
    return {V1: json.dumps(v1).encode(), V2: b'{"engine": "scribe"}'}


def part(head: str, content: bytes) -> bytes:
    disposition = f"--B\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode(errors="surrogateescape")
    return disposition + content + b"\r\n"


async def post(api: Running, path: str, *parts: bytes, end: bytes = b"--B--\r\n") -> Reply:
    headers = {"Content-Type": "multipart/form-data; boundary=B"}
    return await api.call("POST", path, data=b"".join(parts) + end, headers=headers)


NAMES = {  # as sent: as kept, "" when it is refused
    "../../x.txt": "x.txt",
    "/etc/x.txt": "x.txt",
    "..\\\\x.txt": "x.txt",
    "C:\\\\x.txt": "x.txt",
    "a\0b.txt": "a_b.txt",
    "n" * 3000 + ".txt": "n" * 196 + ".txt",
    "CON.txt": "_CON.txt",
    "a:b.txt": "a_b.txt",
    "a.txt ": "a.txt",
    "a.txt.": "a.txt",
    "e\u0301.txt": "\u00e9.txt",
    "-rf.txt": "_-rf.txt",
    **dict.fromkeys(("", ".", "..", "CON", "a\r\nb.txt"), ""),
}


@pytest.mark.parametrize("path", [V1, V2])
async def test_a_name_is_cleaned_or_refused_and_never_a_path(
    api: Running, requests: dict[str, bytes], tmp_path: Path, path: str
) -> None:
    for name, cleaned in NAMES.items():
        before = api.tree()
        request, file = part('name="request"', requests[path]), part(f'name="f"; filename="{name}"', b"x")
        reply = await post(api, path, request, file)
        new = [Path(entry) for entry in api.tree() if entry not in before]
        if cleaned:
            assert reply.status in (200, 201), (name, reply.body)
            (entry,) = (entry for entry in new if entry.suffix)
            assert (len(entry.parts), entry.name) == (3, cleaned)
        else:
            assert (reply.status, new) == (400, []), (name, reply.body)
    outside = [folder for folder, *_ in os.walk(tmp_path) if not Path(folder).is_relative_to(api.settings.files)]
    assert not [name for folder in outside for name in os.listdir(folder) if name.endswith(".txt")]


@pytest.mark.parametrize("path", [V1, V2])
async def test_parts_come_in_any_order_and_names_in_either_form(
    api: Running, requests: dict[str, bytes], path: str
) -> None:
    request = part('name="request"', requests[path])
    for parts in (
        (request, part(FILE, b"x")),
        (part(FILE, b"x"), request),
        (part('name="other"', b"?"), part(FILE, b"x"), request, part('name="more"', b"?")),
        (request, part("name=\"file\"; filename*=UTF-8''a.txt", b"x")),
    ):
        reply = await post(api, path, *parts)
        assert reply.status in (200, 201), reply.body
    assert len([entry for entry in api.tree() if entry.endswith("/a.txt")]) == 4


@pytest.mark.parametrize("path", [V1, V2])
async def test_parts_that_are_missing_or_too_many_leave_nothing(
    api: Running, requests: dict[str, bytes], path: str
) -> None:
    request, file = part('name="request"', requests[path]), part(FILE, b"x" * 100_000)
    for parts in (
        (request, file, file),
        (file, file, request),
        (request, request, file),
        (file,),
        (request,),
        (part('name="request"', b"not JSON"), file),
        (file, part('name="request"', b"not JSON")),
        (part('name="request"', requests[path] + b" " * 65_536), file),
        (request, file, *(part('name="x"', b"") for _ in range(70))),
    ):
        reply = await post(api, path, *parts)
        assert reply.status in (400, 413), (parts[0][:80], reply.body)
        assert reply.json()["ErrorMessage" if path == V1 else "detail"]
        assert api.tree() == []
    for end in (b"", b"--B", b"--B--"[:-1], b"--C--\r\n"):
        assert (await post(api, path, request, file, end=end)).status == 400
        assert api.tree() == []
