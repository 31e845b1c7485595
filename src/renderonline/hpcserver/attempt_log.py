"""The output of one attempt on this machine's disk: its head and its tail, addressed by offset
(R5.3 Progress and logs).

Offsets count every byte that the engine ever wrote (as UTF-8 lines); what lies between head and tail is gone.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from renderonline.storage import modes

HEAD_BYTES: Final = 4 * 1024 * 1024
PIECE_BYTES: Final = 2 * 1024 * 1024
TAIL_PIECES: Final = 2
"""Besides the piece that is being written, so many are kept: the tail is 4 to 6 MiB."""


class AttemptLog:
    """A directory of files, each named by the offset of its first byte; the first one is the head. `size` counts the
    bytes written so far, the dropped ones too."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        names = [file.name for file in directory.iterdir()] if directory.is_dir() else []
        self._pieces = sorted(int(name) for name in names if name.isdigit())
        self.size = self._pieces[-1] + self._file(self._pieces[-1]).stat().st_size if self._pieces else 0

    def append(self, lines: Sequence[str]) -> None:
        """Add lines. Raises OSError when the disk refuses."""
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "replace")
        if not self._pieces:
            modes.make_private(self._directory)
        if not self._pieces or self.size - self._pieces[-1] >= (PIECE_BYTES if len(self._pieces) > 1 else HEAD_BYTES):
            self._pieces.append(self.size)
            while len(self._pieces) > TAIL_PIECES + 2:
                self._file(self._pieces.pop(1)).unlink(missing_ok=True)
        with open(self._file(self._pieces[-1]), "ab", opener=modes.private) as file:
            file.write(data)
        self.size += len(data)

    def read(self, offset: int, limit: int) -> tuple[int, str]:
        """Text of at most `limit` bytes from `offset`, or from where the kept part goes on; gives its true offset.
        Never ends within a character; "" when there is no more."""
        for start, end in zip(self._pieces, [*self._pieces[1:], self.size], strict=False):
            with self._file(start).open("rb") as file:
                kept_end = min(end, start + file.seek(0, 2))
                if offset < kept_end:
                    begin = max(offset, start)
                    file.seek(begin - start)
                    return begin, file.read(min(limit, kept_end - begin)).decode("utf-8", "ignore")
        return self.size, ""

    def remove(self) -> None:
        shutil.rmtree(self._directory, ignore_errors=True)

    def _file(self, start: int) -> Path:
        return self._directory / str(start)
