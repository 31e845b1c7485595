"""A machine has as many slots as an operator allows, whatever it says (R14 Authority first)."""

from typing import Any

import pytest

from renderonline.database import administration_rows
from tests.support.dispatching import Machine, Rig, until

pytestmark = pytest.mark.parametrize("database_kind", ["sqlite"], indirect=True)


async def greedy(rig: Rig, *, allowed: int, cores: int) -> Machine:
    """A machine that says it has 1,000 slots, and ten chunks that wait."""
    machine = Machine(rig, await rig.add_machine(slots=allowed), slots=1000, works=False)
    machine.hello = {"cpu_count": cores, "tags": ("Secure", "gpu")}
    await rig.submit("1-10")
    await machine.dial()
    return machine


def view(rig: Rig, machine: Machine) -> dict[str, Any]:
    found = rig.farm.machines.get(machine.machine_id)
    assert found is not None
    return found.view()


@pytest.mark.parametrize(
    ("allowed", "cores", "counts"), [(0, 64, 4), (0, 2, 2), (0, 0, 4), (0, -1, 4), (3, 64, 3), (6, 1, 6)]
)
async def test_claimed_slots_count_as_far_as_they_are_allowed(rig: Rig, allowed: int, cores: int, counts: int) -> None:
    machine = await greedy(rig, allowed=allowed, cores=cores)
    await machine.given(counts)
    await rig.dispatcher.leased()
    seen = view(rig, machine)
    assert len(machine.assigned) == len(seen["attempts"]) == counts
    assert (seen["slots"], seen["slots_claimed"], seen["slots_allowed"]) == (counts, 1000, counts)


async def test_operator_allows_more_slots_at_once(rig: Rig) -> None:
    machine = await greedy(rig, allowed=0, cores=64)
    await machine.given(4)
    await rig.database.write(lambda c: administration_rows.change_machine(c, machine.machine_id, {"slots_allowed": 7}))
    await rig.dispatcher.refresh()
    await machine.given(7)
    await rig.dispatcher.leased()
    assert len(machine.assigned) == 7
    await rig.database.write(lambda c: administration_rows.change_machine(c, machine.machine_id, {"slots_allowed": 0}))
    await rig.dispatcher.refresh()
    await until(lambda: view(rig, machine)["slots"] == 4, "fewer slots")


async def test_tags_that_a_machine_gives_itself_are_marked(rig: Rig) -> None:
    machine = await greedy(rig, allowed=1, cores=1)
    await rig.database.write(
        lambda c: administration_rows.change_machine(c, machine.machine_id, {"tags": ["gpu", "fast"]})
    )
    await rig.dispatcher.refresh()
    seen = view(rig, machine)
    assert (seen["tags"], seen["own_tags"]) == (["fast", "gpu", "secure"], ["secure"])
