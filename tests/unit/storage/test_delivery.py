"""Results copied to a directory that an administrator named."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from renderonline.storage import landing
from renderonline.storage.landing import ASIDE, Delivered, Delivery, deliver


def digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=32).hexdigest()


@pytest.fixture
def delivery(tmp_path: Path) -> Delivery:
    (tmp_path / "results").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "results" / "frame.png").write_bytes(b"a frame")
    return Delivery(7, tmp_path / "results", "frame.png", digest(b"a frame"), tmp_path / "root", "shot/v1/a.png")


def test_a_file_is_copied_below_its_root_and_again_without_harm(delivery: Delivery) -> None:
    for before in ((), (delivery.digest,)):
        assert deliver(replace(delivery, before=before)) is Delivered.DELIVERED
    target = delivery.root / delivery.path
    assert target.read_bytes() == b"a frame"
    assert not target.samefile(delivery.source / "frame.png")
    assert [path.name for path in target.parent.iterdir()] == ["a.png"]


def test_only_what_the_task_wrote_there_itself_is_replaced(delivery: Delivery) -> None:
    target = delivery.root / delivery.path
    target.parent.mkdir(parents=True)
    target.write_bytes(b"somebody's")
    assert deliver(delivery) is Delivered.TAKEN
    assert deliver(replace(delivery, before=(digest(b"another"),))) is Delivered.TAKEN
    assert target.read_bytes() == b"somebody's"
    assert deliver(replace(delivery, before=("", digest(b"somebody's")))) is Delivered.DELIVERED
    assert target.read_bytes() == b"a frame"


def test_somebody_elses_file_does_not_become_the_tasks_by_having_its_bytes(delivery: Delivery) -> None:
    target = delivery.root / delivery.path
    target.parent.mkdir(parents=True)
    target.write_bytes(b"a frame")
    status = target.stat()
    assert deliver(delivery) is Delivered.SAME
    assert target.stat() == status


def test_no_link_is_followed_and_none_is_replaced(delivery: Delivery, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (delivery.root / "shot").symlink_to(tmp_path / "elsewhere")
    assert deliver(delivery) is Delivered.TAKEN
    assert not list((tmp_path / "elsewhere").iterdir())
    (tmp_path / "target").write_bytes(b"a frame")
    (delivery.root / "b.png").symlink_to(tmp_path / "target")
    assert deliver(replace(delivery, path="b.png", before=(digest(b"a frame"),))) is Delivered.TAKEN
    (delivery.source / "link.png").symlink_to(delivery.source / "frame.png")
    assert deliver(replace(delivery, name="link.png", path="c.png")) is Delivered.CHANGED


@pytest.mark.parametrize("path", ["/{}/out.png", "../out.png", "a/../../out.png", "a/.."])
def test_nothing_is_delivered_out_of_its_root(delivery: Delivery, tmp_path: Path, path: str) -> None:
    assert deliver(replace(delivery, path=path.format(tmp_path))) is Delivered.TAKEN
    assert not [one for one in tmp_path.rglob("*.png") if one.parent != delivery.source]


def test_what_is_not_what_landed_does_not_leave(delivery: Delivery) -> None:
    (delivery.source / "frame.png").write_bytes(b"altered")
    assert deliver(delivery) is Delivered.CHANGED
    assert not [path for path in delivery.root.rglob("*") if path.is_file()]


def test_a_root_that_is_away_is_told_apart_and_not_made(delivery: Delivery) -> None:
    assert deliver(replace(delivery, root=delivery.root / "mount")) is Delivered.AWAY
    assert not list(delivery.root.iterdir())


def test_a_first_try_looks_through_no_folder(delivery: Delivery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a hundred thousand frames each would be slower than the one before."""
    monkeypatch.setattr(landing.os, "listdir", lambda *_: pytest.fail("the folder was listed"))
    assert deliver(replace(delivery, again=False)) is Delivered.DELIVERED


def test_an_interrupted_try_leaves_nothing_and_no_hard_links_are_no_must(
    delivery: Delivery, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = (delivery.root / delivery.path).parent
    folder.mkdir(parents=True)
    (folder / f"{ASIDE}7-ab").touch()
    (folder / f"{ASIDE}71-ab").touch()

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(landing.os, "link", refuse)
    assert deliver(delivery) is Delivered.DELIVERED
    assert {path.name for path in folder.iterdir()} == {"a.png", f"{ASIDE}71-ab"}
    (folder / "b.png").write_bytes(b"somebody's")
    assert deliver(replace(delivery, path="shot/v1/b.png")) is Delivered.TAKEN
    assert os.listdir(delivery.source) == ["frame.png"]
