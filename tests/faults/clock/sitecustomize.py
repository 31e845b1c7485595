"""Put on a program's path: its wall clock is off by the seconds that lie in the file `FAULTS_CLOCK`, and can jump; and
nothing is there for it below the directory `FAULTS_APART`, as on a computer that does not share it.

The monotonic clock is left alone, as it is when somebody sets a computer's clock.
"""

import mmap
import os
import struct
import sys
import time
from typing import Any


def _jumpy(path: str) -> None:
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    real, real_ns = time.time, time.time_ns

    def offset() -> int:
        return int(struct.unpack("q", shared)[0])

    time.time = lambda: real() + offset()
    time.time_ns = lambda: real_ns() + offset() * 1_000_000_000


def _apart(root: str) -> None:
    inside = (root, os.path.realpath(root))

    def hook(event: str, words: tuple[Any, ...]) -> None:
        if event != "open" and (not event.startswith("os.") or event.startswith("os.putenv")):
            return
        for word in words[:2]:
            if isinstance(word, (str, bytes)) and os.fsdecode(word).startswith(inside):
                raise FileNotFoundError(2, "another computer's file", word)

    sys.addaudithook(hook)


if os.environ.get("FAULTS_APART"):
    _apart(os.environ["FAULTS_APART"])
if os.environ.get("FAULTS_CLOCK"):
    _jumpy(os.environ["FAULTS_CLOCK"])
