"""What uploads need beyond the standard library, and so is not part of the SDK: the files that a scene names, read in a
confined child process (R13 Hostile content), and cutting files into chunks.
"""

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from renderonline.engines.blender.launcher.inputs import OUTSIDE
from renderonline.engines.definition import FACT_READERS
from renderonline.rnoclient.sdk.uploading import FileCache, UploadOptions
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
    """What a scene and its libraries name and what is there. With `pack` also what lies outside of `folder` (None:
    where the scene lies): only with it does a scene decide about other files of this computer."""
    if scene.suffix.casefold() != ".blend":
        return SceneInputs()
    base = (folder or scene.parent).absolute()
    root = Path(base.anchor) if pack else base
    told = _read(scene, root)
    inside, outside, refused, real = list[Path](), dict[str, Path](), dict[str, str](), base.resolve()
    for path in (root / one for one in told.get("inputs", ())):
        if path.is_relative_to(base):
            # Who made the scene may have made links in its folder, too.
            place = path.resolve()
            if why := "" if place.is_relative_to(real) else _unwanted(place):
                refused[str(path)] = why
            else:
                inside.append(path)
        elif why := _unwanted(path):
            refused[str(path)] = why
        else:
            outside[f"{OUTSIDE}/{path.as_posix().replace(':', '_').strip('/')}"] = path
    unbaked = tuple(told.get("facts", {}).get("unbaked", ()))
    return SceneInputs(inside, outside, refused, bool(told.get("whole_paths")), unbaked)


def _read(scene: Path, root: Path) -> Mapping[str, Any]:
    name = os.path.relpath(scene.absolute(), root).replace(os.sep, "/")
    child = Confined(FACT_READERS["blender"], memory_bytes=MEMORY_BYTES, reply_bytes=REPLY_BYTES)
    with contextlib.closing(child), contextlib.suppress(EOFError, TimeoutError):
        found: Mapping[str, Any] = child.call(name, str(root))
        return found
    return {}


def _unwanted(path: Path) -> str:
    """Why nobody can mean a file that a scene names outside of its folder; "" when somebody can."""
    for one in (path, path.resolve()):
        if any(part.startswith(".") for part in one.parts[1:]):
            return "it is hidden"
        if one.as_posix().startswith(tuple(f"{place}/" for place in _SYSTEM)):
            return "it belongs to the system"
    try:
        kept = stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return "it can't be read"
    return "" if kept else "it is no file"


def several(names: Iterable[str], most: int = 20) -> str:
    """Names for a sentence, and how many there are besides."""
    found = list(names)
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


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
