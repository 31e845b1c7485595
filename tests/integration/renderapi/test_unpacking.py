"""A ZIP that is taken apart on the server: what is in it keeps its places, and a hostile one leaves nothing."""

import io
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from renderonline.storage import confined
from tests.support.renderapi import Running, renderapi
from tests.support.uploading import SCRIBE, Uploader, announced


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data", max_upload_mib=300) as running:
        assert (await running.call("POST", "/engines", {"definition": SCRIBE})).status == 201
        yield running


def zipped(*files: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return target.getvalue()


async def sent(mine: Uploader, archive: bytes) -> str:
    upload = await mine.announce(announced("pack.zip", archive, chunked=False))
    assert (await mine.append(upload["upload_id"], 0, 0, archive)).status == 204
    return str(upload["upload_id"])


async def test_a_zip_is_unpacked_and_keeps_its_folders(api: Running) -> None:
    mine = Uploader(api)
    folder = zipfile.ZipInfo("pack/tex/")
    files = {"pack/a.txt": b"scene", "pack/tex/wood.png": b"wood" * 1000, "pack/empty": b""}
    macos = ("__MACOSX/pack/._a.txt", b"of the Finder")
    upload_id = await sent(mine, zipped((folder, b""), macos, *files.items()))
    task = (await mine.submit(upload_id, unpack=True)).json()
    assert task["file_name"] == "pack/a.txt"
    (scene,) = api.settings.files.glob("*/*/pack/a.txt")
    root = scene.parents[1]
    assert {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()} == files
    assert list((api.settings.files / ".incoming").iterdir()) == []


def link(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


def lying(size: int) -> bytes:
    """A ZIP whose member says in both headers that it is `size` bytes long, and is another."""
    whole = zipped(("a.txt", b"x" * 1000))
    return whole.replace((1000).to_bytes(4, "little"), size.to_bytes(4, "little"))


HOSTILE = {
    "up": (zipped(("../../evil.txt", b"x")), 422),
    "absolute": (zipped(("/etc/evil.txt", b"x")), 422),
    "backslash": (zipped(("..\\evil.txt", b"x")), 422),
    "file and folder": (zipped(("a.txt", b"x"), ("a.txt/b", b"x")), 422),
    "link": (zipped((link("a.txt"), b"/etc/passwd")), 400),
    "empty": (zipped(), 422),
    "no zip": (b"this is no archive", 400),
    "cut off": (zipped(("a.txt", b"x" * 10_000), compression=zipfile.ZIP_STORED)[:-100], 400),
    "damaged": (zipped(("a.txt", b"scene"), compression=zipfile.ZIP_STORED).replace(b"scene", b"SCENE"), 400),
    "longer than it says": (lying(999), 400),
    "shorter than it says": (lying(1001), 400),
    "large": (zipped(("a.txt", bytes(301 << 20))), 413),
    "steep": (zipped(("a.txt", bytes(100 << 20))), 413),
}


@pytest.mark.parametrize("kind", HOSTILE)
async def test_a_zip_that_means_harm_is_refused_and_leaves_nothing(api: Running, kind: str) -> None:
    content, status = HOSTILE[kind]
    mine = Uploader(api)
    upload_id = await sent(mine, content)
    before = api.tree()
    reply = await mine.submit(upload_id, unpack=True)
    assert reply.status == status, reply.body
    assert "detail" in reply.json()
    assert api.tree() == before
    assert (await mine.call("DELETE", f"/uploads/{upload_id}")).status == 204
    assert api.tree() == []


async def test_too_many_files_are_refused(api: Running) -> None:
    many = zipped(*((f"{number}.txt", b"") for number in range(100_001)), compression=zipfile.ZIP_STORED)
    mine = Uploader(api)
    assert (await mine.submit(await sent(mine, many), unpack=True)).status == 422


async def test_a_zip_that_takes_for_ever_is_given_up(api: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confined, "TIME_S", 0.001)
    mine = Uploader(api)
    reply = await mine.submit(await sent(mine, zipped(("a.txt", b"x"))), unpack=True)
    assert (reply.status, reply.json()["code"]) == (400, "broken_archive")


async def test_only_one_zip_can_be_unpacked(api: Running) -> None:
    mine = Uploader(api)
    upload = await mine.announce(*(announced(name, b"", chunked=False) for name in ("a.zip", "b.zip")))
    reply = await mine.submit(upload["upload_id"], unpack=True)
    assert (reply.status, reply.json()["code"]) == (400, "broken_archive")
