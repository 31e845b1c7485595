"""`--deliver`: finished files below a root that an administrator named."""

import asyncio
import hashlib
import json
import zlib
from functools import partial
from pathlib import Path

import pytest

from renderonline.database import schema as tables
from renderonline.database.door import Database
from renderonline.database.file_rows import end_delivery, undelivered
from renderonline.database.upkeep import check
from renderonline.farm.errors import NotAvailable
from renderonline.renderapi import housekeeping
from tests.support.renderapi import Running, renderapi, wait_until


def land(database: Path, directory: Path, name: str, content: bytes, frame: int) -> None:
    """A result as the dispatcher leaves it, in the place of an older one."""
    (directory / "results").mkdir(exist_ok=True)
    (directory / "results" / name).write_bytes(content)
    row = {
        "task_id": 1,
        "name_hash": hashlib.sha256(name.encode()).hexdigest(),
        "name": name,
        "folder": "results",
        "chunk_id": 1,
        "attempt_id": 1,
        "state": "landed",
        "frame": frame,
        "size": len(content),
        "digest": hashlib.blake2b(content, digest_size=32).hexdigest(),
        "crc32": zlib.crc32(content),
        "landed_us": 1,
    }
    with Database.open(f"sqlite:///{database}") as opened:
        opened.write_now(
            lambda connection: connection.execute(tables.results.delete().where(tables.results.c.name == name))
        )
        opened.write_now(lambda connection: connection.execute(tables.results.insert().values(row)))


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AGAIN_S", "IDLE_S", "PAUSE_S"):
        monkeypatch.setattr(housekeeping, name, 0.02)


async def warned(api: Running, text: str) -> list[str]:
    """The task's warnings, when one of them says so."""

    async def told() -> list[str]:
        found: list[str] = (await api.call("GET", "/tasks/1")).json()["warnings"]
        return found if text in str(found) else []

    return await wait_until(told)


async def nothing_left(database: Path) -> None:
    """Wait until no result is still to be delivered: a stop in the middle of a delivery is another case."""

    def is_settled() -> bool:
        with Database.open(f"sqlite:///{database}") as opened:
            return not opened.read_now(undelivered)

    async def settled() -> bool:
        return await asyncio.to_thread(is_settled)

    await wait_until(settled)


def stopped(*_: object, **__: object) -> None:
    raise NotAvailable("RenderAPI was killed just now.")


async def delivered(path: Path, content: bytes) -> None:
    async def is_there() -> bool:
        return await asyncio.to_thread(lambda: path.is_file() and path.read_bytes() == content)

    await wait_until(is_there)


async def test_finished_frames_are_delivered_under_their_names_also_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, data = tmp_path / "nas", tmp_path / "data"
    flags = {"deliver_roots": json.dumps({"nas": str(root)})}
    put = partial(land, data / "renderonline.sqlite")
    async with renderapi(data, **flags) as api:
        refused = await api.submit({"engine": "blender", "deliver": "tape/x"}, ("a.blend", b"x"), version=2)
        assert (refused.status, refused.json()["code"]) == (400, "no_root")
        assert "It delivers to: nas." in refused.json()["detail"]
        for wrong in ("nas/../x", "nas/a//b", "/etc", "nas/con"):
            sent = await api.submit({"engine": "blender", "deliver": wrong}, ("a.blend", b"x"), version=2)
            assert sent.json()["code"] == "no_root", wrong
        await api.new_task(frames="1-3", names="s010_{frame:04}", deliver="nas/show/s010")
        directory = api.settings.files / next(path for path in api.tree() if path.count("/") == 1)
        put(directory, "frame_0001.png", b"one", 1)
        await warned(api, "the directory of nas is not there")
        (root / "show" / "s010").mkdir(parents=True)
        (root / "show" / "s010" / "s010_0002.png").write_bytes(b"somebody's")
        (root / "show" / "s010" / "s010_0003.png").write_bytes(b"three")
        monkeypatch.setattr(housekeeping, "end_delivery", stopped)  # after the file, before its row
        await delivered(root / "show/s010/s010_0001.png", b"one")
    monkeypatch.setattr(housekeeping, "end_delivery", end_delivery)
    put(directory, "frame_0001.png", b"one again", 1)
    put(directory, "frame_0002.png", b"two", 2)
    put(directory, "frame_0003.png", b"three", 3)
    async with renderapi(data, **flags) as api:
        warnings = await warned(api, "nas/show/s010/s010_0002.png is there and not of this task")
        await delivered(root / "show/s010/s010_0001.png", b"one again")
        assert "frame_0002.png was not delivered" in str(warnings)
        assert "frame_0003.png" not in str(warnings)
        await nothing_left(data / "renderonline.sqlite")
    put(directory, "frame_0003.png", b"three again", 3)
    async with renderapi(data, **flags) as api:
        await warned(api, "nas/show/s010/s010_0003.png is there and not of this task")
        found = {path.name: path.read_bytes() for path in (root / "show" / "s010").iterdir()}
        assert found == {"s010_0001.png": b"one again", "s010_0002.png": b"somebody's", "s010_0003.png": b"three"}
        assert (await api.call("DELETE", "/tasks/1")).status == 204
        assert (root / "show/s010/s010_0001.png").is_file()
    with Database.open(f"sqlite:///{data / 'renderonline.sqlite'}") as opened:
        assert not [one for one in opened.read_now(check) if one.table == "deliveries"]


async def test_without_roots_nothing_is_delivered(tmp_path: Path) -> None:
    async with renderapi(tmp_path / "data") as api:
        refused = await api.submit({"engine": "blender", "deliver": "nas"}, ("a.blend", b"x"), version=2)
        assert (refused.status, refused.json()["code"]) == (400, "no_root")
        assert "DeliverRoots" in refused.json()["detail"]
