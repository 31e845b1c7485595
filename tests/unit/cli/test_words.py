"""What the command line makes of what people type, and how it prints what others wrote."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.cli import terminal
from renderonline.cli.admin_commands import split_address
from renderonline.cli.farm_commands import engine_programs
from renderonline.cli.submit import guess_engine
from renderonline.cli.terminal import pairs
from renderonline.farm.errors import InvalidRequest

ENGINES = [
    {"engine_id": 1, "name": "blender", "extensions": [".blend"], "is_enabled": True},
    {"engine_id": 2, "name": "povray", "extensions": [".pov", ".ini"], "is_enabled": True},
    {"engine_id": 3, "name": "old", "extensions": [".pov"], "is_enabled": False},
]


def test_arguments_are_words_with_an_equals_sign() -> None:
    assert pairs("--arg", ["width=640", "title=a=b", "empty="], "ID=VALUE") == {
        "width": "640",
        "title": "a=b",
        "empty": "",
    }


@pytest.mark.parametrize("words", [["width"], ["=1"], ["a=1", "a=2"]])
def test_other_arguments_are_refused(words: list[str]) -> None:
    with pytest.raises(InvalidRequest):
        pairs("--arg", words, "ID=VALUE")


def test_engine_is_guessed_from_the_extension_in_any_letter_case() -> None:
    assert guess_engine(ENGINES, Path("a/Shot.BLEND")) == "blender"
    assert guess_engine(ENGINES, Path("x.ini")) == "povray"


def test_disabled_engine_is_not_guessed() -> None:
    assert guess_engine(ENGINES, Path("x.pov")) == "povray"


def test_unknown_extension_names_the_engines() -> None:
    with pytest.raises(InvalidRequest, match="blender, old, povray"):
        guess_engine(ENGINES, Path("x.max"))


def test_two_engines_for_one_extension_ask_for_a_choice() -> None:
    both = [{**engine, "is_enabled": True} for engine in ENGINES]
    with pytest.raises(InvalidRequest, match=r"povray, old.*--engine"):
        guess_engine(both, Path("x.pov"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("10.0.0.1", ("10.0.0.1", 5001)),
        ("10.0.0.1:6000", ("10.0.0.1", 6000)),
        ("::1", ("::1", 5001)),
        ("[::1]:7", ("::1", 7)),
        ("[::1]", ("::1", 5001)),
    ],
)
def test_address_may_carry_its_port(text: str, wanted: tuple[str, int]) -> None:
    assert split_address(text, 5001) == wanted


@pytest.mark.parametrize("text", ["", ":5001", "10.0.0.1:port"])
def test_bad_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        split_address(text, 5001)


def test_engine_programs_become_the_setting_of_the_settings_file() -> None:
    assert engine_programs(["blender=/opt/b=1/blender"]) == [
        {"EngineId": "blender", "ExecutablePath": "/opt/b=1/blender"}
    ]
    for word in ("blender", "blender=", "=/opt/blender"):
        with pytest.raises(InvalidRequest, match="NAME=PATH"):
            engine_programs([word])


@given(st.text())
def test_no_text_steers_the_terminal(text: str) -> None:
    assert not set(terminal.plain(text)) & {"\x1b", "\r", "\x07", "\x08", "\x9b", "\x00", "\u202e"}


def test_markup_in_names_is_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table({"NAME": "name"}, [{"name": "[red]x[/red] [/nonsense]"}])
    assert "[red]x[/red] [/nonsense]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1400, "1.4 KB"), (2.5e9, "2.5 GB"), (7e15, "7000.0 TB")]
)
def test_sizes_are_for_people(number: float, text: str) -> None:
    assert terminal.size(number) == text


def test_strange_moment_is_shown_as_it_is() -> None:
    assert terminal.when("yesterday") == "yesterday"
    assert terminal.when(None) == ""
