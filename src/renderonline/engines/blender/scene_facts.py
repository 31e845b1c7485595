"""What a .blend file says of itself, read without Blender: for the child that reads strangers' files (R13).

A .blend (plain, gzip or zstd) is a list of blocks of memory; the last one, `DNA1`, says how the structs in the others
are laid out. Only the few blocks that matter here are kept, and what the file says of sizes is compared with what is
there.
"""

import gzip
import os
import posixpath
import re
import struct
import zlib
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO, Any, Final, NamedTuple

import zstandard

NEWEST_LAYOUT: Final = 1
"""Of the file format, since Blender 5; of a newer one only its Blender's version can be read."""
MOST_BLOCKS, LONGEST_BLOCK, LARGEST_DNA = 20_000, 64 * 1024, 16 << 20
MOST_SCENES, MOST_EXTERNAL, MOST_INPUTS, MOST_LIBRARIES = 64, 500, 20_000, 200
MOST_WALKED: Final = 3_000_000
"""Blocks of a scene and its libraries that one look goes through."""
MOST_COMPARED: Final = 2_000_000
"""Names of files that one look compares with names of tiles."""
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
"""A compressed file that gives more bytes, and so many times its own size, is no scene."""
BUFFER_BYTES: Final = 64 * 1024
STEP_BYTES: Final = 1 << 20

_EXTERNAL = {"IM": "image", "LI": "library", "VF": "font", "SO": "sound", "MC": "movie", "CF": "cache", "VO": "volume"}
_GENERATED, _VIEWER = 4, 5
_MANY: Final = {2: "sequence", 6: "tiles"}
"""Sources of an image."""
_FORMATS: Final[Mapping[int, str]] = (
    {0: "TGA", 1: "IRIS", 4: "JPEG", 14: "TGA", 15: "AVI_RAW", 16: "AVI_JPEG", 17: "PNG", 20: "BMP", 21: "HDR"}
    | {22: "TIFF", 23: "OPEN_EXR", 24: "FFMPEG", 26: "CINEON", 27: "DPX", 28: "OPEN_EXR_MULTILAYER"}
    | {30: "JP2", 35: "WEBP", 36: "AVIF"}
)
_READS: Final = {"int": "i", "short": "h", "float": "f", "char": "b", "int8_t": "b", "uchar": "B"}
_SHOWN: Final = 5
"""Names that a warning gives."""
_DAMAGED: Final = "its content can't be read: save it again in Blender"
_TRUNCATED: Final = "it ends too early: save it again in Blender, or see whether it was copied whole"


class BrokenScene(ValueError):
    """The file is no whole .blend; the text says why, and what to do."""


@dataclass(slots=True)
class _Left:
    """What one look may still do, and what it has not looked at for lack of it: why, and the names."""

    blocks: int = MOST_WALKED
    compared: int = MOST_COMPARED
    unseen: dict[str, dict[str, None]] = field(default_factory=dict)

    def skip(self, why: str, *names: str) -> None:
        self.unseen.setdefault(why, {}).update(dict.fromkeys(names))

    def warnings(self) -> list[str]:
        return [f"not looked at: {_several(names)} ({why})" for why, names in self.unseen.items()]


def survey(scene: str, files: str | Mapping[str, str], most_inputs: int = MOST_INPUTS) -> dict[str, Any]:
    """Read a scene, and look for the files that it needs. JSON for the parent: `broken` (why), or `facts`, `inputs`
    (names of files that are there, at most so many) and `missing` (that are not).

    `scene` is a name among `files`: a directory, or names -> paths ("": not to be read yet). Libraries are read as
    well: what they need, the scene needs. The work is bounded; a warning names what was not looked at.
    """
    left = _Left()
    try:
        facts = read(_path(files, scene), scene, left)
        needed = _Needed(scene, files, left)
        needed.follow(facts["external"])
    except BrokenScene as error:
        return {"broken": str(error)}
    missing, outside, warnings = list(needed.missing), list(needed.outside), facts["warnings"]
    warnings += [f"{name} lies outside of the scene's folder: machines don't get it" for name in outside[:_SHOWN]]
    if len(outside) > _SHOWN:
        warnings.append(f"so do {_several(outside[_SHOWN:])}")
    if len(missing) > MOST_EXTERNAL:
        warnings.append(f"not there either: {_several(missing[MOST_EXTERNAL:])}")
    warnings += left.warnings()
    return {"facts": facts, "inputs": list(needed.there)[:most_inputs], "missing": missing[:MOST_EXTERNAL]}


