"""Definitions: the shipped ones are right, and what is wrong in another is named."""

from pathlib import Path

import pytest

from renderonline.engines.definition import PROGRESS_KINDS, doubts, parse_definition, shipped
from renderonline.farm.errors import InvalidRequest

EXAMPLES = Path(__file__).parents[3] / "examples" / "engines"

SMALL = """
name = "small"
label = "Small"
extensions = [".txt"]
template = "$RENDERONLINE:@uploaded_file -f $RENDERONLINE:first -l $RENDERONLINE:last"
split = "frames"
[[arguments]]
id = "first"
type = "natural"
default = "1"
[[arguments]]
id = "last"
type = "natural"
[frames]
first = "first"
last = "last"
[outputs]
pattern = "f_##.{extension}"
extension = "txt"
"""


def changed(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new, 1)


def test_shipped_definitions_are_blender_and_povray_and_parse() -> None:
    found = {name: parse_definition(text) for name, text in shipped().items()}
    assert set(found) == {"blender", "povray"}
    for name, definition in found.items():
        assert definition.name == name
        assert definition.split == "frames"
        assert definition.frames is not None
        assert definition.outputs is not None
        assert definition.executables


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_example_definitions_parse(path: Path) -> None:
    assert parse_definition(path.read_text()).name == path.stem


def test_the_template_may_stand_on_several_lines() -> None:
    assert "\n" not in parse_definition(shipped()["blender"]).template


