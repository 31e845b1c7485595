"""What engines print: Blender 3.4's and the module's lines, POV-Ray's, and lines that try to be clever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.engines.command_lines import OutputReader, OutputReading, failure_of_exit, seconds
from renderonline.engines.definition import Pattern, ReadingRules, parse_definition, shipped
from renderonline.farm.settling import FINAL_FAILURES

BLENDER = parse_definition(shipped()["blender"]).reading
POVRAY = parse_definition(shipped()["povray"]).reading


def read(rules: ReadingRules, frames: tuple[int, ...], lines: str) -> list[OutputReading]:
    reader = OutputReader(rules, frames)
    return [reader.line(line) for line in lines.strip().splitlines()]


def test_blenders_own_lines_move_the_bar() -> None:
    readings = read(
        BLENDER,
        (3, 5),
        """
Read blend: "/x/a.blend"
Fra:3 Mem:12.53M (Peak 12.79M) | Time:00:00.09 | Mem:3.41M, Peak:3.41M | Scene, ViewLayer | Sample 0/8
Fra:3 Mem:13.42M (Peak 13.42M) | Time:00:00.15 | Remaining:00:00.44 | Mem:4.29M | Scene, ViewLayer | Sample 2/8
Saved: '/o/frame_0003.png'
 Time: 00:00.68 (Saving: 00:00.16)
Fra:5 Mem:13.42M (Peak 13.42M) | Time:00:00.15 | Remaining: 01:02.50 | Scene, ViewLayer | Sample 4/8
00:01.407  render           | Saved: '/o/frame_0005.png'
""",
    )
    assert [reading.fraction for reading in readings] == [None, 0.0, 0.125, 0.5, None, 0.75, 1.0]
    assert [reading.frame for reading in readings] == [None, 3, 3, 3, None, 5, 5]
    assert readings[2].remaining_s == 0.44
    assert readings[5].remaining_s == 62.5
    assert readings[3].saved == "/o/frame_0003.png"
    assert readings[6].saved == "/o/frame_0005.png"
    assert readings[1].progress
    assert not readings[0].progress


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Error: Cannot read file '/x.blend': No such file or directory", "scene"),
        ("Error: Failed to read blend file '/x.blend': Missing DNA block", "scene"),
        ("Error: Loading \"/x.blend\" failed: Failed to read blend file '/x.blend': Missing DNA block", "scene"),
        ("Error: File format is not supported in file '/x.blend'", "scene"),
        ("Error: engine not found 'NOPE'", "scene"),
        ("Can't find scene: 'NOPE'", "scene"),
        ("Error: Can't find scene: 'NOPE'", "scene"),
        ("Error: Cannot render, no camera", "scene"),
        ("Error: Render error (No space left on device) cannot save: '/o/f.png'", "no_space"),
        ("Error: Render error (Permission denied) cannot save: '/o/f.png'", "bad_output"),
        ("System is out of GPU memory", "out_of_memory"),
        ("Malloc returns null: len=1 in x, total 2", "out_of_memory"),
    ],
)
def test_blenders_failures_are_seen_even_when_it_ends_with_0(line: str, kind: str) -> None:
    (reading,) = read(BLENDER, (1,), line)
    assert reading.failure == (kind, line)


def test_a_size_that_no_computer_has_is_a_fault_of_blender_and_no_lack_of_memory() -> None:
    line = "Calloc returns null: len=13655892609372 in imb_addrectImBuf, total 43655968"
    assert [one.failure for one in read(BLENDER, (1,), line)] == [None]


@pytest.mark.parametrize(
    "line",
    [
        "Warning: Unable to open '/x/lib.blend': No such file or directory",
        "Info: Cannot find lib '/x/lib.blend'",
        "Info: LIB: Object: 'Cube' missing from '/x/lib.blend', parent 'MAScene'",
        "Warning: 1 libraries and 2 linked data-blocks are missing (including 0 ObjectProxy), please check",
    ],
)
def test_a_missing_library_is_a_warning(line: str) -> None:
    (reading,) = read(BLENDER, (1,), line)
    assert reading.warning == line.removeprefix("Warning: ")
    assert reading.failure is None


def test_what_the_launcher_warns_of_is_a_warning_and_what_changes_no_picture_is_none() -> None:
    told = read(BLENDER, (1,), "Warning: The node 'Out' would write over other files.")
    assert told[0].warning == "The node 'Out' would write over other files."
    harmless = """
