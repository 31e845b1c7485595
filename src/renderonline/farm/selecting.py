"""Choosing some of a task's files."""

from collections.abc import Callable, Collection
from fnmatch import fnmatchcase

from renderonline.farm.frames import is_among


def chooser(frames: str = "", names: Collection[str] = ()) -> Callable[[str, int | None], bool]:
    """Whether a file (its name, its frame) is one of `frames` (a range), or called like one of `names` (* and ? stand
    for anything); with neither every file is. `InvalidRequest` for what is no range."""
    wanted = is_among(frames) if frames else lambda _: False

    def chosen(name: str, frame: int | None) -> bool:
        named = any(name == one or fnmatchcase(name, one) for one in names)
        return named or wanted(frame) or not (frames or names)

    return chosen
