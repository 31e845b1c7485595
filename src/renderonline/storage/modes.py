"""Who on this computer may read what we write.

In our own data directories nobody else may: 0700 and 0600. Below a download path everything is as open as the download
path itself, which `FilesMode` decides where RenderAPI makes it, but nobody else may write. Modes are set, not left to
the umask, which a service may have made stricter than its operator knows. On Windows, where they mean nothing, and on
disks that don't take them, nothing happens.
"""

import contextlib
import os
import stat
from pathlib import Path
from typing import Final

DIRECTORY: Final = 0o700
FILE: Final = 0o600
MODES: Final = {"private": 0o700, "group": 0o2750, "shared": 0o755}
"""`FilesMode` -> the mode of a download path. In a directory of a group what is made is its group's, too."""
_THROUGH: Final = {"private": 0o700, "group": 0o710, "shared": 0o711}
"""The mode of a data directory in which such a download path lies: others get to it, and see nothing else."""


def private(path: str, flags: int) -> int:
    """For `open(…, opener=private)`: a file that is made is ours alone."""
    return os.open(path, flags, FILE)


def inside(status: os.stat_result) -> tuple[int, int]:
    """The modes of directories and of files that are made in a directory with this status."""
    there = stat.S_IMODE(status.st_mode)
    return 0o700 | there & (0o055 | stat.S_ISGID), 0o600 | there & 0o044


def open_file(file: int | Path, folder: int | Path) -> None:
    """Make a file as open as the directory `folder`. Paths or handles."""
    _set(file, inside(os.stat(folder))[1])


def open_directory(directory: int | Path, above: int | Path) -> None:
    """The same for a directory."""
    _set(directory, inside(os.stat(above))[0])


def open_at_least(directory: Path, above: Path) -> None:
    """Open a directory that was there so far as the one above it is open."""
    now = stat.S_IMODE(directory.stat().st_mode)
    if (wanted := now | inside(above.stat())[0]) != now:
        _set(directory, wanted)


def make_private(directory: Path) -> None:
    """Make a directory of our own, and those above it, if they are not there."""
    if not directory.parent.is_dir():
        make_private(directory.parent)
    directory.mkdir(mode=DIRECTORY, exist_ok=True)


def make_below(root: Path, directory: Path) -> None:
    """Make `directory` and what lies between it and `root`, as open as `root`. `FileExistsError` when it is there."""
    if directory.parent != root and not directory.parent.is_dir():
        with contextlib.suppress(FileExistsError):
            make_below(root, directory.parent)
    directory.mkdir()
    open_directory(directory, root)


def make_places(data_directory: Path, files: Path, mode: str) -> None:
    """Make a farm's data directory and its download path, if they are not there. `mode` is `FilesMode`: what is there
    keeps its own unless it is named; "": private inside the data directory, shared elsewhere. `OSError`."""
    within = files.is_relative_to(data_directory)
    if not data_directory.exists():
        make_private(data_directory)
        _set(data_directory, _THROUGH[mode or "private"] if within else DIRECTORY)
    elif mode and within:
        now = stat.S_IMODE(data_directory.stat().st_mode)
        _set(data_directory, now | _THROUGH[mode])
    made = not files.exists()
    files.mkdir(mode=DIRECTORY, parents=True, exist_ok=True)
    if made or mode:
        _set(files, MODES[mode or ("private" if within else "shared")])


def _set(what: int | Path, mode: int) -> None:
    if os.name == "posix":
        with contextlib.suppress(OSError):  # another account's, or a disk without modes
            os.chmod(what, mode)
