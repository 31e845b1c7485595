"""Cutting files into chunks for uploads; needs more than the standard library, so that it is no part of the SDK.

from renderonline.rnoclient.chunking import means

farm = Client(login, means=means())
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Final

from renderonline.rnoclient.sdk.notes import Notes
from renderonline.rnoclient.sdk.uploads import Means
from renderonline.serving.directories import cache_directory

SETTLED_NS: Final = 2_000_000_000
"""A file that was changed so recently may change again without a later time of change."""
KEPT_S: Final = 30 * 24 * 3600.0


def means(directory: Path | None = None) -> Means:
    """What uploads can do on a computer where all of the program is installed; notes are kept in the user's cache."""
    kept = directory or cache_directory()
    return Means(Chunker(Notes(kept / "chunks", KEPT_S)), Notes(kept / "uploads"))


class Chunker:
    """A `Cutter`: a file that is as it was costs one look at the disk."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes

    def __call__(self, path: Path, *, anew: bool = False) -> bytes:
        """The chunks of a file, as announced in uploads."""
        from renderonline.storage.manifests import VERSION, manifest_of

        before = path.stat()
        mark = f"{VERSION} {before.st_mtime_ns} {before.st_size}\n".encode()
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        if not anew and (known := self._notes.read(name)).startswith(mark):
            return known.removeprefix(mark)
        found, after = manifest_of(path), path.stat()
        unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        if unchanged and time.time_ns() - after.st_mtime_ns > SETTLED_NS:
            self._notes.write(name, mark + found)
        return found
