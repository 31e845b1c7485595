"""Keeping what a program knows from the other programs of its account. Standard library only: the spawner uses it."""

import ctypes
import os
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4


def keep_private() -> None:
    """Let no other program of this account read this one's memory or environment, and write no core of it. Programs
    that it starts are as readable as ever. Linux only; an administrator still can."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def taken_from_environment(name: str) -> str:
    """The value of a variable, "" if there is none; then nobody finds it any more: neither a program that we start nor
    one that reads `/proc/<pid>/environ`, where a variable that was unset stays."""
    value = os.environ.get(name, "")
    if value and sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        if (place := libc.getenv(os.fsencode(name))) is not None:
            ctypes.memset(place, ord("x"), len(os.fsencode(value)))
    os.environ.pop(name, None)
    return value
