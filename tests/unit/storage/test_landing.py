"""Files under their final names: linked, never replaced, never through a link (R6 Landing, step 2)."""

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import Landing, Offer
from renderonline.storage import landing
from renderonline.storage.landing import Placed, check_name, place, remove_copies

DATA = b"a picture"
ATTEMPT = 7


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """An attempt's directory with `frame.png` in it, and its task's."""
    source, target = tmp_path / ".attempts" / "7", tmp_path / "1" / "2"
    source.mkdir(parents=True)
    target.mkdir(parents=True)
    (source / "frame.png").write_bytes(DATA)
    return source, target


def result(folders: tuple[Path, Path], name: str = "frame.png", data: bytes = DATA, **more: str) -> Landing:
    offer = Offer(ATTEMPT, None, name, 1, len(data), digest(data), 0)
    where = {"source": str(folders[0]), "scene": str(folders[1] / "a.scene"), "file_name": "a.scene", "folder": ""}
    return Landing(1, offer, task_id=1, user_id=1, machine_id=1, **(where | more))


def put(landing: Landing, *, running: bool = False) -> Placed:
    """Place a result of an engine that has ended, or still runs."""
    (outcome,) = place((landing,), () if running else (ATTEMPT,))
    return outcome


def test_result_is_linked_not_copied(folders: tuple[Path, Path]) -> None:
    assert put(result(folders)) is Placed.LANDED
    assert (folders[1] / "frame.png").samefile(folders[0] / "frame.png")


def test_result_of_an_engine_that_still_runs_is_out_of_its_reach(folders: tuple[Path, Path]) -> None:
    for _ in range(2):
        assert put(result(folders), running=True) is Placed.LANDED
    with (folders[0] / "frame.png").open("r+b") as file:
        file.write(b"A")
    assert (folders[1] / "frame.png").read_bytes() == DATA
    assert [path.name for path in folders[1].iterdir()] == ["frame.png"]


def test_file_that_was_changed_after_it_was_checked_does_not_land(folders: tuple[Path, Path]) -> None:
    (folders[0] / "frame.png").write_bytes(DATA.upper())
    assert put(result(folders), running=True) is Placed.MISSING
    assert not list(folders[1].iterdir())


def test_landing_can_be_repeated(folders: tuple[Path, Path]) -> None:
    for _ in range(3):
        assert put(result(folders)) is Placed.LANDED
    (folders[0] / "frame.png").unlink()
    assert put(result(folders)) is Placed.LANDED


def test_file_that_is_there_is_never_replaced(folders: tuple[Path, Path]) -> None:
    (folders[1] / "frame.png").write_bytes(b"the scene")
    assert put(result(folders)) is Placed.TAKEN
    assert (folders[1] / "frame.png").read_bytes() == b"the scene"


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


@pytest.mark.parametrize("crossing", [False, True])
def test_file_that_is_named_is_replaced_in_one_step(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, *, crossing: bool
) -> None:
    """R6 Landing: a result that is made again takes the place of the old one, which is never missing."""
    if crossing:
        monkeypatch.setattr(landing.os, "link", no_link)
    (folders[1] / "frame.png").write_bytes(b"old")
    wanted = result(folders, stale_digest=digest(b"old"))
    for _ in range(2):
        assert put(wanted) is Placed.LANDED
    assert [(path.name, path.read_bytes()) for path in folders[1].iterdir()] == [("frame.png", DATA)]


