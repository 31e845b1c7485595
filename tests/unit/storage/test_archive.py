"""Archives that are never written anywhere, read back by other programs."""

import hashlib
import io
import os
import subprocess
import zipfile
import zlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from renderonline.farm.tasks import Landed
from renderonline.storage import archive
from renderonline.storage.archive import Changed, Compared, Member, StoredArchive, members_of, results_first


@pytest.fixture(name="directory")
def _directory(tmp_path: Path) -> Path:
    directory = tmp_path / "task"
    (directory / "sub").mkdir(parents=True)
    for number in range(5):
        (directory / f"frame_{number:04}.png").write_bytes(os.urandom(1000 * number))
    (directory / "sub" / "é.blend").write_bytes(os.urandom(70_000))
    return directory


LANDED_US = 1_700_000_000_000_000


def _known(directory: Path) -> dict[str, Landed]:
    """The frames as they landed; of the scene nothing is known."""
    return {path.name: _landed(path.read_bytes()) for path in directory.glob("frame_*.png")}


def _landed(content: bytes) -> Landed:
    digest = hashlib.blake2b(content, digest_size=32).hexdigest()
    return Landed(len(content), zlib.crc32(content), LANDED_US, digest)


def _archive(directory: Path) -> StoredArchive:
    return _made(members_of(directory, _known(directory)))


def _made(members: Sequence[Member]) -> StoredArchive:
    return StoredArchive(members, Compared())


def _bytes(made: StoredArchive, start: int = 0, end: int | None = None) -> bytes:
    return b"".join(made.pieces(start, end))


def test_python_and_unzip_read_it(directory: Path, tmp_path: Path) -> None:
    made = _archive(directory)
    content = _bytes(made)
    assert len(content) == made.size
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert opened.testzip() is None
        assert opened.namelist() == [*(f"frame_{number:04}.png" for number in range(5)), "sub/é.blend"]
        assert opened.read("sub/é.blend") == (directory / "sub" / "é.blend").read_bytes()
        modified = datetime.fromtimestamp((directory / "sub" / "é.blend").stat().st_mtime)
        shown = datetime(*opened.getinfo("sub/é.blend").date_time)
        assert timedelta(0) <= modified - shown < timedelta(seconds=2)
    target = tmp_path / "out.zip"
    target.write_bytes(content)
    assert subprocess.run(["unzip", "-tq", target], check=False, capture_output=True).returncode == 0


def test_any_range_is_the_same_bytes_from_a_fresh_layout(directory: Path) -> None:
    content = _bytes(_archive(directory))

    @settings(max_examples=100)
    @given(st.integers(0, len(content)), st.integers(0, len(content)))
    def check(first: int, second: int) -> None:
        start, end = sorted((first, second))
        assert _bytes(_archive(directory), start, end) == content[start:end]

    check()


def test_tag_changes_with_the_files(directory: Path) -> None:
    before = _archive(directory).etag
    assert _archive(directory).etag == before
    (directory / "frame_0009.png").write_bytes(b"new")
    assert _archive(directory).etag != before


def test_file_of_the_far_future_is_in_the_archive(tmp_path: Path) -> None:
    made = _made([Member("late.png", tmp_path / "late.png", 1, 2**80, 0), Member("old", tmp_path / "old", 1, -5, 0)])
    assert made.etag


def test_links_and_special_files_are_left_out(directory: Path) -> None:
    (directory / "passwd").symlink_to("/etc/passwd")
    (directory / "etc").symlink_to("/etc")
    os.mkfifo(directory / "pipe")
    names = [member.name for member in _archive(directory).members]
    assert not {"passwd", "pipe"} & set(names)
    assert not any(name.startswith("etc") for name in names)


def test_file_that_changes_meanwhile_stops_the_archive(directory: Path) -> None:
    made = _archive(directory)
    (directory / "frame_0003.png").write_bytes(b"other")
    with pytest.raises(Changed):
        _bytes(made)


def test_file_that_is_not_as_it_landed_stops_every_archive(directory: Path) -> None:
    known = _known(directory)
    path = directory / "frame_0003.png"
    written = path.stat().st_mtime_ns
    path.write_bytes(bytes(path.stat().st_size))
    os.utime(path, ns=(written, written))
    for _ in range(2):
        with pytest.raises(Changed):
            _bytes(_made(members_of(directory, known)))


