"""The Blender that tests render with: set up once in the user's own data directory, found there afterwards."""

import functools
import subprocess
from pathlib import Path

from renderonline.engines.blender.install import install
from renderonline.serving.directories import data_directory

SAMPLE = Path(__file__).parents[2] / "src" / "renderonline" / "engines" / "blender" / "sample.py"


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


def write_sample(path: Path) -> Path:
    """The demo's scene."""
    argv = [blender_prefix()[0], "-I", "-W", "ignore", str(SAMPLE), str(path)]
    subprocess.run(argv, capture_output=True, timeout=60, check=True)
    return path


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
