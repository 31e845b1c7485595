"""What results are called when they leave the farm: a template with fields; on the farm's disk they keep their names.

Written as `{scene}/{camera}/{name}_{frame:04}`. The file's extension is added. What is the same for a whole task is
filled in when it is submitted, so that a template that is stored holds `{task}`, `{name}` and `{frame}` at most.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, count
from pathlib import PurePosixPath
from typing import Final

from renderonline.farm.errors import InvalidRequest

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
