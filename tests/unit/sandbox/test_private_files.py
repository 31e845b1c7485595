"""Private files are whole, and stay private."""

import stat
from pathlib import Path

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.sandbox import privacy
from renderonline.sandbox.privacy import private_read, write_private


def test_private_file_is_whole_and_only_ours(tmp_path: Path) -> None:
    path = tmp_path / "new" / "secret.json"
    write_private(path, "one")
    write_private(path, "two")
    assert path.read_text() == "two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.json"
    write_private(path, "one")

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(privacy.os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_private(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_private_file_that_others_may_read_is_refused_with_the_line_that_mends_it(tmp_path: Path) -> None:
    path = tmp_path / "a secret.json"
    write_private(path, "one")
    assert private_read(path) == "one"
    for mode in (0o640, 0o604):
        path.chmod(mode)
        with pytest.raises(InvalidRequest, match=f"chmod 600 '{path}'"):
            private_read(path)
    with pytest.raises(FileNotFoundError):
        private_read(tmp_path / "nothing")
