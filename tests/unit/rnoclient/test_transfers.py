"""Uploads and downloads of the SDK: streamed, repeated or resumed after a cut, never half."""

import email.parser
import email.policy
import hashlib
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm import errors
from renderonline.rnoclient.sdk import Client, Login, connection
from tests.support.scripted_server import Answer, Asked, ScriptedServer, in_turn

TASK = json.dumps({"task_id": 7}).encode()


def client(server: ScriptedServer) -> Client:
    made = Client(Login(server.url, "a@b.org", "t"))
    made.connection._sleep = lambda _: None
    return made


def parts_of(asked: Asked) -> dict[str, tuple[str | None, bytes]]:
    raw = f"content-type: {asked.headers['content-type']}\r\n\r\n".encode() + asked.body
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(raw)
    return {
        str(part.get_param("name", header="content-disposition")): (
            part.get_filename(),
            part.get_payload(decode=True) or b"",
        )
        for part in message.iter_parts()
    }


def test_submission_is_one_streamed_form_with_the_request_first(tmp_path: Path) -> None:
    scene = tmp_path / "shot.blend"
    scene.write_bytes(b"\x00\r\n--x" * 200_000)
    seen: list[tuple[int, int]] = []
    with ScriptedServer(in_turn(Answer(201, TASK))).running() as server:
        task = client(server).submit(
            scene, engine="blender", frames="1-24", arguments={"format": "PNG"}, progress=lambda *it: seen.append(it)
        )
        asked = server.asked[0]
    assert task["task_id"] == 7
    assert len(asked.body) == int(asked.headers["content-length"])
    parts = parts_of(asked)
    assert list(parts) == ["request", "file"]
    assert parts["file"][0] == "shot.blend"
    assert asked.body.count(scene.read_bytes()) == 1
    request = json.loads(parts["request"][1])
    assert request["engine"] == "blender"
    assert request["frames"] == "1-24"
    assert request["arguments"] == {"format": "PNG"}
    assert seen[-1] == (scene.stat().st_size, scene.stat().st_size)


def test_cut_submission_is_repeated_with_the_same_key(tmp_path: Path) -> None:
    scene = tmp_path / "shot.blend"
    scene.write_bytes(b"scene")
    with ScriptedServer(in_turn(Answer(silent=True), Answer(201, TASK))).running() as server:
        client(server).submit(scene, engine="blender")
        keys = [asked.headers["idempotency-key"] for asked in server.asked]
    assert len(keys) == 2
    assert len(set(keys)) == 1


def test_two_submissions_have_two_keys(tmp_path: Path) -> None:
    scene = tmp_path / "shot.blend"
    scene.write_bytes(b"scene")
    with ScriptedServer(in_turn(Answer(201, TASK))).running() as server:
        for _ in range(2):
            client(server).submit(scene, engine="blender")
        assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 2


def test_early_refusal_is_heard_before_the_file_is_sent(tmp_path: Path) -> None:
    scene = tmp_path / "large.blend"
    with scene.open("wb") as file:
        file.truncate(400_000_000)
    body = json.dumps({"title": "x", "detail": "Queue limit 3 reached.", "code": "limit_reached"}).encode()
    sent = [0]
    with ScriptedServer(in_turn(Answer(429, body, early=True))).running() as server:
        with pytest.raises(errors.LimitReached, match="Queue limit 3"):
            client(server).submit(scene, engine="blender", progress=lambda done, _: sent.__setitem__(0, done))
        assert len(server.asked) == 1
    assert sent[0] < 400_000_000


def test_hostile_file_name_stays_one_parameter(tmp_path: Path) -> None:
    scene = tmp_path / 'a"; name="request\r\nX: y.blend'
    scene.write_bytes(b"scene")
    with ScriptedServer(in_turn(Answer(201, TASK))).running() as server:
        client(server).submit(scene, engine="blender")
        assert list(parts_of(server.asked[0])) == ["request", "file"]


def test_unreadable_scene_is_told_without_a_call(tmp_path: Path) -> None:
    with ScriptedServer(in_turn(Answer())).running() as server:
        with pytest.raises(errors.InvalidRequest, match="can't be read"):
            client(server).submit(tmp_path / "missing.blend", engine="blender")
        assert not server.asked


CONTENT = bytes(range(256)) * 4000


