"""What results are called when they leave the farm."""

import time
from itertools import product

import pytest

from renderonline.farm.errors import InvalidRequest
from renderonline.farm.result_names import called, check, distinct, filled

WHOLE = "{scene}/{camera}/{layer}/{name}_{frame:04}"


@pytest.mark.parametrize(
    ("template", "name", "frame", "shown"),
    [
        ("", "frame_0007.png", 7, "frame_0007.png"),
        ("shot_{frame:04}", "frame_0007.png", 7, "shot_0007.png"),
        ("shot_{frame:04}.png", "frame_0007.png", 7, "shot_0007.png"),
        ("{task}/{name}_{frame:06}", "passes/mask_0007.exr", 7, "12/passes/mask_000007.exr"),
        ("{frame}/{name}", "mask-0007.exr", 7, "7/mask.exr"),
        ("s_{frame:04}", "frame_-0005.png", -5, "s_-0005.png"),
        ("shot_{frame:04}", "frame_0007_L.png", 7, "shot_0007_L.png"),
        ("shot_{frame:04}.PNG", "frame_0007_R.png", 7, "shot_0007_R.PNG"),
        ("{name}_{frame:02}", "v2/frame_0007.left.exr", 7, "v2/frame_07.left.exr"),
        ("{name}_{frame}", "take_3_wide.png", 7, "take_3_wide_7.png"),
        ("{name}_{frame}", "frame_-0005_R.png", -5, "frame_-5_R.png"),
        ("shot_{frame:04}", "report.txt", None, "report.txt"),
        ("{task:04}/{name}", "report_2.txt", None, "0012/report_2.txt"),
        ("x/{name}", "README", None, "x/README"),
    ],
)
def test_fields_are_filled_and_the_extension_stays(template: str, name: str, frame: int | None, shown: str) -> None:
    assert called(check(template), 12, name, frame) == shown


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{name}/etc/x_{frame:04}", "0007.png"),
        ("{name}/{frame}", "a/...7.png"),
        ("a/{name}/{frame}", "..7.png"),
        ("{name}/{frame}", "a/7.png"),
        ("{name}_{name}_{frame}", f"{'n' * 120}_7.png"),
    ],
)
def test_no_result_is_called_what_leads_elsewhere(template: str, name: str) -> None:
    assert called(check(template, frames=3), 12, name, 7) == name


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{user}/{frame}", "has the fields {title}"),
        ("{name:04}", "has the fields"),
        ("{frame:12}", "stand around a field"),
        ("a{b", "stand around a field"),
        ("a\\{frame}", "not used"),
        ("x" * 201, "at most 200"),
        ("a\n{frame}", "printable"),
        ("{scene}/{name}", "All 2 frames would have the same name"),
    ],
)
def test_templates_that_can_t_be_are_refused_with_what_can(template: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check(template, frames=2)
    assert told in caught.value.message
    assert caught.value.reason_code == "bad_names"


def test_what_is_the_same_for_a_task_is_filled_in_once() -> None:
    assert filled(WHOLE, {"scene": "Shot", "camera": "Left", "layer": "FG"}) == "Shot/Left/FG/{name}_{frame:04}"


def test_no_two_results_are_called_alike_on_any_system() -> None:
    names = [("f_1.png", "a.png"), ("g_1.png", "A.png"), ("h.png", "h.png"), ("G_1.png", "a.png")]
    assert distinct(names) == {"f_1.png": "a.png", "g_1.png": "g_1.png", "h.png": "h.png", "G_1.png": "G_1_2.png"}


def test_names_that_only_some_systems_take_do_not_keep_others_from_coming() -> None:
    names = [(one, one) for one in ("Cam:Left1.png", "Cam_Left1.png", 'Cam"Left1.png')]
    expected = ["Cam_Left1.png", "Cam_Left1_2.png", "Cam_Left1_3.png"]
    assert list(distinct(names).values()) == expected


def test_thousands_of_names_alike_take_no_time() -> None:
    names = ["".join(pair) for pair in product(*("aA",) * 14)]
    began = time.process_time()
    assert len(set(distinct(zip(names, names, strict=True)).values())) == len(names)
    assert time.process_time() - began < 5
