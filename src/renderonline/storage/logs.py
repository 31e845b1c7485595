"""Logs of attempts, as files beside the farm's data (R5.3 Progress and logs): the head and the tail of each, at most
about 8 MiB.

    <directory>/<attempt>.log              from byte 0, at most `HEAD` bytes
    <directory>/<attempt>.tail/<offset>    the latest two pieces after it, at most `PIECE` bytes each

Offsets count the bytes of the whole log as the machine wrote it, also those that were left out in the middle.
"""

import contextlib
import errno
import os
import shutil
from pathlib import Path
from typing import Final, NamedTuple

from renderonline.storage import modes

HEAD: Final = 4 << 20
PIECE: Final = 2 << 20
_MOST_AT_ONCE: Final = 1 << 20
_LARGEST: Final = 2**53


class LogPart(NamedTuple):
    """Bytes of a log from `offset`; `size` is where the log ends now. `offset` may be later than was asked for: what
    lay before is not kept."""

    offset: int
    data: bytes
    size: int

    @property
    def next(self) -> int:
        """Where to go on."""
        return self.offset + len(self.data)


class _Piece(NamedTuple):
    offset: int
    path: Path
    size: int

    @property
    def end(self) -> int:
        return self.offset + self.size

    @property
    def limit(self) -> int:
        return PIECE if self.offset else HEAD


class AttemptLogs:
    """The logs of all attempts, in one directory. Blocks: for threads; one writer per attempt at a time.

    `reserve`: bytes of the disk that stay free; what has no room beside them is left out.
    """

    def __init__(self, directory: Path, reserve: int = 0) -> None:
        self._directory = directory
        self._reserve = reserve
        modes.make_private(directory)

    def append(self, attempt_id: int, offset: int, data: bytes) -> int:
        """Add bytes that begin at `offset`; what is there already is skipped, a gap stays a gap. Gives the end.
        `OSError` (ENOSPC) when they would leave too little of the disk."""
        pieces = self._pieces(attempt_id)
        last = pieces[-1] if pieces else None
        end = last.end if last else 0
        data, offset = data[max(0, end - offset) :], max(offset, end)
        if not data or offset + len(data) > _LARGEST:
            return end
        if shutil.disk_usage(self._directory).free - len(data) < self._reserve:
            raise OSError(errno.ENOSPC, "Too little of the disk is free")
        while data:
            if last is None or last.end != offset or last.size >= last.limit:
                path = self._tail(attempt_id) / str(offset) if offset else self._head(attempt_id)
                path.parent.mkdir(mode=modes.DIRECTORY, exist_ok=True)
                last = _Piece(offset, path, 0)
            part = data[: last.limit - last.size]
            with open(last.path, "ab", opener=modes.private) as file:
                file.write(part)
            last = last._replace(size=last.size + len(part))
            data, offset = data[len(part) :], offset + len(part)
        pieces = self._pieces(attempt_id)
        for middle in pieces[1 if pieces[0].offset == 0 else 0 : -2]:
            middle.path.unlink(missing_ok=True)
        return offset

    def size(self, attempt_id: int) -> int:
        """Where the log ends, which is from where the machine goes on sending (`Welcome.log_offsets`)."""
        pieces = self._pieces(attempt_id)
        return pieces[-1].end if pieces else 0

    def read(self, attempt_id: int, offset: int = 0) -> LogPart:
        """The log from `offset`, at most 1 MiB and never over a gap."""
        pieces = self._pieces(attempt_id)
        size = pieces[-1].end if pieces else 0
        for piece in pieces:
            if piece.end > offset:
                begin = max(offset, piece.offset)
                with open(piece.path, "rb") as file:
                    file.seek(begin - piece.offset)
                    return LogPart(begin, file.read(_MOST_AT_ONCE), size)
        return LogPart(size, b"", size)

    def on_disk(self) -> tuple[int, ...]:
        """The attempts of which there is a log."""
        found = {path.stem for path in self._directory.iterdir() if path.suffix in (".log", ".tail")}
        return tuple(int(name) for name in found if name.isdecimal())

    def remove(self, attempt_id: int) -> None:
        """Remove a log."""
        shutil.rmtree(self._tail(attempt_id), ignore_errors=True)
        with contextlib.suppress(OSError):
            self._head(attempt_id).unlink()

    def _head(self, attempt_id: int) -> Path:
        return self._directory / f"{attempt_id}.log"

    def _tail(self, attempt_id: int) -> Path:
        return self._directory / f"{attempt_id}.tail"

    def _pieces(self, attempt_id: int) -> list[_Piece]:
        """The pieces of a log in order. Names are looked up, so that a restart needs no memory."""
        pieces = []
        head = self._head(attempt_id)
        with contextlib.suppress(OSError):
            pieces.append(_Piece(0, head, os.stat(head).st_size))
        with contextlib.suppress(OSError), os.scandir(self._tail(attempt_id)) as entries:
            pieces += [_Piece(int(one.name), Path(one.path), one.stat().st_size) for one in entries]
        return sorted(pieces)
