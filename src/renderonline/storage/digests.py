"""What a file's bytes are: size, digest and CRC-32, read once. Results have BLAKE2b-256, inputs BLAKE3."""

import hashlib
import os
import stat
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.tasks import InputFile

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
class InputSums:
    """What the bytes of an input add up to so far: `size` of them, CRC-32 and BLAKE3."""

    size: int = 0
    crc32: int = 0
    digest: Any = field(default_factory=blake3)

    def update(self, piece: bytes | memoryview) -> None:
        """The next bytes."""
        self.digest.update(piece)
        self.crc32 = zlib.crc32(piece, self.crc32)
        self.size += len(piece)

    def of(self, name: str) -> InputFile:
        """These bytes as a file of a task."""
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
        digest, crc32, size = hashlib.blake2b(digest_size=32), 0, 0
        # Not further than it was long: somebody may still be writing, as fast as we read.
        while piece := file.read(min(_PIECE, before.st_size + 1 - size)):
            digest.update(piece)
            crc32 = zlib.crc32(piece, crc32)
            size += len(piece)
        after = os.fstat(handle)
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or size != after.st_size:
        raise InvalidRequest(f"{path.name} changed while it was read.")
    return FileDigest(size, digest.hexdigest(), crc32)


def hardly_written(size: int, on_disk: int, large: int) -> bool:
    """Whether of more than `large` bytes only a small part takes room: reading holes takes time, making them none."""
    return size > large and on_disk < size // _MOST_RATIO


def bytes_on_disk(found: os.stat_result) -> int:
    """What a file takes of its disk, in bytes; its size where the system doesn't say."""
    return getattr(found, "st_blocks", -(-found.st_size // 512)) * 512
