"""The launcher with a real Blender: it renders what it is told, and lies about nothing."""

import json
import signal
import subprocess
import time
from pathlib import Path

import imageio_ffmpeg
import pytest
from OpenImageIO import ImageBuf

from renderonline.engines.blender.install import launched
from renderonline.engines.command_lines import OutputReader, build, complete
from renderonline.engines.definition import parse_definition, shipped, template_words
from renderonline.engines.discovery import renderers_of
from renderonline.farm.frames import FrameRange
from renderonline.farm.needs import unbaked_warnings
from renderonline.storage.images import ImageChecker
from tests.support.blend_files import facts_in
from tests.support.blender import (
    BAKED_NODES,
    DEMO_SCENE,
    blender_prefix,
    everything_at_once,
    run_blender,
    run_python,
    write_small_scene,
)

pytestmark = [pytest.mark.blender, pytest.mark.timeout(600)]

DEFINITION = parse_definition(shipped()["blender"])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the scenes of this module."""
    directory = tmp_path_factory.mktemp("scenes")
    write_small_scene(directory / "small.blend")
    return directory


def test_the_shipped_definition_renders_a_chunk(scenes: Path, tmp_path: Path) -> None:
    command = build(
        DEFINITION,
        template_words(DEFINITION),
        complete(DEFINITION, {"end_frame": "10", "threads": "1"}),
        chunk=FrameRange(3, 7, 2),
        task_frames=tuple(range(1, 11)),
        scene=str(scenes / "small.blend"),
        output_directory=str(tmp_path),
    )
    done = run_blender(*command.argv)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [output.name for output in command.expected]
    reader = OutputReader(DEFINITION.reading, command.frames)
    readings = [reader.line(line) for line in done.stdout.splitlines()]
    fractions = [reading.fraction for reading in readings if reading.fraction is not None]
    assert fractions[-1] == 1.0
    saved = {reading.saved for reading in readings if reading.saved}
    assert saved == {str(tmp_path / output.name) for output in command.expected}
    assert not any(reading.failure or reading.warning for reading in readings)
    with ImageChecker() as checker:
        for output in command.expected:
            check = checker.check(tmp_path / output.name)
            assert check.ok, check.reason
            assert (check.facts["width"], check.facts["height"]) == (64, 36)
            assert check.facts["frame"] == output.frame
            assert check.facts["render_time_s"] >= 0
            assert check.facts["memory_mib"] > 0
            assert not check.facts["constant"]


def test_the_render_time_is_stamped_even_where_the_scene_switched_it_off(tmp_path: Path) -> None:
    changes = "r = scene.render; r.use_stamp = {}; r.use_stamp_render_time = False"
    write_small_scene(tmp_path / "off.blend", changes.format(False))
    write_small_scene(tmp_path / "burnt.blend", changes.format(True))
    with ImageChecker() as checker:
        for name, stamped in (("off", True), ("burnt", False)):  # painted into the picture is the scene's own affair
            done = run_blender(
                "-b", str(tmp_path / f"{name}.blend"), "-o", str(tmp_path / f"{name}_#"), "-x", "1", "-f", "1"
            )
            assert done.returncode == 0, done.stderr
            assert ("render_time_s" in checker.check(tmp_path / f"{name}_1.png").facts) is stamped


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["-F", "OPEN_EXR_MULTILAYER", "-f", "2,4..5"], ["f_02.exr", "f_04.exr", "f_05.exr"]),
        (["-F", "TGA", "-s", "9", "-e", "10", "-a"], ["f_09.tga", "f_10.tga"]),
        (["-F", "JPEG", "-x", "0", "-f", "+1"], ["f_02"]),
        (["-t", "0", "-F", "WEBP", "-x", "1", "-s", "-2", "-e", "-1", "-a"], ["f_-01.webp", "f_-02.webp"]),
        (
            ["-S", "Scene", "-E", "CYCLES", "-s", "1", "-e", "10", "-j", "9", "--python-exit-code", "9", "-a"],
            ["f_01.png", "f_10.png"],
        ),
    ],
)
def test_blenders_own_options_are_taken_in_order(
    scenes: Path, tmp_path: Path, words: list[str], names: list[str]
) -> None:
    done = run_blender("blender", "-b", str(scenes / "small.blend"), "-o", str(tmp_path / "f_##"), *words)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == names


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["-b", "SCENE", "-P", "x.py", "-a"], 2, "option -P is not allowed here"),
        (["-b", "SCENE", "--python-expr", "print(1)"], 2, "option --python-expr is not allowed"),
        (["-b", "SCENE", "-y", "-a"], 2, "option -y is not allowed"),
        (["-b", "SCENE", "--enable-autoexec", "-a"], 2, "not allowed"),
        (["-b", "SCENE", "--", "x"], 2, "option -- is not allowed"),
        (["-b", "SCENE", "--addons", "x"], 2, "not allowed"),
        (["-b", "SCENE", "-o"], 2, "option -o needs a value"),
        (["-b", "SCENE", "-t", "many", "-a"], 2, "-t many must be a number from 0 to 1024"),
        (["-b", "SCENE", "-j", "0", "-a"], 2, "-j 0 must be"),
        (["-b", "SCENE", "-s", "1e9", "-a"], 2, "-s 1e9 is not a frame number"),
        (["-b", "SCENE", "-f", "1..999999"], 2, "too many frames"),
        (["-b", "SCENE", "-f", "3..1"], 1, "no frame to render"),
        (["-b", "SCENE", "-F", "NOPE", "-a"], 2, "format not found 'NOPE'"),
        (["-b", "SCENE", "-F", "FFMPEG", "-a"], 2, "is a film"),
        (["-b", "SCENE", "-E", "NOPE", "-a"], 1, "engine not found 'NOPE'"),
        (["-b", "SCENE", "-S", "NOPE", "-a"], 1, "Can't find scene: 'NOPE'"),
        (["-b", "SCENE", "-o", "/proc/x/f_#", "-a"], 1, "cannot save"),
        (["-b", "missing.blend", "-a"], 1, "Cannot read file 'missing.blend'"),
        (["-a"], 1, "Cannot render without a blend file"),
    ],
)
def test_what_can_not_be_done_is_refused_with_an_exit_code(
    scenes: Path, words: list[str], code: int, said: str
) -> None:
    scene = str(scenes / "small.blend")
    done = run_blender(*(scene if word == "SCENE" else word for word in words), cwd=scenes)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
    assert not list(scenes.glob("own_*"))


@pytest.mark.parametrize("kind", ["empty", "garbage", "truncated", "no camera", "film"])
def test_broken_scenes_end_with_1_and_a_line_that_the_definition_knows(scenes: Path, tmp_path: Path, kind: str) -> None:
    scene = tmp_path / "scene.blend"
    whole = (scenes / "small.blend").read_bytes()
    if kind == "no camera":
        write_small_scene(scene, "scene.camera = None")
    elif kind == "film":
        write_small_scene(scene, "i = scene.render.image_settings; i.media_type = 'VIDEO'; i.file_format = 'FFMPEG'")
    else:
        scene.write_bytes({"empty": b"", "garbage": b"hello" * 100, "truncated": whole[: len(whole) // 2]}[kind])
    done = run_blender("-b", str(scene), "-o", str(tmp_path / "f_#"), "-a")
    assert done.returncode == (2 if kind == "film" else 1)
    reader = OutputReader(DEFINITION.reading, (1,))
    failures = [reading.failure for line in done.stderr.splitlines() if (reading := reader.line(line)).failure]
    if kind != "film":
        assert failures, done.stderr
        assert failures[0] is not None
        assert failures[0][0] == "scene"


def test_a_chunk_shows_what_one_process_would_show_and_brings_every_output_home(tmp_path: Path) -> None:
    """A driver reads the scene's last frame, a marker changes the camera, the shutter is open, nodes write besides."""
    scene, home = tmp_path / "shot" / "all.blend", tmp_path / "{blend_name}#"
    scene.parent.mkdir()
    write_small_scene(scene, everything_at_once(str(tmp_path / "away")))
    own = "import bpy, sys; bpy.ops.wm.open_mainfile(filepath=sys.argv[1]); r = bpy.context.scene.render;"
    own += "r.filepath = sys.argv[2]; bpy.ops.render.render(animation=True)"
    run_python(own, str(scene), str(tmp_path / "own" / "frame_####"))
    away = {path: path.read_bytes() for path in (tmp_path / "away").iterdir()}
    done = run_blender("-b", str(scene), "-o", f"{home}/frame_####", "-F", "PNG", "-s", "3", "-e", "4", "-j", "1", "-a")
    assert done.returncode == 0, done.stderr
    root = str(tmp_path / "away").lstrip("/")
    names = {f"{name}{frame:04d}.png" for name in ("frame_", "File Output/frame_", f"{root}/z_") for frame in (3, 4)}
    assert {str(path.relative_to(home)) for path in home.rglob("*.png")} == names
    saved = {OutputReader(DEFINITION.reading, (3, 4)).line(line).saved for line in done.stdout.splitlines()}
    assert saved - {None} == {f"{home}/{name}" for name in names}
    assert {path: path.read_bytes() for path in (tmp_path / "away").iterdir()} == away
    for frame in (3, 4):
        for ours, theirs in ((home, tmp_path / "own"), (home / "File Output", scene.parent)):
            pictures = [ImageBuf(str(folder / f"frame_{frame:04d}.png")).get_pixels() for folder in (ours, theirs)]
            assert (pictures[0] == pictures[1]).all()
    assert (home / "frame_0003.png").read_bytes() != (home / "frame_0004.png").read_bytes()


