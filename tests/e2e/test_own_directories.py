"""Machines that don't share the farm's directory: real programs with roots of their own."""

import json
import os
import subprocess
import sys
import urllib.request
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import OpenImageIO
import pytest

from renderonline.cli.local_farm import Program
from tests.support.blender import run_python
from tests.support.farm import RealFarm, wait_until

APART = Path(__file__).resolve().parents[1] / "faults" / "clock"
COPIER = """
name = "copier"
label = "Copier"
extensions = [".scene"]
template = "copier $RENDERONLINE:@uploaded_file --out=$RENDERONLINE:@output_directory/ \
$RENDERONLINE:first $RENDERONLINE:last"
split = "frames"
chunk_size = 1

[[arguments]]
id = "first"
type = "natural"
default = "1"

[[arguments]]
id = "last"
type = "natural"
default = "1"

[frames]
first = "first"
last = "last"

[outputs]
pattern = "frame_####.txt"

[reading]
decode = false
progress = [{ kind = "saved", regex = '^Saved: (.+)$' }]
"""
PROGRAM = f"""#!{sys.executable} -IS
import json, os, sys
scene, out, first, last = sys.argv[1], sys.argv[2].removeprefix("--out="), int(sys.argv[3]), int(sys.argv[4])
content = open(scene).read()
for frame in range(first, last + 1):
    path = f"{{out}}frame_{{frame:04}}.txt"
    with open(path, "w") as file:
        told = {{"scene": scene, "directory": os.getcwd(), "frame": frame, "content": content}}
        json.dump(told, file)
    print("Saved:", path, flush=True)
"""


def add_apart(farm: RealFarm, name: str, **more: Any) -> Program:
    """A machine that sees nothing below RenderAPI's directory."""
    environment = {"PYTHONPATH": str(APART), "FAULTS_APART": str(farm.data), **more.pop("environment", {})}
    return farm.add_machine(name, environment=environment, **more)


def fetched(farm: RealFarm, task_id: int, name: str) -> bytes:
    """A result's bytes."""
    request = urllib.request.Request(f"{farm.url}/renderapi/v2/tasks/{task_id}/results/{name}")
    for key in ("email", "token"):
        request.add_header(key, getattr(farm.login, key))
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[RealFarm]:
    with RealFarm(tmp_path) as running:
        yield running


def test_machine_without_the_farms_directory_renders(farm: RealFarm, tmp_path: Path) -> None:
    """R6 Landing without a shared directory: inputs are fetched, results sent, both by the attempt's token."""
    farm.client.admin.add_engine(COPIER)
    program = tmp_path / "copier"
    program.write_text(PROGRAM)
    program.chmod(0o755)
    add_apart(farm, "far", engines={"copier": str(program)})
    scene = tmp_path / "a.scene"
    scene.write_text("what is in the scene")
    task_id = farm.client.submit(scene, engine="copier", frames="1-3")["task_id"]
    farm.wait_for_status(task_id, "succeeded", "failed")
    outcomes = [attempt["outcome"] for attempt in farm.client.attempts(task_id)]
    assert outcomes == ["succeeded"] * 3, (tmp_path / "far.log").read_text()[-3000:]
    results = sorted(str(result["name"]) for result in farm.client.results(task_id))
    assert results == ["frame_0001.txt", "frame_0002.txt", "frame_0003.txt"]
    for name in results:
        told = json.loads(fetched(farm, task_id, name))
        assert told["content"] == "what is in the scene"
        for path in (told["scene"], told["directory"]):
            assert Path(path).is_relative_to(tmp_path / "far")
    machine = farm.machine("far")
    assert (machine["input_downloads"], machine["input_bytes"]) == (1, scene.stat().st_size)
    wait_until(lambda: not os.listdir(tmp_path / "far" / "scratch"), "empty scratch directory")


MORE = COPIER.replace("[reading]", "[outputs.more]\ntake = ['*']\nleave = ['cache_*']\nfiles = 5\n\n[reading]")
READER = f"""#!{sys.executable} -IS
import os, sys
scene, out, frame = sys.argv[1], sys.argv[2].removeprefix("--out="), int(sys.argv[3])
before = open(os.path.join(os.path.dirname(scene), f"frame_{{frame:04}}.txt")).read()
for name, text in (
    (f"passes/mask_{{frame:04}}.txt", before.upper()),
    (f"frame_{{frame:04}}.txt", before + " again"),
    (f"frame_{{3 - frame:04}}.txt", "not mine"),
    ("a.mp4", "no film"),
    ("the same?.txt", "the same"),
    ("cache_x/data.txt", "left"),
    ("report.txt", f"of frame {{frame}}"),
    ("z_too_many.txt", "beyond the bound"),
):
    os.makedirs(os.path.dirname(out + name), exist_ok=True)
    open(out + name, "w").write(text)
"""


