"""The rules of Blender's launcher that need no Blender: names of files, options, frames, what counts as written."""

import io
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from renderonline.engines.blender.launcher import Failed, NoEngine, WrongOption, say, speak_utf8
from renderonline.engines.blender.launcher.command import Session
from renderonline.engines.blender.launcher.companions import Companions, below
from renderonline.engines.blender.launcher.task_options import EngineNames, SceneOptions
from renderonline.engines.command_lines import spelled
from renderonline.engines.definition import parse_definition, shipped


@pytest.mark.parametrize(
    ("path", "home"),
    [
        ("//passes/", "passes"),
        ("//", ""),
        ("/show/shot/passes/deep_", "passes/deep_"),  # in the scene's own folder
        ("/srv/nas/deep/", "srv/nas/deep"),
        ("//../../etc/x", "etc/x"),
        ("/srv/../../../x", "x"),
        ("C:\\show\\passes\\z_", "show/passes/z_"),
        ("//a\\..\\..\\b", "b"),
        ("a/./b\n", "a/b_"),
        ("//pässe/m: é?_", "pässe/m_ é__"),  # fit for every system
        ("/1/2/3/4/5/6/7/8/9/10", "3/4/5/6/7/8/9/10"),
        ("/show/shotgun/x", "show/shotgun/x"),
    ],
)
def test_paths_of_a_scene_come_home_below_the_output_directory(path: str, home: str) -> None:
    assert below(path, "/show/shot") == home


class Node(SimpleNamespace):
    """A File Output node of Blender 5, a frame of a tree or a group."""

    mute = False
    bl_idname = "CompositorNodeOutputFile"

    def __init__(self, directory: str, file_name: str, *items: str, name: str = "File Output") -> None:
        image = SimpleNamespace(media_type="IMAGE", file_format="PNG")
        outputs = [SimpleNamespace(name=item, override_node_format=False) for item in items]
        super().__init__(directory=directory, file_name=file_name, name=name, format=image, file_output_items=outputs)

    def as_pointer(self) -> int:
        return id(self)


class Tree(SimpleNamespace):
    def as_pointer(self) -> int:
        return id(self)

    def copy(self) -> "Tree":
        return Tree(nodes=[Node(one.directory, one.file_name, "", name=one.name) for one in self.nodes])


class Render(SimpleNamespace):
    def frame_path(self, frame: int, view: str = "") -> str:
        text = str(self.filepath).replace("{blend_name}", "shot").replace("{{", "{").replace("}}", "}")
        return text.replace("####", f"{frame:04d}") + view


class Scene(SimpleNamespace):
    def as_pointer(self) -> int:
        return id(self)


def scene_with(*nodes: Any) -> Scene:
    image = SimpleNamespace(file_format="PNG", views_format="INDIVIDUAL")
    render = Render(filepath="/out/frame_####", use_file_extension=True, image_settings=image, use_multiview=False)
    render.use_compositing, render.use_sequencer, render.engine = True, False, "CYCLES"
    return Scene(name="Scene", render=render, compositing_node_group=Tree(nodes=list(nodes)), sequence_editor=None)


BPY = SimpleNamespace(data=SimpleNamespace(filepath="/show/shot/scene.blend"))


def test_outputs_keep_their_names_and_never_share_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    inner = Tree(nodes=[Node("//in/", "g_####", "")])
    groups = [SimpleNamespace(mute=False, bl_idname="CompositorNodeGroup", node_tree=inner) for _ in range(2)]
    nodes = [
        Node("//passes/", "mask_####", "mask"),
        Node("//", "frame_####", "", name="Beauty"),
        Node("//Passes/", "MASK_##", "mask", name="Again"),
        Node("//", "{blend_name}_{node_name}_", "z", name="d/../../e"),
    ]
    muted = Node("/etc/", "x", "")
    muted.mute = True
    Companions(BPY, scene_with(*nodes, muted, *groups), "/out").take_home()
    assert [(node.directory, node.file_name) for node in nodes] == [
        ("/out/passes/", "mask_####"),
        ("/out/Beauty/", "frame_####"),
        ("/out/Again/Passes/", "MASK_##"),
        ("/out/", "e_"),
    ]
    # Blender itself adds no number in a scene that another one's sequencer shows.
    assert [item.name for node in nodes for item in node.file_output_items] == ["mask", "", "mask", "z####"]
    assert groups[0].node_tree is not groups[1].node_tree
    inside = [group.node_tree.nodes[0].directory for group in groups]
    assert inside == ["/out/in/", "/out/File Output/in/"]
    assert capsys.readouterr().out.count("Warning: The node ") == 3


def test_without_an_output_directory_the_scene_decides() -> None:
    node = Node("/srv/passes/", "x", "")
    Companions(BPY, scene_with(node), "").take_home()
    assert node.directory == "/srv/passes/"


def test_an_option_with_a_value_that_blender_does_not_take_is_refused_by_name() -> None:
    for name, value in (("SAMPLES", "many"), ("WIDTH", "0"), ("PERCENT", "99999"), ("HEIGHT", "-5")):
        with pytest.raises(WrongOption, match=f"{name.lower()} {value} must be a number"):
            SceneOptions({f"RENDERONLINE_BLENDER_{name}": value})
    assert SceneOptions({"RENDERONLINE_BLENDER_CAMERA": "", "PATH": "/bin"}).of("CAMERA") == ""


