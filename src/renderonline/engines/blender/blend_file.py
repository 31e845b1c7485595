"""The blocks of a .blend file, read without Blender: for the child that reads files of others (R13 Hostile content).

A .blend (plain, gzip or zstd) is a list of blocks of memory; the last one, `DNA1`, says how the structs in the others
are laid out. The file is gone through twice: for that block, then for the few kinds of blocks that are asked for. What
the file says of sizes is compared with what is there.
"""

import contextlib
import gzip
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import IO, Any, Final, NamedTuple

import zstandard

from renderonline.engines.blender.launcher import several

NEWEST_LAYOUT: Final = 1
"""Of the file format, since Blender 5; of a newer one only its Blender's version can be read."""
MOST_KEPT, MOST_KEPT_BYTES = 1_000_000, 256 << 20
"""Blocks of one file that are kept, and their bytes."""
LONGEST_BLOCK, LONGEST_TEXT, LARGEST_DNA = 64 << 20, 4096, 16 << 20
MOST_WALKED: Final = 3_000_000
"""Blocks of a scene and its libraries that one look goes through."""
MOST_COMPARED: Final = 2_000_000
"""Names of files that one look compares with names of tiles."""
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
"""A compressed file that expands to more than this number of bytes and this multiple of its own size is no scene."""
BUFFER_BYTES: Final = 64 * 1024
STEP_BYTES: Final = 1 << 20

_READS: Final = {"int": "i", "short": "h", "float": "f", "char": "b", "int8_t": "b", "uchar": "B", "int64_t": "q"}
_RAW: Final = 1
"""Blocks without a struct say that they are the first, or since Blender 5 the second."""
_OF_SCENES: Final = frozenset({"IDProperty"})
"""Kinds that are kept of scenes only: there may be many of all others."""
_PADDING: Final = 16
"""Bytes after the end of a text in which anything may stand."""
_MOST_LINKED: Final = 10_000
_PATH: Final = re.compile(rb"[^\x00-\x1f]*[/\\\\.][^\x00-\x1f]*")
_DAMAGED: Final = "its content can't be read: save it again in Blender"
_TRUNCATED: Final = "it ends too early: save it again in Blender, or see whether it was copied whole"


class BrokenScene(ValueError):
    """The file is no whole .blend; the text says why, and what to do."""


@dataclass(slots=True)
class Left:
    """What one look may still do, and what it has not looked at for lack of it: why, and the names."""

    blocks: int = MOST_WALKED
    compared: int = MOST_COMPARED
    unseen: dict[str, dict[str, None]] = field(default_factory=dict)

    def skip(self, why: str, *names: str) -> None:
        """These were not looked at."""
        self.unseen.setdefault(why, {}).update(dict.fromkeys(names))

    def warnings(self) -> list[str]:
        """A sentence for each reason."""
        return [f"not looked at: {several(names)} ({why})" for why, names in self.unseen.items()]


class _Stream:
    """The bytes of a file, decompressed; what is skipped of a plain file is not read."""

    def __init__(self, file: IO[bytes]) -> None:
        self.size = os.fstat(file.fileno()).st_size
        self._file: Any = file
        self._at = 0
        file.seek(0)
        magic = file.read(7)
        file.seek(0)
        self._plain = magic == b"BLENDER"
        if magic.startswith(b"\x1f\x8b"):
            self._file = gzip.GzipFile(fileobj=file)
        elif magic.startswith(b"\x28\xb5\x2f\xfd"):
            reader = zstandard.ZstdDecompressor(max_window_size=1 << 27)
            self._file = reader.stream_reader(file, read_across_frames=True, closefd=False)
        elif not self._plain:
            raise BrokenScene("it is no .blend file" if self.size else "it is empty")

    def head(self, count: int) -> bytes:
        """`count` bytes, or fewer at the end of the file."""
        data: bytes = self._file.read(count)
        self._at += count
        return data

    def take(self, count: int) -> bytes:
        """Exactly `count` bytes; EOFError when the file ends before."""
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


def _layout(stream: _Stream) -> _Layout:
    head = stream.take(12)
    if old := re.fullmatch(rb"BLENDER([_-])([vV])(\d{3})", head):
        return _Layout(int(old[3]), "<" if old[2] == b"v" else ">", 4 if old[1] == b"_" else 8, 0)
    if new := re.fullmatch(rb"BLENDER17-(\d\d)([vV])(\d{4})", head + stream.take(5)):
        return _Layout(int(new[3]), "<" if new[2] == b"v" else ">", 8, int(new[1]))
    raise BrokenScene("it is no .blend file that is known here")


