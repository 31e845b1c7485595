"""Previews of real frames: made and sent by a machine, kept and shown by RenderAPI."""

import asyncio
import contextlib
import json
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from renderonline.hpcserver.file_exchange import PREVIEW_PATIENCE_S, PreviewSender, Transfers
from renderonline.hpcserver.joining import Identity
from tests.support.farm import RealFarm, wait_until
from tests.support.painter import DEFINITION, write_painter


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    directory = tmp_path_factory.mktemp("farm")
    with RealFarm(directory) as farm:
        farm.client.admin.add_engine(DEFINITION)
        farm.add_machine("m", engines={"painter": str(write_painter(directory / "painter"))})
        yield farm


def ask(farm: RealFarm, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, bytes]:
    request = urllib.request.Request(f"{farm.url}/renderapi/v2{path}", body, headers, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def rendered(farm: RealFarm, tmp_path: Path, frames: str, scene: str = "a scene") -> int:
    file = tmp_path / "a.paint"
    file.write_text(scene)
    return int(farm.client.submit(file, engine="painter", frames=frames)["task_id"])


def test_every_frame_has_a_preview_when_it_is_announced(farm: RealFarm, tmp_path: Path) -> None:
    who = {"email": farm.login.email, "token": farm.login.token}
    stream = urllib.request.urlopen(
        urllib.request.Request(f"{farm.url}/renderapi/v2/events", headers=who), timeout=30
    )  # results are told with what is there of them
    task_id = rendered(farm, tmp_path, "1-6")
    farm.wait_for_status(task_id, "succeeded")
    told: list[dict[str, Any]] = []
    while len(told) < 6:
        line = stream.readline().decode()
        if line.startswith("data:") and '"digest"' in line:
            told.append(json.loads(line[5:]))
    stream.close()
    assert [one["preview"] for one in told] == [True] * 6
    results = list(farm.client.results(task_id))
    assert [result["preview"] for result in results] == [True] * 6
    assert farm.client.task(task_id)["latest"]["preview"] is True

    status, headers, jpeg = ask(farm, "GET", f"/tasks/{task_id}/previews/frame_0003.png?size=thumb", **who)
    assert (status, headers["Content-Type"], headers["X-Content-Type-Options"]) == (200, "image/jpeg", "nosniff")
    assert jpeg.startswith(b"\xff\xd8\xff")
    assert headers["Cache-Control"] == "private, no-cache"
    again = {**who, "If-None-Match": headers["ETag"]}
    assert ask(farm, "GET", f"/tasks/{task_id}/previews/frame_0003.png", **again)[0] == 304
    kept = ask(farm, "GET", f"/tasks/{task_id}/previews/frame_0003.png?v={results[2]['digest']}", **who)[1]
    assert kept["Cache-Control"] == "private, max-age=31536000, immutable"
    for path, expected in (
        (f"/tasks/{task_id}/previews/frame_0003.png?size=view", 404),  # a browser shows the frame itself
        (f"/tasks/{task_id}/previews/frame_0007.png", 404),
        (f"/tasks/{task_id}/previews/../../x", 404),
        (f"/tasks/{task_id}/previews/frame_0003.png?size=huge", 400),
        (f"/tasks/{task_id + 1}/previews/frame_0003.png", 404),
    ):
        assert ask(farm, "GET", path, **who)[0] == expected, path
    assert ask(farm, "GET", f"/tasks/{task_id}/previews/frame_0003.png")[0] == 401
    other = farm.client.admin.add_user(email="other@farm.example")
    theirs = {"email": "other@farm.example", "token": other["token"]}
    assert ask(farm, "GET", f"/tasks/{task_id}/previews/frame_0003.png", **theirs)[0] == 404

    farm.client.delete(task_id)
    assert list((farm.data / "previews").rglob("*.jpg")) == []
    assert not (farm.data / "previews" / str(task_id)).exists()
    assert ask(farm, "GET", f"/tasks/{task_id}/previews/frame_0003.png", **who)[0] == 404


def test_only_the_machine_of_a_live_attempt_may_send_and_only_jpegs_of_its_files(
    farm: RealFarm, tmp_path: Path
) -> None:
    release = tmp_path / "go"
    task_id = rendered(farm, tmp_path, "1-2", f"hold 1 {release}\n")
    attempt = wait_until(
        lambda: next((one for one in farm.client.attempts(task_id) if one["state"] == "running"), None), "attempt"
    )
    number = attempt["attempt_id"]
    where = f"/attempts/{number}/previews/frame_0001.png?size=thumb"
    jpeg = b"\xff\xd8\xff" + b"x" * 100
    who = {"email": farm.login.email, "token": farm.login.token}
    assert ask(farm, "PUT", where, jpeg)[0] == 404
    assert ask(farm, "PUT", where, jpeg, **who)[0] == 404
    assert ask(farm, "PUT", where, jpeg, Authorization="Attempt guessed")[0] == 404
    mine = {"Authorization": f"Attempt {_token(farm.data, number)}"}
    for path, body, expected in (
        (where, b"\x89PNG no jpeg", 400),
        (where, jpeg + b"x" * (512 << 10), 413),
        (where.replace("frame_0001", "frame_0009"), jpeg, 404),
        (where.replace("frame_0001.png", "..%2f..%2fx"), jpeg, 400),
        (where.replace("thumb", "huge"), jpeg, 400),
        (where, jpeg, 204),
    ):
        assert ask(farm, "PUT", path, body, **mine)[0] == expected, (path, len(body))
    kept = [path.relative_to(farm.data) for path in (farm.data / "previews").rglob("*.*")]
    assert [path.parts[:2] for path in kept] == [("previews", str(task_id))]
    release.touch()
    farm.wait_for_status(task_id, "succeeded")
    assert ask(farm, "PUT", where, jpeg, **mine)[0] == 409


def _token(data: Path, attempt: int) -> str:
    file = next(data.glob("*.sqlite"))
    with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT token FROM attempts WHERE attempt_id = ?", (attempt,))
        return str(found.fetchone()[0])


async def test_a_renderapi_that_never_answers_holds_up_a_frame_only_once() -> None:
    silent = await asyncio.start_server(lambda *_: asyncio.sleep(60), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    transfers = Transfers(Identity(f"http://127.0.0.1:{port}", 1000, "secret"))
    sender = PreviewSender(transfers)
    start = time.monotonic()
    for number in range(10):
        await sender.send(1, "token", f"{number}.png", {"thumb": b"\xff\xd8\xff", "view": b"\xff\xd8\xff"})
    assert time.monotonic() - start < PREVIEW_PATIENCE_S + 1.0
    sender.close()
    silent.close()
