"""Attempts of v1 machines have no machine that could ask for their files: nobody opens them over HTTP."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from tests.support import v1_schema
from tests.support.held_attempts import held_attempt
from tests.support.renderapi import COMMAND_ENGINE, Running, renderapi

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)

TASK = 7
ADDRESSES = ("inputs", "inputs/scene.blend", "outputs/scene.blend", "previews/scene.blend")
HEADERS = ({}, {"Authorization": ""}, {"Authorization": "Attempt"}, {"Authorization": "Attempt "},
           {"Authorization": "Attempt wrong"})  # fmt: skip


def run(url: str, *statements: str) -> None:
    engine = create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))
    engine.dispose()


@pytest.fixture
async def adopted(tmp_path: Path, migrated_url: str) -> AsyncIterator[tuple[Running, Path]]:
    """A RenderAPI that adopted a task which a v1 machine renders, and the task's scene."""
    scene = tmp_path / "renders" / "1" / "638600000000000000" / "scene.blend"
    scene.parent.mkdir(parents=True)
    scene.write_bytes(b"the scene")
    rows = v1_schema.task_rows(TASK, queued=True, start="2024-08-27 20:01:00", running=1, machine=2)
    run(migrated_url, *v1_schema.SEEDS, *rows, f"UPDATE renders SET file_path = '{scene}'")
    async with renderapi(tmp_path / "data", connection_string=migrated_url) as running:
        yield running, scene


async def statuses(api: Running, attempt: int, headers: Sequence[dict[str, str]]) -> set[int]:
    """What these headers get at every address of an attempt."""
    digest = {"X-Digest": hashlib.blake2b(b"forged", digest_size=32).hexdigest()}
    found = set()
    for who in headers:
        for address in ADDRESSES:
            for method in ("GET", "HEAD") if address.startswith("inputs") else ("PUT",):
                data = b"forged" if method == "PUT" else None
                path = f"/attempts/{attempt}/{address}"
                reply = await api.call(method, path, who={}, headers={**digest, **who}, data=data)
                found.add(reply.status)
    return found


async def test_nobody_opens_an_adopted_attempt(adopted: tuple[Running, Path]) -> None:
    api, scene = adopted
    (attempt,) = (await api.call("GET", "/attempts")).json()["items"]
    assert (attempt["attempt_id"], attempt["state"]) == (TASK, "running")
    assert await statuses(api, TASK, HEADERS) <= {404, 405}
    run(api.settings.connection_string, "UPDATE attempts SET state = 'ended', outcome = 'lost'")
    assert await statuses(api, TASK, HEADERS) <= {404, 405}
    assert scene.read_bytes() == b"the scene"
    assert [path.name for path in scene.parent.iterdir()] == [scene.name]


async def test_attempt_of_a_v1_machine_is_not_held_over_http(tmp_path: Path, migrated_url: str) -> None:
    """Its token never left the farm; but should somebody know it, it opens nothing."""
    async with (
        renderapi(tmp_path / "data", connection_string=migrated_url) as api,
        held_attempt(api, COMMAND_ENGINE, ("a.txt", b"scene")) as held,
    ):
        assert (await held.call("GET", "inputs")).status == 200
        run(migrated_url, "UPDATE machines SET secret_hash = ''")
        assert await statuses(api, held.assign.attempt, (held.headers,)) <= {404, 405}
