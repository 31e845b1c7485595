"""The box of each attempt: what its engine may touch on this machine.

The task's files are read, the attempt's directory and its home and temporary directory are written. Besides that there
are the engine's own directories, and what the operator of this machine or the engine's definition opens. No value of a
task opens anything.
"""

import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from renderonline.farm.films import FILM_ENGINE
from renderonline.hpcserver.settings import Settings
from renderonline.protocol.link import Assign
from renderonline.sandbox import system
from renderonline.sandbox.box import Box, BoxKind, Found
from renderonline.serving.directories import data_directory

_PATHS: Final = ("LD_LIBRARY_PATH", "OCIO", "FONTCONFIG_PATH", "FONTCONFIG_FILE", "CUDA_PATH")
"""Variables that engines inherit and that name files."""


class Boxes:
    """Makes the boxes of one HPCServer. `engines`: name in lower case -> the words its command lines begin with."""

    def __init__(self, found: Found, settings: Settings, engines: Mapping[str, Sequence[str]]) -> None:
        self.found = found
        self._hidden = (str(settings.home), str(data_directory()))
        private = (*self._hidden, str(Path.home()))
        inherited = _inherited(os.environ)
        self._own = {
            name: (*own_directories(prefix, private), *inherited, f"/etc/{name}") for name, prefix in engines.items()
        }
        if FILM_ENGINE in self._own:
            self._own[FILM_ENGINE] += system.python_paths()
        self._read = tuple(map(str, settings.sandbox_read))
        self._write = tuple(map(str, settings.sandbox_write))

    def of(self, assign: Assign, place: Path, devices: Sequence[str] | None = None) -> Box | None:
        """The box of an attempt with its scratch at `place`; None when this machine makes none. `devices`: the device
        files of its graphics cards, None: of all that there are."""
        if self.found.kind == BoxKind.NONE:
            return None
        farm = (os.path.dirname(assign.mark),) if assign.mark else ()
        return Box(
            read=(*self._own.get(assign.engine.casefold(), ()), *self._read, *assign.sandbox_read, *_inputs(assign)),
            write=(*self._write, *assign.sandbox_write, assign.directory, str(place / "home"), str(place / "tmp")),
            hidden=(*self._hidden, *farm),
            temporary=str(place / "tmp"),
            network=assign.network,
            devices=system.cards() if devices is None else tuple(devices),
        )

    def own(self, engine: str) -> tuple[str, ...]:
        """The directories of an engine itself; `engine` in lower case."""
        return self._own.get(engine, ())

    def of_v1(self, engine: str, place: Path) -> Box | None:
        """The box of a render that an existing RenderAPI starts: its paths may lie anywhere, so there is one only when
        the operator named the directories."""
        if self.found.kind == BoxKind.NONE or not (self._read or self._write):
            return None
        own = (str(place / "home"), str(place / "tmp"))
        read = (*self._own.get(engine.casefold(), ()), *self._read)
        return Box(read, (*self._write, *own), self._hidden, own[1], devices=system.cards())


def own_box(found: Found, read: Sequence[str], write: Sequence[str], place: Path, devices: Sequence[str]) -> Box | None:
    """The box of a program of ours with its scratch at `place`, without anybody's files."""
    if found.kind == BoxKind.NONE:
        return None
    return Box(tuple(read), tuple(write), temporary=str(place / "tmp"), devices=tuple(devices))


def own_directories(prefix: Sequence[str], private: Sequence[str]) -> tuple[str, ...]:
    """Where an engine's program, the scripts in front of its command line and what runs them lie, and where links from
    there lead. Of a directory that holds something private only the file itself."""
    words = [*prefix, *(word for name in prefix for word in _interpreter(name))]
    found = dict.fromkeys(path for word in words for path in _places(word, private))
    return tuple(path for path in found if not is_below(path, system.PROGRAMS))


