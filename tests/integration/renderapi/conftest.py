"""A RenderAPI on each kind of database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.renderapi import Running, renderapi


@pytest.fixture
async def api(tmp_path: Path, migrated_url: str) -> AsyncIterator[Running]:
    """RenderAPI in the test's own event loop."""
    async with renderapi(tmp_path / "data", connection_string=migrated_url) as running:
        yield running
