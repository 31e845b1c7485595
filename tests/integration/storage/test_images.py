"""Pictures are believed only when they decode wholly, and nothing in a file can hurt or hold up the checker."""

import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from OpenImageIO import ROI, ImageBuf, ImageOutput, ImageSpec

from renderonline.storage.images import ImageChecker, seconds


@pytest.fixture(scope="module")
def checker() -> Iterator[ImageChecker]:
    with ImageChecker() as opened:
        yield opened


def write(path: Path, *, pixel_type: str = "uint8", value: float | None = None, **metadata: str) -> Path:
    """A picture of noise, or of one value."""
    spec = ImageSpec(64, 36, 3, pixel_type)
    for name, text in metadata.items():
        spec.attribute(name, text)
    picture = ImageBuf(spec)
    noise = np.random.default_rng(1).random((36, 64, 3), dtype=np.float32)
    picture.set_pixels(ROI(), noise if value is None else np.full_like(noise, value))
    assert picture.write(str(path)), picture.geterror()
    return path


FORMATS = ("png", "jpg", "tif", "tga", "bmp", "hdr", "exr", "webp", "jp2", "dpx")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_whole_picture_is_good_and_says_what_it_is(checker: ImageChecker, tmp_path: Path, suffix: str) -> None:
    check = checker.check(write(tmp_path / f"a.{suffix}", pixel_type="half" if suffix in ("exr", "hdr") else "uint8"))
    assert check.ok, check.reason
    assert (check.facts["width"], check.facts["height"], check.facts["channels"]) == (64, 36, 3)
    assert check.facts["format"]
    assert check.facts["constant"] is False


def test_picture_of_another_size_is_not_decoded(checker: ImageChecker, tmp_path: Path) -> None:
    """A small file can say that it is so large that decoding takes a minute; this one could not be decoded at all."""
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    path = tmp_path / "a.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    check = checker.check(path, size=(64, 36))
    assert (check.ok, check.reason) == (False, "it has 30000 x 30000 pixels, the task asks for 64 x 36")
    assert checker.check(write(tmp_path / "b.png"), size=(64, 36)).ok


@pytest.mark.parametrize("part", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != "tga"])
def test_a_truncated_picture_is_not_good(checker: ImageChecker, tmp_path: Path, suffix: str, part: float) -> None:
    path = write(tmp_path / f"a.{suffix}", pixel_type="half" if suffix in ("exr", "hdr") else "uint8")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    check = checker.check(path)
    assert not check.ok
    assert check.reason


