"""What a .blend file says of itself, and the files that it needs: for the child that reads strangers' files
(R13 Hostile content)."""

import posixpath
import re
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any, Final

from renderonline.engines.blender import needed_files
from renderonline.engines.blender.blend_file import Blend, Block, BrokenScene, Left, opened, several, understood
from renderonline.engines.blender.needed_files import MOST_INPUTS, Needed
from renderonline.engines.blender.scene_paths import KINDS as PATHS
from renderonline.engines.blender.scene_paths import Named, named_files

MOST_SCENES, MOST_TOLD = 64, 500
"""MOST_TOLD: names of files that an answer lists; a warning has the number of the others."""

_FORMATS: Final[Mapping[int, str]] = (
    {0: "TGA", 1: "IRIS", 4: "JPEG", 14: "TGA", 15: "AVI_RAW", 16: "AVI_JPEG", 17: "PNG", 20: "BMP", 21: "HDR"}
    | {22: "TIFF", 23: "OPEN_EXR", 24: "FFMPEG", 26: "CINEON", 27: "DPX", 28: "OPEN_EXR_MULTILAYER"}
    | {30: "JP2", 35: "WEBP", 36: "AVIF"}
)
_SHOWN: Final = 5
_SEQUENCER, _MULTIVIEW = 1 << 0, 1 << 21
"""Of a scene's render modes: its sequencer is shown, if it has strips; it has views."""
_MOST_VIEWS: Final = 64
_SUFFIX: Final = re.compile("[A-Za-z0-9 ()_.-]{1,40}")
_CAMERA: Final = 11
"""Type of an object."""
_EMITTER, _NO_PHYSICS = 0, 0
"""Type of a particle system, and its kind of physics."""
_RENDERED: Final = 1 << 1
"""Mode of a modifier."""
_BAKED, _EXTERNAL = 1 << 0, 1 << 9
"""Flags of a point cache."""
_DATA_BAKED: Final = 1 << 1
"""Flag of a fluid's cache."""
_SIMULATION, _GROUP = "GeometryNodeSimulationOutput", "GeometryNodeGroup"
_POINT_CACHES: Final = {
    "ClothModifierData": ("cloth", "*point_cache"),
    "SoftBody_Shared": ("soft body", "*pointcache"),
    "DynamicPaintSurface": ("dynamic paint", "*pointcache"),
}
_LAST_FIELDS: Final = {"Object": "type", "Collection": "id", "bNodeTree": "id", "ParticleSettings": "phystype"}
KINDS: Final = {
    **PATHS,
    **dict.fromkeys((*_POINT_CACHES, "PointCache", "ParticleSystem", "FluidDomainSettings", "RigidBodyWorld"), ""),
    **dict.fromkeys(("RigidBodyWorld_Shared", "CollectionObject", "CollectionChild", "ViewLayer"), ""),
    **dict.fromkeys(("NodesModifierData", "NodesModifierBake", "bNode"), ""),
    **_LAST_FIELDS,
}
"""The structs that are asked for -> their last field that is, "" for all."""
MOST_NAMES: Final = 200
_ROOTS: Final = ("*system_properties", "*properties")
"""Where the settings of add-ons are, since Blender 5.0 and before."""
_GPU: Final = 1
_MOST_PROPERTIES: Final = 10_000
"""Properties of one group that are looked at; their list may lead in a circle."""


