"""Uploads and downloads of the SDK and the command line through networks, programs and people that stop them."""

import json
import os
import random
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from renderonline.cli.main import run
from renderonline.farm.errors import InvalidRequest, LimitReached, NotFound
from renderonline.rnoclient.scenes import upload_options
from renderonline.rnoclient.sdk import Client, Login, Task, UploadOptions
from renderonline.storage.disk import digest_file
from tests.support.blender import run_python
from tests.support.cutting import CuttingProxy
from tests.support.farm import RealFarm, wait_until

pytestmark = pytest.mark.timeout(300)

MIB = 1 << 20
SIZE = 32 * MIB
SMALL = 200_000
"""More than what is said beside the content of files."""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    with RealFarm(tmp_path_factory.mktemp("farm")) as running:
        yield running


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    return made(tmp_path / "scene" / "ball.pov", SIZE)


def made(path: Path, size: int) -> Path:
    """A file that nobody has seen before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(random.Random(str(path)).randbytes(size))
    return path


def client(farm: RealFarm, directory: Path, url: str = "", *, cutting: bool = True) -> Client:
    """A client that cuts files and remembers, or one as in Blender."""
    login = Login(url or farm.url, farm.login.email, farm.login.token)
    return Client(login, patience_s=30, upload=upload_options(directory) if cutting else UploadOptions())


def there(farm: RealFarm, task: Task, name: str) -> Path:
    """A task's file on the server; each has a directory, in the order in which they came."""
    ticks = sorted(int(path.name) for path in (farm.data / "files" / "1").iterdir())
    return farm.data / "files" / "1" / str(ticks[task["task_id"] - 1]) / name


def same(one: Path, other: Path) -> bool:
    return digest_file(one) == digest_file(other)


def restart(farm: RealFarm) -> None:
    """RenderAPI dies and is there again."""
    port = int(farm.url.rpartition(":")[2])
    farm.renderapi.process.kill()
    farm.renderapi.process.wait(30)
    farm.supervisor.forget(farm.renderapi)
    farm.start_renderapi(port)


def nothing_is_left(farm: RealFarm) -> bool:
    return not list((farm.data / "files" / ".incoming").iterdir())


@pytest.mark.parametrize("cutting", [True, False])
def test_upload_that_is_cut_twenty_times_arrives_whole(
    farm: RealFarm, scene: Path, tmp_path: Path, cutting: bool
) -> None:
    before = len(list(farm.client.tasks()))
    wood = made(scene.parent / "tex" / "wood.png", 3 * MIB)
    cuts = random.Random(1).sample(range(1000, SIZE), 20)
    with CuttingProxy(farm.url, cuts=cuts, pace_s=0.0005) as proxy:
        through = client(farm, tmp_path, proxy.url, cutting=cutting)
        task = through.submit(scene, engine="povray", frames="1-2", inputs={"tex/wood.png": wood})
        assert proxy.cuts == 20
    assert same(there(farm, task, "ball.pov"), scene)
    assert same(there(farm, task, "tex/wood.png"), wood)
    assert len(list(farm.client.tasks())) == before + 1
    assert wait_until(lambda: nothing_is_left(farm), "clean directory")


@pytest.mark.parametrize("cutting", [True, False])
def test_upload_goes_on_when_renderapi_is_killed(farm: RealFarm, scene: Path, tmp_path: Path, cutting: bool) -> None:
    events = [(20 * MIB, lambda: restart(farm))]
    with CuttingProxy(farm.url, events=events, pace_s=0.0005) as proxy:
        task = client(farm, tmp_path, proxy.url, cutting=cutting).submit(scene, engine="povray", frames="1-2")
        assert proxy.sent < SIZE + 30 * MIB
    assert same(there(farm, task, "ball.pov"), scene)


