"""Machines: status, awake time, and two programs with one secret (R1.3 Silence, R5.7 One secret, one program)."""

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.machines import (
    AwakeClock,
    Instances,
    MachineStatus,
    Wish,
    checked_address,
    machine_status,
    slots_allowed,
)


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


@pytest.mark.parametrize(
    ("allowed", "cores", "slots"), [(0, 64, 4), (0, 3, 3), (0, 0, 4), (0, -5, 4), (16, 2, 16), (1, 64, 1)]
)
def test_four_slots_or_the_cores_are_allowed_until_somebody_says_more(allowed: int, cores: int, slots: int) -> None:
    assert slots_allowed(allowed, cores) == slots


@pytest.mark.parametrize(
    "address",
    ["192.0.2.7", "render-1", "render_1.studio.example", "host.", "::1", "fe80::1%eth0", "2001:db8::192.0.2.7"],
)
def test_address_of_a_v1_machine_is_an_ip_address_or_a_host_name(address: str) -> None:
    assert checked_address(address) == address


@pytest.mark.parametrize(
    "address",
    ["", "localhost/any/path?q=", "host/", "host?q", "host#f", "user@host", "host:80", "[::1]", "::1/x", "fe80::1%a/b",
     "fe80::1%", ":::", "ho st", "host\n", "h\u00f6st", "\uff11.2.3.4", "x" * 46, "-host", ".host", "a\\b"],
)  # fmt: skip
def test_address_that_holds_more_than_a_host_is_refused(address: str) -> None:
    with pytest.raises(InvalidRequest):
        checked_address(address)
