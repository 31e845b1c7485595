"""Whom a request comes from, when proxies pass it on."""

from typing import Any

import pytest
from starlette.requests import HTTPConnection
from starlette.types import Receive, Scope, Send

from renderonline.farm.errors import InvalidRequest
from renderonline.serving import admission
from renderonline.serving.admission import Proxies, client_of, is_forwarded, is_host


async def seen(peer: str, *headers: tuple[str, str], trusted: tuple[str, ...] = ("10.0.0.1",)) -> HTTPConnection:
    """A request as the application sees it."""
    found: list[Scope] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        found.append(scope)

    nothing: Any = None
    raw = [(name.encode(), value.encode()) for name, value in (("host", "inside:5000"), *headers)]
    scope = {"type": "http", "scheme": "http", "client": (peer, 1), "headers": raw, "path": "/", "query_string": b""}
    await Proxies(trusted).believed(app)(scope, nothing, nothing)
    return HTTPConnection(found[0])


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        ("203.0.113.5", "203.0.113.5"),
        ("1.1.1.1, 203.0.113.5", "203.0.113.5"),  # who is further left may have been made up
        ("203.0.113.5, 10.0.0.1", "203.0.113.5"),
        ("203.0.113.5:4711", "203.0.113.5"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:203.0.113.5", "203.0.113.5"),
        ("203.0.113.5, nonsense", "10.0.0.1"),
        ("10.0.0.1, 10.0.0.1", "10.0.0.1"),
        ("", "10.0.0.1"),
    ],
)
async def test_client_is_the_right_most_that_is_not_trusted(forwarded: str, client: str) -> None:
    assert client_of(await seen("10.0.0.1", ("x-forwarded-for", forwarded))) == client


async def test_of_a_long_list_of_proxies_few_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, look = [], admission._address

    def counted(text: str) -> Any:
        looks.append(text)
        return look(text)

    monkeypatch.setattr(admission, "_address", counted)
    long = ", ".join(["203.0.113.5", *["10.0.0.2"] * 5000])
    assert client_of(await seen("10.0.0.1", ("x-forwarded-for", long), trusted=("10.0.0.0/8",))) == "10.0.0.2"
    assert len(looks) < 100


async def test_scheme_and_host_are_those_of_the_same_proxy() -> None:
    chain = ("x-forwarded-for", "1.1.1.1, 203.0.113.5, 10.0.0.1")
    scheme, host = ("x-forwarded-proto", "http, https, http"), ("x-forwarded-host", "evil, farm.example.org, inside")
    request = await seen("10.0.0.1", chain, scheme, host)
    assert str(request.base_url) == "https://farm.example.org/"
    one = await seen("10.0.0.1", chain, ("x-forwarded-proto", "https"), ("x-forwarded-host", "farm:8443"))
    assert str(one.base_url) == "https://farm:8443/"


@pytest.mark.parametrize(
    ("proto", "host"), [("ftp", "a b"), ("https://x", "x/y"), ("", "x:99999"), ("javascript", "[")]
)
async def test_what_can_t_be_is_left_out(proto: str, host: str) -> None:
    request = await seen("10.0.0.1", ("x-forwarded-proto", proto), ("x-forwarded-host", host))
    assert str(request.base_url) == "http://inside:5000/"


async def test_others_are_not_believed_and_told_of_once(capsys: pytest.CaptureFixture[str]) -> None:
    sent = ("x-forwarded-for", "203.0.113.5"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil")
    request = await seen("10.0.0.2", *sent)
    assert (client_of(request), str(request.base_url)) == ("10.0.0.2", "http://inside:5000/")
    assert is_forwarded(request)
    told = capsys.readouterr()
    assert (told.out + told.err).count("TrustedProxies") == 1
    assert not is_forwarded(await seen("10.0.0.2"))


def test_networks_are_trusted_and_nonsense_is_refused() -> None:
    proxies = Proxies(("10.0.0.0/8", "2001:db8::/32"))
    assert all(map(proxies.trusts, ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1")))
    assert not any(map(proxies.trusts, ("11.1.2.3", "::1", "", "unix")))
    with pytest.raises(InvalidRequest, match="TrustedProxies"):
        Proxies(("nginx",))


def test_host_is_a_name_or_an_address() -> None:
    assert all(map(is_host, ("farm", "farm:5000", "render_api.studio.org", "10.0.0.1:1", "[::1]:5000")))
    assert not any(map(is_host, ("", "a b", "farm:", "farm:x", "farm:65536", "[::1", "a/b", "a@b", "farm\n")))
