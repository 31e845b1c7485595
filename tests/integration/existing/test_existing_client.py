"""The existing client's requests, byte for byte, against our RenderAPI."""

from pathlib import Path

import pytest
from tests.support.existing_client import Naming, Part
from tests.support.existing_rig import SCENE, Rig

pytestmark = pytest.mark.sqlite

VALUES = {"code": "0", "note": "hello"}


@pytest.mark.parametrize("naming", ["quoted", "plain", "starred"])
@pytest.mark.parametrize(
    "request_type", ["application/json; charset=utf-8", "text/plain; charset=utf-8", "application/octet-stream"]
)
def test_every_way_in_which_dotnet_writes_multipart_works(rig: Rig, naming: Naming, request_type: str) -> None:
    rig.farm.start()
    names = {"a.scene": "a.scene", "my scene 1.scene": "my scene 1.scene", "größe.scene": "größe.scene"}
    for name, saved in names.items():
        answer = rig.client.enqueue(1, VALUES, name, SCENE, naming=naming, request_type=request_type)
        assert answer.status == 200, answer.body
        (path,) = rig.farm.directory_of(answer.json()["TaskId"]).iterdir()
        assert (path.name, path.read_bytes()) == (saved, SCENE)


def test_parts_without_a_content_type_and_an_empty_file_work(rig: Rig) -> None:
    rig.farm.start()
    request = b'{"EngineId":"1","Arguments":[{"ArgTypeId":"code","Value":"0"},{"ArgTypeId":"note","Value":"x"}]}'
    answer = rig.client.post_parts([Part("request", request), Part("anything", b"", "a.scene")])
    assert answer.status == 200, answer.body
    (path,) = rig.farm.directory_of(answer.json()["TaskId"]).iterdir()
    assert path.stat().st_size == 0


def test_content_that_looks_like_multipart_arrives_whole(rig: Rig) -> None:
    rig.farm.start()
    content = b"\r\n--\r\n--golden--\r\n" * 10_000 + b"\r\n--" + bytes(range(256)) * 700
    answer = rig.client.enqueue(1, VALUES, "a.scene", content)
    assert answer.status == 200, answer.body
    assert (rig.farm.directory_of(answer.json()["TaskId"]) / "a.scene").read_bytes() == content


def test_the_whole_way_of_a_task(rig: Rig, tmp_path: Path) -> None:
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


def test_a_password_manager_that_writes_the_email_in_capitals_works(rig: Rig) -> None:
    rig.farm.start()
    client = rig.farm.client(10)
    client._who = {"email": "USER10@Example.ORG", "token": "token-of-10"}
    assert client.info().status == 200
