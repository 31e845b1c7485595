"""Blender's command line on top of Blender's own Python: what the farm runs to render a scene.

Runs inside the environment that `install.py` makes, as `python -I …/launcher`, and imports nothing but the standard
library and `bpy`. Works in every Blender from 3.4 on. `command` is where it begins; here is what all of it prints, and
the errors that end it.
"""

import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Collection, Iterator
from typing import Final

MAX_FRAMES: Final = 100_000
"""The most frames of a task, as in farm/frames.py."""


class Failed(Exception):
    """The scene or a frame failed: ends the program with Blender's own message, without its `Error: `, on one line."""

    code = 1

    def __init__(self, message: object) -> None:
        super().__init__(one_line(message).removeprefix("Error: "))


class WrongOption(Failed):
    """An option is not allowed or not understood."""

    code = 2


class NoEngine(Failed):
    """This Blender does not have the render engine: another machine's may."""

    code = 3


def one_line(text: object) -> str:
    return " ".join(str(text).split())


def speak_utf8() -> None:
    """Write UTF-8, which HPCServer reads, whatever the computer's language is; a name in a scene that is no text gets
    question marks instead of ending the render."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")


def say(text: str) -> None:
    """A line on stdout, at once: somebody follows the progress."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads any more
        os._exit(1)


def warn(sentence: object) -> None:
    """Something that a person must know of the picture: it stays with the task as a warning."""
    say(f"Warning: {one_line(sentence)}")


def several(names: Collection[str], most: int = 5) -> str:
    """Names for a sentence: the first few, and how many there are besides."""
    return ", ".join(list(names)[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


@contextlib.contextmanager
def held_back(pattern: str) -> Iterator[None]:
    """What Blender writes meanwhile is written afterwards, without the lines that fit: what they say may not be the
    last word."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as file:
        out = os.dup(1)
        os.dup2(file.fileno(), 1)
        try:
            yield
        finally:
            sys.stdout.flush()
            os.dup2(out, 1)
            os.close(out)
            file.seek(0)
            for line in file.read().decode("utf-8", "replace").splitlines():
                if not re.match(pattern, line):
                    say(line)
