"""The Microsoft C-runtime rules of `Arguments`."""

import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from renderonline.farm.arguments import join, split

words = st.lists(st.text(alphabet=st.one_of(st.sampled_from('\\" \tab'), st.characters(exclude_categories=["Cs"]))))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        (" \t ", ()),
        ("-b /srv/a.blend -s 1 -e 10 -a", ("-b", "/srv/a.blend", "-s", "1", "-e", "10", "-a")),
        # The examples of Microsoft's own documentation.
        (r'"a b c" d e', ("a b c", "d", "e")),
        (r'"ab\"c" "\\" d', ('ab"c', "\\", "d")),
        (r'a\\\b d"e f"g h', (r"a\\\b", "de fg", "h")),
        (r"a\\\"b c d", (r"a\"b", "c", "d")),
        (r'a\\\\"b c" d e', (r"a\\b c", "d", "e")),
        (r'a"b"" c d', ('ab" c d',)),
        # Corners.
        ('""', ("",)),
        ('"" ""', ("", "")),
        ('"never closed', ("never closed",)),
        ("a\\", ("a\\",)),
        ("one\ntwo", ("one\ntwo",)),
        ("'a b'", ("'a", "b'")),
        ("$HOME `id` *.png;rm", ("$HOME", "`id`", "*.png;rm")),
    ],
)
def test_text_is_split_by_the_rules_of_the_microsoft_runtime(text: str, expected: tuple[str, ...]) -> None:
    assert split(text) == expected


@given(words)
@example(["a b\\"])
@example(["\\"])
@example(["", '"'])
def test_split_is_the_inverse_of_join(given_words: list[str]) -> None:
    assert split(join(given_words)) == tuple(given_words)


@given(words)
def test_join_writes_what_the_standard_library_writes(given_words: list[str]) -> None:
    assert join(given_words) == subprocess.list2cmdline(given_words)


@given(words)
def test_split_is_the_inverse_of_the_standard_library_too(given_words: list[str]) -> None:
    assert split(subprocess.list2cmdline(given_words)) == tuple(given_words)


@given(st.text(alphabet='\\" \tab'))
def test_any_text_is_split_into_words_that_survive_another_round(text: str) -> None:
    assert split(join(split(text))) == split(text)