def test_a_truncated_targa_is_not_good(checker: ImageChecker, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tga")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    assert not checker.check(path).ok


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "the file is empty"), (b"hello" * 1000, "Not a PNG file"), (b"\x89PNG\r\n\x1a\n", ""), (b"\0" * 4096, "")],
)
def test_what_is_no_picture_is_not_good(checker: ImageChecker, tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(data)
    check = checker.check(path)
    assert not check.ok
    assert reason in check.reason
    assert check.reason


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pixel_type", ["half", "float"])
def test_numbers_that_are_none_are_not_good(
    checker: ImageChecker, tmp_path: Path, value: float, pixel_type: str
) -> None:
    check = checker.check(write(tmp_path / "a.exr", pixel_type=pixel_type, value=value))
    assert not check.ok
    assert "6912 values of channel R, G, B are not numbers" in check.reason
    assert check.facts["width"] == 64


def write_parts(path: Path, *parts: tuple[str, np.ndarray]) -> Path:
    """A picture of several parts: the names of channels (one letter each), and their values."""
    specs = [ImageSpec(8, 6, len(names), "float") for names, _ in parts]
    for number, (names, _) in enumerate(parts):
        specs[number].channelnames = tuple(names)
        specs[number].attribute("oiio:subimagename", f"part{number}")
    out = ImageOutput.create(str(path))
    assert out is not None
    assert out.open(str(path), tuple(specs))
    for number, (_, values) in enumerate(parts):
        assert number == 0 or out.open(str(path), specs[number], "AppendSubimage")
        assert out.write_image(values)
    out.close()
    return path


def test_one_value_that_is_no_number_in_a_later_part_is_found(checker: ImageChecker, tmp_path: Path) -> None:
    good = np.random.default_rng(1).random((6, 8, 3), dtype=np.float32)
    bad = good.copy()
    bad[3, 4, 1] = np.nan
    assert checker.check(write_parts(tmp_path / "a.exr", ("RGB", good), ("RGB", good))).ok
    check = checker.check(write_parts(tmp_path / "b.exr", ("RGB", good), ("RGB", bad)))
    assert not check.ok
    assert check.reason.startswith("in part 1: 1 values of channel G are not numbers")


@pytest.mark.parametrize(("value", "is_good"), [(np.inf, True), (np.nan, False)])
def test_a_depth_may_be_infinite_where_nothing_is(
    checker: ImageChecker, tmp_path: Path, value: float, is_good: bool
) -> None:
    values = np.random.default_rng(1).random((6, 8, 2), dtype=np.float32)
    values[0, 0, 1] = value
    assert checker.check(write_parts(tmp_path / "a.exr", ("AZ", values))).ok is is_good


def test_a_picture_of_one_colour_is_good_and_says_so(checker: ImageChecker, tmp_path: Path) -> None:
    assert checker.check(write(tmp_path / "a.png", value=0.0)).facts["constant"] is True


def test_what_blender_writes_into_a_picture_is_kept(checker: ImageChecker, tmp_path: Path) -> None:
    said = {
        "RenderTime": "01:02.50",
        "Frame": "0007",
        "Camera": "Eye",
        "Scene": "S" * 500,
        "cycles.ViewLayer.samples": "16",
        "Memory": "1.50G",
    }
    facts = checker.check(write(tmp_path / "a.png", **said)).facts
    assert facts["render_time_s"] == 62.5
    assert facts["frame"] == 7
    assert facts["camera"] == "Eye"
    assert facts["samples"] == 16
    assert facts["memory_mib"] == 1536.0
    assert len(facts["scene"]) == 200


def test_metadata_that_make_no_sense_are_left_out(checker: ImageChecker, tmp_path: Path) -> None:
    check = checker.check(write(tmp_path / "a.png", RenderTime="soon", Frame="9" * 40, Memory="much"))
    assert check.ok
    assert not {"render_time_s", "frame", "memory_mib"} & set(check.facts)


def test_every_part_of_a_picture_is_read(checker: ImageChecker, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    first = ImageBuf(str(write(tmp_path / "one.png")))
    out = ImageOutput.create(str(path))
    assert out is not None
    specs = (first.spec(), first.spec())
    out.open(str(path), specs[0])
    out.write_image(first.get_pixels())
    out.open(str(path), specs[1], "AppendSubimage")
    out.write_image(first.get_pixels())
    out.close()
    assert checker.check(path).ok
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle + 400 : middle + 900] = b"\xff" * 500
    path.write_bytes(bytes(data))
    assert not checker.check(path).ok


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_a_picture_that_is_too_large_is_refused_before_it_is_decoded(checker: ImageChecker, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(20_000, 20_000, zlib.compress(bytes(20_000 * 60_001), 1)))
    began = time.monotonic()
    check = checker.check(path)
    assert not check.ok
    assert "too large" in check.reason
    assert time.monotonic() - began < 2


def test_a_file_that_is_rewritten_is_read_again(checker: ImageChecker, tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    assert checker.check(path).ok
    path.write_bytes(path.read_bytes()[:500])
    assert not checker.check(path).ok
    assert checker.check(write(path)).ok


@pytest.mark.parametrize("name", ["gone.png", ".", "line\nbreak.png", 'quote".png'])
def test_what_is_no_file_is_not_good(checker: ImageChecker, tmp_path: Path, name: str) -> None:
    assert checker.check(tmp_path / name).reason == "there is no such file"


def test_no_picture_is_decoded_behind_a_link_to_a_directory(checker: ImageChecker, tmp_path: Path) -> None:
    for directory, pixel_type in (("1", "uint8"), ("2", "uint16")):  # the same name, and another picture
        (tmp_path / directory).mkdir()
        write(tmp_path / directory / "a.png", pixel_type=pixel_type)
        found = checker.check(tmp_path / directory / "a.png", within=tmp_path)
        assert (found.ok, found.facts["pixel_type"]) == (True, pixel_type)
    (tmp_path / "1" / "link").symlink_to("../2")
    assert not checker.check(tmp_path / "1" / "link" / "a.png", within=tmp_path).ok


def test_a_pipe_in_the_directory_holds_up_nobody(checker: ImageChecker, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert checker.check(tmp_path / "a.png").reason == "there is no such file"


def test_names_with_a_line_break_are_checked_too(checker: ImageChecker, tmp_path: Path) -> None:
    assert checker.check(write(tmp_path / "line\nbreak.png")).ok


def child_of(checker: ImageChecker) -> psutil.Process:
    child = checker._child
    assert child is not None
    return psutil.Process(child.pid)


def test_a_decoder_that_crashes_is_started_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    with ImageChecker() as checker:
        assert checker.check(path).ok
        first = child_of(checker)
        first.kill()
        first.wait(20)
        assert checker.check(path).ok
        assert child_of(checker).pid != first.pid


def test_a_decoder_that_hangs_is_ended_after_its_time(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png")
    with ImageChecker(time_s=1.0) as checker:
        assert checker.check(path).ok
        child = child_of(checker)
        child.suspend()
        began = time.monotonic()
        assert "within 1 s" in checker.check(path).reason
        assert 0.9 < time.monotonic() - began < 5
        assert not child.is_running()
        assert checker.check(path).ok


def test_a_decoder_that_asks_for_too_much_memory_says_so_and_the_next_picture_is_fine(tmp_path: Path) -> None:
    big = tmp_path / "big.png"
    big.write_bytes(png(14_000, 14_000, zlib.compress(bytes(14_000 * 42_001), 1)))
    good = write(tmp_path / "a.png")
    with ImageChecker(memory_bytes=560 << 20) as checker:
        assert checker.check(good).ok
        assert not checker.check(big).ok
        assert checker.check(good).ok


def test_the_child_has_no_secrets_and_ends_with_us(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RENDERONLINE_TOKEN", "secret")
    checker = ImageChecker()
    checker.check(write(tmp_path / "a.png"))
    child = child_of(checker)
    assert "RENDERONLINE_TOKEN" not in child.environ()
    checker.close()
    assert not child.is_running()


@pytest.mark.parametrize(
    ("text", "value"),
    [("00:01.23", 1.23), ("1:00:01", 3601.0), ("7.5", 7.5), ("", None), ("-1", None), ("1:2:3:4", None)],
)
def test_blenders_times_are_read(text: str, value: float | None) -> None:
    assert seconds(text) == value
