"""What a .blend says of itself, and the files that it names: for the child that reads files of others (R13 Hostile
content).

The names are all that `bpy.utils.blend_paths()` lists, and caches and bakes besides. The structs and their fields are
called as in files (`Sequence` is a strip, `Strip` is what it shows).
"""

import posixpath
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from itertools import chain
from typing import Any, Final, NamedTuple

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
MOST_SCENES, MOST_TOLD = 64, 500
"""MOST_TOLD: names of files that an answer lists; a warning has the number of the others."""

_FORMATS: Final[Mapping[int, str]] = (
    {0: "TGA", 1: "IRIS", 4: "JPEG", 14: "TGA", 15: "AVI_RAW", 16: "AVI_JPEG", 17: "PNG", 20: "BMP", 21: "HDR"}
    | {22: "TIFF", 23: "OPEN_EXR", 24: "FFMPEG", 26: "CINEON", 27: "DPX", 28: "OPEN_EXR_MULTILAYER"}
    | {30: "JP2", 35: "WEBP", 36: "AVIF"}
)
_SEQUENCER, _MULTIVIEW = 1 << 0, 1 << 21
"""Of a scene's render modes: its sequencer is shown, if it has strips; it has views."""
_SUFFIX: Final = re.compile("[A-Za-z0-9 ()_.-]{1,40}")
_CAMERA: Final = 11
"""Type of an object."""
_EMITTER, _NO_PHYSICS = 0, 0
"""Type of a particle system, and its kind of physics."""
_RENDERED: Final = 1 << 1
"""Mode of a modifier."""
_BAKED, _ON_DISK, _EXTERNAL = 1 << 0, 1 << 6, 1 << 9
"""Flags of a point cache."""
_SIMULATION, _GROUP = "GeometryNodeSimulationOutput", "GeometryNodeGroup"
_POINT_CACHES: Final = {
    "ClothModifierData": ("cloth", "*point_cache"),
    "SoftBody_Shared": ("soft body", "*pointcache"),
    "DynamicPaintSurface": ("dynamic paint", "*pointcache"),
}
KINDS: Final = {
    **dict.fromkeys((*_DATABLOCKS, *_FIELDS, *_POINT_CACHES), ""),
    **dict.fromkeys(("Scene", "FileGlobal", "SceneRenderView", "ViewLayer", "Sequence", "Strip", "StripElem"), ""),
    **dict.fromkeys(("PointCache", "ParticleSystem", "RigidBodyWorld", "RigidBodyWorld_Shared", "IDProperty"), ""),
    **dict.fromkeys(("OceanModifierData", "FluidDomainSettings", "NodesModifierData", "NodesModifierBake"), ""),
    **dict.fromkeys(("bNode", "bNodeSocketValueString", "CollectionObject", "CollectionChild"), ""),
    "Object": "type",
    "Collection": "id",
    "bNodeTree": "id",
    "ParticleSettings": "phystype",
}
"""The structs that are asked for -> their last field that is, "" for all."""
MOST_NAMES: Final = 200
_ROOTS: Final = ("*system_properties", "*properties")
"""Where the settings of add-ons are, since Blender 5.0 and before."""
_GPU: Final = 1


class Named(NamedTuple):
    """A file as the scene names it. `many`: it is one of a `sequence` or of `tiles`, or it is a `folder`; `needed`:
    without it the picture would be another; else it travels when it is there; `pictures`: how many were in the
    sequence when the scene was saved (0: not known)."""

    kind: str
    path: str
    many: str = ""
    needed: bool = True
    pictures: int = 0


def facts_of(blend: Blend, named: list[Named]) -> dict[str, Any]:
    """What is known of a file: its size, version, scenes (the active one first), the files that it names, warnings."""
    active = [block.get("*curscene") for block in blend.all("FileGlobal")]
    found = [block for block in blend.all("Scene") if block.code == "SC"]
    found.sort(key=lambda block: block.address not in active)
    scenes = [_scene(blend, block) for block in found[:MOST_SCENES]]
    external = list(dict.fromkeys((file.kind, file.path, file.many) for file in named if file.needed))
    sees = not found or found[0].get("*camera") or _shows_strips(blend, found[0])
    warnings = ["what it holds can't be read here: it is too new"] if blend.too_new else []
    if not sees:
        warnings.append(f"its scene {scenes[0]['name']} has no camera")
    if len(found) > MOST_SCENES:
        warnings.append(f"only {MOST_SCENES} of its {len(found)} scenes are listed")
    return {
        "size": blend.size,
        "version": blend.version,
        "scenes": scenes,
        "external": [{"kind": kind, "path": path, "many": many} for kind, path, many in external[:MOST_TOLD]],
        "external_count": len(external),
        "unbaked": scenes[0]["unbaked"] if scenes else [],
        "warnings": warnings,
    }


