"""Bakes of geometry nodes on the disk. Blender opens their descriptions for writing; an engine in a box may only read
what the task was submitted with, and then Blender shows nothing and says nothing."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any, Final

from .speech import warn

_DESCRIPTIONS: Final = ".json"


def copy_bakes(bpy: Any) -> None:
    """Give every object that has bakes on the disk a copy of them, in this run's temporary directory.

    The object itself becomes a copy too: Blender looked for its bakes while it loaded the scene, and never looks again.
    """
    copies: dict[str, str] = {}
    for thing in list(bpy.data.objects):
        there = [_path(bpy, thing, owner, name) for owner, name in _named(thing)]
        for path in there:
            if path not in copies and _holds_descriptions(path):
                copies[path] = _copy(path, bpy.app.tempdir)
        if not any(path in copies for path in there):
            continue
        other = thing.copy()
        thing.user_remap(other)
        if thing.users > thing.use_fake_user:
            warn(f"the bake of {thing.name} can't be read from a library: pack it (Bake Target: Packed)")
        for owner, name in _named(other):
            setattr(owner, name, copies.get(_path(bpy, thing, owner, name), getattr(owner, name)))


def _named(thing: Any) -> Iterator[tuple[Any, str]]:
    """What names a directory of bakes, and in which property."""
    for modifier in thing.modifiers:
        if modifier.type == "NODES":
            owners = (modifier, *getattr(modifier, "bakes", ()))
            names = ("bake_directory", "simulation_bake_directory", "directory")  # the second one until Blender 4.0
            yield from ((owner, name) for owner in owners for name in names if getattr(owner, name, ""))


def _path(bpy: Any, thing: Any, owner: Any, name: str) -> str:
    return os.path.normpath(str(bpy.path.abspath(getattr(owner, name), library=thing.library)))


def _holds_descriptions(path: str) -> bool:
    return any(name.endswith(_DESCRIPTIONS) for _, _, names in os.walk(path) for name in names)


def _copy(path: str, temporary: str) -> str:
    """A directory with the same files: descriptions are copied, the rest is linked to."""

    def take(source: str, target: str) -> None:
        if source.endswith(_DESCRIPTIONS):
            shutil.copyfile(source, target)
        else:
            os.symlink(source, target)

    copy = os.path.join(tempfile.mkdtemp(prefix="bake-", dir=temporary), "bake")
    shutil.copytree(path, copy, copy_function=take, symlinks=True)
    return copy
