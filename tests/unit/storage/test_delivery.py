"""Results copied to a directory that an administrator named."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from renderonline.storage import landing
from renderonline.storage.landing import ASIDE, Handed, Handing, hand_over


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


@pytest.fixture
def handing(tmp_path: Path) -> Handing:
    (tmp_path / "results").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "results" / "frame.png").write_bytes(b"a frame")
    return Handing(7, tmp_path / "results", "frame.png", digest(b"a frame"), tmp_path / "root", "shot/v1/a.png")


def test_a_file_is_copied_below_its_root_and_again_without_harm(handing: Handing) -> None:
    for before in ((), (handing.digest,)):
        assert hand_over(replace(handing, before=before)) is Handed.DELIVERED
    target = handing.root / handing.path
    assert target.read_bytes() == b"a frame"
    assert not target.samefile(handing.source / "frame.png")
    assert [path.name for path in target.parent.iterdir()] == ["a.png"]


def test_only_what_the_task_wrote_there_itself_is_replaced(handing: Handing) -> None:
    target = handing.root / handing.path
    target.parent.mkdir(parents=True)
    target.write_bytes(b"somebody's")
    assert hand_over(handing) is Handed.TAKEN
    assert hand_over(replace(handing, before=(digest(b"another"),))) is Handed.TAKEN
    assert target.read_bytes() == b"somebody's"
    assert hand_over(replace(handing, before=("", digest(b"somebody's")))) is Handed.DELIVERED
    assert target.read_bytes() == b"a frame"


def test_somebody_elses_file_does_not_become_the_tasks_by_having_its_bytes(handing: Handing) -> None:
    target = handing.root / handing.path
    target.parent.mkdir(parents=True)
    target.write_bytes(b"a frame")
    status = target.stat()
    assert hand_over(handing) is Handed.SAME
    assert target.stat() == status


def test_no_link_is_followed_and_none_is_replaced(handing: Handing, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (handing.root / "shot").symlink_to(tmp_path / "elsewhere")
    assert hand_over(handing) is Handed.TAKEN
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "target").write_bytes(b"a frame")
    (handing.root / "b.png").symlink_to(tmp_path / "target")
    assert hand_over(replace(handing, path="b.png", before=(digest(b"a frame"),))) is Handed.TAKEN
    (handing.source / "link.png").symlink_to(handing.source / "frame.png")
    assert hand_over(replace(handing, name="link.png", path="c.png")) is Handed.CHANGED


@pytest.mark.parametrize("path", ["/{}/out.png", "../out.png", "a/../../out.png", "a/.."])
def test_nothing_is_delivered_out_of_its_root(handing: Handing, tmp_path: Path, path: str) -> None:
    assert hand_over(replace(handing, path=path.format(tmp_path))) is Handed.TAKEN
    assert not [one for one in tmp_path.rglob("*.png") if one.parent != handing.source]


def test_what_is_not_what_landed_does_not_leave(handing: Handing) -> None:
    (handing.source / "frame.png").write_bytes(b"altered")
    assert hand_over(handing) is Handed.CHANGED
    assert not [path for path in handing.root.rglob("*") if path.is_file()]


def test_a_root_that_is_away_is_told_apart_and_not_made(handing: Handing) -> None:
    assert hand_over(replace(handing, root=handing.root / "mount")) is Handed.AWAY
    assert not list(handing.root.iterdir())


def test_a_first_try_looks_through_no_folder(handing: Handing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred thousand frames each would be slower than the one before."""
    monkeypatch.setattr(landing.os, "listdir", lambda *_: pytest.fail("the folder was listed"))
    assert hand_over(replace(handing, again=False)) is Handed.DELIVERED


def test_an_interrupted_try_leaves_nothing_and_no_hard_links_are_no_must(
    handing: Handing, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = (handing.root / handing.path).parent
    folder.mkdir(parents=True)
    (folder / f"{ASIDE}7-ab").touch()
    (folder / f"{ASIDE}71-ab").touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(landing.os, "link", refuse)
    assert hand_over(handing) is Handed.DELIVERED
    assert {path.name for path in folder.iterdir()} == {"a.png", f"{ASIDE}71-ab"}
    (folder / "b.png").write_bytes(b"somebody's")
    assert hand_over(replace(handing, path="shot/v1/b.png")) is Handed.TAKEN
    assert os.listdir(handing.source) == ["frame.png"]
