"""Directories of bakes, which a scene names: whatever is in them, a copy takes little."""

import os
from pathlib import Path

import pytest

from renderonline.engines.blender.launcher import files as bakes


@pytest.fixture
def baked(tmp_path: Path) -> Path:
    for name in ("bake/meta/0001.json", "bake/blobs/0001.blob", "temporary/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path / "bake"


def copied(baked: Path) -> Path:
    return Path(bakes.copied(str(baked), str(baked.parent / "temporary")))


def test_descriptions_are_copied_and_nothing_else(baked: Path) -> None:
    (baked / "loop").symlink_to(baked)
    (baked / "link.json").symlink_to("/etc/passwd")
    os.mkfifo(baked / "pipe.json")
    copy = copied(baked)
    assert (copy / "meta/0001.json").read_text() == "bake/meta/0001.json"
    links = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_symlink()}
    assert links == {"blobs/0001.blob", "loop", "link.json", "pipe.json"}
    assert (copy / "blobs/0001.blob").read_text() == "bake/blobs/0001.blob"


def test_the_whole_disk_is_no_bake(
    baked: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bakes, "MOST_BAKED_FILES", 1)
    assert bakes.copied(str(baked), str(baked.parent / "temporary")) == ""
    assert "more than 1 files" in capsys.readouterr().out
    assert [path.name for path in (baked.parent / "temporary").iterdir()] == ["x"]
