"""File names from outside never become paths."""

from datetime import datetime
from pathlib import Path
from zipfile import ZipInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.errors import Unfit
from renderonline.storage import names


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../x", "x"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\x.blend", "x.blend"),
        ("C:\\Users\\a\\s.blend", "s.blend"),
        ("a\0b.blend", "a_b.blend"),
        ("", "file"),
        (".", "file"),
        ("..", "file"),
        (". . .", "file"),
        ("CON", "_CON"),
        ("nul.blend", "_nul.blend"),
        ("a.blend:stream", "a.blend_stream"),
        ("scene.blend. ", "scene.blend"),
        ("-rf", "_-rf"),
        ("a\r\nb.blend", "a__b.blend"),
        ("e\u0301.blend", "é.blend"),
        ("right\u202eleft.blend", "right_left.blend"),
        ("my scene (2).blend", "my scene (2).blend"),
    ],
)
def test_hostile_names_are_cleaned(sent: str, kept: str) -> None:
    assert names.clean_file_name(sent) == kept


def test_long_name_keeps_its_extension() -> None:
    cleaned = names.clean_file_name("ü" * 3000 + ".blend")
    assert cleaned.endswith("ü.blend")
    assert len(cleaned.encode()) <= names.MAX_NAME_BYTES


@given(st.text(max_size=400))
def test_every_cleaned_name_is_one_plain_file_name(sent: str) -> None:
    cleaned = names.clean_file_name(sent)
    assert 0 < len(cleaned.encode()) <= names.MAX_NAME_BYTES + 1
    assert cleaned not in (".", "..")
    assert not set(cleaned) & set('/\\\0\n\r:*?"<>|')
    assert not cleaned.startswith("-")
    assert Path("/base", cleaned).parent == Path("/base")
    assert names.clean_file_name(cleaned) == cleaned


@pytest.mark.parametrize(
    ("name", "extension"), [("a.blend", ".blend"), (".blend", ".blend"), ("a.tar.gz", ".gz"), ("a", ""), ("a.", "")]
)
def test_extension_is_what_dotnet_says(name: str, extension: str) -> None:
    assert names.extension_of(name) == extension


def test_ticks_count_tenths_of_microseconds_since_year_one() -> None:
    assert names.ticks_of(datetime(2024, 8, 27, 20, 0, 0)) == 638603856000000000
    assert names.ticks_of(datetime(2024, 8, 27, 20, 0, 0, 1)) == 638603856000000010


def test_taken_tick_makes_the_next_one(tmp_path: Path) -> None:
    first = names.make_task_directory(tmp_path, 3, 1000)
    second = names.make_task_directory(tmp_path, 3, 1000)
    assert (first, second) == (tmp_path / "3" / "1000", tmp_path / "3" / "1001")


def test_existing_directory_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "3" / "1000").mkdir(parents=True)
    made = names.make_task_directory(tmp_path, 3, 1000)
    assert made == tmp_path / "3" / "1001"
    assert names.marked(tmp_path) == (made,)


def test_directory_stays_marked_until_it_is_kept(tmp_path: Path) -> None:
    directory = names.make_task_directory(tmp_path, 3, 1000)
    assert names.marked(tmp_path) == (directory,)
    names.keep(directory)
    assert names.marked(tmp_path) == ()
    assert directory.is_dir()


def test_discarded_directory_leaves_nothing(tmp_path: Path) -> None:
    directory = names.make_task_directory(tmp_path, 3, 1000)
    (directory / "a.blend").write_bytes(b"x")
    names.discard(directory)
    assert names.marked(tmp_path) == ()
    assert [path for path in tmp_path.rglob("*") if path.name != names.INCOMING] == []


def test_sweep_removes_staged_files_and_leaves_marks(tmp_path: Path) -> None:
    directory = names.make_task_directory(tmp_path, 3, 1000)
    (names.incoming_directory(tmp_path) / "abc.part").write_bytes(b"x")
    assert names.sweep_incoming(tmp_path) == 1
    assert names.marked(tmp_path) == (directory,)


def test_folder_for_results_is_one_that_no_input_uses() -> None:
    assert names.unused_folder("results", ["a.blend", "tex/results/x.png"]) == "results"
    assert names.unused_folder("results", ["a.blend", "Results/x.png", "results_2"]) == "results_3"


ODD = [
    "wood: oak?.png",
    "چوب\u200cی.png",
    "木" * 70 + ".png",
    "🫩.png",
    'a "b".png',
    "back\\slash.png",
    "CON",
    "-x",
    "x. ",
    "ho\u0308lzer.png",
]


def test_any_name_becomes_one_that_is_fit_and_none_becomes_that_of_another() -> None:
    sent = ["tex/" + name for name in ODD] + ["tex/wood_ oak_.png", "tex/hölzer.png"]
    held = names.fitted(sent)
    assert len(set(held.values())) == len(sent)
    assert held["tex/wood_ oak_.png"] == "tex/wood_ oak_.png"
    for name in held.values():
        assert all(names.clean_file_name(part) == part for part in name.split("/"))
        assert name.startswith("tex/")


def test_a_sequence_with_long_names_stays_a_sequence() -> None:
    held = names.fitted([f"{'木' * 70}_{number:04}.png" for number in (1, 2)])
    first, second = held.values()
    assert first.removesuffix("_0001.png") == second.removesuffix("_0002.png")
    assert len(first.encode()) <= names.MAX_NAME_BYTES


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/passwd", "a//b", "a/", ".", "a/.", "", "x" * 1001, "C:\\x", "a\\..\\x"]
)
def test_what_leads_elsewhere_is_refused_with_what_to_do(name: str) -> None:
    with pytest.raises(Unfit, match=r"name it as it is seen|Shorten it"):
        names.check_relative(name, name)


def test_a_letter_that_cant_be_kept_is_named() -> None:
    with pytest.raises(Unfit, match=r"the letter U\+000A, which can't be kept"):
        names.check_relative("a\nb.png", "a\nb.png")


@pytest.mark.parametrize(
    ("raw", "extra", "name"),
    [
        (b"tex\\plain.png", b"", "tex/plain.png"),
        ("texturé.png".encode(), b"", "texturé.png"),
        ("テクスチャ\\木.png".encode("cp932"), b"", "テクスチャ/木.png"),
        ("é.png".encode("cp437"), b"", "é.png"),
        (b"x\xff.png", b"up\x0c\x00\x01\0\0\0\0" + "ë12.png"[:7].encode()[:7], "ë12.pn"),
    ],
)
def test_names_in_zips_of_other_programs_are_read(raw: bytes, extra: bytes, name: str) -> None:
    member = ZipInfo(raw.decode("cp437"))
    member.orig_filename, member.extra = raw.decode("cp437"), extra
    assert names.name_in_zip(member) == name
