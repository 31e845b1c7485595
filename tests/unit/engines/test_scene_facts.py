"""Facts of scenes, read from files written by hand: every way in which a .blend is written, and what is no .blend."""

import gzip
import random
import struct
import time
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from renderonline.engines.blender.scene_facts import BrokenScene, read, survey
from tests.support.blend_files import TINY, Blend, File, Scene, packed

WRITTEN = [("<", 8, 0), (">", 8, 0), ("<", 4, 0), ("<", 8, 1)]
COMPRESSED = ["", "gzip", "zstd"]


def broken(path: Path, data: bytes) -> str:
    """Why a file is refused."""
    path.write_bytes(data)
    return str(survey(path.name, str(path.parent)).get("broken", ""))


@pytest.mark.parametrize("how", COMPRESSED)
@pytest.mark.parametrize(("order", "pointer", "file_format"), WRITTEN)
def test_a_scene_says_what_it_renders(tmp_path: Path, order: str, pointer: int, file_format: int, how: str) -> None:
    one = Scene("Wide", start=5, end=90, step=3, width=640, height=360, percent=50, fps=30, imtype=23)
    files = (File("//tex/wood.png"), File("//lib.blend", "LI", "Library"), File("//packed.png", packed=9))
    blend = Blend((Scene(), one), files, 502, order, pointer, file_format, active=1, ballast=3 << 20)
    scene = tmp_path / "a.blend"
    scene.write_bytes(packed(blend.write(), how))
    facts = read(str(scene))
    numbers = {"start": 5, "end": 90, "step": 3, "width": 640, "height": 360, "percent": 50, "fps": 30.0}
    assert facts["scenes"][0] == {"name": "Wide", **numbers, "engine": "CYCLES", "format": "OPEN_EXR"}
    assert [one["name"] for one in facts["scenes"]] == ["Wide", "Scene"]
    assert (facts["version"], facts["size"]) == ("5.2", scene.stat().st_size)
    assert [(one["kind"], one["path"]) for one in facts["external"]] == [
        ("image", "//tex/wood.png"),
        ("library", "//lib.blend"),
    ]


@pytest.mark.parametrize("how", COMPRESSED)
@pytest.mark.parametrize("part", [0.001, 0.3, 0.7, 0.95])
def test_a_truncated_scene_is_refused(tmp_path: Path, how: str, part: float) -> None:
    data = packed(Blend(ballast=100_000).write(), how)
    assert broken(tmp_path / "a.blend", data[: int(len(data) * part)])
    assert "ends too early" in broken(tmp_path / "a.blend", packed(Blend().write()[:-30], how))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"hello" * 100, "it is no .blend file"),
        (b"BLENDER", "ends too early"),
        (b"BLENDER scene and more", "no .blend file that is known here"),
        (b"\x1f\x8b" + bytes(100), "can't be read"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "can't be read"),
        (gzip.compress(b"hello" * 100, mtime=0), "no .blend file that is known here"),
    ],
)
def test_what_is_no_scene_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in broken(tmp_path / "a.blend", data)


def test_absurd_sizes_are_refused_at_once(tmp_path: Path) -> None:
    head, began = TINY[:12], time.monotonic()
    for length in (-1, -(2**31), 2**31 - 1):
        assert broken(tmp_path / "a.blend", head + struct.pack("<4siQii", b"DATA", length, 1, 0, 1) + bytes(99))
    for length in (-1, 2**62):
        block = struct.pack("<4siQqq", b"SC\0\0", 0, 1, length, 2**62)
        assert broken(tmp_path / "a.blend", b"BLENDER17-01v0500" + block + bytes(99))
    strings = b"SDNANAME" + struct.pack("<i", 2**31 - 1) + b"x\0" * 1000
    assert broken(tmp_path / "a.blend", head + struct.pack("<4siQii", b"DNA1", len(strings), 1, 0, 1) + strings)
    many = Blend(more=[(b"SC\0\0", bytes(8))] * 20_001).write()
    assert "more than 20000" in broken(tmp_path / "a.blend", many)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_a_bomb_is_refused_before_it_is_read_to_its_end(tmp_path: Path, how: str) -> None:
    zeros, scene = bytes(64 << 20), tmp_path / "a.blend"
    head = TINY[:12] + struct.pack("<4siQii", b"DATA", 2**31 - 1, 1, 0, 1)
    with scene.open("wb") as file:
        if how == "zstd":
            piece = zstandard.ZstdCompressor().compress(zeros)
            file.write(zstandard.ZstdCompressor().compress(head) + piece * 64)
        else:
            piece = gzip.compress(zeros)
            file.write(gzip.compress(head) + piece * 64)
    assert "expands to far more" in str(survey("a.blend", str(tmp_path)).get("broken"))


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.sampled_from(COMPRESSED), st.sampled_from(WRITTEN))
def test_flipped_bits_never_give_more_than_a_refusal(seed: int, how: str, written: tuple[str, int, int]) -> None:
    chance = random.Random(seed)
    files = (File("//a.png"), File("//b.blend", "LI", "Library"))
    data = bytearray(packed(Blend((Scene(), Scene("B")), files, 405, *written).write(), how))
    for _ in range(chance.randrange(1, 6)):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path = Path(f"/dev/shm/flipped-{seed}.blend")
    try:
        path.write_bytes(data)
        read(str(path))
    except BrokenScene:
        pass
    finally:
        path.unlink()


