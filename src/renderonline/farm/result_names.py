"""Results of a task besides its plain frames: its film (`Film`), the names of results that leave the farm (`called`),
and further files that an engine writes (`MoreResults`).

Names are templates such as `{scene}/{camera}/{name}_{frame:04}`; the file's extension is added. On the farm's disk
results keep their own names. Fields that are the same for a whole task are filled in when it is submitted, so a stored
template contains at most `{task}`, `{name}` and `{frame}`.
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
"""The name of the engine that makes films; users can't submit to it."""
FORMATS: Final = ("mp4", "webm")
DEFAULT_FPS: Final = 24.0
FASTEST_FPS: Final = 240.0
SOUND: Final = "sound.flac"
"""The result of a task that holds the sound of its frames, from the first to the last."""
_WRITTEN: Final = re.compile(
    rf"({'|'.join(FORMATS)})(?:@(?:(\d{{1,3}}(?:\.\d{{1,4}})?)|(\d{{1,7}})/(\d{{1,7}})))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Film:
    """A film, written as `mp4@24` or `mp4@30000/1001`. `fps` 0: the scene's speed; a fraction is exact."""

    format: str
    fps: float | Fraction = 0.0

    def __str__(self) -> str:
        if isinstance(self.fps, Fraction):
            return f"{self.format}@{self.fps.numerator}/{self.fps.denominator}"
        return f"{self.format}@{self.fps:g}" if self.fps else self.format

    @classmethod
    def parse(cls, text: str) -> "Film":
        """Read `mp4` or `webm`, perhaps with `@` and frames per second. Raises `InvalidRequest` for anything else."""
        match = _WRITTEN.fullmatch(text)
        fps = None if match is None else _speed(match)
        if match is None or fps is None:
            raise InvalidRequest(f"{text[:50]!r} is not a film. Write mp4 or webm, perhaps with a speed: mp4@25.")
        return cls(match[1], fps)

    def of_scene(self, facts: Mapping[str, Any]) -> "Film":
        """The same with the scene's speed if it has none of its own; `DEFAULT_FPS` if the scene's is unknown."""
        if self.fps:
            return self
        scenes: Any = facts.get("scenes")
        scene: Any = scenes[0] if scenes else {}
        fps, exact = scene.get("fps"), (scene.get("fps_num"), scene.get("fps_den"))
        if all(isinstance(part, int) and 0 < part < 10**7 for part in exact) and exact[0] <= FASTEST_FPS * exact[1]:
            return Film(self.format, _plain(Fraction(*exact)))
        known = isinstance(fps, int | float) and 0 < fps <= FASTEST_FPS
        return Film(self.format, round(fps, 4) if known else DEFAULT_FPS)

    def file_name(self, scene: str) -> str:
        """Return the name of this scene's film."""
        return f"{PurePosixPath(scene).stem}.{self.format}"


def _speed(match: re.Match[str]) -> float | Fraction | None:
    """The frames per second of a match, 0 if there are none, None if they are not possible."""
    if match[2] is None and match[3] is None:
        return 0.0
    if match[4] is not None and not int(match[4]):
        return None
    fps = float(match[2]) if match[2] is not None else _plain(Fraction(int(match[3]), int(match[4])))
    return fps if 0 < fps <= FASTEST_FPS else None


def _plain(fps: Fraction) -> float | Fraction:
    """A speed of at most four decimals as a float, any other as it is."""
    short = round(float(fps), 4)
    return short if Fraction(str(short)) == fps else fps


OF_TASK: Final = ("title", "file", "engine", "scene", "camera", "layer", "date")
"""Fields that are the same for all results of a task: the names of the task, its scene file and its engine, the scene's
own facts, the day of the submission (UTC)."""
OF_RESULT: Final = ("task", "name", "frame")
"""Fields of each result: the task's number, the result's own name without number and extension, its frame."""
LONGEST: Final = 200
_LONGEST_PART: Final = 200
"""Bytes of a file's or a folder's name."""
_FIELD: Final = re.compile(r"\{([a-z]+)(?::0?(\d))?\}", re.ASCII)
_REFUSED: Final = re.compile(r'[\\:*?"<>|]')
"""Characters that Windows refuses in names."""
_NUMBER: Final = re.compile(r"[._ -]?-?\d+$", re.ASCII)
_VIEW: Final = re.compile(r"[._ -]?(-?(?<!\d)\d{1,9})([._ -]?[^\W\d_][^\W\d]*)$", re.ASCII)
"""The end of the name of a stereo frame, without its extension: its number and the suffix of the view (`_L`)."""


def check(template: str, *, frames: int = 1) -> str:
    """Return the template unchanged. Raises `InvalidRequest` unless it is valid and names this number of `frames`
    differently."""
    if len(template) > LONGEST or not template.isprintable():
        raise InvalidRequest(f"A template of names has at most {LONGEST} printable characters.", code="bad_names")
    for name, digits in _FIELD.findall(template):
        if name not in (*OF_TASK, *OF_RESULT) or (digits and name not in ("frame", "task")):
            known = ", ".join(f"{{{field}}}" for field in (*OF_TASK, *OF_RESULT))
            raise InvalidRequest(f"A template of names has the fields {known}, and {{frame:04}}.", code="bad_names")
    if set(_FIELD.sub("", template)) & set("{}\\"):
        raise InvalidRequest("In a template of names { and } stand around a field; \\ is not used.", code="bad_names")
    if frames > 1 and "{frame" not in template:
        message = f"All {frames} frames would have the same name {template!r}: add {{frame:04}}."
        raise InvalidRequest(message, code="bad_names")
    return template


def padded(number: int, width: int) -> str:
    """Return a frame number with at least `width` digits; a minus sign comes in front of them, as in Blender."""
    return f"-{-number:0{width}d}" if number < 0 else f"{number:0{width}d}"


def filled(template: str, values: Mapping[str, str]) -> str:
    """Return the template with the fields of `values` filled in; the others stay."""
    return _FIELD.sub(lambda match: values.get(match[1], match[0]), template)


def called(template: str, task_id: int, name: str, frame: int | None) -> str:
    """Return the name with which a result leaves the farm: `name` is its own, `frame` the one that it is or belongs to.
    It keeps its own name without a template, when a field can't be filled, and when the filled template is not a name
    below a folder."""
    if not template or (frame is None and "{frame" in template):
        return name
    found = _filled_in(template, task_id, name, frame)
    return found if all(map(_is_part, found.split("/"))) else name


def example(template: str) -> str:
    """Return the name of an example frame by this template, also when it is not a valid file name."""
    return _filled_in(template, 1, "frame_0001.png", 1)


def _filled_in(template: str, task_id: int, name: str, frame: int | None) -> str:
    path = PurePosixPath(name)
    stem = str(path.with_suffix("")) if path.suffix else name
    match, view = _VIEW.search(stem), ""
    if match is not None and int(match[1]) == frame:  # the suffix distinguishes the files of one frame
        stem, view = stem[: match.start()], match[2]
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
    """Return for each result (its own name, its wanted name) a name that is valid and distinct on every system: of two
    equal names the later result keeps its own name, or gets a number."""
    chosen: dict[str, str] = {}
    taken: set[str] = set()
    numbers: dict[str, Iterator[int]] = {}
    for own, wanted in names:
        name, preferred = _REFUSED.sub("_", own), _REFUSED.sub("_", wanted)
        path, free = PurePosixPath(name), numbers.setdefault(name.casefold(), count(2))
        numbered = (str(path.with_name(f"{path.stem}_{number}{path.suffix}")) for number in free)
        chosen[own] = next(name for name in chain((preferred, name), numbered) if name.casefold() not in taken)
        taken.add(chosen[own].casefold())
    return chosen


_FILE_NUMBER = re.compile(r"\d+", re.ASCII)
_LONGEST_NUMBER = 7


@dataclass(frozen=True, slots=True)
class MoreResults:
    """Which files that an engine writes besides its expected outputs are results: those that match a pattern of `take`
    and none of `leave` (`*` and `?` as in a shell). A pattern without `/` is compared with each part of a name, so that
    `cache_*` leaves a whole directory; one with `/` with the whole name.

    An attempt may have at most `files` of them, of at most `mib` MiB in all; a warning reports the rest.
    """

    take: tuple[str, ...] = ()
    leave: tuple[str, ...] = ()
    files: int = 1000
    mib: int = 16 * 1024

    def takes(self, name: str) -> bool:
        """Return whether the file of this name, relative to the attempt's directory, is one of them."""
        return _fits(name, self.take) and not _fits(name, self.leave)


NOTHING_MORE = MoreResults()


class Bounds:
    """Counts one attempt's further results against the bounds of its `MoreResults`."""

    def __init__(self, rules: MoreResults) -> None:
        self._rules = rules
        self._sizes: dict[int, int] = {}
        """Sizes by the hash of the name, because there are many long names."""
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sizes)

    def met_by(self, name: str, size: int | None = None) -> str:
        """Count a file of `size` bytes (None: its size so far) and return ""; or, if it would exceed a bound, return
        that bound, such as `1000 files`. The same file counts once."""
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
        any(fnmatchcase(part, pattern) for part in ([name] if "/" in pattern else parts)) for pattern in patterns
    )


def frame_in(name: str, frames: Collection[int]) -> int | None:
    """Return the frame of `frames` whose number is in a file's name; None for no such frame, or several."""
    found = set()
    for match in _FILE_NUMBER.finditer(name):
        if len(match[0]) <= _LONGEST_NUMBER:
            number = int(match[0])
            found.add(-number if name[: match.start()].endswith("-") and -number in frames else number)
    there = [number for number in found if number in frames]
    return there[0] if len(there) == 1 else None
