"""Which of the files that were sent a path of a scene means (hunt, kinds C and D)."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from renderonline.engines.blender.launcher.inputs import FOLDER, MAPPING, Inputs


def sent(root: Path, *names: str, sent_from: str = "", mapping: Mapping[str, str] | None = None) -> Inputs:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if sent_from:
        (root / FOLDER).write_text(sent_from)
    if mapping is not None:
        (root / MAPPING).write_text(json.dumps(mapping))
    return Inputs(str(root))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/film/tex/wood.png", "tex/wood.png"),
        ("C:\\film\\tex\\wood.png", "tex/wood.png"),
        ("\\\\server\\share\\Tex\\Wood.PNG", "tex/wood.png"),
        ("/home/me/film/wood.png", ""),
        ("/mnt/lib/oak.png", "_outside/mnt/lib/oak.png"),
        ("D:/lib/ash.png", "_outside/D_/lib/ash.png"),
        ("/mnt/tree.png", ""),
    ],
)
def test_whole_paths_lead_to_what_was_sent_and_to_nothing_else(path: str, name: str, tmp_path: Path) -> None:
    names = ("tex/wood.png", "tree.png", "_outside/mnt/lib/oak.png", "_outside/D_/lib/ash.png")
    inputs = sent(tmp_path, *names, sent_from="/home/me/film")
    assert inputs.find(path) == ([str(tmp_path / name)] if name else [])


def test_paths_out_of_the_folder_lead_to_what_was_packed(tmp_path: Path) -> None:
    inputs = sent(tmp_path / "a" / "b", "_outside/home/me/lib/oak.png", sent_from="/home/me/film/shots")
    assert inputs.find(str(tmp_path / "lib" / "oak.png")) == [str(tmp_path / "a/b/_outside/home/me/lib/oak.png")]


def test_whole_paths_lead_to_the_scenes_folder_wherever_a_zip_put_it(tmp_path: Path) -> None:
    sent(tmp_path, "My Project/tex/wood.png")
    found = Inputs(str(tmp_path), str(tmp_path / "My Project")).find("C:\\film\\tex\\wood.png")
    assert found == [str(tmp_path / "My Project" / "tex" / "wood.png")]


def test_two_names_that_differ_in_letter_case_alone_are_both_named(tmp_path: Path) -> None:
    inputs = sent(tmp_path, "tex/Wood.png", "tex/WOOD.png", "tex/oak.png")
    assert len(inputs.find(str(tmp_path / "tex/wood.png"))) == 2
    assert inputs.find(str(tmp_path / "tex/WOOD.png")) == [str(tmp_path / "tex/WOOD.png")]
    assert inputs.find(str(tmp_path / "Tex/Oak.PNG")) == [str(tmp_path / "tex/oak.png")]


def test_sequences_tiles_and_folders_are_found_under_their_mapped_names(tmp_path: Path) -> None:
    mapping = {"s: x/a_01.png": "s_ x/a_01.png", "u?.1001.png": "u_.1001.png", "c|/d/e.vdb": "c_/d/e.vdb"}
    inputs = sent(tmp_path, *mapping.values(), mapping={**mapping, "tex/x.png": "../../etc/passwd", "y": "no"})
    assert inputs.find(str(tmp_path / "s: x/a_09.png"), sequence=True) == [str(tmp_path / "s_ x/a_01.png")]
    assert inputs.find(str(tmp_path / "u?.<UDIM>.png")) == [str(tmp_path / "u_.<UDIM>.png")]
    assert inputs.find(str(tmp_path / "c|"), folder=True) == [str(tmp_path / "c_")]
    assert inputs.find(str(tmp_path / "tex/x.png")) == inputs.find(str(tmp_path / "y")) == []
