"""The cache of tasks' files on a machine that does not share the farm's directory."""

import os
import threading
from pathlib import Path

import pytest
from blake3 import blake3

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import InputFile
from renderonline.hpcserver.file_exchange import InputCache


def wanted(data: bytes, name: str = "a.blend") -> InputFile:
    return InputFile(name, len(data), 0, blake3(data).hexdigest())


class Farm:
    """Gives bytes, and counts how often."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.fetched = 0

    def fetch(self, handle: int, done: set[int]) -> None:
        self.fetched += 1
        os.pwrite(handle, self.data, 0)
        done.add(0)


def nothing() -> None:
    pass


@pytest.fixture
def cache(tmp_path: Path) -> InputCache:
    made = InputCache(tmp_path / "cache", 1000)
    made.open()
    return made


def test_file_is_fetched_once_and_read_only_wherever_it_is_wanted(cache: InputCache, tmp_path: Path) -> None:
    farm = Farm(b"scene")
    for number in range(3):
        target = tmp_path / str(number) / "a.blend"
        cache.place(wanted(b"scene"), target, farm.fetch, nothing)
        assert target.read_bytes() == b"scene"
        assert target.stat().st_mode & 0o222 == 0
    assert farm.fetched == 1


def test_attempts_that_begin_together_share_one_fetch(cache: InputCache, tmp_path: Path) -> None:
    farm, many = Farm(b"scene"), 8
    together = threading.Barrier(many)

    def begin(number: int) -> None:
        together.wait()
        cache.place(wanted(b"scene"), tmp_path / f"{number}", farm.fetch, nothing)

    threads = [threading.Thread(target=begin, args=(number,)) for number in range(many)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert farm.fetched == 1
    assert [(tmp_path / f"{number}").read_bytes() for number in range(many)] == [b"scene"] * many


def test_fetch_that_was_given_up_is_taken_over_where_it_stopped(cache: InputCache, tmp_path: Path) -> None:
    class GivenUp(Exception):
        pass

    def half(handle: int, done: set[int]) -> None:
        os.pwrite(handle, b"sc", 0)
        done.add(0)
        raise GivenUp

    def rest(handle: int, done: set[int]) -> None:
        assert done == {0}
        os.pwrite(handle, b"ene", 2)

    with pytest.raises(GivenUp):
        cache.place(wanted(b"scene"), tmp_path / "1", half, nothing)
    cache.place(wanted(b"scene"), tmp_path / "2", rest, nothing)
    assert (tmp_path / "2").read_bytes() == b"scene"


def test_waiting_for_another_fetch_ends_when_the_attempt_does(cache: InputCache, tmp_path: Path) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(handle: int, done: set[int]) -> None:
        begun.set()
        assert go_on.wait(20)
        os.pwrite(handle, b"scene", 0)

    def over() -> None:
        raise InterruptedError

    thread = threading.Thread(target=cache.place, args=(wanted(b"scene"), tmp_path / "1", slow, nothing))
    thread.start()
    assert begun.wait(20)
    with pytest.raises(InterruptedError):
        cache.place(wanted(b"scene"), tmp_path / "2", slow, over)
    go_on.set()
    thread.join()
    assert (tmp_path / "1").read_bytes() == b"scene"


def test_wrong_bytes_are_fetched_anew_once_and_then_refused(cache: InputCache, tmp_path: Path) -> None:
    farm = Farm(b"other")
    with pytest.raises(InvalidRequest, match="Submit the task again"):
        cache.place(wanted(b"scene"), tmp_path / "1", farm.fetch, nothing)
    assert farm.fetched == 2
    assert not (tmp_path / "1").exists()
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_was_used_longest_ago_makes_room_and_what_is_in_use_stays(cache: InputCache, tmp_path: Path) -> None:
    parts = [bytes([number]) * 400 for number in range(4)]

    def use(number: int, target: str) -> None:
        cache.place(wanted(parts[number]), tmp_path / target, Farm(parts[number]).fetch, nothing)

    def kept() -> set[int]:
        there = {path.name for path in (tmp_path / "cache").iterdir()}
        return {number for number, part in enumerate(parts) if wanted(part).digest in there}

    use(0, "pinned")
    for number in (1, 2):
        use(number, f"{number}")
        cache.release([wanted(parts[number]).digest])
    assert kept() == {0, 2}
    use(3, "3")
    assert kept() == {0, 3}, "what is in use may be more than the limit"
    cache.release([wanted(parts[0]).digest, wanted(parts[3]).digest])
    assert kept() == {0, 3}


def damage(target: Path) -> None:
    target.chmod(0o600)
    target.write_bytes(b"SCENE")


@pytest.mark.parametrize("later", [False, True], ids=["while it runs", "seen at the next start"])
def test_file_that_an_engine_changed_is_thrown_away(cache: InputCache, tmp_path: Path, later: bool) -> None:
    farm, file = Farm(b"scene"), wanted(b"scene")
    cache.place(file, tmp_path / "1", farm.fetch, nothing)
    damage(tmp_path / "1")
    if later:
        cache = InputCache(tmp_path / "cache", 1000)
        cache.open()
    else:
        cache.release([file.digest])
    cache.place(file, tmp_path / "2", farm.fetch, nothing)
    assert (tmp_path / "2").read_bytes() == b"scene"


def test_start_throws_away_what_is_no_whole_file_of_ours(cache: InputCache, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    (root / "junk").write_bytes(b"x")
    (root / f"{'a' * 64}.part").write_bytes(b"x")
    (root / ("b" * 64)).symlink_to("/etc/passwd")
    InputCache(root, 1000).open()
    assert list(root.iterdir()) == []


def other_disk(_source: Path, _target: Path) -> None:
    raise OSError(18, "another disk")


def test_another_disk_gets_a_copy(cache: InputCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", other_disk)
    cache.place(wanted(b"scene"), tmp_path / "1", Farm(b"scene").fetch, nothing)
    assert (tmp_path / "1").read_bytes() == b"scene"
    assert (tmp_path / "1").stat().st_mode & 0o222 == 0
