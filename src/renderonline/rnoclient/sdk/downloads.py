"""Fetching files to the disk: resumed where they stopped, checked, and there under their name only when complete."""

import contextlib
import hashlib
import http.client
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from renderonline.farm.errors import InvalidRequest, NoSpace, NotAvailable
from renderonline.rnoclient.sdk.connection import Connection, lower_case

BLOCK: Final = 256 * 1024
Progress = Callable[[int, int], None]


def fetch(
    connection: Connection, path: str, target: Path, *, digest: str | None = None, progress: Progress | None = None
) -> Path:
    """Download `path` to `target` and return it. What an earlier call left in `target.part` is not sent again.

    With `digest` (BLAKE2b-256 in hex) other bytes are refused. `NotAvailable` when the connection fails for longer
    than the connection's patience, measured from the last byte that came.
    """
    part = target.with_name(target.name + ".part")
    tag = target.with_name(target.name + ".part.etag")
    with _disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    _until_complete(connection, path, part, tag, progress)
    with _disk(target):
        if digest is not None and _digest(part) != digest:
            part.unlink()
            raise NotAvailable(f"{target.name} arrived with other bytes than the farm has; download it again.")
        os.replace(part, target)
        tag.unlink(missing_ok=True)
    return target


def safe_path(directory: Path, name: str) -> Path:
    """Where the result `name` belongs below `directory`; a name that leads out of it is refused."""
    pure = PurePosixPath(name)
    words = pure.parts
    if not words or pure.is_absolute() or ".." in words or re.search(r'[\x00-\x1f\\:*?"<>|]', name):
        raise InvalidRequest(f"The farm names a file {name!r}, which is no safe name; it is not downloaded.")
    return directory.joinpath(*words)


def is_complete(target: Path, size: int, digest: str) -> bool:
    """Whether `target` already has exactly these bytes."""
    try:
        return target.stat().st_size == size and _digest(target) == digest
    except OSError:
        return False


def _until_complete(connection: Connection, path: str, part: Path, tag: Path, progress: Progress | None) -> None:
    while True:
        before = _size(part)
        try:
            connection.patiently(lambda: _some(connection, path, part, tag, progress))
            return
        except NotAvailable:
            if _size(part) <= before:
                raise


def _some(connection: Connection, path: str, part: Path, tag: Path, progress: Progress | None) -> None:
    """One call that goes on where `part` ends; starts again when the file has changed on the farm."""
    have, etag = _size(part), _tag(tag)
    headers = {"range": f"bytes={have}-", "if-range": etag} if have and etag else {}
    try:
        with connection.open("GET", path, headers=headers, timeout_s=60) as response:
            found = lower_case(response)
            if response.status == http.HTTPStatus.PARTIAL_CONTENT:
                have, total = _content_range(found.get("content-range", ""), have)
            else:
                have, total = 0, int(found.get("content-length", "-1"))
            _remember(tag, found.get("etag", ""))
            _write(response, part, have, total, progress)
    except InvalidRequest as error:
        if not headers:
            raise
        part.unlink(missing_ok=True)  # the range can't be had (416): the next call starts from the beginning
        raise NotAvailable(error.message) from error


def _write(response: http.client.HTTPResponse, part: Path, have: int, total: int, progress: Progress | None) -> None:
    """Faults of the disk are told apart from those of the network, which would be tried again."""
    with _disk(part):
        file = part.open("r+b" if have else "wb")
    with file:
        file.truncate(have)
        file.seek(have)
        while block := response.read1(BLOCK):
            with _disk(part):
                file.write(block)
            have += len(block)
            if progress is not None:
                progress(have, total)
        with _disk(part):
            file.flush()
            os.fsync(file.fileno())
    if total >= 0 and have != total:
        raise http.client.IncompleteRead(b"", total - have)


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NoSpace(f"{path} can't be written: {error.strerror}.") from None


def _content_range(text: str, have: int) -> tuple[int, int]:
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", text.strip())
    if match is None or int(match[1]) != have:
        raise http.client.HTTPException("an answer with another range than the one asked for")
    return have, int(match[3])


def _remember(tag: Path, etag: str) -> None:
    """Only a strong tag says that the bytes are the same."""
    with _disk(tag):
        tag.unlink(missing_ok=True)
        if etag and not etag.startswith("W/"):
            tag.write_text(etag)


def _tag(tag: Path) -> str:
    try:
        return tag.read_text()
    except OSError:
        return ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=32)).hexdigest()