def _shows_strips(blend: Blend, scene: Block) -> bool:
    """Whether the frames of a scene are those of its sequencer, which needs no camera."""
    strips = any(strip.owner == scene.owner for strip in blend.all("Sequence"))
    return strips and bool(scene.first("r.scemode") & _SEQUENCER)


def _scene(blend: Blend, block: Block) -> dict[str, Any]:
    whole = {"start": "sfra", "end": "efra", "step": "frame_step", "width": "xsch", "height": "ysch", "percent": "size"}
    base, rate = block.get("r.frs_sec_base"), block.get("r.frs_sec")
    return {
        "name": block.get("id.name")[2:],
        **{fact: block.get(f"r.{field}") for fact, field in whole.items()},
        "fps": round(rate / base, 3) if 1e-3 < base < 1e6 else float(rate),
        **dict(zip(("fps_num", "fps_den"), _exact(rate, base).as_integer_ratio(), strict=True)),
        "engine": block.get("r.engine"),
        "format": _FORMATS.get(block.get("r.im_format.imtype"), ""),
        "cameras": cameras(blend, block),
        "view_layers": view_layers(blend, block),
        "unbaked": unbaked(blend, block),
        **({"device": device} if (device := device_of(blend, block)) else {}),
        **({"view": view} if (view := _first_view(blend, block)) else {}),
    }


def _exact(rate: int, base: float) -> Fraction:
    """Frames a second. The base is a number of seven digits, such as 1.001: 30 of these are 30000/1001."""
    if rate <= 0 or not 1e-3 < base < 1e6:
        return Fraction(max(rate, 1))
    return rate / Fraction(f"{base:.7g}")


def _first_view(blend: Blend, block: Block) -> str:
    """The suffix of the first view of a stereo scene whose frames are a file for each view; "" for others."""
    if not block.first("r.scemode") & _MULTIVIEW or block.first("r.im_format.views_format"):
        return ""
    both_eyes = block.first("r.views_format") == 0
    suffixes: list[str] = []
    for view in blend.linked(block.get("r.views.*first"), "SceneRenderView"):
        name, is_off = view.get("name"), view.get("viewflag") & 1
        if not is_off and (not both_eyes or name in ("left", "right")):
            suffixes.append(str(view.get("suffix")))
    return suffixes[0] if len(suffixes) > 1 and _SUFFIX.fullmatch(suffixes[0]) else ""


def view_layers(blend: Blend, scene: Block) -> list[str]:
    """The names of a scene's view layers."""
    found = [layer for layer in blend.all("ViewLayer") if layer.owner == scene.owner]
    return [str(layer.get("name")) for layer in found[:MOST_NAMES]]


def cameras(blend: Blend, scene: Block) -> list[str]:
    """The names of a scene's cameras, the one that it uses first."""
    used, members = scene.get("*camera"), objects_of(blend, scene)
    found = [thing for thing in blend.all("Object") if thing.code == "OB" and thing.address in members | {used}]
    found = [thing for thing in found if thing.get("type") == _CAMERA]
    return [thing.owner[2:] for thing in sorted(found, key=lambda thing: thing.address != used)][:MOST_NAMES]


def objects_of(blend: Blend, scene: Block) -> set[int]:
    """The addresses of the objects in a scene's collections."""
    members, children = dict[str, set[int]](), dict[str, set[int]]()
    for member in blend.all("CollectionObject"):
        members.setdefault(member.owner, set()).add(member.get("*ob"))
    for member in blend.all("CollectionChild"):
        children.setdefault(member.owner, set()).add(member.get("*collection"))
    todo, seen, found = [scene.owner], {scene.owner}, set[int]()
    while todo:
        owner = todo.pop()
        found |= members.get(owner, set())
        for address in children.get(owner, ()):
            collection = blend.at(address, "Collection")
            if collection is not None and collection.owner not in seen:
                seen.add(collection.owner)
                todo.append(collection.owner)
    return found


def unbaked(blend: Blend, scene: Block) -> list[str]:
    """The simulations of a scene that nobody baked, each with its object's name: a machine that begins in their middle
    shows something else."""
    members = objects_of(blend, scene)
    names = {thing.owner: thing.owner[2:] for thing in blend.all("Object") if thing.address in members}
    found = dict.fromkeys(f"{kind} of {names[owner]}" for kind, owner in _simulations(blend) if owner in names)
    if any(owner == scene.owner for owner in _rigid_bodies(blend)):
        found["rigid bodies"] = None
    return list(found)[:MOST_NAMES]


