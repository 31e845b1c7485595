"""The link's numbers fit together, and versions understand each other."""

import json

import pytest
from msgspec.structs import replace

from renderonline.farm.errors import InvalidRequest
from renderonline.protocol import link
from renderonline.protocol.link import decode, decode_frame, encode, frames, to_wire

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


def test_hello_with_more_attempts_than_any_machine_holds_is_refused() -> None:
    held = (link.HeldAttempt(1, "t", running=True),) * 10_001
    with pytest.raises(InvalidRequest, match="at most"):
        link.check_hello(replace(HELLO, held=held))


def test_older_farm_reads_the_hello_of_a_newer_machine() -> None:
    newer = to_wire(HELLO) | {"box_of_the_future": {"kind": "vm"}}
    assert decode(json.dumps(newer), link.FromMachine) == HELLO


REPORTS = [link.Started(number, number, "t", 1, 2) for number in range(1, 601)]
ENCODED = list(map(encode, REPORTS))


def test_messages_travel_in_few_frames_in_their_order() -> None:
    found = list(frames(ENCODED, link.PROTOCOL))
    assert len(found) == 3
    assert [message for frame in found for message in decode_frame(frame, link.FromMachine)] == REPORTS
    assert list(frames(ENCODED[:1], link.PROTOCOL)) == ENCODED[:1]
    assert list(frames([], link.PROTOCOL)) == []


def test_no_frame_is_larger_than_one_message_needs() -> None:
    long = encode(link.Log(1, 0, "x" * link.FRAME_CHARACTERS))
    assert list(frames([ENCODED[0], long, *ENCODED[1:3]], 2)) == [ENCODED[0], long, f"[{ENCODED[1]},{ENCODED[2]}]"]


def test_a_side_of_the_version_before_gets_single_messages() -> None:
    """R5.6 Protocol versions."""
    assert list(frames(ENCODED, 1)) == ENCODED


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[]", "1 to 256 messages"),
        (f"[{','.join(ENCODED[:257])}]", "1 to 256 messages"),
        (f"[{ENCODED[0]},[]]", "must be a JSON object"),
        (f'[{ENCODED[0]},{{"type":"assign"}}]', "'assign' is not known here"),
        (f'[{ENCODED[0]},{{"type":"progress","attempt":1,"fraction":"x"}}]', r"progress\.fraction must be a number"),
        (
            '{"type":"log","attempt":9223372036854775808,"offset":0,"text":""}',
            "log.attempt must be a number of at most",
        ),
        ('{"type":"log","attempt":1,"offset":0,"text":"\\ud800"}', "not valid JSON"),
    ],
)
def test_what_is_wrong_in_a_frame_is_named(text: str, wrong: str) -> None:
    with pytest.raises(InvalidRequest, match=wrong):
        decode_frame(text, link.FromMachine)


def test_values_of_any_kind_are_not_nested_deeper_in_a_frame() -> None:
    message = to_wire(link.Result(1, 1, "t", 1, "n", 1, "d", 1))
    for depth, frame in ((20, True), (40, False)):
        message["facts"] = {"deep": json.loads("[" * depth + "]" * depth)}
        if frame:
            assert len(decode_frame(json.dumps([message, message]), link.FromMachine)) == 2
        else:
            with pytest.raises(InvalidRequest, match="nested more than 32 levels"):
                decode_frame(json.dumps([message]), link.FromMachine)
