"""The SDK and the client commands against a real farm: over HTTPS, over a bad network, over a restart."""

import contextlib
import hashlib
import json
import socket
import ssl
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderonline.cli.local_farm import Supervisor
from renderonline.cli.main import run
from renderonline.cli.terminal import Interrupts
from renderonline.farm.errors import InvalidRequest, NotAvailable, NotFound
from renderonline.rnoclient.sdk import Client, Login
from tests.support.certificates import self_signed
from tests.support.farm import RealFarm, wait_until

SCENE = "camera { location -3*z look_at 0 } light_source { 5*y-5*z rgb 1 } sphere { clock*x 1 pigment { rgb x } }"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = tmp_path / "ball.pov"
    path.write_text(SCENE + " // " + "x" * 3_000_000)
    return path


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    """A farm with one machine, which the tests share that only render and look."""
    with RealFarm(tmp_path_factory.mktemp("farm")) as running:
        running.add_machine("box")
        yield running


@contextlib.contextmanager
def bad_network(target: str, cuts: list[int]) -> Iterator[tuple[str, list[int]]]:
    """The address of a proxy that cuts its first connections after so many bytes of their answers, and what passed."""
    host, port = "127.0.0.1", int(target.rpartition(":")[2])
    passed: list[int] = []
    listener = socket.create_server((host, 0))

    def serve(client: socket.socket) -> None:
        left = cuts.pop(0) if cuts else 10**12
        place = len(passed)
        passed.append(0)
        with client, socket.create_connection((host, port)) as server:
            threading.Thread(target=pump, args=(client, server), daemon=True).start()
            with contextlib.suppress(OSError):
                while left > 0 and (block := server.recv(min(65536, left))):
                    client.sendall(block)
                    left -= len(block)
                    passed[place] += len(block)
            for side in (client, server):
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                sink.sendall(block)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://{host}:{listener.getsockname()[1]}", passed
    finally:
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_download_over_a_network_that_cuts_is_whole_and_sends_nothing_twice(
    farm: RealFarm, tmp_path: Path, scene: Path
) -> None:
    task_id = farm.client.submit(scene, engine="povray", frames="1-2", arguments={"width": "64"})["task_id"]
    farm.wait_for_status(task_id, "succeeded")
    direct = farm.client.download_zip(task_id, tmp_path / "direct.zip")
    with bad_network(farm.url, [1_000_000, 0, 500_000]) as (url, passed):
        login = Login(url, farm.login.email, farm.login.token)
        through = Client(login).download_zip(task_id, tmp_path / "through.zip")
    assert hashlib.sha256(through.read_bytes()).digest() == hashlib.sha256(direct.read_bytes()).digest()
    assert len(passed) >= 3
    assert sum(passed) < direct.stat().st_size + 10_000 * len(passed)
    with zipfile.ZipFile(through) as archive:
        assert archive.testzip() is None
    paths = farm.client.download_results(task_id, tmp_path / "frames")
    assert sorted(path.name for path in paths) == ["frame_1.png", "frame_2.png"]


def test_submission_whose_answer_is_lost_makes_one_task(tmp_path: Path, scene: Path) -> None:
    with RealFarm(tmp_path) as farm, bad_network(farm.url, [0, 1]) as (url, passed):
        login = Login(url, farm.login.email, farm.login.token)
        task = Client(login).submit(scene, engine="povray", frames="1-2")
        assert len(passed) == 3
        assert [item["task_id"] for item in farm.client.tasks()] == [task["task_id"]]


def test_watching_goes_on_over_a_restart_of_renderapi(tmp_path: Path, scene: Path) -> None:
    with RealFarm(tmp_path) as farm:
        task_id = farm.client.submit(scene, engine="povray", frames="1-2", arguments={"width": "64"})["task_id"]
        seen: list[str] = []
        watcher = threading.Thread(
            target=lambda: seen.extend(task["status"] for task in Client(farm.login).watch(task_id)), daemon=True
        )
        watcher.start()
        port = int(farm.url.rpartition(":")[2])
        farm.renderapi.process.terminate()
        farm.renderapi.process.wait(30)
        farm.supervisor.forget(farm.renderapi)
        farm.start_renderapi(port)
        farm.add_machine("box")
        watcher.join(60)
        assert seen[-1] == "succeeded"