def ranged(asked: Asked, *, etag: str = '"one"', content: bytes = CONTENT, cut: int | None = None) -> Answer:
    """What a correct server answers, cut after `cut` bytes of its body."""
    headers, body, status = {"etag": etag}, content, 200
    match = re.fullmatch(r"bytes=(\d+)-", asked.headers.get("range", ""))
    if match and asked.headers.get("if-range") == etag:
        start = int(match[1])
        body, status = content[start:], 206
        headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
    return Answer(status, body[:cut], headers, promised=len(body) if cut is not None else None)


def test_cut_download_goes_on_where_it_stopped(tmp_path: Path) -> None:
    script = [300_000, 200_000, None]
    with ScriptedServer(lambda asked: ranged(asked, cut=script.pop(0))).running() as server:
        path = client(server).download_zip(7, tmp_path / "task.zip")
        ranges = [asked.headers.get("range") for asked in server.asked]
    assert path.read_bytes() == CONTENT
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert [item.name for item in tmp_path.iterdir()] == ["task.zip"]


def test_download_of_an_earlier_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "task.zip.part").write_bytes(CONTENT[:1000])
    (tmp_path / "task.zip.part.etag").write_text('"one"')
    with ScriptedServer(ranged).running() as server:
        path = client(server).download_zip(7, tmp_path / "task.zip")
        assert server.asked[0].headers["range"] == "bytes=1000-"
    assert path.read_bytes() == CONTENT


def test_changed_file_is_downloaded_from_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "task.zip.part").write_bytes(b"old" * 100)
    (tmp_path / "task.zip.part.etag").write_text('"old"')
    with ScriptedServer(ranged).running() as server:
        assert client(server).download_zip(7, tmp_path / "task.zip").read_bytes() == CONTENT


def test_part_longer_than_the_file_starts_again(tmp_path: Path) -> None:
    (tmp_path / "task.zip.part").write_bytes(CONTENT * 2)
    (tmp_path / "task.zip.part.etag").write_text('"one"')

    def script(asked: Asked) -> Answer:
        return Answer(416, b"", {}) if "range" in asked.headers else ranged(asked)

    with ScriptedServer(script).running() as server:
        assert client(server).download_zip(7, tmp_path / "task.zip").read_bytes() == CONTENT


def test_target_stays_untouched_when_a_download_fails(tmp_path: Path) -> None:
    target = tmp_path / "task.zip"
    target.write_bytes(b"before")
    gone = Answer(404, b'{"title": "x", "code": "not_found"}')
    with ScriptedServer(lambda _: gone).running() as server, pytest.raises(errors.NotFound):
        client(server).download_zip(7, target)
    assert target.read_bytes() == b"before"


def results(*names: str, content: bytes = CONTENT) -> bytes:
    digest = hashlib.blake2b(content, digest_size=32).hexdigest()
    items = [{"name": name, "size": len(content), "digest": digest} for name in names]
    return json.dumps({"items": items, "next": None}).encode()


def test_results_that_are_there_already_are_not_sent_again(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        listing = asked.path.partition("?")[0].endswith("/results")
        return Answer(body=results("a/f 1.png", "f2.png")) if listing else ranged(asked)

    with ScriptedServer(script).running() as server:
        farm = client(server)
        paths = farm.download_results(7, tmp_path)
        first = len(server.asked)
        farm.download_results(7, tmp_path)
        assert len(server.asked) == first + 1
        assert server.asked[1].path == "/renderapi/v2/tasks/7/results/a/f%201.png"
    assert [path.read_bytes() == CONTENT for path in paths] == [True, True]
    assert paths[0] == tmp_path / "a" / "f 1.png"


def test_other_bytes_than_the_farm_has_are_refused(tmp_path: Path) -> None:
    def script(asked: Asked) -> Answer:
        listing = asked.path.partition("?")[0].endswith("/results")
        return Answer(body=results("f.png", content=b"other" * 3)) if listing else ranged(asked)

    with ScriptedServer(script).running() as server, pytest.raises(errors.NotAvailable, match="other bytes"):
        client(server).download_results(7, tmp_path)
    assert not (tmp_path / "f.png").exists()


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/etc/x", "a/../../x", "a\\b", "a\x00b", "c:x", "a\nb"])
def test_name_that_leads_out_of_the_directory_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(errors.InvalidRequest, match="no safe name"):
        connection.safe_path(tmp_path, name)


@given(st.text())
def test_no_name_leads_out_of_the_directory(name: str) -> None:
    base = Path("/base")
    try:
        path = connection.safe_path(base, name)
    except errors.InvalidRequest:
        return
    assert base in path.parents
    assert ".." not in path.parts
