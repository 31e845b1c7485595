"""What a client asks for; prepared, it is everything of a task but its file and its ids.

Pure: no database, no disk. v1 and v2 differ only in how a request is read; what both refuse is said in the words of
C2 RenderAPI.
"""

import posixpath
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, TypeVar

from renderonline.database.submission_rows import EngineRow
from renderonline.engines import command_lines
from renderonline.engines.definition import EngineDefinition, template_words
from renderonline.farm import needs, result_names
from renderonline.farm.arguments import ArgType, check_options, check_value, join, split, strip_program
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.frames import MAX_FRAMES, FrameRange, format_frames, parse_frames
from renderonline.farm.machines import with_device
from renderonline.farm.needs import NOTHING, Needs
from renderonline.farm.result_names import Film
from renderonline.protocol.link import from_wire, read_json
from renderonline.storage.names import clean_file_name, extension_of, may_be_name

CHUNK_SIZE: Final = 4
"""Frames a chunk when neither the user nor the engine says otherwise."""
MAX_WAITS: Final = 100
MAX_KEY: Final = 64
MAX_SCENE: Final = 255


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """What a client asks for, the part `request` of v2. `engine` is a number or a name, as sent; `frames` a range,
    None: what the arguments say; `film`: what is made of the frames at the end, such as `mp4` or `webm@25`; `strict`:
    refuse it, or fail it later, where otherwise the task would have a warning of something that is missing; `names`:
    what results are called when they leave the farm (`farm.result_names`), "": as the subscription says;
    `deliver`: where its results are copied to, `NAME/sub`."""

    exact: ClassVar[bool] = True
    """Arguments that the engine does not have are refused, and `engine` may be its name."""
    engine: str | int
    arguments: Mapping[str, str] = field(default_factory=dict)
    frames: str | None = None
    name: str = ""
    priority: int = 50
    chunk_size: int = 0
    paused: bool = False
    waits_for: tuple[int, ...] = ()
    notify: bool = False
    needs: Needs = NOTHING
    running_limit: int = 0
    film: str = ""
    strict: bool = False
    names: str = ""
    deliver: str = ""
    client_key: str = ""


@dataclass(frozen=True, slots=True)
class V1Request(SubmitRequest):
    """A request of v1, whose clients may send more than the engine needs."""

    exact: ClassVar[bool] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRequest(SubmitRequest):
    """A submission of files that were uploaded before. `scene`: the main one, "" when that is clear; `unpack`: the
    upload is one ZIP, and what is in it are the files."""

    upload: str
    scene: str = ""
    unpack: bool = False


R = TypeVar("R", bound=SubmitRequest)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request that obeys every rule. `scene`: the main file's name in the task's directory; `ranges` has one entry a
    chunk, None for a chunk without frames."""

    request: SubmitRequest
    engine: EngineRow
    definition: EngineDefinition | None
    scene: str
    words: tuple[str, ...]
    values: Mapping[str, str]
    frames: tuple[int, ...]
    ranges: tuple[FrameRange | None, ...]
    chunk_size: int
    needs: Needs
    facts: Mapping[str, object] = field(default_factory=dict)
    """What the scene says of itself, once it was read."""
    default_names: str = ""
    """The template of results' names that the user's subscription has."""

    @property
    def film(self) -> str:
        """The film with its speed, "" for none."""
        return str(Film.parse(self.request.film).of_scene(self.facts)) if self.request.film else ""

    def names(self, day: str) -> str:
        """The template of its results' names, with all that is the same for the task filled in; `day` is that of the
        submission. `InvalidRequest` when it was asked for and makes no name that a file may have; without being asked,
        results keep their names then."""
        template = self.request.names or self.default_names
        if not template:
            return ""
        scene = command_lines.scene_asked_for(self.facts, self.values)
        stem = PurePosixPath(self.scene).stem
        values = {
            "title": self.request.name or stem,
            "file": stem,
            "engine": self.engine.name,
            "date": day,
            "scene": command_lines.as_written(self.values.get("scene", "")) or scene.get("name") or stem,
            "camera": command_lines.as_written(self.values.get("camera", ""))
            or (scene.get("cameras") or ["camera"])[0],
            "layer": command_lines.as_written(self.values.get("view_layer", ""))
            or _only(scene.get("view_layers"), "layer"),
        }
        plain = {field: re.sub("[{}]", "_", clean_file_name(str(value))) for field, value in values.items()}
        found = result_names.filled(template, plain)
        example = result_names.example(found)
        if may_be_name(example):
            return found
        if self.request.names:
            raise InvalidRequest(f"Results can't be called {example[:100]!r}: no file may.", code="bad_names")
        return ""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person must know before anything is rendered (R16 No false success)."""
        return needs.of_scene(self.facts, len(self.ranges))

    def strictly(self, *, everybody: bool) -> "Prepared":
        """The same, its request strict if it is, or if `everybody` is to be and it is none of v1's. `InvalidRequest`
        (`strict`) when it is and something is missing."""
        strict = self.request.exact and (self.request.strict or everybody)
        if strict and self.warnings:
            whose = "the farm takes only complete scenes" if not self.request.strict else "it was to be strict"
            missing = "; ".join(self.warnings)
            raise InvalidRequest(f"{self.scene} is not submitted, because {whose}: {missing}", code="strict")
        return replace(self, request=replace(self.request, strict=strict))

    @property
    def written_frames(self) -> str:
        """The frames as a canonical range, "" when there are none."""
        return format_frames(self.frames)

    def argument_line(self, directory: str) -> str:
        """The whole task as one command line, as v1 keeps it: with the template's leading program name."""
        template = self.definition.template if self.definition is not None else self.engine.render_argument
        return join(self.command(split(template), posixpath.join(directory, self.scene), directory).argv)

    def command(self, words: tuple[str, ...], scene: str, directory: str) -> command_lines.Command:
        """The command of the whole task. `InvalidRequest` when a value is missing or would become an option."""
        return command_lines.build(
            self.definition,
            words,
            self.values,
            chunk=None,
            task_frames=self.frames,
            scene=scene,
            output_directory=directory,
            with_outputs=False,
        )


