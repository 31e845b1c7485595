"""Which connection goes when there are too many."""

import socket
from typing import Any

from renderonline.serving.admission import Admission, Guest, source_of

MOST = 32
NOBODY: Any = socket.socket  # what is closed does not matter here


class House:
    """An `Admission` whose guests leave a note when they are closed."""

    def __init__(self, proxy: str = "") -> None:
        self.admission = Admission(MOST, lambda address: address == proxy)
        self.closed: list[Guest] = []

    def arrive(self, address: str = "10.0.0.1", who: str = "", *, is_link: bool = False) -> Guest:
        guest = self.admission.arrive(NOBODY, address)
        guest.end = lambda: self.closed.append(guest)
        if who:
            self.admission.known(guest, who, is_link=is_link)
        return guest


def test_silent_ones_of_an_address_make_room_for_the_newest_of_it() -> None:
    house = House()
    others = [house.arrive("10.0.0.2") for _ in range(4)]
    silent = [house.arrive() for _ in range(100)]
    assert house.closed == silent[: -MOST // 4]
    assert not set(others) & set(house.closed)


def test_who_is_being_answered_stays() -> None:
    house = House()
    busy = house.arrive()
    busy.is_busy = lambda: True
    for _ in range(100):
        house.arrive()
    assert busy not in house.closed


def test_many_unknown_addresses_take_at_most_half() -> None:
    house = House()
    known = [house.arrive(f"10.1.0.{number}", f"user {number}") for number in range(8)]
    silent = [house.arrive(f"10.0.{number}.1") for number in range(200)]
    assert house.closed == silent[: -MOST // 2]
    assert not set(known) & set(house.closed)


def test_account_with_too_many_loses_its_own() -> None:
    house = House()
    neighbour = house.arrive(who="user 1")
    greedy = [house.arrive(who="user 2") for _ in range(100)]
    assert neighbour not in house.closed
    assert house.closed == greedy[: len(house.closed)]
    assert len(greedy) - len(house.closed) == (MOST // 2 - MOST // 8) // 2


def test_largest_account_makes_room_for_the_others() -> None:
    house = House()
    greedy = [house.arrive(who="user 0") for _ in range(6)]
    others = [house.arrive(who=f"user {number}") for number in range(1, 11)]
    assert set(house.closed) <= set(greedy)
    assert not set(others) & set(house.closed)


def test_links_of_machines_are_never_closed_for_others() -> None:
    house = House()
    links = [house.arrive(who=f"machine {number}", is_link=True) for number in range(MOST)]
    for number in range(100):
        house.arrive(f"10.0.{number}.1")
        house.arrive(who=f"user {number}")
    assert not set(links) & set(house.closed)


def test_trusted_proxy_is_no_unknown_address() -> None:
    house = House(proxy="10.0.0.9")
    behind = [house.arrive("10.0.0.9") for _ in range(MOST)]
    for guest in behind:
        house.admission.known(guest, "user 1", is_link=False)
    assert not house.closed


def test_nothing_is_kept_of_those_who_left() -> None:
    house = House()
    guests = [house.arrive(f"10.0.0.{number}", f"user {number}" if number % 2 else "") for number in range(8)]
    for guest in guests:
        house.admission.leave(guest)
    assert not any(vars(house.admission)[name] for name in ("_everybody", "_unknown", "_addresses", "_accounts"))


def test_one_computer_is_one_address() -> None:
    assert source_of("::ffff:10.0.0.1") == source_of("10.0.0.1")
    assert source_of("2001:db8::1") == source_of("2001:db8::ffff:1") != source_of("2001:db8:0:1::1")
    assert source_of("fe80::1%eth0") == source_of("fe80::2")
    assert source_of("unix") == "unix"
