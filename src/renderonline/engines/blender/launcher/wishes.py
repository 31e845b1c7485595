"""What a task says of its scene beyond Blender's own options: it comes in the environment, "" for what the scene says.

The template stays a command line that any Blender understands.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from .companions import layers_read
from .engine_names import EEVEE, EngineNames
from .speech import Refused, several, warn

PREFIX: Final = "RENDERONLINE_BLENDER_"
MOST: Final[Mapping[str, int]] = {"SAMPLES": 16_777_216, "WIDTH": 65_536, "HEIGHT": 65_536, "PERCENT": 32_767}
"""Numbers and the largest that Blender takes."""


class Wishes:
    """The wishes in an environment. `Refused` when one is no value that Blender takes."""

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
            raise Refused(f"{name.lower()} {text} must be a number from 1 to {most}")
        return int(text)

    def scene_of(self, bpy: Any) -> Any:
        """The scene to render of the file that was loaded."""
        name = self.of("SCENE")
        return _one_of("scene", name, bpy.data.scenes) if name else bpy.context.scene

    def apply(self, scene: Any, engines: EngineNames) -> None:
        """Change what is wished for in the scene; `Refused` names what there is instead of a wrong name."""
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
    """The block of that name; `Refused` names those that there are."""
    blocks = {block.name: block for block in there}
    if name not in blocks and "\\" in name:  # values are kept in ASCII, with escapes for other letters
        name = name.encode().decode("unicode_escape", "replace")
    if name not in blocks:
        where = "file" if kind == "scene" else "scene"
        raise Refused(f"The {where} has no {kind} {name!r}; it has: {several(list(blocks), 20) or 'none'}")
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
