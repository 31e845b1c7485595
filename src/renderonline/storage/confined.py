"""Untrusted files are read in a child process with limits (R13 Hostile content), because their readers may crash, hang,
or exhaust the memory. One child serves many calls (`Confined`); if it dies it is started again.

A user's ZIP is unpacked in such a child (`unpacked`), where bytes are counted as they are written, whatever its
directory claims. A client's list of files is parsed here if it is short, in a child if it is long (`Announcement`),
because Python runs nothing else while it parses JSON (R14 Authority first).
"""

import base64
import binascii
import contextlib
import importlib
import json
import math
import os
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, Self

from renderonline.farm.errors import InvalidRequest, TooLarge, Unfit
from renderonline.farm.needs import BoxKind
from renderonline.protocol.link import from_wire, read_json
from renderonline.sandbox import box
from renderonline.sandbox.box import NO_BOX, Box, Found, start
from renderonline.storage import names
from renderonline.storage.names import files_in_zip
from renderonline.storage.staging import LARGEST_CHUNK, MOST_FILES, SENT_CHUNK, Announced, Stage

LONGEST_REPLY: Final = 1 << 20
"""Bytes of JSON."""
LARGEST_FILE: Final = 16 << 20
"""Bytes; files in memory count."""
STOP_S: Final = 0.1
"""A call that is stopped ends within this."""
_KEPT: Final = frozenset({"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV"})
"""The variables that the child inherits; none holds a secret."""


class Confined:
    """Calls `function` (`module:name`; it takes and returns JSON values) in a child, one call at a time. Blocks: call
    it in a thread.

    `time_s`: for one call; `memory_bytes`: address space of the child; `file_bytes`: of any file that it writes;
    `reply_bytes`: of JSON that it may answer.
    `found`: the box that the child runs in; there it can only read what `read` and write what `write` names.
    """

    def __init__(
        self,
        function: str,
        *,
        time_s: float = 30.0,
        memory_bytes: int,
        file_bytes: int = LARGEST_FILE,
        reply_bytes: int = LONGEST_REPLY,
        found: Found = NO_BOX,
        read: Sequence[str] = (),
        write: Sequence[str] = (),
    ) -> None:
        self.time_s, self._reply_bytes = time_s, reply_bytes
        self._found, self._box = found, Box((*box.python_paths(), *read), tuple(write))
        self._words = (function, str(memory_bytes), str(time_s), str(file_bytes))
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child; a later call starts another."""
        with self._lock:
            self._end()

    def start(self) -> None:
        """Start the child if it does not run, so that the next call need not wait for it."""
        with self._lock:
            self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            self._child = _start(self._words, self._found, self._box)
        return self._child

    def open(self, *directories: str) -> None:
        """Let later calls read these directories; a child whose box lacks one is ended."""
        with self._lock:
            new = tuple(one for one in directories if one not in self._box.read)
            if new and self._found.kind != BoxKind.NONE:
                self._box = replace(self._box, read=(*self._box.read, *new))
                self._end()

    def call(self, *arguments: Any, stopped: threading.Event | None = None) -> Any:
        """Return what the function returns. Raises `TimeoutError` when that takes too long or `stopped` is set, and
        `EOFError` when it raised an error, crashed, or ran out of memory; the child is ended then."""
        with self._lock:
            try:
                deadline = time.monotonic() + self.time_s
                return _ask(self._started(), arguments, deadline, self._reply_bytes, stopped or threading.Event())
            except TimeoutError:
                self._end()
                raise
            except (OSError, EOFError, ValueError) as error:
                self._end()
                raise EOFError(str(error)) from error

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            with contextlib.suppress(OSError), child:  # leaving it closes the pipes and waits
                os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()


def _start(words: tuple[str, ...], found: Found, box: Box) -> subprocess.Popen[bytes]:
    # -P: what lies in the directory where we were started is no module of ours.
    argv = [sys.executable, "-P", "-m", "renderonline.storage.confined", *words]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    environment = {name: value for name, value in os.environ.items() if name in _KEPT}
    # numpy would reserve memory for as many threads as there are processors.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # In a session of its own: a Ctrl-C meant for us must not look like a broken file. The box is not tied to the thread
    # that starts it: others go on with the child.
    return start(
        found,
        box,
        argv,
        subprocess.Popen,
        directory=os.getcwd() if found.kind == BoxKind.NONE else "/",
        tied=False,
        stdin=pipe,
        stdout=pipe,
        stderr=nothing,
        env=environment,
        start_new_session=True,
    )


def _ask(
    child: subprocess.Popen[bytes],
    arguments: tuple[Any, ...],
    deadline: float,
    most: int,
    stopped: threading.Event,
) -> Any:
    """The child's reply; `TimeoutError` past the deadline (monotonic seconds) or when `stopped`, `OSError` or
    `EOFError` when it died."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(arguments).encode() + b"\n")
    child.stdin.flush()
    line = bytearray()
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or stopped.is_set():
            raise TimeoutError
        if not select.select([child.stdout], [], [], min(left, STOP_S))[0]:
            continue
        piece = os.read(child.stdout.fileno(), LONGEST_REPLY)
        if not piece or len(line) > most:
            raise EOFError
        line += piece
    return json.loads(line)


