"""The scene's sound, mixed down to one file beside the frames: films are made of frames, and get their sound from it.

The attempt that renders the task's first frame writes it, before its frames, for the time that the task's frames last.
"""

import os
from collections.abc import Iterator
from typing import Any, Final

from .speech import one_line, say, warn

NAME: Final = "sound.flac"
FIRST: Final = "RENDERONLINE_BLENDER_FIRST"
LAST: Final = "RENDERONLINE_BLENDER_LAST"
"""Variables with the first and the last frame of the whole task."""


def write_sound(bpy: Any, scene: Any, directory: str, first: int) -> None:
    """Mix the scene's sound down into `directory`, if it has any and `first` is the task's first frame."""
    try:
        begin, end = int(os.environ.get(FIRST, "")), int(os.environ.get(LAST, ""))
    except ValueError:  # no farm asks for it
        return
    if not directory or first != begin or not has_sound(scene):
        return
    path, own = os.path.join(directory, NAME), (scene.frame_start, scene.frame_end)
    try:
        os.makedirs(directory, exist_ok=True)
        # The end first, where it is moved away from the start: Blender keeps them in order.
        scene.frame_end = max(end, scene.frame_end)
        scene.frame_start, scene.frame_end = begin, end
        with bpy.context.temp_override(scene=scene):
            bpy.ops.sound.mixdown(filepath=path, container="FLAC", codec="FLAC", format="S16")
    except (RuntimeError, TypeError, AttributeError, OSError) as error:
        warn(f"The scene's sound could not be mixed: {one_line(error)}")
        return
    finally:
        scene.frame_end = max(own[1], scene.frame_end)
        scene.frame_start, scene.frame_end = own
    say(f"Saved: '{path}'")


def has_sound(scene: Any, seen: frozenset[str] = frozenset()) -> bool:
    """Whether anything of a scene, or of the scenes in its strips, is to be heard."""
    if any(item.type == "SPEAKER" and item.data.sound and not item.data.muted for item in scene.objects):
        return True
    for strip in _strips(scene):
        if strip.mute:
            continue
        if strip.type == "SOUND":
            return True
        other = getattr(strip, "scene", None) if strip.type == "SCENE" else None
        if other is not None and other.name not in seen and has_sound(other, seen | {scene.name}):
            return True
    return False


def _strips(scene: Any) -> Iterator[Any]:
    editor = scene.sequence_editor
    if editor is not None:  # strips_all is their name since Blender 4.4
        yield from editor.strips_all if hasattr(editor, "strips_all") else editor.sequences_all
