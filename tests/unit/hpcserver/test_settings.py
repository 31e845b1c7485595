"""Settings of a machine."""

import json
from pathlib import Path

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.hpcserver.settings import load


def test_existing_settings_file_works_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "HPCServer.json"
    content = {"Port": "5001", "RenderingEngines": [{"EngineId": "Blender", "ExecutablePath": "/usr/bin/blender"}]}
    file.write_text(json.dumps(content))
    settings = load(file, environment={}, flags={})
    assert (settings.port, settings.engines) == (5001, {"Blender": "/usr/bin/blender"})
    assert settings.host == "127.0.0.1"
    assert settings.name


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "HPCServer.json"
    file.write_text(json.dumps({"Slots": 2, "Name": "file", "Tags": ["a", "b"]}))
    settings = load(file, environment={"HPCSERVER_SLOTS": "3", "HPCSERVER_NAME": "environment"}, flags={"name": "flag"})
    assert (settings.slots, settings.name, settings.tags) == (3, "flag", ("a", "b"))


@pytest.mark.parametrize(
    "flags",
    [{"slots": 0}, {"slots": 1000}, {"port": 70000}, {"nice": 20}, {"allow": ["not an address"]}, {"sandbox": "maybe"}],
)
def test_impossible_settings_are_refused_by_name(flags: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=f"(?i){next(iter(flags))}"):
        load(None, environment={}, flags=flags)


@pytest.mark.parametrize("path", ["tex", "/", "/mnt/../etc", "/srv/node", "/srv/node/scratch"])
def test_only_directories_of_others_are_opened_to_scenes(path: str) -> None:
    with pytest.raises(InvalidRequest, match="SandboxRead"):
        load(None, environment={"HPCSERVER_SANDBOX_READ": path}, flags={"data_directory": "/srv/node"})
