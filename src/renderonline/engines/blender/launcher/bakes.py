"""Bakes of geometry nodes on the disk. Blender opens their descriptions for writing; an engine in a box may only read
what the task was submitted with, and then Blender shows nothing and says nothing."""

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from .speech import warn

MOST_FILES: Final = 100_000
"""Files and folders of a directory that is copied: a scene may name any, such as the whole disk."""
_DESCRIPTIONS: Final = ".json"


def copy_bakes(bpy: Any) -> None:
    """Give every object that has bakes on the disk a copy of them, in this run's temporary directory.

    The object itself becomes a copy too: Blender looked for its bakes while it loaded the scene, and never looks again.
    """
    copies: dict[str, str] = {}
    for thing in list(bpy.data.objects):
        # Read before the copy is made: a copied modifier has no directory any more.
        there = [(names, _path(bpy, thing, owner, name)) for names, (owner, name) in _named(thing).items()]
        for _, path in there:
            if path not in copies:
                copies[path] = copied(path, bpy.app.tempdir)
        if not any(copies[path] for _, path in there):
            continue
        other = thing.copy()
        for (modifier, bake, name), path in there:
            owner = other.modifiers[modifier]
            setattr(owner if bake is None else owner.bakes[bake], name, copies[path] or path)
        thing.user_remap(other)
        if thing.users > thing.use_fake_user:
            warn(f"the bake of {thing.name} can't be read from a library: pack it (Bake Target: Packed)")


def unbaked(scene: Any) -> list[str]:
    """The simulations of a scene that nobody baked, but those of geometry nodes: they show no bake to Python."""
    found: dict[str, None] = {}
    for thing in scene.objects:
        found |= {f"{kind} of {thing.name}": None for kind, cold in _simulations(thing) if cold}
    world = scene.rigidbody_world
    if world is not None and world.collection is not None and _is_cold(world.point_cache):
        found["rigid bodies"] = None
    return list(found)


def _simulations(thing: Any) -> Iterator[tuple[str, bool]]:
    for modifier in thing.modifiers:
        if not modifier.show_render:
            continue
        if modifier.type in ("CLOTH", "SOFT_BODY"):
            yield modifier.type.lower().replace("_", " "), _is_cold(modifier.point_cache)
        elif modifier.type == "DYNAMIC_PAINT" and modifier.canvas_settings is not None:
            surfaces = modifier.canvas_settings.canvas_surfaces
            yield "dynamic paint", any(_is_cold(one.point_cache) for one in surfaces)
        elif modifier.type == "FLUID" and modifier.fluid_type == "DOMAIN":
            yield "fluid", not modifier.domain_settings.has_cache_baked_data
    for system in thing.particle_systems:
        if system.settings.type == "EMITTER" and system.settings.physics_type != "NO":
            yield "particles", _is_cold(system.point_cache)


def _is_cold(cache: Any) -> bool:
    return cache is not None and not (cache.is_baked or cache.use_external)


def _named(thing: Any) -> dict[tuple[int, int | None, str], tuple[Any, str]]:
    """What names a directory of bakes: the places of a modifier and of one of its bakes, and the property."""
    found: dict[tuple[int, int | None, str], tuple[Any, str]] = {}
    for number, modifier in enumerate(thing.modifiers):
        if modifier.type != "NODES":
            continue
        for place, owner in ((None, modifier), *enumerate(getattr(modifier, "bakes", ()))):
            for name in (
                "bake_directory",
                "simulation_bake_directory",
                "directory",
            ):  # the second one until Blender 4.0
                if getattr(owner, name, ""):
                    found[number, place, name] = (owner, name)
    return found


def _path(bpy: Any, thing: Any, owner: Any, name: str) -> str:
    return os.path.normpath(str(bpy.path.abspath(getattr(owner, name), library=thing.library)))


def copied(path: str, temporary: str) -> str:
    """A directory with the same files: descriptions are copied, the rest is linked to. "" where none are needed."""
    inside = list(islice(_inside(path), MOST_FILES + 1))
    if len(inside) > MOST_FILES:
        warn(f"the bakes in {path} can't be read: more than {MOST_FILES} files and folders are in it")
        return ""
    if not any(one.endswith(_DESCRIPTIONS) for one in inside):
        return ""
    copy = tempfile.mkdtemp(prefix="bake-", dir=temporary)
    try:
        for one in inside:
            target, mode = os.path.join(copy, os.path.relpath(one, path)), os.lstat(one).st_mode
            if stat.S_ISDIR(mode):
                os.makedirs(target)
            elif one.endswith(_DESCRIPTIONS) and stat.S_ISREG(mode):
                shutil.copyfile(one, target)
            else:
                os.symlink(one, target)
    except OSError as error:
        warn(f"the bakes in {path} can't be read: {error}")
        return ""
    return copy


def _inside(path: str) -> Iterator[str]:
    """All that lies in a directory, folders before what is in them; links are not followed."""
    for folder, folders, names in os.walk(path):
        for name in (*folders, *names):
            yield os.path.join(folder, name)
