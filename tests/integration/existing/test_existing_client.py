"""The existing client's requests, byte for byte, against our RenderAPI."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.existing_client import Naming, Part
from tests.support.existing_farm import ExistingFarm, address_of, v1_node
from tests.support.existing_rig import SCENE, Rig

sqlite = pytest.mark.sqlite
VALUES = {"code": "0", "note": "hello"}


NAMINGS: tuple[Naming, ...] = ("quoted", "plain", "starred")
REQUEST_TYPES = ("application/json; charset=utf-8", "text/plain; charset=utf-8", "application/octet-stream")
NAMES = ("a.scene", "my scene 1.scene", "größe.scene")


@sqlite
def test_every_way_in_which_dotnet_writes_multipart_works(rig: Rig) -> None:
    rig.farm.start()
    for naming, request_type, name in itertools.product(NAMINGS, REQUEST_TYPES, NAMES):
        answer = rig.client.enqueue(1, VALUES, name, SCENE, naming=naming, request_type=request_type)
        assert answer.status == 200, answer.body
        task_id = answer.json()["TaskId"]
        (path,) = rig.farm.directory_of(task_id).iterdir()
        assert (path.name, path.read_bytes()) == (name, SCENE)
        assert rig.client.delete(task_id).status == 200


@sqlite
def test_unusual_content_arrives_whole(rig: Rig) -> None:
    rig.farm.start()
    request = b'{"EngineId":"1","Arguments":[{"ArgTypeId":"code","Value":"0"},{"ArgTypeId":"note","Value":"x"}]}'
    like_multipart = b"\r\n--\r\n--golden--\r\n" * 10_000 + b"\r\n--" + bytes(range(256)) * 700
    for content in (b"", b"\r\n", b"--", like_multipart):
        # Parts without a content type are taken too.
        answer = rig.client.post_parts([Part("request", request), Part("anything", content, "a.scene")])
        assert answer.status == 200, answer.body
        assert (rig.farm.directory_of(answer.json()["TaskId"]) / "a.scene").read_bytes() == content


@sqlite
def test_an_email_is_found_in_any_letter_case(rig: Rig) -> None:
    """As on the existing system, whose database compares without regard to it."""
    rig.farm.start()
    client = rig.farm.client(10)
    client._who = {"email": "USER10@Example.ORG", "token": "token-of-10"}
    assert client.info().status == 200


@pytest.fixture
def rig_on_each(database_url: str, tmp_path: Path) -> Iterator[Rig]:
    """The rig on SQLite, and on a MariaDB that our migration adopted from the existing schema."""
    with ExistingFarm(tmp_path / "farm", database_url) as farm:
        made = Rig(farm, tmp_path)
        yield made
        farm.stop()
        made.close()


def test_the_whole_way_of_a_task(rig_on_each: Rig) -> None:
    rig = rig_on_each
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


@sqlite
def test_our_own_node_in_its_v1_role_does_as_well(rig: Rig, tmp_path: Path) -> None:
    rig.release()
    with v1_node(tmp_path / "node", {"Stub": rig.engine}) as url:
        rig.farm.add_machine(1, address_of(url)[1])
        rig.farm.start()
        rig.assert_ended_well(rig.submit(note="two words"))
        argv = rig.runs[0]["argv"]
        assert isinstance(argv, list)
        assert argv[argv.index("--note") + 1] == "two words"
        failing = rig.submit(code=1)
        rig.wait_for_run(2)
        assert rig.client.dequeue(failing).status == 200
