"""Who else on this computer may read a farm's files: nobody in its data directory, others as `FilesMode` says (M5)."""

import asyncio
import contextlib
import os
import pwd
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.protocol.link import Log, Result, Started, encode
from renderonline.renderapi.settings import load_settings
from renderonline.storage.disk import digest_file
from renderonline.storage.names import INCOMING
from tests.faults.engine import DEFINITION
from tests.support.held_attempts import Held, held_attempt
from tests.support.renderapi import Running, renderapi, wait_until

FRAME = "frame_0001.png"
PICTURE = b"\x89PNG a picture"
OURS = (INCOMING, ".manifests", ".attempts")
"""What nobody but RenderAPI, or a machine, looks at."""
WHEN = 1_700_000_000_000_000


@pytest.fixture(name="place")
def _place() -> Iterator[Path]:
    """A directory to which every account gets."""
    with tempfile.TemporaryDirectory(prefix="renderonline-modes-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(autouse=True)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """Ours would hide what is missing."""
    before = os.umask(getattr(request, "param", 0))
    yield
    os.umask(before)


async def land(held: Held) -> None:
    """A machine does all that it may: a result that is linked, a preview, a log."""
    assign = held.assign
    assert (await held.send(FRAME, PICTURE)).status == 204
    jpeg = b"\xff\xd8\xff a preview"
    assert (await held.call("PUT", f"previews/{FRAME}", data=jpeg)).status == 204
    await held.link.send(encode(Log(assign.attempt, 0, "it renders\n")))
    found = await asyncio.to_thread(digest_file, held.directory / FRAME)
    about = (FRAME, found.size, found.digest, found.crc32)
    await held.report(
        Started(1, assign.attempt, assign.token, at_us=WHEN, pid=1),
        Result(2, assign.attempt, assign.token, WHEN, *about),
    )
    await held.exit("succeeded")


@contextlib.asynccontextmanager
async def farm(place: Path, **flags: Any) -> AsyncIterator[Running]:
    """A farm on which a task was submitted in each way and rendered, and whose files are all there still."""
    async with (
        renderapi(place / "data", **flags) as api,
        held_attempt(api, DEFINITION, ("a.scene", b"scene")) as held,
    ):
        await land(held)
        names = ("shots/b.scene", "tex/wood.png")
        made = await api.call("POST", "/uploads", {"files": [{"name": name, "size": 4} for name in names]})
        upload = made.json()["upload_id"]
        for number in range(2):
            path = f"/uploads/{upload}/files/{number}"
            assert (await api.call("PATCH", path, data=b"data", headers={"Upload-Offset": "0"})).status == 204
        request = {"engine": "fake", "upload": upload, "scene": names[0], "frames": "1"}
        assert (await api.call("POST", "/tasks", request)).status == 201
        await api.call("POST", "/uploads", {"files": [{"name": "c.scene", "size": 4}]})

        async def is_there() -> bool:
            return bool(list(api.settings.files.rglob(FRAME))) and any((place / "data" / "logs").rglob("*"))

        await wait_until(is_there)
        yield api


def modes(root: Path, *, without: tuple[str, ...] = ()) -> dict[str, int]:
    """The modes of everything below a directory, by its name."""
    found: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in without]
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_file() or path.is_dir():
                found[str(path.relative_to(root))] = stat.S_IMODE(path.lstat().st_mode)
    return found


async def test_data_directory_is_nobody_elses(place: Path) -> None:
    async with farm(place) as api:
        found = await asyncio.to_thread(modes, place / "data")
        assert (place / "data").stat().st_mode & 0o777 == 0o700
        for kind in ("logs/", "previews/", "files/.mark", "files/.incoming/", "renderapi.json", "first-login.json"):
            assert any(name.startswith(kind) for name in found), kind
        kept = [name for name in found if "/.attempts/" not in name]  # these directories go a little later
        assert len([name for name in kept if name.endswith((FRAME, "a.scene", "b.scene", "wood.png"))]) == 4
        assert {name: oct(mode) for name, mode in found.items() if mode & 0o077} == {}
        assert api.settings.files_mode == ""


@pytest.mark.parametrize(
    ("mode", "_umask", "folder", "file"),
    [("private", 0, 0o700, 0o600), ("group", 0o077, 0o2750, 0o640), ("shared", 0o077, 0o755, 0o644)],
    indirect=["_umask"],
)
async def test_files_of_tasks_are_as_open_as_the_setting_says(place: Path, mode: str, folder: int, file: int) -> None:
    async with farm(place, files_mode=mode) as api:
        root = api.settings.files
        assert stat.S_IMODE(root.stat().st_mode) == folder
        found = await asyncio.to_thread(lambda: modes(root, without=OURS))
        assert len(found) >= 10
        wrong = {name: oct(one) for name, one in found.items() if one != (folder if (root / name).is_dir() else file)}
        assert wrong == {}
        inside = await asyncio.to_thread(lambda: modes(place / "data", without=("files",)))
        assert {name: oct(one) for name, one in inside.items() if one & 0o077} == {}
        assert (place / "data").stat().st_mode & 0o777 == {"private": 0o700, "group": 0o710, "shared": 0o711}[mode]


@pytest.mark.parametrize(("adopted", "folder", "file"), [(0o777, 0o755, 0o644), (0o750, 0o750, 0o640)])
async def test_directory_that_was_there_keeps_its_mode(place: Path, adopted: int, folder: int, file: int) -> None:
    files = place / "nas"
    files.mkdir()
    files.chmod(adopted)
    async with farm(place, download_path=files):
        assert stat.S_IMODE(files.stat().st_mode) == adopted
        found = await asyncio.to_thread(lambda: modes(files, without=OURS))
        assert {oct(one) for name, one in found.items() if (files / name).is_dir()} == {oct(folder)}
        assert {oct(one) for name, one in found.items() if (files / name).is_file()} == {oct(file)}


def read_by_another_account(*paths: Path) -> list[bool]:
    """Which of these files an account can read that is neither ours nor of our group. Blocks."""
    if os.geteuid() != 0:
        pytest.skip("NOT SEEN: only root can try what another account may read")
    account = pwd.getpwnam("nobody")
    begin, end = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            os.write(end, bytes(os.access(path, os.R_OK) for path in paths))
        finally:
            os._exit(0)
    os.close(end)
    os.waitpid(child, 0)
    with open(begin, "rb") as answer:
        return [bool(one) for one in answer.read()]


@pytest.mark.parametrize(("mode", "readable"), [("", False), ("shared", True)])
async def test_another_account_sees_a_shared_farms_files_and_nothing_else(
    place: Path, mode: str, readable: bool
) -> None:
    """As a node of another account does, and an existing one: the mark, scenes, results."""
    async with farm(place, files_mode=mode) as api:
        root = api.settings.files
        theirs = [
            root / ".mark",
            *root.glob("*/*/a.scene"),
            *root.glob(f"*/*/results/{FRAME}"),
            *root.glob("*/*/tex/*"),
        ]
        assert len(theirs) == 4
        ours = [
            place / "data" / "renderapi.json",
            *(place / "data").rglob("*.sqlite"),
            *(place / "data").rglob("*.jpg"),
        ]
        assert len(ours) == 3
        assert await asyncio.to_thread(read_by_another_account, *theirs) == [readable] * 4
        assert await asyncio.to_thread(read_by_another_account, *ours) == [False] * 3


def test_setting_names_what_there_is() -> None:
    with pytest.raises(InvalidRequest, match="private, group, shared"):
        load_settings(flags={"files_mode": "public"}, environment={})
