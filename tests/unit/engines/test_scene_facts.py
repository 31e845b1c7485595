"""Facts of scenes, read from files written by hand: every way in which a .blend is written, and what is no .blend."""

import gzip
import random
import struct
import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from renderonline.engines.blender import blend_file, needed_files
from renderonline.engines.blender.needed_files import survey
from tests.support.blend_files import TINY, Blend, File, Scene, facts_in, packed

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
    facts = facts_in(scene)
    numbers = {"start": 5, "end": 90, "step": 3, "width": 640, "height": 360, "percent": 50, "fps": 30.0}
    parts = {"fps_num": 30, "fps_den": 1, "cameras": [], "view_layers": [], "unbaked": []}
    assert facts["scenes"][0] == {"name": "Wide", **numbers, "engine": "CYCLES", "format": "OPEN_EXR", **parts}
    assert [one["name"] for one in facts["scenes"]] == ["Wide", "Scene"]
    assert (facts["version"], facts["size"]) == ("5.2", scene.stat().st_size)
    assert [(one["kind"], one["path"]) for one in facts["external"]] == [
        ("image", "//tex/wood.png"),
        ("library", "//lib.blend"),
    ]


@pytest.mark.parametrize(("order", "pointer", "file_format"), WRITTEN)
def test_a_scene_says_that_it_renders_on_cards(tmp_path: Path, order: str, pointer: int, file_format: int) -> None:
    scenes = (Scene("Cards", device="GPU"), Scene("Plain"))
    (tmp_path / "a.blend").write_bytes(Blend(scenes, (), 502, order, pointer, file_format).write())
    assert [one.get("device") for one in facts_in(tmp_path / "a.blend")["scenes"]] == ["gpu", None]


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
        assert {"facts", "broken"} & survey(path.name, str(path.parent)).keys()
    finally:
        path.unlink()


def test_a_scene_of_a_newer_layout_tells_its_version(tmp_path: Path) -> None:
    (tmp_path / "a.blend").write_bytes(Blend(version=601, file_format=2).write())
    facts = facts_in(tmp_path / "a.blend")
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
    assert facts_in(tmp_path / "a.blend")["warnings"] == ["its scene Scene has no camera"]


def looked_at(folder: Path, files: Sequence[File], names: Iterable[str]) -> dict[str, Any]:
    """What is told of a scene with these external files, among files with these names."""
    (folder / "a.blend").write_bytes(Blend(files=files).write())
    return survey("a.blend", {"a.blend": str(folder / "a.blend")} | dict.fromkeys(names, ""))


def test_a_whole_path_leads_to_the_scenes_folder_wherever_a_zip_put_it(tmp_path: Path) -> None:
    (tmp_path / "film").mkdir()
    (tmp_path / "film/a.blend").write_bytes(Blend(files=[File("C:\\old\\tex\\x.png")]).write())
    told = survey("film/a.blend", {"film/a.blend": str(tmp_path / "film/a.blend"), "film/tex/x.png": ""})
    assert (told["inputs"], told["outside"]) == (["film/tex/x.png"], [])


def test_a_path_on_a_server_is_looked_for_by_its_end(tmp_path: Path) -> None:
    files = [File(f"\\\\server\\{name}") for name in ("share\\tex\\x.png", "y.png")]
    told = looked_at(tmp_path, files, ["tex/x.png"])
    assert (told["inputs"], told["outside"]) == (["tex/x.png"], ["\\\\server/y.png"])


@pytest.mark.parametrize("many", ["//f/x{0:03}_1.png", "//f/x_{0:04}.png", "//f/{0}x<UDIM>.png"])
def test_many_sequences_among_many_files_are_found_without_comparing_all_with_all(tmp_path: Path, many: str) -> None:
    def seconds(count: int) -> float:
        external = [File(many.format(number), source=6 if "UDIM" in many else 2) for number in range(count)]
        names = [f"f/x{number % count:03}_{number}.png" for number in range(90 * count)]
        began = time.process_time()
        looked_at(tmp_path, external, names)
        return time.process_time() - began

    few, lots = min(seconds(25) for _ in range(3)), seconds(500)
    assert lots < 80 * few  # twenty times as many of both: 400 times as long before


