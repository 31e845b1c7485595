"""Files that attempts leave, hostile ones among them."""

import os
from pathlib import Path

import pytest

from renderonline.engines.definition import ReadingRules
from renderonline.farm.errors import InvalidRequest
from renderonline.hpcserver import outputs
from renderonline.hpcserver.outputs import Bad, Checkers, Good, check_file, inside, list_files, stamp_of, stamps
from renderonline.storage.images import ImageCheck, ImageChecker


def test_whole_new_file_is_good(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    found = check_file(tmp_path, "a", before=None, checkers=None)
    assert isinstance(found, Good)
    assert (found.file.size, found.file.crc32) == (3, 0x352441C2)
    assert found.stamp == stamp_of(tmp_path / "a")


def test_file_that_was_there_before_is_missing_until_it_is_written_anew(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    before = stamps(tmp_path)
    found = check_file(tmp_path, "a", before=before["a"], checkers=None)
    assert isinstance(found, Bad)
    assert found.missing
    (tmp_path / "a").unlink()
    (tmp_path / "a").write_bytes(b"abcd")
    assert isinstance(check_file(tmp_path, "a", before=before["a"], checkers=None), Good)


def test_links_directories_and_pipes_are_no_results(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dir").mkdir()
    (tmp_path / "to").symlink_to("dir")
    (tmp_path / "dir" / "x").write_bytes(b"x")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dir", "pipe", "to/x"):
        found = check_file(tmp_path, name, before=None, checkers=None)
        assert isinstance(found, Bad), name
        assert not found.missing, name
    assert list_files(tmp_path) == ["dir/x", "real"]


def test_hard_link_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"secret")
    os.link(tmp_path / "real", tmp_path / "again")
    for name in ("real", "again"):
        found = check_file(tmp_path, name, before=None, checkers=None)
        assert isinstance(found, Bad)
        assert "hard link" in found.reason


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "./a", "a/", "a\0b"])
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest):
        inside(tmp_path, name)


def test_bounds_on_what_an_engine_may_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "MAX_FILES", 3)
    monkeypatch.setattr(outputs, "MAX_DEPTH", 2)
    for name in "abc":
        (tmp_path / name).touch()
    assert len(list_files(tmp_path)) == 3
    (tmp_path / "d").touch()
    with pytest.raises(InvalidRequest, match="more than 3 files"):
        list_files(tmp_path)
    deep = tmp_path / "deep"
    (deep / "1" / "2" / "3").mkdir(parents=True)
    with pytest.raises(InvalidRequest, match="levels deep"):
        list_files(deep)


def test_files_of_holes_are_no_results(tmp_path: Path) -> None:
    """They take no time to make, and hours to read: all that look after files would wait."""
    for name in ("a", "b"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2 << 30)
    found = check_file(tmp_path, "a", before=None, checkers=None)
    assert isinstance(found, Bad)
    assert "holes" in found.reason
    assert list_files(tmp_path) == ["a", "b"]
    for number in range(40):
        (tmp_path / str(number)).touch()
        os.truncate(tmp_path / str(number), 2 << 30)
    with pytest.raises(InvalidRequest, match="holes"):
        list_files(tmp_path)


def test_name_that_is_not_text_is_refused(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")).touch()
    with pytest.raises(InvalidRequest, match="not text"):
        list_files(tmp_path)


def test_picture_is_decoded_and_its_facts_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    used: list[Path] = []
    closed: list[bool] = []

    class Checker(ImageChecker):
        def check(self, path: Path, *, previews: bool, within: Path, size: tuple[int, int]) -> ImageCheck:
            used.append(path)
            facts = {"width": 4, **{f"k{number}": "x" * 1000 for number in range(100)}}
            return ImageCheck(ok=len(used) == 1, reason="broken", facts=facts)

        def close(self) -> None:
            closed.append(True)

    checkers = Checkers([Checker(), Checker()])
    found = check_file(tmp_path, "a", before=None, checkers=checkers)
    assert isinstance(found, Good)
    assert found.facts["width"] == 4
    assert len(found.facts) == outputs.MAX_FACTS
    assert max(len(str(value)) for value in found.facts.values()) == outputs.MAX_FACT
    bad = check_file(tmp_path, "a", before=None, checkers=checkers)
    assert isinstance(bad, Bad)
    assert "broken" in bad.reason
    checkers.close()
    assert closed == [True, True]
    assert used == [tmp_path / "a"] * 2


def test_file_that_changes_while_it_is_checked_is_bad(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")

    class Checker(ImageChecker):
        def check(self, path: Path, *, previews: bool, within: Path, size: tuple[int, int]) -> ImageCheck:
            path.write_bytes(b"changed")
            return ImageCheck(ok=True)

    found = check_file(tmp_path, "a", before=None, checkers=Checkers([Checker()]))
    assert isinstance(found, Bad)
    assert "changed" in found.reason


def test_a_name_that_leads_to_another_file_while_it_is_decoded_is_bad(tmp_path: Path) -> None:
    """The decoder may read all attempts' frames: the other one's previews would be sent as this one's."""
    (tmp_path / "a").write_bytes(b"abc")

    class Checker(ImageChecker):
        def check(self, path: Path, *, previews: bool, within: Path, size: tuple[int, int]) -> ImageCheck:
            path.rename(tmp_path / "aside")
            path.symlink_to("/somewhere/else")
            (tmp_path / "aside").rename(path)
            return ImageCheck(ok=True, facts={"width": 4}, previews={"s": b"of another"})

    found = check_file(tmp_path, "a", before=None, checkers=Checkers([Checker()]))
    assert isinstance(found, Bad)
    assert "changed" in found.reason


@pytest.mark.parametrize(
    ("rules", "facts", "reason"),
    [
        (ReadingRules(width=64, height=36), {"width": 64, "height": 36}, ""),
        (ReadingRules(width=64, height=36), {}, ""),
        (ReadingRules(), {"width": 32, "height": 18, "constant": True}, ""),
        (ReadingRules(constant="fail"), {"constant": True}, "all its pixels have the same colour"),
        (ReadingRules(constant="fail"), {"constant": False}, ""),
    ],
)
def test_a_picture_must_be_what_the_task_asks_for(
    tmp_path: Path, rules: ReadingRules, facts: dict[str, object], reason: str
) -> None:
    (tmp_path / "a").write_bytes(b"abc")

    class Checker(ImageChecker):
        def check(self, path: Path, *, previews: bool, within: Path, size: tuple[int, int]) -> ImageCheck:
            return ImageCheck(ok=True, facts=facts)

    found = check_file(tmp_path, "a", None, Checkers([Checker()]), rules)
    assert (reason in found.reason) if isinstance(found, Bad) else not reason
