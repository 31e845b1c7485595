"""What every answer tells browsers, and requests that lead them astray."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from yarl import URL

from tests.integration.renderapi.test_sessions import OURS, cookie_of, log_in
from tests.support.certificates import self_signed
from tests.support.renderapi import Running, renderapi


@pytest.fixture(name="farm")
async def _farm(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path) as running:
        yield running


async def test_every_answer_is_strict(farm: Running) -> None:
    paths = ("/renderapi/v2/me", "/renderapi/v1/info", "/renderapi/v2/docs", "/nothing", "/healthz", "/metrics")
    for path in (*paths, "/renderapi/v2/openapi.json", "/"):
        for who in (farm.who, {}):
            async with farm.http.get(farm.url + path, headers=who) as reply:
                assert reply.headers["X-Content-Type-Options"] == "nosniff", path
                assert "default-src 'none'" in reply.headers["Content-Security-Policy"], path
                assert "Strict-Transport-Security" not in reply.headers


async def test_name_that_was_reached_by_https_stays_with_it(tmp_path: Path) -> None:
    files, _ = self_signed(tmp_path)
    certificate = {"fullchain_pem_path": files.fullchain_pem_path, "priv_pem_path": files.priv_pem_path}
    async with renderapi(tmp_path / "data", certificate=certificate) as farm:
        reply = await farm.call("GET", "/me", headers={"Host": "farm.example.org"})
        assert reply.headers["Strict-Transport-Security"] == "max-age=31536000"
        for host in ("localhost:5000", "127.0.0.1"):  # where other programs may speak plain HTTP
            assert "Strict-Transport-Security" not in (await farm.call("GET", "/me", headers={"Host": host})).headers


async def test_figures_are_for_this_computer_s_programs_and_no_page(farm: Running) -> None:
    page = {"Origin": "https://evil.example"}
    async with farm.http.get(f"{farm.url}/metrics", headers=page) as reply:
        assert "Access-Control-Allow-Origin" not in reply.headers
    assert (await farm.call("GET", "/me", headers=page)).headers["Access-Control-Allow-Origin"] == "*"
    for host, status in (("evil.example", 401), ("localhost:5000", 200), ("[::1]:5000", 200), ("127.0.0.1", 200)):
        async with farm.http.get(f"{farm.url}/metrics", headers={"Host": host}) as reply:
            assert reply.status == status, host


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /healthz HTTP/1.1\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a/b\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a:99999\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: [\r\n", 400),
        ("GET /healthz HTTP/1.1\r\nHost: a:5000\r\n", 200),
        ("GET /healthz HTTP/1.0\r\n", 200),
    ],
)
async def test_request_names_its_host(farm: Running, head: str, status: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(farm.url.rpartition(":")[2]))
    writer.write(f"{head}\r\n".encode())
    assert int((await reader.readline()).split()[1]) == status
    writer.close()


async def test_ticket_is_for_a_plain_path(farm: Running) -> None:
    ours = {**OURS, "Cookie": cookie_of(await log_in(farm))}
    odd = ("../v1/info", "tasks/1/../2", "tasks\r\nX: y", "tasks\\..\\x", "tasks/..", "me\x7f", "me?x=1", "me#x")
    for path in (*odd, "tasks/%2e%2e/x", "me%0d%0aX: y"):
        asked = {"path": f"/renderapi/v2/{path}"}
        reply = await farm.call("POST", "/session/tickets", asked, who={}, headers=ours)
        assert reply.status == 400, path
    asked = {"path": "/renderapi/v2/tasks/1/results/frame..1%20%C3%BC%23.png"}
    made = (await farm.call("POST", "/session/tickets", asked, who={}, headers=ours)).json()["url"]
    async with farm.http.get(URL(farm.url + made, encoded=True), headers={"Cookie": ours["Cookie"]}) as reply:
        assert reply.status == 404  # let in; there is no such task
