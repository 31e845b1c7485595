"""What film is made of a task's frames: its kind, how many frames it shows a second, and its sound."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
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
