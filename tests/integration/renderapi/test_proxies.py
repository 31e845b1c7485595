"""Behind a proxy: its word counts when it is trusted, and for nothing when it is not."""

from pathlib import Path
from typing import Any

import pytest

from tests.integration.renderapi.test_sessions import OURS, cookie_of, log_in, me
from tests.support.certificates import self_signed
from tests.support.renderapi import Running, renderapi

PROXIED = {
    "X-Forwarded-For": "203.0.113.5",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "farm.example.org",
}
TRUSTED = ("127.0.0.1", "::1")


async def metrics(farm: Running, **headers: str) -> int:
    async with farm.http.get(f"{farm.url}/metrics", headers=headers) as reply:
        return reply.status


async def test_trusted_proxy_says_how_the_farm_is_reached(tmp_path: Path) -> None:
    async with renderapi(tmp_path, trusted_proxies=TRUSTED) as farm:
        reply = await log_in(farm, headers={**OURS, **PROXIED, "Origin": "https://farm.example.org"})
        assert reply.headers["Set-Cookie"].startswith("__Host-renderonline=")
        assert "; secure" in reply.headers["Set-Cookie"].casefold()
        assert reply.headers["Strict-Transport-Security"]
        assert await me(farm, cookie_of(reply), **PROXIED, Origin="https://farm.example.org") == 200
        assert await me(farm, cookie_of(reply), Origin=farm.url) == 401  # another scheme, another cookie
        invited = await farm.call("POST", "/machines/invite", {}, headers=PROXIED)
        assert "--join https://farm.example.org --code" in invited.json()["command"]
        assert invited.json()["first"] is None
        assert await metrics(farm, **PROXIED) == 401
        assert await metrics(farm) == 200


async def test_certificate_behind_a_proxy_is_not_the_one_that_machines_see(tmp_path: Path) -> None:
    files, _ = self_signed(tmp_path)
    certificate: Any = {"fullchain_pem_path": files.fullchain_pem_path, "priv_pem_path": files.priv_pem_path}
    async with renderapi(tmp_path / "data", trusted_proxies=TRUSTED, certificate=certificate) as farm:
        direct = await farm.call("POST", "/machines/invite", {})
        assert "--fingerprint sha256:" in direct.json()["command"]
        proxied = await farm.call("POST", "/machines/invite", {}, headers=PROXIED)
        assert "--fingerprint" not in proxied.json()["command"]


async def test_other_proxy_is_not_believed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async with renderapi(tmp_path, trusted_proxies=("10.0.0.1",)) as farm:
        reply = await log_in(farm, headers={**OURS, **PROXIED})
        assert "secure" not in reply.headers["Set-Cookie"].casefold()
        assert "Strict-Transport-Security" not in reply.headers
        invited = await farm.call("POST", "/machines/invite", {}, headers=PROXIED)
        assert f"--join {farm.url}" in invited.json()["command"]
        assert "name it in TrustedProxies, or set PublicUrl" in invited.json()["first"]
        for sign in (PROXIED, {"Forwarded": "for=203.0.113.5"}, {"Via": "1.1 nginx"}, {"X-Real-IP": "203.0.113.5"}):
            assert await metrics(farm, **sign) == 401  # not a program of this computer
        assert await metrics(farm) == 200
    out, err = capfd.readouterr()
    assert (out + err).count("name its address in TrustedProxies") == 1


async def test_public_address_is_what_machines_are_told(tmp_path: Path) -> None:
    async with renderapi(tmp_path, public_url="https://farm.example.org/") as farm:
        for headers in ({}, PROXIED):
            invited = (await farm.call("POST", "/machines/invite", {}, headers=headers)).json()
            assert "--join https://farm.example.org --code" in invited["command"]
            assert invited["first"] is None


async def test_farm_that_only_this_computer_reaches_says_so_first(tmp_path: Path) -> None:
    async with renderapi(tmp_path) as farm:
        first = (await farm.call("POST", "/machines/invite", {})).json()["first"]
        assert first.startswith(f"Only this computer itself reaches {farm.url}.")
        assert "renderonline up --host 0.0.0.0" in first
