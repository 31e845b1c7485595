"""Freestyle's SVG files: an add-on of Blender's own writes them, which a Blender without settings has switched off."""

import importlib.util
import os
from typing import Any, Final

from .speech import warn

ADD_ON: Final = "render_freestyle_svg"
"""Comes with every Blender before 4.2."""


def export_svg(bpy: Any, scene: Any) -> None:
    """Switch the add-on on when the scene wants SVG files; a warning where this Blender does not have it."""
    properties = getattr(scene, "bl_system_properties_get", lambda: scene)()  # of add-ons, since Blender 5.0
    wanted = properties.get("svg_export") if properties is not None else None
    if not (scene.render.use_freestyle and wanted and wanted.get("use_svg_export")):
        return
    if importlib.util.find_spec(ADD_ON) is not None:
        bpy.ops.preferences.addon_enable(module=ADD_ON)
    else:
        warn("The scene exports Freestyle's lines as SVG: this Blender lacks the add-on, so no SVG file is written.")


def settle_svg(path: str, frame: int) -> None:
    """Give the SVG file of a frame, whose picture is at `path`, the frame's name: the add-on puts the number behind the
    whole name."""
    written = f"{path}{frame:04d}.svg"
    if os.path.isfile(written):
        os.replace(written, os.path.splitext(path)[0] + ".svg")
