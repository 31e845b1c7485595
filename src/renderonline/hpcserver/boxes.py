"""What surrounds an engine on this machine: box, scratch directories, environment variables and paths.

The box opens the task's files for reading, and the attempt's directory, its home and its temporary directory for
writing; besides these the engine's own directories, and what the operator of this machine or the engine's definition
opens. No value of a task opens anything.

An engine inherits only the variables that it needs to find its libraries, its language and its graphics card
(R8 Process trees): no secret of the account that runs HPCServer reaches a scene's scripts.
"""

import contextlib
import itertools
import os
import re
import shutil
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from msgspec.structs import replace

from renderonline.farm.needs import BoxKind
from renderonline.farm.result_names import FILM_ENGINE
from renderonline.hpcserver.process_table import KEY, MARK
from renderonline.hpcserver.settings import NodeSettings
from renderonline.protocol.link import Assign
from renderonline.sandbox import box
from renderonline.sandbox.box import Box, Found
from renderonline.storage.disk import data_directory, remove_tree

INHERITED: Final = frozenset(
    {
        "PATH", "LANG", "LANGUAGE", "TZ", "LD_LIBRARY_PATH", "FONTCONFIG_PATH", "FONTCONFIG_FILE",
        "CUDA_VISIBLE_DEVICES", "CUDA_PATH", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES",
        "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "ONEAPI_DEVICE_SELECTOR",
        "OMP_NUM_THREADS", "OCIO",
        "SYSTEMROOT", "COMSPEC", "PATHEXT", "PROGRAMFILES", "PROGRAMDATA", "NUMBER_OF_PROCESSORS",
    }
)  # fmt: skip
_PLAIN: Final = re.compile(r"[ !#-\[\]-~]{1,150}")
"""A path that an engine with `ascii_paths` opens: printable ASCII without double quotes and backslashes, not long.
POV-Ray 3.7 crashes on some of 230 characters."""
OURS: Final = frozenset({"HOME", "TMPDIR", "TMP", "TEMP", "USERPROFILE", "XDG_RUNTIME_DIR", MARK, KEY})
"""Names that an assignment can't set."""
MOST: Final = 100
"""Paths in the output of one attempt that are checked."""
MOST_REPORTED: Final = 3
_COMPLAINT: Final = re.compile(
    r"(?i)no such file|not found|can(?:no|')t|could ?n[o']t|unable|missing|denied|not permitted|read-only|fail"
)
_PATH: Final = re.compile(r"""(?<![\w./~-])(?:(?<=['"])/[^'"\n]{1,1000}(?=['"])|/[^\s'":,;()<>|]{1,1000})""")
_SYSTEM: Final = (*box.PROGRAMS, "/proc", "/sys", "/dev")
"""What every box has."""
_PATHS: Final = ("LD_LIBRARY_PATH", "OCIO", "FONTCONFIG_PATH", "FONTCONFIG_FILE", "CUDA_PATH")
"""Inherited variables that name files."""
_PARTS: Final = ("home", "tmp", "work")


