"""Blender as a Python module: its number of threads, and an end at once when a signal comes."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def import_bpy(threads: int = 0) -> Any:
    """Blender's module, loaded so that it uses this number of threads (0: one for each processor)."""
    if "bpy" in sys.modules:
        return sys.modules["bpy"]
    # A person's own settings and add-ons have no place in a render.
    os.environ["BLENDER_USER_RESOURCES"] = os.path.join(os.sep, "nonexistent")
    with _few_processors(threads):
        import bpy
    default_signals()  # in case the module changed them
    return bpy


def is_module(bpy: Any) -> bool:
    """Whether Blender is a module of this Python, not the program that runs us."""
    return bool(getattr(bpy.app, "module", False))


def begin_again(bpy: Any, threads: int) -> None:
    """Replace this process by Blender the program with the option `-t`: it makes its threads before it runs us. Does
    nothing where it has the option already."""
    own = sys.argv.index("--")
    if not 0 < threads < (os.cpu_count() or 1) or "-t" in sys.argv[:own]:
        return
    shutil.rmtree(bpy.app.tempdir, ignore_errors=True)
    words = [bpy.app.binary_path, "-t", str(threads), *sys.argv[1:]]
    os.execv(words[0], words)  # noqa: S606 - the program that runs us


@contextmanager
def _few_processors(threads: int) -> Iterator[None]:
    """Show that number of processors, no more, to what is imported within. The module makes a thread for each processor
    that it sees when it is loaded, whatever the scene says, and idle threads spin: without this `-t 1` keeps two
    processors busy. The real Blender limits the pool by `-t` itself."""
    if not hasattr(os, "sched_setaffinity") or not 0 < threads < len(os.sched_getaffinity(0)):
        yield
        return
    everything = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(everything)[:threads])
    try:
        yield
    finally:
        for thread in _threads():
            os.sched_setaffinity(thread, everything)


def _threads() -> list[int]:
    """The numbers of this process's threads. In a box without `/proc` the system is asked of every number between the
    process's and the newest one's whether it is a thread of ours."""
    try:
        return [int(name) for name in os.listdir("/proc/self/task")]
    except OSError:
        pass
    import ctypes
    import threading

    newest: list[int] = []
    thread = threading.Thread(target=lambda: newest.append(threading.get_native_id()))
    thread.start()
    thread.join()
    libc, own = ctypes.CDLL(None), os.getpid()
    call = {"x86_64": 234, "aarch64": 131}.get(os.uname().machine, -1)  # tgkill; with signal 0 it only looks
    numbers = range(own, newest[0]) if own < newest[0] else range(own, own + 1)  # the numbers began again: only ours
    return [number for number in numbers if libc.syscall(call, own, number, 0) == 0]


def default_signals() -> None:
    """End at once when told to: a handler in Python would wait for the frame in C to end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
