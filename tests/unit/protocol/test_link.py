"""The link's numbers fit together, and versions understand each other."""

import json

from renderonline.protocol import link
from renderonline.protocol.link import decode, to_wire

HELLO = link.Hello(1, 1000, "secret", "instance", "boot", "1.0", "box", 1, sandbox="bwrap", sandbox_advice="none")


def test_a_machine_may_miss_several_heartbeats_before_it_counts_as_gone() -> None:
    assert link.SILENCE_S >= 5 * link.HEARTBEAT_S
    assert link.LINK_PATH.startswith("/renderapi/v2/")
    assert link.PROTOCOL >= 1


def test_hello_of_an_older_machine_names_no_box() -> None:
    older = {key: value for key, value in to_wire(HELLO).items() if not key.startswith("sandbox")}
    found = decode(json.dumps(older), link.FromMachine)
    assert isinstance(found, link.Hello)
    assert (found.sandbox, found.sandbox_advice) == ("", "")


def test_older_farm_reads_the_hello_of_a_newer_machine() -> None:
    newer = to_wire(HELLO) | {"box_of_the_future": {"kind": "vm"}}
    assert decode(json.dumps(newer), link.FromMachine) == HELLO
