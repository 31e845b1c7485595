"""Real scenes from the command line to the picture: complete ones have no warning, others say what is missing
(R16 No false success).

One farm renders them all.
"""

import json
from pathlib import Path

import pytest

from renderonline.cli.main import run
from renderonline.farm.errors import InvalidRequest
from renderonline.rnoclient.scenes import needed_files
from tests.support.blender import run_python
from tests.support.farm import RealFarm

pytestmark = [pytest.mark.blender, pytest.mark.timeout(600)]

SCENES = """
import os, sys, bpy
from pathlib import Path
folder = Path(sys.argv[1])
def begin(colour=(0, 1, 0, 1)):
    bpy.ops.wm.read_factory_settings(use_empty=True)
    scene = bpy.context.scene
    scene.render.engine, scene.frame_start, scene.frame_end = "CYCLES", 1, 1
    scene.cycles.samples, scene.cycles.use_denoising = 1, False
    scene.render.resolution_x = scene.render.resolution_y = 16
    bpy.ops.object.camera_add(location=(0, 0, 3))
    scene.camera = bpy.context.object
    bpy.ops.mesh.primitive_plane_add(size=1)
    material = bpy.data.materials.new("m")
    material.use_nodes = True
    bpy.context.object.data.materials.append(material)
    return material.node_tree
def textured(path):
    tree = begin()
    node = tree.nodes.new("ShaderNodeTexImage")
    node.image = bpy.data.images.load(str(folder / path))
    tree.links.new(node.outputs[0], tree.nodes["Principled BSDF"].inputs["Base Color"])
    return node.image
def save(name, **more):
    bpy.ops.wm.save_as_mainfile(filepath=str(folder / f"{name}.blend"), compress=False, **more)
begin(); save("plain")
for name in ("wood", "lost"):
    image = bpy.data.images.new(name, 8, 8)
    image.filepath_raw, image.file_format = str(folder / "tex" / f"{name}.png"), "PNG"
    image.save()
textured("tex/wood.png"); save("textured", relative_remap=True)
textured("tex/wood.png").pack(); save("packed")
textured("tex/lost.png"); save("missing", relative_remap=True)
tree = begin()
driver = bpy.context.object.driver_add("location", 0).driver
driver.expression = "frame / 100"
save("driven")
begin(); bpy.ops.object.text_add(); save("written")
begin()
with bpy.data.libraries.load(str(folder / "driven.blend"), link=True, relative=True) as (there, here):
    here.objects = ["Plane"]
bpy.context.scene.collection.objects.link(here.objects[0])
save("linked")
begin(); bpy.context.scene.camera = None; save("blind")
begin(); bpy.context.object.modifiers.new("Cloth", "CLOTH"); save("cloth")
os.remove(folder / "tex" / "lost.png")
sys.stdout.flush(); os._exit(0)
"""
CLEAN = ("plain", "textured", "packed", "driven", "written", "linked")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "tex").mkdir()
    run_python(SCENES, str(folder))
    octane = (folder / "plain.blend").read_bytes().replace(b"CYCLES\0", b"OCTANE\0")
    (folder / "octane.blend").write_bytes(octane)
    return folder


def test_what_is_missing_is_told_and_nothing_else_is(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with RealFarm(tmp_path) as farm:
        farm.add_machine("box", flags=["--slots", "2"])
        (offer,) = (one for one in farm.machine("box")["engines"] if one["name"] == "blender")
        assert "CYCLES" in offer["renderers"]
        for name, value in (("URL", farm.url), ("EMAIL", farm.login.email), ("TOKEN", farm.login.token)):
            monkeypatch.setenv(f"RENDERONLINE_{name}", value)

        def submitted(name: str) -> int:
            path = scenes / f"{name}.blend"
            inputs = {str(one.relative_to(scenes)): one for one in needed_files(path).inside}
            return int(farm.client.submit(path, scene=path.name, inputs=inputs, engine="blender")["task_id"])

        clean = [submitted(name) for name in CLEAN]
        blind = submitted("blind")

        assert run(["submit", str(scenes / "missing.blend"), "--wait"]) == 0
        said = capsys.readouterr()
        assert "succeeded, " in said.out
        assert "lost.png is not there" in said.err
        assert run(["tasks", "--search", "missing", "--json"]) == 0
        (task,) = json.loads(capsys.readouterr().out)
        assert (task["status"], task["frames_done"]) == ("succeeded", 1)
        (warning,) = task["warnings"]
        assert warning == "tex/lost.png is not there: submit with --with tex"
        with pytest.raises(InvalidRequest) as strict:
            farm.client.submit(scenes / "missing.blend", engine="blender", strict=True)
        assert strict.value.reason_code == "strict"

        with pytest.raises(InvalidRequest, match="has the render engine OCTANE") as refused:
            farm.client.submit(scenes / "octane.blend", engine="blender")
        assert refused.value.reason_code == "no_render_engine"

        for chunk_size, warnings in ((4, 1), (100_000, 0)):
            scene = {"engine": "blender", "frames": "1-8", "chunk_size": chunk_size, "paused": True}
            task = farm.client.submit(scenes / "cloth.blend", **scene)
            assert len(task["warnings"]) == warnings
            assert all("not baked" in text for text in task["warnings"])

        failed = farm.wait_for_status(blind, "succeeded", "failed")
        assert failed["status"] == "failed"
        assert failed["reason"].startswith("The scene has no camera: choose one in Blender, or name one")
        assert farm.client.explain(blind)[1].startswith("It failed. Correct the scene and submit it again. ")
        for name, task_id in zip(CLEAN, clean, strict=True):
            task = farm.wait_for_status(task_id, "succeeded", "failed")
            assert (name, task["status"], task["warnings"]) == (name, "succeeded", [])
