"""The link's numbers fit together."""

from renderonline.protocol import link


def test_a_machine_may_miss_several_heartbeats_before_it_counts_as_gone() -> None:
    assert link.SILENCE_S >= 5 * link.HEARTBEAT_S
    assert link.LINK_PATH.startswith("/renderapi/v2/")
    assert link.PROTOCOL >= 1
