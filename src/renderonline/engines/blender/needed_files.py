"""Which files a scene needs: those that it names, found as Blender would find them, or a person would; for the child
that reads files of others (R13 Hostile content), which calls `survey`.

A name counts as it is written. Where there is no such file, the only one counts that differs in letter case and
Unicode form alone (names from Windows and from Macs). Whole paths count when they lead into the folder that was
submitted, on whatever computer that was.
"""

import os
import posixpath
import re
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice
from typing import Any, Final

from renderonline.engines.blender.blend_file import MOST_COMPARED, BrokenScene, Left, opened, understood
from renderonline.engines.blender.launcher import several
from renderonline.engines.blender.launcher.inputs import (
    FOLDER,
    MAPPING,
    OUTSIDE,
    fold,
    mapping_in,
    sent_from,
    split_name,
)
from renderonline.engines.blender.scene_facts import CACHES, KINDS, MOST_TOLD, Named, facts_of, named_files

MOST_INPUTS, MOST_LIBRARIES, MOST_OPTIONAL = 100_000, 2_000, 20_000
"""MOST_OPTIONAL: texts of a scene that may be names of files."""
_SHORTEST_TAIL: Final = 2
"""How many parts a whole path from elsewhere must have in common with the end of a file's name to mean that file."""
_SHOWN: Final = 5
_Entries = tuple[set[str], set[str]]
"""The files and the folders of a folder."""


def is_whole(path: str) -> bool:
    """Whether a path names a place on a computer, not one that is seen from the scene."""
    return path.startswith("\\\\") or (path.startswith("/") and not path.startswith("//")) or path[1:3] == ":/"


