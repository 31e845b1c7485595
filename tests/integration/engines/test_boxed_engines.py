"""Real engines with hostile scenes: without a box they reach another task's files, in one they don't, and honest scenes
render as ever."""

import secrets
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import OpenImageIO as oiio  # noqa: N813
import pytest

from renderonline.farm.needs import BoxKind
from renderonline.hpcserver.boxes import Boxes, Scratch, clean_environment
from renderonline.hpcserver.processes import Processes
from renderonline.hpcserver.settings import NodeSettings
from renderonline.protocol.link import Assign
from renderonline.sandbox.box import Found, probe
from tests.support.blender import blender_prefix, write_small_scene

HOME = secrets.token_hex(8)
VICTIMS = """
view = scene.view_settings
view.view_transform = "Raw"
material = bpy.data.materials.new("m")
material.use_nodes = True
tree = material.node_tree
tree.nodes.clear()
output, emission = tree.nodes.new("ShaderNodeOutputMaterial"), tree.nodes.new("ShaderNodeEmission")
tree.links.new(emission.outputs[0], output.inputs[0])
monkey.data.materials.append(material)
monkey.scale = (9, 9, 9)
"""
OSL = """
import _cycles, tempfile  # the module has no compiler for scripts in the file: the scene brings its byte code along
scene.cycles.shading_system = True
source = tempfile.mktemp(".osl")
open(source, "w").write('shader s(output color C = color(0, 0, 0)) {{ C = texture("{victim}", 0.5, 0.5); }}')
assert _cycles.osl_compile(source, source + ".oso")
script = tree.nodes.new("ShaderNodeScript")
script.mode = "EXTERNAL"
script.bytecode = open(source + ".oso").read()
script.bytecode_hash = "0123456789abcdef0123456789abcdef"
script.outputs.new("NodeSocketColor", "C")
tree.links.new(script.outputs["C"], emission.inputs[0])
"""
FILE_OUTPUT = """
comp = bpy.data.node_groups.new("comp", "CompositorNodeTree")
scene.compositing_node_group = comp
comp.interface.new_socket("Image", in_out="OUTPUT", socket_type="NodeSocketColor")
layer, group = comp.nodes.new("CompositorNodeRLayers"), comp.nodes.new("NodeGroupOutput")
layer.scene = scene
comp.links.new(layer.outputs["Image"], group.inputs[0])
extra = comp.nodes.new("CompositorNodeOutputFile")
extra.directory, extra.file_name = "{directory}", "frame_####"
extra.file_output_items.new("RGBA", "")
extra.format.media_type = "IMAGE"
extra.format.file_format = "PNG"
comp.links.new(layer.outputs["Image"], extra.inputs[0])
"""
POV = """
camera {{ location <0, 0, -5> look_at 0 }} light_source {{ <3, 3, -5> rgb 1 }} sphere {{ 0, 1 pigment {{ rgb 1 }} }}
{hostile}
"""


@dataclass
class Machine:
    """Runs one engine as an attempt of a task, beside another task whose frame is green."""

    root: Path
    processes: Processes
    found: Found
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("task", "victim", "attempts", "node"):
            (self.root / name).mkdir()
        green = oiio.ImageBuf(oiio.ImageSpec(8, 8, 3, oiio.UINT8))
        oiio.ImageBufAlgo.fill(green, (0.0, 1.0, 0.0))
        green.write(str(self.victim))
        self.frame = self.victim.read_bytes()

    @property
    def victim(self) -> Path:
        return self.root / "victim" / "frame_0001.png"

    async def run(self, prefix: tuple[str, ...], argv: list[str]) -> int | None:
        """The exit code; the results are in `attempts/1`."""
        output, place = self.root / "attempts" / "1", Scratch(self.root / "node").make("1")
        output.mkdir()
        engine = Path(prefix[0]).name
        assign = Assign(1, "token", 1, 1, engine, tuple(argv), str(output), root=str(self.root / "task"))
        settings = NodeSettings(data_directory=self.root / "node")
        box = Boxes(self.found, settings, {engine: prefix}).of(assign, place)
        environment = clean_environment({"PATH": "/usr/bin:/bin"}, {}, place)
        process = await self.processes.start(
            "1", [*prefix, *argv], directory=output, environment=environment, on_lines=self.lines.extend, box=box
        )
        return (await process.wait()).code


