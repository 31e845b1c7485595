"""The files that were sent with a scene, and which of them a path means."""

import json
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Final

MAPPING: Final = "_renderonline_names.json"
"""Among a task's files: names that were not fit for every system -> the names under which the files lie there."""
FOLDER: Final = "_renderonline_folder.txt"
"""Among a task's files: the whole path of the folder from which a client sent them."""
OUTSIDE: Final = "_outside"
"""The folder of files from outside of the scene's folder; below it stands where they were, in full."""
MOST_FILES, LARGEST_MAPPING = 200_000, 32 << 20
_TILES: Final = re.compile("(<UDIM>|<UVTILE>)", re.IGNORECASE)
_DIGITS: Final = {"#": r"\d+", "<UDIM>": r"\d{4}", "<UVTILE>": r"u\d+_v\d+"}


class Inputs:
    """The files below `root`. Nothing else is ever found, whatever the mapping says."""

    def __init__(self, root: str, scene: str = "") -> None:
        """`scene`: the folder of the scene, which a ZIP may have put somewhere below."""
        self.root = os.path.abspath(root)
        self._scene = os.path.relpath(scene or root, root).replace(os.sep, "/")
        self._names = {name: name for name in _below(self.root, MOST_FILES)}
        sent = mapping_in(os.path.join(self.root, MAPPING))
        self._names |= {name: held for name, held in sent.items() if held in self._names and name not in self._names}
        self._sent_from = sent_from(os.path.join(self.root, FOLDER)).rstrip("/")
        self._alike: dict[str, list[str]] = {}
        self._beside: dict[str, list[str]] = {}
        self._folders: dict[str, dict[str, str]] = {}
        for name, held in self._names.items():
            self._alike.setdefault(fold(name), []).append(name)
            folder, there = os.path.dirname(name), os.path.dirname(held)
            self._beside.setdefault(fold(folder), []).append(name)
            while folder and folder not in (known := self._folders.setdefault(fold(folder), {})):
                known[folder] = there
                folder, there = os.path.dirname(folder), os.path.dirname(there)

    def holds(self, path: str) -> bool:
        """Whether a path leads into the folder of the files."""
        return path == self.root or path.startswith(self.root + os.sep)

    def find(self, path: str, *, folder: bool = False, sequence: bool = False) -> list[str]:
        """The file (the folder, a picture of the sequence) that a whole path means, of this computer or of another
        one; [] when none was sent, several when it could be one of them."""
        if self.holds(path):
            return self._named(os.path.relpath(path, self.root).replace(os.sep, "/"), folder=folder, sequence=sequence)
        for tail in self._tails(path):
            if found := self._named(tail, folder=folder, sequence=sequence):
                return found
        return []

    def _tails(self, path: str) -> Iterator[str]:
        """What a path from elsewhere may be called here, the surest first. Where the files were is often known; else
        it is guessed from the end of the path."""
        plain, shortest = path.replace("\\", "/"), 1
        if self._sent_from:
            shortest = 2
            from_here = os.path.relpath(path, self.root).replace(os.sep, "/")
            for whole in (plain, os.path.normpath(f"{self._sent_from}/{from_here}")):
                if fold(whole).startswith(fold(self._sent_from) + "/"):
                    yield whole[len(self._sent_from) + 1 :]
                yield f"{OUTSIDE}/{whole.replace(':', '_').strip('/')}"
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        for first in range(len(parts) - shortest + 1):
            tail = "/".join(parts[first:])
            yield tail
            if self._scene != ".":
                yield f"{self._scene}/{tail}"

    def _named(self, name: str, *, folder: bool, sequence: bool) -> list[str]:
        if folder:
            known = self._folders.get(fold(name), {})
            found = [known[name]] if name in known else list(known.values())
        elif _TILES.search(name) or sequence:
            found = self._one_of(name)
        else:
            alike = [name] if name in self._names else self._alike.get(fold(name), [])
            found = [self._names[sent] for sent in alike]
        return [os.path.join(self.root, held) for held in sorted(set(found))]

    def _one_of(self, name: str) -> list[str]:
        """A file of a sequence, or the name of all tiles, as they lie there."""
        folder, base = os.path.split(name)
        begin, mark, end = split_name(base)
        if not mark:
            alike = [name] if name in self._names else self._alike.get(fold(name), [])
            return [self._names[sent] for sent in alike]
        fits = re.compile(f"{re.escape(fold(begin))}{_DIGITS[mark]}{re.escape(fold(end))}").fullmatch
        known = [path for path in self._beside.get(fold(folder), ()) if fits(fold(os.path.basename(path)))]
        exact = [path for path in known if os.path.dirname(path) == folder and os.path.basename(path).startswith(begin)]
        best = name if name in known else min(exact or known, default="")
        if not best:
            return []
        held = self._names[best]
        if mark == "#":
            return [held]
        digits = list(re.finditer(_DIGITS[mark], os.path.basename(best)))
        at = len(os.path.dirname(held)) + bool(os.path.dirname(held)) + digits[-1].start()
        return [f"{held[:at]}{mark}{held[at + len(digits[-1][0]) :]}"]


def split_name(base: str) -> tuple[str, str, str]:
    """What stands before the number of a picture or of a tile, how that is written, and what follows."""
    if tiles := _TILES.search(base):
        return base[: tiles.start()], tiles[0].upper(), base[tiles.end() :]
    numbers = list(re.finditer(r"\d+", os.path.splitext(base)[0]))
    return (base[: numbers[-1].start()], "#", base[numbers[-1].end() :]) if numbers else (base, "", "")


def pattern_of(base: str) -> str:
    """A regular expression for the names of a sequence or of tiles."""
    begin, mark, end = split_name(base)
    return f"{re.escape(begin)}{_DIGITS[mark] if mark else ''}{re.escape(end)}"


def fold(name: str) -> str:
    """A name without letter case and Unicode form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _below(root: str, most: int) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [inner for inner in folders if inner != ".attempts"]
        for name in names:
            most -= 1
            if most < 0:
                return
            yield os.path.relpath(os.path.join(folder, name), root).replace(os.sep, "/")


def sent_from(path: str) -> str:
    """The folder from which a client sent the files, as the file at `path` says; "" where nothing says so."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read(4096).strip().replace("\\", "/")
    except OSError:
        return ""


def mapping_in(path: str) -> Mapping[str, str]:
    """The mapping in the file at `path`; empty when it is not there, or no mapping."""
    try:
        if os.path.getsize(path) > LARGEST_MAPPING:
            return {}
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    texts = found.items() if isinstance(found, dict) else ()
    return {name: held for name, held in texts if isinstance(held, str)}