class Boxes:
    """Makes the boxes of one HPCServer. `engines`: name in lower case -> the words its command lines begin with."""

    def __init__(self, found: Found, settings: NodeSettings, engines: Mapping[str, Sequence[str]]) -> None:
        self.found = found
        self._hidden = (str(settings.home), str(data_directory()))
        private = (*self._hidden, str(Path.home()))
        inherited = _inherited(os.environ)
        self._own = {
            name: (*own_directories(prefix, private), *inherited, f"/etc/{name}") for name, prefix in engines.items()
        }
        if FILM_ENGINE in self._own:
            self._own[FILM_ENGINE] += box.python_paths()
        self._read = tuple(map(str, settings.sandbox_read))
        self._write = tuple(map(str, settings.sandbox_write))

    def of(self, assign: Assign, place: Path, devices: Sequence[str] | None = None) -> Box | None:
        """The box of an attempt whose scratch directory is `place`; None without boxes on this machine. `devices`: the
        device files of its graphics cards, None: those of all cards."""
        if self.found.kind == BoxKind.NONE:
            return None
        farm = (os.path.dirname(assign.mark),) if assign.mark else ()
        return Box(
            read=(*self._own.get(assign.engine.casefold(), ()), *self._read, *assign.sandbox_read, *_inputs(assign)),
            write=(*self._write, *assign.sandbox_write, assign.directory, str(place / "home"), str(place / "tmp")),
            hidden=(*self._hidden, *farm),
            temporary=str(place / "tmp"),
            network=assign.network,
            devices=box.cards() if devices is None else tuple(devices),
        )

    def of_ours(self, engine: str, place: Path, caches: Path, read: str, devices: Sequence[str]) -> Box | None:
        """The box of a run of an engine (in lower case) for ourselves, without any task's files. `read`: our script's
        directory."""
        if self.found.kind == BoxKind.NONE:
            return None
        write = (str(caches), str(place))
        return Box((*self._own.get(engine, ()), read), write, temporary=str(place / "tmp"), devices=tuple(devices))

    def of_v1(self, engine: str, place: Path) -> Box | None:
        """The box of a render that an existing RenderAPI starts. Its paths may lie anywhere, so it has a box only when
        the operator named the directories."""
        if self.found.kind == BoxKind.NONE or not (self._read or self._write):
            return None
        own = (str(place / "home"), str(place / "tmp"))
        read = (*self._own.get(engine.casefold(), ()), *self._read)
        return Box(read, (*self._write, *own), self._hidden, own[1], devices=box.cards())


def own_directories(prefix: Sequence[str], private: Sequence[str]) -> tuple[str, ...]:
    """The directories of an engine's program, of the scripts in its `prefix` and of their interpreters, and of what
    they link to. Of a directory that holds a `private` one only the file itself."""
    words = [*prefix, *(word for name in prefix for word in _interpreter(name))]
    found = dict.fromkeys(path for word in words for path in _places(word, private))
    return tuple(path for path in found if not is_below(path, box.PROGRAMS))


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
    return tuple(path for path in found if path != "/" and not is_below(path, box.PROGRAMS))


def is_below(path: str, roots: Sequence[str]) -> bool:
    """Whether a path is one of these or lies in one of them."""
    return any(f"{path}/".startswith(f"{root.rstrip('/')}/") for root in roots)


class Outside:
    """Finds files outside of the box of an engine (None: it has none) that its output complains about."""

    def __init__(self, box: Box | None = None) -> None:
        self._box = box
        self._named: dict[str, None] = {}

    def __bool__(self) -> bool:
        return bool(self._named)

    def take(self, lines: Sequence[str]) -> None:
        """Record the paths in lines that complain."""
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
        reported = list(directories.items())[:MOST_REPORTED]
        return tuple(f"{path} is outside of the box: add {directory} to SandboxRead." for directory, path in reported)


def _is_brought(path: str, directories: Sequence[str]) -> bool:
    """Whether the task came with this file, in a folder of the same name: an engine first tries the path in its scene,
    then the file that was sent."""
    parts = path.split("/")
    tails = ["/".join(parts[first:]) for first in range(1, len(parts) - 1)]
    return any(os.path.isfile(os.path.join(directory, tail)) for directory in directories for tail in tails)