class Needed:
    """The files that a scene needs: `there` (as they are called), `missing`, `outside` and `unclear` (as they are
    named)."""

    def __init__(self, files: str | Mapping[str, str], left: Left) -> None:
        self.there, self.missing, self.outside = dict[str, None](), dict[str, None](), dict[str, None]()
        self.unclear = dict[str, Sequence[str]]()
        self.guessed = dict[str, str]()
        self.lacking = dict[str, str]()
        self._home: str | None = None
        """The folder of the scene, which a ZIP may have put somewhere below the root."""
        self.whole_paths = False
        """Whether a file was found by a whole path."""
        self._held: Mapping[str, str] = {}
        if isinstance(files, str):
            self._tree, self._root = _Tree(files), os.path.abspath(files).replace(os.sep, "/")
        else:
            self._held, home = mapping_in(files.get(MAPPING, "")), sent_from(files.get(FOLDER, ""))
            self._tree, self._root = _Tree([*files, *self._held]), posixpath.normpath(home) if is_whole(home) else ""
        self._left = left
        self._folder = lru_cache(maxsize=None)(lambda folder: _Folder(self._tree.names(folder), left))
        self._asked: dict[tuple[str, str], Sequence[str] | None] = {}
        self._optional = MOST_OPTIONAL

    def look(self, user: str, named: Iterable[Named]) -> Iterator[str]:
        """Look for the files that `user` (the scene, then its libraries) names; yields its libraries."""
        self._home = posixpath.dirname(user) if self._home is None else self._home
        for file in named:
            if not file.needed:
                self._optional -= 1
                if self._optional < 0:
                    self._left.skip(f"more than {MOST_OPTIONAL:,} texts that may be paths", file.path)
                    continue
            name = self._within(file, user)
            if name is None:
                if file.needed:
                    self.outside[file.path] = None
                continue
            found = self._find(name, file, user)
            if found and file.kind == "library":
                yield found[0]

    def _within(self, file: Named, user: str) -> str | None:
        """The name, seen from the root, of what lies there; None for what lies elsewhere."""
        if not is_whole(file.path):
            name = posixpath.normpath(posixpath.join(posixpath.dirname(user), file.path.removeprefix("//")))
            if name != ".." and not name.startswith(("../", "/")):
                return name
            whole = posixpath.normpath(posixpath.join(self._root, name)) if self._root else ""
            return self._packed(whole, file)
        plain = posixpath.normpath(file.path.replace("\\", "/"))
        if self._root and (inside := _part_below(plain, self._root)) is not None:
            self.whole_paths |= self._is_there(inside, file)
            return inside
        if found := self._packed(plain, file):
            return found
        parts = re.sub("^//", "/", plain).split("/")
        for first in range(1, len(parts) - (_SHORTEST_TAIL if self._root else 1) + 1):
            end = "/".join(parts[first:])
            for tail in dict.fromkeys((end, posixpath.join(self._home or "", end))):
                if self._is_there(tail, file):
                    self.whole_paths = True
                    if first == len(parts) - 1 and file.needed:
                        self.guessed[file.path] = tail
                    return tail
        return None

    def _packed(self, whole: str, file: Named) -> str | None:
        name = f"{OUTSIDE}/{whole.replace(':', '_').strip('/')}"
        return name if whole and self._is_there(name, file) else None

    def _is_there(self, name: str, file: Named) -> bool:
        if file.many == "folder":
            return self._tree.is_folder(name) or bool(self._tree.alike(name))
        parent, base = posixpath.split(name)
        return any(self._folder(folder).alike(base, file.many, again=True) for folder in self._tree.alike(parent))

    def _find(self, name: str, file: Named, user: str) -> Sequence[str]:
        """The files that are meant."""
        key = (name, file.many)
        if key not in self._asked:
            self._asked[key] = self._matching(name, file.many, user)
            lacking = file.pictures - len(self._asked[key] or ())
            if lacking > 0 and self._asked[key]:
                self.lacking[name] = f"{lacking} of {file.pictures}"
        found = self._asked[key]
        if found is None:
            self._left.skip(f"more than {MOST_COMPARED:,} comparisons with tiles", name)
            return ()
        found = found if not self._held else [self._held.get(name, name) for name in found]
        self.there.update(dict.fromkeys(found))
        if not found and file.needed and name not in self.unclear:
            self.missing[name] = None
        return found

    def _matching(self, name: str, many: str, user: str) -> Sequence[str] | None:
        if many == "folder":
            return self._below(name, user)
        parent, base = posixpath.split(name)
        exact: Sequence[str] | None = ()
        if self._tree.is_folder(parent):
            exact = self._folder(parent).matching(name, many)
            if exact is None or exact:
                return exact
        alike = [file for folder in self._tree.alike(parent) for file in self._folder(folder).alike(base, many)]
        if len({self._held.get(file, file) for file in alike}) > 1 and not many:
            self.unclear[name] = alike
            return ()
        return alike

    def _below(self, name: str, user: str) -> Sequence[str]:
        """Everything in a folder; only what caches are made of in one that holds the scene itself, and where the whole
        disk may be meant."""
        folders = [name] if self._tree.is_folder(name) else self._tree.alike(name)
        if len(folders) > 1:
            self.unclear[name] = folders
            return ()
        most = MOST_INPUTS + 1
        found = [file for folder in folders for file in islice(self._tree.below(folder), most)]
        if len(found) == most:
            self._left.skip(f"more than {MOST_INPUTS:,} files in {name}", found.pop())
        if name == "." or user.startswith(f"{name}/") or self._root == posixpath.dirname(self._root) != "":
            found = [file for file in found if file.casefold().endswith(CACHES)]
        return found

    def warnings(self) -> list[str]:
        """What is unclear."""
        return (
            [
                f"{name} may be {' or '.join(map(repr, found[:3]))}: rename one of them, or write the name as it is"
                for name, found in self.unclear.items()
            ]
            + [
                f"{path} is named by its whole path, and taken to be {name} beside the scene: in Blender, "
                "File > External Data > Make Paths Relative makes it sure"
                for path, name in self.guessed.items()
            ]
            + [f"{count} pictures of {name} are not there" for name, count in self.lacking.items()]
        )