def survey(scene: str, files: str | Mapping[str, str], most_inputs: int = MOST_INPUTS) -> dict[str, Any]:
    """Read a scene, and look for the files that it needs. JSON for the parent: `broken` (why), or `facts`, `inputs`
    (names of files that are there, at most so many), `missing` (that are not), `outside` (as the scene names them) and
    `whole_paths` (whether a file that is there was named so).

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
    inputs = [one for one in needed.there if one != scene]
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
        return {name: _shown(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_shown(one) for one in value]
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
                facts = facts or _facts(blend, named)
        except BrokenScene as error:
            told = f"its library {name} is broken: {error}" if facts else str(error)
            raise BrokenScene(told) from error
        for library in needed.look(name, named):
            if library in seen:
                continue
            if len(seen) > needed_files.MOST_LIBRARIES:
                left.skip(f"more than {needed_files.MOST_LIBRARIES} libraries", library)
                continue
            seen.add(library)
            todo.append(library)
    return facts


def read(path: str, name: str = "") -> dict[str, Any]:
    """The facts of one file: size, version, scenes (the active one first), external files as it names them, warnings.
    `BrokenScene` for whatever is wrong with its content."""
    left = Left()
    blend = opened(path, KINDS, name, left)
    with understood():
        facts = _facts(blend, list(named_files(blend, name)))
    facts["warnings"] += left.warnings()
    return facts


def _facts(blend: Blend, named: list[Named]) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": blend.size, "version": blend.version}
    if blend.dna is None:
        warnings = ["what it holds can't be read here: it is too new"] if blend.too_new else []
        return {**facts, "scenes": [], "external": [], "external_count": 0, "unbaked": [], "warnings": warnings}
    dna = blend.dna
    active = [dna.get(block, "*curscene") for block in blend.all("FileGlobal")]
    found = sorted((one for one in blend.all("Scene") if one.code == "SC"), key=lambda one: one.address not in active)
    scenes = [_scene(blend, block) for block in found[:MOST_SCENES]]
    external = list(dict.fromkeys((one.kind, one.path, one.many) for one in named if one.needed))
    sees = not found or dna.get(found[0], "*camera") or _shows_strips(blend, found[0])
    warnings = [] if sees else [f"its scene {scenes[0]['name']} has no camera"]
    if len(found) > MOST_SCENES:
        warnings.append(f"only {MOST_SCENES} of its {len(found)} scenes are listed")
    told = [{"kind": kind, "path": path, "many": many} for kind, path, many in external[:MOST_TOLD]]
    parts = {"external": told, "external_count": len(external), "unbaked": scenes[0]["unbaked"] if scenes else []}
    return {**facts, "scenes": scenes, **parts, "warnings": warnings}


def _shows_strips(blend: Blend, scene: Block) -> bool:
    """Whether the frames of a scene are those of its sequencer, which needs no camera."""
    dna = blend.dna
    assert dna is not None
    strips = any(one.owner == scene.owner for one in blend.all("Sequence"))
    return strips and bool(dna.first(scene, ("r", "scemode")) & _SEQUENCER)


def _scene(blend: Blend, block: Block) -> dict[str, Any]:
    dna = blend.dna
    assert dna is not None
    whole = {"start": "sfra", "end": "efra", "step": "frame_step", "width": "xsch", "height": "ysch", "percent": "size"}
    base, rate = dna.get(block, "r", "frs_sec_base"), dna.get(block, "r", "frs_sec")
    return {
        "name": dna.get(block, "id", "name")[2:],
        **{fact: dna.get(block, "r", field) for fact, field in whole.items()},
        "fps": round(rate / base, 3) if 1e-3 < base < 1e6 else float(rate),
        **dict(zip(("fps_num", "fps_den"), _exact(rate, base).as_integer_ratio(), strict=True)),
        "engine": dna.get(block, "r", "engine"),
        "format": _FORMATS.get(dna.get(block, "r", "im_format", "imtype"), ""),
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
    dna = blend.dna
    assert dna is not None
    if not dna.first(block, ("r", "scemode")) & _MULTIVIEW or dna.first(block, ("r", "im_format", "views_format")):
        return ""
    both_eyes = dna.first(block, ("r", "views_format")) == 0
    suffixes: list[str] = []
    view = blend.at(dna.get(block, "r", "views", "*first"), "SceneRenderView")
    while view is not None and len(suffixes) < _MOST_VIEWS:
        name, is_off = dna.get(view, "name"), dna.get(view, "viewflag") & 1
        if not is_off and (not both_eyes or name in ("left", "right")):
            suffixes.append(str(dna.get(view, "suffix")))
        view = blend.at(dna.get(view, "*next"), "SceneRenderView")
    return suffixes[0] if len(suffixes) > 1 and _SUFFIX.fullmatch(suffixes[0]) else ""


def view_layers(blend: Blend, scene: Block) -> list[str]:
    """The names of a scene's view layers."""
    assert blend.dna is not None
    found = [one for one in blend.all("ViewLayer") if one.owner == scene.owner]
    return [str(blend.dna.get(one, "name")) for one in found[:MOST_NAMES]]


def cameras(blend: Blend, scene: Block) -> list[str]:
    """The names of a scene's cameras, the one that it uses first."""
    dna = blend.dna
    assert dna is not None
    used, members = dna.get(scene, "*camera"), objects_of(blend, scene)
    found = [one for one in blend.all("Object") if one.code == "OB" and one.address in members | {used}]
    found = [one for one in found if dna.get(one, "type") == _CAMERA]
    return [one.owner[2:] for one in sorted(found, key=lambda one: one.address != used)][:MOST_NAMES]


def objects_of(blend: Blend, scene: Block) -> set[int]:
    """The addresses of the objects in a scene's collections."""
    dna = blend.dna
    assert dna is not None
    members, children = dict[str, set[int]](), dict[str, set[int]]()
    for one in blend.all("CollectionObject"):
        members.setdefault(one.owner, set()).add(dna.get(one, "*ob"))
    for one in blend.all("CollectionChild"):
        children.setdefault(one.owner, set()).add(dna.get(one, "*collection"))
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
    names = {one.owner: one.owner[2:] for one in blend.all("Object") if one.address in members}
    found = dict.fromkeys(f"{kind} of {names[owner]}" for kind, owner in _simulations(blend) if owner in names)
    if any(owner == scene.owner for owner in _rigid_bodies(blend)):
        found["rigid bodies"] = None
    return list(found)[:MOST_NAMES]