def test_a_scene_of_a_newer_layout_tells_its_version(tmp_path: Path) -> None:
    (tmp_path / "a.blend").write_bytes(Blend(version=601, file_format=2).write())
    facts = read(str(tmp_path / "a.blend"))
    assert (facts["version"], facts["scenes"]) == ("6.1", [])
    assert facts["warnings"]


def test_what_is_missing_is_named_and_libraries_are_looked_into(tmp_path: Path) -> None:
    (tmp_path / "shots").mkdir()
    (tmp_path / "lib").mkdir()
    files = (
        File("//../lib/chairs.blend", "LI", "Library"),
        File("//wood.png"),
        File("/x/y.png"),
        File("//../../z.png"),
    )
    (tmp_path / "shots" / "a.blend").write_bytes(Blend(files=files).write())
    inner = (File("//..\\tex\\cloth.png"), File("//chairs.blend", "LI", "Library"))
    (tmp_path / "lib" / "chairs.blend").write_bytes(Blend(files=inner).write())
    told = survey("shots/a.blend", str(tmp_path))
    assert told["inputs"] == ["lib/chairs.blend"]
    assert told["missing"] == ["shots/wood.png", "tex/cloth.png"]
    assert len(told["facts"]["warnings"]) == 2
    (tmp_path / "tex").mkdir()
    (tmp_path / "tex" / "cloth.png").touch()
    assert survey("shots/a.blend", str(tmp_path))["inputs"] == ["lib/chairs.blend", "tex/cloth.png"]


def test_files_may_lie_elsewhere_under_their_names(tmp_path: Path) -> None:
    files = (File("//tex/wood.png"), File("//lib.blend", "LI", "Library"))
    (tmp_path / "0").write_bytes(Blend(files=files).write())
    told = survey("a.blend", {"a.blend": str(tmp_path / "0"), "tex/wood.png": "", "lib.blend": ""})
    assert (told["inputs"], told["missing"]) == (["tex/wood.png", "lib.blend"], [])


def test_sequences_and_tiles_stand_for_all_their_files(tmp_path: Path) -> None:
    files = (File("//s/a_001.png", source=2), File("//t.<UDIM>.exr", source=6), File("//seen.png", source=5))
    (tmp_path / "a.blend").write_bytes(Blend(files=files).write())
    assert survey("a.blend", str(tmp_path))["missing"] == ["s/a_001.png", "t.<UDIM>.exr"]
    (tmp_path / "s").mkdir()
    for name in ("s/a_001.png", "s/a_0002.png", "s/b_001.png", "t.1001.exr", "t.1002.exr", "t.x.exr"):
        (tmp_path / name).touch()
    found = ["s/a_0002.png", "s/a_001.png", "t.1001.exr", "t.1002.exr"]
    assert sorted(survey("a.blend", str(tmp_path))["inputs"]) == found


def test_a_broken_library_breaks_the_scene(tmp_path: Path) -> None:
    (tmp_path / "a.blend").write_bytes(Blend(files=(File("//lib.blend", "LI", "Library"),)).write())
    (tmp_path / "lib.blend").write_bytes(TINY[:100])
    assert survey("a.blend", str(tmp_path))["broken"].startswith("its library lib.blend is broken: it ends too early")


def test_a_scene_without_a_camera_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "a.blend").write_bytes(Blend((Scene(camera=0),)).write())
    assert read(str(tmp_path / "a.blend"))["warnings"] == ["its scene Scene has no camera"]