def test_try_beside_another_places_nothing_of_the_others(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R6 Landing: when one of two that land the same result says that it has landed, the whole file is there."""
    written, beside = threading.Event(), threading.Event()
    ended = threading.Event()

    def fsync(handle: int, *, real: Callable[[int], None] = os.fsync) -> None:
        real(handle)
        if not written.is_set():  # the first has written its copy; the other begins its own
            written.set()
            assert beside.wait(20)

    def dup(handle: int, *, real: Callable[[int], int] = os.dup) -> int:
        if written.is_set():  # the other has an empty copy
            beside.set()
            assert ended.wait(20)
        return real(handle)

    monkeypatch.setattr(landing.os, "fsync", fsync)
    monkeypatch.setattr(landing.os, "dup", dup)
    copied = result(folders)
    with ThreadPoolExecutor() as threads:
        first = threads.submit(put, copied, running=True)
        assert written.wait(20)
        other = threads.submit(put, copied, running=True)
        try:
            assert first.result(20) is Placed.LANDED
            assert (folders[1] / "frame.png").read_bytes() == DATA
        finally:
            ended.set()
        assert other.result(20) is Placed.LANDED
    assert [path.name for path in folders[1].iterdir()] == ["frame.png"]


@pytest.mark.parametrize("altered", ["file", "link"])
def test_file_that_is_replaced_may_have_been_altered(folders: tuple[Path, Path], altered: str) -> None:
    if altered == "file":
        (folders[1] / "frame.png").write_bytes(b"someone's")
    else:
        (folders[1] / "frame.png").symlink_to(folders[1] / "other")
    assert put(result(folders, stale_digest=digest(b"old"))) is Placed.LANDED
    assert (folders[1] / "frame.png").read_bytes() == DATA
    assert [path.name for path in folders[1].iterdir()] == ["frame.png"]


def no_link(source: str, target: str, *, real: object = os.link, **options: object) -> None:
    """`os.link` between two file systems."""
    if not str(source).startswith(".landing-"):
        raise OSError(18, "Invalid cross-device link")
    real(source, target, **options)  # type: ignore[operator]


def test_same_bytes_under_the_final_name_are_landed(folders: tuple[Path, Path]) -> None:
    (folders[1] / "frame.png").write_bytes(DATA)
    assert put(result(folders)) is Placed.LANDED


def test_names_in_folders_land_in_folders(folders: tuple[Path, Path]) -> None:
    (folders[0] / "a" / "b").mkdir(parents=True)
    (folders[0] / "a" / "b" / "frame.png").write_bytes(DATA)
    assert put(result(folders, "a/b/frame.png")) is Placed.LANDED
    assert (folders[1] / "a" / "b" / "frame.png").read_bytes() == DATA


@pytest.mark.parametrize("kind", ["missing", "link", "folder", "pipe", "size"])
def test_what_is_no_whole_file_is_missing(folders: tuple[Path, Path], kind: str) -> None:
    path = folders[0] / "frame.png"
    path.unlink()
    if kind == "link":
        secret = folders[0].parent / "secret"
        secret.write_bytes(DATA)
        path.symlink_to(secret)
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "size":
        path.write_bytes(DATA + b"!")
    assert put(result(folders)) is Placed.MISSING
    assert not (folders[1] / "frame.png").exists()


def test_linked_folder_in_the_attempt_is_not_followed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "frame.png").write_bytes(DATA)
    (folders[0] / "a").symlink_to(secrets)
    assert put(result(folders, "a/frame.png")) is Placed.MISSING


def test_linked_folder_in_the_task_is_not_followed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[0] / "a").mkdir()
    (folders[0] / "a" / "frame.png").write_bytes(DATA)
    (folders[1] / "a").symlink_to(tmp_path)
    assert put(result(folders, "a/frame.png")) is Placed.TAKEN
    assert not (tmp_path / "frame.png").exists()


def test_task_that_was_deleted_gets_no_directory_again(folders: tuple[Path, Path]) -> None:
    folders[1].rmdir()
    assert put(result(folders)) is Placed.GONE
    assert not folders[1].exists()


def test_other_file_system_gets_a_whole_copy(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing.os, "link", no_link)
    assert put(result(folders)) is Placed.LANDED
    assert [path.name for path in folders[1].iterdir()] == ["frame.png"]
    assert (folders[1] / "frame.png").read_bytes() == DATA
    assert put(result(folders)) is Placed.LANDED


def test_copies_of_interrupted_tries_are_removed(folders: tuple[Path, Path], tmp_path: Path) -> None:
    target, strange = folders[1], tmp_path / "strange"
    for folder in (target, target / "a", strange):
        folder.mkdir(exist_ok=True)
        for name in (".landing-1", ".landing-1-ab12", ".landing-12-ab12", "frame.png"):
            (folder / name).write_bytes(b"half")
    (target / "link").symlink_to(strange)
    remove_copies([result(folders, name) for name in ("frame.png", "a/frame.png", "link/frame.png", "none/x.png")])
    for folder, kept in ((target, 2), (target / "a", 2), (strange, 4)):
        files = [path.name for path in folder.iterdir() if path.is_file()]
        assert len(files) == kept
        assert {".landing-12-ab12", "frame.png"} <= set(files)


def test_interrupted_landing_without_any_file_is_missing(folders: tuple[Path, Path]) -> None:
    (folders[0] / "frame.png").unlink()
    assert put(result(folders)) is Placed.MISSING


@pytest.mark.parametrize("name", ["frame_0001.png", "a/b/c.exr", "größe.png", "with blank.png", ".hidden"])
def test_plain_names_are_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", "a\nb", "a\0b", "\x1b[2J", "a\\b", "x" * 300,
        "a/" * 20 + "b", ".landing-1", "a/.landing-1", "\ud800", "\u202egnp.exe",
    ],
)  # fmt: skip
def test_names_that_could_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest):
        check_name(name)


def test_only_attempts_directories_are_removed(tmp_path: Path) -> None:
    attempt, other = tmp_path / ".attempts" / "12", tmp_path / "12"
    for folder in (attempt, other):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x")
    assert landing.remove_attempt(str(attempt))
    assert not attempt.exists()
    attempt.mkdir()
    assert landing.remove_attempt(str(attempt)), "an empty one"
    assert not attempt.exists()
    assert landing.remove_attempt(str(attempt)), "one that was never made"
    for wrong in (str(other), "", "/", str(tmp_path / ".attempts"), str(tmp_path / ".attempts" / "..")):
        assert not landing.remove_attempt(wrong)
    assert (other / "file").exists()


def test_only_a_tasks_own_directory_is_removed_whole(tmp_path: Path) -> None:
    mine, strange = tmp_path / "7" / "638000000000000000", tmp_path / "projects"
    for folder in (mine, strange):
        folder.mkdir(parents=True)
        for name in ("a.scene", "other"):
            (folder / name).write_text("x")
    assert landing.remove_task(str(mine / "a.scene"), "a.scene", 7)
    assert not mine.exists()
    assert landing.remove_task(str(strange / "a.scene"), "a.scene", 7)
    assert [path.name for path in strange.iterdir()] == ["other"]
    assert not landing.remove_task("a.scene", "a.scene", 7)


def test_found_outputs_are_regular_files_below_the_directory(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[0] / "sub").mkdir()
    (folders[0] / "sub" / "deep.exr").write_bytes(DATA)
    (folders[0] / "link.png").symlink_to(folders[0] / "frame.png")
    (folders[0] / "up").symlink_to(tmp_path)
    assert landing.found_outputs(folders[0]) == ("frame.png", "sub/deep.exr")


def test_result_lands_in_its_folder_and_leaves_an_input_of_its_name_alone(folders: tuple[Path, Path]) -> None:
    (folders[1] / "frame.png").write_bytes(b"an input")
    apart = result(folders, folder="results")
    for _ in range(2):
        assert put(apart) is Placed.LANDED
    assert (folders[1] / "results" / "frame.png").read_bytes() == DATA
    assert (folders[1] / "frame.png").read_bytes() == b"an input"
    (folders[1] / "results" / ".landing-1-ab12").touch()
    remove_copies((apart,))
    assert [path.name for path in (folders[1] / "results").iterdir()] == ["frame.png"]


def test_folder_that_is_a_link_takes_no_result(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folders[1] / "results").symlink_to(tmp_path / "elsewhere")
    assert put(result(folders, folder="results")) is Placed.TAKEN
    assert not list((tmp_path / "elsewhere").iterdir())
