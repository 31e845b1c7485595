"""Files besides the frames are held to their bounds, and what stays behind is said."""

from renderonline.farm.result_names import MoreResults
from renderonline.hpcserver.outputs import MoreOutputs, is_picture

RULES = MoreResults(take=("*",), leave=("*.tmp",), files=2, mib=1)
EXPECTED = {"frame_0001.png"}


def test_expected_files_and_those_that_are_left_are_none_of_them() -> None:
    more = MoreOutputs(RULES, EXPECTED)
    assert more.wants("a.png")
    assert not any(more.wants(name) for name in ("frame_0001.png", "b.tmp", "../c.png"))
    assert not MoreOutputs(RULES, ()).wants("a.png")
    assert not MoreOutputs(MoreResults(), EXPECTED).wants("a.png")


def test_bounds_are_met_with_a_warning_that_names_them() -> None:
    more = MoreOutputs(RULES, EXPECTED)
    assert [more.admit(name, 10) for name in ("a", "a", "b", "c", "d")] == [True, True, True, False, False]
    assert more.warnings() == [
        "c and 1 more could not be taken: besides the frames an attempt may have at most 2 files."
    ]
    large = MoreOutputs(RULES, EXPECTED)
    assert not large.admit("a", 2 << 20)
    assert large.warnings() == ["a could not be taken: besides the frames an attempt may have at most 1 MiB."]


def test_a_name_that_no_result_may_have_is_said() -> None:
    more = MoreOutputs(RULES, EXPECTED)
    assert not more.admit("a\\b.png", 1)
    assert more.warnings() == ["'a\\\\b.png' is not a name that a result may have."]
    for number in range(5):
        more.refuse(f"{number}", f"{number} is broken.")
    assert more.warnings()[-1] == "3 more files besides the frames could not be taken."


def test_pictures_are_known_by_their_extension() -> None:
    assert [is_picture(name) for name in ("a.PNG", "b/c.exr", "d.svg", "e")] == [True, True, False, False]
