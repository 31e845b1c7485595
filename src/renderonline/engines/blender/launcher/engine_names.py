"""Which render engine a scene wants, also where this Blender does not have it."""

import ctypes
from collections.abc import Iterable
from typing import Any, Final

from .speech import NoEngine, several

EEVEE: Final = ("BLENDER_EEVEE", "BLENDER_EEVEE_NEXT")
"""The same engine: Blender 4.2 to 4.5 had the second name."""
_SEARCHED_BYTES: Final = 4096
"""Of a scene's memory, from its render settings on."""
_LONGEST_NAME: Final = 32


class EngineNames:
    """Made before a file is loaded: Blender shows its first engine where a scene names one that it does not have, so
    the name has to be read from the scene's memory, and where it lies is found with a scene whose engine is known."""

    def __init__(self, bpy: Any) -> None:
        self._offset = _find(bpy.context.scene.render)

    def wanted(self, scene: Any) -> str:
        """The engine that the scene names."""
        shown = str(scene.render.engine)
        if self._offset is None:
            return shown
        name = ctypes.string_at(scene.render.as_pointer() + self._offset, _LONGEST_NAME).partition(b"\0")[0]
        return name.decode(errors="replace") or shown

    def choose(self, scene: Any, name: str) -> None:
        """Give the scene another engine; `NoEngine` when this Blender does not have it."""
        for spelled in (name, *(EEVEE if name in EEVEE else ())):
            try:
                scene.render.engine = spelled
                return
            except TypeError:
                continue
        raise NoEngine(f"this Blender has no render engine {name}")

    def check(self, scenes: Iterable[Any]) -> None:
        """`NoEngine` when one of the scenes names an engine that this Blender does not have."""
        for scene in scenes:
            name, shown = self.wanted(scene), str(scene.render.engine)
            if name in EEVEE and shown != name:
                self.choose(scene, name)
            elif name != shown:
                raise NoEngine(
                    f"this Blender has no render engine {name}, which scene {several([scene.name])} uses. Render on a "
                    "machine whose Blender has its add-on, or choose another engine (argument engine)"
                )


def _find(render: Any) -> int | None:
    """Where an engine's name lies in the memory of render settings; None where that can't be told."""
    places: set[int] | None = None
    kept = render.engine
    try:
        for name in ("BLENDER_WORKBENCH", "CYCLES", "BLENDER_WORKBENCH"):
            render.engine = name
            wanted = name.encode() + b"\0"
            memory = ctypes.string_at(render.as_pointer(), _SEARCHED_BYTES)
            found = {at for at in range(len(memory)) if memory.startswith(wanted, at)}
            places = found if places is None else places & found
    except (TypeError, ValueError):
        return None
    finally:
        render.engine = kept
    return places.pop() if places and len(places) == 1 else None