Warning: region type 4 missing in space type "Info" (id: 7) - removing region
Warning: Falling back to the standard locale ("C")
"""
    assert [reading.warning for reading in read(BLENDER, (1,), harmless)] == [None, None]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("Failed to parse command-line option", "arguments"),
        ("POVMSObject_Set failed, out of memory", "out_of_memory"),
        ("File 'x.pov' line 3: Parse Error: Undeclared identifier", "scene"),
    ],
)
def test_povrays_failures_have_their_class(line: str, kind: str) -> None:
    assert OutputReader(POVRAY, (1,)).line(line).failure == (kind, line)


def test_blenders_exit_code_for_wrong_arguments_is_final() -> None:
    assert failure_of_exit(BLENDER, 2) in FINAL_FAILURES


def test_povrays_lines_count_from_one_within_the_chunk() -> None:
    readings = read(
        POVRAY,
        (8, 9),
        """
Rendering frame 1 of 2
Rendered 7200 of 14400 pixels (50%)
Rendered 14400 of 14400 pixels (100%)
Rendering frame 2 of 2
Rendered 7200 of 14400 pixels (50%)
Rendering frame 3 of 2
File 's.pov' line 1: Parse Error: Expected 'object or directive', undeclared
Parse Warning: assumed_gamma not specified
""",
    )
    assert [reading.fraction for reading in readings] == [0.0, 0.25, 0.5, 0.5, 0.75, 0.75, None, None]
    assert [reading.frame for reading in readings] == [8, 8, 8, 9, 9, 9, None, None]
    assert readings[6].failure is not None
    assert readings[6].failure[0] == "scene"
    assert readings[7].warning is not None


WRAPPED = """
File 't.pov' line 1: Possible Parse Error: Non-ASCII character has been replaced
 by space character.
File 't.pov' line 1: Possible Parse Error: Cannot find file 'abcdefghijabcdefghi
jabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghijabcdefghi
j.inc', even after trying to append file type extension.
File 't.pov' line 1: Parse Error: Cannot open include file two  spaces here and 
 there in   the name of a very long file  with   many spaces.inc.
