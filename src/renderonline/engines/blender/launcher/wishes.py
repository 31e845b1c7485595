"""What a task says of its scene beyond Blender's own options: it comes in the environment, "" for what the scene says.

The template stays a command line that any Blender understands. Also the names of the render engines that this Blender
has.
"""

import ctypes
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from .companions import layers_read
from .speech import NoEngine, WrongOption, say, several, warn

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


def list_engines(bpy: Any) -> None:
    """Print their names, one a line. What the module shows as the choices are only its own: those of add-ons are named
    where a name is refused."""
    say("Blender Engine Listing:")
    try:
        bpy.context.scene.render.engine = "?"
    except TypeError as error:
        for name in re.findall(r"'(\w+)'", str(error)):
            say(f"\t{name}")


PREFIX: Final = "RENDERONLINE_BLENDER_"
MOST: Final[Mapping[str, int]] = {"SAMPLES": 16_777_216, "WIDTH": 65_536, "HEIGHT": 65_536, "PERCENT": 32_767}
"""Numbers and the largest that Blender takes."""


class Wishes:
    """The wishes in an environment. `WrongOption` when one is no value that Blender takes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._given = {
            name.removeprefix(PREFIX): value.strip() for name, value in environment.items() if name.startswith(PREFIX)
        }
        self._numbers = {name: self._number(name, most) for name, most in MOST.items()}

    def of(self, name: str) -> str:
        """A wish by the end of its variable's name; "" for what the scene says."""
        return self._given.get(name, "")

    def _number(self, name: str, most: int) -> int:
        text = self.of(name)
        if not text:
            return 0
        if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
            raise WrongOption(f"{name.lower()} {text} must be a number from 1 to {most}")
        return int(text)

    def scene_of(self, bpy: Any) -> Any:
        """The scene to render of the file that was loaded."""
        name = self.of("SCENE")
        return _one_of("scene", name, bpy.data.scenes) if name else bpy.context.scene

    def apply(self, scene: Any, engines: EngineNames) -> None:
        """Change what is wished for in the scene; `WrongOption` names what there is instead of a wrong name."""
        if engine := self.of("ENGINE"):
            engines.choose(scene, engine)
        if name := self.of("CAMERA"):
            self._look_through(scene, name)
        if name := self.of("VIEW_LAYER"):
            self._only_layer(scene, name)
        render, numbers = scene.render, self._numbers
        render.resolution_x = numbers["WIDTH"] or render.resolution_x
        render.resolution_y = numbers["HEIGHT"] or render.resolution_y
        render.resolution_percentage = numbers["PERCENT"] or render.resolution_percentage
        if transparent := self.of("TRANSPARENT"):
            render.film_transparent = transparent == "yes"
        if numbers["SAMPLES"]:
            _sample(scene, numbers["SAMPLES"])

    def _look_through(self, scene: Any, name: str) -> None:
        scene.camera = _one_of("camera", name, [one for one in scene.objects if one.type == "CAMERA"])
        for marker in scene.timeline_markers:  # a marker's camera would take its place from that frame on
            marker.camera = None

    def _only_layer(self, scene: Any, name: str) -> None:
        wanted = _one_of("view layer", name, scene.view_layers)
        for layer in scene.view_layers:
            layer.use = layer.name == wanted.name
        if black := sorted(layers_read(scene) - {wanted.name}):
            warn(f"The compositor also reads other view layers, of which nothing is rendered: {several(black)}.")


def _one_of(kind: str, name: str, there: Iterable[Any]) -> Any:
    """The block of that name; `WrongOption` names those that there are."""
    blocks = {block.name: block for block in there}
    if name not in blocks and "\\" in name:  # values are kept in ASCII, with escapes for other letters
        name = name.encode().decode("unicode_escape", "replace")
    if name not in blocks:
        where = "file" if kind == "scene" else "scene"
        raise WrongOption(f"The {where} has no {kind} {name!r}; it has: {several(list(blocks), 20) or 'none'}")
    return blocks[name]


def _sample(scene: Any, samples: int) -> None:
    engine = str(scene.render.engine)
    if engine == "CYCLES":
        scene.cycles.samples = samples
        scene.cycles.use_layer_samples = "IGNORE"
    elif engine in EEVEE:
        scene.eevee.taa_render_samples = samples
    else:
        warn(f"The number of samples is as the scene says: {engine} takes none from a task.")
