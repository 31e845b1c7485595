import sys
from pathlib import Path

import pytest

from renderonline.farm.needs import BoxKind
from renderonline.farm.result_names import FILM_ENGINE
from renderonline.hpcserver.boxes import Boxes, Outside, own_directories
from renderonline.hpcserver.settings import NodeSettings
from renderonline.protocol.link import Assign
from renderonline.sandbox.box import Box, Found

BWRAP = Found(BoxKind.BWRAP, program="bwrap")


def program(path: Path, first_line: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(first_line)
    path.chmod(0o755)
    return path


def test_a_program_comes_with_its_libraries_and_where_its_link_leads(tmp_path: Path) -> None:
    real = program(tmp_path / "opt" / "app" / "bin" / "app")
    link = tmp_path / "links" / "app"
    link.parent.mkdir()
    link.symlink_to(real)
    assert own_directories([str(link), "--flag"], ()) == (str(link.parent), str(tmp_path / "opt" / "app"))


def test_a_script_comes_with_what_runs_it(tmp_path: Path) -> None:
    python = program(tmp_path / "venv" / "bin" / "python")
    script = program(tmp_path / "scripts" / "render", f"#!{python} -I\n")
    assert own_directories([str(script)], ()) == (str(script.parent), str(tmp_path / "venv"))


def test_of_a_directory_that_holds_something_private_only_the_program_is_shown(tmp_path: Path) -> None:
    tool = program(tmp_path / "bin" / "tool")
    assert own_directories([str(tool)], (str(tmp_path),)) == (str(tmp_path / "bin"),)
    assert own_directories([str(tool)], (str(tmp_path / "bin" / "secrets"),)) == (str(tool),)
    assert own_directories(["/usr/bin/env", "/usr/bin/python3"], ()) == ()  # the system's


def test_a_task_reads_its_files_and_writes_its_results_and_nothing_of_it_opens_more() -> None:
    settings = NodeSettings(data_directory=Path("/srv/node"), sandbox_read=(Path("/mnt/tex"),))
    boxes = Boxes(BWRAP, settings, {"sh": ("/bin/sh",), FILM_ENGINE: (sys.executable,)})
    assign = Assign(
        1, "t", 1, 1, "Sh", ("/etc/shadow",), "/farm/.attempts/1", ("/farm/a/1/scene", "/other/x"),
        environment={"A": "/root"}, root="/farm/a/1", mark="/farm/.mark", sandbox_write=("/mnt/caches",),
    )  # fmt: skip
    box = boxes.of(assign, Path("/srv/node/scratch/1"))
    assert box is not None
    assert box.read == ("/etc/sh", "/mnt/tex", "/farm/a/1", "/other/x")
    assert box.write == ("/mnt/caches", "/farm/.attempts/1", "/srv/node/scratch/1/home", "/srv/node/scratch/1/tmp")
    assert {"/srv/node", "/farm"} <= set(box.hidden)
    assert not box.network
    assert Boxes(Found(), settings, {}).of(assign, Path("/x")) is None


def test_renders_of_an_existing_farm_have_a_box_only_where_its_directories_are_named() -> None:
    node = Path("/srv/node")
    assert Boxes(BWRAP, NodeSettings(data_directory=node), {}).of_v1("sh", node) is None
    named = NodeSettings(data_directory=node, sandbox_write=(Path("/farm"),))
    box = Boxes(BWRAP, named, {}).of_v1("sh", node / "s")
    assert box is not None
    assert box.write == ("/farm", "/srv/node/s/home", "/srv/node/s/tmp")


@pytest.mark.parametrize(
    "line",
    [
        "Warning: Unable to open '{}'",
        "Cannot open include file {}.",
        "{}: No such file or directory",
        'Error: "{}", Permission denied',
        "IMB_load_image: couldn't read {}, skipped",
    ],
)
def test_a_file_that_is_outside_is_told_with_the_directory_to_open(tmp_path: Path, line: str) -> None:
    texture = tmp_path / "tex" / "wood.png"
    texture.parent.mkdir()
    texture.touch()
    outside = Outside(Box(read=(str(tmp_path / "task"),), hidden=(str(tmp_path / "secret"),)))
    outside.take([line.format(texture), line.format(tmp_path / "gone.png"), f"Saved: '{tmp_path}/fine'"])
    assert outside.found() == (f"{texture} is outside of the box: add {texture.parent} to SandboxRead.",)


def test_nothing_is_told_of_a_file_that_the_task_brought_along(tmp_path: Path) -> None:
    for folder in ("task/set", "film/set"):
        (tmp_path / folder / "tex").mkdir(parents=True)
        (tmp_path / folder / "tex" / "wood.png").touch()
    outside = Outside(Box(read=(str(tmp_path / "task"),)))
    outside.take([f"Unable to open {tmp_path}/film/set/tex/wood.png"])
    assert outside.found() == ()


def test_nothing_is_told_of_what_is_hidden_or_inside_or_without_a_box(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for box in (Box(read=(str(tmp_path),)), Box(hidden=(str(tmp_path),)), None):
        outside = Outside(box)
        outside.take([f"can't open {tmp_path}/file"])
        assert outside.found() == ()
