"""The Blender that tests render with: set up once in the user's own data directory, found there afterwards."""

import functools
import subprocess
from pathlib import Path

from renderonline.cli import local_farm
from renderonline.engines.blender.install import install
from renderonline.storage.disk import data_directory

DEMO_SCENE = Path(local_farm.__file__).with_name(local_farm.SCENE)


def blender_directory() -> Path:
    """Where Blender is installed for tests."""
    return data_directory() / "engines" / "blender"


@functools.cache
def blender_prefix() -> tuple[str, ...]:
    """What a Blender command line begins with; installs it if it is not there (half a minute, once)."""
    return install(blender_directory(), lambda _fraction, _text: None)


def run_python(code: str, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run code in Blender's Python."""
    argv = [blender_prefix()[0], "-I", "-W", "ignore", "-c", code, *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=True)


def run_blender(*words: str, timeout: float = 100, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the launcher to its end."""
    argv = [*blender_prefix(), *words]
    return subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd)


SMALL_SCENE = """
import os, sys, bpy
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
bpy.ops.mesh.primitive_monkey_add()
monkey = bpy.context.object
monkey.rotation_euler = (0, 0, 0)
monkey.keyframe_insert("rotation_euler", frame=1)
monkey.rotation_euler = (0, 0, 2)
monkey.keyframe_insert("rotation_euler", frame=10)
bpy.ops.object.light_add(type="SUN", location=(3, -3, 5))
bpy.ops.object.camera_add(location=(0, -5, 0), rotation=(1.5708, 0, 0))
scene.camera = bpy.context.object
scene.frame_start, scene.frame_end = 1, 10
scene.render.engine = "CYCLES"
scene.cycles.samples, scene.cycles.use_denoising = 1, False
scene.render.resolution_x, scene.render.resolution_y = 64, 36
scene.render.filepath = "//own_####"
exec(sys.argv[2] if len(sys.argv) > 2 else "")
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1])
sys.stdout.flush()
os._exit(0)
"""


def write_small_scene(path: Path, changes: str = "") -> Path:
    """A scene of 64 x 36 pixels, ten frames, a fraction of a second each; `changes` is Python run before saving."""
    run_python(SMALL_SCENE, str(path), changes)
    return path


def everything_at_once(away: str) -> str:
    """Changes to the small scene: frames 1 to 4 whose brightness is the frame's share of the scene's last one, from
    another camera from frame 4 on, with motion blur; one node writes a second `//frame_####`, another into `away`."""
    return f"""
scene.frame_end = 4
material = bpy.data.materials.new("glow"); material.use_nodes = True; tree = material.node_tree; tree.nodes.clear()
shine = tree.nodes.new("ShaderNodeEmission"); target = tree.nodes.new("ShaderNodeOutputMaterial")
tree.links.new(shine.outputs[0], target.inputs[0]); monkey.data.materials.append(material)
driver = shine.inputs["Strength"].driver_add("default_value").driver
last = driver.variables.new(); last.name, last.type = "last", "SINGLE_PROP"
last.targets[0].id_type, last.targets[0].id, last.targets[0].data_path = "SCENE", scene, "frame_end"
driver.expression = "frame / last"
scene.render.use_motion_blur = True
far = bpy.data.objects.new("far", scene.camera.data); far.location = (0, -9, 0); far.rotation_euler = (1.5708, 0, 0)
scene.collection.objects.link(far)
scene.timeline_markers.new("a", frame=1).camera = scene.camera; scene.timeline_markers.new("b", frame=4).camera = far
tree = scene.compositing_node_group = bpy.data.node_groups.new("comp", "CompositorNodeTree")
tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
layer = tree.nodes.new("CompositorNodeRLayers"); layer.scene = scene
tree.links.new(layer.outputs["Image"], tree.nodes.new("NodeGroupOutput").inputs[0])
for folder, name in (("//", "frame_####"), ({away!r}, "z_")):
    node = tree.nodes.new("CompositorNodeOutputFile"); node.directory, node.file_name = folder, name
    node.file_output_items.new("RGBA", ""); node.format.media_type = "IMAGE"; node.format.file_format = "PNG"
    tree.links.new(layer.outputs["Image"], node.inputs[0])
"""


BAKED_NODES = """
tree = bpy.data.node_groups.new("moved", "GeometryNodeTree")
for way in ("INPUT", "OUTPUT"):
    tree.interface.new_socket("Geometry", in_out=way, socket_type="NodeSocketGeometry")
first, last = tree.nodes.new("NodeGroupInput"), tree.nodes.new("NodeGroupOutput")
begin, end = tree.nodes.new("GeometryNodeSimulationInput"), tree.nodes.new("GeometryNodeSimulationOutput")
begin.pair_with_output(end)
move = tree.nodes.new("GeometryNodeTransform")
move.inputs["Translation"].default_value = (0.5, 0, 0)
for source, target in ((first, begin), (begin, move), (move, end), (end, last)):
    tree.links.new(source.outputs["Geometry"], target.inputs["Geometry"])
modifier = monkey.modifiers.new("moved", "NODES")
modifier.node_group = tree
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1])
modifier.bake_target, modifier.bake_directory = "DISK", "//bakes"
with bpy.context.temp_override(scene=scene, active_object=monkey, object=monkey, selected_objects=[monkey]):
    bpy.ops.object.simulation_nodes_cache_bake(selected=False)
"""
"""For `write_small_scene`: a simulation of geometry nodes that is baked on the disk."""
