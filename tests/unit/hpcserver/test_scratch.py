"""The environment of engines."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from renderonline.hpcserver.boxes import (
    INHERITED,
    Scratch,
    clean_environment,
    in_ascii,
    in_own_directories,
    link,
    unlink,
)
from renderonline.hpcserver.process_table import MARK
from renderonline.hpcserver.resources import shares_files
from renderonline.protocol.link import Assign

PLACE = Path("/scratch/1")


@given(st.dictionaries(st.text(min_size=1), st.text()))
def test_nothing_is_inherited_but_the_allowed_names(inherited: dict[str, str]) -> None:
    environment = clean_environment(inherited, {}, PLACE)
    ours = {"HOME", "USERPROFILE", "TMPDIR", "TMP", "TEMP"}
    assert all(name.upper() in INHERITED or name.upper().startswith("LC_") for name in set(environment) - ours)


def test_secrets_stay_behind_and_language_passes() -> None:
    inherited = {"PATH": "/bin", "LC_ALL": "C", "AWS_SECRET_ACCESS_KEY": "x", "SLURM_JWT": "y", "LICENSE": "z"}
    environment = clean_environment(inherited, {}, PLACE, also={"LICENSE"})
    assert environment.items() >= {"PATH": "/bin", "LC_ALL": "C", "LICENSE": "z"}.items()
    assert not {"AWS_SECRET_ACCESS_KEY", "SLURM_JWT"} & set(environment)


def test_assignment_adds_variables_but_not_ours_nor_broken_ones() -> None:
    wanted = {"OCIO": "/cfg", "HOME": "/root", "tmpdir": "/", MARK: "forged", "A=B": "x", "": "y", "N": "a\0b"}
    environment = clean_environment({}, wanted, PLACE)
    assert environment["OCIO"] == "/cfg"
    assert environment["HOME"] == "/scratch/1/home"
    assert environment["TMPDIR"] == "/scratch/1/tmp"
    assert not {MARK, "A=B", "", "N", "tmpdir"} & set(environment)


def test_scratch_is_private_and_goes_without_following_links(tmp_path: Path) -> None:
    scratch, outside = Scratch(tmp_path / "scratch"), tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    place = scratch.make("1")
    (place / "tmp" / "link").symlink_to(outside)
    assert (place / "home").stat().st_mode & 0o777 == 0o700
    place = scratch.make("1")
    assert not (place / "tmp" / "link").exists()
    (place / "tmp" / "link").symlink_to(outside)
    scratch.remove("1")
    scratch.make("2")
    scratch.clear()
    assert (outside / "kept").exists()
    assert not (tmp_path / "scratch").exists()


def test_directories_that_were_left_as_they_were_serve_another_attempt(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    place = scratch.make("1")
    assert scratch.place("1") == place
    other = scratch.make("2")
    assert other != place
    assert scratch.give_back("1")
    assert scratch.make("3") == place
    assert scratch.give_back("never made")


@pytest.mark.parametrize(
    "change",
    [
        lambda place: (place / "home" / ".config").mkdir(),
        lambda place: (place / "tmp" / "x").touch(),
        lambda place: (place / "work" / "link").symlink_to("/nowhere"),
        lambda place: (place / "beside").touch(),
        lambda place: (place / "home").chmod(0o755),
        lambda place: (place / "tmp").rmdir(),
        lambda place: (place / "home").rename(place / "other") and (place / "home").symlink_to("other"),
        lambda place: (place / "work").rmdir() or (place / "work").symlink_to("tmp"),
    ],
)
def test_directories_that_an_engine_changed_serve_nobody_else(tmp_path: Path, change: Callable[[Path], object]) -> None:
    scratch = Scratch(tmp_path)
    place = scratch.make("1")
    change(place)
    assert not scratch.give_back("1")
    scratch.remove("1")
    assert not place.exists()
    assert sorted(path.name for path in scratch.make("2").iterdir()) == ["home", "tmp", "work"]


HERE = in_own_directories(
    Assign(
        *(1, "t", 2, 3, "blender"),
        argv=(
            "-b",
            "/f/7/12/a.blend",
            "-o",
            "/f/.attempts/1/frame_####",
            "--x=/f/7/12;/f/7/123/b",
            "+O/f/.attempts/1/",
        ),
        directory="/f/.attempts/1",
        inputs=("/f/7/12/a.blend",),
        environment={"OCIO": "/f/7/12/config.ocio", "ELSEWHERE": "/f/7/12.old/x"},
        root="/f/7/12",
        mark="/f/.mark",
        mark_token="x",
    ),
    Path("/own/in"),
    Path("/own/out"),
)


def test_own_directories_take_the_place_of_the_farms() -> None:
    assert HERE.argv == (
        *("-b", "/own/in/a.blend", "-o", "/own/out/frame_####", "--x=/own/in;/f/7/123/b", "+O/own/out/"),
    )
    assert (HERE.directory, HERE.root, HERE.inputs) == ("/own/out", "/own/in", ("/own/in/a.blend",))
    assert HERE.environment == {"OCIO": "/own/in/config.ocio", "ELSEWHERE": "/f/7/12.old/x"}


def test_only_the_very_token_tells_that_files_are_shared(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    assign = replace(HERE, mark=str(mark), mark_token="token")
    assert not shares_files(assign)
    for content, shares in ((b"token", True), (b"token2", False), (b"tok", False), (b"", False)):
        mark.write_bytes(content)
        assert shares_files(assign) is shares
    assert not shares_files(replace(assign, mark=str(tmp_path), mark_token=""))
    assert shares_files(replace(assign, mark="")), "a RenderAPI without marks shares its files with everybody"


def words(scene: str, directory: str) -> tuple[str, ...]:
    return (f'+I"{scene}"', f'+L"{scene.rpartition("/")[0]}"', f'+O"{directory}/frame_.png"')


def test_engine_that_opens_ascii_alone_gets_links_in_place_of_other_paths() -> None:
    def of(scene: str, directory: str, *, ascii_paths: bool = True) -> tuple[tuple[str, ...], dict[str, str]]:
        argv = words(scene, directory)
        return in_ascii(Assign(1, "t", 1, 1, "povray", argv, directory, inputs=(scene,), ascii_paths=ascii_paths))

    plain = ("/f/1/2/my scene.pov", "/f/.attempts/7")
    assert of(*plain) == (words(*plain), {})
    odd = ('/ö/1/2/a "b".pov', "/ö/.attempts/7")
    assert of(*odd, ascii_paths=False) == (words(*odd), {})
    assert of(*odd) == (
        ('+I"scene.pov"', '+L"scene_files"', '+O"./frame_.png"'),
        {"scene.pov": odd[0], "scene_files": "/ö/1/2"},
    )
    deep = f"/{'d' * 150}/7"
    assert of("/f/a.pov", deep) == (('+I"/f/a.pov"', '+L"/f"', '+O"./frame_.png"'), {})
    assert of("/f/a.pov", "/f\\x/7") == (('+I"/f/a.pov"', '+L"/f"', '+O"./frame_.png"'), {})
    named = ("/f/1/2/grün.pov", "/f/.attempts/7")
    assert of(*named) == (
        ('+I"scene.pov"', '+L"/f/1/2"', '+O"/f/.attempts/7/frame_.png"'),
        {"scene.pov": named[0]},
    )


def test_links_replace_older_ones_and_go_alone(tmp_path: Path) -> None:
    (tmp_path / "grün.pov").write_text("x")
    for _ in range(2):
        link(tmp_path, {"scene.pov": str(tmp_path / "grün.pov")})
        assert (tmp_path / "scene.pov").read_text() == "x"
    unlink(tmp_path, ["scene.pov", "never made"])
    assert [path.name for path in tmp_path.iterdir()] == ["grün.pov"]
