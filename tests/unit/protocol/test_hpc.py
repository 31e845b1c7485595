"""What travels to and from a v1 node."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.errors import InvalidRequest
from renderonline.protocol import existing
from renderonline.protocol.existing import NodeAnswer, StartRequest, Status, StopRequest, TaskState


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


proper_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
task_ids = st.integers(0, 2**64 - 1)


@given(proper_text, task_ids, proper_text)
def test_a_start_survives_the_wire(engine_id: str, task_id: int, arguments: str) -> None:
    request = StartRequest(engine_id, task_id, arguments)
    assert existing.parse_start(existing.encode(request)) == request


@given(
    st.lists(proper_text).map(tuple), st.none() | st.builds(TaskState, task_ids, st.booleans(), st.booleans(), task_ids)
)
def test_a_status_survives_the_wire(engine_ids: tuple[str, ...], task: TaskState | None) -> None:
    assert existing.parse_status(existing.encode(Status(engine_ids, task))) == Status(engine_ids, task)


@given(st.booleans(), proper_text)
def test_an_answer_survives_the_wire(success: bool, message: str) -> None:
    assert existing.parse_answer(existing.encode(NodeAnswer(success, message))) == NodeAnswer(success, message)


def test_messages_are_written_in_pascal_case() -> None:
    assert json.loads(existing.encode(StartRequest("blender", 7, "-b"))) == {
        "EngineId": "blender",
        "TaskId": 7,
        "Arguments": "-b",
    }
    assert json.loads(existing.encode(StopRequest(7))) == {"TaskId": 7}
    assert json.loads(existing.encode(Status(("blender",)))) == {"EngineIds": ["blender"], "Task": None}


@pytest.mark.parametrize(
    "sent",
    [
        {"EngineId": "blender", "TaskId": 7, "Arguments": "-b"},
        {"engineId": "blender", "taskId": 7, "arguments": "-b"},
        {"ENGINEID": "blender", "TASKID": "7", "ARGUMENTS": "-b", "Unknown": {"a": 1}},
    ],
)
def test_a_start_is_read_in_any_letter_case_and_with_numbers_as_text(sent: dict[str, Any]) -> None:
    assert existing.parse_start(body(sent)) == StartRequest("blender", 7, "-b")


def test_a_start_without_a_task_id_has_zero_as_in_dotnet() -> None:
    assert existing.parse_start(b'{"EngineId": 1, "Arguments": ""}') == StartRequest("1", 0, "")


@pytest.mark.parametrize(
    "sent",
    [
        *(b"", b"{", b"null", b"[]", b"\xff", b"[" * 100_000),
        *(body(value) for value in ({}, {"EngineId": "a"}, {"Arguments": "a"}, {"EngineId": None, "Arguments": ""})),
        *(body({"EngineId": "a", "Arguments": bad}) for bad in (None, True, ["-b"], {"a": 1}, "a\0b", "\ud800")),
        *(body({"EngineId": "a", "Arguments": "", "TaskId": bad}) for bad in (-1, 2**64, "x", 1.5, True, None)),
    ],
)
def test_a_start_that_lacks_something_is_refused(sent: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        existing.parse_start(sent)
    assert refused.value.message == "Invalid render arguments!"


@pytest.mark.parametrize("sent", [b'{"TaskId": 7}', b'{"taskid": "7"}', b'\xef\xbb\xbf{"TaskId": 7}'])
def test_a_stop_is_read(sent: bytes) -> None:
    assert existing.parse_stop(sent) == StopRequest(7)


@pytest.mark.parametrize("sent", [b"", b"{}", b'{"TaskId": null}', b'{"TaskId": "seven"}', b'{"TaskId": ""}'])
def test_a_stop_without_a_task_id_is_refused(sent: bytes) -> None:
    with pytest.raises(InvalidRequest, match="Invalid render arguments!"):
        existing.parse_stop(sent)


def test_a_status_is_read_tolerantly() -> None:
    status = existing.parse_status(
        b'{"engineids": ["a", null, 3], "task": {"taskid": "9", "ISRUNNING": "True", "IsSuccess": false}}'
    )
    assert status == Status(("a", "3"), TaskState(9, is_success=False, is_running=True, total_seconds=0))
    assert existing.parse_status(b"{}") == Status(())


@pytest.mark.parametrize(
    "sent",
    [
        b"<html>",
        b'{"EngineIds": [], "Task": 5}',
        b'{"Task": {"TaskId": 1, "IsSuccess": true}}',
        b'{"Task": {"TaskId": 1, "IsRunning": true}}',
        b'{"Task": {"IsSuccess": true, "IsRunning": true}}',
        b'{"Task": {"TaskId": 1, "IsSuccess": 1, "IsRunning": "perhaps"}}',
    ],
)
def test_a_status_that_says_nothing_is_refused(sent: bytes) -> None:
    with pytest.raises(InvalidRequest, match="status can't be understood"):
        existing.parse_status(sent)


@pytest.mark.parametrize("sent", [b"", b"{}", b'{"IsSuccess": null}', b'{"Message": "x"}'])
def test_an_answer_that_says_nothing_is_refused(sent: bytes) -> None:
    with pytest.raises(InvalidRequest, match="answer can't be understood"):
        existing.parse_answer(sent)


def test_an_answer_needs_no_message() -> None:
    assert existing.parse_answer(b'{"isSuccess": "false", "Message": null}') == NodeAnswer(is_success=False, message="")


def test_the_messages_of_the_contract() -> None:
    assert existing.rendering("blender") == "Rendering using engine with identifier: blender"
    assert existing.not_configured("maya") == "Requested rendering engine not configured: maya"


@given(st.binary())
def test_no_bytes_make_anything_but_invalid_request(sent: bytes) -> None:
    for parse in (existing.parse_start, existing.parse_stop, existing.parse_answer):
        with pytest.raises(InvalidRequest):
            parse(sent)