class _Head(NamedTuple):
    code: str
    kind: int
    address: int
    length: int


def _heads(stream: _Stream, layout: _Layout) -> Iterator[_Head]:
    """What is said of each block, to the end that Blender writes; who asks for the next one has taken its bytes."""
    head = struct.Struct(layout.order + ("4siQqq" if layout.format else "4siQii" if layout.pointer == 8 else "4siIii"))
    while not (first := stream.head(head.size)).startswith(b"ENDB"):
        if len(first) < head.size:
            raise EOFError
        name, *numbers = head.unpack(first)
        kind, address, length = numbers[:3] if layout.format else (numbers[2], numbers[1], numbers[0])
        if length < 0:
            raise BrokenScene(_DAMAGED)
        yield _Head(name.rstrip(b"\0").decode("ascii", "replace"), kind, address, length)


class Dna:
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
        self.place = lru_cache(maxsize=None)(self._place)
        self.sizes = dict(zip(self._types, self._sizes, strict=True))
        """Bytes of each type."""

    def unpack(self, form: str, data: bytes, offset: int) -> tuple[Any, ...]:
        return struct.unpack_from(self._layout.order + form, data, offset)

    def address(self, raw: bytes) -> int:
        """Where a pointer leads."""
        return int(self.unpack("Q" if self._layout.pointer == 8 else "I", raw, 0)[0])

    def _strings(self, at: int) -> tuple[list[str], int]:
        """The strings of a section, and where the next one begins."""
        (count,) = self.unpack("i", self._data, at + 4)
        found = self._data[at + 8 :].split(b"\0", max(0, count))[:count]
        end = at + 8 + sum(map(len, found)) + len(found)
        return [name.decode("ascii", "replace") for name in found], (end + 3) & ~3

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

    def _place(self, kind: str, path: str) -> tuple[int, str, int] | None:
        """The offset, type and size of a field of a struct, or of one in it (`r.im_format.imtype`); None when this
        file's Blender did not have it."""
        at, size = 0, 0
        for name in path.split("."):
            if kind not in self._places or name not in (fields := self.fields(kind)):
                return None
            offset, kind, size = fields[name]
            at += offset
        return at, kind, size


class Block(NamedTuple):
    """One or several structs of a kind, at the address that pointers name; `owner`: code and name of the datablock."""

    dna: Dna
    code: str
    kind: str
    address: int
    data: bytes
    owner: str

    def get(self, path: str) -> Any:
        """A number, a text, or a pointer's address. `LookupError` for a field that this file's Blender did not have."""
        if (place := self.dna.place(self.kind, path)) is None:
            raise LookupError(path)
        at, kind, size = place
        raw = self.data[at : at + size]
        if path.rpartition(".")[2].startswith("*"):
            return self.dna.address(raw)
        if kind == "char" and size > 1:
            return text_of(raw)
        return self.dna.unpack(_READS[kind], raw, 0)[0]

    def has(self, path: str) -> bool:
        """Whether this file's Blender had such a field."""
        return self.dna.place(self.kind, path) is not None

    def first(self, *paths: str) -> Any:
        """The first of these that this file's Blender had, or else 0."""
        return next((self.get(path) for path in paths if self.has(path)), 0)


def text_of(raw: bytes) -> str:
    """A text as Blender keeps it; bytes that are no UTF-8 stay what they are (as `os.fsdecode` has it)."""
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


_dna = lru_cache(8)(Dna)  # scenes of one version of Blender have the same


