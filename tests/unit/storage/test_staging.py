"""Uploads in pieces, on the disk: whatever order and however often they are cut, the files are what was announced."""

import errno
import json
import os
import struct
import tempfile
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.errors import InvalidRequest, Unfit
from renderonline.storage import confined, manifests, names, staging
from renderonline.storage.disk import Sums
from renderonline.storage.staging import Announced, Incomplete, PackReader, Place, SmallFile, Stage

CHUNKS = [bytes([number]) * (number * 7 + 1) for number in range(8)]


def announced(name: str, chunks: list[bytes]) -> Announced:
    records = b"".join(staging.SENT_CHUNK.pack(blake3(one).digest(), len(one)) for one in chunks)
    return Announced(name, sum(map(len, chunks)), blake3(b"".join(chunks)).hexdigest(), records)


def record(index: int, chunk: int, content: bytes) -> bytes:
    return struct.pack("<II", index, chunk) + content


@given(st.permutations(range(16)), st.integers(1, 60), st.integers(0, 16))
def test_chunks_in_any_order_through_any_cuts_make_the_files(order: list[int], size: int, restart: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = [announced("a/b", CHUNKS), announced("c", CHUNKS[::-1])]
        confined.checked(files)
        stage = Stage.create(Path(folder, "u"), files)
        for count, number in enumerate(order):
            if count == restart:
                stage = Stage(Path(folder, "u"))
            index, chunk = divmod(number, 8)
            reader = PackReader(stage)
            body = record(index, chunk, (CHUNKS, CHUNKS[::-1])[index][chunk])
            for at in range(0, len(body), size):
                reader.take(memoryview(body)[at : at + size])
            reader.finish()
            stage.add_up(index)
        found = stage.finish()
        assert [(one.name, one.size, one.digest) for one in found] == [
            (one.name, one.size, one.digest) for one in files
        ]
        target = Path(folder, "7", "1")
        target.mkdir(parents=True)
        stage.link_into(target)
        assert (target / "a/b").read_bytes() == b"".join(CHUNKS)
        assert (target / "c").read_bytes() == b"".join(CHUNKS[::-1])


@given(st.sets(st.integers(0, 7)))
def test_what_is_missing_is_said_in_runs(there: set[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage.create(Path(folder, "u"), [announced("a", CHUNKS)])
        stage.put((0, number, CHUNKS[number]) for number in sorted(there))
        missing = {n for first, count in stage.missing(0) or () for n in range(first, first + count)}
        assert missing == set(range(8)) - there
        prefix = next((n for n in range(8) if n not in there), 8)
        assert stage.offset(0) == sum(map(len, CHUNKS[:prefix]))
        if missing:
            with pytest.raises(Incomplete):
                stage.finish()


def test_a_promise_that_is_not_kept_is_missing_again(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "u", [announced("a", CHUNKS)])
    source = tmp_path / "old"
    source.write_bytes(b"".join(CHUNKS[:4]))
    places = {
        0: Place(source, 0),
        1: Place(source, 1),
        2: Place(source, 0),  # something else lies there
        3: Place(source, 24),
        4: Place(tmp_path / "gone", 0),
    }
    stage.promise(places)
    assert stage.missing(0) == [(5, 3)]
    assert stage.offset(0) == 0
    stage.fill(places)
    assert stage.missing(0) == [(2, 1), (4, 4)]


def test_a_link_in_the_place_of_an_older_file_is_not_followed(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "u", [announced("a", CHUNKS)])
    (tmp_path / "secret").write_bytes(CHUNKS[0])
    (tmp_path / "old").symlink_to(tmp_path / "secret")
    stage.promise([0])
    stage.fill({0: Place(tmp_path / "old", 0)})
    assert stage.missing(0) == [(0, 8)]


def test_a_pack_that_ends_inside_a_chunk_is_no_pack(tmp_path: Path) -> None:
    reader = PackReader(Stage.create(tmp_path / "u", [announced("a", CHUNKS)]))
    reader.take(memoryview(record(0, 3, CHUNKS[3][:-1])))
    with pytest.raises(InvalidRequest, match="middle of a chunk"):
        reader.finish()


def test_bytes_that_changed_on_the_disk_are_found_out(tmp_path: Path) -> None:
    stage = Stage.create(tmp_path / "u", [announced("a", CHUNKS)])
    stage.put((0, number, one) for number, one in enumerate(CHUNKS))
    (tmp_path / "u/data/0").write_bytes(bytes(sum(map(len, CHUNKS))))
    with pytest.raises(Unfit, match="Send it again"):
        stage.finish()
    assert stage.missing(0) == [(0, 8)]


@pytest.mark.parametrize(("scene", "name", "directory"), [
    ("/f/1/2/a.blend", "a.blend", "/f/1/2"),
    ("/f/1/2/shots/a.blend", "shots/a.blend", "/f/1/2"),
    ("/f/1/2/shots/a.blend", "a.blend", "/f/1/2/shots"),
    ("/f/1/2/a.blend", "../a.blend", "/f/1/2"),
    ("/f/1/2/a.blend", "/f/1/2/a.blend", "/f/1/2"),
    ("/f/1/2/a.blend", "", "/f/1/2"),
    ("/f/1/2/a.blend", "other/a.blend", "/f/1/2"),
])  # fmt: skip
def test_a_tasks_directory_lies_above_the_folders_of_its_scene(scene: str, name: str, directory: str) -> None:
    assert names.task_directory(scene, name) == Path(directory)


def test_manifests_of_others_and_broken_ones_are_not_looked_into(tmp_path: Path) -> None:
    for user in (1, 2):
        directory = tmp_path / str(user) / "5"
        directory.mkdir(parents=True)
        (directory / "a").write_bytes(b"".join(CHUNKS))
        manifests.remember(directory, {"a": announced("a", CHUNKS).chunks})
    wanted = {blake3(one).digest() for one in CHUNKS}
    found = manifests.look_up([tmp_path], 1, wanted, ())
    assert found.keys() == wanted
    assert {place.path for place in found.values()} == {tmp_path / "1/5/a"}
    assert manifests.look_up([tmp_path], 3, wanted, ()) == {}
    for content in (b"", b"{}", b'{"version": "cdc:v1"}\n', b"\xff\n", b'{"version": "cdc:v2", "files": []}\n'):
        names.manifest_path(tmp_path / "1/5").write_bytes(content)
        assert manifests.look_up([tmp_path], 1, wanted, ()) == {}


def test_the_manifest_of_a_directory_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    directory = tmp_path / "1" / "5"
    directory.mkdir(parents=True)
    (directory / "a").write_bytes(b"x")
    manifests.remember(directory, {"a": None})
    manifests.sweep(tmp_path)
    assert names.manifest_path(directory).exists()
    (directory / "a").unlink()
    directory.rmdir()
    assert manifests.look_up([tmp_path], 1, {bytes(32)}, ()) == {}
    assert not names.manifest_path(directory).exists()


def test_a_pack_of_many_small_files_has_one_of_them_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, write_at, most = 200, staging.write_at, 0
    stage = Stage.create(tmp_path / "u", [announced(f"{number}", [b"x"]) for number in range(count)])

    def counted(handle: int, data: bytes | memoryview, offset: int) -> None:
        nonlocal most
        most = max(most, len(os.listdir("/dev/fd")))
        write_at(handle, data, offset)

    monkeypatch.setattr(staging, "write_at", counted)
    before = len(os.listdir("/dev/fd"))
    PackReader(stage).take(memoryview(b"".join(record(number, 0, b"x") for number in range(count))))
    assert most <= before + 5
    assert len(stage.finish()) == count


def test_few_files_are_being_added_up_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "MOST_SUMS", 3)
    stage = Stage.create(tmp_path / "u", [announced(f"{number}", CHUNKS[:2]) for number in range(10)])
    for chunk, most in ((0, 3), (1, 0)):
        for index in range(10):
            stage.put([(index, chunk, CHUNKS[chunk])])
            stage.add_up(index)
        assert len(stage._sums) == most
    assert {one.digest for one in stage.finish()} == {stage.files[0].digest}


def test_names_that_are_not_fit_travel_under_others_with_a_mapping(tmp_path: Path) -> None:
    files = [announced("s: 1.blend", CHUNKS[:1]), announced("tex/ho\u0308lz.png", CHUNKS[1:2])]
    confined.checked(files)
    Stage.create(tmp_path / "u", files)
    stage = Stage(tmp_path / "u")
    assert [one["name"] for one in stage.described()] == ["s: 1.blend", "tex/ho\u0308lz.png"]
    assert stage.held("s: 1.blend") == "s_ 1.blend"
    stage.put([(0, 0, CHUNKS[0]), (1, 0, CHUNKS[1])])
    assert [one.name for one in stage.finish()] == ["s_ 1.blend", "tex/h\u00f6lz.png", names.MAPPING]
    (tmp_path / "task").mkdir()
    stage.link_into(tmp_path / "task")
    said = json.loads((tmp_path / "task" / names.MAPPING).read_bytes())
    assert said == {"s: 1.blend": "s_ 1.blend", "tex/ho\u0308lz.png": "tex/h\u00f6lz.png"}


def test_files_get_their_places_on_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_device(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(source), None, str(target))

    handle = staging.open_single(tmp_path / "u")
    os.write(handle, b"scene")
    os.close(handle)
    sums = Sums()
    sums.update(b"scene")
    stage = Stage(tmp_path / "u", sums.of("a.blend"))
    assert stage.finish() == (sums.of("a.blend"),)
    monkeypatch.setattr(os, "link", other_device)
    (tmp_path / "task").mkdir()
    stage.link_into(tmp_path / "task")
    assert (tmp_path / "task" / "a.blend").read_bytes() == b"scene"


@pytest.mark.parametrize("content", [b"", b"scene"])
def test_small_file_is_written_where_it_stays_or_staged(tmp_path: Path, content: bytes) -> None:
    file = SmallFile("a.blend", content)
    sums = Sums()
    sums.update(content)
    directory = tmp_path / "1" / "2"
    directory.mkdir(parents=True)
    file.link_into(directory)
    assert (directory / "a.blend").read_bytes() == content
    stage = file.stage(tmp_path / "u")
    assert stage.finish() == (file.facts(),) == (sums.of("a.blend"),)
    with pytest.raises(FileExistsError):
        file.link_into(directory)
