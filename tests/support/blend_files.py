"""Small .blend files, written by hand: everything that a real one may be, and what no real one is."""

import gzip
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from renderonline.engines.blender.needed_files import survey

_NUMBERS = {"int": ("i", 4), "short": ("h", 2), "float": ("f", 4), "char": ("b", 1)}
_ID = [("char", "name[66]"), ("IDProperty", "*properties")]
_RENDER = [
    *(("int", name) for name in ("sfra", "efra", "frame_step", "xsch", "ysch")),
    *(("short", "size"), ("short", "frs_sec"), ("float", "frs_sec_base")),
    *(("char", "engine[32]"), ("ImageFormatData", "im_format")),
]
_FILE = [("ID", "id"), ("char", "name[1024]"), ("PackedFile", "*packedfile"), ("short", "source")]
STRUCTS: Mapping[str, Sequence[tuple[str, str]]] = {
    "ID": _ID,
    "ImageFormatData": [("char", "imtype")],
    "RenderData": _RENDER,
    "Scene": [("ID", "id"), ("Object", "*camera"), ("RenderData", "r")],
    "FileGlobal": [("Scene", "*curscene")],
    "IDPropertyData": [("IDProperty", "*first"), ("int", "val")],
    "IDProperty": [("IDProperty", "*next"), ("char", "name[64]"), ("IDPropertyGroup", "data")],
    "IDPropertyGroup": [("IDPropertyData", "group"), ("int", "val")],
    "Image": _FILE,
    "Library": _FILE,
    "bSound": _FILE,
}


def facts_in(scene: Path) -> dict[str, Any]:
    """What a whole scene says of itself."""
    facts: dict[str, Any] = survey(scene.name, str(scene.parent))["facts"]
    return facts


@dataclass(frozen=True)
class Scene:
    name: str = "Scene"
    start: int = 1
    end: int = 1
    step: int = 1
    width: int = 1920
    height: int = 1080
    percent: int = 100
    fps: int = 24
    fps_base: float = 1.0
    engine: str = "CYCLES"
    imtype: int = 17
    camera: int = 77
    device: str = "CPU"


@dataclass(frozen=True)
class File:
    path: str
    code: str = "IM"
    struct: str = "Image"
    source: int = 1
    packed: int = 0