def test_whole_numbers_are_taken_where_seconds_are_wanted() -> None:
    assert parse_definition(changed('split = "frames"', 'split = "frames"\nstall_s = 5')).stall_s == 5.0


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name = ", "not valid TOML"),
        ("x" * 70_000, "at most 65536 characters"),
        ('label = "x"', "Field name of the engine definition is missing"),
        (changed('label = "Small"', 'lable = "Small"'), "Field lable of the engine definition is not known"),
        (changed('type = "natural"', 'type = "number"'), "arguments[0].type"),
        (changed('id = "last"', 'id = "first"'), "arguments[1].id"),
        (changed('id = "last"', 'id = "la st"'), "arguments[1].id"),
        (changed('default = "1"', 'default = "one"'), "Value one must be of type natural"),
        (changed('default = "1"', "default = 1"), "arguments[0].default of the engine definition must be text"),
        (changed('default = "1"', 'default = "1"\nchoices = ["2"]'), "arguments[0].default"),
        (changed('default = "1"', 'default = "1"\nregex = "("'), "arguments[0].regex"),
        (changed('name = "small"', 'name = "Small one"'), "Field name"),
        (changed('extensions = [".txt"]', "extensions = []"), "Field extensions"),
        (changed('extensions = [".txt"]', 'extensions = ["txt"]'), "'txt'"),
        (changed('extensions = [".txt"]', 'extensions = ".txt"'), "must be a list"),
        (changed('split = "frames"', 'split = "tiles"'), "Field split"),
        (changed('split = "frames"', 'split = "frames"\nmemory_mib = -1'), "Field memory_mib"),
        (changed('split = "frames"', 'split = "frames"\nmemory_mib = true'), "must be a whole number"),
        (changed('split = "frames"', 'split = "frames"\nrequirements = {sandbox = "jail"}'), "landlock or bwrap"),
        (changed('split = "frames"', 'split = "frames"\nversion_regex = "["'), "Field version_regex"),
        (
            changed('split = "frames"', 'split = "frames"\nenvironment = {A = 1}'),
            "environment.A of the engine definition must be text",
        ),
        (changed('split = "frames"', 'split = "frames"\nenvironment = {ld_preload = "x"}'), "environment.ld_preload"),
        (changed('split = "frames"', 'split = "frames"\nenvironment = {PYTHONSTARTUP = "x"}'), "is refused"),
        (
            changed('split = "frames"', 'split = "frames"\nenvironment = {LD_LIBRARY_PATH = "/x/$RENDERONLINE:last"}'),
            "must not hold a placeholder",
        ),
        (changed('split = "frames"', 'split = "frames"\ncheck = {environment = {}}'), "would render"),
        (changed('split = "frames"', 'split = "frames"\ncheck = {environment = {A = "1"}, time_s = 31}'), "at most 30"),
        (changed('split = "frames"', 'split = "frames"\ncheck = {environment = {LD_PRELOAD = "1"}}'), "is refused"),
        (changed('split = "frames"', 'split = "frames"\ncheck = {environment = {A = "$RENDERONLINE:last"}}'), "check"),
        (changed('split = "frames"', 'split = "frames"\nsandbox_read = ["tex"]'), "Field sandbox_read"),
        (changed('split = "frames"', 'split = "frames"\nsandbox_write = ["/a/../b"]'), "Field sandbox_write"),
        (changed('split = "frames"', 'split = "frames"\nsandbox_read = ["/a/$RENDERONLINE:last"]'), "placeholders"),
        (changed('split = "frames"', 'split = "frames"\nnetwork = "yes"'), "network"),
        (changed("$RENDERONLINE:last", "$RENDERONLINE:end"), "$RENDERONLINE:end"),
        (changed("$RENDERONLINE:last", "$RENDERONLINE:@secret"), "$RENDERONLINE:@secret"),
        (changed('template = "', 'template = "small" #'), "Field template"),
        (changed('[frames]\nfirst = "first"\nlast = "last"', ""), "Field frames"),
        (changed('first = "first"', 'first = "begin"'), "frames.first"),
        (changed('[frames]\nfirst = "first"', "[frames]\nfirst = 3"), "frames.first"),
        (changed("[frames]", "[frames]\nstep = 'x'"), "frames.step"),
        (changed('type = "natural"', 'type = "word"'), "frames.first"),
        (changed("f_##", "f"), "outputs.pattern"),
        (changed("f_##", "#f_##"), "outputs.pattern"),
        (changed("f_##", "../f_##"), "outputs.pattern"),
        (changed('extension = "txt"', ""), "outputs.extension"),
        (changed('extension = "txt"', 'format_argument = "format"'), "outputs.format_argument"),
        (changed('extension = "txt"', 'format_argument = "first"'), "outputs.extensions.first"),
        (SMALL + '[reading]\nprogress = [{kind = "frame", regex = "x"}]', "reading.progress[0].kind"),
        (SMALL + '[reading]\nprogress = [{kind = "speed", regex = "(x)"}]', "reading.progress[0].kind"),
        (SMALL + '[reading]\nfailures = [{regex = "x"}]', "reading.failures[0].kind"),
        (SMALL + '[reading]\nwarnings = [{regex = "*"}]', "reading.warnings[0].regex"),
        (SMALL + '[reading]\nwarnings = ["x"]', "must be a table"),
        (SMALL + '[reading]\nwarnings = [{kind = "scene", regex = "x"}]', "reading.warnings[0].kind"),
        (SMALL + '[reading]\nstop_signal = "SIGUSR1"', "reading.stop_signal"),
        (SMALL + '[reading]\nconstant = "maybe"', "reading.constant"),
        (SMALL + 'width_argument = "wide"', "outputs.width_argument"),
        (SMALL + '[outputs.more]\ntake = "*"', "outputs.more.take"),
        (SMALL + '[outputs.more]\ntake = ["a\\nb"]', "outputs.more.take"),
        (SMALL + '[outputs.more]\ntakes = ["*"]', "outputs.more.takes"),
        (SMALL + '[outputs.more]\nleave = [""]', "outputs.more.leave"),
        (SMALL + "[outputs.more]\nfiles = 0", "outputs.more.files"),
        (SMALL + "[outputs.more]\nmib = 100000000", "outputs.more.mib"),
        (SMALL + '[reading]\nexit_codes = {one = "x"}', "reading.exit_codes"),
        (SMALL + '[reading]\ndecode = "no"', "must be true or false"),
    ],
)
def test_what_is_wrong_is_named(text: str, named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_definition(text)
    assert named in caught.value.message


def test_what_decides_which_code_is_loaded_is_taken_with_a_warning() -> None:
    text = changed('split = "frames"', 'split = "frames"\nenvironment = {LD_LIBRARY_PATH = "/opt/x", A = "1"}')
    assert [doubt.split()[0] for doubt in doubts(parse_definition(text))] == ["LD_LIBRARY_PATH"]


def test_every_progress_kind_is_documented() -> None:
    reference = Path(__file__).parents[3] / "docs" / "reference" / "engines.md"
    text = reference.read_text()
    for kind in PROGRESS_KINDS:
        assert f"`{kind}`" in text
