"""The command line: Blender's own words, done in their order.

Only the options that a render needs exist here. Scripts that a scene brings along never run, whatever it says.

    blender -b FILE -o PATH -F FORMAT -x 1 -t THREADS -s FIRST -e LAST -j STEP -a

Exit codes: 0 every frame was written; 1 the scene or a frame failed, `Error: …` on stderr says why; 2 an option is
not allowed or not understood; 3 this Blender does not have the scene's render engine.

Blender as a Python module gets its number of threads when it is loaded, and ends at once when a signal comes.
"""

import os
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from .session import Session
from .speech import Failed, WrongOption, say, speak_utf8
from .wishes import Wishes, list_engines


def run(words: Sequence[str]) -> NoReturn:
    """Run the words and end the process."""
    default_signals()
    speak_utf8()
    try:
        main(words)
    except Failed as failed:
        sys.stdout.flush()  # Blender's own lines wait there, and the last line is the one that people read
        sys.stderr.write(f"Error: {failed}\n")
        leave(failed.code)
    except BaseException:  # noqa: BLE001 - whatever it is, the exit code must say so
        traceback.print_exc()
        leave(1)
    leave(0)


def main(words: Sequence[str]) -> None:
    """Run the words; raises `Failed` when something ends it early."""
    if words and os.path.basename(words[0]) == "blender":  # v1's templates begin with the program's name
        words = words[1:]
    if not words or words[0] in ("-h", "--help"):
        say(USAGE)
        return
    if words[0] in ("-v", "--version"):
        say(f"Blender {import_bpy().app.version_string}")
        return
    if words[-2:] == ["-E", "help"]:
        list_engines(import_bpy())
        return
    steps, wishes = parse(words), Wishes(os.environ)
    bpy = import_bpy(threads_of(steps))
    if not is_module(bpy):
        begin_again(bpy, threads_of(steps))
    session = Session(bpy, wishes)
    handlers = bpy.app.handlers
    if is_module(bpy):  # the program prints its progress itself
        # Persistent: loading a file clears the others.
        handlers.render_stats.append(handlers.persistent(lambda *given: session.on_stats(*given)))
    for do, value in steps:
        do(session, value)
    say("\nBlender quit")


def leave(code: int) -> NoReturn:
    """End without the module's teardown, which may crash after the work is done; its temporary directory is ours to
    remove then."""
    bpy = sys.modules.get("bpy")
    if bpy is not None:
        shutil.rmtree(bpy.app.tempdir, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
                raise WrongOption(f"option {word} needs a value")
            steps.append((OPTIONS[word], value))
        elif word in ("-a", "--render-anim"):
            steps.append((Session.render_animation, ""))
        elif word == "--python-exit-code":
            next(rest, None)  # no script can fail where none runs
        elif not word.startswith("-"):
            steps.append((Session.load, word))
        elif word not in WITHOUT_MEANING:
            raise WrongOption(f"option {word} is not allowed here. {USAGE}")
    return steps


def threads_of(steps: Sequence[Step]) -> int:
    """The number of threads that the words ask for; 0: as many as there are processors."""
    threads = [value for do, value in steps if do is Session.set_threads and re.fullmatch(r"[0-9]{1,7}", value)]
    return int(threads[-1]) if threads else 0


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