def survey(scene: str, files: str | Mapping[str, str], most_inputs: int = MOST_INPUTS) -> dict[str, Any]:
    """Read a scene, and look for the files that it needs. JSON for the parent: `broken` (why), or `facts`, `inputs`
    (names of files that are there, at most `most_inputs`), `missing` (that are not), `outside` (as the scene names
    them) and `whole_paths` (whether a file that is there was named so).

    `scene` is a name among `files`: a directory, or names -> paths ("": not to be read yet). Libraries are read as
    well: what they need, the scene needs. The work is bounded; a warning names what was not looked at.
    """
    left = Left()
    needed = Needed(files, left)
    try:
        facts = _followed(scene, files, needed, left)
    except BrokenScene as error:
        return {"broken": str(error)}
    missing, outside, warnings = list(needed.missing), list(needed.outside), facts["warnings"]
    for path in outside[:_SHOWN]:
        warnings.append(f"{path} lies outside of the scene's folder: {_OUTSIDE}")
    if len(outside) > _SHOWN:
        warnings.append(f"so do {several(outside[_SHOWN:])}")
    if len(missing) > MOST_TOLD:
        warnings.append(f"not there either: {several(missing[MOST_TOLD:])}")
    inputs = [name for name in needed.there if name != scene]
    if len(inputs) > most_inputs > 0:
        left.skip(f"more than {most_inputs:,} files that the scene needs", *inputs[most_inputs:])
    warnings += [*needed.warnings(), *left.warnings()]
    named = {
        "missing": missing[:MOST_TOLD],
        "outside": outside[: most_inputs or MOST_TOLD],
        "whole_paths": needed.whole_paths,
    }
    shown: dict[str, Any] = _shown({"facts": facts, **named})
    return {**shown, "inputs": inputs[:most_inputs]}


def _shown(value: Any) -> Any:
    """The same without what is no text: names in bytes of no encoding."""
    if isinstance(value, dict):
        return {name: _shown(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_shown(part) for part in value]
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) and not value.isascii() else value


_OUTSIDE: Final = (
    "machines get it with --pack, or with --folder DIR for a folder that holds both and, in Blender, "
    "File > External Data > Make Paths Relative"
)


def _followed(scene: str, files: str | Mapping[str, str], needed: Needed, left: Left) -> dict[str, Any]:
    """The facts of a scene; what it and its libraries name is looked for."""
    facts: dict[str, Any] = {}
    todo, seen = [scene], {scene}
    while todo:
        name = todo.pop()
        path = posixpath.join(files, name) if isinstance(files, str) else files.get(name, "")
        if facts and not path:
            continue
        try:
            blend = opened(path, KINDS, name, left)
            with understood():
                named = list(named_files(blend, name))
                facts = facts or facts_of(blend, named)
        except BrokenScene as error:
            raise BrokenScene(f"its library {name} is broken: {error}" if facts else str(error)) from error
        for library in needed.look(name, named):
            if library in seen:
                continue
            if len(seen) > MOST_LIBRARIES:
                left.skip(f"more than {MOST_LIBRARIES} libraries", library)
                continue
            seen.add(library)
            todo.append(library)
    return facts


def _part_below(path: str, root: str) -> str | None:
    """The part of a path that lies below `root`; on Windows letter case says nothing."""
    begin = root.rstrip("/") + "/"
    same = path.casefold().startswith(begin.casefold()) if path[1:2] == ":" else path.startswith(begin)
    return path[len(begin) :] if same and len(path) > len(begin) else None


