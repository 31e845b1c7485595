"""The whole way with a real Blender: what a scene says of itself, its frames, its film."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.test_looks import look
from tests.support.blender import blender_prefix, write_small_scene
from tests.support.browsing import PaintedFarm, Visitor

pytestmark = [pytest.mark.blender, pytest.mark.timeout(300)]

TEXTURED = """
image = bpy.data.images.new("wood", 8, 8)
image.filepath_raw = os.path.join(os.path.dirname(sys.argv[1]), "textures", "wood.png")
image.file_format = "PNG"
os.makedirs(os.path.dirname(image.filepath_raw), exist_ok=True)
image.save()
material = bpy.data.materials.new("wooden")
material.use_nodes = True
node = material.node_tree.nodes.new("ShaderNodeTexImage")
node.image = image
monkey.data.materials.append(material)
scene.render.fps = 12
scene.render.image_settings.file_format = "OPEN_EXR"
scene.frame_start, scene.frame_end = 3, 8
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1])
bpy.ops.file.make_paths_relative()
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a scene and the texture that it names."""
    folder = tmp_path_factory.mktemp("project")
    write_small_scene(folder / "monkey.blend", TEXTURED)
    return folder


@pytest.fixture(scope="module", autouse=True)
def machine(farm: PaintedFarm) -> None:
    """A machine that has Blender; discovery finds it where it is installed, as everywhere."""
    assert blender_prefix()
    farm.real.add_machine("studio", flags=("--slots", "1"))


def test_scene_alone_says_what_is_missing_beside_it(project: Path, visit: Visitor) -> None:
    page = visit.page("/submit")
    page.get_by_label("Scene file").set_input_files(project / "monkey.blend")
    facts = page.locator(".facts")
    expect(facts).to_contain_text("64 × 36")
    expect(facts).to_contain_text("12 fps")
    expect(page.get_by_label("Frames", exact=True)).to_have_value("3-8")
    expect(page.get_by_label("Format")).to_have_value("OPEN_EXR")
    expect(page.locator(".alarm")).to_contain_text("textures/wood.png")
    look(page, "submit-facts")


def test_folder_becomes_frames_and_a_film(farm: PaintedFarm, project: Path, visit: Visitor) -> None:
    """EXR frames, which no browser can show, are seen; the film plays at the scene's speed."""
    page = visit.page("/submit")
    page.get_by_label("Folder with the scene").set_input_files(project)
    expect(page.locator(".facts")).to_contain_text("frames 3–8")
    expect(page.locator(".alarm")).to_have_count(0)
    page.get_by_label("Film", exact=True).select_option("mp4")
    expect(page.get_by_label("Frames per second")).to_have_value("12")
    page.get_by_role("button", name="Submit 6 frames").click()
    expect(page.locator(".summary")).to_contain_text("Done", timeout=200_000)
    expect(page.locator("ro-thumb canvas")).to_have_count(6)
    page.get_by_role("button", name="Frame 5, Done").click()
    viewer = page.locator("dialog.viewer")
    expect(viewer.locator("header")).to_contain_text("64 × 36")
    expect(viewer.get_by_label("Frames per second")).to_have_value("12")
    page.keyboard.press("Escape")
    page.get_by_role("tab", name="Details").click()
    expect(page.get_by_role("heading", name="What the scene says")).to_be_visible()
    look(page, "task-facts")
    page.get_by_role("tab", name="Frames").click()
    page.get_by_role("button", name="Play the film").click()
    video = page.locator("dialog.viewer video")
    expect(video).to_be_visible()
    assert page.request.get(str(video.get_attribute("src")), headers={"Range": "bytes=0-99"}).status == 206
    with page.expect_download() as download:
        page.locator("dialog.viewer").get_by_role("button", name="Download").click()
    assert download.value.suggested_filename.endswith(".mp4")
    look(page, "task-film")
