"""Machines: status, awake time, and two programs with one secret (R1.3, R5.4)."""

import pytest

from renderonline.farm.machines import AwakeClock, Instances, MachineStatus, Wish, machine_status


@pytest.mark.parametrize(
    ("wish", "reachable", "occupied", "status"),
    [
        (Wish.ACTIVE, True, 0, MachineStatus.IDLE),
        (Wish.ACTIVE, True, 2, MachineStatus.BUSY),
        (Wish.ACTIVE, False, 2, MachineStatus.OFFLINE),
        (Wish.DRAINING, True, 2, MachineStatus.DRAINING),
        (Wish.DRAINING, False, 0, MachineStatus.OFFLINE),
        (Wish.DISABLED, True, 2, MachineStatus.DISABLED),
        (Wish.DISABLED, False, 0, MachineStatus.DISABLED),
    ],
)
def test_status_follows_from_wish_and_reachability(
    wish: Wish, reachable: bool, occupied: int, status: MachineStatus
) -> None:
    assert machine_status(wish, reachable=reachable, occupied=occupied) is status


def test_time_in_which_the_loop_stood_still_does_not_count() -> None:
    clock = AwakeClock(100.0, 1.0)
    clock.tick(101.0)
    assert clock.now(101.5) == 1.5
    clock.tick(161.0)  # a minute in which nothing ran
    assert clock.now(161.0) == 3.0
    assert clock.now(500.0) == 5.0


def test_awake_time_never_goes_back() -> None:
    clock = AwakeClock(100.0)
    assert clock.now(99.0) == 0.0
    clock.tick(101.0)
    assert clock.now(100.0) == 1.0


def test_instance_that_comes_back_after_another_is_a_second_program() -> None:
    seen = Instances()
    assert not seen.hello("a", 0.0)
    assert not seen.hello("b", 1.0)
    assert seen.hello("a", 2.0)
    assert seen.latest is not None
    assert seen.latest.instance == "a"


def test_reconnects_and_restarts_are_not() -> None:
    seen = Instances()
    assert not any(seen.hello(name, at) for at, name in enumerate("aaabbbcdddd"))


def test_instances_an_hour_apart_are_not() -> None:
    seen = Instances()
    assert not any([seen.hello("a", 0.0), seen.hello("b", 3600.0), seen.hello("a", 7200.0)])