def _only(names: Any, otherwise: str) -> str:
    """The name in a list of the scene, if there is only one."""
    return str(names[0]) if isinstance(names, list) and len(names) == 1 else otherwise


def read_v2(part: bytes | None, client_key: str) -> SubmitRequest:
    """The request in v2's part `request`; `InvalidRequest` names the field that is wrong."""
    if part is None:
        raise InvalidRequest("The part request is missing: JSON with engine, arguments and frames.")
    return _checked(from_wire(SubmitRequest, read_json(part)), client_key)


def read_upload(body: bytes, client_key: str) -> UploadRequest:
    """The body of a submission of files that were uploaded before."""
    return _checked(from_wire(UploadRequest, read_json(body)), client_key)


def _checked(sent: R, client_key: str) -> R:
    if len(sent.name) > 255 or not sent.name.isprintable():
        raise InvalidRequest("name has at most 255 printable characters.")
    for name, most in (("priority", 100), ("chunk_size", MAX_FRAMES), ("running_limit", MAX_FRAMES)):
        if not 0 <= getattr(sent, name) <= most:
            raise InvalidRequest(f"{name} is a number from 0 to {most}.")
    if sent.film:
        Film.parse(sent.film)
    result_names.check(sent.names)
    if len(sent.waits_for) > MAX_WAITS:
        raise InvalidRequest(f"A task waits for at most {MAX_WAITS} others.")
    return replace(sent, engine=str(sent.engine), client_key=checked_key(client_key or sent.client_key))


def checked_key(key: str) -> str:
    """An idempotency key that the database can hold (R4.1 Submit once); `InvalidRequest` for others."""
    if len(key) > MAX_KEY or not (key.isascii() and key.isprintable()):
        raise InvalidRequest(f"An idempotency key has at most {MAX_KEY} printable ASCII characters, such as a UUID.")
    return key


def prepare(
    request: SubmitRequest,
    engine: EngineRow,
    definition: EngineDefinition | None,
    argtypes: Mapping[str, ArgType],
    scene: str,
) -> Prepared:
    """Check a request against its engine, in the contract's order. Raises the first rule that is broken."""
    if not _takes(engine, definition, scene):
        message = f"Engine extension {engine.extension} not matching with files extension {extension_of(scene)}."
        raise InvalidRequest(message, code="wrong_extension")
    values = _values(request, definition, argtypes)
    frames = _frames(request, definition, values)
    ranges: tuple[FrameRange | None, ...] = (None,)
    if definition is None:
        words, size = strip_program(split(engine.render_argument), (engine.name,)), 0
    else:
        if request.frames:
            values = command_lines.values_of_frames(definition, values, frames)
        size = (request.chunk_size or definition.chunk_size or CHUNK_SIZE) if definition.split == "frames" else 0
        words = template_words(definition)
        if frames:
            ranges = command_lines.chunks_of(definition, frames, size)
    if request.names:
        result_names.check(request.names, frames=len(frames))
    if request.film and not (definition and command_lines.frames_pattern(definition, values, frames) and frames):
        raise InvalidRequest(f"Engine {engine.name} gives no frames of which a film could be made.", code="no_frames")
    needs = request.needs.checked() if definition is None else definition.requirements.joined(request.needs.checked())
    # Blender's own command line takes `-5` for the fifth frame from the end.
    if definition is not None and (command_lines.beyond_command_line(definition, values) or min(frames, default=0) < 0):
        needs = replace(needs, linked=True)
    needs = with_device(needs, values, {})
    prepared = Prepared(request, engine, definition, scene, words, values, frames, ranges, size, needs)
    check_options(words, values, argtypes)
    prepared.command(words, "/scene", "/output")  # what is missing is found now, not on a machine
    return prepared


