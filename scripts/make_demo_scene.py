"""Writes the demo's scene: a gyroscope of polished rings around a glowing heart, over a ring of bobbing glass beads.

    PYTHON scripts/make_demo_scene.py src/renderonline/cli/demo.blend

PYTHON is the one in the environment that `renderonline engine install blender` makes (standard library and `bpy`
only). 24 frames at 24 frames per second that loop without a seam; Cycles on the processor, made to take about a second
a frame.
"""

import colorsys
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import bpy

FRAMES: Final = 24
BEADS: Final = 20
CENTRE: Final = (0.0, 0.0, 1.36)
"""Of the gyroscope."""

BLACK: Final = (0.0, 0.0, 0.0)
Colour = tuple[float, float, float]
Place = tuple[float, float, float]


def principled(name: str, colour: Colour, **inputs: float) -> Any:
    """A material with Blender's all-purpose shader; `inputs` by name, `_` for a space."""
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    shader = material.node_tree.nodes["Principled BSDF"]
    shader.inputs["Base Color"].default_value = (*colour, 1.0)
    for key, value in inputs.items():
        shader.inputs[key.replace("_", " ")].default_value = value
    return material


def glowing(material: Any, colour: Colour, strength: float) -> Any:
    """The material, which glows besides; it lights nothing: a lamp does."""
    inputs = material.node_tree.nodes["Principled BSDF"].inputs
    inputs["Emission Color"].default_value, inputs["Emission Strength"].default_value = (*colour, 1.0), strength
    material.cycles.emission_sampling = "NONE"
    return material


def finished(material: Any, *, smooth: bool = True) -> Any:
    """The object that was added last, with its material."""
    thing = bpy.context.object
    thing.data.materials.append(material)
    while thing.data.uv_layers:  # nothing has a texture
        thing.data.uv_layers.remove(thing.data.uv_layers[0])
    if smooth:
        thing.data.polygons.foreach_set("use_smooth", [True] * len(thing.data.polygons))
    return thing


def ring(radius: float, thickness: float, material: Any) -> Any:
    bpy.ops.mesh.primitive_torus_add(
        major_radius=radius, minor_radius=thickness, major_segments=80, minor_segments=16, location=CENTRE
    )
    return finished(material)


def ball(radius: float, place: Place, material: Any) -> Any:
    """A sphere; all share one mesh, which keeps the file small, and have a material each."""
    if (mesh := bpy.data.meshes.get("Ball")) is None:
        bpy.ops.mesh.primitive_uv_sphere_add(segments=48, ring_count=24)
        mesh = finished(material).data
        mesh.name = "Ball"
        bpy.data.objects.remove(bpy.context.object)
    thing = bpy.data.objects.new("Ball", mesh)
    bpy.context.collection.objects.link(thing)
    thing.location, thing.scale = place, (radius,) * 3
    thing.material_slots[0].link, thing.material_slots[0].material = "OBJECT", material
    return thing


def animate(thing: Any, path: str, value: Callable[[float], Any], axis: int = -1) -> None:
    """A key on every frame; `value` gets the turn, from 0 to 1 over the loop. `axis`: only this one moves."""
    for frame in range(1, FRAMES + 2):
        setattr(thing, path, value((frame - 1) / FRAMES))
        thing.keyframe_insert(path, index=axis, frame=frame)


def rainbow(turn: float) -> Colour:
    """Deep teal over violet to coral and amber, and back."""
    stops = [(0.50, 0.85, 0.75), (0.66, 0.75, 0.85), (0.92, 0.70, 0.95), (1.07, 0.85, 1.0)]
    place = (1 - abs(2 * turn - 1)) * (len(stops) - 1)
    index = min(int(place), len(stops) - 2)
    mix = place - index
    hue, saturation, value = (a + (b - a) * mix for a, b in zip(stops[index], stops[index + 1], strict=True))
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return (red**2.2, green**2.2, blue**2.2)


def gyroscope() -> None:
    """Three rings that turn inside each other around a glowing heart, whose light throws their shadows."""
    gold = principled("Gold", (1.0, 0.66, 0.24), Metallic=1.0, Roughness=0.3)
    rose = principled("Rose copper", (1.0, 0.50, 0.40), Metallic=1.0, Roughness=0.3)
    silver = principled("Silver", (0.80, 0.84, 0.92), Metallic=1.0, Roughness=0.28)
    half = math.pi  # a ring looks the same after half a turn
    outer = ring(1.10, 0.075, gold)
    animate(outer, "rotation_euler", lambda turn: (math.radians(72), 0.25, half * turn))
    middle = ring(0.88, 0.062, silver)
    animate(middle, "rotation_euler", lambda turn: (half * turn + 0.4, math.radians(60), 0.5))
    inner = ring(0.67, 0.052, rose)
    animate(inner, "rotation_euler", lambda turn: (math.radians(25), half * turn + 1.1, 0.0))
    heart = ball(0.33, CENTRE, ember())
    heart.visible_shadow = False
    animate(heart, "scale", lambda turn: (0.33 * (1 + 0.06 * math.sin(2 * math.pi * turn)),) * 3)
    bpy.ops.object.light_add(type="POINT", location=CENTRE)
    light = bpy.context.object.data
    light.energy, light.color, light.shadow_soft_size = 130.0, (1.0, 0.55, 0.22), 0.06


