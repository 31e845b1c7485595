"""Blender's command line on top of the `bpy` module: the words run in order, as Blender does it.

Runs as a script inside the environment that `install.py` makes and imports nothing but the standard library and `bpy`.
Only the options that a render needs exist here. Scripts that a scene brings along never run, whatever it says.

    blender -b FILE -o PATH -F FORMAT -x 1 -t THREADS -s FIRST -e LAST -j STEP -a

Exit codes: 0 every frame was written; 1 the scene or a frame failed, `Error: …` on stderr says why; 2 an option is
not allowed or not understood.
"""

import os
import re
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

USAGE: Final = (
    "Usage: blender -b FILE [-S SCENE] [-E ENGINE] [-o PATH] [-F FORMAT] [-x 0|1] [-t THREADS] "
    "[-s FRAME] [-e FRAME] [-j STEP] (-a | -f FRAMES)"
)
LARGEST_FRAME: Final = 1_048_574
MOST_FRAMES: Final = 100_000
MOST_THREADS: Final = 1_024
QUIET_S: Final = 0.2
"""Between progress lines that only name a stage; there are forty a frame."""
WITHOUT_MEANING: Final = frozenset(
    {"-b", "--background", "-noaudio", "--factory-startup", "--offline-mode", "-Y", "--disable-autoexec"}
)
"""Taken and ignored, because here it is always so."""
FORMATS: Final = {"TGA": "TARGA", "RAWTGA": "TARGA_RAW", "JP2": "JPEG2000", "EXR": "OPEN_EXR"}
"""Names on the command line -> names in the scene, where they differ."""
FILMS: Final = frozenset({"FFMPEG", "MPEG", "AVIJPEG", "AVIRAW", "AVI_JPEG", "AVI_RAW"})


class Failed(Exception):
    """The scene or a frame failed: ends the program with Blender's own message, without its `Error: `, on one line."""

    code = 1

    def __init__(self, message: object) -> None:
        super().__init__(" ".join(str(message).split()).removeprefix("Error: "))


class Refused(Failed):
    """An option is not allowed or not understood."""

    code = 2


class Session:
    """One run: the loaded file, the scene that options are about, and the frame that is being rendered."""

    def __init__(self, bpy: Any) -> None:
        self.bpy = bpy
        self.loaded = False
        self.scene = bpy.context.scene
        self.frame = 0
        self.said = 0.0
        """When the last progress line was printed."""

    def load(self, path: str) -> None:
        """Open a scene file with its scripts switched off."""
        if not os.path.isfile(path):
            raise Failed(f"Cannot read file '{path}': No such file or directory")
        try:
            self.bpy.ops.wm.open_mainfile(filepath=os.path.abspath(path), load_ui=False, use_scripts=False)
        except RuntimeError as error:
            raise Failed(error) from None
        self.loaded = True
        self.scene = self.bpy.context.scene
        say(f'Read blend: "{path}"')

    def select_scene(self, name: str) -> None:
        self.scene = self.bpy.data.scenes.get(name)
        if self.scene is None:
            raise Failed(f"Can't find scene: {name!r}")

    def select_engine(self, name: str) -> None:
        try:
            self.scene.render.engine = name
        except TypeError:
            raise Failed(f"engine not found '{name}'") from None

    def set_output(self, path: str) -> None:
        self.scene.render.filepath = path

    def set_format(self, name: str) -> None:
        if name in FILMS:
            raise Refused(f"format {name} is a film; render frames, the film is encoded from them afterwards")
        image = self.scene.render.image_settings
        try:
            if hasattr(image, "media_type"):  # since Blender 5.0 it decides which formats there are
                image.media_type = "MULTI_LAYER_IMAGE" if "MULTILAYER" in name else "IMAGE"
            image.file_format = FORMATS.get(name, name)
        except TypeError:
            raise Refused(f"format not found '{name}'") from None

    def set_extension(self, value: str) -> None:
        self.scene.render.use_file_extension = value.lower() not in ("0", "false")

    def set_threads(self, value: str) -> None:
        threads = _whole_number("-t", value, 0, MOST_THREADS)
        self.scene.render.threads_mode = "FIXED" if threads else "AUTO"
        if threads:
            self.scene.render.threads = threads

    def set_first(self, value: str) -> None:
        self.scene.frame_start = self._frame("-s", value)

    def set_last(self, value: str) -> None:
        self.scene.frame_end = self._frame("-e", value)

    def set_step(self, value: str) -> None:
        self.scene.frame_step = _whole_number("-j", value, 1, LARGEST_FRAME)

    def render_animation(self, _: str) -> None:
        self.render(range(self.scene.frame_start, self.scene.frame_end + 1, self.scene.frame_step))

    def render_frames(self, text: str) -> None:
        self.render(list(self._named(text)))

    def _named(self, text: str) -> Iterator[int]:
        """The frames of `1,3,5..9`."""
        for part in text.split(","):
            first, _, last = part.partition("..")
            start = self._frame("-f", first)
            end = self._frame("-f", last) if last else start
            if end - start >= MOST_FRAMES:
                raise Refused(f"-f {text} are too many frames")
            yield from range(start, end + 1)

    def _frame(self, option: str, text: str) -> int:
        """A frame number; `+N` and `-N` count from the scene's first and last."""
        match = re.fullmatch(r"([+-]?)(\d{1,7})", text, re.ASCII)
        if match is None or int(match[2]) > LARGEST_FRAME:
            raise Refused(f"{option} {text} is not a frame number")
        if match[1] == "-":
            return int(self.scene.frame_end) - int(match[2]) + 1
        return int(match[2]) + (int(self.scene.frame_start) if match[1] == "+" else 0)

    def render(self, frames: Sequence[int]) -> None:
        """Render frames one by one, so that the first that is not written ends the run."""
        if not self.loaded:
            raise Failed("Cannot render without a blend file")
        if not frames:
            raise Failed("there is no frame to render: the last frame is before the first")
        render = self.scene.render
        if render.image_settings.file_format in FILMS:
            raise Refused("the scene's own format is a film; choose one for frames with -F, for instance -F PNG")
        # The scene's meshes and acceleration structures are kept from frame to frame: up to three times faster.
        render.use_persistent_data = True
        if not render.use_stamp:  # else the time would be painted into the picture
            render.use_stamp_render_time = render.use_stamp_memory = True
        for frame in frames:
            self._render_frame(frame)

    def _render_frame(self, frame: int) -> None:
        scene = self.scene
        self.frame = frame
        began = time.time()
        start, end, step = scene.frame_start, scene.frame_end, scene.frame_step
        scene.frame_start = scene.frame_end = frame
        try:
            result = self.bpy.ops.render.render(animation=True, scene=scene.name)
        except RuntimeError as error:
            raise Failed(error) from None
        finally:
            # The end first: Blender keeps the start from passing it.
            scene.frame_end, scene.frame_start, scene.frame_step = end, start, step
        path = self.path_of(frame)
        written = "CANCELLED" not in result and os.path.isfile(path) and os.stat(path).st_mtime >= began - 2
        if not written and not scene.render.use_multiview:
            raise Failed(f"frame {frame} was not written: {path}")

    def path_of(self, frame: int) -> str:
        return str(self.bpy.path.abspath(self.scene.render.frame_path(frame=frame)))

    def on_stats(self, *words: object) -> None:
        """Blender's progress line; as a module it only hands it over."""
        text = next((word for word in words if isinstance(word, str)), "")
        tells = "Sample " in text or "Time:" in text
        if text and (tells or time.monotonic() - self.said > QUIET_S):
            self.said = time.monotonic()
            say(text if text.startswith("Fra:") else f"Fra:{self.frame} {text}")

    def on_write(self, *_: object) -> None:
        say(f"Saved: '{self.path_of(self.frame)}'")


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


