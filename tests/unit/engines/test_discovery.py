"""Finding engines: settings first, then what was installed, then PATH; what does not answer is no engine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from renderonline.engines import discovery
from renderonline.engines.blender.install import LAUNCHER, Installation
from renderonline.engines.definition import parse_definition, shipped
from renderonline.engines.discovery import FoundEngine, find_engines

DEFINITIONS = {name: parse_definition(text) for name, text in shipped().items()}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory on PATH."""
    directory = tmp_path / "programs"
    directory.mkdir()
    monkeypatch.setenv("PATH", str(directory))
    return directory


def program(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_programs_on_path_are_found_with_their_version(programs: Path) -> None:
    blender = program(programs / "blender", "echo 'Blender 3.4.1'; echo '\tbuild date: x'")
    povray = program(programs / "povray", "echo 'POV-Ray 3.7.0.10.unofficial' >&2")
    assert find_engines({}, DEFINITIONS) == (
        FoundEngine("blender", (str(blender),), "3.4.1"),
        FoundEngine("povray", (str(povray),), "3.7.0.10"),
    )


def test_what_a_program_can_render_with_is_asked_once(programs: Path, tmp_path: Path) -> None:
    lines = ("Blender 3.4.1", "Blender Engine Listing:", "\tCYCLES", "\toctane", "Bye now")
    script = f"printf '%s\\n' {' '.join(map(repr, lines))}; [ $1 = --version ] || echo asked >> {tmp_path}/asked"
    blender = program(programs / "blender", script.replace("\\t", "  "))
    for _ in range(2):
        (found,) = find_engines({}, DEFINITIONS, tmp_path)
        assert found.renderers == ("CYCLES", "octane")
    assert (tmp_path / "asked").read_text() == "asked\n"
    program(blender, "echo 'Blender 4.5'")
    assert find_engines({}, DEFINITIONS, tmp_path)[0].renderers == ()


def test_settings_win_whatever_their_letter_case(programs: Path, tmp_path: Path) -> None:
    program(programs / "blender", "echo 'Blender 3.4.1'")
    mine = program(tmp_path / "my blender", 'echo "Blender 5.0.1 $1"')
    found = find_engines({"Blender": str(mine)}, DEFINITIONS)
    assert found == (FoundEngine("blender", (str(mine),), "5.0.1"),)
    assert find_engines({"blender": [str(mine), "-q"]}, DEFINITIONS)[0].prefix == (str(mine), "-q")


def test_a_system_blender_runs_our_launcher_where_its_template_is_ours(programs: Path) -> None:
    blender = program(programs / "blender", "echo 'Blender 4.2.1 LTS'")
    (found,) = find_engines({}, {"blender": DEFINITIONS["blender"]})
    assert found.prefix == (str(blender),)  # on a machine of the existing system any template may come
    assert found.launched[0] == str(blender)
    assert found.launched[-3:] == ("--python", str(LAUNCHER / "__main__.py"), "--")
    assert {"-b", "--factory-startup", "--disable-autoexec"} < set(found.launched)
    for other in (replace(found, version="3.3.9"), replace(found, version=""), replace(found, name="povray")):
        assert other.launched == found.prefix
    ours = FoundEngine("blender", Installation(blender).prefix, "5.0.1")
    assert ours.launched == ours.prefix


def test_an_engine_of_the_settings_needs_no_definition(programs: Path) -> None:
    mine = program(programs / "mine", "exit 1")
    assert find_engines({"Mine": "mine"}, {}) == (FoundEngine("mine", (str(mine),), ""),)


@pytest.mark.parametrize("value", ["/nonexistent/program", []])
def test_a_configured_program_that_does_not_exist_is_left_out(programs: Path, value: str | list[str]) -> None:
    assert find_engines({"blender": value}, {}) == ()


def test_what_was_installed_wins_over_path(programs: Path, tmp_path: Path) -> None:
    program(programs / "blender", "echo 'Blender 3.4.1'")
    directory = tmp_path / "engines" / "blender"
    python = directory / "bpy-5.0.1-python-3.11" / "bin" / "python"
    python.parent.mkdir(parents=True)
    program(python, "exit 1")
    (directory / "installed.json").write_text(json.dumps({"environment": "bpy-5.0.1-python-3.11", "version": "5.0.1"}))
    found = find_engines({}, DEFINITIONS, tmp_path / "engines")
    assert found == (FoundEngine("blender", Installation(python).prefix, "5.0.1"),)


@pytest.mark.parametrize("script", ["exit 3", "exec /nonexistent/x", "while :; do :; done"])
def test_a_program_that_does_not_answer_is_no_engine(
    programs: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(discovery, "PROBE_TIME_S", 0.5)
    program(programs / "blender", script)
    assert find_engines({}, DEFINITIONS) == ()


def test_an_unknown_version_is_no_obstacle(programs: Path) -> None:
    program(programs / "blender", "echo hello")
    assert find_engines({}, DEFINITIONS)[0].version == ""


def test_nothing_is_found_where_nothing_is(programs: Path, tmp_path: Path) -> None:
    assert find_engines({}, DEFINITIONS, tmp_path) == ()