def ember() -> Any:
    """White-hot where one looks straight at it, orange at the rim."""
    material = glowing(principled("Heart", BLACK, Roughness=1.0), (1.0, 0.4, 0.1), 2.2)
    nodes, links = material.node_tree.nodes, material.node_tree.links
    facing = nodes.new("ShaderNodeLayerWeight").outputs["Facing"]
    colour = ramp(nodes, links, facing, [(0.0, (1.0, 0.58, 0.17)), (1.0, (1.0, 0.10, 0.005))])
    links.new(colour, nodes["Principled BSDF"].inputs["Emission Color"])
    return material


def beads() -> None:
    """A ring of beads, every other one glass, through which a wave runs."""
    for number in range(BEADS):
        turn = number / BEADS
        colour = rainbow(turn)
        if number % 2:
            tint: Colour = (0.5 + 0.5 * colour[0], 0.5 + 0.5 * colour[1], 0.5 + 0.5 * colour[2])
            clear = {"Transmission_Weight": 1.0, "Roughness": 0.0, "IOR": 1.4, "Specular_IOR_Level": 0.2}
            material = glowing(principled(f"Glass {number}", tint, **clear), colour, 0.12)
        else:
            material = principled(f"Lacquer {number}", colour, Roughness=0.25, Coat_Weight=1.0, Coat_Roughness=0.03)
        angle = 2 * math.pi * turn
        x, y = 2.3 * math.cos(angle), 2.3 * math.sin(angle)
        bead = ball(0.26, (x, y, 0.5), material)

        def place(time: float, x: float = x, y: float = y, turn: float = turn) -> Place:
            return (x, y, 0.52 + 0.22 * math.sin(2 * math.pi * (2 * turn - time)))

        animate(bead, "location", place, axis=2)


def stage() -> None:
    """A dark mirror of a disc with a glowing rim, afloat in the dusk."""
    mirror = principled("Mirror", (0.020, 0.024, 0.060), Roughness=0.1, Specular_IOR_Level=1.0)
    bpy.ops.mesh.primitive_cylinder_add(vertices=128, radius=2.85, depth=0.12, location=(0, 0, -0.06))
    finished(mirror, smooth=False)
    bpy.ops.mesh.primitive_torus_add(
        major_radius=2.85, minor_radius=0.03, major_segments=128, minor_segments=10, location=(0, 0, -0.02)
    )
    finished(glowing(principled("Rim", BLACK, Roughness=1.0), (0.10, 0.42, 0.90), 1.1))


def look_at(thing: Any, target: Place) -> None:
    to = [there - here for there, here in zip(target, thing.location, strict=True)]
    length = math.hypot(*to)
    thing.rotation_euler = (math.acos(-to[2] / length), 0.0, math.atan2(-to[0], to[1]))


def lights() -> None:
    """One soft key light, and a studio all around that shows in what is polished."""
    bpy.ops.object.light_add(type="AREA", location=(-4.0, -2.5, 6.5))
    key = bpy.context.object
    key.data.shape, key.data.size, key.data.energy, key.data.color = "DISK", 2.5, 380.0, (1.0, 0.90, 0.80)
    look_at(key, (0, 0, 0.8))
    world = bpy.data.worlds.new("Dusk")
    bpy.context.scene.world = world
    world.cycles.sampling_method = "NONE"
    world.use_nodes = True
    nodes, links = world.node_tree.nodes, world.node_tree.links
    place, path, mix = nodes.new("ShaderNodeTexCoord"), nodes.new("ShaderNodeLightPath"), nodes.new("ShaderNodeMix")
    mix.data_type = "RGBA"
    through = nodes.new("ShaderNodeMath")  # what one sees, and what one sees through glass
    through.operation = "MAXIMUM"
    links.new(path.outputs["Is Camera Ray"], through.inputs[0])
    links.new(path.outputs["Is Transmission Ray"], through.inputs[1])
    links.new(through.outputs[0], mix.inputs["Factor"])
    links.new(studio(nodes, links, place), mix.inputs[6])
    links.new(backdrop(nodes, links, place), mix.inputs[7])
    links.new(mix.outputs[2], nodes["Background"].inputs[0])


