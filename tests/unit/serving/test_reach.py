"""How others reach a farm, and what must be changed first."""

import pytest

from renderonline.serving import web
from renderonline.serving.web import Reach, reach


@pytest.fixture(autouse=True)
def _address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_own_address", lambda: "192.168.1.20")


def told(asked: str, listens: str = "0.0.0.0", public_url: str = "", *, is_doubtful: bool = False) -> Reach:
    return reach(asked, public_url=public_url, listens=listens, is_doubtful=is_doubtful)


def test_address_that_others_use_already_is_theirs() -> None:
    assert told("http://farm:5000/") == Reach("http://farm:5000")


@pytest.mark.parametrize("asked", ["http://127.0.0.1:5000/", "http://localhost:5000/", "http://[::1]:5000"])
def test_this_computer_is_named_as_others_know_it(asked: str) -> None:
    assert told(asked) == Reach("http://192.168.1.20:5000")
    assert told(asked, "::") == Reach("http://192.168.1.20:5000")


def test_what_an_administrator_says_counts_most() -> None:
    assert told("http://127.0.0.1:5000/", "127.0.0.1", "https://farm.example.org/") == Reach("https://farm.example.org")


def test_farm_that_listens_to_itself_only_says_what_to_change_first() -> None:
    url, first = told("http://127.0.0.1:5000/", "127.0.0.1")
    assert (url, first.rpartition(": ")[2]) == ("http://127.0.0.1:5000", "renderonline up --host 0.0.0.0")
    assert told("https://localhost:8443/", "localhost").first.endswith("--host 0.0.0.0 --port 8443")


def test_proxy_that_is_not_trusted_makes_the_address_doubtful() -> None:
    assert "TrustedProxies" in told("http://farm.example.org/", is_doubtful=True).first
    assert not told("http://farm.example.org/", public_url="https://farm.example.org", is_doubtful=True).first
