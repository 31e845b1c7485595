"""What uploads need beyond the standard library, and so is not part of the SDK: the files that a scene names, read in a
confined child process (R13 Hostile content), and cutting files into chunks.
"""

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from renderonline.engines.blender.launcher.inputs import OUTSIDE
from renderonline.engines.definition import FACT_READERS
from renderonline.rnoclient.sdk.connection import FileCache
from renderonline.rnoclient.sdk.uploading import UploadOptions
from renderonline.storage import manifests
from renderonline.storage.confined import Confined
from renderonline.storage.disk import cache_directory

MEMORY_BYTES: Final = 1 << 30
REPLY_BYTES: Final = 64 << 20
"""Enough for the names of as many files as a task may have."""
_SYSTEM: Final = ("/dev", "/proc", "/sys", "/run", "/etc", "/boot")
"""System directories, from which nothing is sent."""


@dataclass(frozen=True, slots=True)
class SceneInputs:
    """What a scene needs. `inside`: files of its folder; `outside`: files elsewhere by their names on the farm;
    `refused`: files elsewhere that are not sent, with the reason; `whole_paths`: the scene uses absolute paths;
    `unbaked`: simulations that would start from the beginning in each part of a task."""

    inside: list[Path] = field(default_factory=list)
    outside: Mapping[str, Path] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    whole_paths: bool = False
    unbaked: tuple[str, ...] = ()


def needed_files(scene: Path, folder: Path | None = None, *, pack: bool = False) -> SceneInputs:
    """Return the files that a scene and its libraries name and that exist. Files outside of `folder` (None: the scene's
    own) are among them only with `pack`: otherwise a scene could have any file of this computer sent."""
    if scene.suffix.casefold() != ".blend":
        return SceneInputs()
    base = (folder or scene.parent).absolute()
    root = Path(base.anchor) if pack else base
    read = _read(scene, root)
    inside, outside, refused, real = list[Path](), dict[str, Path](), dict[str, str](), base.resolve()
    for path in (root / name for name in read.get("inputs", ())):
        if path.is_relative_to(base):
            place = path.resolve()  # the maker of the scene may also have made links in its folder
            if why := "" if place.is_relative_to(real) else _unwanted(place):
                refused[str(path)] = why
            else:
                inside.append(path)
        elif why := _unwanted(path):
            refused[str(path)] = why
        else:
            outside[f"{OUTSIDE}/{path.as_posix().replace(':', '_').strip('/')}"] = path
    unbaked = tuple(read.get("facts", {}).get("unbaked", ()))
    return SceneInputs(inside, outside, refused, bool(read.get("whole_paths")), unbaked)


def _read(scene: Path, root: Path) -> Mapping[str, Any]:
    name = os.path.relpath(scene.absolute(), root).replace(os.sep, "/")
    child = Confined(FACT_READERS["blender"], memory_bytes=MEMORY_BYTES, reply_bytes=REPLY_BYTES)
    with contextlib.closing(child), contextlib.suppress(EOFError, TimeoutError):
        found: Mapping[str, Any] = child.call(name, str(root))
        return found
    return {}


def _unwanted(path: Path) -> str:
    """Why a file that a scene names outside of its folder is not sent; "" when it is."""
    for place in (path, path.resolve()):
        if any(part.startswith(".") for part in place.parts[1:]):
            return "it is hidden"
        if place.as_posix().startswith(tuple(f"{system}/" for system in _SYSTEM)):
            return "it belongs to the system"
    try:
        return "" if stat.S_ISREG(path.stat().st_mode) else "it is no file"
    except OSError:
        return "it can't be read"


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

    def __call__(self, path: Path, *, afresh: bool = False) -> bytes:
        """Return the chunks of a file, as announced in uploads."""
        before = path.stat()
        mark = f"{manifests.VERSION} {before.st_mtime_ns} {before.st_size}\n".encode()
        name = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()
        if not afresh and (known := self._cache.read(name)).startswith(mark):
            return known.removeprefix(mark)
        found, after = manifests.manifest_of(path), path.stat()
        unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
        if unchanged and time.time_ns() - after.st_mtime_ns > SETTLED_NS:
            self._cache.write(name, mark + found)
        return found
