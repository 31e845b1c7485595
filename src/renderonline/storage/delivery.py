"""A result copied to a directory that an administrator named: aside first, then under its name in one step.

Every directory on the way is opened without following a link. A file that is there already is only replaced when it is
the one that the same task wrote there before, told by its digest.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import stat
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final

from renderonline.farm.errors import InvalidRequest
from renderonline.storage import modes
from renderonline.storage.digests import digest_file
from renderonline.storage.landing import walked

ASIDE: Final = ".renderonline-"
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""Of a file system without hard links."""


@dataclass(frozen=True, slots=True)
class Handing:
    """A result, `name` in the directory `source`, that goes to `path` below `root`. `key`: unique, what its temporary
    files begin with; `digest`: BLAKE2b-256 of its bytes; `before`: of those that the task may have delivered there;
    `again`: an earlier try may have left something, so the whole folder is looked through."""

    key: int
    source: Path
    name: str
    digest: str
    root: Path
    path: str
    before: tuple[str, ...] = ()
    again: bool = True


class Handed(StrEnum):
    """How it ended. `CHANGED`: the result is not there, or not what landed. `TAKEN`: somebody else's file, or a link,
    is in the way. `SAME`: somebody else's file is, with these very bytes. `AWAY`: the root is not there."""

    DELIVERED = "delivered"
    SAME = "same"
    CHANGED = "changed"
    TAKEN = "taken"
    AWAY = "away"


def hand_over(one: Handing) -> Handed:
    """Do it; it can be repeated. Blocks: for a thread. OSError (a full disk, no rights) is for the caller."""
    *folders, last = PurePosixPath(one.path).parts
    with walked(one.root) as there:
        if there is None:
            return Handed.AWAY
    *above, name = PurePosixPath(one.name).parts
    with walked(one.source, above) as source, walked(one.root, folders, make=True) as target:
        if target is None:
            return Handed.TAKEN
        if one.again:
            _remove_old(one, target)
        if source is None:
            return Handed.CHANGED
        aside = f"{ASIDE}{one.key}-{secrets.token_hex(8)}"
        try:
            return _named(one, aside, last, target) if _copied(one, name, source, aside, target) else Handed.CHANGED
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside, dir_fd=target)


def _remove_old(one: Handing, target: int) -> None:
    """What an interrupted try left."""
    for name in os.listdir(target):
        if name.startswith(f"{ASIDE}{one.key}-"):
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=target)


def _copied(one: Handing, name: str, source: int, aside: str, target: int) -> bool:
    """Whether the bytes that landed lie aside now, durably."""
    try:
        file = os.open(name, _FILE, dir_fd=source)
    except OSError:  # not there, or a symbolic link
        return False
    with open(file, "rb") as content:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            return False
        copy = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, modes.FILE, dir_fd=target)
        digest = hashlib.blake2b(digest_size=32)
        with open(copy, "wb") as out:
            modes.open_file(copy, target)
            while piece := content.read(1 << 20):
                digest.update(piece)
                out.write(piece)
            out.flush()
            os.fsync(copy)
    return digest.hexdigest() == one.digest


def _named(one: Handing, aside: str, last: str, target: int) -> Handed:
    try:
        os.link(aside, last, src_dir_fd=target, dst_dir_fd=target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in {errno.EEXIST, *_NO_LINKS}:
            raise
        if not _is_free(last, target):
            there = _digest(last, target)
            if not there or there not in one.before:
                return Handed.SAME if there == one.digest else Handed.TAKEN
        os.replace(aside, last, src_dir_fd=target, dst_dir_fd=target)
    os.fsync(target)
    return Handed.DELIVERED


def _is_free(name: str, folder: int) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return True
    return False


def _digest(name: str, folder: int) -> str:
    """The digest of a regular file; "" for anything else."""
    with contextlib.suppress(OSError, InvalidRequest):
        return digest_file(Path(name), folder).digest
    return ""
