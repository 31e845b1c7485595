"""From a definition and values to a command: words stay words, chunks get their frames, files get their names."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.engines.command_lines import (
    Command,
    OutputReader,
    argtypes,
    build,
    chunks_of,
    complete,
    expected_outputs,
    frame_of_name,
    frames_of,
    frames_pattern,
    reading_of,
    values_of_frames,
    values_of_scene,
)
from renderonline.engines.definition import EngineDefinition, parse_definition, shipped, template_words
from renderonline.farm.arguments import ArgType
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.frames import FrameRange
from renderonline.farm.result_names import padded

BLENDER = parse_definition(shipped()["blender"])
POVRAY = parse_definition(shipped()["povray"])
STILL = EngineDefinition(name="still", label="Still", extensions=(".x",), template="still $RENDERONLINE:@uploaded_file")


def order(definition: EngineDefinition, values: dict[str, str], chunk: FrameRange | None, frames: list[int]) -> Command:
    return build(
        definition,
        template_words(definition),
        complete(definition, values),
        chunk=chunk,
        task_frames=frames,
        scene="/farm/7/scene one.blend",
        output_directory="/farm/.attempts/9",
    )


def test_blender_gets_its_words_in_the_order_it_wants() -> None:
    command = order(BLENDER, {"end_frame": "10"}, FrameRange(3, 7, 2), list(range(1, 11)))
    words = "-b --factory-startup --disable-autoexec SCENE -o /farm/.attempts/9/frame_#### -F PNG -x 1 -t 0"
    words += " -s 3 -e 7 -j 2 -a"
    assert command.argv == tuple("/farm/7/scene one.blend" if word == "SCENE" else word for word in words.split())
    assert [output.name for output in command.expected] == ["frame_0003.png", "frame_0005.png", "frame_0007.png"]
    assert command.frames == (3, 5, 7)


@pytest.mark.parametrize(("format_", "name"), [("OPEN_EXR", "frame_12345.exr"), ("JPEG", "frame_12345.jpg")])
def test_the_format_decides_the_extension(format_: str, name: str) -> None:
    frames = {"start_frame": "12345", "end_frame": "12345", "format": format_}
    command = order(BLENDER, frames, FrameRange(12345, 12345), [12345])
    assert [output.name for output in command.expected] == [name]


def test_a_frame_of_several_files_is_the_first_ones() -> None:
    assert values_of_scene(BLENDER, {"view": "_L", "width": 9, "start": 3}) == {"view": "_L", "start_frame": "3"}
    assert values_of_scene(BLENDER, {"view": ".left eye"}) == {"view": ".left eye"}
    values = {"format": "OPEN_EXR", "view": "_L"}
    assert frames_pattern(BLENDER, values, (1,)) == "frame_####_L.exr"
    assert [one.name for one in expected_outputs(BLENDER, values, (-2,), (-2,))] == ["frame_-0002_L.exr"]
    assert frame_of_name("frame_####_L.exr", "frame_0007_L.exr") == 7


def test_every_choice_of_blenders_format_has_an_extension() -> None:
    formats = next(argument for argument in BLENDER.arguments if argument.id == "format").choices
    for choice in formats:
        (output,) = expected_outputs(BLENDER, {"format": choice}, (1,), (1,))
        assert re.fullmatch(r"frame_0001\.[a-z0-9]{3,4}", output.name)


def test_povray_keeps_the_tasks_clock_and_pads_like_the_tasks_last_frame() -> None:
    command = order(POVRAY, {"end_frame": "120"}, FrameRange(8, 9), list(range(1, 121)))
    assert {"+KFI1", "+KFF120", "+SF8", "+EF9", '+L"/farm/7"', '+I"/farm/7/scene one.blend"'} <= set(command.argv)
    assert [output.name for output in command.expected] == ["frame_008.png", "frame_009.png"]


def test_a_single_frame_of_povray_is_an_animation_of_two_because_a_still_has_no_number() -> None:
    command = order(POVRAY, {}, FrameRange(1, 1), [1])
    assert {"+KFI1", "+KFF2", "+SF1", "+EF1"} <= set(command.argv)
    assert [output.name for output in command.expected] == ["frame_1.png"]
    nine = order(POVRAY, {"start_frame": "9", "end_frame": "9"}, FrameRange(9, 9), [9])
    assert [output.name for output in nine.expected] == ["frame_09.png"]


def test_pictures_must_have_the_size_that_the_values_ask_for() -> None:
    rules = reading_of(POVRAY, complete(POVRAY, {"width": "640"}))
    assert (rules.width, rules.height) == (640, 360)
    assert reading_of(POVRAY, {"width": "9" * 9, "height": "1"}) == POVRAY.reading
    blender = parse_definition(shipped()["blender"])
    assert reading_of(blender, complete(blender, {})) == blender.reading


def test_a_whole_task_is_rendered_when_there_is_no_chunk() -> None:
    command = order(BLENDER, {"start_frame": "1", "end_frame": "9", "frame_step": "4"}, None, [1, 5, 9])
    assert command.argv[-7:] == ("-s", "1", "-e", "9", "-j", "4", "-a")
    assert [output.frame for output in command.expected] == [1, 5, 9]


def test_an_engine_with_v1s_template_alone_has_no_frames_and_no_expected_files() -> None:
    command = build(
        None,
        ("-i", "$RENDERONLINE:@uploaded_file", "-o", "$RENDERONLINE:@output_directory", "$RENDERONLINE:start"),
        {"start": "4"},
        chunk=None,
        task_frames=(),
        scene="/f/a.x",
        output_directory="/o",
    )
    assert command.argv == ("-i", "/f/a.x", "-o", "/o", "4")
    assert command.expected == ()
    assert command.frames == ()


def test_an_engine_without_frames_gives_one_command() -> None:
    command = order(STILL, {}, None, [])
    assert command.argv == ("/farm/7/scene one.blend",)
    assert command.expected == ()


def test_values_can_not_replace_what_the_farm_gives() -> None:
    command = build(
        None, ("$RENDERONLINE:@uploaded_file",), {"@uploaded_file": "/etc/passwd"},
        chunk=None, task_frames=(), scene="/f/a.x", output_directory="/o",
    )  # fmt: skip
    assert command.argv == ("/f/a.x",)


def test_environment_of_the_engine_is_filled_in_too() -> None:
    text = shipped()["povray"].replace(
        'split = "frames"', 'split = "frames"\nenvironment = {HOME = "$RENDERONLINE:@scene_directory"}'
    )
    command = order(parse_definition(text), {}, FrameRange(1, 1), [1])
    assert command.environment == {"HOME": "/farm/7"}


def test_defaults_are_filled_in_and_the_rest_must_be_named() -> None:
    values = complete(BLENDER, {"end_frame": "5"})
    assert list(values) == [argument.id for argument in BLENDER.arguments]
    assert values["start_frame"] == "1"
    with pytest.raises(InvalidRequest, match="has no argument nope; it has: start_frame"):
        complete(BLENDER, {"nope": "1"})
    with pytest.raises(InvalidRequest, match="must be one of PNG"):
        complete(BLENDER, {"format": "FFMPEG"})
    needy = parse_definition(shipped()["blender"].replace('default = "1"', ""))
    with pytest.raises(InvalidRequest, match="needs a value for argument start_frame"):
        complete(needy, {})


def test_argtypes_are_the_rows_that_the_database_needs() -> None:
    assert ArgType("start_frame", "natural", "") in argtypes(BLENDER)


def test_the_program_s_own_name_is_dropped_from_the_template() -> None:
    assert template_words(STILL) == ("$RENDERONLINE:@uploaded_file",)


def test_frames_come_from_the_values() -> None:
    assert frames_of(BLENDER, complete(BLENDER, {"start_frame": "2", "end_frame": "9", "frame_step": "3"})) == (2, 5, 8)
    assert frames_of(POVRAY, complete(POVRAY, {"end_frame": "3"})) == (1, 2, 3)
    assert frames_of(STILL, {}) == ()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"start_frame": "5", "end_frame": "1"}, "before the first frame"),
        ({"start_frame": "1", "end_frame": "5", "frame_step": "0"}, "step must be 1 or more"),
        ({"start_frame": "1", "end_frame": "9999999"}, "at most 100000 frames"),
        ({"start_frame": "1", "end_frame": "99999999999"}, "must be a frame number"),
        ({"start_frame": "x"}, "must be a frame number"),
    ],
)
def test_impossible_frames_are_refused(values: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        frames_of(BLENDER, complete(BLENDER, values))


def test_frames_need_their_arguments() -> None:
    with pytest.raises(InvalidRequest, match="argument start_frame is missing"):
        frames_of(BLENDER, {})


def test_a_frame_list_sets_the_frame_arguments() -> None:
    assert values_of_frames(BLENDER, {}, (9, 1, 5)) == {"start_frame": "1", "end_frame": "9", "frame_step": "4"}
    assert values_of_frames(BLENDER, {}, (1, 2, 20))["frame_step"] == "1"
    for one in (FrameRange(7, 7), FrameRange(-3, 9), FrameRange(2, 4, 2), FrameRange(1, 20, 6)):
        assert values_of_frames(BLENDER, {}, one) == values_of_frames(BLENDER, {}, tuple(one.frames()))
    assert values_of_frames(POVRAY, {"width": "8"}, (4,)) == {"width": "8", "start_frame": "4", "end_frame": "4"}
    with pytest.raises(InvalidRequest, match="does not render frames"):
        values_of_frames(STILL, {}, (1,))
    with pytest.raises(InvalidRequest, match="at least one frame"):
        values_of_frames(BLENDER, {}, ())


def test_an_engine_without_a_step_gets_only_ranges_without_gaps() -> None:
    assert chunks_of(BLENDER, (1, 3, 5), 0) == (FrameRange(1, 5, 2),)
    assert chunks_of(POVRAY, (1, 3, 5), 0) == (FrameRange(1, 1), FrameRange(3, 3), FrameRange(5, 5))
    assert chunks_of(POVRAY, (1, 2, 3, 4, 6, 8), 0) == (
        FrameRange(1, 4),
        FrameRange(6, 6),
        FrameRange(8, 8),
    )


def test_expected_files_of_an_engine_that_gives_one_file() -> None:
    film = parse_definition(
        'name="film"\nlabel="F"\nextensions=[".x"]\ntemplate="$RENDERONLINE:@uploaded_file"\n[outputs]\npattern="film.mp4"'
    )
    assert [(output.name, output.frame) for output in expected_outputs(film, {}, (), ())] == [("film.mp4", None)]
    assert expected_outputs(BLENDER, {"format": "PNG"}, (), ()) == ()


@pytest.mark.parametrize(
    ("frame", "width", "text"), [(7, 4, "0007"), (-7, 4, "-0007"), (12345, 4, "12345"), (0, 1, "0")]
)
def test_frame_numbers_are_padded_as_blender_does(frame: int, width: int, text: str) -> None:
    assert padded(frame, width) == text


@given(
    scene=st.text(st.characters(exclude_characters="\0"), min_size=1).map(lambda name: f"/farm/{name}"),
    values=st.fixed_dictionaries(
        {"format": st.sampled_from(["PNG", "$RENDERONLINE:threads"]), "threads": st.text("0123456789", min_size=1)}
    ),
    first=st.integers(0, 10_000),
    count=st.integers(1, 50),
)
def test_no_value_adds_a_word_or_is_looked_into(scene: str, values: dict[str, str], first: int, count: int) -> None:
    chunk = FrameRange(first, first + count - 1)
    words = template_words(BLENDER)
    command = build(
        BLENDER, words, {**complete(BLENDER, {}), **values},
        chunk=chunk, task_frames=tuple(chunk.frames()), scene=scene, output_directory="/o",
    )  # fmt: skip
    assert len(command.argv) == len(words)
    assert command.argv[3] == scene
    assert command.argv[command.argv.index("-F") + 1] == values["format"]
    assert len(command.expected) == count
    assert len({output.name for output in command.expected}) == count


def test_the_frame_of_a_file_is_found_by_its_name() -> None:
    named = [frame_of_name("frame_####.png", name) for name in ("frame_0012.png", "frame_-0005.png", "frame_12345.png")]
    assert named == [12, -5, 12345]
    others = ("frame_12.png", "frame_0012_L.png", "frame_0012.jpg", "frame_.png", "frame_####.png", "mask_0012.png")
    assert {frame_of_name("frame_####.png", name) for name in others} == {None}
    assert frame_of_name("", "frame_0001.png") is None
    assert frame_of_name("film.mp4", "film.mp4") is None


def test_a_strict_task_fails_where_a_file_is_missing() -> None:
    line = "Warning: tex/wood.png is not there"
    reader = OutputReader(reading_of(BLENDER, {}), ())
    assert (reader.line(line).warning, reader.line(line).failure) == ("tex/wood.png is not there", None)
    strict = OutputReader(reading_of(BLENDER, {}, strict=True), ())
    assert strict.line(line).failure == ("scene", line)
    assert strict.line("Warning: the picture is dark").warning == "the picture is dark"