def studio(nodes: Any, links: Any, place: Any) -> Any:
    """What is seen in reflections: a bright roof, a warm horizon, darkness below."""
    split = nodes.new("ShaderNodeSeparateXYZ")
    links.new(place.outputs["Generated"], split.inputs[0])
    dark = [(0.00, (0.05, 0.04, 0.12)), (0.47, (0.12, 0.06, 0.20))]
    warm = [(0.56, (1.3, 0.55, 0.48)), (0.66, (0.22, 0.14, 0.40))]
    roof = [(0.80, (0.20, 0.36, 0.70)), (0.90, (1.5, 1.6, 1.8))]
    return ramp(nodes, links, split.outputs["Z"], dark + warm + roof)


def backdrop(nodes: Any, links: Any, place: Any) -> Any:
    """What is seen behind it all: a glow in the middle of the picture that fades to night."""
    middle, length = nodes.new("ShaderNodeVectorMath"), nodes.new("ShaderNodeVectorMath")
    middle.operation, length.operation = "SUBTRACT", "LENGTH"
    middle.inputs[1].default_value = (0.5, 0.62, 0.0)
    links.new(place.outputs["Window"], middle.inputs[0])
    links.new(middle.outputs[0], length.inputs[0])
    glow = [(0.00, (0.42, 0.16, 0.14)), (0.10, (0.24, 0.085, 0.17)), (0.28, (0.095, 0.040, 0.16))]
    night = [(0.50, (0.024, 0.020, 0.075)), (0.80, (0.006, 0.008, 0.026))]
    return ramp(nodes, links, length.outputs["Value"], glow + night)


def ramp(nodes: Any, links: Any, value: Any, stops: list[tuple[float, Colour]]) -> Any:
    node = nodes.new("ShaderNodeValToRGB")
    elements = node.color_ramp.elements
    while len(elements) < len(stops):
        elements.new(1.0)
    for element, (position, colour) in zip(elements, stops, strict=True):
        element.position, element.color = position, (*colour, 1.0)
    links.new(value, node.inputs[0])
    return node.outputs[0]


def camera() -> None:
    """From above, so that the floor fills the picture; swaying a little."""
    bpy.ops.object.camera_add()
    eye = bpy.context.object
    eye.data.lens = 44
    bpy.context.scene.camera = eye
    for frame in range(1, FRAMES + 2):
        turn = 2 * math.pi * (frame - 1) / FRAMES
        eye.location = (0.25 * math.sin(turn), -8.3, 3.3 + 0.06 * math.cos(turn))
        look_at(eye, (0.0, 0.0, 0.72))
        eye.keyframe_insert("location", frame=frame)
        eye.keyframe_insert("rotation_euler", frame=frame)


def settings() -> None:
    """Cycles on the processor: few samples, few bounces, the noise taken out afterwards."""
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, FRAMES
    render, cycles = scene.render, scene.cycles
    render.engine, render.fps = "CYCLES", 24
    render.resolution_x, render.resolution_y, render.resolution_percentage = 640, 360, 100
    render.image_settings.file_format, render.image_settings.color_mode = "PNG", "RGB"
    render.filepath = "//frame_####"
    cycles.device = "CPU"
    cycles.samples, cycles.seed, cycles.use_adaptive_sampling = 3, 7, False
    cycles.use_light_tree = False  # for two lights it only costs
    cycles.filter_width = 2.0  # soft edges in spite of few samples
    cycles.max_bounces, cycles.diffuse_bounces, cycles.glossy_bounces, cycles.transmission_bounces = 4, 1, 2, 4
    cycles.caustics_reflective = cycles.caustics_refractive = False
    cycles.sample_clamp_direct, cycles.sample_clamp_indirect = 2.5, 1.0
    cycles.use_denoising, cycles.denoiser = True, "OPENIMAGEDENOISE"
    cycles.denoising_quality, cycles.denoising_prefilter = "FAST", "FAST"
    view = scene.view_settings
    view.view_transform, view.look, view.exposure = "AgX", "AgX - Punchy", 0.25


def main(path: str) -> None:
    bpy.ops.wm.read_factory_settings(use_empty=True)
    for part in (settings, stage, gyroscope, beads, lights, camera):
        part()
    bpy.context.scene.frame_set(1)
    bpy.ops.wm.save_as_mainfile(filepath=os.path.abspath(path), compress=False)
    # Blender itself compresses quickly; this is half as large.
    subprocess.run(["zstd", "--quiet", "--force", "--rm", "--ultra", "-22", path, "-o", f"{path}.zst"], check=True)
    os.replace(f"{path}.zst", path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Usage: make_demo_scene.py FILE.blend")
    main(sys.argv[1])
    shutil.rmtree(bpy.app.tempdir, ignore_errors=True)  # the module would do so in its teardown, which may crash
    sys.stdout.flush()
    os._exit(0)