@dataclass
class Blend:
    """What is written. `file_format`: 1 as Blender 5 writes, 0 as those before; `pointer`: 4 or 8 bytes."""

    scenes: Sequence[Scene] = (Scene(),)
    files: Sequence[File] = ()
    version: int = 405
    order: str = "<"
    pointer: int = 8
    file_format: int = 0
    active: int = 0
    ballast: int = 0
    """Bytes of a block that nobody reads."""
    more: Sequence[tuple[bytes, bytes]] = field(default_factory=list)

    def write(self) -> bytes:
        """The file."""
        mark, version = ("v" if self.order == "<" else "V"), self.version
        if self.file_format:
            head = f"BLENDER17-{self.file_format:02}{mark}{version:04}".encode()
        else:
            head = f"BLENDER{'-' if self.pointer == 8 else '_'}{mark}{version:03}".encode()
        blocks = [self._block(b"GLOB", "FileGlobal", 1, self._struct("FileGlobal", curscene=1000 + self.active))]
        blocks.append(self._block(b"DATA", "ID", 2, bytes(self.ballast)))
        blocks += [self._block(b"SC", "Scene", 1000 + i, self._scene(one)) for i, one in enumerate(self.scenes)]
        blocks += self._properties()
        blocks += [self._block(one.code.encode(), one.struct, 2000, self._file(one)) for one in self.files]
        blocks += [self._block(code, "ID", 3, data) for code, data in self.more]
        return head + b"".join(blocks) + self._block(b"DNA1", "ID", 4, self._dna()) + self._block(b"ENDB", "ID", 0, b"")

    def _block(self, code: bytes, kind: str, address: int, data: bytes) -> bytes:
        index, code = list(STRUCTS).index(kind), code.ljust(4, b"\0")
        if self.file_format:
            return struct.pack(self.order + "4siQqq", code, index, address, len(data), 1) + data
        form = "4siQii" if self.pointer == 8 else "4siIii"
        return struct.pack(self.order + form, code, len(data), address, index, 1) + data

    def _scene(self, one: Scene) -> bytes:
        numbers = {"sfra": one.start, "efra": one.end, "frame_step": one.step, "xsch": one.width, "ysch": one.height}
        rest = {"size": one.percent, "frs_sec": one.fps, "frs_sec_base": one.fps_base, "engine": one.engine}
        rest["im_format"] = struct.pack("b", one.imtype)
        properties = 5000 + 10 * self.scenes.index(one) if one.device == "GPU" else 0
        return self._struct("Scene", id=self._id("SC" + one.name, properties), camera=one.camera, r={**numbers, **rest})

    def _properties(self) -> list[bytes]:
        """The settings of Cycles, as Blender keeps those of add-ons, of scenes that ask for a card: a property of some
        other add-on, then the group with the one that counts. Blender writes them behind their scene."""
        found: list[bytes] = []
        for number, one in enumerate(self.scenes):
            first = 5000 + 10 * number
            for address, called, follows, inner, value in (
                (first, "", 0, first + 1, 0),
                (first + 1, "other", first + 2, 0, 0),
                (first + 2, "cycles", 0, first + 3, 0),
                (first + 3, "samples", first + 4, 0, 1),
                (first + 4, "device", 0, 0, 1),
            ):
                data = {"group": {"first": inner, "val": 0}, "val": value}
                block = self._struct("IDProperty", next=follows, name=called, data=data)
                found += [self._block(b"DATA", "IDProperty", address, block)] if one.device == "GPU" else []
        return found

    def _file(self, one: File) -> bytes:
        return self._struct(
            one.struct, id=self._id(one.code + "x"), name=one.path, packedfile=one.packed, source=one.source
        )

    def _id(self, name: str, properties: int = 0) -> bytes:
        address = struct.pack(self.order + ("Q" if self.pointer == 8 else "I"), properties)
        return name.encode().ljust(66, b"\0") + address

    def _struct(self, struct_name: str, /, **values: Any) -> bytes:
        return b"".join(self._value(kind, called, values) for kind, called in STRUCTS[struct_name])

    def _value(self, kind: str, called: str, values: Mapping[str, Any]) -> bytes:
        bare, _, count = called.partition("[")
        value = values[bare.lstrip("*")]
        if bare.startswith("*"):
            return struct.pack(self.order + ("Q" if self.pointer == 8 else "I"), value)
        if count:
            return str(value).encode().ljust(int(count[:-1]), b"\0")
        if isinstance(value, bytes):
            return value
        if isinstance(value, dict):
            return self._struct(kind, **value)
        return struct.pack(self.order + _NUMBERS[kind][0], value)

    def _size(self, kind: str) -> int:
        if kind not in STRUCTS:
            return _NUMBERS.get(kind, ("", 0))[1]
        total = 0
        for inner, called in STRUCTS[kind]:
            bare, _, count = called.partition("[")
            total += self.pointer if bare.startswith("*") else self._size(inner) * int(count[:-1] or 1)
        return total

    def _dna(self) -> bytes:
        names = sorted({called for fields in STRUCTS.values() for _, called in fields})
        kinds = sorted({*STRUCTS, *(kind for fields in STRUCTS.values() for kind, _ in fields)})

        def section(tag: bytes, count: int | None, body: bytes) -> bytes:
            whole = tag + (b"" if count is None else struct.pack(self.order + "i", count)) + body
            return whole + bytes(-len(whole) % 4)

        def texts(tag: bytes, strings: Sequence[str]) -> bytes:
            return section(tag, len(strings), b"".join(one.encode() + b"\0" for one in strings))

        structs = b""
        for kind, fields in STRUCTS.items():
            structs += struct.pack(self.order + "HH", kinds.index(kind), len(fields))
            for inner, called in fields:
                structs += struct.pack(self.order + "HH", kinds.index(inner), names.index(called))
        sizes = struct.pack(self.order + f"{len(kinds)}H", *map(self._size, kinds))
        return (
            b"SDNA" + texts(b"NAME", names) + texts(b"TYPE", kinds) + section(b"TLEN", None, sizes)
            + section(b"STRC", len(STRUCTS), structs)
        )  # fmt: skip


def packed(data: bytes, how: str) -> bytes:
    """As Blender compresses: `gzip` (before 3.0), `zstd` (frames of a megabyte), or not ("")."""
    if how == "gzip":
        return gzip.compress(data)
    if how == "zstd":
        packer = zstandard.ZstdCompressor()
        return b"".join(packer.compress(data[at : at + (1 << 20)]) for at in range(0, len(data), 1 << 20))
    return data


TINY = Blend(scenes=()).write()
"""A whole .blend in which there is nothing."""