def test_download_that_is_cut_twenty_times_is_whole_and_sends_nothing_twice(
    farm: RealFarm, scene: Path, tmp_path: Path
) -> None:
    task = farm.client.submit(scene, engine="povray", frames="1-2")
    direct = farm.client.download_zip(task["task_id"], tmp_path / "direct.zip")
    cuts = random.Random(2).sample(range(1000, SIZE - MIB), 20)
    with CuttingProxy(farm.url, cuts=cuts, pace_s=0.0002) as proxy:
        through = client(farm, tmp_path, proxy.url).download_zip(task["task_id"], tmp_path / "through.zip")
        assert proxy.cuts == 20
        assert proxy.received < direct.stat().st_size + 20 * 8 * MIB
    assert same(direct, through)


def test_download_goes_on_when_renderapi_is_killed(farm: RealFarm, scene: Path, tmp_path: Path) -> None:
    task = farm.client.submit(scene, engine="povray", frames="1-2")
    with CuttingProxy(farm.url, events=[(20 * MIB, lambda: restart(farm))], pace_s=0.0002) as proxy:
        path = client(farm, tmp_path, proxy.url).download_zip(task["task_id"], tmp_path / "task.zip")
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archive.extract("ball.pov", tmp_path / "out")
    assert same(tmp_path / "out" / "ball.pov", scene)


def test_same_scene_again_sends_nothing(farm: RealFarm, scene: Path, tmp_path: Path) -> None:
    client(farm, tmp_path).submit(scene, engine="povray", frames="1-2")
    seen: list[tuple[int, int]] = []
    with CuttingProxy(farm.url) as proxy:
        again = client(farm, tmp_path, proxy.url)
        task = again.submit(scene, engine="povray", frames="1-4", progress=lambda *it: seen.append(it))
        assert proxy.sent < SMALL
    assert seen[0] == (SIZE, SIZE)
    assert same(there(farm, task, "ball.pov"), scene)


def test_scene_that_came_as_a_form_is_not_sent_again(farm: RealFarm, tmp_path: Path) -> None:
    scene = made(tmp_path / "ball.pov", 3 * MIB)
    farm.client.submit(scene, engine="povray", frames="1-2")
    grown = tmp_path / "more" / "ball.pov"
    grown.parent.mkdir()
    grown.write_bytes(scene.read_bytes() + random.Random(1).randbytes(3 * MIB))
    with CuttingProxy(farm.url) as proxy:
        client(farm, tmp_path, proxy.url).submit(grown, engine="povray", frames="1-2")
        assert proxy.sent < 7 * MIB


def test_folders_and_texts_keep_their_places(farm: RealFarm, tmp_path: Path) -> None:
    scene = made(tmp_path / "film" / "shots" / "s1.pov", 1000)
    wood = made(tmp_path / "film" / "tex" / "Holz ä.png", 500)
    none = made(tmp_path / "film" / "tex" / "none.txt", 0)
    task = client(farm, tmp_path).submit(
        scene,
        scene="shots/s1.pov",
        engine="povray",
        frames="1-2",
        inputs={"tex/Holz ä.png": wood, "tex/none.txt": none},
    )
    assert task["file_name"] == "shots/s1.pov"
    with zipfile.ZipFile(farm.client.download_zip(task["task_id"], tmp_path / "all.zip")) as archive:
        assert archive.namelist() == ["shots/s1.pov", "tex/Holz ä.png", "tex/none.txt"]


def test_mistake_in_the_request_is_told_before_anything_is_sent(farm: RealFarm, scene: Path, tmp_path: Path) -> None:
    with CuttingProxy(farm.url) as proxy:
        through = client(farm, tmp_path, proxy.url)
        with pytest.raises(InvalidRequest, match="has no argument"):
            through.submit(scene, engine="povray", arguments={"nonsense": "1"})
        assert proxy.sent < SMALL
        through.submit(scene, engine="povray", frames="1-2")
    assert wait_until(lambda: nothing_is_left(farm), "clean directory")


def test_full_queue_keeps_what_was_sent_for_later(farm: RealFarm, scene: Path, tmp_path: Path) -> None:
    me, subscription = client(farm, tmp_path), farm.client.me()["subscription_id"]
    me.submit(made(tmp_path / "first.pov", 100), engine="povray", frames="1-2")
    farm.client.admin.change_subscription(subscription, queue_limit=1)
    with pytest.raises(LimitReached):
        me.submit(scene, engine="povray", frames="1-2")
    farm.client.admin.change_subscription(subscription, queue_limit=1000)
    assert me.submit(scene, engine="povray", frames="1-2")["file_size"] == SIZE


