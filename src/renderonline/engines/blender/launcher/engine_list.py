"""Which render engines this Blender has, told as Blender itself tells it (`-E help`)."""

import re
from typing import Any

from .speech import say


def list_engines(bpy: Any) -> None:
    """Print their names, one a line. What the module shows as the choices are only its own: those of add-ons are named
    where a name is refused."""
    say("Blender Engine Listing:")
    try:
        bpy.context.scene.render.engine = "?"
    except TypeError as error:
        for name in re.findall(r"'(\w+)'", str(error)):
            say(f"\t{name}")