def test_results_are_known_by_their_digest_whatever_their_time_is(directory: Path) -> None:
    """As a copy of the farm's files leaves them."""
    known = _known(directory)
    for name in known:
        os.utime(directory / name, (1, 1))
    made = _made(members_of(directory, known))
    assert [member.name for member in made.members if member.crc32 is None] == ["sub/é.blend"]
    with zipfile.ZipFile(io.BytesIO(_bytes(made))) as opened:
        assert opened.testzip() is None


def test_file_that_becomes_a_link_stops_the_archive(directory: Path) -> None:
    made = _archive(directory)
    (directory / "frame_0003.png").unlink()
    (directory / "frame_0003.png").symlink_to("/etc/passwd")
    with pytest.raises(Changed):
        _bytes(made)


def test_empty_directory_is_an_empty_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(_bytes(_archive(tmp_path)))) as opened:
        assert opened.namelist() == []


def test_more_than_65535_files_are_zip64(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    status = (tmp_path / "x").stat()
    crc = zlib.crc32(b"x")
    made = _made([Member(f"{number}", tmp_path / "x", 1, status.st_mtime_ns, crc) for number in range(66_000)])
    with zipfile.ZipFile(io.BytesIO(_bytes(made))) as opened:
        assert len(opened.namelist()) == 66_000
        assert opened.read("65999") == b"x"


@pytest.mark.parametrize("known", [True, False])
def test_member_over_4_gib_is_zip64(tmp_path: Path, known: bool) -> None:
    size = 5 * 1024**3
    for name in ("big", "small"):
        (tmp_path / name).touch()
    os.truncate(tmp_path / "big", size)  # holes: costs no disk
    (tmp_path / "small").write_bytes(b"after")
    made = _made(
        [
            Member(name, tmp_path / name, (tmp_path / name).stat().st_size, (tmp_path / name).stat().st_mtime_ns, crc)
            for name, crc in (("big", 0 if known else None), ("small", zlib.crc32(b"after")))
        ]
    )

    class Ranged(io.RawIOBase):
        """The archive as a file that is read by ranges, so that nobody reads the five gigabytes."""

        position = 0

        def seekable(self) -> bool:
            return True

        def readable(self) -> bool:
            return True

        def seek(self, offset: int, whence: int = 0) -> int:
            self.position = offset + {0: 0, 1: self.position, 2: made.size}[whence]
            return self.position

        def tell(self) -> int:
            return self.position

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            data = _bytes(made, self.position, min(self.position + len(buffer), made.size))
            buffer[: len(data)] = data
            self.position += len(data)
            return len(data)

    if not known:
        made._found[tmp_path / "big"] = 0  # as after the bytes were sent once
    with zipfile.ZipFile(Ranged()) as opened:
        assert opened.getinfo("big").file_size == size
        assert opened.read("small") == b"after"


def test_memory_stays_bounded(tmp_path: Path) -> None:
    (tmp_path / "big").touch()
    os.truncate(tmp_path / "big", 64 * archive.PIECE_BYTES)
    made = _archive(tmp_path)
    assert max(len(piece) for piece in made.pieces()) <= 2 * archive.PIECE_BYTES


def _named(*names: str) -> list[Member]:
    return [Member(name, f"/task/{name}", 1, 0) for name in names]


@pytest.mark.parametrize(
    ("files", "shown"),
    [
        (["a.blend", "results/f_1.png"], ["a.blend", "f_1.png"]),
        (["a.blend", "f_2.png", "results/f_1.png"], ["a.blend", "f_1.png", "f_2.png"]),
        (["a.blend", "f_1.png", "results/f_1.png"], ["f_1.png", "submitted/a.blend", "submitted/f_1.png"]),
        (["a.blend", "F_1.png", "results/f_1.png"], ["f_1.png", "submitted/F_1.png", "submitted/a.blend"]),
        (["a.blend", "tex", "results/tex/1.png"], ["submitted/a.blend", "submitted/tex", "tex/1.png"]),
        (["a.blend", "tex/1.png", "results/tex"], ["submitted/a.blend", "submitted/tex/1.png", "tex"]),
    ],
)
def test_results_have_their_own_names_in_an_archive(files: list[str], shown: list[str]) -> None:
    assert [one.name for one in results_first(_named(*files), "results")] == shown
    assert [one.name for one in results_first(_named(*files), "")] == files
