"""From what a client asks for to a task that obeys every rule."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from renderonline.database.submission_rows import EngineRow
from renderonline.engines.command_lines import argtypes as argtypes_of
from renderonline.engines.definition import EngineDefinition, parse_definition, shipped
from renderonline.farm.arguments import ArgType, split
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.needs import Ability, Needs
from renderonline.renderapi.requests import Prepared, SubmitRequest, V1Request, prepare, read_v2
from renderonline.renderapi.routes.existing import read_v1

BLENDER = parse_definition(shipped()["blender"])
POVRAY = parse_definition(shipped()["povray"])


def row(definition: EngineDefinition | None, template: str = "") -> EngineRow:
    if definition is None:
        return EngineRow("maya", ".ma", "/files", template, engine_id=7)
    return EngineRow(definition.name, definition.extensions[0], "/files", definition.template, "toml", engine_id=1)


def prepared(
    definition: EngineDefinition | None = BLENDER,
    *,
    template: str = "",
    file_name: str = "a.blend",
    argtypes: tuple[ArgType, ...] = (),
    **request: Any,
) -> Prepared:
    rules = {one.argtype_id: one for one in (*(argtypes_of(definition) if definition else ()), *argtypes)}
    kind = SubmitRequest if request.pop("strict", True) else V1Request
    asked = kind(**{"engine": "1", "arguments": {}, **request})
    return prepare(asked, row(definition, template), definition, rules, file_name)


def test_frames_of_the_arguments_are_cut_into_chunks() -> None:
    task = prepared(arguments={"start_frame": "1", "end_frame": "10"})
    assert task.written_frames == "1-10"
    assert [str(one) for one in task.ranges] == ["1-4", "5-8", "9-10"]
    assert task.chunk_size == 4
    assert task.values["format"] == "PNG"


@pytest.mark.parametrize(("value", "linked"), [("", False), ("close up", True), ("K\u00fcche", True)])
def test_what_a_command_line_can_not_say_keeps_a_task_from_v1_machines(value: str, linked: bool) -> None:
    task = prepared(arguments={"camera": value})
    assert task.needs.linked is linked
    assert prepared(frames="-2-1").needs.linked
    told = Ability(1, (("blender", "5.0"),), linked=False).lacks("blender", task.needs)
    assert told.startswith("a v1 machine") is linked


def test_frames_that_are_named_are_cut_into_chunks() -> None:
    task = prepared(frames="1-4,9", chunk_size=2)
    assert task.written_frames == "1-4,9"
    assert (task.values["start_frame"], task.values["end_frame"]) == ("1", "9")
    assert [str(one) for one in task.ranges] == ["1-2", "3-4", "9"]


@pytest.mark.parametrize("argument", ["start_frame", "end_frame", "frame_step"])
def test_frames_that_are_said_twice_are_refused(argument: str) -> None:
    with pytest.raises(InvalidRequest, match=f"The frames are 1-4: argument {argument} would say them again"):
        prepared(frames="1-4", arguments={argument: "7"})


@pytest.mark.parametrize("frames", ["-5--1", "-1048574", "1048574", "-3-3x2"])
def test_blender_gets_negative_frames_and_all_that_it_can_render(frames: str) -> None:
    assert prepared(frames=frames).written_frames == frames


@pytest.mark.parametrize(
    ("definition", "frames", "told"),
    [
        (BLENDER, "1-2,1048575", "Blender renders frames from -1048574 to 1048574, not frame 1048575"),
        (BLENDER, "-1048575-0x1000", "not frame -1048575"),
        (POVRAY, "-5--1", "POV-Ray renders frames from 0 to 2147483645, not frame -5"),
        (POVRAY, "2147483646", "not frame 2147483646"),
    ],
)
def test_frames_that_the_engine_cant_render_are_refused(definition: EngineDefinition, frames: str, told: str) -> None:
    with pytest.raises(InvalidRequest, match=told):
        prepared(definition, file_name=f"a{definition.extensions[0]}", frames=frames)


def test_frames_in_the_arguments_are_held_to_the_same_limit_but_for_v1() -> None:
    asked = {"start_frame": "1048575", "end_frame": "1048575"}
    with pytest.raises(InvalidRequest, match="not frame 1048575"):
        prepared(arguments=asked)
    assert prepared(arguments=asked, strict=False).written_frames == "1048575"


def test_value_that_is_refused_is_named_with_its_argument_but_for_v1() -> None:
    for strict, told in ((True, "Argument start_frame: Value -5 must be of type natural."), (False, "Value -5 must")):
        with pytest.raises(InvalidRequest) as refused:
            prepared(arguments={"start_frame": "-5"}, strict=strict)
        assert refused.value.message.startswith(told)


def test_submitter_adds_needs_to_those_of_the_engine() -> None:
    definition = parse_definition(shipped()["blender"] + '[requirements]\ntags = ["GPU"]\nmemory_mib = 4000\n')
    asked = Needs(engine_version="5.0", tags=("Fast",), memory_mib=2000)
    assert prepared(definition, needs=asked).needs == Needs("5.0", ("fast", "gpu"), "", 4000)
    with pytest.raises(InvalidRequest, match="gpus is a number"):
        prepared(needs=Needs(gpus=-1))


def test_engine_that_knows_no_step_gets_single_frames() -> None:
    task = prepared(POVRAY, file_name="a.pov", frames="1-9x4")
    assert [str(one) for one in task.ranges] == ["1", "5", "9"]


def test_argument_line_is_the_whole_task() -> None:
    task = prepared(file_name="my scene.blend", arguments={"start_frame": "2", "end_frame": "3"})
    line = task.argument_line("/files/1/5")
    words = split(line)
    assert "/files/1/5/my scene.blend" in words
    assert words[words.index("-s") : words.index("-s") + 4] == ("-s", "2", "-e", "3")
    assert "/files/1/5/frame_####" in words


def test_template_of_the_existing_system_drops_the_program_and_keeps_it_in_the_line() -> None:
    task = prepared(
        None,
        template="maya -b $RENDERONLINE:@uploaded_file -s $RENDERONLINE:n",
        file_name="a.ma",
        argtypes=(ArgType("n", "natural"),),
        arguments={"n": "5"},
    )
    assert task.words[0] == "-b"
    assert task.argument_line("/f") == "maya -b /f/a.ma -s 5"
    assert (task.ranges, task.written_frames, task.chunk_size) == ((None,), "", 0)


def test_values_that_the_engine_does_not_use_are_v1s_habit_only() -> None:
    other = (ArgType("other", "word"),)
    task = prepared(arguments={"other": "x"}, argtypes=other, strict=False)
    assert "other" not in task.values
    with pytest.raises(InvalidRequest, match="no argument other"):
        prepared(arguments={"other": "x"}, argtypes=other)


@pytest.mark.parametrize("name", ["a.txt", "a", "blend", "a.blend.txt", "../.txt"])
def test_other_extensions_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"Engine extension \.blend not matching with files extension"):
        prepared(file_name=name)


@pytest.mark.parametrize("name", ["a.blend", "A.BLEND", "x/y.blend"])
def test_the_engines_extension_is_taken_in_any_case(name: str) -> None:
    assert prepared(file_name=name).engine.engine_id == 1


def test_sentence_that_looks_like_an_option_is_refused() -> None:
    sentence = (ArgType("words", "sentence"),)
    asked: dict[str, Any] = {"file_name": "a.ma", "argtypes": sentence, "arguments": {"words": "-9"}}
    assert prepared(None, template="maya -say=$RENDERONLINE:words", **asked)
    with pytest.raises(InvalidRequest, match="begins like an option"):
        prepared(None, template="maya $RENDERONLINE:words", **asked)


def test_frames_for_an_engine_without_frames_are_refused() -> None:
    with pytest.raises(InvalidRequest, match="no frames"):
        prepared(None, template="maya x", file_name="a.ma", frames="1-5")


@given(st.text(max_size=30))
def test_value_stays_one_word_or_is_refused(value: str) -> None:
    template = "maya $RENDERONLINE:v end"
    try:
        task = prepared(
            None,
            template=template,
            file_name="a.ma",
            argtypes=(ArgType("v", "word", ".*"),),
            arguments={"v": value},
        )
    except InvalidRequest:
        return
    assert split(task.argument_line("/f")) == ("maya", value, "end")


@given(st.binary(max_size=100) | st.none())
def test_noise_is_refused_with_a_message(part: bytes | None) -> None:
    for read in (read_v1, read_v2):
        try:
            request = read(part, "")
        except InvalidRequest as error:
            assert error.message  # noqa: PT017
        else:
            assert request.engine is not None


def test_v2_request_is_read_whole() -> None:
    part = json.dumps(
        {
            "engine": 1,
            "arguments": {"a": "b"},
            "frames": "1-5",
            "name": "n",
            "priority": 1,
            "chunk_size": 2,
            "paused": True,
            "waits_for": [3],
            "needs": {"tags": ["GPU"], "memory_mib": 9},
            "running_limit": 4,
            "client_key": "k",
            "unknown": 1,
        }
    ).encode()
    assert read_v2(part, "") == SubmitRequest(
        *("1", {"a": "b"}, "1-5", "n", 1, 2, True, (3,)),
        needs=Needs(tags=("GPU",), memory_mib=9),
        running_limit=4,
        client_key="k",
    )
    assert read_v2(part, "header").client_key == "header"


@pytest.mark.parametrize("key", ["x" * 65, "é", "a\nb"])
def test_keys_that_can_t_be_kept_are_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="idempotency key"):
        read_v2(b'{"engine": 1}', key)


def test_names_of_results_are_filled_with_what_is_known_of_the_task() -> None:
    whole = "{date}/{title}/{file}/{scene}/{camera}/{layer}/{engine}_{name}_{frame:04}"
    task = prepared(frames="1-3", names=whole, name="Walk: cycle", file_name="shots/s1.blend")
    assert task.names("2026-12-01") == "2026-12-01/Walk_ cycle/s1/s1/camera/layer/blender_{name}_{frame:04}"
    facts = {"scenes": [{"name": "Intro", "cameras": ["Left", "Right"], "view_layers": ["FG", "BG"]}]}
    known = replace(task, facts=facts, values={**task.values, "view_layer": "FG"})
    assert known.names("2026-12-01").split("/")[3:6] == ["Intro", "Left", "FG"]


def test_names_of_the_subscription_count_where_the_task_has_none_and_never_refuse_it() -> None:
    task = prepared(frames="1-3")
    assert task.names("2026-12-01") == ""
    assert replace(task, default_names="{file}_{frame:04}").names("2026-12-01") == "a_{frame:04}"
    assert replace(task, default_names="con/{frame}").names("2026-12-01") == ""
    assert replace(prepared(names="x{frame}"), default_names="{file}_{frame}").names("2026-12-01") == "x{frame}"


@pytest.mark.parametrize("names", ["../{frame}", "a//{frame}", "/abs/{frame}", "con/{frame}", "a?{frame}", " {frame}"])
def test_names_that_no_file_may_have_are_refused(names: str) -> None:
    with pytest.raises(InvalidRequest, match="Results can't be called"):
        prepared(names=names).names("2026-12-01")


def test_a_name_for_several_frames_needs_their_number() -> None:
    with pytest.raises(InvalidRequest, match="All 3 frames"):
        prepared(frames="1-3", names="{file}")
    assert prepared(frames="1", names="{file}").names("") == "a"
