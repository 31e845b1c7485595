"""What film is made of a task's frames: its kind, how many frames it shows a second, and its sound.

What results are called when they leave the farm: a template with fields; on the farm's disk they keep their names.

Written as `{scene}/{camera}/{name}_{frame:04}`. The file's extension is added. What is the same for a whole task is
filled in when it is submitted, so that a template that is stored holds `{task}`, `{name}` and `{frame}` at most.

Files that an engine writes besides its frames: which of them are results, and to which frame one belongs.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from itertools import chain, count
from pathlib import PurePosixPath
from typing import Any, Final

from renderonline.farm.errors import InvalidRequest

FILM_ENGINE: Final = "film"
"""What machines call their means of making films; no user submits anything to it."""
FORMATS: Final = ("mp4", "webm")
DEFAULT_FPS: Final = 24.0
FASTEST_FPS: Final = 240.0
SOUND: Final = "sound.flac"
"""The result of a task that holds the sound of its frames, from the first to the last."""
EXACTLY: Final = "RENDERONLINE_FILM"
"""The variable that tells the program for films its film with an exact speed, which older ones can't read."""
_WRITTEN: Final = re.compile(
    rf"({'|'.join(FORMATS)})(?:@(?:(\d{{1,3}}(?:\.\d{{1,4}})?)|(\d{{1,7}})/(\d{{1,7}})))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Film:
    """Written as `mp4@24` or `mp4@30000/1001`. `fps` 0: what the scene says; a fraction is exact."""

    format: str
    fps: float | Fraction = 0.0

    def __str__(self) -> str:
        if isinstance(self.fps, Fraction):
            return f"{self.format}@{self.fps.numerator}/{self.fps.denominator}"
        return f"{self.format}@{self.fps:g}" if self.fps else self.format

    @property
    def roughly(self) -> "Film":
        """The same with a speed that every program for films can read."""
        return Film(self.format, round(float(self.fps), 4)) if isinstance(self.fps, Fraction) else self

    @classmethod
    def parse(cls, text: str) -> "Film":
        """`InvalidRequest` for anything else than `mp4`, `webm`, and these with `@` and frames per second."""
        match = _WRITTEN.fullmatch(text)
        fps = None if match is None else _speed(match)
        if match is None or fps is None:
            raise InvalidRequest(f"{text[:50]!r} is no film. Write mp4 or webm, with the speed if you like: mp4@25.")
        return cls(match[1], fps)

    def of_scene(self, facts: Mapping[str, Any]) -> "Film":
        """The same with a speed: where none was named that of the scene, as far as it says so."""
        scenes: Any = facts.get("scenes")
        scene: Any = scenes[0] if scenes else {}
        said, exact = scene.get("fps"), (scene.get("fps_num"), scene.get("fps_den"))
        if self.fps:
            return self
        if all(isinstance(one, int) and 0 < one < 10**7 for one in exact) and exact[0] <= FASTEST_FPS * exact[1]:
            return Film(self.format, _plain(Fraction(*exact)))
        known = isinstance(said, int | float) and 0 < said <= FASTEST_FPS
        return Film(self.format, round(said, 4) if known else DEFAULT_FPS)

    def file_name(self, scene: str) -> str:
        """What the film of this scene is called."""
        return f"{PurePosixPath(scene).stem}.{self.format}"


def _speed(match: re.Match[str]) -> float | Fraction | None:
    """Frames per second as they are written, 0 where they are not, None for none that a film can have."""
    if match[2] is None and match[3] is None:
        return 0.0
    if match[4] is not None and not int(match[4]):
        return None
    fps = float(match[2]) if match[2] is not None else _plain(Fraction(int(match[3]), int(match[4])))
    return fps if 0 < fps <= FASTEST_FPS else None


def _plain(fps: Fraction) -> float | Fraction:
    """A whole or short number as people write it, any other exactly."""
    short = round(float(fps), 4)
    return short if Fraction(str(short)) == fps else fps


OF_TASK: Final = ("title", "file", "engine", "scene", "camera", "layer", "date")
"""Fields that are the same for all results of a task: the task's name, its scene file's, the engine's, what the scene
says, the day of the submission (UTC)."""
OF_RESULT: Final = ("task", "name", "frame")
"""The task's number, the result's own name without number and extension, its frame."""
LONGEST: Final = 200
_LONGEST_PART: Final = 200
"""Bytes of a file's or a folder's name."""
_FIELD: Final = re.compile(r"\{([a-z]+)(?::0?(\d))?\}", re.ASCII)
_REFUSED: Final = re.compile(r'[\\:*?"<>|]')
"""By Windows, in names."""
_NUMBER: Final = re.compile(r"[._ -]?-?\d+$", re.ASCII)
_EYE: Final = re.compile(r"[._ -]?(-?(?<!\d)\d{1,9})([._ -]?[^\W\d_][^\W\d]*)$", re.ASCII)
"""How a frame of several files ends, without its extension: its number and the suffix of a view (`_L`)."""


def check(template: str, *, frames: int = 1) -> str:
    """The template, if it can be one and gives each of so many frames a name of its own; else `InvalidRequest`."""
    if len(template) > LONGEST or not template.isprintable():
        raise InvalidRequest(f"A template of names has at most {LONGEST} printable characters.", code="bad_names")
    for name, digits in _FIELD.findall(template):
        if name not in (*OF_TASK, *OF_RESULT) or (digits and name not in ("frame", "task")):
            known = ", ".join(f"{{{one}}}" for one in (*OF_TASK, *OF_RESULT))
            raise InvalidRequest(f"A template of names has the fields {known}, and {{frame:04}}.", code="bad_names")
    if set(_FIELD.sub("", template)) & set("{}\\"):
        raise InvalidRequest("In a template of names { and } stand around a field; \\ is not used.", code="bad_names")
    if frames > 1 and "{frame" not in template:
        message = f"All {frames} frames would have the same name {template!r}: add {{frame:04}}."
        raise InvalidRequest(message, code="bad_names")
    return template


def padded(number: int, width: int) -> str:
    """A frame number with at least `width` digits; the sign of a negative one comes in front, as Blender writes it."""
    return f"-{-number:0{width}d}" if number < 0 else f"{number:0{width}d}"


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with the fields of `values` filled in; the others stay."""
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), template)


def called(template: str, task_id: int, name: str, frame: int | None) -> str:
    """What a result is called: `name` is its own, `frame` the one that it is or belongs to. Without a template, where a
    field can't be filled, and where what comes out is no name below a folder, it keeps its own name: scenes choose what
    their results are called."""
    if not template or (frame is None and "{frame" in template):
        return name
    found = _filled_in(template, task_id, name, frame)
    return found if all(map(_is_part, found.split("/"))) else name


def example(template: str) -> str:
    """What a frame would be called, whether a file may have that name or not."""
    return _filled_in(template, 1, "frame_0001.png", 1)


def _filled_in(template: str, task_id: int, name: str, frame: int | None) -> str:
    path = PurePosixPath(name)
    stem = str(path.with_suffix("")) if path.suffix else name
    eye, view = _EYE.search(stem), ""
    if eye is not None and int(eye[1]) == frame:  # the files of one frame keep what tells them apart
        stem, view = stem[: eye.start()], eye[2]
    values = {"name": _NUMBER.sub("", stem) if frame is not None else stem}

    def value(match: re.Match[str]) -> str:
        if match[1] in ("frame", "task"):
            return padded(task_id if match[1] == "task" else frame or 0, int(match[2] or 1))
        return values.get(match[1], match[0])

    found = _FIELD.sub(value, template)
    has_extension = path.suffix and found.casefold().endswith(path.suffix.casefold())
    before = len(found) - len(path.suffix) if has_extension else len(found)
    return f"{found[:before]}{view}{found[before:] or path.suffix}"


def _is_part(part: str) -> bool:
    return part not in ("", ".", "..") and len(part.encode(errors="replace")) <= _LONGEST_PART


def distinct(names: Iterable[tuple[str, str]]) -> dict[str, str]:
    """For each result (its own name, what it is called) a name that no other has on any system, without letters that
    some systems refuse: of two that would be called alike the later one keeps its own, or gets a number."""
    given: dict[str, str] = {}
    taken: set[str] = set()
    numbers: dict[str, Iterator[int]] = {}
    for own, called_so in names:
        name, wanted = (_REFUSED.sub("_", one) for one in (own, called_so))
        path, free = PurePosixPath(name), numbers.setdefault(name.casefold(), count(2))
        others = (str(path.with_name(f"{path.stem}_{number}{path.suffix}")) for number in free)
        found = next(one for one in chain((wanted, name), others) if one.casefold() not in taken)
        given[own] = found
        taken.add(found.casefold())
    return given


_FILE_NUMBER = re.compile(r"\d+", re.ASCII)
_LONGEST_NUMBER = 7


@dataclass(frozen=True, slots=True)
class MoreResults:
    """Patterns (`*` and `?` stand for anything) of files that are results although nobody expected them, and of those
    among them that stay where they are. A pattern without `/` is for each part of a name, so that `cache_*` leaves a
    whole directory; one with `/` is for the whole name. Without `take` there are none.

    An attempt gives at most `files` of them, of at most `mib` MiB in all; what is beyond that is said.
    """

    take: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    files: int = 1000
    mib: int = 16 * 1024

    def takes(self, name: str) -> bool:
        """Whether the file of this name, relative to the attempt's directory, is one of them."""
        return _fits(name, self.take) and not _fits(name, self.leave)


NOTHING_MORE = MoreResults()


class Bounds:
    """Counts one attempt's files against its rules."""

    def __init__(self, rules: MoreResults) -> None:
        self._rules = rules
        self._sizes: dict[int, int] = {}
        """By the hash of a name: names are long, and there are many."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def met_by(self, name: str, size: int | None = None) -> str:
        """Which bound a file of so many bytes (None: as many as it is known to have) would pass, such as `1000 files`;
        if none, "", and it counts from now on. The same file counts once."""
        key = hash(name)
        known = self._sizes.get(key, 0)
        size = known if size is None else size
        if key not in self._sizes and len(self._sizes) >= self._rules.files:
            return f"{self._rules.files} files"
        if self._bytes - known + size > self._rules.mib << 20:
            return f"{self._rules.mib} MiB"
        self._sizes[key], self._bytes = size, self._bytes - known + size
        return ""


def _fits(name: str, patterns: Collection[str]) -> bool:
    parts = name.split("/")
    return any(
        fnmatchcase(name, one) if "/" in one else any(fnmatchcase(part, one) for part in parts) for one in patterns
    )


def frame_in(name: str, frames: Collection[int]) -> int | None:
    """The one of `frames` whose number stands in a file's name; None when none does, or several do."""
    found = set()
    for match in _FILE_NUMBER.finditer(name):
        if len(match[0]) <= _LONGEST_NUMBER:
            number = int(match[0])
            found.add(-number if name[: match.start()].endswith("-") and -number in frames else number)
    there = [number for number in found if number in frames]
    return there[0] if len(there) == 1 else None