def _limit(memory_bytes: int, time_s: float, file_bytes: int) -> None:
    """Limit what this process may use for the next call (`time_s`: seconds of CPU), where the system can."""
    try:
        import resource
    except ImportError:  # Windows: only the parent's deadline limits it
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.ceil(used.ru_utime + used.ru_stime + time_s) + 1
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))


def serve(function: str, memory_bytes: int, time_s: float, file_bytes: int) -> None:
    """The child's life: arguments per line in, a reply per line out, until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a reader prints is not an answer
    _limit(memory_bytes, time_s, file_bytes)
    module, _, name = function.partition(":")
    called = getattr(importlib.import_module(module), name)
    for line in sys.stdin.buffer:
        _limit(memory_bytes, time_s, file_bytes)
        replies.write(json.dumps(called(*json.loads(line))).encode() + b"\n")


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]))

TIME_S: Final = 300.0
MEMORY_BYTES: Final = 1 << 30
MOST_RATIO: Final = 200
"""How many times its size an archive larger than `SMALL_BYTES` may grow to."""
SMALL_BYTES: Final = 64 * 1024 * 1024
_PIECE: Final = 1024 * 1024


def unpacked(archive: Path, directory: Path, most_bytes: int, stopped: threading.Event, found: Found = NO_BOX) -> Stage:
    """Unpack and stage an archive in `directory`, which must not exist yet. Raises `InvalidRequest` for a broken ZIP,
    `Unfit` for invalid names, `TooLarge` for more than `most_bytes`. Blocks for up to `TIME_S`, or until it is
    `stopped`. `found`: the box in which it is unpacked."""
    child = Confined(
        f"{__name__}:unpack",
        time_s=TIME_S,
        memory_bytes=MEMORY_BYTES,
        file_bytes=most_bytes,
        found=found,
        read=(str(archive),),
        write=(str(directory.parent),),
    )
    try:
        with child:
            wrong, message = child.call(str(archive), str(directory), most_bytes, stopped=stopped)
    except (TimeoutError, EOFError) as error:
        message = "The ZIP can't be unpacked: it is broken, or more than this server unpacks."
        raise InvalidRequest(message, code="broken_archive") from error
    if wrong:
        kinds = {"large": TooLarge, "name": Unfit}
        raise kinds.get(wrong, InvalidRequest)(message, code=f"{wrong}_archive")
    return Stage(directory)


def unpack(archive: str, directory: str, most_bytes: int) -> tuple[str, str]:
    """Only for the child: what is wrong (`broken`, `large`, `name`) and a sentence about it; "" and "" when all files
    are staged."""
    most = min(most_bytes, max(SMALL_BYTES, MOST_RATIO * Path(archive).stat().st_size))
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = files_in_zip(zipped)
            if any(stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1 for _, member in members):
                return "broken", "Links and encrypted files in a ZIP are not taken."
            announced = [Announced(name, member.file_size) for name, member in members]
            checked(announced)
            if sum(one.size for one in announced) > most:
                return "large", f"The ZIP holds more than {most >> 20} MiB."
            stage = Stage.create(Path(directory), announced)
            for index, (_, member) in enumerate(members):
                _extract(zipped, member, stage, index)
    except Unfit as error:
        return "name", error.message
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        return "broken", f"The ZIP can't be unpacked: {str(error)[:200] or type(error).__name__}."
    return "", ""


def _extract(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, stage: Stage, index: int) -> None:
    """Write a member; never more than it was announced with, whatever comes out of it."""
    left = member.file_size
    with zipped.open(member) as source, open(stage.open(index), "wb") as target:
        while piece := source.read(_PIECE):
            left -= len(piece)
            if left < 0:
                raise zipfile.BadZipFile("a file is longer than it says")
            target.write(piece)
    if left:
        raise zipfile.BadZipFile("a file is shorter than it says")


MOST_BYTES: Final = 32 * 1024 * 1024
"""Of the JSON: the chunks of some 150 GB."""
SHORT_BYTES: Final = 256 * 1024
SMALL_CHUNK: Final = 1024
"""The least average size of all but a few chunks of a file, in bytes, because even a tiny chunk causes work."""
FEW_CHUNKS: Final = 64
STAGE_TIME_S: Final = 60.0
_MOST_MARKS: Final = 12 * MOST_FILES
"""Opening brackets and commas: a file has five, and some of its name."""
_MARKS: Final = b"{[,"


def checked(files: Sequence[Announced]) -> None:
    """Raise `Unfit` for invalid files: a name that is not relative, or occurs twice; chunks whose lengths don't add up
    to the size."""
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
    """A file that a client will send. `chunks`: base64 of a record for each chunk, 32 bytes of BLAKE3 and the length
    (u32, little endian); `digest`: BLAKE3 of the file in hex."""

    name: str
    size: int
    chunks: str | None = None
    digest: str = ""

    def announced(self) -> Announced:
        """Return the same, decoded. Raises `Unfit` for chunks that are no base64."""
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
    """A list of files as its JSON arrives; a long one is kept in the file `aside` until it is closed. All blocks."""

    def __init__(self, aside: Path) -> None:
        self._aside = aside
        self._file: IO[bytes] | None = None
        self._short = bytearray()
        self._size = self._marks = 0

    @property
    def is_long(self) -> bool:
        return self._file is not None

    def take(self, piece: memoryview) -> None:
        """Take the next bytes. Raises `TooLarge`, or `Unfit` for more elements than any list of files has."""
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
        """Create the upload, in a directory that must not exist yet. Raises `InvalidRequest` for what is no such list,
        `Unfit` for invalid files. A long one takes up to `STAGE_TIME_S`, unless it is `stopped`."""
        if self._file is None:
            return Stage.create(directory, _read(bytes(self._short)))
        self._file.flush()
        child = Confined(f"{__name__}:stage", time_s=STAGE_TIME_S, memory_bytes=MEMORY_BYTES, file_bytes=2 * MOST_BYTES)
        try:
            with child:
                message, code = child.call(str(self._aside), str(directory), stopped=stopped)
        except (TimeoutError, EOFError) as error:
            raise InvalidRequest("The list of files can't be read: it is more than this server reads.") from error
        if message:
            raise (Unfit if code else InvalidRequest)(message, code=code or None)
        return Stage(directory)


def stage(body: str, directory: str) -> tuple[str, str]:
    """Only for the child: the message, and for invalid files the code, of the error; "" and "" when all is staged."""
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
