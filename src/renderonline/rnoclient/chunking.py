"""Cutting files into chunks for uploads. It needs more than the standard library, so it is no part of the SDK."""

import hashlib
import os
import time
from pathlib import Path
from typing import Final

from renderonline.rnoclient.sdk.uploads import FileCache, UploadOptions
from renderonline.serving.directories import cache_directory
from renderonline.storage import manifests

SETTLED_NS: Final = 2_000_000_000
"""A file that was changed so recently may change again without a later time of change."""
KEPT_S: Final = 30 * 24 * 3600.0


def upload_options(directory: Path | None = None) -> UploadOptions:
    """Return options that send chunks and keep a cache in `directory`, by default the user's own."""
    kept = directory or cache_directory()
    return UploadOptions(CachedChunker(FileCache(kept / "chunks", KEPT_S)), FileCache(kept / "uploads"))


class CachedChunker:
    """Cuts a file, or looks up how it was cut when its size and time of change are as they were."""

    def __init__(self, cache: FileCache) -> None:
        self._cache = cache

    def __call__(self, path: Path, *, anew: bool = False) -> bytes:
        """Return the chunks of a file, as announced in uploads."""
        before = path.stat()
        mark = f"{manifests.VERSION} {before.st_mtime_ns} {before.st_size}\n".encode()
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        if not anew and (known := self._cache.read(name)).startswith(mark):
            return known.removeprefix(mark)
        found, after = manifests.manifest_of(path), path.stat()
        unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        if unchanged and time.time_ns() - after.st_mtime_ns > SETTLED_NS:
            self._cache.write(name, mark + found)
        return found
