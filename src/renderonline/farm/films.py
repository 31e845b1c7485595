"""What film is made of a task's frames: its kind and how many frames it shows a second."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from renderonline.farm.errors import InvalidRequest

FILM_ENGINE: Final = "film"
"""What machines call their means of making films; no user submits anything to it."""
FORMATS: Final = ("mp4", "webm")
DEFAULT_FPS: Final = 24.0
FASTEST_FPS: Final = 240.0
_WRITTEN: Final = re.compile(rf"({'|'.join(FORMATS)})(?:@(\d{{1,3}}(?:\.\d{{1,4}})?))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Film:
    """Written as `mp4@24`. `fps` 0: what the scene says."""

    format: str
    fps: float = 0.0

    def __str__(self) -> str:
        return f"{self.format}@{self.fps:g}" if self.fps else self.format

    @classmethod
    def parse(cls, text: str) -> "Film":
        """`InvalidRequest` for anything else than `mp4`, `webm`, and these with `@` and frames per second."""
        match = _WRITTEN.fullmatch(text)
        if match is None or (match[2] is not None and not 0 < float(match[2]) <= FASTEST_FPS):
            raise InvalidRequest(f"{text[:50]!r} is no film. Write mp4 or webm, with the speed if you like: mp4@25.")
        return cls(match[1], float(match[2] or 0))

    def of_scene(self, facts: Mapping[str, Any]) -> "Film":
        """The same with a speed: where none was named that of the scene, as far as it says so."""
        scenes: Any = facts.get("scenes")
        said: Any = scenes[0].get("fps") if scenes else None
        known = isinstance(said, int | float) and 0 < said <= FASTEST_FPS
        return self if self.fps else Film(self.format, round(said, 4) if known else DEFAULT_FPS)

    def file_name(self, scene: str) -> str:
        """What the film of this scene is called."""
        return f"{PurePosixPath(scene).stem}.{self.format}"