def parse(words: Sequence[str]) -> list[tuple[Callable[[Session, str], None], str]]:
    """What is to be done, in the order of the words; what is not allowed is refused before anything is loaded."""
    steps: list[tuple[Callable[[Session, str], None], str]] = []
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


def main(words: Sequence[str]) -> None:
    """Run the words; raises `Failed` when something ends it early."""
    if words and os.path.basename(words[0]) == "blender":  # v1's templates begin with the program's name
        words = words[1:]
    if not words or words[0] in ("-h", "--help"):
        say(USAGE)
        return
    if words[0] in ("-v", "--version"):
        say(f"Blender {_import_bpy().app.version_string}")
        return
    steps = parse(words)
    threads = [value for do, value in steps if do is Session.set_threads and re.fullmatch(r"[0-9]{1,7}", value)]
    bpy = _import_bpy(int(threads[-1]) if threads else 0)
    session = Session(bpy)
    handlers = bpy.app.handlers
    # Persistent: loading a file clears the others.
    handlers.render_stats.append(handlers.persistent(lambda *given: session.on_stats(*given)))
    handlers.render_write.append(handlers.persistent(lambda *given: session.on_write(*given)))
    for do, value in steps:
        do(session, value)
    say("\nBlender quit")


def _import_bpy(threads: int = 0) -> Any:
    """Blender's module, made for so many threads (0: all processors)."""
    # A person's own settings and add-ons have no place in a render.
    os.environ["BLENDER_USER_RESOURCES"] = os.path.join(os.sep, "nonexistent")
    with _few_processors(threads):
        import bpy
    default_signals()  # in case the module changed them
    return bpy


@contextmanager
def _few_processors(threads: int) -> Iterator[None]:
    """Show only so many processors to what is imported within. The module's thread pool is as large as the processors
    it sees when it is loaded, whatever the scene says, and its idle threads spin: without this `-t 1` keeps two
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


def say(text: str) -> None:
    """A line on stdout, at once: somebody follows the progress."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads any more
        os._exit(1)


def _whole_number(option: str, text: str, smallest: int, largest: int) -> int:
    number = int(text) if re.fullmatch(r"\d{1,7}", text, re.ASCII) else -1
    if not smallest <= number <= largest:
        raise Refused(f"{option} {text} must be a number from {smallest} to {largest}")
    return number


def leave(code: int) -> NoReturn:
    """End without the module's teardown, which may crash after the work is done; its temporary directory is ours to
    remove then."""
    bpy = sys.modules.get("bpy")
    if bpy is not None:
        shutil.rmtree(bpy.app.tempdir, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    default_signals()
    try:
        main(sys.argv[1:])
    except Failed as failed:
        sys.stderr.write(f"Error: {failed}\n")
        leave(failed.code)
    except BaseException:  # noqa: BLE001 - whatever it is, the exit code must say so
        traceback.print_exc()
        leave(1)
    leave(0)
