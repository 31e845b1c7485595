"""Who may call what."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.renderapi import Running, renderapi


@pytest.fixture(name="api")
async def _api(tmp_path: Path) -> AsyncIterator[Running]:
    async with renderapi(tmp_path / "data") as running:
        yield running


async def test_an_open_address_opens_no_other_route_that_fits_it(api: Running) -> None:
    for method, path in (
        ("PATCH", "/machines/enroll"),
        ("DELETE", "/machines/enroll"),
        ("GET", "/attempts/1/log"),
        ("POST", "/machines/1/restart"),
    ):
        reply = await api.call(method, path, {}, who={})
        assert (reply.status, reply.json()["code"]) == (401, "not_authenticated")