def test_file_that_is_saved_while_it_is_sent_arrives_as_it_is_then(farm: RealFarm, scene: Path, tmp_path: Path) -> None:
    saved = made(tmp_path / "saved.pov", 40 * MIB)
    with CuttingProxy(farm.url, events=[(10 * MIB, lambda: saved.replace(scene))], pace_s=0.0005) as proxy:
        task = client(farm, tmp_path, proxy.url).submit(scene, engine="povray", frames="1-2")
    assert scene.stat().st_size == 40 * MIB
    assert same(there(farm, task, "ball.pov"), scene)
    assert wait_until(lambda: nothing_is_left(farm), "clean directory")


def test_upload_that_somebody_removed_begins_again(farm: RealFarm, scene: Path, tmp_path: Path) -> None:
    def remove() -> None:
        (upload,) = (path for path in (farm.data / "files" / ".incoming").iterdir() if path.is_dir())
        me = client(farm, tmp_path)
        me.connection.call("DELETE", f"/uploads/{upload.name.rpartition('-')[2]}")

    with CuttingProxy(farm.url, events=[(10 * MIB, remove)], pace_s=0.0005) as proxy:
        task = client(farm, tmp_path, proxy.url).submit(scene, engine="povray", frames="1-2")
    assert same(there(farm, task, "ball.pov"), scene)


def test_ctrl_c_and_the_same_command_go_on_with_the_same_upload(farm: RealFarm, scene: Path, tmp_path: Path) -> None:
    process: list[subprocess.Popen[bytes]] = []
    login = {"EMAIL": farm.login.email, "TOKEN": farm.login.token, "CACHE": str(tmp_path / "cache")}
    environment = {**os.environ, **{f"RENDERONLINE_{name}": value for name, value in login.items()}}
    with CuttingProxy(
        farm.url, events=[(20 * MIB, lambda: process[0].send_signal(signal.SIGINT))], pace_s=0.0005
    ) as proxy:
        words = ["submit", str(scene), "--frames", "1-2", "--json", "--url", proxy.url]
        argv = [sys.executable, "-m", "renderonline.cli.main", *words]
        process.append(subprocess.Popen(argv, env=environment))
        assert process[0].wait(60) == 130
        before = len(list(farm.client.tasks()))
        again = subprocess.run(argv, env=environment, check=True, capture_output=True, timeout=60)
        assert proxy.sent < SIZE + 10 * MIB
    task = json.loads(again.stdout)
    assert task["task_id"] == before + 1
    assert same(there(farm, task, "ball.pov"), scene)