@pytest.mark.parametrize("shares", [True, False], ids=["shared", "own"])
def test_results_never_meet_inputs_and_more_files_come_home(farm: RealFarm, tmp_path: Path, shares: bool) -> None:
    farm.client.admin.add_engine(MORE)
    program = tmp_path / "copier"
    program.write_text(READER)
    program.chmod(0o755)
    (farm.add_machine if shares else partial(add_apart, farm))("m", engines={"copier": str(program)})
    scene, inputs = tmp_path / "a.scene", {}
    scene.write_text("scene")
    for frame in (1, 2):
        inputs[f"frame_{frame:04}.txt"] = tmp_path / f"in_{frame}"
        inputs[f"frame_{frame:04}.txt"].write_text(f"frame {frame}")
    task_id = farm.client.submit(scene, engine="copier", frames="1-2", scene="a.scene", inputs=inputs)["task_id"]
    task = farm.wait_for_status(task_id, "succeeded", "failed")
    assert (task["status"], task["frames_done"]) == ("succeeded", 2), task["reason"]
    found = {str(one["name"]): one for one in farm.client.results(task_id)}
    assert {name: (one["frame"], one["of_frame"]) for name, one in found.items()} == {
        "frame_0001.txt": (1, None),
        "frame_0002.txt": (2, None),
        "passes/mask_0001.txt": (None, 1),
        "passes/mask_0002.txt": (None, 2),
        "report.txt": (None, None),
        "the same?.txt": (None, None),
    }
    assert fetched(farm, task_id, "frame_0001.txt") == b"frame 1 again"
    assert fetched(farm, task_id, "passes/mask_0002.txt") == b"FRAME 2"
    with zipfile.ZipFile(farm.client.download_zip(task_id, tmp_path / "all.zip")) as archive:
        submitted = {f"submitted/{name}" for name in ("a.scene", *inputs)}
        assert set(archive.namelist()) == {*found, *submitted}
        assert archive.read("submitted/frame_0001.txt") == b"frame 1"
    some = farm.client.download_zip(task_id, tmp_path / "some.zip", frames="2")
    assert set(zipfile.ZipFile(some).namelist()) == {"frame_0002.txt", "passes/mask_0002.txt"}
    told = farm.client.task(task_id)["warnings"]
    assert "z_too_many.txt could not be taken: besides the frames an attempt may have at most 5 files." in told
    assert "Two parts of the task wrote report.txt with different bytes: the first that came is kept." in told
    refused = ("a.mp4", "frame_0001.txt", "frame_0002.txt")
    assert [name for name in refused if f"{name} is not a file" not in str(told)] == []
    assert "the same?.txt" not in str(told)


