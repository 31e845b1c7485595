"""Files and directories on a disk: where programs keep theirs, their modes, safe removal of a tree, and digests.

Our own data directories are 0700 and 0600. Below a download path everything is as readable as the download path itself
(`FilesMode`, where RenderAPI makes it), and writable by nobody else. Modes are set, not left to the umask, which a
service may have made stricter than its operator knows; on Windows and on disks without modes that does nothing.

Results have BLAKE2b-256 digests, inputs BLAKE3.
"""

import contextlib
import hashlib
import itertools
import os
import secrets
import shutil
import stat
import zlib
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from blake3 import blake3
from platformdirs import user_cache_path, user_config_path, user_data_path

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import InputFile

DIRECTORY: Final = 0o700
FILE: Final = 0o600
MODES: Final = {"private": 0o700, "group": 0o2750, "shared": 0o755}
"""`FilesMode` -> the mode of a download path. In a directory of a group what is made is its group's, too."""
_THROUGH: Final = {"private": 0o700, "group": 0o710, "shared": 0o711}
"""The mode of a data directory in which such a download path lies: others get to it, and see nothing else."""


def data_directory() -> Path:
    """Where databases, engines and logs lie: `RENDERONLINE_DATA`, else the user's own data directory."""
    return _named("RENDERONLINE_DATA") or user_data_path("renderonline", appauthor=False)


def config_directory() -> Path:
    """Where settings and the client's login lie: `RENDERONLINE_CONFIG`, else the user's own."""
    return _named("RENDERONLINE_CONFIG") or user_config_path("renderonline", appauthor=False)


def cache_directory() -> Path:
    """Where files lie that can be made again: `RENDERONLINE_CACHE`, else the user's own."""
    return _named("RENDERONLINE_CACHE") or user_cache_path("renderonline", appauthor=False)


def _named(variable: str) -> Path | None:
    named = os.environ.get(variable)
    return Path(named).expanduser().absolute() if named else None


def private(path: str, flags: int) -> int:
    """For `open(…, opener=private)`: a new file is readable by this account only."""
    return os.open(path, flags, FILE)


def inside(status: os.stat_result) -> tuple[int, int]:
    """The modes of directories and of files that are made in a directory with this status."""
    there = stat.S_IMODE(status.st_mode)
    return 0o700 | there & (0o055 | stat.S_ISGID), 0o600 | there & 0o044


def open_file(file: int | Path, folder: int | Path) -> None:
    """Give a file the rights that fit the directory `folder`. Paths or handles."""
    _set(file, inside(os.stat(folder))[1])


def open_directory(directory: int | Path, above: int | Path) -> None:
    """Give a directory the rights that fit the directory `above`. Paths or handles."""
    _set(directory, inside(os.stat(above))[0])


def open_at_least(directory: Path, above: Path) -> None:
    """Add the rights of the directory `above` to a directory that already exists."""
    now = stat.S_IMODE(directory.stat().st_mode)
    if (wanted := now | inside(above.stat())[0]) != now:
        _set(directory, wanted)


def make_private(directory: Path) -> None:
    """Make a private directory and its missing parents."""
    if not directory.parent.is_dir():
        make_private(directory.parent)
    directory.mkdir(mode=DIRECTORY, exist_ok=True)


def make_below(root: Path, directory: Path) -> None:
    """Make `directory` and its missing parents below `root`, as open as `root`. Raises `FileExistsError`."""
    if directory.parent != root and not directory.parent.is_dir():
        with contextlib.suppress(FileExistsError):
            make_below(root, directory.parent)
    directory.mkdir()
    open_directory(directory, root)


def make_places(data_directory: Path, files: Path, mode: str) -> None:
    """Make a farm's data directory and its download path if they are missing. `mode` is `FilesMode`; with "" existing
    directories keep their modes, and a new download path is private inside the data directory, shared elsewhere.
    Raises OSError."""
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


_DIRECTORY: Final = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC"))
_OWNER: Final = 0o700


def remove_tree(path: Path) -> None:
    """Remove a directory and its content, of any depth and any mode, without following links. What can't be removed
    stays; no content makes it raise an error. It uses two descriptors at any depth, because deeper directories are
    moved up one by one before they are emptied. Blocks.
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
    """Remove the files of a directory; return the names of its directories, which their owner can open and move now."""
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


RESULT_SUMS: Final = partial(hashlib.blake2b, digest_size=32)
_PIECE: Final = 1 << 20
_LARGE: Final = 1 << 30
_MOST_RATIO: Final = 16
"""Disks that compress make files smaller as well, large ones never by so much."""


@dataclass(frozen=True, slots=True)
class FileDigest:
    """`digest` is BLAKE2b-256 in hex, `crc32` unsigned, `size` in bytes."""

    size: int
    digest: str
    crc32: int


@dataclass(slots=True)
class Sums:
    """Size, CRC-32 and digest (BLAKE3, unless another hash object is passed) of the bytes so far."""

    size: int = 0
    crc32: int = 0
    digest: Any = field(default_factory=blake3)

    def update(self, piece: bytes | memoryview) -> None:
        """Add the next bytes."""
        self.digest.update(piece)
        self.crc32 = zlib.crc32(piece, self.crc32)
        self.size += len(piece)

    def of(self, name: str) -> InputFile:
        """The input of a task that consists of these bytes."""
        return InputFile(name, self.size, self.crc32, self.digest.hexdigest())


def digest_file(path: Path, folder: int | None = None) -> FileDigest:
    """Read a regular file (in an open directory, if one is given) to its end; OSError when it can't be read,
    `InvalidRequest` for anything but a regular file (links and pipes are never followed or waited for), for a large one
    that was hardly written, and for one that changes while it is read."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    handle = os.open(path, flags, dir_fd=folder)
    with open(handle, "rb", buffering=0) as file:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise InvalidRequest(f"{path.name} is not a regular file.")
        if hardly_written(before.st_size, bytes_on_disk(before), _LARGE):
            if os.lseek(handle, 0, os.SEEK_HOLE) < before.st_size:  # some network disks only don't tell
                raise InvalidRequest(f"{path.name} consists of holes: hardly any of it was written.")
            os.lseek(handle, 0, os.SEEK_SET)
        sums = Sums(digest=RESULT_SUMS())
        # Not further than it was long: somebody may still be writing, as fast as we read.
        while piece := file.read(min(_PIECE, before.st_size + 1 - sums.size)):
            sums.update(piece)
        after = os.fstat(handle)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or sums.size != after.st_size:
        raise InvalidRequest(f"{path.name} changed while it was read.")
    return FileDigest(sums.size, sums.digest.hexdigest(), sums.crc32)


def hardly_written(size: int, on_disk: int, large: int) -> bool:
    """Whether of more than `large` bytes only a small part takes room: reading holes takes time, making them none."""
    return size > large and on_disk < size // _MOST_RATIO


def bytes_on_disk(found: os.stat_result) -> int:
    """What a file takes of its disk, in bytes; its size where the system doesn't say."""
    return getattr(found, "st_blocks", -(-found.st_size // 512)) * 512
