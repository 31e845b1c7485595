"""How long a machine waits before it dials again."""

from renderonline.hpcserver.farm_link import MAX_BACKOFF_S, MAX_REFUSED_S, seconds_to_next_dial


def test_pause_doubles_with_each_failure_up_to_half_a_minute() -> None:
    assert seconds_to_next_dial(0, is_refused=False) <= 0.25
    assert 1.0 <= seconds_to_next_dial(3, is_refused=False) <= 2.0
    assert MAX_BACKOFF_S / 2 <= seconds_to_next_dial(40, is_refused=False) <= MAX_BACKOFF_S


def test_machine_is_back_within_seconds_when_nobody_listened() -> None:
    assert all(seconds_to_next_dial(failures, is_refused=True) <= MAX_REFUSED_S for failures in range(50))


def test_machines_do_not_dial_in_step() -> None:
    assert len({seconds_to_next_dial(8, is_refused=False) for _ in range(20)}) > 10
