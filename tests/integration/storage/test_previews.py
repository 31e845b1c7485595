"""Previews: small JPEGs of whatever a renderer writes, and nothing about them can make a frame bad."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from OpenImageIO import ROI, UINT8, ImageBuf, ImageBufAlgo, ImageSpec

from renderonline.storage.images import LARGEST, ImageChecker, PreviewFiles


@pytest.fixture(scope="module")
def checker() -> Iterator[ImageChecker]:
    with ImageChecker() as opened:
        yield opened


def paint(path: Path, pixels: np.ndarray, pixel_type: str = "uint8", names: tuple[str, ...] = ()) -> Path:
    height, width, channels = pixels.shape
    spec = ImageSpec(width, height, channels, pixel_type)
    if names:
        spec.channelnames = names
    picture = ImageBuf(spec)
    picture.set_pixels(ROI(), pixels.astype(np.float32))
    assert picture.write(str(path)), picture.geterror()
    return path


def flat(colour: tuple[float, ...], width: int = 64, height: int = 36) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.float32), (height, width, len(colour))).copy()


def opened(tmp_path: Path, jpeg: bytes) -> np.ndarray:
    path = tmp_path / "preview.jpg"
    path.write_bytes(jpeg)
    return np.asarray(ImageBuf(str(path)).get_pixels(UINT8))


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "webp"])
def test_what_browsers_show_gets_a_thumb_only(checker: ImageChecker, tmp_path: Path, suffix: str) -> None:
    check = checker.check(paint(tmp_path / f"a.{suffix}", flat((0.2, 0.5, 0.9), 640, 360)), previews=True)
    assert check.ok
    assert set(check.previews) == {"thumb"}
    thumb = opened(tmp_path, check.previews["thumb"])
    assert thumb.shape == (180, 320, 3)
    assert np.abs(thumb.astype(int) - [51, 128, 230]).max() <= 6


@pytest.mark.parametrize(
    ("suffix", "pixel_type"), [("exr", "half"), ("hdr", "float"), ("tif", "uint16"), ("tga", "uint8")]
)
def test_everything_else_gets_a_view_as_well(
    checker: ImageChecker, tmp_path: Path, suffix: str, pixel_type: str
) -> None:
    check = checker.check(paint(tmp_path / f"a.{suffix}", flat((0.2, 0.5, 0.7), 2400, 1200), pixel_type), previews=True)
    assert {size: opened(tmp_path, jpeg).shape for size, jpeg in check.previews.items()} == {
        "view": (960, 1920, 3),
        "thumb": (160, 320, 3),
    }
    assert all(len(jpeg) <= LARGEST for jpeg in check.previews.values())


def test_light_becomes_what_a_screen_shows(checker: ImageChecker, tmp_path: Path) -> None:
    pixels = flat((0.18, 0.0, 0.0, 1.0))
    pixels[:, 16:32, :3] = 1.0
    pixels[:, 32:48, :3] = 100.0
    pixels[:, 48:] = 0.0  # nothing there
    check = checker.check(paint(tmp_path / "a.exr", pixels, "half"), previews=True)
    row = opened(tmp_path, check.previews["view"])[18].astype(int)
    assert np.abs(row[8] - [118, 0, 0]).max() <= 12  # middle grey of light is middle grey of a screen
    assert 235 <= row[24].min() <= row[24].max() < row[40].min()  # white is not yet the end
    assert row[40].min() >= 250
    assert np.abs(row[56] - 118).max() <= 6


def test_the_picture_of_a_file_with_many_channels_is_found(checker: ImageChecker, tmp_path: Path) -> None:
    names = ("Scene.Depth.Z", "Scene.Combined.R", "Scene.Combined.G", "Scene.Combined.B", "Scene.Combined.A")
    path = paint(tmp_path / "a.exr", flat((1000.0, 0.18, 0.0, 0.0, 1.0)), "float", names)
    thumb = opened(tmp_path, checker.check(path, previews=True).previews["thumb"])
    assert np.abs(thumb[9, 9].astype(int) - [118, 0, 0]).max() <= 12


def test_a_picture_of_one_channel_is_grey(checker: ImageChecker, tmp_path: Path) -> None:
    thumb = opened(tmp_path, checker.check(paint(tmp_path / "a.png", flat((0.5,))), previews=True).previews["thumb"])
    assert np.abs(thumb[9, 9].astype(int) - 128).max() <= 4


def test_the_whole_window_is_shown_of_a_cropped_render(checker: ImageChecker, tmp_path: Path) -> None:
    picture = ImageBuf(ImageSpec(32, 18, 3, "half"))
    ImageBufAlgo.fill(picture, (0.5, 0.5, 0.5))
    picture.specmod().x, picture.specmod().y = 16, 9
    picture.specmod().full_width, picture.specmod().full_height = 64, 36
    assert picture.write(str(tmp_path / "a.exr"))
    thumb = opened(tmp_path, checker.check(tmp_path / "a.exr", previews=True).previews["thumb"])
    assert thumb.shape == (36, 64, 3)
    assert thumb[2, 2].max() < 20 < 150 < thumb[18, 32].min()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (4000, 1), (3, 2000)])
def test_odd_shapes_have_previews(checker: ImageChecker, tmp_path: Path, width: int, height: int) -> None:
    check = checker.check(paint(tmp_path / "a.exr", flat((0.5, 0.5, 0.5), width, height), "half"), previews=True)
    assert max(opened(tmp_path, check.previews["thumb"]).shape[:2]) <= 320


def test_noise_fits_as_well(checker: ImageChecker, tmp_path: Path) -> None:
    noise = np.random.default_rng(1).random((1600, 1920, 3), dtype=np.float32)
    check = checker.check(paint(tmp_path / "a.exr", noise, "half"), previews=True)
    assert all(len(jpeg) <= LARGEST for jpeg in check.previews.values())
    assert "thumb" in check.previews


def test_a_bad_picture_has_none_and_a_plain_check_makes_none(checker: ImageChecker, tmp_path: Path) -> None:
    path = paint(tmp_path / "a.png", flat((0.2, 0.5, 0.9)))
    assert checker.check(path).previews == {}
    path.write_bytes(path.read_bytes()[:60])
    check = checker.check(path, previews=True)
    assert not check.ok
    assert check.previews == {}


CRASHES = """
import os
from renderonline.storage import images
def crash(oiio, picture):
    os.abort()
images.make = crash
"""


def test_a_crash_while_previews_are_made_does_not_make_the_picture_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crashing.py").write_text(CRASHES + "checked = images.checked\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with ImageChecker() as checker:
        monkeypatch.setattr(checker, "_words", ("crashing:checked", *checker._words[1:]))
        check = checker.check(paint(tmp_path / "a.png", flat((0.2, 0.5, 0.9))), previews=True)
    assert check.ok
    assert check.previews == {}


def test_previews_are_replaced_and_go_with_their_task(tmp_path: Path) -> None:
    files = PreviewFiles(tmp_path / "previews")
    files.put(7, "shots/a/../b\u00e9.png", "thumb", b"old")
    kept = files.put(7, "shots/a/../b\u00e9.png", "thumb", b"new")
    assert kept.read_bytes() == b"new"
    assert files.there([(7, "shots/a/../b\u00e9.png"), (7, "other.png")]) == {(7, "shots/a/../b\u00e9.png")}
    assert [path.parent.name for path in (tmp_path / "previews").rglob("*.jpg")] == ["7"]
    files.remove(7)
    assert list((tmp_path / "previews").iterdir()) == []
    files.take_back(files.put(8, "a.png", "thumb", b"late"))
    assert list((tmp_path / "previews").iterdir()) == []