def _places(word: str, private: Sequence[str]) -> Iterator[str]:
    if not os.path.isabs(word) or not os.path.exists(word):
        return
    for path in (word, os.path.realpath(word)):
        directory = os.path.dirname(path)
        # A program in bin has its libraries beside it; a virtual environment is such a directory too.
        wider = os.path.dirname(directory) if os.path.basename(directory) == "bin" else directory
        yield next((one for one in (wider, directory) if not _holds(one, private)), path)


def _holds(directory: str, private: Sequence[str]) -> bool:
    return any(is_below(os.path.realpath(secret), (os.path.realpath(directory),)) for secret in private)


def _interpreter(script: str) -> list[str]:
    """The words of a script's first line (`#!/opt/python/bin/python3`), as far as they are programs."""
    try:
        with open(script, "rb") as file:
            begins, _, line = file.readline(256).partition(b"#!")
    except OSError:
        return []
    return [shutil.which(word) or "" for word in line.decode(errors="replace").split()] if not begins else []


def _inputs(assign: Assign) -> tuple[str, ...]:
    root = (assign.root,) if assign.root else ()
    return (*root, *(name for name in assign.inputs if not is_below(name, root)))


def _inherited(environment: Mapping[str, str]) -> tuple[str, ...]:
    named = [path for name in _PATHS for path in environment.get(name, "").split(os.pathsep) if os.path.isabs(path)]
    found = [path if os.path.isdir(path) else os.path.dirname(path) for path in named]
    return tuple(path for path in found if path != "/" and not is_below(path, system.PROGRAMS))


def is_below(path: str, roots: Sequence[str]) -> bool:
    """Whether a path is one of these or lies in one of them."""
    return any(f"{path}/".startswith(f"{root.rstrip('/')}/") for root in roots)


MOST: Final = 100
"""Paths of one attempt that are looked at."""
MOST_TOLD: Final = 3
_COMPLAINT: Final = re.compile(
    r"(?i)no such file|not found|can(?:no|')t|could ?n[o']t|unable|missing|denied|not permitted|read-only|fail"
)
_PATH: Final = re.compile(r"""(?<![\w./~-])(?:(?<=['"])/[^'"\n]{1,1000}(?=['"])|/[^\s'":,;()<>|]{1,1000})""")


class Outside:
    """Reads what an engine prints. `box`: the one it runs in, None for none."""

    def __init__(self, box: Box | None = None) -> None:
        self._box = box
        self._named: dict[str, None] = {}

    def take(self, lines: Sequence[str]) -> None:
        """Take note of the paths in lines that complain."""
        if self._box is None or len(self._named) >= MOST:
            return
        for line in lines:
            if "/" in line and _COMPLAINT.search(line):
                self._named.update(
                    dict.fromkeys(os.path.normpath(path.rstrip(".!")) for path in _PATH.findall(line[:2000]))
                )

    def found(self) -> tuple[str, ...]:
        """A sentence for each directory that would have to be opened. Blocks."""
        box, directories = self._box, dict[str, str]()
        if box is None:
            return ()
        inside = (*box.read, *box.write, *_SYSTEM)
        for path in list(self._named)[:MOST]:
            is_outside = not is_below(path, inside) and not is_below(path, box.hidden) and os.path.isfile(path)
            if is_outside and not _is_brought(path, box.read):
                directories.setdefault(os.path.dirname(path), path)
        told = list(directories.items())[:MOST_TOLD]
        return tuple(f"{path} is outside of the box: add {directory} to SandboxRead." for directory, path in told)


def _is_brought(path: str, directories: Sequence[str]) -> bool:
    """Whether the task brought this file along, in a folder of the same name: an engine asks for the path that its
    scene names before it is pointed to the file that was sent."""
    parts = path.split("/")
    tails = ["/".join(parts[first:]) for first in range(1, len(parts) - 1)]
    return any(os.path.isfile(os.path.join(directory, tail)) for directory in directories for tail in tails)


_SYSTEM: Final = (*system.PROGRAMS, "/proc", "/sys", "/dev")
"""What every box has."""
