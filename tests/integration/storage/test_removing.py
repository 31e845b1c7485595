"""Removing what strangers' programs left."""

import os
import resource
from pathlib import Path

from renderonline.hpcserver.boxes import Scratch
from renderonline.storage import landing
from renderonline.storage.disk import remove_tree


def _deep(directory: Path, depth: int) -> None:
    handle = os.open(directory, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=handle)
        inner = os.open("d", os.O_RDONLY, dir_fd=handle)
        os.close(handle)
        handle = inner
    os.close(handle)


def test_what_an_engine_left_is_removed_however_deep(tmp_path: Path) -> None:
    """Deeper than Python calls itself: HPCServer did not start any more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    attempt = tmp_path / ".attempts" / "7"
    for place in (tmp_path / "scratch" / "1", attempt):
        place.mkdir(parents=True)
        _deep(place, 1500)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        Scratch(tmp_path / "scratch").clear()
        assert landing.remove_attempt(str(attempt))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not (tmp_path / "scratch").exists()


def test_what_an_engine_closed_is_removed_and_no_link_followed(tmp_path: Path) -> None:
    other, scratch = tmp_path / "other", tmp_path / "scratch"
    closed = scratch / "1" / "home" / "closed"
    for directory in (other, closed / "inner"):
        directory.mkdir(parents=True)
        (directory / "file").write_text("x")
    (closed / "link").symlink_to(other)
    os.mkfifo(closed / "pipe")
    for directory in (closed / "inner", closed):
        directory.chmod(0)
    child = os.fork()
    if child == 0:
        os.chdir(tmp_path)
        if os.getuid() == 0:  # root may do everything
            for path in (tmp_path, scratch, *scratch.rglob("*")):
                os.chown(path, 65534, 65534, follow_symlinks=False)
            os.setuid(65534)
        remove_tree(Path("scratch/1"))
        os._exit(os.path.lexists("scratch/1"))
    assert os.waitpid(child, 0)[1] == 0
    assert (other / "file").read_text() == "x"


def test_a_link_in_place_of_a_directory_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "1").symlink_to(tmp_path / "other")
    remove_tree(tmp_path / "scratch" / "1")
    assert (tmp_path / "other" / "file").read_text() == "x"
