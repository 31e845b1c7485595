"""The login that `renderonline up` keeps for the other commands."""

from pathlib import Path
from typing import Any

import pytest

from renderonline.cli import terminal
from renderonline.cli.local_farm import LocalFarm, _saved, introduction
from renderonline.rnoclient.sdk import Login

NOBODY: Any = None


@pytest.fixture(name="farm")
def _farm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalFarm:
    monkeypatch.setenv("RENDERONLINE_CONFIG", str(tmp_path / "config"))
    return LocalFarm(NOBODY, tmp_path, url="http://localhost:8080")


def test_first_login_is_kept_when_there_is_no_other(farm: LocalFarm) -> None:
    first = Login(farm.url, "admin@localhost", "secret")
    assert _saved(farm, first, "") == terminal.saved() == first


def test_kept_login_follows_the_farm_to_another_port(farm: LocalFarm) -> None:
    kept = Login("http://localhost:5000", "ada@example.org", "secret")
    terminal.save(kept)
    assert _saved(farm, None, "http://127.0.0.1:5000") == Login(farm.url, kept.email, kept.token) == terminal.saved()


def test_login_of_another_farm_stays_as_it_is(farm: LocalFarm) -> None:
    kept = Login("http://elsewhere:5000", "ada@example.org", "secret")
    terminal.save(kept)
    assert _saved(farm, Login(farm.url, "admin@localhost", "x"), "http://127.0.0.1:5000") == kept == terminal.saved()


@pytest.mark.parametrize(
    ("url", "host", "line"),
    [
        ("http://127.0.0.1:5000", "127.0.0.1", "renderonline up --host 0.0.0.0"),
        ("http://127.0.0.1:8080", "127.0.0.1", "renderonline up --host 0.0.0.0 --port 8080"),
        ("http://10.0.0.7:5000", "10.0.0.7", "Others:         http://10.0.0.7:5000"),
    ],
)
def test_up_says_how_others_reach_it_or_what_to_change_first(farm: LocalFarm, url: str, host: str, line: str) -> None:
    farm.url = url
    told = introduction(farm, None, {"sandbox": "bwrap", "sandbox_told": "a box", "sandbox_advice": ""}, host)
    assert any(one.endswith(line) for one in told.splitlines())
    assert ("renderonline machine invite" in told) is (host == "10.0.0.7")


def test_up_that_listens_everywhere_says_an_address_that_others_reach(farm: LocalFarm) -> None:
    told = introduction(farm, None, {"sandbox": "bwrap", "sandbox_told": "a box", "sandbox_advice": ""}, "0.0.0.0")
    (line,) = (one for one in told.splitlines() if one.startswith("Others:"))
    assert ":8080" in line
    assert "localhost" not in line
    assert "//127." not in line
