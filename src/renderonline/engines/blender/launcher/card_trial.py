"""A script of its own: renders a tiny scene of ours on the graphics cards that this process was given.

    python …/card_trial.py, or blender -b --factory-startup --python …/card_trial.py

What a driver compiles for Cycles stays in its cache, where the next renders find it. It also tells whether Cycles can
use the card at all. Exit codes: 0 it can; 3 it found none; any other: nobody knows.
"""

import importlib
import os
import runpy
import sys
import tempfile
from typing import Any, Final

NAME: Final = "renderonline_launcher"
FOUND_NONE: Final = 3


def render(bpy: Any, options: Any) -> None:
    """Render what Blender starts with, once as it is and once with a bevelled material, which has kernels of its
    own."""
    scene = bpy.context.scene
    scene.render.engine = "CYCLES"
    scene.render.resolution_x = scene.render.resolution_y = 16
    scene.render.resolution_percentage = 100
    scene.cycles.samples, scene.cycles.use_denoising = 1, False
    options.Devices(bpy, {**os.environ, options.DEVICE: "gpu"}).choose(scene)
    with tempfile.TemporaryDirectory() as directory:
        for number in range(2):
            scene.render.filepath = os.path.join(directory, f"{number}.png")
            bpy.ops.render.render(write_still=True)
            for material in bpy.data.materials:
                material.use_nodes = True
                tree = material.node_tree
                bevel = tree.nodes.new("ShaderNodeBevel")
                for node in (one for one in tree.nodes if "Normal" in one.inputs and one is not bevel):
                    tree.links.new(bevel.outputs[0], node.inputs["Normal"])


def main() -> int:
    beside = os.path.join(os.path.dirname(os.path.abspath(__file__)), "__main__.py")
    runpy.run_path(beside, run_name="beside")["become_package"]()
    options = importlib.import_module(f"{NAME}.task_options")
    bpy = sys.modules.get("bpy") or importlib.import_module(f"{NAME}.command").import_bpy()
    try:
        render(bpy, options)
    except options.NoDevice as none:
        options.say(f"Error: {none}")
        return FOUND_NONE
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # the module's teardown may crash after the work is done
