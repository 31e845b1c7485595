"""ZIPs beyond what 16 and 32 bits can say, downloaded for real and read by other programs (case 12 of the notes on
transfers)."""

import asyncio
import hashlib
import io
import os
import subprocess
import urllib.request
import zipfile
import zlib
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from renderonline.database import schema as tables
from renderonline.database.door import Database
from tests.support.renderapi import SCENE, Running, renderapi

MANY = 65_600
SIZE = 2**32 + 4096
CRC_OF_ZEROS = 0xB875D37F
"""`zlib.crc32(bytes(SIZE))`."""
DIGEST_OF_ZEROS = "b9b07edbb3f9f47f33720f2f5d24f3870305627b56b8280b45a359590177aa91"
EDGE = 1 << 20


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data") as running:
        await running.new_task()
        yield running


def landed(api: Running, files: Iterable[tuple[str, int, int, str]]) -> None:
    """Results as the dispatcher leaves them: names, sizes, CRCs, digests."""
    about = {"task_id": 1, "chunk_id": 1, "attempt_id": 1, "state": "landed", "landed_us": 1}
    names = ("name", "size", "crc32", "digest")
    rows = [
        {**about, "name_hash": hashlib.sha256(one[0].encode()).hexdigest(), **dict(zip(names, one, strict=True))}
        for one in files
    ]
    with Database.open(api.settings.database) as database:
        database.write_now(lambda connection: connection.execute(tables.results.insert(), rows))


def digest_of(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def directory_of(api: Running) -> Path:
    (scene,) = api.settings.files.glob(f"*/*/{SCENE[0]}")
    return scene.parent


def fetch(api: Running, first: int | None = None, last: int | None = None) -> tuple[bytes, Mapping[str, str]]:
    """The archive, or the bytes `first` to `last` of it; blocks."""
    asked = {} if first is None else {"Range": f"bytes={first}-{'' if last is None else last}"}
    request = urllib.request.Request(f"{api.url}/renderapi/v2/tasks/1/download", headers={**api.who, **asked})
    with urllib.request.urlopen(request, timeout=300) as response:
        return response.read(), response.headers


SEVEN_ZIP = ("7zz", "t", "-bso0", "-bsp0")
UNZIP = ("unzip", "-tqq")


def read_by(*programs: Sequence[str | Path]) -> None:
    """Other programs find nothing wrong with it."""
    for words in programs:
        told = subprocess.run(words, capture_output=True, text=True, check=False)
        assert (told.returncode, told.stderr) == (0, ""), (words, told.stdout[-2000:])


async def test_more_than_65535_results_arrive_and_are_read_by_others(api: Running, tmp_path: Path) -> None:
    directory = directory_of(api)
    names = [f"f{number:05}.png" for number in range(MANY)]

    def make() -> None:
        contents = [os.urandom(100) for _ in range(2)]  # one file has at most 65,000 names on ext4
        for number, name in enumerate(names):
            if number < 2:
                (directory / name).write_bytes(contents[number])
            else:
                os.link(directory / names[number % 2], directory / name)
        sums = [(zlib.crc32(content), digest_of(content)) for content in contents]
        landed(api, [(name, 100, *sums[number % 2]) for number, name in enumerate(names)])

    await asyncio.to_thread(make)
    content, _ = await asyncio.to_thread(fetch, api)
    half, headers = await asyncio.to_thread(fetch, api, len(content) // 2)
    assert (headers["Content-Range"], half) == (
        f"bytes {len(content) // 2}-{len(content) - 1}/{len(content)}",
        content[len(content) // 2 :],
    )
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert archive.namelist() == sorted([*names, SCENE[0]])
        assert archive.read(names[-1]) == (directory / names[-1]).read_bytes()
    path = tmp_path / "many.zip"
    path.write_bytes(content)
    await asyncio.to_thread(read_by, (*UNZIP, path), (*SEVEN_ZIP, path))


class Remote(io.RawIOBase):
    """The archive as a file of which only what is wanted is downloaded."""

    def __init__(self, api: Running, size: int) -> None:
        self.api, self.size, self.position = api, size, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self.position = offset + (0, self.position, self.size)[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        last = min(self.position + len(buffer), self.size) - 1
        if last < self.position:
            return 0
        data, _ = fetch(self.api, self.position, last)
        buffer[: len(data)] = data
        self.position += len(data)
        return len(data)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("known", [True, False])
async def test_results_of_more_than_4_gib_arrive_and_are_read_by_others(
    api: Running, tmp_path: Path, *, known: bool
) -> None:
    """Holes on both sides: neither the frame nor the copy of the archive takes room on the disk."""
    directory = directory_of(api)
    (directory / "big.exr").touch()
    os.truncate(directory / "big.exr", SIZE)
    (directory / "later.png").write_bytes(b"begins after 4 GiB")
    later = b"begins after 4 GiB"
    of_later = ("later.png", len(later), zlib.crc32(later), digest_of(later))
    landed(api, [("big.exr", SIZE, CRC_OF_ZEROS, DIGEST_OF_ZEROS)] if known else [of_later])
    begin, headers = await asyncio.to_thread(fetch, api, 0, EDGE - 1)
    size = int(headers["Content-Range"].rpartition("/")[2])
    assert size > SIZE
    end, _ = await asyncio.to_thread(fetch, api, size - EDGE)
    path = tmp_path / "big.zip"
    with path.open("wb") as copy:
        copy.write(begin)
        copy.truncate(size)
        copy.seek(size - EDGE)
        copy.write(end)
    for place in (EDGE, 2**31 - 5, 2**32 - 5, size - 2 * EDGE):
        assert (await asyncio.to_thread(fetch, api, place, place + 9))[0] == bytes(10)
    # unzip takes a quarter of a minute for 4 GiB, 7-Zip a few seconds: where the CRC was reckoned it reads all of it.
    small = ("later.png", SCENE[0])
    await asyncio.to_thread(read_by, (*UNZIP, path, *small), (*SEVEN_ZIP, path, *(small if known else ())))

    def look() -> None:
        with zipfile.ZipFile(Remote(api, size) if known else path) as archive:
            big = archive.getinfo("big.exr")
            assert (big.file_size, big.CRC) == (SIZE, CRC_OF_ZEROS)
            assert archive.getinfo("later.png").header_offset > 2**32
            assert archive.read("later.png") == b"begins after 4 GiB"

    await asyncio.to_thread(look)
