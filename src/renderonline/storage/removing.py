"""Removing directories that strangers' programs have written into."""

import itertools
import os
import secrets
import shutil
import stat
from contextlib import suppress
from pathlib import Path
from typing import Final

_DIRECTORY: Final = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"))
_OWNER: Final = 0o700


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it, of any depth and any mode; links are not followed. What can't be
    removed stays. Never raises for what is there, and holds two descriptors, however deep it is. Blocks.

    What lies deeper is moved up, a directory at a time, so that nothing is ever further away than one step.
    """
    if not shutil.rmtree.avoids_symlink_attacks:  # Windows: no descriptors of directories
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        root = os.open(path, _DIRECTORY)
        try:
            _empty(root)
        finally:
            os.close(root)
        path.rmdir()


def _empty(root: int) -> None:
    prefix, numbers = secrets.token_hex(8), itertools.count()
    waiting = _directories_left(root)
    while waiting:
        name = waiting.pop()
        with suppress(OSError):
            inner = os.open(name, _DIRECTORY, dir_fd=root)
            try:
                for below in _directories_left(inner):
                    higher = f"{prefix}-{next(numbers)}"
                    os.rename(below, higher, src_dir_fd=inner, dst_dir_fd=root)
                    waiting.append(higher)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=root)


def _directories_left(folder: int) -> list[str]:
    """Remove the files of a directory; the names of those in it, which their owner can open and move after this."""
    found: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                mode = entry.stat(follow_symlinks=False).st_mode
                if not stat.S_ISDIR(mode):
                    os.unlink(entry.name, dir_fd=folder)
                    continue
                found.append(entry.name)
                if mode & _OWNER != _OWNER:
                    os.chmod(entry.name, _OWNER, dir_fd=folder)
    return found
