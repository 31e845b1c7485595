"""A download never replaces what is not its own without a word."""

import hashlib
import json
from pathlib import Path

import pytest

from renderonline.farm import errors
from tests.support.scripted_server import Answer, Asked, ScriptedServer
from tests.unit.rnoclient.test_transfers import client


def farm_of(contents: dict[tuple[int, str], bytes]) -> ScriptedServer:
    """A farm with these results: (task, name) -> bytes."""

    def answer(asked: Asked) -> Answer:
        parts = asked.path.partition("?")[0].split("/")
        task_id = int(parts[4])
        if len(parts) > 6:
            return Answer(body=contents[task_id, parts[6]])
        items = [
            {"name": name, "size": len(data), "digest": hashlib.blake2b(data, digest_size=32).hexdigest()}
            | {"frame": None, "of_frame": None, "called": f"shot/{name}" if task_id == 9 else name}
            for (task, name), data in contents.items()
            if task == task_id
        ]
        return Answer(body=json.dumps({"items": items, "next": None}).encode())

    return ScriptedServer(answer)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERONLINE_CACHE", str(tmp_path / "cache"))


def test_files_of_another_task_are_not_replaced_silently(tmp_path: Path) -> None:
    contents = {(7, "f1.png"): b"seven", (7, "f2.png"): b"same", (8, "f1.png"): b"eight", (8, "f2.png"): b"same"}
    folder = tmp_path / "frames"
    with farm_of(contents).running() as server:
        farm = client(server)
        farm.download_results(7, folder)
        with pytest.raises(errors.Conflict, match=r"f1\.png would be replaced, but it is of task 7 of http") as caught:
            farm.download_results(8, folder)
        assert "--overwrite" in caught.value.message
        assert [path.read_bytes() for path in sorted(folder.iterdir())] == [b"seven", b"same"]
        farm.download_results(8, folder, overwrite=True)
        assert (folder / "f1.png").read_bytes() == b"eight"
        with pytest.raises(errors.Conflict, match="of task 8"):
            farm.download_results(7, folder)


def test_a_frame_that_was_rendered_again_replaces_its_old_one_unless_somebody_changed_it(tmp_path: Path) -> None:
    contents = {(7, "f1.png"): b"first"}
    with farm_of(contents).running() as server:
        farm = client(server)
        farm.download_results(7, tmp_path)
        contents[7, "f1.png"] = b"second"
        farm.download_results(7, tmp_path)
        assert (tmp_path / "f1.png").read_bytes() == b"second"
        (tmp_path / "f1.png").write_bytes(b"retouched")
        with pytest.raises(errors.Conflict, match="was changed since it was downloaded"):
            farm.download_results(7, tmp_path)
        assert (tmp_path / "f1.png").read_bytes() == b"retouched"


def test_files_that_nobody_downloaded_stay_and_the_state_is_no_must(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RENDERONLINE_CACHE", "/proc/nowhere")
    (tmp_path / "f1.png").write_bytes(b"mine")
    with farm_of({(7, "f1.png"): b"seven", (9, "f1.png"): b"nine"}).running() as server:
        farm = client(server)
        with pytest.raises(errors.Conflict, match="of no download that is known"):
            farm.download_results(7, tmp_path)
        (path,) = farm.download_results(9, tmp_path)
        assert path == tmp_path / "shot" / "f1.png"
        assert path.read_bytes() == b"nine"
