"""Where programs keep things."""

from pathlib import Path

import pytest

from renderonline.storage import disk


def test_environment_names_the_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERONLINE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("RENDERONLINE_CONFIG", str(tmp_path / "config"))
    assert disk.data_directory() == tmp_path / "data"
    assert disk.config_directory() == tmp_path / "config"


def test_default_directories_are_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RENDERONLINE_DATA", raising=False)
    monkeypatch.delenv("RENDERONLINE_CONFIG", raising=False)
    assert disk.data_directory().name == "renderonline"
    assert disk.config_directory().is_absolute()