PARTS = """
import os, sys, bpy
from pathlib import Path
folder = Path(sys.argv[1])

def glowing(name, image=None, colour=(1, 0, 0, 1)):
    material = bpy.data.materials.new(name)
    material.use_nodes = True
    nodes, links = material.node_tree.nodes, material.node_tree.links
    nodes.clear()
    light, end = nodes.new("ShaderNodeEmission"), nodes.new("ShaderNodeOutputMaterial")
    light.inputs["Color"].default_value = colour
    links.new(light.outputs[0], end.inputs["Surface"])
    if image is not None:
        texture = nodes.new("ShaderNodeTexImage")
        texture.image = image
        links.new(texture.outputs["Color"], light.inputs["Color"])
    return material

bpy.ops.wm.read_factory_settings(use_empty=True)
bpy.ops.mesh.primitive_cube_add(size=2)
bpy.context.object.name = "linked cube"
bpy.context.object.data.materials.append(glowing("red"))
bpy.ops.wm.save_as_mainfile(filepath=str(folder / "lib" / "part.blend"))

bpy.ops.wm.read_factory_settings(use_empty=True)
picture = bpy.data.images.new("green", 8, 8)
picture.pixels = [0.0, 1.0, 0.0, 1.0] * 64
picture.filepath_raw, picture.file_format = str(folder / "textures" / "green.png"), "PNG"
picture.save()
scene = bpy.context.scene
bpy.ops.object.camera_add(location=(0, -8, 0), rotation=(1.5708, 0, 0))
scene.camera = bpy.context.object
bpy.ops.mesh.primitive_plane_add(size=2, location=(-1.5, 0, 0), rotation=(1.5708, 0, 0))
outside = bpy.data.images.load(str(folder / "textures" / "green.png"))
bpy.context.object.data.materials.append(glowing("textured", outside))
bpy.ops.wm.save_as_mainfile(filepath=str(folder / "shots" / "shot.blend"))
with bpy.data.libraries.load(str(folder / "lib" / "part.blend"), link=True, relative=True) as (there, here):
    here.objects = ["linked cube"]
scene.collection.objects.link(here.objects[0])
here.objects[0].override_create(remap_local_usages=True).location = (1.5, 0, 0)
scene.render.engine = "CYCLES"
scene.cycles.samples, scene.cycles.use_denoising = 1, False
scene.render.resolution_x, scene.render.resolution_y = 64, 36
bpy.ops.file.make_paths_relative()
bpy.ops.wm.save_mainfile()
print("EXTERNAL", outside.filepath, [one.filepath for one in bpy.data.libraries])
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.blender
def test_scene_with_texture_and_library_renders_on_two_machines_that_fetch_each_file_once(
    farm: RealFarm, tmp_path: Path
) -> None:
    """Scene locality and single flight: many chunks, one download of each file for each machine."""
    parts = tmp_path / "parts"
    for folder in ("lib", "textures", "shots"):
        (parts / folder).mkdir(parents=True)
    assert "EXTERNAL //../textures/green.png ['//../lib/part.blend']" in run_python(PARTS, str(parts)).stdout
    for name in ("far", "away"):
        add_apart(farm, name, flags=("--slots", "2"))
    inputs = {name: parts / name for name in ("textures/green.png", "lib/part.blend")}
    scene = parts / "shots" / "shot.blend"
    names = {"scene": "shots/shot.blend", "inputs": inputs}
    task_id = farm.client.submit(scene, engine="blender", frames="1-8", chunk_size=1, **names)["task_id"]
    task = farm.wait_for_status(task_id, "succeeded", "failed", timeout_s=100)
    assert task["status"] == "succeeded", (tmp_path / "far.log").read_text()[-3000:]
    results = sorted(str(result["name"]) for result in farm.client.results(task_id))
    assert len(results) == 8
    picture = tmp_path / "frame.png"
    picture.write_bytes(fetched(farm, task_id, results[0]))
    left, right = colour_at(picture, 0.3), colour_at(picture, 0.7)
    assert left[1] > 0.5 > left[0], "The texture is missing."
    assert right[0] > 0.5 > right[1], "The library is missing."
    size = sum(path.stat().st_size for path in (scene, *inputs.values()))
    for name in ("far", "away"):
        machine = farm.machine(name)
        assert (machine["input_downloads"], machine["input_bytes"]) == (3, size)
    machines = {attempt["machine_id"] for attempt in farm.client.attempts(task_id)}
    assert len(machines) == 2


def colour_at(picture: Path, across: float) -> tuple[float, ...]:
    """The colour of a pixel half-way down."""
    image = OpenImageIO.ImageBuf(str(picture))
    return tuple(image.getpixel(int(image.spec().width * across), image.spec().height // 2)[:3])


CUT = """
import bpy, os, sys
folder = os.path.join(sys.argv[1], "cut: 1")
os.makedirs(folder)
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
scene.frame_end = 3
scene.render.resolution_x = scene.render.resolution_y = 16
scene.view_settings.view_transform = "Standard"
scene.camera = bpy.data.objects.new("camera", bpy.data.cameras.new("camera"))
scene.collection.objects.link(scene.camera)
names = [f"ho\\u0308lz?_{number}.png" for number in (1, 2, 3)]
for name, colour in zip(names, ((1, 0, 0, 1), (0, 1, 0, 1), (0, 0, 1, 1))):
    picture = bpy.data.images.new(name, 16, 16)
    picture.pixels = colour * 256
    picture.filepath_raw, picture.file_format = os.path.join(folder, name), "PNG"
    picture.save()
    bpy.data.images.remove(picture)
strip = scene.sequence_editor_create().strips.new_image("cut", os.path.join(folder, names[0]), 1, 1)
for name in names[1:]:
    strip.elements.append(name)
bpy.ops.wm.save_as_mainfile(filepath=os.path.join(sys.argv[1], "cut.blend"), relative_remap=False)
os._exit(0)
"""


@pytest.mark.blender
def test_a_cut_named_by_whole_paths_and_odd_letters_is_whole_where_its_files_are_fetched(
    farm: RealFarm, tmp_path: Path
) -> None:
    """Hunt, kinds A, C and D, from the command line to the machine."""
    add_apart(farm, "far")
    parts = tmp_path / "parts"
    run_python(CUT, str(parts))
    login = {"URL": farm.url, "EMAIL": farm.login.email, "TOKEN": farm.login.token}
    environment = os.environ | {f"RENDERONLINE_{name}": value for name, value in login.items()}
    words = [Path(sys.executable).with_name("renderonline"), "submit", parts / "cut.blend", "--frames", "1-3", "--json"]
    said = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, timeout=60)
    parts.rename(tmp_path / "gone")
    task = farm.wait_for_status(json.loads(said.stdout)["task_id"], "succeeded", "failed", timeout_s=100)
    assert (task["status"], task["warnings"]) == ("succeeded", []), (tmp_path / "far.log").read_text()[-3000:]
    for frame, colour in enumerate(((1, 0, 0), (0, 1, 0), (0, 0, 1)), 1):
        picture = tmp_path / "frame.png"
        picture.write_bytes(fetched(farm, task["task_id"], f"frame_{frame:04}.png"))
        assert colour_at(picture, 0.5) == pytest.approx(colour, abs=0.01)
