"""Warnings of a task: short, plain, each once, in a bounded number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.farm.needs import LONGEST, MOST_OF_TASK, cleaned, joined, of_check, of_scene


def test_a_warning_is_kept_once() -> None:
    assert joined(("a is missing",), ("b is missing", "a is missing")) == ("a is missing", "b is missing")


def test_a_file_is_called_missing_once_whoever_says_it() -> None:
    first = "tex/a.png, tex/B.png are not there: submit with --with tex"
    later = ("//tex/a.png is not there: it was not sent with the scene", "Image file '/x/tex/b.png' does not exist.")
    others = ("a.png rendered in software", "c.png is not there")
    assert joined((first,), (*later, *others)) == (first, *others)


def test_what_is_not_baked_is_said_once_and_only_where_there_are_several_parts() -> None:
    first, later = (f"not baked: each part begins it from the start: {names}" for names in ("a, b", "b, a"))
    assert joined((first,), (later, "c")) == (first, "c")
    assert of_check((first, "c"), 1) == ("c",)
    assert of_check((first, "c"), 2) == (first, "c")


def test_beyond_the_bound_the_last_one_says_how_many_more_there_were() -> None:
    told = joined((), map(str, range(30)))
    assert told == (*map(str, range(19)), "and at least 11 more: the log has them")
    assert joined(told, ["new"]) == told
    assert joined(told, map(str, range(100, 150)))[-1] == "and at least 50 more: the log has them"


def test_what_a_scene_prints_becomes_one_plain_line() -> None:
    assert cleaned("  a\tb\x1b[31m\r\n\u202ec\ud800 ") == "a b [31m c"


@given(st.lists(st.text()), st.lists(st.text()))
def test_whatever_is_told_is_bounded(known: list[str], more: list[str]) -> None:
    told = joined(joined((), known), more)
    assert len(told) <= MOST_OF_TASK
    assert len(set(told)) == len(told)
    assert all(0 < len(text) <= LONGEST and text.isprintable() for text in told)
    assert joined(told, more) == told or len(told) == MOST_OF_TASK


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({}, ()),
        ({"warnings": ["its scene S has no camera"], "missing_inputs": []}, ("its scene S has no camera",)),
        ({"missing_inputs": ["tex/a.png"]}, ("tex/a.png is not there: submit with --with tex",)),
    ],
)
def test_what_a_scene_lacks_is_said_when_it_is_submitted(facts: dict[str, list[str]], told: tuple[str, ...]) -> None:
    assert of_scene(facts, 1) == told


def test_what_is_not_baked_is_told_when_it_would_begin_anew_in_each_part() -> None:
    assert of_scene({"unbaked": ["Cloth"]}, 1) == ()
    (told,) = of_scene({"unbaked": ["Cloth"]}, 2)
    assert told == "not baked: each part begins it from the start: Cloth; bake, or use --chunk 100000 for one part"
