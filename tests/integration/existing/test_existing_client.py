"""The existing client's requests, byte for byte, against our RenderAPI."""

import itertools

import pytest
from tests.support.existing_client import Naming, Part
from tests.support.existing_rig import SCENE, Rig

pytestmark = pytest.mark.sqlite

VALUES = {"code": "0", "note": "hello"}


NAMINGS: tuple[Naming, ...] = ("quoted", "plain", "starred")
REQUEST_TYPES = ("application/json; charset=utf-8", "text/plain; charset=utf-8", "application/octet-stream")
NAMES = ("a.scene", "my scene 1.scene", "größe.scene")


def test_every_way_in_which_dotnet_writes_multipart_works(rig: Rig) -> None:
    rig.farm.start()
    for naming, request_type, name in itertools.product(NAMINGS, REQUEST_TYPES, NAMES):
        answer = rig.client.enqueue(1, VALUES, name, SCENE, naming=naming, request_type=request_type)
        assert answer.status == 200, answer.body
        task_id = answer.json()["TaskId"]
        (path,) = rig.farm.directory_of(task_id).iterdir()
        assert (path.name, path.read_bytes()) == (name, SCENE)
        assert rig.client.delete(task_id).status == 200


def test_unusual_content_arrives_whole(rig: Rig) -> None:
    rig.farm.start()
    request = b'{"EngineId":"1","Arguments":[{"ArgTypeId":"code","Value":"0"},{"ArgTypeId":"note","Value":"x"}]}'
    like_multipart = b"\r\n--\r\n--golden--\r\n" * 10_000 + b"\r\n--" + bytes(range(256)) * 700
    for content in (b"", b"\r\n", b"--", like_multipart):
        # Parts without a content type are taken too.
        answer = rig.client.post_parts([Part("request", request), Part("anything", content, "a.scene")])
        assert answer.status == 200, answer.body
        assert (rig.farm.directory_of(answer.json()["TaskId"]) / "a.scene").read_bytes() == content


def test_the_whole_way_of_a_task(rig: Rig) -> None:
    rig.add_node(1)
    rig.release()
    rig.farm.start()
    task_id = rig.submit()
    rig.assert_ended_well(task_id)
    shown = rig.client.info().json()["Tasks"][0]["Task"]
    assert (shown["TaskId"], shown["IsRunning"], shown["IsSuccess"]) == (task_id, False, True)
    assert None not in (shown["QueueTime"], shown["StartTime"], shown["EndTime"])
    assert rig.client.dequeue(task_id).json()["ErrorMessage"] == f"Task with identifier {task_id} is not in the queue."
    download = rig.client.download(task_id)
    assert download.headers["content-type"] == "application/zip"
    assert int(download.headers["content-length"]) == len(download.body)
    assert rig.client.delete(task_id).json()["IsDeleted"] is True
    assert rig.client.info().json()["Tasks"] == []


def test_an_email_is_found_in_any_letter_case(rig: Rig) -> None:
    """As on the existing system, whose database compares without regard to it."""
    rig.farm.start()
    client = rig.farm.client(10)
    client._who = {"email": "USER10@Example.ORG", "token": "token-of-10"}
    assert client.info().status == 200
