"""Films: every frame once, in order, or a clear error and no file."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from OpenImageIO import ROI, ImageBuf, ImageSpec

from renderonline.engines.films import count_frames, encode
from renderonline.farm.errors import InvalidRequest, NotAvailable


def frames_in(directory: Path, count: int, *, suffix: str = ".png", width: int = 64, height: int = 36) -> list[Path]:
    """Pictures whose names are as unfriendly as a file system allows."""
    directory.mkdir(exist_ok=True)
    paths = []
    for number in range(count):
        path = directory / f"it's a %d [frame] {number * 3}{suffix}"
        picture = ImageBuf(ImageSpec(width, height, 3, "uint8"))
        pixels = np.full((height, width, 3), number / max(count, 1), np.float32)
        picture.set_pixels(ROI(), pixels)
        assert picture.write(str(path)), picture.geterror()
        paths.append(path)
    return paths


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".tga", ".bmp"])
def test_a_film_has_every_frame_once(tmp_path: Path, suffix: str) -> None:
    told: list[float] = []
    encode(frames_in(tmp_path / "in", 24, suffix=suffix), tmp_path / "out" / "film.mp4", 24, told.append)
    assert count_frames(tmp_path / "out" / "film.mp4") == 24
    assert told[-1] == 1.0
    assert all(0 <= fraction <= 1 for fraction in told)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["film.mp4"]


@pytest.mark.parametrize(("width", "height"), [(33, 17), (1, 1), (64, 17)])
def test_odd_sizes_are_made_even(tmp_path: Path, width: int, height: int) -> None:
    encode(frames_in(tmp_path / "in", 3, width=width, height=height), tmp_path / "film.mp4", 25, lambda _: None)
    assert count_frames(tmp_path / "film.mp4") == 3


def test_a_single_frame_and_a_broken_rate_work(tmp_path: Path) -> None:
    encode(frames_in(tmp_path / "in", 1), tmp_path / "film.mp4", 23.976, lambda _: None)
    assert count_frames(tmp_path / "film.mp4") == 1


def test_frames_are_shown_in_the_order_given_and_a_film_is_replaced_as_a_whole(tmp_path: Path) -> None:
    frames = frames_in(tmp_path / "in", 2)
    film = tmp_path / "film.mp4"
    film.write_text("the old one")
    encode([frames[1], frames[0], frames[1]], film, 10, lambda _: None)
    assert count_frames(film) == 3


def test_a_broken_frame_leaves_no_film(tmp_path: Path) -> None:
    frames = frames_in(tmp_path / "in", 5)
    frames[2].write_bytes(frames[2].read_bytes()[:60])
    with pytest.raises(NotAvailable, match="ffmpeg failed"):
        encode(frames, tmp_path / "film.mp4", 24, lambda _: None)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_what_can_not_become_a_film_is_refused(tmp_path: Path) -> None:
    frames = frames_in(tmp_path / "in", 2)
    film = tmp_path / "film.mp4"
    for given, rate, said in (
        ([], 24, "at least one frame"),
        (frames, 0, "frames per second"),
        (frames, 1000, "frames per second"),
        ([*frames, tmp_path / "gone.png"], 24, "does not exist"),
        ([*frames, *frames_in(tmp_path / "jpg", 1, suffix=".jpg")], 24, "of one kind"),
        (frames_in(tmp_path / "exr", 1, suffix=".exr"), 24, "EXR and HDR hold light"),
    ):
        with pytest.raises(InvalidRequest, match=said):
            encode(given, film, rate, lambda _: None)
    assert not film.exists()


def test_what_is_no_film_is_not_counted(tmp_path: Path) -> None:
    (tmp_path / "film.mp4").write_bytes(b"hello")
    with pytest.raises(NotAvailable, match="ffmpeg failed"):
        count_frames(tmp_path / "film.mp4")


def test_a_film_that_was_cut_off_is_noticed(tmp_path: Path) -> None:
    film = tmp_path / "film.mp4"
    encode(frames_in(tmp_path / "in", 24), film, 24, lambda _: None)
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 2 // 3])
    with pytest.raises(NotAvailable):
        assert count_frames(film) == 24


SLOW = """
import sys
from pathlib import Path
from renderonline.engines.films import encode
frames = sorted(Path(sys.argv[1]).iterdir())
print("up", flush=True)
encode(frames * 400, Path(sys.argv[2]), 24, lambda fraction: print(fraction, flush=True))
"""


def test_sigterm_while_encoding_leaves_no_file_and_no_process(tmp_path: Path) -> None:
    frames_in(tmp_path / "in", 10, width=640, height=360)
    argv = [sys.executable, "-c", SLOW, str(tmp_path / "in"), str(tmp_path / "out" / "film.mp4")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.stdout.readline()
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert below
    ends = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in below):
        assert time.monotonic() < ends
        time.sleep(0.02)
    assert os.listdir(tmp_path / "out") == []
