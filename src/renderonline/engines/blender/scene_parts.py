"""What a scene of a .blend is made of, as far as a submission asks: its cameras, view layers, and simulations that were
not baked, so that a machine that begins in their middle shows something else."""

from collections.abc import Iterator
from typing import Final

from renderonline.engines.blender.blend_file import Blend, Block

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
    **dict.fromkeys((*_POINT_CACHES, "PointCache", "ParticleSystem", "FluidDomainSettings", "RigidBodyWorld"), ""),
    **dict.fromkeys(("RigidBodyWorld_Shared", "CollectionObject", "CollectionChild", "ViewLayer"), ""),
    **dict.fromkeys(("NodesModifierData", "NodesModifierBake", "bNode"), ""),
    **_LAST_FIELDS,
}
"""The structs that are asked for -> their last field that is, "" for all."""
MOST_NAMES: Final = 200


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
    """The simulations of a scene that nobody baked, each with its object's name."""
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
