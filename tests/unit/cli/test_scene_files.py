"""Which files `renderonline submit` sends, and as what."""

import zipfile
from pathlib import Path

import pytest

from renderonline.cli.submit import gathered, scene_in
from renderonline.farm.errors import InvalidRequest


@pytest.fixture
def film(tmp_path: Path) -> Path:
    root = tmp_path / "film"
    for name in ("shots/s1.blend", "shots/tex/wood.png", "shots/tex/deep/a.exr", "shots/.git/x", "lib/chairs.blend"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_files_beside_the_scene_keep_their_place(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(film)
    found = gathered(Path("shots/s1.blend"), [Path("tex"), Path("tex/wood.png")])
    assert found.scene == "s1.blend"
    assert sorted(found.inputs) == ["tex/deep/a.exr", "tex/wood.png"]
    assert found.inputs["tex/wood.png"].read_text() == "shots/tex/wood.png"


def test_scene_alone_is_alone(film: Path) -> None:
    assert gathered(film / "shots/s1.blend").inputs == {}


def test_whole_folder_has_the_scene_at_its_place(film: Path) -> None:
    found = gathered(film / "shots/s1.blend", folder=film)
    assert found.scene == "shots/s1.blend"
    assert sorted(found.inputs) == ["lib/chairs.blend", "shots/tex/deep/a.exr", "shots/tex/wood.png"]


def test_file_outside_of_the_folder_is_told(film: Path) -> None:
    with pytest.raises(InvalidRequest, match="--folder"):
        gathered(film / "shots/s1.blend", [Path("../lib/chairs.blend")])
    with pytest.raises(InvalidRequest, match="outside"):
        gathered(film / "lib/chairs.blend", folder=film / "shots")
    with pytest.raises(InvalidRequest, match="does not exist"):
        gathered(film / "shots/s1.blend", [Path("no")])


def test_links_that_lead_in_a_circle_end(film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("renderonline.cli.submit.MOST_FILES", 100)
    for name in ("here", "again"):
        (film / name).symlink_to(film)
    with pytest.raises(InvalidRequest, match="at most 100"):
        gathered(film / "shots/s1.blend", folder=film)


def packed(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def test_scene_of_a_zip_is_the_one_nearest_to_the_top(tmp_path: Path) -> None:
    inside = ("film/shot.blend", "film/lib/b.blend", "film/tex/a.png", "__MACOSX/._shot.blend", "film/x.blend/")
    assert scene_in(packed(tmp_path / "film.zip", *inside), {".blend"}) == "film/shot.blend"
    assert scene_in(packed(tmp_path / "film.zip", "a\\s.blend", "a\\tex\\c: oak?.png"), {".blend"}) == "a/s.blend"


@pytest.mark.parametrize("names", [("a.blend", "b.blend"), ("a.png",), ("x/a.blend", "y/b.blend")])
def test_zip_whose_scene_is_not_clear_is_refused(names: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"Which file of film\.zip is the scene"):
        scene_in(packed(tmp_path / "film.zip", *names), {".blend"})


def test_damaged_zip_is_refused(tmp_path: Path) -> None:
    (tmp_path / "film.zip").write_text("no zip")
    with pytest.raises(InvalidRequest, match="can't be unpacked"):
        scene_in(tmp_path / "film.zip", {".blend"})
