"""Logs of attempts, as files (R5.3 Progress and logs): the head and the tail of each, at most about 8 MiB.

    <directory>/<attempt>.log              from byte 0, at most `HEAD` bytes
    <directory>/<attempt>.tail/<offset>    the latest two pieces after it, at most `PIECE` bytes each

Offsets count the bytes of the whole log as the engine wrote it, also those that were left out in the middle. RenderAPI
and machines keep their logs in this form. Pieces hold whole characters, up to three bytes beyond their limit.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from renderonline.protocol.link import Log
from renderonline.storage import disk

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


class _LogPiece(NamedTuple):
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
        disk.make_private(directory)

    def append(self, attempt_id: int, offset: int, data: bytes) -> int:
        """Add UTF-8 that begins at `offset`; what is there already is skipped, a gap stays a gap. Returns the end.
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
                path.parent.mkdir(mode=disk.DIRECTORY, exist_ok=True)
                last = _LogPiece(offset, path, 0)
            part = data[: _whole(data, last.limit - last.size)]
            with open(last.path, "ab", opener=disk.private) as file:
                file.write(part)
            last = last._replace(size=last.size + len(part))
            data, offset = data[len(part) :], offset + len(part)
        pieces = self._pieces(attempt_id)
        for middle in pieces[1 if pieces[0].offset == 0 else 0 : -2]:
            middle.path.unlink(missing_ok=True)
        return offset

    def append_lines(self, lines: Iterable[Log]) -> None:
        """Add texts of several logs; neighbours of one log are written together. Raises what `append` raises."""
        joined: list[tuple[int, int, bytearray]] = []
        for line in lines:
            data = line.text.encode()
            if joined and joined[-1][0] == line.attempt and joined[-1][1] + len(joined[-1][2]) == line.offset:
                joined[-1][2].extend(data)
            else:
                joined.append((line.attempt, line.offset, bytearray(data)))
        for attempt_id, offset, content in joined:
            self.append(attempt_id, offset, bytes(content))

    def size(self, attempt_id: int) -> int:
        """Where the log ends, which is from where the machine goes on sending (`Welcome.log_offsets`)."""
        pieces = self._pieces(attempt_id)
        return pieces[-1].end if pieces else 0

    def read(self, attempt_id: int, offset: int = 0, limit: int = _MOST_AT_ONCE) -> LogPart:
        """The log from `offset`, at most `limit` bytes and never over a gap."""
        pieces = self._pieces(attempt_id)
        size = pieces[-1].end if pieces else 0
        for piece in pieces:
            if piece.end > offset:
                begin = max(offset, piece.offset)
                with open(piece.path, "rb") as file:
                    file.seek(begin - piece.offset)
                    return LogPart(begin, file.read(limit), size)
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

    def _pieces(self, attempt_id: int) -> list[_LogPiece]:
        """The pieces of a log in order. Names are looked up, so that a restart needs no memory."""
        pieces = []
        head = self._head(attempt_id)
        with contextlib.suppress(OSError):
            pieces.append(_LogPiece(0, head, os.stat(head).st_size))
        with contextlib.suppress(OSError), os.scandir(self._tail(attempt_id)) as entries:
            pieces += [_LogPiece(int(one.name), Path(one.path), one.stat().st_size) for one in entries]
        return sorted(pieces)


class AttemptLog:
    """The log of one attempt on the machine that renders it. `size` counts the bytes written so far, also those that
    were left out. `new`: there is none of this attempt on the disk yet."""

    def __init__(self, logs: AttemptLogs, attempt_id: int, *, new: bool = False) -> None:
        self._logs, self._attempt_id = logs, attempt_id
        self.size = 0 if new else logs.size(attempt_id)

    def append(self, lines: Sequence[str]) -> None:
        """Add lines. Raises OSError when the disk refuses."""
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        try:
            self._logs.append(self._attempt_id, self.size, data)
        finally:
            self.size = self._logs.size(self._attempt_id)  # a full disk may have taken a part

    def read(self, offset: int, limit: int) -> tuple[int, str]:
        """Text of at most `limit` bytes from `offset`, or from where the kept part goes on, and its true offset. Never
        ends within a character; "" when there is no more."""
        part = self._logs.read(self._attempt_id, offset, limit)
        return part.offset, part.data.decode("utf-8", "ignore")

    def remove(self) -> None:
        """Remove the log."""
        if self.size:
            self._logs.remove(self._attempt_id)
        self.size = 0


def _whole(data: bytes, limit: int) -> int:
    """Where to cut UTF-8 so that at least `limit` bytes stand before the cut, and no character is split."""
    return next((cut for cut in range(limit, min(limit + 3, len(data))) if data[cut] & 0xC0 != 0x80), limit + 3)
