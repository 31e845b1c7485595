"""What the launcher says, and what ends it."""

import os
import sys


class Failed(Exception):
    """The scene or a frame failed: ends the program with Blender's own message, without its `Error: `, on one line."""

    code = 1

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()).removeprefix("Error: "))


class Refused(Failed):
    """An option is not allowed or not understood."""

    code = 2


def say(text: str) -> None:
    """A line on stdout, at once: somebody follows the progress."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads any more
        os._exit(1)