@pytest.fixture(params=["off", "landlock", "bwrap"])
async def machine(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Machine]:
    found = probe(request.param)
    processes = Processes(HOME, found)
    await processes.open()
    yield Machine(tmp_path, processes, found)
    await processes.close()


def is_open(machine: Machine) -> bool:
    return machine.found.kind == BoxKind.NONE


def middle(path: Path) -> tuple[float, ...]:
    picture = oiio.ImageBuf(str(path))
    return tuple(
        round(value, 1) for value in picture.getpixel(picture.spec().width // 2, picture.spec().height // 2)[:3]
    )


async def blender(machine: Machine, changes: str) -> int | None:
    scene = write_small_scene(machine.root / "task" / "scene.blend", VICTIMS + changes)
    frame = str(machine.root / "attempts" / "1" / "frame_####")
    return await machine.run(blender_prefix(), ["-b", str(scene), "-o", frame, "-F", "PNG", "-t", "1", "-f", "1"])


async def test_blenders_open_shading_language_reads_no_other_task(machine: Machine) -> None:
    assert await blender(machine, OSL.format(victim=machine.victim)) == 0, machine.lines
    green = middle(machine.root / "attempts" / "1" / "frame_0001.png") == (0.0, 1.0, 0.0)
    assert green == is_open(machine)


async def test_blenders_file_output_writes_into_no_other_task(machine: Machine) -> None:
    """Not even without a box: what a scene writes goes below its attempt's directory."""
    await blender(machine, FILE_OUTPUT.format(directory=machine.victim.parent))
    assert machine.victim.read_bytes() == machine.frame


async def test_blender_renders_an_honest_scene(machine: Machine) -> None:
    green = "emission.inputs[0].default_value = (0, 1, 0, 1)\n"
    assert await blender(machine, green) == 0, machine.lines
    assert middle(machine.root / "attempts" / "1" / "frame_0001.png") == (0.0, 1.0, 0.0)


@pytest.mark.parametrize(
    "hostile",
    [
        '#fopen F "{victim}.txt" write\n#write(F, "stolen")\n#fclose F',
        '#fopen F "{victim}.txt" append\n#write(F, "stolen")\n#fclose F',
        '#include "{root}/victim/secret.inc"',
        '#fopen F "{root}/victim/secret.inc" read\n#read(F, A)\n#debug "stolen\\n"\n#fclose F',
    ],
    ids=["write", "append", "include", "read"],
)
async def test_povrays_files_are_its_tasks(machine: Machine, hostile: str) -> None:
    povray = shutil.which("povray")
    assert povray is not None, "POV-Ray is missing: apt-get install -y povray"
    (machine.root / "victim" / "secret.inc").write_text('#debug "stolen\\n"\n')
    scene = machine.root / "task" / "scene.pov"
    scene.write_text(POV.format(hostile=hostile.format(victim=machine.victim, root=machine.root)))
    argv = [f"+I{scene}", f"+O{machine.root}/attempts/1/frame.png", "+W16", "+H9", "-D", "+WT1"]
    code = await machine.run((povray,), argv)
    written = machine.victim.with_name("frame_0001.png.txt")
    stolen = written.exists() or "stolen" in machine.lines
    assert stolen == is_open(machine), machine.lines
    assert (code == 0) == is_open(machine)


async def test_povray_renders_an_honest_scene(machine: Machine) -> None:
    scene = machine.root / "task" / "scene.pov"
    (machine.root / "task" / "own.inc").write_text("#declare A = 1;\n")
    scene.write_text(POV.format(hostile='#include "own.inc"'))
    argv = [f"+I{scene}", f"+L{machine.root}/task", f"+O{machine.root}/attempts/1/frame.png", "+W16", "+H9", "-D"]
    assert await machine.run((str(shutil.which("povray")),), argv) == 0, machine.lines
    assert (machine.root / "attempts" / "1" / "frame.png").stat().st_size


async def test_a_shell_reaches_no_network(machine: Machine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        script = f"exec 3<>/dev/tcp/127.0.0.1/{server.getsockname()[1]} && echo connected"
        await machine.run(("/bin/bash",), ["-c", script])
    assert ("connected" in machine.lines) == is_open(machine)
