"""Small files in which a client keeps in mind what it could also find out again: losing them costs time only."""

import contextlib
import os
import time
from pathlib import Path


class Notes:
    """Notes by name in a directory (None: nothing is kept); those that nobody used for `keep_s` go."""

    def __init__(self, directory: Path | None = None, keep_s: float = 7 * 24 * 3600.0) -> None:
        self._directory = directory
        self._keep_s = keep_s

    def read(self, name: str) -> bytes:
        """What was kept, or nothing."""
        with contextlib.suppress(OSError):
            if self._directory is not None:
                os.utime(self._directory / name)
                return (self._directory / name).read_bytes()
        return b""

    def write(self, name: str, content: bytes) -> None:
        """Keep this, if that can be."""
        if self._directory is None:
            return
        path = self._directory / name
        with contextlib.suppress(OSError):
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for old in self._directory.iterdir():
                if old.stat().st_mtime < time.time() - self._keep_s:
                    old.unlink(missing_ok=True)
            path.with_suffix(".new").write_bytes(content)
            path.with_suffix(".new").replace(path)