def read(path: str, name: str = "", left: _Left | None = None) -> dict[str, Any]:
    """The facts of one file: size, version, scenes (the active one first), external files as it names them, warnings.
    `BrokenScene` for whatever is wrong with its content. `name`: how it is called in what is `left`."""
    with open(path, "rb", BUFFER_BYTES) as file:
        try:
            return _facts(_Stream(file), name, left or _Left())
        except BrokenScene:
            raise
        except EOFError as error:
            raise BrokenScene(_TRUNCATED) from error
        except (struct.error, zlib.error, zstandard.ZstdError, OSError, LookupError, TypeError, ValueError) as error:
            raise BrokenScene(_DAMAGED) from error


def _several(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


class _Stream:
    """The bytes of a file, decompressed; what is skipped of a plain file is not read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self._file: Any = file
        self._at = 0
        magic = file.read(7)
        file.seek(0)
        self._plain = magic == b"BLENDER"
        if magic.startswith(b"\x1f\x8b"):
            self._file = gzip.GzipFile(fileobj=file)
        elif magic.startswith(b"\x28\xb5\x2f\xfd"):
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            self._file = reader.stream_reader(file, read_across_frames=True)
        elif not self._plain:
            raise BrokenScene("it is no .blend file" if self.size else "it is empty")

    def head(self, count: int) -> bytes:
        """So many bytes, or those that are left."""
        data: bytes = self._file.read(count)
        self._at += count
        return data

    def take(self, count: int) -> bytes:
        """Exactly so many bytes."""
        data = self.head(count)
        if len(data) < count:
            raise EOFError
        if not self._plain and self._at > max(BOMB_BYTES, BOMB_RATIO * self.size):
            raise BrokenScene("it expands to far more than a scene holds")
        return data

    def skip(self, count: int) -> None:
        if self._plain:
            self._at += count
            if self._at > self.size:
                raise EOFError
            self._file.seek(self._at)
            return
        for done in range(0, count, STEP_BYTES):
            self.take(min(count - done, STEP_BYTES))


class _Layout(NamedTuple):
    """How a file is written: Blender's version (405 for 4.5), byte order, bytes of a pointer, format (0: before 5)."""

    version: int
    order: str
    pointer: int
    format: int


class _Block(NamedTuple):
    code: str
    kind: int
    address: int
    data: bytes


def _layout(stream: _Stream) -> _Layout:
    head = stream.take(12)
    if old := re.fullmatch(rb"BLENDER([_-])([vV])(\d{3})", head):
        return _Layout(int(old[3]), "<" if old[2] == b"v" else ">", 4 if old[1] == b"_" else 8, 0)
    if new := re.fullmatch(rb"BLENDER17-(\d\d)([vV])(\d{4})", head + stream.take(5)):
        return _Layout(int(new[3]), "<" if new[2] == b"v" else ">", 8, int(new[1]))
    raise BrokenScene("it is no .blend file that is known here")


class _TooMany(Exception):
    """More blocks than one look goes through."""


def _blocks(stream: _Stream, layout: _Layout, left: _Left) -> Iterator[_Block]:
    """The blocks that are kept, to the end that Blender writes."""
    head = struct.Struct(layout.order + ("4siQqq" if layout.format else "4siQii" if layout.pointer == 8 else "4siIii"))
    most = dict.fromkeys((*_EXTERNAL, "SC", "GLOB"), LONGEST_BLOCK) | {"DNA1": LARGEST_DNA}
    kept = 0
    while not (first := stream.head(head.size)).startswith(b"ENDB"):
        left.blocks -= 1
        if left.blocks < 0:
            raise _TooMany
        if len(first) < head.size:
            raise EOFError
        name, *numbers = head.unpack(first)
        kind, address, length = numbers[:3] if layout.format else (numbers[2], numbers[1], numbers[0])
        if not length:
            continue
        if length < 0:
            raise BrokenScene(_DAMAGED)
        code = name.rstrip(b"\0").decode("ascii", "replace")
        data = stream.take(min(length, most.get(code, 0)))
        stream.skip(length - len(data))
        kept += bool(data)
        if kept > MOST_BLOCKS:
            raise BrokenScene(f"it has more than {MOST_BLOCKS} scenes and external files")
        if data:
            yield _Block(code, kind, address, data)


class _Dna:
    """How the structs of a file are laid out. `LookupError` for what its Blender did not have."""

    def __init__(self, data: bytes, layout: _Layout) -> None:
        self._data, self._layout, at = data, layout, 4
        self._names, at = self._strings(at)
        self._types, at = self._strings(at)
        self._sizes = self.unpack(f"{len(self._types)}H", data, at + 4)
        at = (at + 4 + 2 * len(self._types) + 3) & ~3
        (count,), at = self.unpack("i", data, at + 4), at + 8
        self.structs: list[str] = []
        self._places: dict[str, int] = {}
        for _ in range(count):
            kind, fields = self.unpack("HH", data, at)
            self.structs.append(self._types[kind])
            self._places[self._types[kind]] = at
            at += 4 + 4 * fields
        self.fields = lru_cache(maxsize=None)(self._fields)

    def unpack(self, form: str, data: bytes, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(self._layout.order + form, data, offset)

    def _strings(self, at: int) -> tuple[list[str], int]:
        """The strings of a section, and where the next one begins."""
        (count,) = self.unpack("i", self._data, at + 4)
        found = self._data[at + 8 :].split(b"\0", max(0, count))[:count]
        end = at + 8 + sum(map(len, found)) + len(found)
        return [one.decode("ascii", "replace") for one in found], (end + 3) & ~3

    def _fields(self, name: str) -> Mapping[str, tuple[int, str, int]]:
        """The fields of a struct (offset, type, size); pointers keep their `*`."""
        at, offset, found = self._places[name], 0, {}
        (count,) = self.unpack("H", self._data, at + 2)
        numbers = iter(self.unpack(f"{2 * count}H", self._data, at + 4))
        for kind, called in zip(numbers, numbers, strict=True):
            bare, *counts = self._names[called].split("[")
            size = self._layout.pointer if bare[:1] in ("*", "(") else self._sizes[kind]
            for text in counts:
                size *= int(text[:-1])
            found[bare] = (offset, self._types[kind], size)
            offset += size
        return found

    def get(self, block: _Block, *path: str) -> Any:
        """A number, a text, or a pointer's address."""
        at, kind, size = 0, self.structs[block.kind], 0
        for name in path:
            offset, kind, size = self.fields(kind)[name]
            at += offset
        raw = block.data[at : at + size]
        if path[-1].startswith("*"):
            return self.unpack("Q" if self._layout.pointer == 8 else "I", raw, 0)[0]
        if kind == "char" and size > 1:
            return raw.split(b"\0", 1)[0].decode("utf-8", "replace")
        return self.unpack(_READS[kind], raw, 0)[0]

    def first(self, block: _Block, *paths: tuple[str, ...]) -> Any:
        """The first of these that this file's Blender had, or else 0."""
        for path in paths:
            if path[0] in self.fields(self.structs[block.kind]):
                return self.get(block, *path)
        return 0


_dna = lru_cache(8)(_Dna)  # scenes of one version of Blender have the same


def _facts(stream: _Stream, name: str, left: _Left) -> dict[str, Any]:
    layout = _layout(stream)
    facts: dict[str, Any] = {"size": stream.size, "version": "{}.{}".format(*divmod(layout.version, 100))}
    if layout.format > NEWEST_LAYOUT:
        return {**facts, "scenes": [], "external": [], "warnings": ["what it holds can't be read here: it is too new"]}
    try:
        kept = list(_blocks(stream, layout, left))
    except _TooMany:
        left.skip(f"more than {MOST_WALKED:,} blocks", f"scenes and external files of {name}")
        return {**facts, "scenes": [], "external": [], "warnings": []}
    descriptions = [block.data for block in kept if block.code == "DNA1"]
    if not descriptions:
        raise EOFError
    dna = _dna(descriptions[0], layout)
    active = [dna.get(block, "*curscene") for block in kept if block.code == "GLOB"]
    found = sorted((one for one in kept if one.code == "SC"), key=lambda one: one.address not in active)
    scenes = [_scene(dna, block) for block in found[:MOST_SCENES]]
    external = [one for block in kept if block.code in _EXTERNAL for one in _external(dna, block)]
    if len(external) > MOST_EXTERNAL:
        left.skip(f"of {len(external)} external files of {name}", *(one["path"] for one in external[MOST_EXTERNAL:]))
    warnings = [] if not found or dna.get(found[0], "*camera") else [f"its scene {scenes[0]['name']} has no camera"]
    return {**facts, "scenes": scenes, "external": external[:MOST_EXTERNAL], "warnings": warnings}


def _scene(dna: _Dna, block: _Block) -> dict[str, Any]:
    whole = {"start": "sfra", "end": "efra", "step": "frame_step", "width": "xsch", "height": "ysch", "percent": "size"}
    base, rate = dna.get(block, "r", "frs_sec_base"), dna.get(block, "r", "frs_sec")
    return {
        "name": dna.get(block, "id", "name")[2:],
        **{fact: dna.get(block, "r", field) for fact, field in whole.items()},
        "fps": round(rate / base, 3) if 1e-3 < base < 1e6 else float(rate),
        "engine": dna.get(block, "r", "engine"),
        "format": _FORMATS.get(dna.get(block, "r", "im_format", "imtype"), ""),
    }


def _external(dna: _Dna, block: _Block) -> Iterator[dict[str, str]]:
    """The file that a datablock is kept in, when it is one; `many`: it is one of a sequence, or of tiles."""
    path = str(dna.first(block, ("name",), ("filepath",))).replace("\\", "/")
    packed = dna.first(block, ("packedfiles", "*first"), ("*packedfile",))
    source = dna.first(block, ("source",)) if block.code == "IM" else 2 * dna.first(block, ("is_sequence",))
    if path and path != "<builtin>" and not packed and source not in (_GENERATED, _VIEWER):
        yield {"kind": _EXTERNAL[block.code], "path": path, "many": _MANY.get(source, "")}


class _Needed:
    """The files that a scene needs: `there`, `missing`, `outside` (as they are named)."""

    def __init__(self, scene: str, files: str | Mapping[str, str], left: _Left) -> None:
        self.there, self.missing, self.outside = dict[str, None](), dict[str, None](), dict[str, None]()
        self._read = {scene}
        self._scene, self._files, self._left = scene, files, left
        self._folder = lru_cache(maxsize=None)(lambda folder: _Folder(_names(files, folder), left))
        self._asked: set[tuple[str, str]] = set()

    def follow(self, external: Sequence[Mapping[str, str]]) -> None:
        """What the scene names, and what its libraries name."""
        todo = [(self._scene, external)]
        while todo:
            user, named = todo.pop()
            for one in named:
                name = posixpath.normpath(posixpath.join(posixpath.dirname(user), one["path"][2:]))
                if not one["path"].startswith("//") or name.startswith(("/", "../")):
                    self.outside[one["path"]] = None
                elif self._find(name, one["many"]) and one["kind"] == "library":
                    todo += self._library(name)

    def _find(self, name: str, many: str) -> bool:
        """Whether a file is there, or one of its sequence or tiles."""
        if (name, many) not in self._asked:
            self._asked.add((name, many))
            found = self._folder(posixpath.dirname(name)).matching(name, many)
            if found is None:
                self._left.skip(f"more than {MOST_COMPARED:,} comparisons with tiles", name)
            else:
                self.there.update(dict.fromkeys(found))
                self.missing.update({} if found else {name: None})
        return name in self.there

    def _library(self, name: str) -> list[tuple[str, Sequence[Mapping[str, str]]]]:
        path = _path(self._files, name)
        if not path or name in self._read:
            return []
        if len(self._read) > MOST_LIBRARIES:
            self._left.skip(f"more than {MOST_LIBRARIES} libraries", name)
            return []
        self._read.add(name)
        try:
            return [(name, read(path, name, self._left)["external"])]
        except BrokenScene as error:
            raise BrokenScene(f"its library {name} is broken: {error}") from error


class _Folder:
    """The names of files among which those of one folder are, found without going through all of them each time."""

    def __init__(self, names: Collection[str], left: _Left) -> None:
        self._names, self._left = names, left
        self._sequences: dict[tuple[str, str, str], list[str]] | None = None
        self._sorted: list[str] | None = None
        self._told: set[tuple[str, str, str]] = set()

    def matching(self, name: str, many: str) -> Sequence[str] | None:
        """Which files a name stands for: itself, or every picture of its sequence, every tile (sorted); of a sequence
        that was asked for before one is enough. None: it was not looked at."""
        if many == "tiles":
            return self._tiles(name)
        shape = _shape(name) if many else None
        if shape is None:
            return [name] if name in self._names else []
        if self._sequences is None:
            self._sequences = {}
            for one in sorted(self._names):
                if (key := _shape(one)) is not None:
                    self._sequences.setdefault(key, []).append(one)
        found = self._sequences.get(shape, [])
        if shape in self._told:
            return found[:1]
        self._told.add(shape)
        return found

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
        return [one for one in self._sorted[first:last] if fits(one)]


def _shape(name: str) -> tuple[str, str, str] | None:
    """What the pictures of one sequence have in common: what stands before and after the last number of the stem."""
    stem, extension = posixpath.splitext(name)
    number = None
    for number in re.finditer(r"\d+", stem):  # noqa: B007 (the last one counts)
        pass
    return (stem[: number.start()], stem[number.end() :], extension) if number is not None else None


def _path(files: str | Mapping[str, str], name: str) -> str:
    return posixpath.join(files, name) if isinstance(files, str) else files.get(name, "")


def _names(files: str | Mapping[str, str], folder: str) -> Collection[str]:
    """The names of all files in a folder, and perhaps of others."""
    if not isinstance(files, str):
        return files.keys()
    try:
        with os.scandir(posixpath.join(files, folder)) as entries:
            return {posixpath.join(folder, entry.name) for entry in entries if entry.is_file()}
    except OSError:
        return ()
