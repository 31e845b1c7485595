"""Uploads: one copy of the bytes in the final place, and nothing at all after a refusal."""

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from renderonline.farm.errors import InvalidRequest, LimitReached, NoSpace, RenderOnlineError, TooLarge
from renderonline.storage import names, uploads
from renderonline.storage.uploads import Received, Upload

REQUEST = b'--B\r\nContent-Disposition: form-data; name="request"\r\n\r\n{}\r\n'
END = b"--B--\r\n"


def file_part(content: bytes = b"scene", name: str = "a.blend") -> bytes:
    head = f'--B\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
    return head + content + b"\r\n"


class Gate:
    """Makes directories below `root`; refuses what a list of rules refuses."""

    def __init__(self, root: Path, error: RenderOnlineError | None = None) -> None:
        self.root, self.error, self.checks = root, error, 0

    async def check(self, received: Received) -> None:
        self.checks += 1
        if not received.file_names:
            raise InvalidRequest("no file")
        if not received.requests:
            raise InvalidRequest("no request")
        if len(received.file_names) > 1:
            raise InvalidRequest("two files")
        if self.error is not None:
            raise self.error

    async def place(self) -> Path:
        return names.make_task_directory(self.root, 7, 1000)

    async def stage(self) -> Path:
        return self.root


async def pieces(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.name != names.INCOMING)


async def receive(root: Path, data: bytes, gate: Gate | None = None, *, size: int = 1000, limit: int = 2**40) -> Upload:
    upload = Upload("multipart/form-data; boundary=B", limit=limit)
    try:
        await upload.receive(pieces(data, size), gate or Gate(root))
    except BaseException:
        await upload.discard()
        raise
    return upload


async def test_file_lands_in_its_final_place(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    upload = await receive(tmp_path, REQUEST + file_part(content) + END, size=250_000)
    await upload.keep()
    assert upload.received.path == tmp_path / "7" / "1000" / "a.blend"
    assert upload.received.path.read_bytes() == content
    assert upload.received.sums.size == len(content)
    assert tree(tmp_path) == ["7", "7/1000", "7/1000/a.blend"]


async def test_file_before_the_request_is_staged_and_renamed(tmp_path: Path) -> None:
    upload = await receive(tmp_path, file_part() + REQUEST + END)
    await upload.keep()
    assert upload.received.path is not None
    assert upload.received.path.read_bytes() == b"scene"
    assert tree(tmp_path) == ["7", "7/1000", "7/1000/a.blend"]


@pytest.mark.parametrize("size", [1, 13, 1_000_000])
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "closing boundary"),
        (END, "no file"),
        (REQUEST + END, "no file"),
        (file_part() + END, "no request"),
        (REQUEST + file_part() + file_part() + END, "two files"),
        (file_part() + REQUEST + file_part() + END, "two files"),
        (file_part() + file_part() + REQUEST + END, "two files"),
        (REQUEST + file_part(), "closing boundary"),
        (REQUEST + file_part()[:-5], "closing boundary"),
        (REQUEST + file_part() + b"--B-", "closing boundary"),
    ],
)
async def test_refused_upload_leaves_nothing(tmp_path: Path, data: bytes, message: str, size: int) -> None:
    with pytest.raises(InvalidRequest, match=message):
        await receive(tmp_path, data, size=size)
    assert tree(tmp_path) == []


async def test_refusal_of_the_gate_stores_nothing(tmp_path: Path) -> None:
    gate = Gate(tmp_path, LimitReached("full"))
    with pytest.raises(LimitReached):
        await receive(tmp_path, REQUEST + file_part(b"x" * 100_000) + END, gate)
    assert gate.checks == 2  # at the beginning of the file, and when everything was known
    assert tree(tmp_path) == []


async def test_first_broken_rule_is_named_even_if_it_is_known_last(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="two files"):
        await receive(tmp_path, REQUEST + file_part() + file_part() + END, Gate(tmp_path, LimitReached("full")))


async def test_refused_upload_is_not_read_for_ever(tmp_path: Path) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        yield REQUEST + file_part(b"")[:-2]
        while True:
            read += 1_000_000
            yield b"x" * 1_000_000

    upload = Upload("multipart/form-data; boundary=B", limit=2**40)
    with pytest.raises(LimitReached):
        await upload.receive(endless(), Gate(tmp_path, LimitReached("full")))
    await upload.discard()
    assert read <= uploads.DISCARD_BYTES + 3_000_000
    assert tree(tmp_path) == []


async def test_too_large_upload_is_stopped(tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        await receive(tmp_path, REQUEST + file_part(b"x" * 50_000) + END, limit=20_000)
    assert tree(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 200, 1_500_000])
async def test_client_that_goes_away_leaves_nothing(tmp_path: Path, cut: int) -> None:
    data = REQUEST + file_part(b"x" * 2_000_000) + END

    async def gone() -> AsyncIterator[bytes]:
        async for piece in pieces(data[:cut]):
            yield piece
        raise ConnectionError

    upload = Upload("multipart/form-data; boundary=B", limit=2**40)
    with pytest.raises(ConnectionError):
        await upload.receive(gone(), Gate(tmp_path))
    await upload.discard()
    await upload.discard()
    assert tree(tmp_path) == []


async def test_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int, _data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(uploads.os, "write", full)
    with pytest.raises(NoSpace):
        await receive(tmp_path, REQUEST + file_part(b"x" * 2_000_000) + END)
    assert tree(tmp_path) == []


async def test_staged_file_crosses_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_device(self: Path, target: Path) -> Path:
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(self), None, str(target))

    monkeypatch.setattr(Path, "rename", other_device)
    upload = await receive(tmp_path, file_part() + REQUEST + END)
    await upload.keep()
    assert tree(tmp_path) == ["7", "7/1000", "7/1000/a.blend"]


async def test_hostile_name_stays_inside_its_directory(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for number, name in enumerate(["../../x.blend", "/etc/x.blend", "..", "..\\\\x.blend"]):
        upload = await receive(root, REQUEST + file_part(name=name) + END)
        assert upload.received.path is not None
        assert upload.received.path.parent == root / "7" / str(1000 + number)
    assert {path.split("/")[0] for path in tree(tmp_path)} == {"root"}