def test_command_sends_what_lies_beside_the_scene_a_folder_or_a_zip(
    farm: RealFarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    login = {"EMAIL": farm.login.email, "TOKEN": farm.login.token, "URL": farm.url, "CACHE": str(tmp_path / "cache")}
    for name, value in login.items():
        monkeypatch.setenv(f"RENDERONLINE_{name}", value)
    scene = made(tmp_path / "film" / "shots" / "s1.pov", 1000)
    made(tmp_path / "film" / "shots" / "tex" / "wood.png", 2000)
    made(tmp_path / "film" / "lib" / "chair.inc", 3000)
    with zipfile.ZipFile(tmp_path / "film.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in ("film/shots/s1.pov", "film/lib/chair.inc"):
            archive.write(tmp_path / path, path)

    def sent(*words: str) -> tuple[str, list[str]]:
        assert run(["submit", *words, "--json"]) == 0
        task = json.loads(capsys.readouterr().out)
        with zipfile.ZipFile(farm.client.download_zip(task["task_id"], tmp_path / "sent.zip")) as archive:
            return task["file_name"], archive.namelist()

    assert sent(str(scene)) == ("s1.pov", ["s1.pov"])
    assert sent(str(scene), "--with", "tex") == ("s1.pov", ["s1.pov", "tex/wood.png"])
    everything = ["lib/chair.inc", "shots/s1.pov", "shots/tex/wood.png"]
    assert sent(str(scene), "--folder", str(tmp_path / "film")) == ("shots/s1.pov", everything)
    packed = ["film/lib/chair.inc", "film/shots/s1.pov"]
    assert sent(str(tmp_path / "film.zip")) == ("film/shots/s1.pov", packed)
    assert run(["submit", str(tmp_path / "film.zip"), "--with", "tex"]) == 1
    assert "put into it" in capsys.readouterr().err


def test_some_frames_and_files_are_downloaded_alone(farm: RealFarm, tmp_path: Path) -> None:
    farm.add_machine("box")
    scene = tmp_path / "ball.pov"
    scene.write_text("camera { location -3*z look_at 0 } light_source { 5*y-5*z rgb 1 } sphere { clock*x 1 }")
    task_id = farm.client.submit(scene, engine="povray", frames="1-4", priority=100, arguments={"width": "64"})[
        "task_id"
    ]
    farm.wait_for_status(task_id, "succeeded")

    def names(**chosen: object) -> list[str]:
        path = tmp_path / "some.zip"
        with zipfile.ZipFile(farm.client.download_zip(task_id, path, **chosen)) as archive:  # type: ignore[arg-type]
            assert archive.testzip() is None
            return archive.namelist()

    assert names(frames="2-3") == ["frame_2.png", "frame_3.png"]
    assert names(names=["*.pov", "frame_4.png"]) == ["ball.pov", "frame_4.png"]
    assert names(frames="1", names=["ball.pov"]) == ["ball.pov", "frame_1.png"]
    for nothing in ({"frames": "9"}, {"names": ["../ball.pov"]}):
        with pytest.raises(NotFound, match="no such files"):
            names(**nothing)
    with pytest.raises(InvalidRequest):
        names(frames="1-x")
    login = {"EMAIL": farm.login.email, "TOKEN": farm.login.token, "URL": farm.url}
    environment = {**os.environ, **{f"RENDERONLINE_{name}": value for name, value in login.items()}}
    words = ["download", str(task_id), "--frames", "2", "--only", "*_4.png", "-o", str(tmp_path / "some")]
    subprocess.run([sys.executable, "-m", "renderonline.cli.main", *words], env=environment, check=True, timeout=60)
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["frame_2.png", "frame_4.png"]


BIG_SCENE = """
import os, sys, bpy, numpy
bpy.ops.wm.read_factory_settings(use_empty=True)
rng = numpy.random.default_rng(1)
for index in range(8):
    mesh = bpy.data.meshes.new(f"rock {index}")
    mesh.vertices.add(2_000_000)
    mesh.vertices.foreach_set("co", rng.random(6_000_000, dtype=numpy.float32))
    rock = bpy.data.objects.new(f"rock {index}", mesh)
    bpy.context.scene.collection.objects.link(rock)
image = bpy.data.images.new("noise", 2048, 2048)
image.pixels.foreach_set(rng.random(2048 * 2048 * 4, dtype=numpy.float32))
image.pack()
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1], compress=False)
sys.stdout.flush()
os._exit(0)
"""
MOVED = """
import os, sys, bpy
bpy.ops.wm.open_mainfile(filepath=sys.argv[1])
bpy.data.objects["rock 3"].location = (1, 2, 3)
bpy.ops.wm.save_as_mainfile(filepath=sys.argv[1], compress=False)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.blender
def test_scene_whose_object_was_moved_sends_two_percent_at_most(farm: RealFarm, tmp_path: Path) -> None:
    scene = tmp_path / "rocks.blend"
    run_python(BIG_SCENE, str(scene))
    size = scene.stat().st_size
    assert size >= 200_000_000
    client(farm, tmp_path).submit(scene, engine="blender", frames="1-2")
    before = digest_file(scene)
    run_python(MOVED, str(scene))
    assert digest_file(scene) != before
    with CuttingProxy(farm.url) as proxy:
        task = client(farm, tmp_path, proxy.url).submit(scene, engine="blender", frames="1-2")
        print(f"\n{proxy.sent} of {size} bytes sent: {proxy.sent / size:.2%}")
        assert proxy.sent <= 0.02 * size
    assert same(there(farm, task, "rocks.blend"), scene)
