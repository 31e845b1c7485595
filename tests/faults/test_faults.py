"""Twenty seeded faults in real farms (`make faults` does 200 on each database)."""

import pytest

from tests.faults.run import inject

FAULTS = 10


@pytest.mark.timeout(300)
def test_farm_survives_seeded_faults(database_kind: str) -> None:
    report = inject(database_kind, FAULTS, "make test")
    assert report.faults >= FAULTS
    assert report.facts["results"] > 0
    assert report.facts["looks at leases and limits"] > 0
    assert report.facts["looks at work ahead"] > 0


@pytest.mark.timeout(300)
def test_farm_whose_machines_have_directories_of_their_own_survives_seeded_faults() -> None:
    """R6 Landing without a shared directory."""
    report = inject("sqlite", FAULTS, "own directories", apart=True)
    assert report.faults >= FAULTS
    assert report.facts["results"] > 0