def _simulations(blend: Blend) -> Iterator[tuple[str, str]]:
    """What is simulated, and the datablock to which it belongs."""
    for struct, (kind, field) in _POINT_CACHES.items():
        for block in blend.all(struct):
            if _is_rendered(block) and _is_cold(blend, block.first(field)):
                yield kind, block.owner
    for system in blend.all("ParticleSystem"):
        settings = blend.at(system.get("*part"), "ParticleSettings")
        if settings is None or settings.get("type") != _EMITTER or settings.get("phystype") == _NO_PHYSICS:
            continue
        if _is_cold(blend, system.get("*pointcache")):
            yield "particles", system.owner
    for fluid in blend.all("FluidDomainSettings"):
        if not is_fluid_baked(fluid):
            yield "fluid", fluid.owner
    yield from _simulation_nodes(blend)


def _is_rendered(block: Block) -> bool:
    return not block.has("modifier.mode") or bool(block.get("modifier.mode") & _RENDERED)


def _is_cold(blend: Blend, address: int) -> bool:
    """Whether a point cache is there and was not baked."""
    cache = blend.at(address, "PointCache")
    return cache is not None and not cache.get("flag") & (_BAKED | _EXTERNAL)


def _rigid_bodies(blend: Blend) -> Iterator[str]:
    for world in blend.all("RigidBodyWorld"):
        shared = blend.at(world.first("*shared"), "RigidBodyWorld_Shared")
        cache = shared.get("*pointcache") if shared is not None else world.first("*pointcache")
        if world.get("*group") and _is_cold(blend, cache):
            yield world.owner


def _simulation_nodes(blend: Blend) -> Iterator[tuple[str, str]]:
    """Simulation zones in geometry nodes whose states are kept nowhere."""
    inner = dict[str, set[int]]()
    simulate = set[str]()
    for node in blend.all("bNode"):
        called = str(node.first("idname"))
        if called == _SIMULATION:
            simulate.add(node.owner)
        elif called == _GROUP:
            inner.setdefault(node.owner, set()).add(node.get("*id"))
    for modifier in blend.all("NodesModifierData") if simulate else ():
        todo, seen = [modifier.get("*node_group")], set[int]()
        while todo:
            tree = blend.at(address := todo.pop(), "bNodeTree")
            if tree is None or address in seen:
                continue
            seen.add(address)
            todo += inner.get(tree.owner, ())
            if tree.owner in simulate and _is_rendered(modifier) and not _has_bakes(blend, modifier):
                yield "simulation nodes", modifier.owner
                break


def _has_bakes(blend: Blend, modifier: Block) -> bool:
    bakes = blend.each(modifier.first("*bakes"), "NodesModifierBake")
    kept = [bake.first("*packed") or bake.first("bake_size") > 0 for bake in bakes]
    return bool(kept) and all(kept)


def device_of(blend: Blend, scene: Block) -> str:
    """`gpu` when the scene asks for graphics cards, else "". It is no field of the scene but a setting of the add-on
    Cycles among the scene's properties: in a group `cycles`, a number `device`, only where somebody changed it."""
    for root in _ROOTS:
        group = blend.at(scene.get(f"id.{root}"), "IDProperty") if scene.has(f"id.{root}") else None
        cycles = _member(blend, group, "cycles")
        device = _member(blend, cycles, "device")
        if device is not None and device.get("data.val") == _GPU:
            return "gpu"
    return ""


def _member(blend: Blend, group: Block | None, name: str) -> Block | None:
    """The property of this name in a group."""
    members = blend.linked(group.get("data.group.*first"), "IDProperty") if group is not None else ()
    return next((member for member in members if member.get("name") == name), None)


def named_files(blend: Blend, scene: str) -> Iterator[Named]:
    """Everything that a file names. `scene`: its own name, after which Blender calls the folder of its caches."""
    read = (_datablocks(blend), _single_files(blend), _strips(blend), _caches(blend, scene), _node_bakes(blend))
    for named in chain(*read, _imports(blend)):
        path = named.path.replace("\\", "/")
        if path.strip("/"):
            server = named.path.startswith("\\\\")  # `//` is what is seen from the scene
            yield named._replace(path=f"\\\\{path[2:]}" if server else path)


def _datablocks(blend: Blend) -> Iterator[Named]:
    for struct, kind in _DATABLOCKS.items():
        for block in blend.all(struct):
            if len(block.code) != 2:
                continue
            path = str(block.first("name", "filepath"))
            packed = block.first("packedfiles.*first", "*packedfile")
            source = block.first("source") if struct in ("Image", "MovieClip") else 0
            if struct == "MovieClip":
                many = "sequence" if source == _CLIP_SEQUENCE else ""
                yield from _proxies(block)
            else:
                many = _MANY.get(source, "") or ("sequence" if block.first("is_sequence") else "")
            generated = struct == "Image" and source in (_GENERATED, _VIEWER)
            if path != "<builtin>" and not packed and not generated:
                pictures = block.first("len") if struct == "MovieClip" and many else 0
                yield Named(kind, path, many, pictures=pictures)


