"""A rig on each kind of database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from renderonline.database.door import Database
from tests.support.dispatching import Rig, opened_rig


@pytest.fixture
async def rig(database: Database, tmp_path: Path) -> AsyncIterator[Rig]:
    """A dispatcher with a real database, served over real links."""
    async with opened_rig(database, tmp_path) as opened:
        yield opened
