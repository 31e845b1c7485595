"""The chunks of a user's files, so that bytes that were sent once need not be sent again.

A manifest is an index of the files in one task's directory. It holds no content: if it is missing or damaged, or a file
has changed, the chunk is sent. Each lies in `.manifests` of its download path as `<user>-<ticks>`; an upload uses only
those of its own user. All functions block.
"""

import contextlib
import json
import re
import struct
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, Final

from blake3 import blake3
from pyfastcdc import FastCDC

from renderonline.sandbox.privacy import write_private
from renderonline.storage.names import MANIFESTS, manifest_path
from renderonline.storage.staging import DIGEST_BYTES, SENT_CHUNK, Place

VERSION: Final = "cdc:v1"
"""The way in which `manifest_of` cuts files into content-defined chunks."""
AVERAGE, SMALLEST, LARGEST = 256 * 1024, 64 * 1024, 1024 * 1024
LARGE: Final = 4 * 1024 * 1024
"""Files of at least this size are remembered even if they were not sent in chunks."""
MOST_BLOCKS: Final = 1_000_000
"""The most blocks of a .blend that are examined; what follows them is one part."""
MOST_MANIFESTS: Final = 2000
MOST_BYTES: Final = 64 * 1024 * 1024
"""The most bytes of manifests that one look-up reads, the newest first."""


def manifest_of(path: Path) -> bytes:
    """Return the chunks of a file, as records of `staging.SENT_CHUNK`."""
    found, cutter = bytearray(), FastCDC(avg_size=AVERAGE, min_size=SMALLEST, max_size=LARGEST)
    with path.open("rb", buffering=0) as file:
        parts = list(_parts(file, path.stat().st_size))
        file.seek(0)
        for length in parts:
            for chunk in cutter.cut_stream(_Part(file, length)):
                found += SENT_CHUNK.pack(blake3(chunk.data).digest(), chunk.length)
    return bytes(found)


def _parts(file: FileIO, size: int) -> Iterator[int]:
    """The lengths of the parts of a file that are cut separately.

    Each large block of a .blend is one, because the heads of blocks, and small blocks, hold memory addresses that
    differ each time Blender saves the file. A compressed .blend is one part, like any other file.
    """
    head = file.read(17)
    if new := re.fullmatch(rb"BLENDER17-01([vV])\d{4}", head):
        at, order, form, field = 17, new[1], "4siQqq", 3
    elif old := re.fullmatch(rb"BLENDER([-_])([vV])\d{3}", head[:12]):
        at, order, form, field = 12, old[2], "4siQii" if old[1] == b"-" else "4siIii", 1
    else:
        yield size
        return
    block, begun = struct.Struct(("<" if order == b"v" else ">") + form), 0
    for _ in range(MOST_BLOCKS):
        file.seek(at)
        said = file.read(block.size)
        at += block.size
        length = block.unpack(said)[field] if len(said) == block.size else -1
        if not 0 <= length <= size - at:
            break
        if length >= SMALLEST:
            yield from (at - begun, length)
            begun = at + length
        at += length
    yield size - begun


class _Part:
    """The next `length` bytes of a file."""

    def __init__(self, file: FileIO, length: int) -> None:
        self._file, self._left = file, length

    def readinto(self, buffer: memoryview) -> int:
        count = self._file.readinto(buffer[: self._left]) if self._left else 0
        self._left -= count
        return count


def remember(directory: Path, files: Mapping[str, bytes | None]) -> None:
    """Write the manifest of a task's directory. A file whose chunks are None is cut when a file of its name is looked
    up. Errors of the disk are ignored: then there is no manifest."""
    path, rows = manifest_path(directory), []
    with contextlib.suppress(OSError):
        for name, chunks in files.items():
            status = (directory / name).stat()
            rows.append((name, status.st_size, status.st_mtime_ns, None if chunks is None else len(chunks)))
        path.parent.mkdir(mode=0o700, exist_ok=True)
        head = json.dumps({"version": VERSION, "files": rows}).encode()
        write_private(path, b"\n".join((head, b"".join(filter(None, files.values())))), durable=False)


def any_of(roots: Iterable[Path], user_id: int) -> bool:
    """Return whether there is a manifest of a user's files."""
    return any(True for root in roots for _ in (root / MANIFESTS).glob(f"{user_id}-*"))


def look_up(
    roots: Iterable[Path], user_id: int, wanted: Collection[bytes], names: Collection[str]
) -> dict[bytes, Place]:
    """Return where this user's files have the chunks with these digests. `names`: those of the files that are to come;
    of each, the newest large file is cut now if it was not before."""
    found: dict[bytes, Place] = {}
    left, uncut, read = set(wanted), {name.rpartition("/")[2] for name in names}, 0
    for path in _newest(roots, user_id):
        directory = path.parent.parent / str(user_id) / path.name.partition("-")[2]
        if not directory.is_dir():
            path.unlink(missing_ok=True)
            continue
        if not left or read > MOST_BYTES:
            break
        rows, records = _read(path)
        read += len(records)
        if fresh := {row[0] for row in rows if row[3] is None and row[0].rpartition("/")[2] in uncut}:
            with contextlib.suppress(OSError):
                rows, records = _cut_now(directory, rows, records, fresh)
        uncut -= {row[0].rpartition("/")[2] for row in rows if row[3] is not None}
        for name, place in _places(directory, rows, records, left):
            found.setdefault(name, place)
        left -= found.keys()
    return found


def sweep(root: Path) -> None:
    """Remove the manifests of directories that are gone."""
    for path in (root / MANIFESTS).glob("*-*"):
        user, _, ticks = path.name.partition("-")
        if not (root / user / ticks).is_dir():
            path.unlink(missing_ok=True)


def _newest(roots: Iterable[Path], user_id: int) -> Sequence[Path]:
    found = [path for root in roots for path in (root / MANIFESTS).glob(f"{user_id}-*")]
    named = [path for path in found if re.fullmatch(r"\d+-\d+", path.name)]
    return sorted(named, key=lambda path: int(path.name.partition("-")[2]), reverse=True)[:MOST_MANIFESTS]


def _read(path: Path) -> tuple[list[Any], bytes]:
    """The rows (name, size, modified_ns, bytes of its records or None) and the records; empty if unreadable."""
    try:
        head, _, records = path.read_bytes().partition(b"\n")
        about = json.loads(head)
        return (about["files"], records) if about["version"] == VERSION else ([], b"")
    except (OSError, ValueError, KeyError):
        return [], b""


def _cut_now(directory: Path, rows: list[Any], records: bytes, names: Collection[str]) -> tuple[list[Any], bytes]:
    files, at = {}, 0
    for name, _, _, length in rows:
        files[name] = manifest_of(directory / name) if name in names else records[at : at + length] if length else None
        at += length or 0
    remember(directory, files)
    return _read(manifest_path(directory))


def _places(directory: Path, rows: Iterable[Any], records: bytes, wanted: set[bytes]) -> Iterator[tuple[bytes, Place]]:
    at = 0
    for name, size, modified_ns, length in rows:
        mine, at = records[at : at + (length or 0)], at + (length or 0)
        path = directory / name
        if not length or wanted.isdisjoint(mine[i : i + DIGEST_BYTES] for i in range(0, length, SENT_CHUNK.size)):
            continue
        try:
            status = path.lstat()
        except OSError:
            continue
        if (status.st_size, status.st_mtime_ns) != (size, modified_ns):
            continue
        offset = 0
        for digest, chunk_length in SENT_CHUNK.iter_unpack(mine):
            if digest in wanted:
                yield digest, Place(path, offset)
            offset += chunk_length
