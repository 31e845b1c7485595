"""The files and folders that a .blend names: all that `bpy.utils.blend_paths()` lists, and caches and bakes besides.

The structs and their fields have the names that stand in files (`Sequence` is a strip, `Strip` is what it shows).
"""

import posixpath
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

from renderonline.engines.blender.blend_file import Blend, Block

_GENERATED, _VIEWER = 4, 5
_MANY: Final = {2: "sequence", 6: "tiles"}
"""Sources of an image."""
_CLIP_SEQUENCE: Final = 1
_CLIP_OWN_PROXIES: Final = 3
"""Flags of a clip: its proxies are used, and have a folder of their own."""
_IMAGES, _MOVIE = 0, 3
"""Kinds of strips that name files themselves; a sound strip has a datablock."""
_MUTED, _VIEWS = 1 << 5, 1 << 29
"""Flags of a strip."""
_BAKED, _ON_DISK, _EXTERNAL = 1 << 0, 1 << 6, 1 << 9
"""Flags of a point cache."""
_FLUID_BAKED: Final = 1 << 1
_OWN_FOLDER: Final = 1 << 1
"""Flag of a bake of geometry nodes."""
_DISK: Final = 2
"""Target of such a bake."""
_FILE_PATH: Final = 1
"""Subtype of a text socket."""
_GEOMETRY: Final = (".obj", ".ply", ".stl", ".csv", ".vdb", ".txt")
"""What nodes import."""
CACHES: Final = (".bphys", ".vdb", ".uni", ".raw.gz", ".gz", ".npz", ".exr", ".json", ".blob", ".bobj.gz", ".obj")
"""What caches and bakes are made of."""
_DATABLOCKS: Final = {
    "Image": "image",
    "Library": "library",
    "VFont": "font",
    "bSound": "sound",
    "MovieClip": "movie",
    "CacheFile": "cache",
    "Volume": "volume",
}
_FIELDS: Final = {
    "CacheFileLayer": ("layer", "filepath"),
    "MeshCacheModifierData": ("mesh cache", "filepath"),
    "NodeShaderTexIES": ("light profile", "filepath"),
    "NodeShaderScript": ("shader", "filepath"),
    "CustomDataExternal": ("displacement", "filename"),
    "Camera": ("shader", "custom_filepath"),
    "ImageView": ("image", "filepath"),
}
"""Structs that name one file in one field."""
KINDS: Final = dict.fromkeys(
    (
        *(*_DATABLOCKS, *_FIELDS, "Scene", "FileGlobal", "Sequence", "Strip", "StripElem", "SceneRenderView"),
        *("PointCache", "OceanModifierData", "FluidDomainSettings", "NodesModifierData", "NodesModifierBake", "bNode"),
        "bNodeSocketValueString",
        "IDProperty",
    ),
    "",
)
"""The structs that are asked for."""


class Named(NamedTuple):
    """A file as the scene names it. `many`: it is one of a `sequence` or of `tiles`, or it is a `folder`; `needed`:
    without it the picture would be another; else it travels when it is there; `pictures`: so many were in the sequence
    when the scene was saved (0: not known)."""

    kind: str
    path: str
    many: str = ""
    needed: bool = True
    pictures: int = 0


def named_files(blend: Blend, scene: str) -> Iterator[Named]:
    """Everything that a file names. `scene`: its own name, after which Blender calls the folder of its caches."""
    if blend.dna is None:
        return
    parts = (_datablocks, _fields, _strips, _caches, _node_bakes, _imports)
    for part in parts:
        for one in part(blend, scene):
            path = one.path.replace("\\", "/")
            if path.strip("/"):
                server = one.path.startswith("\\\\")  # `//` is what is seen from the scene
                yield one._replace(path=f"\\\\{path[2:]}" if server else path)


def cache_folder(scene: str) -> str:
    """Where Blender keeps the caches of a scene that lie on the disk."""
    return f"blendcache_{posixpath.splitext(posixpath.basename(scene))[0]}"


def _datablocks(blend: Blend, _scene: str) -> Iterator[Named]:
    dna = blend.dna
    assert dna is not None
    for struct, kind in _DATABLOCKS.items():
        for block in blend.all(struct):
            if len(block.code) != 2:
                continue
            path = str(dna.first(block, ("name",), ("filepath",)))
            packed = dna.first(block, ("packedfiles", "*first"), ("*packedfile",))
            source = dna.first(block, ("source",)) if struct in ("Image", "MovieClip") else 0
            if struct == "MovieClip":
                many = "sequence" if source == _CLIP_SEQUENCE else ""
                yield from _proxies(blend, block)
            else:
                many = _MANY.get(source, "") or ("sequence" if dna.first(block, ("is_sequence",)) else "")
            generated = struct == "Image" and source in (_GENERATED, _VIEWER)
            if path != "<builtin>" and not packed and not generated:
                pictures = dna.first(block, ("len",)) if struct == "MovieClip" and many else 0
                yield Named(kind, path, many, pictures=pictures)


def _proxies(blend: Blend, clip: Block) -> Iterator[Named]:
    dna = blend.dna
    assert dna is not None
    if dna.first(clip, ("flag",)) & _CLIP_OWN_PROXIES == _CLIP_OWN_PROXIES:
        yield Named("proxies", str(dna.first(clip, ("proxy", "dir"))), "folder", needed=False)