def test_a_sequence_is_what_differs_in_the_last_number_of_its_name(tmp_path: Path) -> None:
    names = ["s1/a_01.png", "s1/a_2.png", "s1/a_2.jpg", "s1/a_2b.png", "s2/a_3.png", "s1/a_.png", "b.png", "c1.2.png"]
    external = [File("//s1/a_7.png", source=2), File("//s1/a_8.png", source=2), File("//b.png", source=2)]
    told = looked_at(tmp_path, [*external, File("//d1.png", source=2)], names)
    assert (told["inputs"], told["missing"]) == (["s1/a_01.png", "s1/a_2.png", "b.png"], ["d1.png"])


def test_tiles_are_four_digits_or_two_numbers(tmp_path: Path) -> None:
    names = ["t.1001.png", "t.1002.png", "t.101.png", "t.1001.jpg", "t.u1_v2.png", "t.u1_v.png"]
    told = looked_at(tmp_path, [File("//t.<UDIM>.png", source=6), File("//t.<UVTILE>.png", source=6)], names)
    assert told["inputs"] == ["t.1001.png", "t.1002.png", "t.u1_v2.png"]


def unseen(told: Mapping[str, Any]) -> str:
    """The one warning about what was not looked at."""
    (warning,) = told["facts"]["warnings"]
    assert warning.startswith("not looked at: ")
    return str(warning)


def test_what_is_too_much_to_look_at_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [File(f"//{number}.png") for number in range(503)]
    told = looked_at(tmp_path, many, ())
    assert told["facts"]["warnings"] == ["not there either: 500.png, 501.png, 502.png"]
    assert (len(told["missing"]), told["facts"]["external_count"]) == (500, 503)

    monkeypatch.setattr(needed_files, "MOST_LIBRARIES", 2)
    libraries = {f"{number}.blend": str(tmp_path / "lib") for number in range(10)}
    (tmp_path / "lib").write_bytes(TINY)
    scene = Blend(files=[File(f"//{name}", "LI", "Library") for name in libraries])
    (tmp_path / "b.blend").write_bytes(scene.write())
    told = survey("b.blend", {"b.blend": str(tmp_path / "b.blend"), **libraries})
    assert unseen(told).startswith("not looked at: 2.blend, 3.blend, 4.blend, 5.blend, 6.blend and 3 more (")

    monkeypatch.setattr(needed_files, "Left", partial(blend_file.Left, blocks=100, compared=100))
    tiles = [File("//<UDIM>.png", source=6), File("//<UDIM>.jpg", source=6)]
    told = looked_at(tmp_path, tiles, [f"{number}.png" for number in range(1000, 1200)])
    assert unseen(told).startswith("not looked at: <UDIM>.png, <UDIM>.jpg (")
    assert told["missing"] == []

    empty = struct.pack("<4siQii", b"DATA", 0, 1, 0, 1) * 100
    (tmp_path / "a.blend").write_bytes(TINY[:12] + empty + TINY[12:])
    told = survey("a.blend", str(tmp_path))
    assert unseen(told).startswith("not looked at: scenes and external files of a.blend (")
    assert (told["facts"]["version"], told["facts"]["scenes"]) == ("4.5", [])


def test_every_texture_of_many_is_looked_for(tmp_path: Path) -> None:
    names = [f"tex/{number}.png" for number in range(3000)]
    told = looked_at(tmp_path, [File(f"//{name}") for name in names], names)
    assert (told["inputs"], told["missing"], told["facts"]["warnings"]) == (names, [], [])


def test_what_is_not_kept_for_lack_of_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blend_file, "MOST_KEPT", 10)
    told = looked_at(tmp_path, [File(f"//{number}.png") for number in range(20)], ())
    assert unseen(told).startswith("not looked at: a part of a.blend (more than 10 blocks")
