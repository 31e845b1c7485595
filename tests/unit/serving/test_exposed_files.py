"""Settings files, keys and secrets that others may read: a loud warning, or no start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from renderonline.cli import terminal
from renderonline.farm.errors import InvalidRequest
from renderonline.hpcserver import joining
from renderonline.hpcserver.settings import load
from renderonline.renderapi.settings import load_settings
from tests.support.certificates import self_signed


def api(file: Path | None, **flags: Any) -> object:
    return load_settings(file, environment={}, flags=flags)


def node(file: Path | None, **flags: Any) -> object:
    return load(file, environment={}, flags=flags)


@pytest.mark.parametrize("read", [api, node])
def test_settings_file_that_everybody_may_read(
    tmp_path: Path, read: Callable[..., object], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "Settings.json"
    file.write_text('{"Port": "5005"}')
    file.chmod(0o644)
    assert read(file).port == 5005  # type: ignore[attr-defined]  # an existing file goes on working
    assert f"chmod 600 {file}" in capsys.readouterr().out
    with pytest.raises(InvalidRequest, match=f"chmod 600 {file}"):
        read(file, strict_files=True)
    file.chmod(0o640)
    assert read(file, strict_files=True).port == 5005  # type: ignore[attr-defined]
    assert "chmod" not in capsys.readouterr().out


def test_key_that_everybody_may_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, _ = self_signed(tmp_path)
    certificate = {"fullchain_pem_path": str(files.fullchain_pem_path), "priv_pem_path": str(files.priv_pem_path)}
    files.priv_pem_path.chmod(0o644)
    api(None, certificate=certificate)
    assert f"chmod 600 {files.priv_pem_path}" in capsys.readouterr().out
    with pytest.raises(InvalidRequest, match="chmod 600"):
        api(None, certificate=certificate, strict_files=True)
    files.priv_pem_path.chmod(0o600)
    api(None, certificate=certificate, strict_files=True)


def test_secret_of_a_machine_that_others_may_read_is_not_used(tmp_path: Path) -> None:
    (tmp_path / joining.FILE).write_text('{"url": "http://farm:5000", "machine_id": 1000, "secret": "x"}')
    (tmp_path / joining.FILE).chmod(0o644)
    with pytest.raises(InvalidRequest, match=r"chmod 600 .*machine\.json"):
        joining.read_identity(tmp_path)


def test_login_of_the_client_that_others_may_read_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERONLINE_CONFIG", str(tmp_path))
    (tmp_path / "client.json").write_text(json.dumps({"url": "http://farm:5000", "email": "a@b.org", "token": "x"}))
    (tmp_path / "client.json").chmod(0o644)
    with pytest.raises(InvalidRequest, match=r"chmod 600 .*client\.json"):
        terminal.saved()