def test_a_bake_on_the_disk_is_shown_where_it_may_only_be_read(tmp_path: Path) -> None:
    """Blender opens bakes of geometry nodes for writing, and shows nothing where it may not."""
    shot, home = tmp_path / "shot", tmp_path / "home"
    for folder in (shot, home):
        folder.mkdir()
    write_small_scene(shot / "baked.blend", BAKED_NODES)
    before = sorted(shot.rglob("*.json"))
    assert before
    own = "import bpy, sys; bpy.ops.wm.open_mainfile(filepath=sys.argv[1]); r = bpy.context.scene.render;"
    own += "r.filepath = sys.argv[2]; bpy.ops.render.render(animation=True, frame_start=3, frame_end=3)"
    run_python(own, str(shot / "baked.blend"), str(home / "own_#"))
    box = ["bwrap", "--bind", "/", "/", "--dev-bind", "/dev", "/dev", "--ro-bind", str(shot), str(shot)]
    words = ["-b", str(shot / "baked.blend"), "-o", f"{home}/farm_#", "-F", "PNG", "-f", "3"]
    done = subprocess.run([*box, *blender_prefix(), *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pictures = [ImageBuf(str(home / f"{name}_3.png")).get_pixels() for name in ("own", "farm")]
    assert pictures[0].max(axis=(0, 1))[1] > 0.1, "Nothing is seen."
    assert (pictures[0] == pictures[1]).all()
    assert sorted(shot.rglob("*.json")) == before


def test_what_a_task_asks_of_its_scene_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = """
scene.name = "red room"; other = scene.copy(); other.name, other.use_fake_user = "blue room", True
near = bpy.data.objects.new("near", scene.camera.data); near.location = (0, -3, 0); near.rotation_euler = (1.5708, 0, 0)
other.collection.objects.link(near); other.timeline_markers.new("m", frame=1).camera = scene.camera
other.view_layers.new("second")
tree = other.compositing_node_group = bpy.data.node_groups.new("c", "CompositorNodeTree")
tree.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
for name in ("ViewLayer", "second"):
    layer = tree.nodes.new("CompositorNodeRLayers"); layer.scene, layer.layer = other, name
tree.links.new(layer.outputs["Image"], tree.nodes.new("NodeGroupOutput").inputs[0])
scene.render.engine = "CYCLES"
class Octane(bpy.types.RenderEngine):
    bl_idname, bl_label = "OCTANE", "Octane"
bpy.utils.register_class(Octane); scene.render.engine = other.render.engine = "OCTANE"
"""
    scene = write_small_scene(tmp_path / "rooms.blend", changes)
    words = ("-b", str(scene), "-o", str(tmp_path / "f_#"), "-f", "1")
    lacks = run_blender(*words)
    assert (lacks.returncode, "this Blender has no render engine OCTANE" in lacks.stderr) == (3, True), lacks.stderr
    asked = {"SCENE": "blue room", "CAMERA": "near", "VIEW_LAYER": "second", "SAMPLES": "2", "WIDTH": "40"}
    asked |= {"HEIGHT": "20", "PERCENT": "50", "TRANSPARENT": "yes", "ENGINE": "CYCLES"}
    for name, value in asked.items():
        monkeypatch.setenv(f"RENDERONLINE_BLENDER_{name}", value)
    done = run_blender(*words)
    assert done.returncode == 0, done.stderr
    assert "Sample 2/2" in done.stdout
    assert "Warning: The compositor also reads other view layers" in done.stdout
    with ImageChecker() as checker:
        facts = checker.check(tmp_path / "f_1.png").facts
    assert (facts["width"], facts["height"], facts["channels"]) == (20, 10, 4)
    assert (facts["camera"], facts["scene"]) == ("near", "blue room")
    monkeypatch.setenv("RENDERONLINE_BLENDER_CAMERA", "far")
    wrong = run_blender(*words)
    assert (wrong.returncode, "has no camera 'far'; it has: Camera, near" in wrong.stderr) == (2, True), wrong.stderr


def test_a_stereo_scene_gives_a_file_for_each_eye_and_blocked_python_is_told(tmp_path: Path) -> None:
    changes = """
scene.render.use_multiview = True; scene.render.image_settings.views_format = "INDIVIDUAL"
scene.render.views["left"].file_suffix = ".left eye"
bpy.data.texts.new("rig.py").use_module = True
driver = bpy.data.objects["Suzanne"].driver_add("location", 0).driver
driver.expression = "bpy.context.scene.frame_current"
scene.render.use_freestyle = True
"""
    scene = write_small_scene(tmp_path / "stereo.blend", changes)
    assert [one["view"] for one in facts_in(scene)["scenes"]] == [".left eye"]
    done = run_blender("-b", str(scene), "-o", str(tmp_path / "f_#"), "-F", "PNG", "-f", "1..2")
    assert done.returncode == 0, done.stderr
    eyes = (".left eye", "_R")
    assert {path.name for path in tmp_path.glob("f_*")} == {f"f_{frame}{eye}.png" for frame in (1, 2) for eye in eyes}
    assert "ImportError" not in done.stderr  # Blender's own modules are found, whatever the launcher's are called
    warnings = [line for line in done.stdout.splitlines() if line.startswith("Warning: ")]
    assert [("rig.py" in line, "bpy.context" in line) for line in warnings] == [(True, False), (False, True)]


def test_the_sound_of_the_tasks_frames_is_mixed_by_who_renders_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tone = ("-f", "lavfi", "-i", "sine=frequency=440:duration=2", str(tmp_path / "tone.wav"))
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *tone], check=True)
    changes = f"""
scene.frame_end, scene.render.fps = 100, 25
editor = scene.sequence_editor_create()
strips = editor.strips if hasattr(editor, "strips") else editor.sequences
strips.new_sound("tone", {str(tmp_path / "tone.wav")!r}, channel=1, frame_start=1)
"""
    scene = write_small_scene(tmp_path / "talk.blend", changes)
    monkeypatch.setenv("RENDERONLINE_BLENDER_FIRST", "3")
    monkeypatch.setenv("RENDERONLINE_BLENDER_LAST", "27")
    for first, sounds in (("4", 0), ("3", 1)):
        home = tmp_path / first
        done = run_blender("-b", str(scene), "-o", f"{home}/f_#", "-F", "PNG", "-s", first, "-e", first, "-a")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"Saved: '{home}/sound.flac'") == sounds
        assert len(list(home.glob("*.flac"))) == sounds
    about = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(home / "sound.flac")], capture_output=True, text=True, check=False
    )
    assert "Duration: 00:00:01.00" in about.stderr