def test_a_wrong_name_is_answered_with_those_that_there_are() -> None:
    blend = SimpleNamespace(data=SimpleNamespace(scenes=[SimpleNamespace(name="red"), SimpleNamespace(name="blue")]))
    with pytest.raises(WrongOption, match="The file has no scene 'green'; it has: red, blue"):
        SceneOptions({"RENDERONLINE_BLENDER_SCENE": "green"}).scene_of(blend)


@pytest.mark.parametrize("name", ["K\u00fcche \\ 2", "\u5834\u9762", "a\\xfc", "plain"])
def test_a_name_of_any_letters_reaches_the_launcher(name: str) -> None:
    definition = parse_definition(shipped()["blender"])
    value = spelled(definition, {"scene": name})["scene"]
    assert value.isascii()
    wanted = SimpleNamespace(name=name)
    blend = SimpleNamespace(data=SimpleNamespace(scenes=[SimpleNamespace(name="other"), wanted]))
    assert SceneOptions({"RENDERONLINE_BLENDER_SCENE": value}).scene_of(blend) is wanted


class Engine(SimpleNamespace):
    """Render settings whose memory nobody can look at, and that know two engines."""

    def __setattr__(self, name: str, value: object) -> None:
        if name == "engine" and value not in ("CYCLES", "BLENDER_EEVEE_NEXT"):
            raise TypeError
        super().__setattr__(name, value)


def test_eevee_has_the_name_that_this_blender_gives_it() -> None:
    scene = SimpleNamespace(name="Scene", render=Engine(engine="CYCLES"))
    engines = EngineNames(SimpleNamespace(context=SimpleNamespace(scene=scene)))
    engines.choose(scene, "BLENDER_EEVEE")
    assert scene.render.engine == "BLENDER_EEVEE_NEXT"
    with pytest.raises(NoEngine, match="this Blender has no render engine OCTANE"):
        engines.choose(scene, "OCTANE")


def rendering(directory: Path, write: bool, age_s: float, views: tuple[str, ...] = ()) -> None:
    """Render frame 3 with a Blender that writes its file, or one for each view, with a clock that is off."""
    scene = scene_with()
    scene.frame_start, scene.frame_end, scene.frame_step = 1, 9, 1
    scene.render.filepath = str(directory / "frame_####")
    scene.render.use_multiview, scene.render.views_format = bool(views), "MULTIVIEW"
    scene.render.views = [SimpleNamespace(name=view, use=True) for view in views]

    def render(**_: Any) -> set[str]:
        for view in views or ("",):
            path = scene.render.frame_path(3, view)
            if write:
                Path(path).write_text("picture")
                os.utime(path, ns=(10**18, int(10**18 + age_s * 1e9)))
        return {"FINISHED"}

    render.get_rna_type = lambda: SimpleNamespace(properties={"frame_start": 0})  # type: ignore[attr-defined]
    operators = SimpleNamespace(render=SimpleNamespace(render=render))
    context = SimpleNamespace(scene=SimpleNamespace(render=Engine(engine="CYCLES")))
    bpy = SimpleNamespace(ops=operators, path=SimpleNamespace(abspath=str), context=context, data=BPY.data)
    session = Session(bpy, SceneOptions({}))
    session.scene = scene
    session._render_frame(3, Companions(bpy, scene, ""))
    assert (scene.frame_start, scene.frame_end, scene.frame_step) == (1, 9, 1)


def test_the_clock_of_a_disk_does_not_decide_whether_a_frame_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rendering(tmp_path, write=True, age_s=-3_600.0)
    assert f"Saved: '{tmp_path}/frame_0003'" in capsys.readouterr().out
    with pytest.raises(Failed, match="frame 3 was not written"):  # what was there before is no frame of this run
        rendering(tmp_path, write=False, age_s=0.0)


def test_a_frame_of_a_stereo_scene_is_there_when_all_its_views_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rendering(tmp_path, write=True, age_s=0.0, views=("_L", "_R"))
    assert [line[-3:-1] for line in capsys.readouterr().out.splitlines()] == ["_L", "_R"]
    (tmp_path / "frame_0003_R").unlink()
    with pytest.raises(Failed, match="frame 3 was not written"):
        rendering(tmp_path, write=False, age_s=0.0, views=("_L", "_R"))


def test_a_frame_below_zero_is_never_counted_from_the_end() -> None:
    scene = SimpleNamespace(frame_start=1, frame_end=10, render=Engine(engine="CYCLES"))
    session = Session(SimpleNamespace(context=SimpleNamespace(scene=scene)), SceneOptions({}))
    assert [session._frame("-f", text) for text in ("-5", "+1", "7")] == [-5, 2, 7]
    for text in ("--5", "1e3", "1048575", "-1048575", "٣"):
        with pytest.raises(WrongOption, match="is not a frame number"):
            session._frame("-s", text)


def test_names_of_any_letters_are_said_in_any_language(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    speak_utf8()
    say("//w\u00fcrfel \u6625 gr\udcfcn.png is not there")
    assert written.getvalue().decode() == "//würfel 春 gr?n.png is not there\n"
