"""On what a scene renders: Cycles on the graphics cards that it may use, or on the processor (R16 No false success).

Blender keeps the choice in a person's preferences, which have no place in a render: without this, Cycles renders on the
processor whatever the scene says. Cards that the farm gave to this process alone are named in `RENDERONLINE_CARDS`.
"""

import importlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from .speech import Failed, say, warn

WISH: Final = "RENDERONLINE_BLENDER_DEVICE"
"""auto, cpu or gpu; auto or nothing is what the scene says."""
CARDS: Final = "RENDERONLINE_CARDS"
"""The cards (`kind:id`, commas between) that this process got, "" for none; not set: all that it finds."""
BACKENDS: Final[Mapping[str, Sequence[str]]] = {
    "cuda": ("OPTIX", "CUDA"), "hip": ("HIP",), "oneapi": ("ONEAPI",), "metal": ("METAL",),
}  # fmt: skip
"""How Cycles speaks to cards, by the farm's names; the first that finds one is taken."""
SOFTWARE: Final = ("llvmpipe", "softpipe", "swrast", "software")


class NoDevice(Failed):
    """A card is wanted, and there is none: the farm takes another one, or another machine."""

    def __init__(self, why: str) -> None:
        super().__init__(f"no device: {why}")


class Devices:
    """What one run renders on. `environment` tells what is wished and given."""

    def __init__(self, bpy: Any, environment: Mapping[str, str] = os.environ) -> None:
        self._bpy = bpy
        self._wish, self._given = environment.get(WISH, ""), environment.get(CARDS)

    @property
    def must(self) -> bool:
        """Whether only a card will do."""
        return self._wish == "gpu" or (bool(self._given) and self._wish != "cpu")

    def choose(self, scene: Any) -> None:
        """Have Cycles render on what is wished, and say on what. Other scenes are chosen for too: the sequencer and the
        compositor render them. Raises `NoDevice`."""
        if scene.render.engine in DRAWING:
            self._look_at_drawing(DRAWING[scene.render.engine])
        scenes = [one for one in self._bpy.data.scenes if one.render.engine == "CYCLES"]
        if not scenes:
            return
        asks = any(one.cycles.device == "GPU" for one in scenes)
        may = self._wish != "cpu" and self._given != ""
        names, backend = self._cards() if self.must or (may and asks) else ([], "")
        if self.must and not names:
            raise NoDevice("Cycles found no card that it can use")
        for one in scenes:
            if names and self.must:
                one.cycles.device = "GPU"
            elif not names:
                one.cycles.device = "CPU"
        if scene.render.engine == "CYCLES" and scene.cycles.device == "GPU":
            say(f"Cycles on {backend}: {', '.join(names)}")
        elif scene.render.engine == "CYCLES":
            say(f"Cycles on CPU: {self._why_not(asks=asks)}")
        if asks and not names and self._wish != "cpu":
            warn("The scene asks for a graphics card, but none was to be had: it rendered on the CPU.")

    def _why_not(self, *, asks: bool) -> str:
        if self._wish == "cpu":
            return "the task asks for it"
        return "no card found" if asks else "the scene asks for it"

    def _cards(self) -> tuple[list[str], str]:
        """Have Cycles use the cards of the first kind that is there, and nothing else; their names and the kind. Of the
        cards that were given to this process each must be found."""
        addon = self._bpy.context.preferences.addons.get("cycles")
        if addon is None:
            return [], ""
        given = [word.partition(":")[0] for word in self._given.split(",")] if self._given else []
        kinds = given or list(BACKENDS)
        for backend in (backend for kind in BACKENDS if kind in kinds for backend in BACKENDS[kind]):
            found = _use(addon.preferences, backend)
            if len(found) >= max(1, len(given)):
                return found, backend
        return [], ""

    def _look_at_drawing(self, name: str) -> None:
        """Say on what a renderer that draws as games do will draw. Raises `NoDevice` when a card is wanted and it would
        not use one."""
        renderer = _renderer(self._bpy)
        software = not renderer or any(word in renderer.casefold() for word in SOFTWARE)
        if software and self.must:
            raise NoDevice(f"{name} found no card that it can use{renderer and f', only {renderer}'}")
        if renderer and not software:
            say(f"{name} on {renderer}")
        elif renderer:
            say(f"{name} on CPU: in software, which is slow ({renderer})")


DRAWING: Final = {
    "BLENDER_EEVEE": "EEVEE", "BLENDER_EEVEE_NEXT": "EEVEE", "BLENDER_WORKBENCH": "Workbench",
}  # fmt: skip


def _use(preferences: Any, backend: str) -> list[str]:
    """The names of the cards that Cycles finds in this way; if there are any, it uses all of them and nothing else."""
    try:
        found = [one for one in preferences.get_devices_for_type(backend) if one.type == backend]
        if found:
            preferences.compute_device_type = backend
    except (TypeError, ValueError):  # this Blender was made without it
        return []
    cards = {one.id for one in found}
    for one in preferences.devices if found else ():
        one.use = one.type == backend and one.id in cards
    return [str(one.name) for one in found]


def _renderer(bpy: Any) -> str:
    """What draws, as its driver calls it; "" when nobody can tell. Only after something was drawn is it known, so an
    empty scene is, and is taken away again."""
    data, scene = bpy.data, bpy.data.scenes.new("renderonline")
    camera = data.objects.new("renderonline", data.cameras.new("renderonline"))
    try:
        scene.collection.objects.link(camera)
        scene.camera, scene.render.engine = camera, "BLENDER_WORKBENCH"
        scene.render.resolution_x = scene.render.resolution_y = 4
        bpy.ops.render.render(scene=scene.name)
        return str(importlib.import_module("gpu").platform.renderer_get())
    except (ImportError, SystemError, RuntimeError, AttributeError, TypeError):
        return ""
    finally:
        lens = camera.data
        data.scenes.remove(scene)
        data.objects.remove(camera)
        data.cameras.remove(lens)