class _Tree:
    """The files among which those of a scene are: in the directory `files`, or named as the keys of a mapping. Names
    are seen from the root, "" is the root."""

    def __init__(self, files: str | Iterable[str]) -> None:
        self._root = files if isinstance(files, str) else None
        self._entries = lru_cache(maxsize=None)(self._scanned if isinstance(files, str) else _listed(files))

    def _scanned(self, folder: str) -> _Entries:
        names, folders = set[str](), set[str]()
        with suppress(OSError), os.scandir(self._path(folder)) as entries:
            for entry in entries:
                found = names if entry.is_file() else folders if entry.is_dir() else set()
                found.add(posixpath.join(folder, entry.name))
        return names, folders

    def _path(self, folder: str) -> str:
        return posixpath.join(self._root or "", folder)

    def names(self, folder: str) -> Collection[str]:
        """The files of one folder."""
        return self._entries(folder)[0]

    def is_folder(self, name: str) -> bool:
        """Whether a folder has exactly this name."""
        return name in ("", ".") or name in self._entries(posixpath.dirname(name))[1]

    def below(self, folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
        """All files of a folder and of those in it, without those that are hidden; links may lead in a circle."""
        folder = "" if folder == "." else folder
        place = folder if self._root is None else os.path.realpath(self._path(folder))
        if place in above:
            return
        names, folders = self._entries(folder)
        yield from sorted(name for name in names if not posixpath.basename(name).startswith("."))
        for inner in sorted(folders):
            if not posixpath.basename(inner).startswith("."):
                yield from self.below(inner, (*above, place))

    def alike(self, folder: str) -> list[str]:
        """The folders whose names differ from this one in letter case and Unicode form alone."""
        if folder in ("", "."):
            return [""]
        parent, base = posixpath.split(folder)
        if not base:  # of a root, which is none of our folders
            return []
        found = {inner for at in self.alike(parent) for inner in self._entries(at)[1]}
        return sorted([folder] if folder in found else [o for o in found if fold(posixpath.basename(o)) == fold(base)])


def _listed(files: Iterable[str]) -> Callable[[str], _Entries]:
    """The entries of each folder that these names are in."""
    entries: dict[str, _Entries] = {}
    for name in files:
        kind, folder = 0, name
        while folder:
            name, folder = folder, posixpath.dirname(folder)
            there = entries.setdefault(folder, (set(), set()))[kind]
            if name in there:
                break
            there.add(name)
            kind = 1
    return lambda folder: entries.get(folder, (set(), set()))


class _Folder:
    """The names of the files of one folder, found without going through all of them each time."""

    def __init__(self, names: Collection[str], left: Left) -> None:
        self._names, self._left = names, left
        self._sequences: dict[tuple[str, str], list[str]] | None = None
        self._sorted: list[str] | None = None
        self._told: set[tuple[str, str]] = set()
        self._alike: dict[str, list[str]] | None = None
        self._folded: _Folder

    def matching(self, name: str, many: str, *, again: bool = False) -> Sequence[str] | None:
        """Which files a name stands for: itself, or every picture of its sequence, every tile (sorted); of a sequence
        that was asked for before (or will be asked for `again`) one is enough. None: it was not looked at."""
        if many == "tiles":
            return self._tiles(name)
        shape = _shape(name) if many else None
        if shape is None:
            return [name] if name in self._names else []
        if self._sequences is None:
            self._sequences = {}
            for file in sorted(self._names):
                if (key := _shape(file)) is not None:
                    self._sequences.setdefault(key, []).append(file)
        found = self._sequences.get(shape, [])
        if again or shape in self._told:
            return found[:1]
        self._told.add(shape)
        return found

    def alike(self, base: str, many: str, *, again: bool = False) -> list[str]:
        """Those that differ in letter case and Unicode form alone."""
        if self._alike is None:
            self._alike = {}
            for file in sorted(self._names):
                self._alike.setdefault(fold(posixpath.basename(file)), []).append(file)
            self._folded = _Folder(self._alike, self._left)
        marks = {"<udim>": "<UDIM>", "<uvtile>": "<UVTILE>"}
        name = re.sub("<udim>|<uvtile>", lambda found: marks[found[0]], fold(base))
        found = self._folded.matching(name, many, again=again) if many else [name]
        return [file for key in found or () for file in self._alike.get(key, ())]

    def _tiles(self, name: str) -> Sequence[str] | None:
        if self._sorted is None:
            self._sorted = sorted(self._names)
        stem, extension = posixpath.splitext(name)
        begin, *_ = re.split("<UDIM>|<UVTILE>", stem)
        first = bisect_left(self._sorted, begin)
        last = bisect_left(self._sorted, begin + chr(0x10FFFF), first)
        self._left.compared -= last - first
        if self._left.compared < 0:
            return None
        written = re.escape(stem).replace("<UDIM>", r"\d{4}").replace("<UVTILE>", r"u\d+_v\d+")
        fits = re.compile(written + re.escape(extension)).fullmatch
        return [file for file in self._sorted[first:last] if fits(file)]


def _shape(name: str) -> tuple[str, str] | None:
    """What the pictures of one sequence have in common: what stands before and after the last number of the stem."""
    begin, mark, end = split_name(name)
    return (begin, end) if mark == "#" else None
