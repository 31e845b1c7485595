"""The options that a render needs, in Blender's own order."""

import re
from collections.abc import Callable, Sequence
from typing import Final

from .session import Session
from .speech import Refused

USAGE: Final = (
    "Usage: blender -b FILE [-S SCENE] [-E ENGINE] [-o PATH] [-F FORMAT] [-x 0|1] [-t THREADS] "
    "[-s FRAME] [-e FRAME] [-j STEP] (-a | -f FRAMES)"
)
WITHOUT_MEANING: Final = frozenset(
    {"-b", "--background", "-noaudio", "--factory-startup", "--offline-mode", "-Y", "--disable-autoexec"}
)
"""Taken and ignored, because here it is always so."""

Step = tuple[Callable[[Session, str], None], str]
"""What is to be done, and the word that the option took."""

OPTIONS: Final[dict[str, Callable[[Session, str], None]]] = {
    name: method
    for names, method in {
        ("-S", "--scene"): Session.select_scene,
        ("-E", "--engine"): Session.select_engine,
        ("-o", "--render-output"): Session.set_output,
        ("-F", "--render-format"): Session.set_format,
        ("-x", "--use-extension"): Session.set_extension,
        ("-t", "--threads"): Session.set_threads,
        ("-s", "--frame-start"): Session.set_first,
        ("-e", "--frame-end"): Session.set_last,
        ("-j", "--frame-jump"): Session.set_step,
        ("-f", "--render-frame"): Session.render_frames,
    }.items()
    for name in names
}
"""Options that take a word."""


def parse(words: Sequence[str]) -> list[Step]:
    """What is to be done, in the order of the words; what is not allowed is refused before anything is loaded."""
    steps: list[Step] = []
    rest = iter(words)
    for word in rest:
        if word in OPTIONS:
            value = next(rest, None)
            if value is None:
                raise Refused(f"option {word} needs a value")
            steps.append((OPTIONS[word], value))
        elif word in ("-a", "--render-anim"):
            steps.append((Session.render_animation, ""))
        elif word == "--python-exit-code":
            next(rest, None)  # no script can fail where none runs
        elif not word.startswith("-"):
            steps.append((Session.load, word))
        elif word not in WITHOUT_MEANING:
            raise Refused(f"option {word} is not allowed here. {USAGE}")
    return steps


def threads_of(steps: Sequence[Step]) -> int:
    """The number of threads that the words ask for; 0: as many as there are processors."""
    threads = [value for do, value in steps if do is Session.set_threads and re.fullmatch(r"[0-9]{1,7}", value)]
    return int(threads[-1]) if threads else 0
