"""The environment of engines."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from renderonline.hpcserver.process_table import MARK
from renderonline.hpcserver.surroundings import INHERITED, Scratch, clean_environment

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
    scratch.make("1")
    assert not (place / "tmp" / "link").exists()
    (place / "tmp" / "link").symlink_to(outside)
    scratch.remove("1")
    scratch.remove()
    assert (outside / "kept").exists()
    assert not (tmp_path / "scratch").exists()
