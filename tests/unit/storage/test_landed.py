"""Files are compared with their digests, and again only when somebody has touched them (R15 Served as landed)."""

import hashlib
import mmap
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from renderonline.storage.archive import PIECE_BYTES, Altered, Changed, Compared, Member, StoredArchive, file_pieces

CONTENT = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"the end"
LATER_NS = 10_000_000_000


class Sums:
    """Counts how often a digest is computed."""

    def __init__(self) -> None:
        self.begun = 0

    def __call__(self) -> Any:
        self.begun += 1
        return hashlib.blake2b(digest_size=32)


@pytest.fixture(name="sums")
def _sums() -> Sums:
    return Sums()


@pytest.fixture(name="member")
def _member(tmp_path: Path, sums: Sums) -> Member:
    path = tmp_path / "frame.exr"
    path.write_bytes(CONTENT)
    digest = hashlib.blake2b(CONTENT, digest_size=32).hexdigest()
    return Member("frame.exr", path, len(CONTENT), path.stat().st_mtime_ns, None, digest, sums)


def later() -> int:
    """A time of day at which nothing was changed just now."""
    return time.time_ns() + LATER_NS


def forge(member: Member) -> None:
    """Other bytes, as many as before, at the same time."""
    path = Path(member.path)
    written = path.stat().st_mtime_ns
    path.write_bytes(CONTENT.swapcase())
    os.utime(path, ns=(written, written))


def whole(member: Member, compared: Compared) -> bytes:
    return b"".join(file_pieces(member, 0, member.size, compared))


def test_file_is_compared_once_for_as_long_as_nobody_touches_it(member: Member, sums: Sums) -> None:
    compared = Compared(later)
    assert [whole(member, compared) == CONTENT for _ in range(3)] == [True] * 3
    assert b"".join(file_pieces(member, 100, PIECE_BYTES + 5, compared)) == CONTENT[100 : PIECE_BYTES + 5]
    assert sums.begun == 1


def test_file_that_was_changed_a_moment_ago_is_not_remembered(member: Member, sums: Sums) -> None:
    compared = Compared(lambda: os.stat(member.path).st_ctime_ns + 50_000_000)
    assert [whole(member, compared) == CONTENT for _ in range(2)] == [True] * 2
    assert sums.begun == 2


def test_parts_that_are_asked_for_at_the_same_time_cost_one_comparison(member: Member, sums: Sums) -> None:
    """A machine asks for several parts of a scene at a time, as soon as it was submitted."""
    os.utime(member.path)
    compared, parts = Compared(), [(at, at + 200_000) for at in range(0, 1_600_000, 200_000)]
    with ThreadPoolExecutor(len(parts)) as threads:
        read = threads.map(lambda part: b"".join(file_pieces(member, *part, compared)), parts)
        assert list(read) == [CONTENT[skip:stop] for skip, stop in parts]
    assert sums.begun == 1


@pytest.mark.parametrize(
    "touch",
    [
        lambda path: os.link(path, path.with_name("backup")),
        lambda path: path.chmod(0o600),
        lambda path: os.utime(path, (1, 1)),
        lambda path: path.with_name("copy").write_bytes(path.read_bytes()) and path.with_name("copy").replace(path),
    ],
    ids=["hard link", "mode", "time", "copy"],
)
def test_file_that_was_only_touched_is_looked_at_again_and_sent(
    member: Member, sums: Sums, touch: Callable[[Path], object]
) -> None:
    compared = Compared(later)
    assert whole(member, compared) == CONTENT
    touch(Path(member.path))
    assert whole(member, compared) == CONTENT
    assert sums.begun == 2


def test_other_bytes_at_the_same_time_are_never_all_sent(member: Member) -> None:
    compared = Compared(later)
    assert whole(member, compared) == CONTENT
    forge(member)
    for _ in range(2):
        sent: list[bytes] = []
        with pytest.raises(Altered):
            sent.extend(file_pieces(member, 0, member.size, compared))
        assert sum(map(len, sent)) < member.size


@pytest.mark.parametrize(("skip", "stop"), [(0, 5), (0, len(CONTENT) - 1), (PIECE_BYTES, len(CONTENT)), (7, 8)])
@pytest.mark.parametrize("clock", [time.time_ns, later])
def test_no_byte_of_a_part_is_sent_before_the_whole_was_compared(
    member: Member, skip: int, stop: int, clock: Callable[[], int]
) -> None:
    assert b"".join(file_pieces(member, skip, stop, Compared(clock))) == CONTENT[skip:stop]
    forge(member)
    with pytest.raises(Altered):
        next(filter(None, file_pieces(member, skip, stop, Compared(clock))))


def test_file_that_is_touched_while_it_is_sent_is_cut_off(member: Member) -> None:
    compared = Compared(later)
    whole(member, compared)
    pieces = file_pieces(member, 0, member.size, compared)
    next(pieces)
    forge(member)
    with pytest.raises(Changed):
        list(pieces)


def test_bytes_written_through_a_mapping_are_noticed(member: Member) -> None:
    """A page that is mapped and not yet on disk is written to without another ctime."""
    compared = Compared(later)
    with open(member.path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:1] = CONTENT[0:1]
        assert whole(member, compared) == CONTENT
        time.sleep(0.02)  # clocks of file systems tick every few milliseconds
        mapped[0:1] = b"X"
        with pytest.raises(Altered):
            whole(member, compared)


def test_many_files_are_compared_without_waiting_for_the_disk_for_each(
    tmp_path: Path, sums: Sums, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    monkeypatch.setattr(os, "fsync", written.append)
    digest = hashlib.blake2b(b"x", digest_size=32).hexdigest()
    members = [Member(f"{number}", tmp_path / f"{number}", 1, 0, 0, digest, sums) for number in range(100)]
    for member in members:
        Path(member.path).write_bytes(b"x")
    compared = Compared(later)
    for _ in range(2):
        assert len(list(StoredArchive(members, compared).pieces())) > len(members)
    assert (written, sums.begun) == ([], len(members))


def test_bytes_written_after_all_files_were_written_to_the_disk_are_noticed(tmp_path: Path, sums: Sums) -> None:
    digest = hashlib.blake2b(b"x", digest_size=32).hexdigest()
    members = [Member(f"{number}", tmp_path / f"{number}", 1, 0, 0, digest, sums) for number in range(100)]
    for member in members:
        Path(member.path).write_bytes(b"x")
    compared = Compared(later)
    with open(members[-1].path, "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[0:1] = b"x"
        list(StoredArchive(members, compared).pieces())
        time.sleep(0.02)
        mapped[0:1] = b"y"
        with pytest.raises(Altered):
            list(StoredArchive(members, compared).pieces())

        pieces = StoredArchive(members, compared := Compared(later)).pieces()
        next(piece for piece in pieces if piece == b"x")  # the disk is written for all of them
        mapped[0:1] = b"x"
        list(pieces)
        time.sleep(0.02)
        mapped[0:1] = b"z"
        with pytest.raises(Altered):
            list(StoredArchive(members, compared).pieces())


@pytest.mark.parametrize("kind", ["gone", "link", "size", "folder"])
def test_what_is_no_such_file_any_more_is_altered(member: Member, kind: str) -> None:
    path = Path(member.path)
    path.unlink()
    if kind == "link":
        path.with_name("same").write_bytes(CONTENT)
        path.symlink_to("same")
    elif kind == "size":
        path.write_bytes(CONTENT + b"x")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(Altered):
        next(file_pieces(member, 0, member.size, Compared()))