@dataclass(slots=True)
class Blend:
    """What was read of a file. `too_new`: its layout is newer than what is known here, so it has no blocks."""

    size: int
    version: str
    too_new: bool = False
    blocks: dict[str, list[Block]] = field(default_factory=dict)
    """Of each kind of struct that was asked for, in the order of the file."""
    texts: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Address -> a text that stands outside of any struct, and the datablock that it belongs to."""
    places: dict[int, Block] = field(default_factory=dict)

    def all(self, kind: str) -> list[Block]:
        """The blocks of one kind."""
        return self.blocks.get(kind, [])

    def at(self, address: int, kind: str) -> Block | None:
        """What a pointer names, when it is of this kind."""
        found = self.places.get(address)
        return found if found is not None and found.kind == kind else None

    def each(self, address: int, kind: str) -> Iterator[Block]:
        """The structs that a pointer to several names."""
        if (block := self.at(address, kind)) is not None:
            size = block.dna.sizes[kind] or len(block.data)
            for at in range(0, len(block.data) - size + 1, size):
                yield block._replace(data=block.data[at : at + size])

    def linked(self, address: int, kind: str) -> Iterator[Block]:
        """A list of structs, each of which names the next one; it may lead in a circle."""
        for _ in range(_MOST_LINKED):
            if (block := self.at(address, kind)) is None:
                return
            yield block
            address = block.get("*next")


def opened(path: str, kinds: Mapping[str, str], name: str, left: Left) -> Blend:
    """The blocks of these kinds, each up to a field ("": whole). `BrokenScene` for whatever is wrong with the content.
    `name`: how the file is called in what is `left`."""
    with open(path, "rb", BUFFER_BYTES) as file, understood():
        stream = _Stream(file)
        layout = _layout(stream)
        blend = Blend(stream.size, "{}.{}".format(*divmod(layout.version, 100)), layout.format > NEWEST_LAYOUT)
        if blend.too_new:
            return blend
        description = b""
        for head in _heads(stream, layout):
            left.blocks -= 1
            if left.blocks < 0:
                left.skip(f"more than {MOST_WALKED:,} blocks", f"scenes and external files of {name}")
                return blend
            if head.code == "DNA1" and not description:
                description = stream.take(min(head.length, LARGEST_DNA))
            stream.skip(head.length - (len(description) if head.code == "DNA1" else 0))
        if not description:
            raise EOFError
        stream = _Stream(file)
        heads = _heads(stream, _layout(stream))
        if not _keep(blend, stream, heads, _dna(description, layout), kinds):
            why = f"more than {MOST_KEPT:,} blocks or {MOST_KEPT_BYTES >> 20} MiB that name files"
            left.skip(why, f"a part of {name}")
        return blend


@contextlib.contextmanager
def understood() -> Iterator[None]:
    """Faults of a file's content become `BrokenScene`."""
    try:
        yield
    except BrokenScene:
        raise
    except EOFError as error:
        raise BrokenScene(_TRUNCATED) from error
    except (struct.error, zlib.error, zstandard.ZstdError, OSError, LookupError, TypeError, ValueError) as error:
        raise BrokenScene(_DAMAGED) from error


def _keep(blend: Blend, stream: _Stream, heads: Iterable[_Head], dna: Dna, kinds: Mapping[str, str]) -> bool:
    """Go through the file again for what is asked for; False when there is more of it than is kept."""
    structs, (name_at, _, name_size) = dna.structs, dna.place("ID", "name") or (0, "", 0)
    of_scenes = {index for index, kind in enumerate(structs) if kind in _OF_SCENES}
    wanted = {index: _length(dna, kind, kinds[kind]) for index, kind in enumerate(structs) if kind in kinds}
    owner, room, kept = "", MOST_KEPT_BYTES, 0
    for head in heads:
        is_datablock, is_text = len(head.code) == 2, head.kind <= _RAW and 2 < head.length <= LONGEST_TEXT
        is_wanted = head.kind in wanted and (head.kind not in of_scenes or owner.startswith("SC"))
        most = wanted[head.kind] if is_wanted else LONGEST_TEXT if is_datablock or is_text else 0
        data = stream.take(min(head.length, most if head.code != "DNA1" else 0))
        stream.skip(head.length - len(data))
        if is_datablock:
            owner = text_of(data[name_at : name_at + name_size])
        if is_wanted and data:
            block = Block(dna, head.code, structs[head.kind], head.address, data, owner)
            blend.blocks.setdefault(block.kind, []).append(block)
            blend.places[head.address] = block
        elif is_text and (text := _path_in(data)):
            blend.texts[head.address] = (text, owner)
        else:
            continue
        room, kept = room - len(data), kept + 1
        if room < 0 or kept > MOST_KEPT:
            return False
    return True


def _length(dna: Dna, kind: str, last: str) -> int:
    """The bytes of a struct that are kept, so that a field that is the last is among them."""
    offset, _, size = dna.fields(kind).get(last, (0, "", LONGEST_BLOCK))
    return offset + size


def _path_in(data: bytes) -> str:
    """The text in a block without a struct, when it looks like a path or a file's name; "" for anything else."""
    text, _, rest = data.partition(b"\0")
    if len(text) < 3 or (rest.rstrip(b"\0") and len(rest) > _PADDING) or not _PATH.fullmatch(text):
        return ""
    return text.decode("utf-8", "surrogateescape")
