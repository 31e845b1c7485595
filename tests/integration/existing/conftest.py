"""Our RenderAPI in a farm of existing nodes: rows written by hand, clients as they are."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.existing_farm import ExistingFarm
from tests.support.existing_rig import Rig


@pytest.fixture
def farm(tmp_path: Path) -> Iterator[ExistingFarm]:
    """A farm on SQLite that is not started."""
    with ExistingFarm(tmp_path / "farm", f"sqlite:///{tmp_path / 'farm.sqlite'}") as made:
        yield made


@pytest.fixture
def rig(farm: ExistingFarm, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(farm, tmp_path)
    yield made
    farm.stop()
    made.close()
