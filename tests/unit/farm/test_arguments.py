"""Argument rules: values, templates, the program's own name."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from renderonline.farm.arguments import (
    MAX_VALUE,
    TYPES,
    ArgType,
    check_options,
    check_value,
    fill,
    join,
    placeholders,
    split,
    strip_program,
)
from renderonline.farm.errors import InvalidRequest, RenderOnlineError

texts = st.text(alphabet=st.one_of(st.sampled_from("-+$RENDERONLINE:ab1 @_\"\\'\t\n"), st.characters()), max_size=30)
names = st.text(alphabet="abcst_12", min_size=1, max_size=6)


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        ("file", "scene-1_a.exr"),
        ("path", "/srv/renders/a-1/"),
        ("path", "/a"),
        ("extension", ".png"),
        ("word", "PNG_16"),
        ("sentence", "It's a sentence, isn't it? Yes! - Of 2 words."),
        ("natural", "007"),
        ("integer", "-12"),
        ("integer", "12"),
        ("real", "-1.50"),
        ("real", "3"),
    ],
)
def test_values_of_each_type_are_taken(type_name: str, value: str) -> None:
    check_value(ArgType("a", type_name), value)


@pytest.mark.parametrize(
    ("type_name", "value"),
    [
        *(("file", bad) for bad in ("a.blend/", "../a.txt", "a", "a.", "a.blend", ".png", "a b.png")),
        *(("path", bad) for bad in ("a/b", "/../etc", "/a//b", "/", "/a.b", "/a\n")),
        *(("extension", bad) for bad in ("png", ".", ".blend5")),
        *(("word", bad) for bad in ("", "a b", "a-b", "ä", "a\n")),
        *(("sentence", bad) for bad in ("", "a;b", "$(id)", 'a"b', "the end\n", "the end\r", "caf\u00e9")),
        *(("natural", bad) for bad in ("", "-1", "1.0", "٣", "1\n", " 1", "+1", "1e3")),
        *(("integer", bad) for bad in ("--1", "-", "1.", "0x1")),
        *(("real", bad) for bad in ("1.", ".5", "1e5", "nan", "inf", "1,5")),
    ],
)
def test_values_that_break_the_rule_of_their_type_are_refused(type_name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        check_value(ArgType("a", type_name), value)
    assert refused.value.message == f"Value {value} must be of type {type_name}."


def test_the_databases_own_rule_replaces_the_types() -> None:
    only_two = ArgType("format", "word", r"PNG|OPEN_EXR")
    check_value(only_two, "PNG")
    for bad in ("JPEG", "PNGX", "xPNG", "PNG\n"):
        with pytest.raises(InvalidRequest, match="must be of type word"):
            check_value(only_two, bad)
    check_value(ArgType("a", "whatever", r"^[a-c]+$"), "abc")


@pytest.mark.parametrize("regex", [r"(?s).*", r"(.|\n)*", r"[\s\S]+"])
def test_no_rule_lets_a_line_break_at_the_end_a_nul_or_other_alphabets_through(regex: str) -> None:
    for bad in ("a\n", "a\r", "a\0b", "ä", "a" * (MAX_VALUE + 1)):
        with pytest.raises(InvalidRequest):
            check_value(ArgType("a", "sentence", regex), bad)


@pytest.mark.parametrize(
    "row", [ArgType("a", "foo"), ArgType("a", ""), ArgType("a", "foo", "("), ArgType("a", "foo", "a{9999999999999}")]
)
def test_a_wrong_row_is_our_fault_not_the_users(row: ArgType) -> None:
    with pytest.raises(RenderOnlineError) as refused:
        check_value(row, "1")
    assert refused.value.status == 500
    assert refused.value.reason_code == "invalid_argtype"
    assert refused.value.message == f"Type {row.type} is not valid for RenderOnline."


@given(st.sampled_from(sorted(TYPES)), texts)
def test_a_type_takes_exactly_what_its_rule_matches_wholly(type_name: str, value: str) -> None:
    expected = (
        re.fullmatch(TYPES[type_name], value, re.ASCII) is not None
        and not value.endswith(("\n", "\r"))
        and value.isascii()
    )
    try:
        check_value(ArgType("a", type_name), value)
        taken = True
    except InvalidRequest:
        taken = False
    assert taken == expected


def test_a_template_is_filled_word_by_word() -> None:
    template = split('blender -b "$RENDERONLINE:@uploaded_file" -s $RENDERONLINE:start -e $RENDERONLINE:start_frame -a')
    values = {"@uploaded_file": "/srv/my scene.blend", "start": "1", "start_frame": "24"}
    assert fill(template, values) == ("blender", "-b", "/srv/my scene.blend", "-s", "1", "-e", "24", "-a")


def test_placeholders_are_named() -> None:
    words = ("-o", "$RENDERONLINE:@output_directory/f_####", "$RENDERONLINE:a$RENDERONLINE:b_1", "$RENDERONLINE:", "x")
    assert placeholders(words) == {"@output_directory", "a", "b_1"}


def test_a_placeholder_inside_a_longer_name_is_not_a_placeholder() -> None:
    with pytest.raises(InvalidRequest, match="start_frame is missing") as refused:
        fill(("$RENDERONLINE:start_frame",), {"start": "1"})
    assert refused.value.reason_code == "missing_argument"


@pytest.mark.parametrize("word", ["$RENDERONLINE:", "$RENDERONLINE:-x", "$RENDERONLINE:@", "a$RENDERONLINE: b"])
def test_a_placeholder_without_a_name_never_reaches_the_renderer(word: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        fill((word,), {"x": "1"})
    assert refused.value.reason_code == "bad_template"


@pytest.mark.parametrize("value", ["--python", "-P", "-", "--", "+Q0", "-x.txt", "-1x", "-1 -P"])
def test_a_value_never_becomes_a_flag(value: str) -> None:
    with pytest.raises(InvalidRequest, match="begins like an option"):
        fill(("$RENDERONLINE:a",), {"a": value})


def test_numbers_paths_and_the_templates_own_flags_are_no_smuggled_flags() -> None:
    values = {"a": "-5", "b": "-1.5", "c": "/srv/x", "d": "--weird", "e": ""}
    assert fill(("$RENDERONLINE:a", "$RENDERONLINE:b", "$RENDERONLINE:c"), values) == ("-5", "-1.5", "/srv/x")
    assert fill(("-d$RENDERONLINE:d", "--set=$RENDERONLINE:d", "-v"), values) == ("-d--weird", "--set=--weird", "-v")
    assert fill(("x$RENDERONLINE:d",), values) == ("x--weird",)
    assert fill(("$RENDERONLINE:e",), values) == ("",)
    with pytest.raises(InvalidRequest):  # the flag begins behind an empty value
        fill(("$RENDERONLINE:e$RENDERONLINE:d",), values)


@pytest.mark.parametrize("value", ["-0", "-9", "-1.5"])
@pytest.mark.parametrize(("type_name", "regex"), [("sentence", ""), ("file", ""), ("sentence", r"[0-9a-z.-]+")])
def test_a_text_is_no_flag_even_where_it_looks_like_a_number(type_name: str, regex: str, value: str) -> None:
    argtypes = {"a": ArgType("a", type_name, regex), "n": ArgType("n", "real"), "own": ArgType("own", "ours", ".*")}
    values = {"a": value, "n": value, "own": value}
    check_options(("x$RENDERONLINE:a", "-$RENDERONLINE:a", "$RENDERONLINE:n", "$RENDERONLINE:own"), values, argtypes)
    check_options(("$RENDERONLINE:@uploaded_file",), values, argtypes)
    for word in ("$RENDERONLINE:a", "$RENDERONLINE:a$RENDERONLINE:n"):
        with pytest.raises(InvalidRequest, match="begins like an option"):
            check_options((word,), values, argtypes)


def test_a_value_with_nul_can_not_be_an_argument() -> None:
    with pytest.raises(InvalidRequest, match="NUL"):
        fill(("$RENDERONLINE:a",), {"a": "x\0y"})


@given(st.lists(st.tuples(texts.filter(lambda text: "$" not in text), names), max_size=5), st.data())
def test_no_value_becomes_a_second_word_a_flag_or_a_placeholder(
    pieces: list[tuple[str, str]], data: st.DataObject
) -> None:
    template = [f"{literal}$RENDERONLINE:{name}" for literal, name in pieces]
    values = {name: data.draw(texts) for _, name in pieces}
    assume(not any("\0" in literal for literal, _ in pieces))
    try:
        filled = fill(template, values)
    except InvalidRequest:
        return
    assert len(filled) == len(template)
    # Each word is the template's text and the value, verbatim: nothing in a value was looked at as a placeholder.
    assert filled == tuple(literal + values[name] for literal, name in pieces)
    for (literal, _), word in zip(pieces, filled, strict=True):
        is_number = re.fullmatch(r"[+-]?\d+(\.\d+)?", word, re.ASCII) is not None
        assert not word.startswith(("-", "+")) or literal.startswith(("-", "+")) or is_number
    # And it stays so on the way through a v1 node's one string.
    assert split(join(filled)) == filled


@pytest.mark.parametrize("first", ["blender", "Blender", "BLENDER.EXE", "blender.exe"])
def test_a_first_word_that_is_the_programs_own_name_is_dropped(first: str) -> None:
    assert strip_program((first, "-b"), ("blender", "blender-5.1")) == ("-b",)


def test_only_the_first_word_is_dropped_and_only_once() -> None:
    assert strip_program(("blender", "blender", "-b"), ("blender",)) == ("blender", "-b")
    assert strip_program(("-b", "blender"), ("blender",)) == ("-b", "blender")
    assert strip_program(("blender-5.1", "-b"), ("blender", "blender-5.1")) == ("-b",)
    assert strip_program(("", "-b"), ("", "blender")) == ("", "-b")
    assert strip_program((), ("blender",)) == ()
