"""Many results arrive as one ZIP: written while it comes, resumed at the file where it broke, each compared."""

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from renderonline.farm import errors
from renderonline.rnoclient.sdk.client import MANY
from tests.support.scripted_server import Answer, Asked, ScriptedServer
from tests.unit.rnoclient.test_transfers import client, ranged

NAMES = [f"shots/frame_{number:03}.png" for number in range(MANY + 4)]


def content_of(name: str) -> bytes:
    return name.encode() * 400


def listing(names: list[str]) -> Answer:
    sums = {name: hashlib.blake2b(content_of(name), digest_size=32).hexdigest() for name in names}
    items = [{"name": name, "size": len(content_of(name)), "digest": digest} for name, digest in sums.items()]
    return Answer(body=json.dumps({"items": items, "next": None}).encode())


def archive(names: list[str], *, altered: str = "", compression: int = zipfile.ZIP_STORED) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", compression) as opened:
        for name in names:
            opened.writestr(name, content_of(name) if name != altered else b"x" * len(content_of(name)))
    return written.getvalue()


def farm(zip_answer: Callable[[Asked], Answer]) -> ScriptedServer:
    """A farm with a task that has `NAMES`; files by themselves are there too."""

    def script(asked: Asked) -> Answer:
        path = asked.path.partition("?")[0]
        if path.endswith("/download"):
            return zip_answer(asked)
        if path.endswith("/results"):
            return listing(NAMES)
        return ranged(asked, content=content_of(path.partition("/results/")[2]))

    return ScriptedServer(script)


def asked_for(server: ScriptedServer, what: str) -> list[Asked]:
    return [asked for asked in server.asked if what in asked.path]


def test_many_results_arrive_in_one_answer(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with farm(lambda asked: ranged(asked, content=archive(NAMES))).running() as server:
        paths = client(server).download_results(7, tmp_path, progress=lambda *done: seen.append(done))
        assert len(asked_for(server, "/download?results=1")) == 1
        assert asked_for(server, "/results/") == []
    assert [path.read_bytes() for path in paths] == [content_of(name) for name in NAMES]
    assert seen == [(number, len(NAMES)) for number in range(1, len(NAMES) + 1)]
    assert not list(tmp_path.rglob("*.part"))


def test_broken_archive_goes_on_at_the_file_where_it_broke(tmp_path: Path) -> None:
    whole, cuts = archive(NAMES), [20_000, None]
    with farm(lambda asked: ranged(asked, content=whole, cut=cuts.pop(0))).running() as server:
        paths = client(server).download_results(7, tmp_path)
        first, second = asked_for(server, "/download")
    assert "range" not in first.headers
    start = int(second.headers["range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < start < 20_000
    assert whole[start : start + 4] == b"PK\3\4"
    assert [path.read_bytes() for path in paths] == [content_of(name) for name in NAMES]


def test_archive_that_changed_meanwhile_is_read_from_its_beginning(tmp_path: Path) -> None:
    whole, tags, cuts = archive(NAMES), ['"one"', '"two"'], [20_000, None]
    with farm(lambda asked: ranged(asked, etag=tags.pop(0), content=whole, cut=cuts.pop(0))).running() as server:
        paths = client(server).download_results(7, tmp_path)
    assert [path.read_bytes() for path in paths] == [content_of(name) for name in NAMES]


def test_file_with_other_bytes_is_asked_for_by_itself(tmp_path: Path) -> None:
    with farm(lambda asked: ranged(asked, content=archive(NAMES, altered=NAMES[3]))).running() as server:
        paths = client(server).download_results(7, tmp_path)
        assert [asked.path.rpartition("/")[2] for asked in asked_for(server, "/results/")] == ["frame_003.png"]
    assert paths[3].read_bytes() == content_of(NAMES[3])


@pytest.mark.parametrize("status", [400, 404, 409])
def test_files_are_asked_for_by_themselves_when_the_archive_is_refused(tmp_path: Path, status: int) -> None:
    refusal = Answer(status, b'{"title": "x", "code": "altered", "detail": "x"}')
    with farm(lambda _: refusal).running() as server:
        assert len(client(server).download_results(7, tmp_path)) == len(NAMES)
        assert len(asked_for(server, "/results/")) == len(NAMES)


def test_archive_of_another_kind_is_not_misread(tmp_path: Path) -> None:
    whole = archive(NAMES, compression=zipfile.ZIP_DEFLATED)
    with farm(lambda asked: ranged(asked, content=whole)).running() as server:
        paths = client(server).download_results(7, tmp_path)
    assert [path.read_bytes() for path in paths] == [content_of(name) for name in NAMES]


def test_few_missing_results_are_asked_for_by_themselves(tmp_path: Path) -> None:
    with farm(lambda asked: ranged(asked, content=archive(NAMES))).running() as server:
        client(server).download_results(7, tmp_path, wanted=lambda result: result["name"] == NAMES[0])
        assert asked_for(server, "/download") == []


def test_full_disk_is_not_taken_for_a_broken_network(tmp_path: Path) -> None:
    (tmp_path / "shots").write_text("a file where a folder is needed")
    with (
        farm(lambda asked: ranged(asked, content=archive(NAMES))).running() as server,
        pytest.raises(errors.NoSpace),
    ):
        client(server).download_results(7, tmp_path, overwrite=True)
