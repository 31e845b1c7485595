"""What `make test` leaves to `make test-all`."""

import pytest

from tests.support.kinds import is_left_out, place_in_the_queue

DISPATCH = "tests/integration/dispatch/test_links.py::test_lost_machine_requeues_its_chunk"


@pytest.mark.parametrize(
    ("path", "markers", "left_out"),
    [
        (f"{DISPATCH}[sqlite]", {"sqlite"}, False),
        (f"{DISPATCH}[mariadb]", {"mariadb"}, True),
        (f"{DISPATCH}[mariadb]", {"mariadb", "both_databases"}, False),
        ("tests/integration/renderapi/test_standby.py::test_x", {"mariadb"}, False),
        ("tests/integration/database/test_door.py::test_x[mariadb]", {"mariadb"}, False),
        ("tests/contract/test_contract.py::test_x[mariadb-row]", {"mariadb"}, False),
        ("tests/e2e/test_demo.py::test_x", {"blender", "thorough"}, True),
    ],
)
def test_mariadb_is_left_to_thorough_runs_where_no_sql_is_at_stake(
    path: str, markers: set[str], left_out: bool
) -> None:
    assert is_left_out(path, markers) is left_out


def test_short_tests_lie_between_those_that_need_the_processors_and_those_that_wait() -> None:
    """Groups come before all of them: xdist sorts by the number of tests."""
    waits, short, other = "tests/faults/test_faults.py::x", "tests/unit/cli/test_words.py::x", f"{DISPATCH}[sqlite]"
    assert sorted([waits, other, short], key=place_in_the_queue) == [short, other, waits]
