"""An engine's definition: about twenty lines of TOML that say how to speak to a renderer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from renderonline.farm.more_results import NOTHING_MORE, MoreResults
from renderonline.farm.needs import NOTHING, Needs

FACT_READERS: Final[Mapping[str, str]] = {"blender": "renderonline.engines.blender.scene_facts:survey"}
"""Who can read what a scene says of itself: a definition's `facts` -> the function, for `storage.confined`."""
SCENE_FACTS: Final = ("start", "end", "step", "width", "height", "percent", "fps", "engine", "format", "view")


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of an engine; every form (web, desktop, command line) is drawn from it.

    `id` is the argtype's id (`$RENDERONLINE:<id>` in the template), `type` one of the contract's types, `regex` the
    rule that replaces the type's, `choices` the only values allowed if not empty. Without `default` it must be given.
    `fact` (one of `SCENE_FACTS`): what the scene says of it is the default where that is known.
    """

    id: str
    type: str
    label: str = ""
    help: str = ""
    default: str | None = None
    regex: str = ""
    choices: tuple[str, ...] = ()
    fact: str = ""


@dataclass(frozen=True, slots=True)
class FrameArguments:
    """Which arguments are the frame range; each chunk gets its own values for them. "" where there is none.
    `smallest` and `largest`: the frames that the engine can render; None: what the types of the arguments say."""

    first: str
    last: str
    step: str = ""
    smallest: int | None = None
    largest: int | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """Which files a frame gives: `pattern` has one run of `#` for the zero-padded frame and may end in
    `.{extension}`; `extensions` maps the value of argument `format_argument` to the extension."""

    pattern: str
    extension: str = ""
    format_argument: str = ""
    extensions: Mapping[str, str] = field(default_factory=dict)
    width_argument: str = ""
    """The arguments that say how many pixels a picture has from left to right, and from top to bottom."""
    height_argument: str = ""
    suffix_argument: str = ""
    """The argument whose value stands before the extension: of a frame that is several files, the first one's."""
    pad_like_last_frame: bool = False
    """Pad with as many digits as the task's last frame has (POV-Ray) instead of the run of `#`."""
    more: MoreResults = NOTHING_MORE
    """What the engine writes besides, and is a result too."""


_ONE_GROUP = ("frame", "frame_index", "fraction", "percent", "remaining", "memory", "saved", "device")
PROGRESS_KINDS: Final[Mapping[str, int]] = {**dict.fromkeys(_ONE_GROUP, 1), "samples": 2}
"""What a progress pattern can tell -> how many groups it needs.

`frame` is the number of the frame that is being rendered, `frame_index` its place in the chunk counted from 1;
`fraction` (0-1), `percent` and `samples` (done, total) are of that frame; `remaining` is seconds or h:mm:ss of that
frame; `memory` is what the engine says that it uses; `saved` is the path of a file that is complete; `device` is
what it renders on.
"""


MISSING: Final = "missing"
"""The kind of a warning that says: a file that the scene needs is not there."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression on a line of the engine's output. `kind` of a progress pattern is one of `PROGRESS_KINDS`;
    a failure has the failure class (scene, crash, out_of_memory, …), a warning has `MISSING` or "", a reason "". What
    those two say is the first group, or without groups the line."""

    regex: str
    kind: str = ""


@dataclass(frozen=True, slots=True)
class ReadingRules:
    """What the machine needs to understand the engine's output; travels as JSON in `Assign.reading`. A line that
    matches one of `failures` makes the attempt a failure of that class, even with exit code 0; `exit_codes` maps an
    exit code (as text) to a failure class; `decode`: the results are pictures that must decode wholly; `wrapped`: the
    columns after which the engine breaks its lines, 0: it does not."""

    progress: tuple[Pattern, ...] = ()
    warnings: tuple[Pattern, ...] = ()
    failures: tuple[Pattern, ...] = ()
    reasons: tuple[Pattern, ...] = ()
    """Lines in which the engine itself says why it ends: the last one is what people read of a failure, and makes
    none by itself."""
    exit_codes: Mapping[str, str] = field(default_factory=dict)
    stop_signal: str = "SIGTERM"
    decode: bool = True
    constant: str = "warn"
    """What a picture means whose pixels all have one colour: `warn` (the log says so: it may be meant) or `fail`."""
    width: int = 0
    """The pixels that a picture must have; 0: the scene decides."""
    height: int = 0
    wrapped: int = 0


FILM_READING: Final = ReadingRules(
    progress=(Pattern(r"^Frame (\d+)/(\d+)$", "samples"),),
    warnings=(Pattern("^Warning: (.+)$"),),
    failures=(Pattern("^Error: ", "film"),),
    decode=False,
)
"""How the farm's own means of making films speaks."""


@dataclass(frozen=True, slots=True)
class SceneCheck:
    """How an engine looks at the scene of a new task without rendering it: its command with these variables besides.
    What it says is read as of an attempt. It is ended after `time_s` seconds; `engine_version`: the oldest that can."""

    environment: Mapping[str, str]
    time_s: float = 30.0
    engine_version: str = ""


@dataclass(frozen=True, slots=True)
class EngineDefinition:
    """How to speak to a renderer.

    `template` is v1's language: words as on a command line, `$RENDERONLINE:<argtype_id>` for values and
    `$RENDERONLINE:@…` for what the farm gives (`engines.commands.FARM_VALUES`). `split`: frames or none (tiles and
    samples come later). `chunk_size`: frames a chunk when the user names none; 0: the farm decides. Without `outputs`
    every new file in the attempt's directory is a result. `executables` are looked for on a machine's PATH; without
    any it is only what the machine's own settings name. With `renderers_arguments` its program lists what it can render
    with, one name a line after the line `renderers_after`. `facts`: who reads its scenes (`FACT_READERS`), "": nobody.
    An attempt may run for `time_s` seconds, and for `frame_time_s` times the frames it renders; 0: no limit.
    `check`: how it looks at a scene before it is rendered, None: it can't.
    `ascii_paths`: it opens no paths with other letters, double quotes or backslashes, nor long ones.
    `network`, `sandbox_read`, `sandbox_write`: what is open to it in its box besides its task's files.
    """

    name: str
    label: str
    extensions: tuple[str, ...]
    template: str
    split: str = "none"
    facts: str = ""
    chunk_size: int = 0
    arguments: tuple[Argument, ...] = ()
    frames: FrameArguments | None = None
    outputs: Outputs | None = None
    reading: ReadingRules = field(default_factory=ReadingRules)
    check: SceneCheck | None = None
    executables: tuple[str, ...] = ()
    version_arguments: tuple[str, ...] = ()
    version_regex: str = ""
    renderers_arguments: tuple[str, ...] = ()
    renderers_after: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    stall_s: float = 900.0
    time_s: float = 0.0
    frame_time_s: float = 0.0
    memory_mib: int = 0
    ascii_paths: bool = False
    network: bool = False
    sandbox_read: tuple[str, ...] = ()
    sandbox_write: tuple[str, ...] = ()
    requirements: Needs = NOTHING