def test_frame_that_is_done_is_rendered_again_alone(farm: RealFarm, tmp_path: Path, scene: Path) -> None:
    task_id = farm.client.submit(scene, engine="povray", frames="1-3", arguments={"width": "64"})["task_id"]
    farm.wait_for_status(task_id, "succeeded")
    before = {one["frame"]: one["attempt_id"] for one in farm.client.results(task_id)}
    farm.client.requeue(task_id, frames="2")
    farm.wait_for_status(task_id, "succeeded")
    after = {one["frame"]: one["attempt_id"] for one in farm.client.results(task_id)}
    assert [frame for frame in after if after[frame] != before[frame]] == [2]
    assert len(farm.client.download_results(task_id, tmp_path / "frames")) == 3


def test_missing_things_are_told_as_what_they_are(tmp_path: Path, scene: Path) -> None:
    with RealFarm(tmp_path) as farm:
        with pytest.raises(NotFound):
            farm.client.task(99)
        with pytest.raises(NotFound):
            farm.client.download_zip(99, tmp_path / "x.zip")
        with pytest.raises(InvalidRequest, match="has no argument"):
            farm.client.submit(scene, engine="povray", arguments={"nonsense": "1"})
        with pytest.raises(InvalidRequest):
            farm.client.submit(scene, engine="blender", frames="1-2")
        assert list(farm.client.tasks()) == []
        task = farm.client.submit(scene, engine="povray", frames="1-2")
        assert farm.client.explain(task["task_id"])
        with pytest.raises(NotFound, match="no results yet"):
            farm.client.download_results(task["task_id"], tmp_path / "frames")


def test_farm_over_https_is_trusted_by_authority_or_fingerprint(
    tmp_path: Path, scene: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files, _ = self_signed(tmp_path)
    der = ssl.PEM_cert_to_DER_cert(files.fullchain_pem_path.read_text())
    fingerprint = f"sha256:{hashlib.sha256(der).hexdigest()}"
    data = tmp_path / "data"
    words = ["api", "--port", "0", "--data-directory", str(data)]
    words += ["--certificate", str(files.fullchain_pem_path), "--key", str(files.priv_pem_path)]
    monkeypatch.setenv("RENDERONLINE_CONFIG", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    with Interrupts() as interrupts, Supervisor(interrupts) as supervisor:
        api = supervisor.start("RenderAPI", words, tmp_path / "api.log")
        supervisor.wait_for(api, (data / "renderapi.json").exists)
        url = json.loads((data / "renderapi.json").read_text())["url"]
        first = json.loads((data / "first-login.json").read_text())
        assert url.startswith("https://")
        with pytest.raises(NotAvailable, match="not trusted"):
            Client(Login(url, first["email"], first["token"])).me()
        (tmp_path / "token").write_text(first["token"])
        words = ["login", "--url", url, "--email", first["email"], "--token-file", "token"]
        assert run([*words, "--ca-file", str(files.fullchain_pem_path)]) == 0
        assert run([*words, "--fingerprint", fingerprint]) == 0
        capsys.readouterr()
        assert run(["machine", "invite", "--json"]) == 0
        command = json.loads(capsys.readouterr().out)["command"].split()
        assert command[:4] == ["renderonline", "node", "--join", url]
        assert fingerprint in command
        node = supervisor.start(
            "HPCServer", [*command[1:], "--data-directory", str(tmp_path / "box")], tmp_path / "node.log"
        )
        supervisor.wait_for(node, (tmp_path / "box" / "hpcserver.json").exists)
        assert run(["submit", str(scene), "--arg", "width=64", "--download", "frames"]) == 0
        assert len(list((tmp_path / "frames").iterdir())) == 1


def test_log_is_followed_while_the_engine_writes(farm: RealFarm, scene: Path) -> None:
    task_id = farm.client.submit(scene, engine="povray", frames="1-2", arguments={"width": "64"})["task_id"]
    farm.wait_for_status(task_id, "succeeded")
    attempt = next(iter(farm.client.attempts(task_id)))["attempt_id"]
    text, end = wait_until(lambda: (found := farm.client.log(attempt))[0] and found, "log")
    assert "POV-Ray" in text
    assert farm.client.log(attempt, end) == ("", end)
    half, middle = farm.client.log(attempt, end // 2)
    assert middle == end
    assert text.endswith(half)