class Scratch:
    """Home, temporary and working directories of attempts (`home`, `tmp`, `work` in each attempt's `place`) under one
    private directory, on a disk of this machine. Those that an engine left as it found them serve another attempt."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = itertools.count(1)
        self._places: dict[str, Path] = {}
        self._free: list[Path] = []

    def place(self, name: str) -> Path:
        """Where the directories of an attempt are, once they are made."""
        return self._places[name]

    def make(self, name: str) -> Path:
        """Provide empty directories for one attempt. Raises OSError when the disk refuses."""
        self.remove(name)
        if self._free:
            place = self._free.pop()
        else:
            place = self._root / str(next(self._numbers))
            for part in (place, *(place / part for part in _PARTS)):
                part.mkdir(mode=0o700, parents=True)
        self._places[name] = place
        return place

    def give_back(self, name: str) -> bool:
        """Keep the directories of an attempt for another one; False, and nothing is done, when its engine has put
        something into them or has changed them. Nothing of the attempt may run any more."""
        place = self._places.get(name)
        try:
            if place is not None and not (len(os.listdir(place)) == len(_PARTS) and _are_untouched(place)):
                return False
        except OSError:
            return False
        if place is not None:
            del self._places[name]
            self._free.append(place)
        return True

    def remove(self, name: str) -> None:
        """Delete the directories of an attempt; links in them are not followed."""
        if (place := self._places.pop(name, None)) is not None:
            remove_tree(place)

    def clear(self) -> None:
        """Delete what an earlier run left."""
        remove_tree(self._root)


def _are_untouched(place: Path) -> bool:
    for part in _PARTS:
        path = place / part
        if os.lstat(path).st_mode != stat.S_IFDIR | 0o700:
            return False
        with os.scandir(path) as entries:
            if next(entries, None) is not None:
                return False
    return True


def in_own_directories(assign: Assign, root: Path, directory: Path) -> Assign:
    """The same assignment with directories of this machine in place of the task's and the attempt's."""
    places = {assign.directory.rstrip("/"): str(directory), assign.root.rstrip("/"): str(root)}
    # Longest first; a name that only begins with the same letters is another one.
    known = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True) if place)
    found = re.compile(rf"(?:{known})(?![\w.-])")

    def here(text: str) -> str:
        return found.sub(lambda match: places[match[0]], text)

    return replace(
        assign,
        argv=tuple(map(here, assign.argv)),
        inputs=tuple(map(here, assign.inputs)),
        environment={name: here(value) for name, value in assign.environment.items()},
        sandbox_write=tuple(map(here, assign.sandbox_write)),
        directory=str(directory),
        root=str(root),
        mark="",
    )


def in_ascii(assign: Assign) -> tuple[tuple[str, ...], dict[str, str]]:
    """The arguments of an assignment for an engine with `ascii_paths`, and the links that they need in the directory
    where the process starts: name -> target. Paths that the engine can open stay as they are."""
    if not assign.ascii_paths or not assign.inputs:
        return assign.argv, {}
    scene = assign.inputs[0]
    folder = os.path.dirname(scene)
    names = {scene: f"scene{os.path.splitext(scene)[1]}", folder: "scene_files", assign.directory.rstrip("/"): "."}
    odd = [path for path in names if path and not _PLAIN.fullmatch(path)]
    if not odd:
        return assign.argv, {}
    found = re.compile("|".join(re.escape(path) + r"(?![\w.-])" for path in sorted(odd, key=len, reverse=True)))
    argv = tuple(found.sub(lambda match: names[match[0]], word) for word in assign.argv)
    return argv, {names[path]: path for path in odd if names[path] != "."}


def link(directory: Path, links: Mapping[str, str]) -> None:
    """Make links in an attempt's directory, also when it has them from an earlier process. Blocks."""
    unlink(directory, links)
    for name, target in links.items():
        (directory / name).symlink_to(target)


def unlink(directory: Path, links: Iterable[str]) -> None:
    """Remove links: they are no results. Blocks."""
    for name in links:
        with contextlib.suppress(OSError):
            (directory / name).unlink()


def clean_environment(
    inherited: Mapping[str, str], wanted: Mapping[str, str], place: Path, *, also: Collection[str] = ()
) -> dict[str, str]:
    """The environment of an engine: the allowed part of `inherited`, then `wanted`, then its scratch directories."""
    passed = [name for name in inherited if name.upper() in INHERITED or name.upper().startswith("LC_") or name in also]
    refused = {
        name for name in wanted if not name or name.upper() in OURS or "=" in name or "\0" in name + wanted[name]
    }
    environment = {name: inherited[name] for name in passed}
    environment |= {name: value for name, value in wanted.items() if name not in refused}
    home, temporary = str(place / "home"), str(place / "tmp")
    return environment | {"HOME": home, "USERPROFILE": home, "TMPDIR": temporary, "TMP": temporary, "TEMP": temporary}
