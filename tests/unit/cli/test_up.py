"""The login that `renderonline up` keeps for the other commands."""

from pathlib import Path
from typing import Any

import pytest

from renderonline.cli import logins
from renderonline.cli.up import LocalFarm, _saved
from renderonline.rnoclient.sdk import Login

NOBODY: Any = None


@pytest.fixture(name="farm")
def _farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalFarm:
    monkeypatch.setenv("RENDERONLINE_CONFIG", str(tmp_path / "config"))
    return LocalFarm(NOBODY, tmp_path, url="http://localhost:8080")


def test_first_login_is_kept_when_there_is_no_other(farm: LocalFarm) -> None:
    first = Login(farm.url, "admin@localhost", "secret")
    assert _saved(farm, first, "") == logins.saved() == first


def test_kept_login_follows_the_farm_to_another_port(farm: LocalFarm) -> None:
    kept = Login("http://localhost:5000", "ada@example.org", "secret")
    logins.save(kept)
    assert _saved(farm, None, "http://127.0.0.1:5000") == Login(farm.url, kept.email, kept.token) == logins.saved()


def test_login_of_another_farm_stays_as_it_is(farm: LocalFarm) -> None:
    kept = Login("http://elsewhere:5000", "ada@example.org", "secret")
    logins.save(kept)
    assert _saved(farm, Login(farm.url, "admin@localhost", "x"), "http://127.0.0.1:5000") == kept == logins.saved()