def test_blender_the_program_runs_the_same_launcher(scenes: Path, tmp_path: Path) -> None:
    """Here the module stands in for the program: it takes the program's words and runs what `--python` names."""
    program = tmp_path / "blender"
    source = "import bpy, runpy, sys; runpy.run_path(sys.argv[sys.argv.index('--python') + 1], run_name='__main__')"
    program.write_text(f"#!{blender_prefix()[0]} -I\n{source}\n")
    program.chmod(0o755)
    words = launched([str(program)], "5.0.1")
    for chosen, code in ((("-e", "2"), 0), (("-E", "NOPE"), 1), (("-P", "x.py"), 2)):
        argv = [*words, "-b", "--factory-startup", str(scenes / "small.blend"), "-o", str(tmp_path / "f_#"), "-s", "2"]
        done = subprocess.run([*argv, *chosen, "-a"], capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done.stderr
    assert [path.name for path in tmp_path.glob("f_*")] == ["f_2.png"]


HOSTILE = """
import bpy, os, sys
marker = sys.argv[1]
text = bpy.data.texts.new("startup.py")
text.write(f"open({marker!r} + '.text', 'w').close()")
text.use_module = True
driver = bpy.data.objects["Suzanne"].driver_add("location", 0).driver
driver.expression = f"open({marker!r} + '.driver', 'w').close() or 0"
"""


def test_scripts_in_a_scene_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    scene = write_small_scene(tmp_path / "hostile.blend", HOSTILE.replace("sys.argv[1]", repr(str(marker))))
    # The scene is as bad as it claims: whoever opens it with its scripts on, runs them.
    run_python("import bpy, sys; bpy.ops.wm.open_mainfile(filepath=sys.argv[1], use_scripts=True)", str(scene))
    assert {path.suffix for path in tmp_path.glob("ran*")} == {".text", ".driver"}
    for path in tmp_path.glob("ran*"):
        path.unlink()
    done = run_blender("-b", str(scene), "-o", str(tmp_path / "f_#"), "-x", "1", "-f", "1")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f_1.png").exists()
    assert not list(tmp_path.glob("ran*"))


def test_a_missing_library_is_said_in_a_line_that_the_definition_knows(tmp_path: Path) -> None:
    write_small_scene(tmp_path / "library.blend")
    linked = "import bpy; h = bpy.data.libraries.load(sys.argv[1].replace('main', 'library'), link=True)"
    linked += "\nwith h as (a, b): b.objects = ['Suzanne']\nscene.collection.objects.link(b.objects[0])"
    write_small_scene(tmp_path / "main.blend", linked)
    (tmp_path / "library.blend").unlink()
    done = run_blender("-b", str(tmp_path / "main.blend"), "-o", str(tmp_path / "f_#"), "-x", "1", "-f", "1")
    reader = OutputReader(DEFINITION.reading, (1,))
    lines = (done.stdout + done.stderr).splitlines()
    assert any(reader.line(line).warning for line in lines), lines


LACKING = """
image = bpy.data.images.new("wood", 8, 8)
image.filepath_raw, image.file_format = os.path.join(os.path.dirname(sys.argv[1]), "wood.png"), "PNG"
image.save(); image.source = "FILE"; os.remove(image.filepath_raw)
material = bpy.data.materials.new("m"); material.use_nodes = True; monkey.data.materials.append(material)
material.node_tree.nodes.new("ShaderNodeTexImage").image = image
bpy.data.objects.remove(scene.camera)
for kind in ("CLOTH", "SOFT_BODY"):
    monkey.modifiers.new(kind, kind)
"""


def test_a_check_says_what_is_missing_and_renders_nothing(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert DEFINITION.check is not None
    for name, value in DEFINITION.check.environment.items():
        monkeypatch.setenv(name, value)

    def warnings(scene: Path) -> list[str]:
        done = run_blender("-b", str(scene), "-o", str(tmp_path / "out" / "f_#"), "-s", "1", "-e", "10", "-a")
        assert done.returncode == 0, done.stderr
        readings = list(OutputReader(DEFINITION.reading, (1,)).lines(done.stdout.splitlines()))
        assert not any(reading.failure for reading in readings)
        return [reading.warning for reading in readings if reading.warning]

    assert warnings(scenes / "small.blend") == []
    file, camera, unbaked = warnings(write_small_scene(tmp_path / "lacking.blend", LACKING))
    assert file == "//wood.png is not there: it was not sent with the scene"
    assert camera.startswith("The scene has no camera: choose one")
    names = facts_in(tmp_path / "lacking.blend")["unbaked"]
    assert unbaked_warnings(names) == [unbaked]
    monkeypatch.setenv("RENDERONLINE_BLENDER_ENGINE", "OCTANE")
    assert warnings(scenes / "small.blend") == ["this Blender has no render engine OCTANE"]
    assert not (tmp_path / "out").exists()


def test_sigterm_ends_a_render_at_once(scenes: Path, tmp_path: Path) -> None:
    write_small_scene(tmp_path / "long.blend", "scene.cycles.samples = 1000000; scene.render.resolution_x = 1920")
    argv = [*blender_prefix(), "-b", str(tmp_path / "long.blend"), "-o", str(tmp_path / "f_#"), "-t", "1", "-a"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "Sample 0/" in line:
                break
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        assert time.monotonic() - began < 2
    assert not list(tmp_path.glob("f_*"))


def test_one_thread_keeps_one_processor_busy(tmp_path: Path) -> None:
    write_small_scene(tmp_path / "long.blend", "scene.cycles.samples = 800; scene.render.resolution_x = 640")
    code = """
import json, os, subprocess, sys
began = os.times()
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
ended = os.times()
used = ended.children_user + ended.children_system - began.children_user - began.children_system
print(json.dumps([used, ended.elapsed - began.elapsed]))
"""
    words = [*blender_prefix(), "-b", str(tmp_path / "long.blend"), "-o", str(tmp_path / "f_#"), "-t", "1", "-f", "1"]
    used, passed = json.loads(run_python(code, *words).stdout)
    assert used < 1.25 * passed + 0.5


def test_nothing_is_left_in_the_temporary_directory(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    assert run_blender("-b", str(scenes / "small.blend"), "-o", str(tmp_path / "f_#"), "-f", "1").returncode == 0
    assert run_blender("-b", str(scenes / "small.blend"), "-o", "/proc/x/f_#", "-f", "1").returncode == 1
    assert list((tmp_path / "tmp").iterdir()) == []


def test_version_and_help_need_no_scene() -> None:
    assert run_blender("--version").stdout.startswith("Blender ")
    found = renderers_of(blender_prefix(), "", DEFINITION, 60, None)
    assert {"BLENDER_EEVEE", "BLENDER_WORKBENCH", "CYCLES"} <= set(found)
    assert run_blender("--help").stdout.startswith("Usage: blender -b FILE")
    assert run_blender().returncode == 0


@pytest.mark.timeout(300)
def test_the_demo_is_24_frames_and_renders_the_same_twice(tmp_path: Path) -> None:
    scene = DEMO_SCENE
    for name, frames in (("a", "1,13"), ("b", "1")):
        words = ["-b", str(scene), "-o", str(tmp_path / f"{name}_#"), "-F", "PNG", "-x", "1", "-t", "1", "-f", frames]
        done = run_blender(*words)
        assert done.returncode == 0, done.stderr
    read = "import bpy, json, sys; bpy.ops.wm.open_mainfile(filepath=sys.argv[1]); s = bpy.context.scene;"
    read += "print('FACTS', json.dumps([s.frame_start, s.frame_end, s.render.fps, s.render.engine]))"
    facts = run_python(read, str(scene)).stdout.split("FACTS ")[1].splitlines()[0]
    assert json.loads(facts) == [1, 24, 24, "CYCLES"]
    once, again = (ImageBuf(str(tmp_path / f"{name}_1.png")).get_pixels() for name in ("a", "b"))
    assert (once == again).all()
    with ImageChecker() as checker:
        checks = [checker.check(tmp_path / f"a_{number}.png") for number in (1, 13)]
    assert all(check.ok and check.facts["width"] >= 640 and check.facts["height"] >= 360 for check in checks)
    assert (tmp_path / "a_1.png").read_bytes() != (tmp_path / "a_13.png").read_bytes()