def engine_of(request: SubmitRequest, engines: Iterable[EngineRow]) -> EngineRow:
    """The engine of a request: v1 names its number, v2 its name or number. To v1 a missing one is a bad request."""
    wanted = str(request.engine)
    for engine in engines:
        named = request.exact and engine.name.casefold() == wanted.casefold()
        if engine.is_enabled and (named or str(engine.engine_id) == wanted.strip()):
            return engine
    raise InvalidRequest(f"Engine with identifier {wanted} not found.", code="engine_not_found")


def checked_place(deliver: str, places: Collection[str]) -> str:
    """`NAME/sub/folders`, if the farm delivers to a place of this name; `InvalidRequest` says what there is."""
    if not deliver:
        return ""
    name, _, below = deliver.strip("/").partition("/")
    if name not in places:
        known = (
            f"It delivers to: {', '.join(sorted(places))}." if places else "An administrator names some: DeliverRoots."
        )
        raise InvalidRequest(f"This farm has no place {name[:50]!r} to deliver to. {known}", code="no_root")
    if below and not may_be_name(below):
        raise InvalidRequest(f"{below[:100]!r} is no name for folders that every system has.", code="no_root")
    return f"{name}/{below}" if below else name


def scene_among(names: Collection[str], wanted: str, engine: EngineRow, definition: EngineDefinition | None) -> str:
    """The main file among those of a task: `wanted`, or the one that the engine takes and that lies in the fewest
    folders."""
    if len(names) > 1 and not wanted:
        taken = [name for name in names if _takes(engine, definition, name)]
        depth = min((name.count("/") for name in taken), default=0)
        fit = [name for name in taken if name.count("/") == depth]
        if len(fit) != 1:
            found = ", ".join(fit[:5]) or "none"
            raise InvalidRequest(f"Which file is the scene? The engine takes {found}: name it.", code="which_scene")
        return fit[0]
    if wanted and wanted not in names:
        raise InvalidRequest(f"The upload has no file {wanted[:200]!r} that could be the scene.", code="which_scene")
    scene = wanted or next(iter(names))
    if len(scene) > MAX_SCENE:
        raise InvalidRequest(f"The name of the scene has at most {MAX_SCENE} characters.", code="bad_name")
    return scene


def _takes(engine: EngineRow, definition: EngineDefinition | None, name: str) -> bool:
    allowed = definition.extensions if definition is not None else (engine.extension,)
    return extension_of(name).casefold() in {one.casefold() for one in allowed}


def _values(
    request: SubmitRequest, definition: EngineDefinition | None, argtypes: Mapping[str, ArgType]
) -> Mapping[str, str]:
    """The checked values; with a definition complete: v1's clients may send values that it does not use."""
    values = request.arguments
    if definition is None:
        _check_values(values, argtypes, named=request.exact)
        return values
    if request.exact:
        values = command_lines.spelled(definition, values)
        _refuse_two_ranges(request, definition)
        command_lines.complete(definition, values)  # names the engine's own arguments before the database's rules
    _check_values(values, argtypes, named=request.exact)
    known = {argument.id for argument in definition.arguments}
    return command_lines.complete(definition, {name: value for name, value in values.items() if name in known})


def _refuse_two_ranges(request: SubmitRequest, definition: EngineDefinition) -> None:
    twice = request.arguments.keys() - command_lines.without_frames(definition, request.arguments)
    if request.frames and twice:
        message = (
            f"The frames are {request.frames[:60]}: argument {min(twice)} would say them again. Leave one of them out."
        )
        raise InvalidRequest(message, code="invalid_value")


def _check_values(values: Mapping[str, str], argtypes: Mapping[str, ArgType], *, named: bool) -> None:
    """`named`: say which argument it is, as v1 does not."""
    for name in values:
        if name not in argtypes:
            message = f"Argument type identifier {name} must be present in database."
            raise InvalidRequest(message, code="unknown_argument")
    for name, value in values.items():
        try:
            check_value(argtypes[name], value)
        except InvalidRequest as error:
            if not named:
                raise
            raise InvalidRequest(f"Argument {name}: {error.message}", code=error.reason_code) from None


def _frames(request: SubmitRequest, definition: EngineDefinition | None, values: Mapping[str, str]) -> tuple[int, ...]:
    if not request.frames:
        frames = command_lines.frames_of(definition, values) if definition is not None else ()
    elif definition is None or definition.frames is None:
        raise InvalidRequest("This engine has no frames of its own; leave frames out.", code="no_frames")
    else:
        frames = parse_frames(request.frames)
    if definition is not None and request.exact:  # to clients of v1 no rule is new
        command_lines.check_frames(definition, frames)
    return frames