def _proxies(clip: Block) -> Iterator[Named]:
    if clip.first("flag") & _CLIP_OWN_PROXIES == _CLIP_OWN_PROXIES:
        yield Named("proxies", str(clip.first("proxy.dir")), "folder", needed=False)


def _single_files(blend: Blend) -> Iterator[Named]:
    for struct, (kind, field) in _FIELDS.items():
        for block in blend.all(struct):
            if block.has(field):
                yield Named(kind, str(block.get(field)))


def _strips(blend: Blend) -> Iterator[Named]:
    """Every picture of a strip, and those of its other eyes."""
    suffixes = {str(view.get("suffix")) for view in blend.all("SceneRenderView")}
    for strip in blend.all("Sequence"):
        kind, flag = strip.get("type"), strip.get("flag")
        shown = blend.at(strip.get("*strip"), "Strip")
        if kind not in (_IMAGES, _MOVIE) or shown is None:
            continue
        for element in blend.each(shown.get("*stripdata"), "StripElem"):
            path = posixpath.join(str(shown.get("dir")).replace("\\", "/"), str(element.first("name", "filename")))
            views = _other_views(path, suffixes) if flag & _VIEWS and not strip.first("views_format") else [path]
            yield from (Named("strip", picture, needed=not flag & _MUTED) for picture in views)
            if kind == _MOVIE:
                break


def _other_views(path: str, suffixes: set[str]) -> list[str]:
    """A picture of one eye, and those of the others."""
    stem, extension = posixpath.splitext(path)
    longest_first = sorted(filter(None, suffixes), key=len, reverse=True)
    own = next(filter(stem.endswith, longest_first), "")
    return [f"{stem.removesuffix(own)}{suffix}{extension}" for suffix in sorted(suffixes)] if own else [path]


def _caches(blend: Blend, scene: str) -> Iterator[Named]:
    folder = f"//blendcache_{posixpath.splitext(posixpath.basename(scene))[0]}"  # where Blender keeps those on the disk
    for cache in blend.all("PointCache"):
        flag = cache.get("flag")
        if flag & _EXTERNAL:
            yield Named("simulation", str(cache.get("path")), "folder")
        elif flag & _ON_DISK:
            yield Named("simulation", folder, "folder", needed=bool(flag & _BAKED))
    for ocean in blend.all("OceanModifierData"):
        yield Named("ocean", str(ocean.get("cachepath")), "folder", needed=bool(ocean.first("cached")))
    for fluid in blend.all("FluidDomainSettings"):
        yield Named("fluid", str(fluid.get("cache_directory")), "folder", needed=is_fluid_baked(fluid))


def is_fluid_baked(fluid: Block) -> bool:
    """Whether a domain's data were baked, so that Blender only reads them."""
    return bool(fluid.first("cache_flag") & _FLUID_BAKED)


def _node_bakes(blend: Blend) -> Iterator[Named]:
    """Bakes of geometry nodes that lie on the disk: of one node, or of all of a modifier."""
    for modifier in blend.all("NodesModifierData"):
        whole, _ = blend.texts.get(modifier.first("*simulation_bake_directory", "*bake_directory"), ("", ""))
        yield Named("bake", whole, "folder", needed=False)
        for bake in blend.each(modifier.first("*bakes"), "NodesModifierBake"):
            own, _ = blend.texts.get(bake.get("*directory"), ("", ""))
            target = bake.first("bake_target") or modifier.first("bake_target")
            on_disk = target == _DISK or not bake.has("bake_target")
            folder = own if bake.get("flag") & _OWN_FOLDER else posixpath.join(whole, str(bake.get("id")))
            if on_disk and folder and (own or whole):
                yield Named("bake", folder, "folder", needed=bool(bake.first("bake_size")))


def _imports(blend: Blend) -> Iterator[Named]:
    """Files that nodes import: what stands in a socket for paths, and any text that may have come to it on another way
    (a group's input, a text node, a property)."""
    imports = any(str(node.first("idname")).startswith("GeometryNodeImport") for node in blend.all("bNode"))
    for socket in blend.all("bNodeSocketValueString"):
        path = str(socket.get("value"))
        if socket.first("subtype") == _FILE_PATH:
            yield Named("import", path)
        elif _looks_like_path(path):
            yield Named("import", path, needed=imports and path.casefold().endswith(_GEOMETRY))
    for text, _ in blend.texts.values():
        if _looks_like_path(text):
            yield Named("text", text, needed=imports and text.casefold().endswith(_GEOMETRY))


def _looks_like_path(text: str) -> bool:
    return re.match(r"//|/|\\\\|[A-Za-z]:[\\/]", text) is not None and len(text) < 1024
