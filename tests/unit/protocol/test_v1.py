"""What travels at /renderapi/v1."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.arguments import ArgType, check_value
from renderonline.farm.errors import InvalidRequest, RenderOnlineError
from renderonline.protocol import existing
from renderonline.protocol.existing import EnqueueRequest, pascal


def refusal(part: bytes | str | None) -> str:
    with pytest.raises(InvalidRequest) as refused:
        existing.parse_enqueue(part)
    return refused.value.message


@pytest.mark.parametrize(
    "part",
    [
        b'{"EngineId": "1", "Arguments": [{"ArgTypeId": "start_frame", "Value": "1"}]}',
        b'{"EngineId": 1, "Arguments": [{"ArgTypeId": "start_frame", "Value": 1}]}',
        '{"engineId": "1", "arguments": [{"argTypeId": "start_frame", "value": "1", "regex": ".*"}], "Other": null}',
        b'{"ENGINEID": "1", "ARGUMENTS": [{"ARGTYPEID": "start_frame", "VALUE": "1"}]}',
        b'\xef\xbb\xbf {"EngineId": "1", "Arguments": [{"ArgTypeId": "start_frame", "Value": "1"}]}',
    ],
)
def test_an_enqueue_is_read_in_any_letter_case_with_numbers_or_text(part: bytes | str) -> None:
    assert existing.parse_enqueue(part) == EnqueueRequest("1", (("start_frame", "1"),))


def test_a_value_arrives_as_it_was_written() -> None:
    request = existing.parse_enqueue(
        '{"EngineId": 1, "Arguments": [{"ArgTypeId": "a", "Value": 1.50}], "ClientKey": "k"}'
    )
    assert request.arguments == (("a", "1.50"),)
    assert request.client_key == "k"


@pytest.mark.parametrize("part", [None, b"", "", b"  \r\n"])
def test_an_enqueue_without_a_request_says_so(part: bytes | str | None) -> None:
    assert refusal(part) == 'Header "request" is empty.'


@pytest.mark.parametrize(
    "part",
    [
        *("{", "null", "[]", "1", '"x"', "[" * 100_000, "NaN", "1" * 5_000, b"\xff"),
        *(
            '{"EngineId": "1"}',
            '{"Arguments": []}',
            '{"EngineId": null, "Arguments": []}',
            '{"EngineId": true, "Arguments": []}',
        ),
        *(f'{{"EngineId": "1", "Arguments": {bad}}}' for bad in ("null", "{}", '"a"', "[1]", "[null]", "[{}]")),
        *(f'{{"EngineId": 1, "Arguments": [{{"ArgTypeId": "a", "Value": {bad}}}]}}' for bad in ("null", "true", "[]")),
        json.dumps({"EngineId": 1, "Arguments": [{"ArgTypeId": "a", "Value": "x\0"}]}),
        json.dumps({"EngineId": 1, "Arguments": [{"ArgTypeId": "a", "Value": "\ud800"}]}),
        json.dumps({"EngineId": 1, "Arguments": [{"ArgTypeId": "a", "Value": "1"}, {"ArgTypeId": "a", "Value": "2"}]}),
    ],
)
def test_an_enqueue_that_can_not_be_understood_is_refused(part: bytes | str) -> None:
    assert refusal(part) == "Invalid enqueue request arguments."


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON ;x=y"]
)
@pytest.mark.parametrize("body", [b'{"TaskId": 123}', b'{"taskId": "123"}', b'{"TASKID": 123, "Other": []}'])
def test_a_task_id_is_read(content_type: str, body: bytes) -> None:
    assert existing.parse_task_id(content_type, body) == 123


@pytest.mark.parametrize("content_type", [None, "", "text/json", "application/json+x", "multipart/form-data"])
def test_another_content_type_is_refused_before_the_body_is_read(content_type: str | None) -> None:
    with pytest.raises(InvalidRequest) as refused:
        existing.parse_task_id(content_type, b"{")
    assert refused.value.message == "Request content type must be application/json."


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"TaskId": null}', b'{"TaskId": "x"}', b'{"TaskId": -1}'])
def test_a_body_without_a_task_id_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        existing.parse_task_id("application/json", body)
    assert refused.value.message == "Request content has an invalid format."


@given(st.binary())
def test_no_bytes_make_anything_but_invalid_request(sent: bytes) -> None:
    with pytest.raises(InvalidRequest):
        existing.parse_enqueue(sent)
    with pytest.raises(InvalidRequest):
        existing.parse_task_id("application/json", sent)


def test_answers_have_the_contracts_keys() -> None:
    assert existing.enqueue_answer(existing.ENQUEUED, 5) == {
        "IsAdded": True,
        "ErrorMessage": existing.ENQUEUED,
        "TaskId": 5,
    }
    assert existing.enqueue_answer(existing.NO_FILES) == {"IsAdded": False, "ErrorMessage": "No files were uploaded."}
    assert existing.dequeue_answer(existing.DEQUEUED, done=True) == {
        "IsRemoved": True,
        "ErrorMessage": existing.DEQUEUED,
    }
    assert existing.delete_answer(existing.DELETED, done=True) == {"IsDeleted": True, "ErrorMessage": existing.DELETED}
    assert existing.download_refusal(existing.NOT_JSON) == {
        "DownloadProvided": False,
        "ErrorMessage": existing.NOT_JSON,
    }


def test_messages_with_something_in_them() -> None:
    assert existing.task_not_found(123) == "Task with identifier 123 not found for the current user."
    assert existing.task_not_queued(123) == "Task with identifier 123 is not in the queue."


def test_the_rules_of_arguments_say_the_contracts_messages() -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_value(ArgType("a", "natural"), "x")
    assert refused.value.message == "Value x must be of type natural."
    with pytest.raises(RenderOnlineError) as wrong:
        check_value(ArgType("a", "foo"), "x")
    assert wrong.value.message == "Type foo is not valid for RenderOnline."


def entry(**changes: Any) -> existing.TaskEntry:
    given_task = {
        "task_id": 9, "user_id": 1, "queue_time": datetime(2024, 8, 27, 20, 0, 0, 999_999), "start_time": None,
        "end_time": None, "is_running": False, "is_success": False, "render_id": 9, "machine_id": None,
    }  # fmt: skip
    return existing.TaskEntry(
        existing.TaskInfo(**{**given_task, **changes}),
        existing.RenderInfo(9, "a.blend", 12, "-b /x/a.blend", 1),
        existing.EngineInfo(1, "blender", ".blend", "/x", "-b"),
    )


def test_info_has_the_contracts_keys_and_shows_no_path() -> None:
    user = existing.UserInfo(1, "Ada", "Lovelace", "ada@example.org", 1, is_active=True)
    assert pascal(existing.Info(user, (entry(),))) == {
        "User": {
            "UserId": 1,
            "FirstName": "Ada",
            "LastName": "Lovelace",
            "Email": "ada@example.org",
            "SubscriptionId": 1,
            "IsActive": True,
        },
        "Tasks": [
            {
                "Task": {
                    "TaskId": 9,
                    "UserId": 1,
                    "QueueTime": "2024-08-27T20:00:00",
                    "StartTime": None,
                    "EndTime": None,
                    "IsRunning": False,
                    "IsSuccess": False,
                    "RenderId": 9,
                    "MachineId": None,
                },
                "Render": {
                    "RenderId": 9,
                    "FileName": "a.blend",
                    "FilePath": "",
                    "FileSize": 12,
                    "Arguments": "-b /x/a.blend",
                    "EngineId": 1,
                },
                "Engine": {
                    "EngineId": 1,
                    "Name": "blender",
                    "Extension": ".blend",
                    "DownloadPath": "/x",
                    "RenderArgument": "-b",
                },
            }
        ],
    }


def test_a_machine_id_that_is_no_byte_is_null() -> None:
    assert pascal(entry(machine_id=255))["Task"]["MachineId"] == 255
    assert pascal(entry(machine_id=1000))["Task"]["MachineId"] is None


def test_times_never_carry_an_offset() -> None:
    shown = pascal(entry(end_time=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)))["Task"]["EndTime"]
    assert shown == "2026-01-02T03:04:05"
