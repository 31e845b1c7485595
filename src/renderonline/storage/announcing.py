"""What a client announces of an upload: a short list is read at once, a long one in a child (R13 Hostile content),
because Python holds everything else up while it reads JSON (R14 Authority first)."""

import base64
import binascii
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from renderonline.farm.errors import InvalidRequest, TooLarge, Unfit
from renderonline.protocol.codec import from_wire, read_json
from renderonline.storage import names
from renderonline.storage.confined import Confined
from renderonline.storage.staging import LARGEST_CHUNK, MOST_FILES, SENT_CHUNK, Announced, Stage

MOST_BYTES: Final = 32 * 1024 * 1024
"""Of the JSON: the chunks of some 150 GB."""
SHORT_BYTES: Final = 256 * 1024
SMALL_CHUNK: Final = 1024
"""All but a few chunks of a file have so many bytes on average, or more: each is some work, however small it is."""
FEW_CHUNKS: Final = 64
TIME_S: Final = 60.0
MEMORY_BYTES: Final = 1 << 30
_MOST_MARKS: Final = 12 * MOST_FILES
"""Opening brackets and commas: a file has five, and some of its name."""
_MARKS: Final = b"{[,"


def checked(files: Sequence[Announced]) -> None:
    """Raise `Unfit` for files that can't be: names that are not relative, two of one name, chunks that do not add up to
    the size."""
    if not 0 < len(files) <= MOST_FILES:
        raise Unfit(f"An upload has at least one and at most {MOST_FILES} files.")
    folders: set[str] = set()
    seen: set[str] = set()
    for file in files:
        folder, _, base = file.name.rpartition("/")
        names.check_relative(file.name, base if folder in folders else file.name)
        if file.name in seen:
            raise Unfit(f"Two files are called {file.name}.", code="bad_name")
        seen.add(file.name)
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
        if not 0 <= file.size < 2**62 or not re.fullmatch(r"([0-9a-f]{64})?", file.digest):
            raise Unfit(f"The size or the digest of {file.name} can't be.")
        if file.chunks is not None:
            _check_chunks(file, file.chunks)
    if both := seen & folders:
        raise Unfit(f"{min(both)} can't be a file and a folder.", code="bad_name")


def _check_chunks(file: Announced, chunks: bytes) -> None:
    whole = len(chunks) % SENT_CHUNK.size == 0
    lengths = [length for _, length in SENT_CHUNK.iter_unpack(chunks)] if whole else [0]
    if not all(0 < length <= LARGEST_CHUNK for length in lengths) or sum(lengths) != file.size:
        raise Unfit(f"The chunks of {file.name} don't add up to its size.", code="bad_manifest")
    if len(lengths) > file.size // SMALL_CHUNK + FEW_CHUNKS:
        raise Unfit(f"{file.name} is cut too finely: chunks have 64 KiB or more.", code="bad_manifest")


@dataclass(frozen=True, slots=True)
class SentFile:
    """A file that is to come. `chunks`: base64 of one record a chunk, 32 bytes of BLAKE3 and the length (u32, little
    endian); `digest`: BLAKE3 of the file in hex."""

    name: str
    size: int
    chunks: str | None = None
    digest: str = ""

    def announced(self) -> Announced:
        """The same, decoded; `Unfit` when it can't be."""
        try:
            chunks = None if self.chunks is None else base64.b64decode(self.chunks, validate=True)
        except (binascii.Error, ValueError) as error:
            raise Unfit(f"The chunks of {self.name[:100]!r} are not base64.", code="bad_manifest") from error
        return Announced(self.name, self.size, self.digest, chunks)


@dataclass(frozen=True, slots=True)
class NewUpload:
    """What a client announces."""

    files: tuple[SentFile, ...]


class Announcement:
    """The JSON as it comes. A long one is kept in the file `aside` until it is closed. Everything blocks."""

    def __init__(self, aside: Path) -> None:
        self._aside = aside
        self._file: IO[bytes] | None = None
        self._short = bytearray()
        self._size = self._marks = 0

    @property
    def is_long(self) -> bool:
        return self._file is not None

    def take(self, piece: memoryview) -> None:
        """The next bytes. `TooLarge`, or `Unfit` when there is more in them than any list of files holds."""
        data = bytes(piece)
        self._size += len(data)
        self._marks += sum(data.count(mark) for mark in _MARKS)
        if self._size > MOST_BYTES:
            raise TooLarge(f"The list of the files of an upload has at most {MOST_BYTES} bytes.")
        if self._marks > _MOST_MARKS:
            raise Unfit(f"An upload has at least one and at most {MOST_FILES} files.")
        if self._file is None:
            self._short += data
            if len(self._short) <= SHORT_BYTES:
                return
            self._aside.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file, data, self._short = self._aside.open("xb"), bytes(self._short), bytearray()
        self._file.write(data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._aside.unlink(missing_ok=True)

    def stage(self, directory: Path, stopped: threading.Event) -> Stage:
        """A new upload, in a directory that must not be there. `InvalidRequest` for what is no such list, `Unfit` for
        files that can't be. Of a long one it may take up to `TIME_S`, or until it is `stopped`."""
        if self._file is None:
            return Stage.create(directory, _read(bytes(self._short)))
        self._file.flush()
        child = Confined(f"{__name__}:stage", time_s=TIME_S, memory_bytes=MEMORY_BYTES, file_bytes=2 * MOST_BYTES)
        try:
            with child:
                message, code = child.call(str(self._aside), str(directory), stopped=stopped)
        except (TimeoutError, EOFError) as error:
            raise InvalidRequest("The list of files can't be read: it is more than this server reads.") from error
        if message:
            raise (Unfit if code else InvalidRequest)(message, code=code or None)
        return Stage(directory)


def stage(body: str, directory: str) -> tuple[str, str]:
    """Only for the child: what is wrong, and the code of what can't be; two times "" when it is staged."""
    try:
        Stage.create(Path(directory), _read(Path(body).read_bytes()))
    except Unfit as error:
        return error.message, error.reason_code
    except InvalidRequest as error:
        return error.message, ""
    return "", ""


def _read(body: bytes) -> list[Announced]:
    files = [file.announced() for file in from_wire(NewUpload, read_json(body)).files]
    checked(files)
    return files
