"""Our RenderAPI in a farm of existing nodes: rows written by hand, clients as they are."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import directory_in_memory
from tests.support.existing_farm import ExistingFarm
from tests.support.existing_rig import Rig


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[ExistingFarm]:
    """A farm on SQLite that is not started."""
    with (
        directory_in_memory(tmp_path) as directory,
        ExistingFarm(tmp_path / "farm", f"sqlite:///{directory / 'farm.sqlite'}") as made,
    ):
        yield made


@pytest.fixture
def rig(farm: ExistingFarm, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(farm, tmp_path)
    yield made
    farm.stop()
    made.close()
