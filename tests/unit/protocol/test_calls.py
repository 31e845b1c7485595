"""Which proxy leads to an address, and what of it is shown."""

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.protocol.calls import Proxy, proxy_of

HTTPS = {"HTTPS_PROXY": "http://p:3128"}


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("https://farm", {}, None),
        ("https://farm", HTTPS, Proxy("p", 3128)),
        ("wss://farm/x", HTTPS, Proxy("p", 3128)),
        ("http://farm", HTTPS, None),
        ("http://farm", {"http_proxy": "p:1"}, Proxy("p", 1)),
        ("ws://farm", {"HTTP_PROXY": "p"}, Proxy("p", 80)),
        ("http://farm", {"ALL_PROXY": "http://[::2]:9"}, Proxy("::2", 9)),
        ("https://farm", {"all_proxy": "p:1", "https_proxy": "q:2", "HTTPS_PROXY": "r:3"}, Proxy("q", 2)),
        ("https://farm", {"https_proxy": "http://ada:se%40cret@p:1"}, Proxy("p", 1, "ada:se%40cret")),
        ("https://farm", {"https_proxy": "ada@p:1"}, Proxy("p", 1, "ada:")),
        ("https://farm", {**HTTPS, "NO_PROXY": "a, farm"}, None),
        ("https://FARM", {**HTTPS, "no_proxy": ".studio farm"}, None),
        ("https://a.studio", {**HTTPS, "no_proxy": ".studio"}, None),
        ("https://a.studio", {**HTTPS, "no_proxy": "*.studio"}, None),
        ("https://a.studio", {**HTTPS, "no_proxy": "studio"}, None),
        ("https://mystudio", {**HTTPS, "no_proxy": "studio"}, Proxy("p", 3128)),
        ("https://farm", {**HTTPS, "no_proxy": "*"}, None),
        ("https://farm:5000", {**HTTPS, "no_proxy": "farm:5000"}, None),
        ("https://farm:5001", {**HTTPS, "no_proxy": "farm:5000"}, Proxy("p", 3128)),
        ("https://10.1.2.3", {**HTTPS, "no_proxy": "10.0.0.0/8"}, None),
        ("https://11.1.2.3", {**HTTPS, "no_proxy": "10.0.0.0/8,farm"}, Proxy("p", 3128)),
        ("https://[fd00::1]:5000", {**HTTPS, "no_proxy": "[fd00::1]:5000"}, None),
        ("https://[fd00::1]", {**HTTPS, "no_proxy": "fd00::/8"}, None),
        ("https://localhost:5000", HTTPS, None),
        ("https://farm.localhost", HTTPS, None),
        ("https://127.1.2.3", HTTPS, None),
        ("https://[::1]:5000", HTTPS, None),
    ],
)
def test_proxy_of_an_address_is_what_the_environment_says(
    url: str, environment: dict[str, str], expected: Proxy | None
) -> None:
    assert proxy_of(url, environment) == expected


@pytest.mark.parametrize(
    "address", ["socks5://u:secret@p:1", "https://u:secret@p:1", "http://u:secret@p:port", "//secret"]
)
def test_proxy_that_cant_be_used_is_refused_without_its_address(address: str) -> None:
    with pytest.raises(InvalidRequest, match="HTTPS_PROXY in the environment is no proxy") as refused:
        proxy_of("https://farm", {"HTTPS_PROXY": address})
    assert "secret" not in refused.value.message


def test_credentials_are_sent_and_never_shown() -> None:
    proxy = Proxy("p", 1, "ada:se%40cret")
    assert proxy.headers == {"Proxy-Authorization": "Basic YWRhOnNlQGNyZXQ="}
    assert proxy.url == "http://ada:se%40cret@p:1"
    assert "cret" not in f"{proxy!r} {proxy.name}"
