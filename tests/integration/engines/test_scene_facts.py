"""Facts of scenes that a real Blender saved, and the files that travel with them."""

from pathlib import Path

import pytest

from renderonline.engines.blender.needed_files import survey
from renderonline.rnoclient.scenes import needed_files
from tests.support.blend_files import facts_in
from tests.support.blender import write_small_scene

pytestmark = [pytest.mark.blender, pytest.mark.timeout(300)]

PICTURE = """
def picture(name, path):
    image = bpy.data.images.new(name, 8, 8)
    image.filepath_raw, image.file_format, image.use_fake_user = path, "PNG", True
    image.save()
    image.source = "FILE"
"""
LIBRARY = (
    PICTURE
    + """
picture("grain", {grain!r})
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1])
bpy.ops.file.make_paths_relative()
"""
)
SHOT = (
    PICTURE
    + """
picture("wood", {wood!r})
picture("packed", {packed!r})
bpy.data.images["packed"].pack()
scene.render.fps, scene.render.resolution_percentage = 30, 50
scene.render.image_settings.file_format = "OPEN_EXR"
bpy.ops.scene.new(type="NEW")
bpy.context.scene.name, bpy.context.scene.frame_end = "Second", 77
bpy.context.scene.cycles.device = "GPU"
with bpy.data.libraries.load({library!r}, link=True) as (there, wanted):
    wanted.objects = [name for name in there.objects if "Suz" in name]
for one in wanted.objects:
    bpy.context.scene.collection.objects.link(one)
bpy.context.window.scene = scene
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1], compress={compress})
bpy.ops.file.make_paths_relative()
bpy.context.preferences.filepaths.use_file_compression = {compress}
"""
)


@pytest.fixture(scope="module", params=[True, False], ids=["compressed", "plain"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shot with a texture and a library that has a texture of its own."""
    root = tmp_path_factory.mktemp("film")
    for name in ("lib", "tex"):
        (root / name).mkdir()
    library = root / "lib" / "chairs.blend"
    write_small_scene(library, LIBRARY.format(grain=str(root / "lib" / "grain.png")))
    places = {name: str(root / "tex" / f"{name}.png") for name in ("wood", "packed")}
    write_small_scene(root / "shot.blend", SHOT.format(library=str(library), compress=request.param, **places))
    return root


def test_blenders_own_files_are_read(folder: Path) -> None:
    facts = facts_in(folder / "shot.blend")
    assert facts["version"] >= "4"
    assert facts["scenes"][0] == {
        "name": "Scene",
        "start": 1,
        "end": 10,
        "step": 1,
        "width": 64,
        "height": 36,
        "percent": 50,
        "fps": 30.0,
        "fps_num": 30,
        "fps_den": 1,
        "cameras": ["Camera"],
        "view_layers": ["ViewLayer"],
        "unbaked": [],
        "engine": "CYCLES",
        "format": "OPEN_EXR",
    }
    assert (facts["scenes"][1]["name"], facts["scenes"][1]["end"]) == ("Second", 77)
    assert facts["scenes"][1]["device"] == "gpu"  # what a scene says of cards is a need
    assert facts["warnings"] == []


def test_what_a_shot_needs_is_found_through_its_libraries(folder: Path) -> None:
    wanted = {"tex/wood.png", "lib/chairs.blend", "lib/grain.png"}
    assert set(survey("shot.blend", str(folder))["inputs"]) == wanted
    assert {str(path.relative_to(folder)) for path in needed_files(folder / "shot.blend").inside} == wanted
    (folder / "tex" / "wood.png").rename(folder / "wood.png")
    try:
        assert survey("shot.blend", str(folder))["missing"] == ["tex/wood.png"]
    finally:
        (folder / "wood.png").rename(folder / "tex" / "wood.png")


def test_every_cut_of_a_real_scene_is_refused(folder: Path, tmp_path: Path) -> None:
    data = (folder / "shot.blend").read_bytes()
    for part in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / "cut.blend").write_bytes(data[: int(len(data) * part)])
        assert "ends too early" in survey("cut.blend", str(tmp_path))["broken"]


def test_files_of_other_kinds_and_broken_scenes_need_nothing(tmp_path: Path) -> None:
    for name in ("a.pov", "a.blend"):
        (tmp_path / name).write_bytes(b"nothing")
        assert needed_files(tmp_path / name).inside == []


SIMULATED = """
def thing(name):
    mesh = bpy.data.meshes.new(name)
    mesh.from_pydata([(0, 0, 0), (1, 0, 0), (1, 1, 0)], [], [(0, 1, 2)])
    made = bpy.data.objects.new(name, mesh)
    inner.objects.link(made)
    return made

scene.render.fps, scene.render.fps_base = 30, 1.001
inner = bpy.data.collections.new("inner")
scene.collection.children.link(inner)
inner.objects.link(bpy.data.objects.new("close", bpy.data.cameras.new("close")))
scene.view_layers.new("matte")
thing("flag").modifiers.new("a", "CLOTH")
thing("off").modifiers.new("a", "CLOTH").show_render = False
thing("jelly").modifiers.new("a", "SOFT_BODY")
sand = thing("sand")
sand.modifiers.new("a", "PARTICLE_SYSTEM")
hair = thing("hair")
hair.modifiers.new("a", "PARTICLE_SYSTEM").particle_system.settings.type = "HAIR"
bpy.context.view_layer.objects.active = sand
bpy.ops.rigidbody.object_add()
trees = [bpy.data.node_groups.new(name, "GeometryNodeTree") for name in ("inside", "outside")]
begin, end = (trees[0].nodes.new(f"GeometryNodeSimulation{end}") for end in ("Input", "Output"))
begin.pair_with_output(end)
trees[1].nodes.new("GeometryNodeGroup").node_tree = trees[0]
thing("zone").modifiers.new("a", "NODES").node_group = trees[1]
other = bpy.data.scenes.new("other")
bpy.context.scene.collection.objects.link(bpy.data.objects.new("x", None))
"""


def test_cameras_layers_exact_speed_and_simulations_that_are_not_baked_are_told(tmp_path: Path) -> None:
    facts = facts_in(write_small_scene(tmp_path / "a.blend", SIMULATED))
    first, second = facts["scenes"]
    assert (first["fps_num"], first["fps_den"], first["view_layers"]) == (30000, 1001, ["ViewLayer", "matte"])
    assert first["cameras"] == ["Camera", "close"]
    simulated = {"cloth of flag", "soft body of jelly", "particles of sand", "rigid bodies", "simulation nodes of zone"}
    assert set(first["unbaked"]) == set(facts["unbaked"]) == simulated
    assert (second["name"], second["cameras"], second["unbaked"]) == ("other", [], [])