Fatal error in parser: Cannot parse input.
Rendered 1 of 4 pixels (25%)
"""  # noqa: W291 (as POV-Ray 3.7 prints it)


def test_lines_that_povray_wraps_are_whole_in_the_reason() -> None:
    reader = OutputReader(POVRAY, (1,))
    readings = [*reader.lines(WRAPPED.strip().splitlines()), *reader.rest()]
    failures = [reading.message for reading in readings if reading.failure]
    assert failures[0].endswith(
        "file two  spaces here and  there in   the name of a very long file  with   many spaces.inc."
    )
    assert failures[1] == "Fatal error in parser: Cannot parse input."
    warnings = [reading.warning for reading in readings if reading.warning]
    assert (
        warnings[0]
        == "File 't.pov' line 1: Possible Parse Error: Non-ASCII character has been replaced by space character."
    )
    assert str(warnings[1]).endswith("bcdefghij.inc', even after trying to append file type extension.")
    assert readings[-1].fraction == 0.25


def test_a_line_that_may_go_on_is_held_and_a_short_one_told_at_once() -> None:
    reader = OutputReader(POVRAY, (1,))
    long = "File 't.pov' line 1: Parse Error: Expected 'object', undeclared identifier found"
    assert next(reader.lines(["Rendered 2 of 4 pixels (50%)"])).fraction == 0.5
    assert not [*reader.lines([long])]
    assert [reading.failure for reading in reader.rest()] == [("scene", long)]
    assert not [*reader.rest()]
    assert [*OutputReader(BLENDER, (1,)).lines([long])]


@given(st.lists(st.text(alphabet="ab c", max_size=170)))
def test_joined_lines_are_bounded_and_lose_nothing(lines: list[str]) -> None:
    reader = OutputReader(ReadingRules(warnings=(Pattern("(.*)"),), wrapped=80), (1,))
    told = [reading.warning or "" for reading in (*reader.lines(lines), *reader.rest())]
    assert "".join("".join(told).split()) == "".join("".join(lines).split())[: sum(map(len, told))]
    assert all(len(one) <= 2_000 for one in told)


def test_colours_of_a_terminal_are_not_part_of_the_line() -> None:
    (reading,) = read(POVRAY, (1,), "\x1b[34m\x1b[40m\x1b(BRendered 1 of 4 pixels (25%)\x1b[0m")
    assert reading.fraction == 0.25


def test_a_frame_that_is_not_in_the_chunk_changes_nothing() -> None:
    readings = read(BLENDER, (5,), "Fra:9 x\nFra:99999999999999999999999999 x\nFra:5 Sample 1/2")
    assert [reading.fraction for reading in readings] == [0.0, 0.0, 0.5]


def test_without_frames_progress_is_of_the_whole() -> None:
    rules = ReadingRules(progress=(Pattern(r"progress (\S+)", "fraction"), Pattern(r"memory (\S+)", "memory")))
    readings = read(rules, (), "progress 0.25\nprogress nan\nprogress 7\nmemory 5M\nhello")
    assert [reading.fraction for reading in readings] == [0.25, 0.25, 1.0, 1.0, None]
    assert readings[0].frame is None
    assert OutputReading() == readings[4]


def test_a_group_that_took_no_part_is_no_number() -> None:
    rules = ReadingRules(progress=(Pattern(r"p(\d)?", "percent"), Pattern(r"s(\d+)/(\d+)", "samples")))
    assert [reading.fraction for reading in read(rules, (), "p\ns3/0\ns1/2")] == [0.0, 0.0, 0.5]


@given(st.lists(st.text(max_size=3_000) | st.from_regex(r"Fra:\d+ .*Sample \d+/\d+", fullmatch=True), max_size=20))
def test_whatever_is_printed_progress_stays_between_0_and_1_and_never_goes_back(lines: list[str]) -> None:
    reader = OutputReader(BLENDER, (1, 2, 3))
    last = 0.0
    for line in lines:
        fraction = reader.line(line).fraction
        if fraction is not None:
            assert last <= fraction <= 1.0
            last = fraction


@pytest.mark.parametrize(
    ("code", "failure"),
    [(1, "error"), (2, "arguments"), (-9, "out_of_memory"), (137, "out_of_memory"), (139, "crash"), (-11, "crash")],
)
def test_exit_codes_have_a_class(code: int, failure: str) -> None:
    assert failure_of_exit(BLENDER, code) == failure


def test_a_definition_names_its_own_exit_codes_also_for_signals() -> None:
    rules = ReadingRules(exit_codes={"139": "scene", "3": "no_license"})
    assert failure_of_exit(rules, -11) == "scene"
    assert failure_of_exit(rules, 139) == "scene"
    assert failure_of_exit(rules, 3) == "no_license"


@pytest.mark.parametrize(
    ("text", "value"),
    [("12.5", 12.5), ("01:02.50", 62.5), ("1:00:01", 3601.0), ("x", None), ("1:", None), ("1e999", None)],
)
def test_times_are_read_in_seconds(text: str, value: float | None) -> None:
    assert seconds(text) == value
