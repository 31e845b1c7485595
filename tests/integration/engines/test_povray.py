"""POV-Ray with the shipped definition: the same frames whether rendered in one piece or in chunks."""

import subprocess
from pathlib import Path

import pytest
from OpenImageIO import ImageBuf

from renderonline.engines.command_lines import (
    Command,
    OutputReader,
    OutputReading,
    build,
    chunks_of,
    complete,
    failure_of_exit,
)
from renderonline.engines.definition import parse_definition, shipped, template_words
from renderonline.engines.discovery import find_engines
from renderonline.farm.frames import FrameRange
from renderonline.storage.images import ImageChecker

DEFINITION = parse_definition(shipped()["povray"])
LANTERNS = Path(__file__).parents[3] / "examples" / "povray" / "lanterns.pov"

SCENE = """
#version 3.7;
global_settings { assumed_gamma 1 }
#include "colour.inc"
camera { location <0, 1, -4> look_at 0 right x*image_width/image_height }
light_source { <3, 4, -4> 1 }
sphere { <2*clock - 1, 0, 0>, 1 pigment { Colour } }
"""


@pytest.fixture(scope="module")
def program() -> tuple[str, ...]:
    found = {engine.name: engine for engine in find_engines({}, {"povray": DEFINITION})}
    assert "povray" in found, "POV-Ray is missing: apt-get install -y povray"
    assert found["povray"].version.startswith("3.")
    return found["povray"].prefix


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    directory = tmp_path / "task"
    directory.mkdir()
    (directory / "colour.inc").write_text("#declare Colour = pigment { rgb <1, 0.5, 0.2> }")
    (directory / "my scene.pov").write_text(SCENE)
    return directory / "my scene.pov"


def order(scene: Path, chunk: FrameRange, frames: tuple[int, ...], directory: Path, **values: str) -> Command:
    directory.mkdir(exist_ok=True)
    return build(
        DEFINITION,
        template_words(DEFINITION),
        complete(DEFINITION, {"width": "64", "height": "36", **values}),
        chunk=chunk,
        task_frames=frames,
        scene=str(scene),
        output_directory=str(directory),
    )


def run(program: tuple[str, ...], command: Command, directory: Path) -> tuple[int, list[OutputReading]]:
    done = subprocess.run(
        [*program, *command.argv], capture_output=True, text=True, timeout=60, cwd=directory, check=False
    )
    reader = OutputReader(DEFINITION.reading, command.frames)
    lines = (done.stdout + done.stderr).replace("\r", "\n").splitlines()
    return done.returncode, [reader.line(line) for line in lines]


def test_chunks_give_the_same_frames_as_the_whole(program: tuple[str, ...], scene: Path, tmp_path: Path) -> None:
    frames = tuple(range(1, 11))
    whole = order(scene, FrameRange(1, 10), frames, tmp_path / "whole")
    code, readings = run(program, whole, tmp_path / "whole")
    assert code == 0
    assert [reading.fraction for reading in readings if reading.fraction is not None][-1] == 1.0
    names = [output.name for output in whole.expected]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == names
    assert names[0] == "frame_01.png"
    for chunk in chunks_of(DEFINITION, frames, 4):
        assert run(program, order(scene, chunk, frames, tmp_path / "parts"), tmp_path / "parts")[0] == 0
    with ImageChecker() as checker:
        for name in names:
            one, other = (ImageBuf(str(tmp_path / part / name)).get_pixels() for part in ("whole", "parts"))
            assert (one == other).all()
            check = checker.check(tmp_path / "parts" / name)
            assert check.ok, check.reason
            assert check.facts["width"] == 64


@pytest.mark.parametrize("frames", [(1,), (3,), (9,), (0, 1), (2, 4, 12)])
def test_names_are_foretold_for_few_frames(
    program: tuple[str, ...], scene: Path, tmp_path: Path, frames: tuple[int, ...]
) -> None:
    expected: list[str] = []
    for chunk in chunks_of(DEFINITION, frames, 0):
        command = order(scene, chunk, frames, tmp_path / "out")
        assert run(program, command, tmp_path / "out")[0] == 0
        expected += [output.name for output in command.expected]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)
    assert len(expected) == len(frames)


def test_a_scene_error_is_one_and_names_its_line(program: tuple[str, ...], scene: Path, tmp_path: Path) -> None:
    scene.write_text("#version 3.7;\nsphere { <0, 0, 0>, 1 pigment { nonsense } }\n")
    code, readings = run(program, order(scene, FrameRange(1, 2), (1, 2), tmp_path / "out"), tmp_path / "out")
    failures = [reading.failure for reading in readings if reading.failure]
    assert code == 1
    assert failures[0] is not None
    assert failures[0][0] == "scene"
    assert "line 2" in failures[0][1]


def test_an_output_that_can_not_be_written_is_no_scene_error(
    program: tuple[str, ...], scene: Path, tmp_path: Path
) -> None:
    command = order(scene, FrameRange(1, 2), (1, 2), tmp_path / "out")
    (tmp_path / "out").rmdir()
    code, readings = run(program, command, tmp_path)
    assert code != 0
    assert not any(reading.failure for reading in readings)
    assert failure_of_exit(DEFINITION.reading, code) == "error"


def test_the_example_scene_renders(program: tuple[str, ...], tmp_path: Path) -> None:
    command = order(LANTERNS, FrameRange(5, 5), tuple(range(1, 25)), tmp_path / "out")
    code, readings = run(program, command, tmp_path / "out")
    assert code == 0
    assert not any(reading.failure or reading.warning for reading in readings)
    assert (tmp_path / "out" / "frame_05.png").exists()
