"""Films: made by machines of the frames that are there, whatever a renderer wrote, and only good when they decode."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from OpenImageIO import ROI, ImageBuf, ImageSpec

from renderonline.farm.errors import Conflict, InvalidRequest
from renderonline.hpcserver.film_maker import count_frames, film_engine
from tests.e2e.test_own_directories import add_apart
from tests.support.farm import RealFarm, wait_until
from tests.support.painter import DEFINITION, write_painter


def paint(path: Path, level: float, *, width: int = 64, height: int = 36, pixel_type: str = "uint8") -> Path:
    picture = ImageBuf(ImageSpec(width, height, 3, pixel_type))
    picture.set_pixels(ROI(), np.full((height, width, 3), level, np.float32))
    assert picture.write(str(path)), picture.geterror()
    return path


def make(
    tmp_path: Path, frames: str, film: str, pattern: str, name: str = "shot.mp4"
) -> subprocess.CompletedProcess[str]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    engine = film_engine()
    assert engine is not None
    argv = [*engine.prefix, str(tmp_path / "in"), pattern, frames, film, name]
    return subprocess.run(argv, cwd=out, capture_output=True, text=True, check=False)


def levels(film: Path) -> list[int]:
    """How bright each frame of a film is."""
    reader = imageio_ffmpeg.read_frames(str(film))
    next(reader)
    return [int(np.frombuffer(frame, np.uint8).mean()) for frame in reader]


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "tga", "bmp", "exr", "hdr"])
@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_film_has_every_frame_once_whatever_its_format(tmp_path: Path, frames: Path, suffix: str, kind: str) -> None:
    pixel_type = {"exr": "half", "hdr": "float"}.get(suffix, "uint8")
    for frame in range(1, 9):
        paint(frames / f"frame_{frame:04d}.{suffix}", frame / 10, pixel_type=pixel_type)
    done = make(tmp_path, "1-8", f"{kind}@24", f"frame_####.{suffix}", f"shot.{kind}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Frame 8/8" in done.stdout
    film = tmp_path / "out" / f"shot.{kind}"
    assert count_frames(film) == 8
    bright = levels(film)
    assert bright == sorted(bright)
    assert bright[-1] - bright[0] > 60
    assert [path.name for path in (tmp_path / "out").iterdir()] == [film.name]


def test_the_film_is_as_fast_as_asked_and_begins_to_play_before_it_is_there(tmp_path: Path, frames: Path) -> None:
    for frame in range(1, 11):
        paint(frames / f"f{frame:03d}.png", frame / 11)
    assert make(tmp_path, "1-10", "mp4@12.5", "f###.png").returncode == 0
    film = tmp_path / "out" / "shot.mp4"
    about = next(imageio_ffmpeg.read_frames(str(film)))
    assert (about["fps"], about["duration"], about["codec"]) == (12.5, 0.8, "h264")
    assert "yuv420p" in about["pix_fmt"]
    data = film.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_gaps_show_the_frame_before_and_what_was_never_rendered_is_left_out(tmp_path: Path, frames: Path) -> None:
    for frame, level in ((3, 0.2), (5, 0.8), (8, 0.4)):
        paint(frames / f"frame_{frame:04d}.png", level)
    (frames / "frame_0006.png").write_bytes(b"\x89PNG\r\n\x1a\n")  # not a picture
    done = make(tmp_path, "1-20", "mp4@24", "frame_####.png")
    assert done.returncode == 0, done.stdout + done.stderr
    seen = [round(level / 255, 1) for level in levels(tmp_path / "out" / "shot.mp4")]
    assert seen == [0.2, 0.2, 0.8, 0.8, 0.8, 0.4]
    assert "frame_0006.png is missing or can't be read" in done.stdout


@pytest.mark.parametrize(("width", "height"), [(33, 17), (1, 1), (64, 17)])
def test_odd_sizes_are_made_even(tmp_path: Path, frames: Path, width: int, height: int) -> None:
    for frame in (1, 2, 3):
        paint(frames / f"{frame}.png", 0.5, width=width, height=height)
    assert make(tmp_path, "1-3", "mp4@24", "#.png").returncode == 0
    assert count_frames(tmp_path / "out" / "shot.mp4") == 3


def test_a_frame_of_another_size_is_fitted(tmp_path: Path, frames: Path) -> None:
    paint(frames / "1.png", 0.2)
    paint(frames / "2.png", 0.8, width=32, height=32)
    assert make(tmp_path, "1-2", "mp4@24", "#.png").returncode == 0
    assert [round(level / 255, 1) for level in levels(tmp_path / "out" / "shot.mp4")] == [0.2, 0.8]


@pytest.mark.parametrize("name", ["-rf.mp4", "a b%03d'.mp4", "concat:x.mp4", "é.mp4"])
def test_names_are_never_options_or_addresses(tmp_path: Path, frames: Path, name: str) -> None:
    paint(frames / "1.png", 0.2)
    assert make(tmp_path, "1", "mp4@24", "#.png", name).returncode == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]
    assert count_frames(tmp_path / "out" / name) == 1


def test_without_any_frame_there_is_no_film(tmp_path: Path, frames: Path) -> None:
    (frames / "frame_0001.png").write_text("no picture")
    done = make(tmp_path, "1-3", "mp4@24", "frame_####.png")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "Error: There is no frame that a film could be made of."


def test_what_is_no_film_has_no_frames(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"hello")
    assert count_frames(tmp_path / "film.mp4") == 0


def tone(path: Path, seconds: float) -> None:
    source = ("-f", "lavfi", "-i", f"sine=frequency=440:duration={seconds}", "-f", "flac")
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *source, str(path)], check=True)


def heard(film: Path) -> float:
    """How long there is sound in a film, in seconds."""
    program = imageio_ffmpeg.get_ffmpeg_exe()
    argv = [program, "-v", "error", "-i", str(film), "-map", "0:a?", "-ac", "1", "-ar", "8000", "-f", "s16le", "-"]
    return len(subprocess.run(argv, capture_output=True, check=False).stdout) / 16000


@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_a_film_has_the_sound_of_its_frames_at_the_exact_speed(tmp_path: Path, frames: Path, kind: str) -> None:
    for frame in range(11, 41):
        paint(frames / f"{frame}.png", frame / 50)
    (frames / "11.png").unlink()
    tone(frames / "sound.flac", 1.001)
    done = make(tmp_path, "11-40", f"{kind}@30000/1001", "#.png", f"shot.{kind}")
    assert done.returncode == 0, done.stdout + done.stderr
    film = tmp_path / "out" / f"shot.{kind}"
    assert (count_frames(film), heard(film)) == (29, pytest.approx(29 * 1001 / 30000, abs=0.07))
    assert "Warning" not in done.stdout


@pytest.mark.parametrize(
    ("asked", "film", "content", "told"),
    [
        ("1-20", "mp4@12", None, "its speed is not the scene's"),
        ("1-10,15-24", "mp4@24", None, "are not asked for"),
        ("1-24", "mp4@24", b"fLaC but no more", ""),
    ],
)
def test_sound_that_is_not_that_of_the_frames_is_left_out(
    tmp_path: Path, frames: Path, asked: str, film: str, content: bytes | None, told: str
) -> None:
    for frame in range(1, 25):
        paint(frames / f"{frame}.png", frame / 30)
    tone(frames / "sound.flac", 20 / 24)
    if content is not None:
        (frames / "sound.flac").write_bytes(content)
    done = make(tmp_path, asked, film, "#.png")
    assert (done.returncode, heard(tmp_path / "out" / "shot.mp4")) == (0, 0.0)
    assert told in done.stdout


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealFarm]:
    directory = tmp_path_factory.mktemp("farm")
    with RealFarm(directory) as farm:
        farm.client.admin.add_engine(DEFINITION)
        farm.add_machine("m", engines={"painter": str(write_painter(directory / "painter"))}, flags=("--slots", "2"))
        yield farm


def submitted(farm: RealFarm, tmp_path: Path, *, scene: str = "a scene", **more: object) -> int:
    file = tmp_path / "shot.paint"
    file.write_text(scene)
    return int(farm.client.submit(file, engine="painter", **more)["task_id"])  # type: ignore[arg-type]


def film_of(farm: RealFarm, tmp_path: Path, task_id: int, name: str = "shot.mp4") -> int:
    """How many frames the film of a task has as people get it."""
    return count_frames(
        *farm.client.download_results(task_id, tmp_path / "films", wanted=lambda one: one["name"] == name)
    )


def test_a_film_is_made_at_the_end_and_is_a_result(farm: RealFarm, tmp_path: Path) -> None:
    task_id = submitted(farm, tmp_path, frames="1-6", chunk_size=2, film="mp4@12")
    task = farm.wait_for_status(task_id, "succeeded")
    assert (task["film"], task["frames_done"], task["frames_total"]) == ("mp4@12", 6, 6)
    assert task["chunks"]["succeeded"] == 4
    assert film_of(farm, tmp_path, task_id) == 6
    result = next(one for one in farm.client.results(task_id) if one["name"] == "shot.mp4")
    assert (result["frame"], result["preview"]) == (None, False)
    chunks = farm.client.connection.call("GET", f"/tasks/{task_id}/chunks").json()["items"]
    kinds = [chunk["kind"] for chunk in chunks]
    assert sorted(kinds) == ["film", "render", "render", "render"]


def test_a_machine_with_directories_of_its_own_fetches_the_frames(tmp_path: Path) -> None:
    with RealFarm(tmp_path / "farm") as farm:
        farm.client.admin.add_engine(DEFINITION)
        painter = str(write_painter(tmp_path / "painter"))
        add_apart(farm, "far", engines={"painter": painter})
        task_id = submitted(farm, tmp_path, frames="1-5", chunk_size=2, film="webm@10")
        farm.wait_for_status(task_id, "succeeded")
        assert film_of(farm, tmp_path, task_id, "shot.webm") == 5
        assert {one["name"]: one["preview"] for one in farm.client.results(task_id)} == {
            "shot.webm": False,
            **{f"frame_{frame:04d}.png": True for frame in range(1, 6)},
        }
        assert farm.machine("far")["input_downloads"] == 1  # of the scene; frames for films are not counted


def test_a_film_of_frames_that_are_rendered_again_is_made_again(farm: RealFarm, tmp_path: Path) -> None:
    task_id = submitted(farm, tmp_path, frames="1-4", film="webm")
    farm.wait_for_status(task_id, "succeeded")
    before = next(one for one in farm.client.results(task_id) if one["name"] == "shot.webm")
    farm.client.requeue(task_id, frames="2")
    farm.wait_for_status(task_id, "succeeded")
    after = [one for one in farm.client.results(task_id) if one["name"] == "shot.webm"]
    assert len(after) == 1
    assert after[0]["landed"] > before["landed"]
    assert film_of(farm, tmp_path, task_id, "shot.webm") == 4


def test_a_film_on_demand_shows_what_is_there_and_another_one_all_of_it(farm: RealFarm, tmp_path: Path) -> None:
    go = tmp_path / "go"
    task_id = submitted(farm, tmp_path, frames="1-3", chunk_size=1, scene=f"hold 2 {go}\n")
    with pytest.raises((Conflict, InvalidRequest)):
        farm.client.film(task_id, "gif")
    wait_until(lambda: farm.client.task(task_id)["frames_done"] == 2, "two frames")
    farm.client.film(task_id)
    wait_until(lambda: any(one["name"] == "shot.mp4" for one in farm.client.results(task_id)), "film")
    assert farm.client.task(task_id)["status"] == "running"
    assert film_of(farm, tmp_path, task_id) == 3  # frame 1 stands in for frame 2
    go.touch()
    farm.wait_for_status(task_id, "succeeded")
    assert film_of(farm, tmp_path, task_id) == 3
    assert sum(one["name"] == "shot.mp4" for one in farm.client.results(task_id)) == 1
    farm.client.film(task_id, "mp4@30")
    task = farm.wait_for_status(task_id, "succeeded")
    assert task["film"] == "mp4@30"
    assert sum(one["name"] == "shot.mp4" for one in farm.client.results(task_id)) == 1


def test_frames_that_failed_are_no_reason_for_no_film(farm: RealFarm, tmp_path: Path) -> None:
    task_id = submitted(farm, tmp_path, frames="1-4", chunk_size=1, scene="fail 3\n", film="mp4")
    task = farm.wait_for_status(task_id, "failed")
    assert "frame 3" in task["reason"]
    assert film_of(farm, tmp_path, task_id) == 4


def test_without_a_frame_the_reason_is_the_scene_and_not_the_film(farm: RealFarm, tmp_path: Path) -> None:
    task_id = submitted(farm, tmp_path, frames="1", scene="fail 1\n", film="mp4")
    task = farm.wait_for_status(task_id, "failed")
    assert "frame 1" in task["reason"]
    with pytest.raises(Conflict, match="No frame"):
        farm.client.film(task_id)


def test_a_canceled_task_has_a_film_made_of_its_frames_and_stays_canceled(farm: RealFarm, tmp_path: Path) -> None:
    task_id = submitted(farm, tmp_path, frames="1-3", chunk_size=1, scene=f"hold 2 {tmp_path / 'never'}\n")
    wait_until(lambda: farm.client.task(task_id)["frames_done"] == 2, "two frames")
    farm.client.cancel(task_id)
    farm.client.film(task_id)
    farm.wait_for_status(task_id, "canceled")
    assert film_of(farm, tmp_path, task_id) == 3


def test_only_frames_become_films(farm: RealFarm, tmp_path: Path) -> None:
    for film in ("gif", "mp4@0", "mp4@1000", "mp4@x"):
        with pytest.raises(InvalidRequest, match="is not a film"):
            submitted(farm, tmp_path, film=film)
    assert sys.executable in (film_engine() or pytest.fail("no ffmpeg")).prefix
