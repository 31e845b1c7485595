"""The command line: Blender's own words, done in their order.

Only the options that a render needs exist here. Scripts that a scene brings along never run, whatever it says.

    blender -b FILE -o PATH -F FORMAT -x 1 -t THREADS -s FIRST -e LAST -j STEP -a

Exit codes: 0 every frame was written; 1 the scene or a frame failed, `Error: …` on stderr says why; 2 an option is
not allowed or not understood; 3 this Blender does not have the scene's render engine.
"""

import os
import shutil
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from .engine_list import list_engines
from .module import begin_again, default_signals, import_bpy, is_module
from .options import USAGE, parse, threads_of
from .session import Session
from .speech import Failed, say, speak_utf8
from .wishes import Wishes


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
