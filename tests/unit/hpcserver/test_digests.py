"""Digests of files."""

import hashlib
import os
import zlib
from pathlib import Path

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.storage import disk
from renderonline.storage.disk import digest_file


def test_size_digest_and_crc_are_those_of_the_bytes(tmp_path: Path) -> None:
    data = os.urandom(3 * (1 << 20) + 17)
    (tmp_path / "a").write_bytes(data)
    found = digest_file(tmp_path / "a")
    assert found.size == len(data)
    assert found.digest == hashlib.blake2b(data, digest_size=32).hexdigest()
    assert found.crc32 == zlib.crc32(data)


def test_links_pipes_and_directories_are_refused_without_waiting(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "link").symlink_to("a")
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "link", "."):
        with pytest.raises((InvalidRequest, OSError)):
            digest_file(tmp_path / name)


def test_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x" * 10)
    real = zlib.crc32

    def grow(data: bytes, value: int = 0) -> int:
        with path.open("ab") as file:
            file.write(b"more")
        return real(data, value)

    monkeypatch.setattr(disk.zlib, "crc32", grow)
    monkeypatch.setattr(disk, "_PIECE", 5)
    with pytest.raises(InvalidRequest, match="changed"):
        digest_file(path)