def _fields(blend: Blend, _scene: str) -> Iterator[Named]:
    dna = blend.dna
    assert dna is not None
    for struct, (kind, field) in _FIELDS.items():
        for block in blend.all(struct):
            if dna.has(block, field):
                yield Named(kind, str(dna.get(block, field)))


def _strips(blend: Blend, _scene: str) -> Iterator[Named]:
    """Every picture of a strip, and those of its other eyes."""
    dna = blend.dna
    assert dna is not None
    suffixes = {str(dna.get(view, "suffix")) for view in blend.all("SceneRenderView")}
    for strip in blend.all("Sequence"):
        kind, flag = dna.get(strip, "type"), dna.get(strip, "flag")
        shown = blend.at(dna.get(strip, "*strip"), "Strip")
        if kind not in (_IMAGES, _MOVIE) or shown is None:
            continue
        elements = blend.at(dna.get(shown, "*stripdata"), "StripElem")
        for element in blend.each(elements) if elements is not None else ():
            path = posixpath.join(
                str(dna.get(shown, "dir")).replace("\\", "/"), str(dna.first(element, ("name",), ("filename",)))
            )
            views = (
                _other_views(path, suffixes) if flag & _VIEWS and not dna.first(strip, ("views_format",)) else [path]
            )
            yield from (Named("strip", one, needed=not flag & _MUTED) for one in views)
            if kind == _MOVIE:
                break


def _other_views(path: str, suffixes: set[str]) -> list[str]:
    """A picture of one eye, and those of the others."""
    stem, extension = posixpath.splitext(path)
    own = next((one for one in sorted(suffixes, key=len, reverse=True) if one and stem.endswith(one)), "")
    return [f"{stem.removesuffix(own)}{one}{extension}" for one in sorted(suffixes)] if own else [path]


def _caches(blend: Blend, scene: str) -> Iterator[Named]:
    dna = blend.dna
    assert dna is not None
    for cache in blend.all("PointCache"):
        flag = dna.get(cache, "flag")
        if flag & _EXTERNAL:
            yield Named("simulation", str(dna.get(cache, "path")), "folder")
        elif flag & _ON_DISK:
            yield Named("simulation", f"//{cache_folder(scene)}", "folder", needed=bool(flag & _BAKED))
    for ocean in blend.all("OceanModifierData"):
        yield Named("ocean", str(dna.get(ocean, "cachepath")), "folder", needed=bool(dna.first(ocean, ("cached",))))
    for fluid in blend.all("FluidDomainSettings"):
        yield Named("fluid", str(dna.get(fluid, "cache_directory")), "folder", needed=is_fluid_baked(blend, fluid))


def is_fluid_baked(blend: Blend, fluid: Block) -> bool:
    """Whether a domain's data were baked, so that Blender only reads them."""
    assert blend.dna is not None
    return bool(blend.dna.first(fluid, ("cache_flag",)) & _FLUID_BAKED)


def _node_bakes(blend: Blend, _scene: str) -> Iterator[Named]:
    """Bakes of geometry nodes that lie on the disk: of one node, or of all of a modifier."""
    dna = blend.dna
    assert dna is not None
    for modifier in blend.all("NodesModifierData"):
        whole, _ = blend.texts.get(dna.first(modifier, ("*simulation_bake_directory",), ("*bake_directory",)), ("", ""))
        yield Named("bake", whole, "folder", needed=False)
        bakes = blend.at(dna.first(modifier, ("*bakes",)), "NodesModifierBake")
        for bake in blend.each(bakes) if bakes is not None else ():
            own, _ = blend.texts.get(dna.get(bake, "*directory"), ("", ""))
            target = dna.first(bake, ("bake_target",)) or dna.first(modifier, ("bake_target",))
            on_disk = target == _DISK or not dna.has(bake, "bake_target")
            folder = own if dna.get(bake, "flag") & _OWN_FOLDER else posixpath.join(whole, str(dna.get(bake, "id")))
            if on_disk and folder and (own or whole):
                yield Named("bake", folder, "folder", needed=bool(dna.first(bake, ("bake_size",))))


def _imports(blend: Blend, _scene: str) -> Iterator[Named]:
    """Files that nodes import: what stands in a socket for paths, and any text that may have come to it on another way
    (a group's input, a text node, a property)."""
    dna = blend.dna
    assert dna is not None
    imports = any(str(dna.first(node, ("idname",))).startswith("GeometryNodeImport") for node in blend.all("bNode"))
    for socket in blend.all("bNodeSocketValueString"):
        path = str(dna.get(socket, "value"))
        if dna.first(socket, ("subtype",)) == _FILE_PATH:
            yield Named("import", path)
        elif _looks_like_path(path):
            yield Named("import", path, needed=imports and path.casefold().endswith(_GEOMETRY))
    for text, _ in blend.texts.values():
        if _looks_like_path(text):
            yield Named("text", text, needed=imports and text.casefold().endswith(_GEOMETRY))


def _looks_like_path(text: str) -> bool:
    return re.match(r"//|/|\\\\|[A-Za-z]:[\\/]", text) is not None and len(text) < 1024