def _simulations(blend: Blend) -> Iterator[tuple[str, str]]:
    """What is simulated, and the datablock to which it belongs."""
    dna = blend.dna
    assert dna is not None
    for struct, (kind, field) in _POINT_CACHES.items():
        for one in blend.all(struct):
            if _is_rendered(blend, one) and _is_cold(blend, dna.first(one, (field,))):
                yield kind, one.owner
    for system in blend.all("ParticleSystem"):
        settings = blend.at(dna.get(system, "*part"), "ParticleSettings")
        if settings is None or dna.get(settings, "type") != _EMITTER or dna.get(settings, "phystype") == _NO_PHYSICS:
            continue
        if _is_cold(blend, dna.get(system, "*pointcache")):
            yield "particles", system.owner
    for fluid in blend.all("FluidDomainSettings"):
        if not dna.first(fluid, ("cache_flag",)) & _DATA_BAKED:
            yield "fluid", fluid.owner
    yield from _simulation_nodes(blend)


def _is_rendered(blend: Blend, block: Block) -> bool:
    assert blend.dna is not None
    return not blend.dna.has(block, "modifier", "mode") or bool(blend.dna.get(block, "modifier", "mode") & _RENDERED)


def _is_cold(blend: Blend, address: int) -> bool:
    """Whether a point cache is there and was not baked."""
    cache = blend.at(address, "PointCache")
    return cache is not None and blend.dna is not None and not blend.dna.get(cache, "flag") & (_BAKED | _EXTERNAL)


def _rigid_bodies(blend: Blend) -> Iterator[str]:
    dna = blend.dna
    assert dna is not None
    for world in blend.all("RigidBodyWorld"):
        shared = blend.at(dna.first(world, ("*shared",)), "RigidBodyWorld_Shared")
        cache = dna.get(shared, "*pointcache") if shared is not None else dna.first(world, ("*pointcache",))
        if dna.get(world, "*group") and _is_cold(blend, cache):
            yield world.owner


def _simulation_nodes(blend: Blend) -> Iterator[tuple[str, str]]:
    """Simulation zones in geometry nodes whose states are kept nowhere."""
    dna = blend.dna
    assert dna is not None
    inner = dict[str, set[int]]()
    simulate = set[str]()
    for node in blend.all("bNode"):
        called = str(dna.first(node, ("idname",)))
        if called == _SIMULATION:
            simulate.add(node.owner)
        elif called == _GROUP:
            inner.setdefault(node.owner, set()).add(dna.get(node, "*id"))
    for modifier in blend.all("NodesModifierData") if simulate else ():
        todo, seen = [dna.get(modifier, "*node_group")], set[int]()
        while todo:
            tree = blend.at(address := todo.pop(), "bNodeTree")
            if tree is None or address in seen:
                continue
            seen.add(address)
            todo += inner.get(tree.owner, ())
            if tree.owner in simulate and _is_rendered(blend, modifier) and not _has_bakes(blend, modifier):
                yield "simulation nodes", modifier.owner
                break


def _has_bakes(blend: Blend, modifier: Block) -> bool:
    dna = blend.dna
    assert dna is not None
    bakes = blend.at(dna.first(modifier, ("*bakes",)), "NodesModifierBake")
    each = list(blend.each(bakes)) if bakes is not None else []
    kept = [dna.first(one, ("*packed",)) or dna.first(one, ("bake_size",)) > 0 for one in each]
    return bool(kept) and all(kept)


def device_of(blend: Blend, scene: Block) -> str:
    """`gpu` when the scene asks for graphics cards, else "". It is no field of the scene but a setting of the add-on
    Cycles among the scene's properties: in a group `cycles`, a number `device`, only where somebody changed it."""
    dna = blend.dna
    assert dna is not None
    for root in _ROOTS:
        group = blend.at(dna.get(scene, "id", root), "IDProperty") if dna.has(scene, "id", root) else None
        cycles = _member(blend, group, "cycles")
        device = _member(blend, cycles, "device")
        if device is not None and dna.get(device, "data", "val") == _GPU:
            return "gpu"
    return ""


def _member(blend: Blend, group: Block | None, name: str) -> Block | None:
    """The property of this name in a group."""
    dna = blend.dna
    assert dna is not None
    found = None if group is None else blend.at(dna.get(group, "data", "group", "*first"), "IDProperty")
    for _ in range(_MOST_PROPERTIES):
        if found is None or dna.get(found, "name") == name:
            return found
        found = blend.at(dna.get(found, "*next"), "IDProperty")
    return None
