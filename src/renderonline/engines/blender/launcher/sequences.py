"""Pictures of image sequences that a scene shows and that are not there: Blender shows its colour for them, and says
nothing."""

import os
from collections.abc import Iterator
from typing import Any, Final

from .inputs import split_name
from .speech import several

MOST_FRAMES: Final = 100_000


def lacking_pictures(bpy: Any) -> Iterator[str]:
    """A sentence for each node that lacks pictures in the frames of a scene."""
    scenes = [(scene.frame_start, scene.frame_end) for scene in bpy.data.scenes]
    first, last = min(start for start, _ in scenes), max(end for _, end in scenes)
    for tree, owner in trees(bpy):
        for node in tree.nodes:
            image = getattr(node, "image", None)
            if image is not None and image.source == "SEQUENCE" and not image.packed_files:
                user = getattr(node, "image_user", node)
                if not hasattr(user, "frame_duration"):
                    continue
                path = str(bpy.path.abspath(image.filepath, library=image.library))
                found = list(_lacking(path, user, range(first, min(last, first + MOST_FRAMES) + 1)))
                if found:
                    yield f"{several(found, 3)} of {owner.name} {'are' if found[1:] else 'is'} not there"


def _lacking(path: str, user: Any, frames: range) -> Iterator[str]:
    """The pictures of a sequence that these frames would show (as Blender counts: frame, start and offset)."""
    folder, base = os.path.split(path)
    begin, mark, end = split_name(base)
    try:
        there = set(os.listdir(folder))
    except OSError:
        return
    if mark != "#" or not any(name.startswith(begin) for name in there):
        return  # it is told already that nothing of it is there
    width, length = len(base) - len(begin) - len(end), user.frame_duration
    shown = dict[str, None]()
    for frame in frames if length > 0 else ():
        at = frame - user.frame_start + 1
        at = (at - 1) % length + 1 if user.use_cyclic else min(max(at, 1), length)
        shown[f"{begin}{at + user.frame_offset:0{width}}{end}"] = None
    yield from (name for name in shown if name not in there)


def trees(bpy: Any) -> Iterator[tuple[Any, Any]]:
    """All trees of nodes, each with the datablock to which it belongs."""
    for group in bpy.data.node_groups:
        yield group, group
    for kind in ("materials", "worlds", "lights", "linestyles", "textures", "scenes"):
        for one in getattr(bpy.data, kind):
            tree = getattr(one, "node_tree", None)
            if tree is not None:
                yield tree, one
