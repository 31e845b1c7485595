"""Which farm the client commands speak to, and who may see the token."""

import stat
from pathlib import Path

import pytest

from renderonline.cli import terminal
from renderonline.farm.errors import InvalidRequest, NotAuthenticated
from renderonline.rnoclient.sdk import Login
from renderonline.sandbox.privacy import write_private


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERONLINE_CONFIG", str(tmp_path / "config"))
    for name in terminal.LOGIN_FIELDS:
        monkeypatch.delenv(f"RENDERONLINE_{name.upper()}", raising=False)


def test_without_a_login_the_error_says_what_to_type() -> None:
    with pytest.raises(NotAuthenticated, match=r"renderonline login.*renderonline up"):
        terminal.current(None)


def test_login_for_several_addresses_is_good_for_each_and_for_no_other() -> None:
    terminal.save(Login("http://farm:5000,http://farm2:5000", "ada@studio.org", "secret"))
    assert terminal.current("http://FARM2:5000/").token == "secret"
    with pytest.raises(NotAuthenticated):
        terminal.current("http://farm:5000,http://elsewhere:5000")


def test_saved_login_is_used_and_private() -> None:
    path = terminal.save(Login("http://farm:5000", "ada@studio.org", "secret"))
    assert terminal.current(None) == Login("http://farm:5000", "ada@studio.org", "secret")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_saved_token_is_not_sent_to_another_address() -> None:
    terminal.save(Login("http://farm:5000", "ada@studio.org", "secret"))
    with pytest.raises(NotAuthenticated, match="http://other:5000"):
        terminal.current("http://other:5000")
    assert terminal.current("http://FARM:5000/").token == "secret"


def test_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.save(Login("http://farm:5000", "ada@studio.org", "secret", fingerprint="sha256:" + "0" * 64))
    monkeypatch.setenv("RENDERONLINE_URL", "http://other:5000")
    monkeypatch.setenv("RENDERONLINE_EMAIL", "bob@studio.org")
    monkeypatch.setenv("RENDERONLINE_TOKEN", "his")
    assert terminal.current(None) == Login("http://other:5000", "bob@studio.org", "his")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"email": "a"}'])
def test_broken_file_is_told_with_the_way_out(text: str) -> None:
    write_private(terminal.config_file(), text)
    with pytest.raises(InvalidRequest, match="renderonline login"):
        terminal.current(None)
