"""What a real Blender names in a scene travels, and is found again where it lies then (hunt, kinds A, C and D)."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import OpenImageIO
import pytest

from renderonline.engines.blender.needed_files import survey
from tests.support import blender

pytestmark = [pytest.mark.blender, pytest.mark.timeout(300)]

MAKER = Path(blender.__file__).with_name("every_path.py")


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A scene with every kind of path, and what Blender lists of it."""
    folder = tmp_path_factory.mktemp("film")
    argv = [blender.blender_prefix()[0], "-I", "-W", "ignore", str(MAKER), str(folder)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    for copy in folder.glob("*.blend1"):
        copy.unlink()
    return folder, set(re.findall("^LISTED (.+)$", said, re.MULTILINE))


def warnings_of(scene: Path, inputs: Path) -> list[str]:
    """What the launcher warns of when it has loaded a scene whose files lie in `inputs`, and Blender of libraries."""
    argv = ["env", f"RENDERONLINE_INPUTS={inputs}", *blender.blender_prefix(), "-b", str(scene)]
    said = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True).stdout
    return re.findall("^(?:Warning: |Info: (?=Cannot find lib|LIB: .* missing))(.+)$", said, re.MULTILINE)


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_that_blender_lists_travels_and_caches_and_bakes_besides(listed: tuple[Path, set[str]]) -> None:
    folder, named = listed
    told = survey("all.blend", str(folder))
    sent = set(told["inputs"])
    assert sent == files_of(folder) - {"all.blend"}
    assert (told["missing"], told["outside"], told["facts"]["warnings"]) == ([], [], [])
    for name in named:
        first = re.sub("<UDIM>", "1001", name)
        assert first in sent or any(one.startswith(f"{name}/") for one in sent)


def test_what_is_not_there_is_named_before_and_after_it_travelled(
    listed: tuple[Path, set[str]], tmp_path: Path
) -> None:
    folder, named = listed
    shutil.copy(folder / "all.blend", tmp_path)
    (tmp_path / "clip").mkdir()
    shutil.copy(folder / "clip/c_0001.png", tmp_path / "clip")
    found = survey("all.blend", str(tmp_path))
    assert found["facts"]["warnings"] == ["2 of 3 pictures of clip/c_0001.png are not there"]
    missing = set(found["missing"]) | {"clip/c_0001.png"}
    silent = {"fluid", "txt/t.py", "lib/grain.png"}  # nothing was baked; Blender keeps texts; the library is not there
    assert named - silent <= missing
    told = warnings_of(tmp_path / "all.blend", tmp_path)
    assert len(told) == 21
    assert re.fullmatch(r"\d+ more files are not there", told[-1])


def test_files_are_found_under_other_letter_case_and_from_whole_paths(
    listed: tuple[Path, set[str]], tmp_path: Path
) -> None:
    folder, _ = listed
    whole = tmp_path / "project"
    code = "import bpy, sys; bpy.ops.wm.open_mainfile(filepath=sys.argv[1]); bpy.ops.file.make_paths_absolute(); "
    code += "bpy.ops.wm.save_mainfile(); import os; sys.stdout.flush(); os._exit(0)"
    shutil.copytree(folder, whole)
    blender.run_python(code, str(whole / "all.blend"))
    sent = tmp_path / "elsewhere"
    for name in survey("all.blend", str(whole))["inputs"]:
        target = sent / (name if name.startswith(("lib/", "blendcache")) else name.upper())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(whole / name, target)
    shutil.copy(whole / "all.blend", sent)
    (sent / "TEX/PLAIN.PNG").rename(sent / "TEX/other name.png")
    (sent / "_renderonline_names.json").write_text('{"tex/plain.png": "TEX/other name.png", "seq": "../../etc"}')
    os.rename(whole, tmp_path / "away")
    told = survey("all.blend", {name: str(sent / name) for name in files_of(sent)})
    assert (told["missing"], told["outside"]) == ([], [])
    assert set(told["inputs"]) >= {
        name for name in files_of(sent) if not name.startswith(("all.", "BAKES", "FLUID", "_"))
    }
    assert warnings_of(sent / "all.blend", sent) == []


CUT = """
import bpy, os, sys
bpy.ops.wm.read_factory_settings(use_empty=True)
scene = bpy.context.scene
scene.render.resolution_x = scene.render.resolution_y = 8
scene.view_settings.view_transform = "Standard"
strip = scene.sequence_editor_create().strips.new_image("cut", sys.argv[2], 1, 1)
for name in ("b.png", "c.png"):
    strip.elements.append(name)
strip.directory = "//cut/"
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1])
os._exit(0)
"""


def test_missing_pictures_of_a_strip_show_blenders_own_colour_and_never_crash(
    listed: tuple[Path, set[str]], tmp_path: Path
) -> None:
    folder, _ = listed
    blender.run_python(CUT, str(tmp_path / "cut.blend"), str(folder / "tex" / "plain.png"))
    assert survey("cut.blend", str(tmp_path))["facts"]["warnings"] == []  # its frames need no camera
    words = ("-b", str(tmp_path / "cut.blend"), "-o", str(tmp_path / "f_####"), "-F", "PNG", "-f", "1..3")
    said = blender.run_blender(*words)
    assert said.returncode == 0, said.stderr
    assert re.findall("^Warning: (.+) is not there", said.stdout, re.MULTILINE) == [
        "//cut/plain.png",
        "//cut/b.png",
        "//cut/c.png",
    ]
    for frame in (1, 2, 3):
        picture = OpenImageIO.ImageBuf(str(tmp_path / f"f_{frame:04}.png"))
        assert [round(one * 255) for one in picture.getpixel(4, 4)][:3] == [217, 0, 191]
