"""What a task sets beyond Blender's own options: in the environment, "" for what the scene says. The template stays a
command line that any Blender understands.

`EngineNames` chooses the render engine, `SceneOptions` scene, camera, view layer and size, `Devices` what Cycles
renders on: the graphics cards that it may use, or the processor (R16 No false success). Blender keeps that choice in a
person's preferences, which have no place in a render: without this, Cycles renders on the processor whatever the scene
says.
"""

import ctypes
import importlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from . import Failed, NoEngine, WrongOption, say, several, warn
from .companions import layers_read

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
    """Where an engine's name lies in the memory of render settings; None where that can't be found."""
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


class SceneOptions:
    """The options in an environment. `WrongOption` when one is no value that Blender takes."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._given = {
            name.removeprefix(PREFIX): value.strip() for name, value in environment.items() if name.startswith(PREFIX)
        }
        self._numbers = {name: self._number(name, most) for name, most in MOST.items()}

    def of(self, name: str) -> str:
        """An option by the end of its variable's name; "" for what the scene says."""
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
        """Change the scene as asked; `WrongOption` for a wrong name lists those that exist."""
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
        scene.camera = _one_of("camera", name, [thing for thing in scene.objects if thing.type == "CAMERA"])
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


DEVICE: Final = "RENDERONLINE_BLENDER_DEVICE"
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
    """The devices of one run, chosen by the variables `DEVICE` and `CARDS` of `environment`."""

    def __init__(self, bpy: Any, environment: Mapping[str, str] = os.environ) -> None:
        self._bpy = bpy
        self._asked, self._given = environment.get(DEVICE, ""), environment.get(CARDS)

    @property
    def must(self) -> bool:
        """Whether only a card will do."""
        return self._asked == "gpu" or (bool(self._given) and self._asked != "cpu")

    def choose(self, scene: Any) -> None:
        """Have Cycles render on the device that was asked for, and print which one that is; in other scenes too, for
        the sequencer and the compositor render them. Raises `NoDevice`."""
        if scene.render.engine in DRAWING:
            self._look_at_drawing(DRAWING[scene.render.engine])
        scenes = [other for other in self._bpy.data.scenes if other.render.engine == "CYCLES"]
        if not scenes:
            return
        asks = any(other.cycles.device == "GPU" for other in scenes)
        may = self._asked != "cpu" and self._given != ""
        names, backend = self._cards() if self.must or (may and asks) else ([], "")
        if self.must and not names:
            raise NoDevice("Cycles found no card that it can use")
        for other in scenes:
            if names and self.must:
                other.cycles.device = "GPU"
            elif not names:
                other.cycles.device = "CPU"
        if scene.render.engine == "CYCLES" and scene.cycles.device == "GPU":
            say(f"Cycles on {backend}: {', '.join(names)}")
        elif scene.render.engine == "CYCLES":
            say(f"Cycles on CPU: {self._why_not(asks=asks)}")
        if asks and not names and self._asked != "cpu":
            warn("The scene asks for a graphics card, but none was to be had: it rendered on the CPU.")

    def _why_not(self, *, asks: bool) -> str:
        if self._asked == "cpu":
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
        found = [device for device in preferences.get_devices_for_type(backend) if device.type == backend]
        if found:
            preferences.compute_device_type = backend
    except (TypeError, ValueError):  # this Blender was made without it
        return []
    cards = {device.id for device in found}
    for device in preferences.devices if found else ():
        device.use = device.type == backend and device.id in cards
    return [str(device.name) for device in found]


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


TRY_CARDS: Final = "--try-cards"
"""The launcher's only word when it shall call `try_cards`."""
FOUND_NONE: Final = 3
"""The exit code when Cycles found no card that it can use."""


def try_cards(bpy: Any) -> None:
    """Render what Blender starts with on the graphics cards that this process was given: once as it is and once with a
    bevelled material, which has kernels of its own.

    What a driver compiles for Cycles stays in its cache, where the next renders find it. Raises `NoDevice`."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = 16
    scene.render.resolution_percentage = 100
    scene.cycles.samples, scene.cycles.use_denoising = 1, False
    try:
        Devices(bpy, {**os.environ, DEVICE: "gpu"}).choose(scene)
    except NoDevice as none:
        none.code = FOUND_NONE
        raise
    for name in ("plain", "bevelled"):
        scene.render.filepath = os.path.join(bpy.app.tempdir, f"{name}.png")
        bpy.ops.render.render(write_still=True)
        for material in bpy.data.materials:
            material.use_nodes = True
            tree = material.node_tree
            bevel = tree.nodes.new("ShaderNodeBevel")
            for node in (node for node in tree.nodes if "Normal" in node.inputs and node is not bevel):
                tree.links.new(bevel.outputs[0], node.inputs["Normal"])
