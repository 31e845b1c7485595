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
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from . import MAX_FRAMES, Failed, NoEngine, WrongOption, held_back, say, several, speak_utf8, warn
from .companions import Companions, escaped, export_svg, has_camera, settle_svg, takes_variables, write_sound
from .files import find_files, missing_at_first, unbaked
from .task_options import TRY_CARDS, Devices, EngineNames, SceneOptions, list_engines, try_cards

LAST_FRAME: Final = 1_048_574
"""The largest number of a frame that Blender has."""
MOST_THREADS: Final = 1_024
QUIET_S: Final = 0.2
"""Between progress lines that only name a stage; there are forty a frame."""
FORMATS: Final = {"TGA": "TARGA", "RAWTGA": "TARGA_RAW", "JP2": "JPEG2000", "EXR": "OPEN_EXR"}
"""Names on the command line -> names in the scene, where they differ."""
ODD_FORMATS: Final = frozenset({"AVIF", "DDS", "PSD", "FITS"})
"""Those that a scene may have and the farm does not take: it can't look into such files."""
FILMS: Final = frozenset({"FFMPEG", "MPEG", "AVIJPEG", "AVIRAW", "AVI_JPEG", "AVI_RAW"})
NO_CAMERA: Final = "The scene has no camera: choose one in Blender, or name one with --arg camera=NAME"

ADVICE: Final = "Bake what they do into keyframes before you submit."
IN_ONE_PART: Final = "--chunk 100000 for one part"


class Session:
    """One run: the loaded file, the scene that options are about, and the frame that is being rendered.

    The scene's own range of frames is never changed: drivers and modifiers may read it.
    """

    def __init__(self, bpy: Any, options: SceneOptions) -> None:
        self.bpy = bpy
        self.options = options
        self.engines = EngineNames(bpy)
        self.loaded = False
        self.scene = bpy.context.scene
        self.devices = Devices(bpy)
        self.directory = ""
        """Where everything that the scene writes goes; "" without `-o`: where the scene says."""
        self.range: dict[str, int] = {}
        """What the options say of the first and last frame and the step."""
        self.frame = 0
        self.said = 0.0
        """When the last progress line was printed."""

    def load(self, path: str) -> None:
        """Open a scene file with its scripts switched off."""
        if not os.path.isfile(path):
            raise Failed(f"Cannot read file '{path}': No such file or directory")
        try:
            with held_back(missing_at_first(self.bpy)):
                self.bpy.ops.wm.open_mainfile(filepath=os.path.abspath(path), load_ui=False, use_scripts=False)
        except RuntimeError as error:
            raise Failed(error) from None
        self.loaded = True
        self.scene = self.options.scene_of(self.bpy)
        say(f'Read blend: "{path}"')
        find_files(self.bpy, os.environ.get("RENDERONLINE_INPUTS", ""))

    def select_scene(self, name: str) -> None:
        self.scene = self.bpy.data.scenes.get(name)
        if self.scene is None:
            raise Failed(f"Can't find scene: {name!r}")

    def select_engine(self, name: str) -> None:
        try:
            self.engines.choose(self.scene, name)
        except NoEngine:
            raise Failed(f"engine not found '{name}'") from None

    def set_output(self, path: str) -> None:
        render = self.scene.render
        render.filepath = escaped(path) if takes_variables(render) else path
        self.directory = os.path.dirname(self.path_of(0))

    def set_format(self, name: str) -> None:
        if name in FILMS:
            raise WrongOption(f"format {name} is a film; render frames, the film is encoded from them afterwards")
        image = self.scene.render.image_settings
        own = str(image.file_format)
        several_views = self.scene.render.use_multiview and image.views_format == "MULTIVIEW"
        try:
            if hasattr(image, "media_type"):  # since Blender 5.0 it decides which formats there are
                image.media_type = "MULTI_LAYER_IMAGE" if "MULTILAYER" in name else "IMAGE"
            image.file_format = FORMATS.get(name, name)
        except TypeError:
            raise WrongOption(f"format not found '{name}': this Blender can't write it") from None
        if several_views and "EXR" not in name:  # only EXR holds views of its own
            image.views_format = "STEREO_3D"
            warn(f"A file of format {name} can't hold several views: the picture has them side by side or as anaglyph.")
        if own in ODD_FORMATS:
            warn(f"The scene's own format {own} can't be asked for on this farm: the frames are {name}.")

    def set_extension(self, value: str) -> None:
        self.scene.render.use_file_extension = value.lower() not in ("0", "false")

    def set_threads(self, value: str) -> None:
        threads = whole_number("-t", value, 0, MOST_THREADS)
        self.scene.render.threads_mode = "FIXED" if threads else "AUTO"
        if threads:
            self.scene.render.threads = threads

    def set_first(self, value: str) -> None:
        self.range["first"] = self._frame("-s", value)

    def set_last(self, value: str) -> None:
        self.range["last"] = self._frame("-e", value)

    def set_step(self, value: str) -> None:
        self.range["step"] = whole_number("-j", value, 1, LAST_FRAME)

    def render_animation(self, _: str) -> None:
        scene, asked = self.scene, self.range
        first, last = asked.get("first", scene.frame_start), asked.get("last", scene.frame_end)
        self.render(range(first, last + 1, asked.get("step", scene.frame_step)))

    def render_frames(self, text: str) -> None:
        self.render(list(self._named(text)))

    def _named(self, text: str) -> Iterator[int]:
        """The frames of `1,3,5..9`."""
        for part in text.split(","):
            first, _, last = part.partition("..")
            start = self._frame("-f", first)
            end = self._frame("-f", last) if last else start
            if end - start >= MAX_FRAMES:
                raise WrongOption(f"-f {text} are too many frames")
            yield from range(start, end + 1)

    def _frame(self, option: str, text: str) -> int:
        """A frame number. `+N` counts from the scene's first; `-N` is a frame below zero, never counted from the end:
        scenes have such frames."""
        match = re.fullmatch(r"([+-]?)(\d{1,7})", text, re.ASCII)
        if match is None or int(match[2]) > LAST_FRAME:
            raise WrongOption(f"{option} {text} is not a frame number")
        if match[1] == "+":
            return int(match[2]) + int(self.scene.frame_start)
        return int(text)

    def render(self, frames: Sequence[int]) -> None:
        """Render frames one by one, so that the first that is not written ends the run."""
        if not self.loaded:
            raise Failed("Cannot render without a blend file")
        if not frames:
            raise Failed("there is no frame to render: the last frame is before the first")
        render = self.scene.render
        if render.image_settings.file_format in FILMS:
            raise WrongOption("the scene's own format is a film; choose one for frames with -F, for instance -F PNG")
        if self.options.of("CHECK"):
            self._check()
            return
        self.options.apply(self.scene, self.engines)
        companions = Companions(self.bpy, self.scene, self.directory)
        self.engines.check(companions.scenes)
        companions.take_home()
        export_svg(self.bpy, self.scene)
        # The scene's meshes and acceleration structures are kept from frame to frame: up to three times faster.
        render.use_persistent_data = True
        render.use_overwrite, render.use_placeholder = True, False  # which frames are rendered is the farm's to say
        if not render.use_stamp:  # else the time would be painted into the picture
            render.use_stamp_render_time = render.use_stamp_memory = True
        write_sound(self.bpy, self.scene, self.directory, frames[0])
        self.devices.choose(self.scene)
        for frame in frames:
            self._render_frame(frame, companions)
            if frame == frames[0]:  # drivers show it only after a frame
                self._warn_of_blocked_python()

    def _check(self) -> None:
        """Say what would end a render, or be wrong in its pictures, as far as it shows without one; which files are
        missing was said when the file was loaded."""
        scene = self.scene
        try:
            self.options.apply(scene, self.engines)
            self.engines.check(Companions(self.bpy, scene, "").scenes)
        except Failed as failed:
            warn(failed)
        if not has_camera(scene):
            warn(NO_CAMERA)
        if names := unbaked(scene):
            warn(f"not baked: each part begins it from the start: {several(names)}; bake, or use {IN_ONE_PART}")

    def _render_frame(self, frame: int, companions: Companions) -> None:
        self.frame = frame
        path, views = self.path_of(frame), [self.path_of(frame, view) for view in companions.views]
        companions.expect(path, *views)
        try:
            result = self._draw(frame)
        except RuntimeError as error:
            raise Failed(NO_CAMERA if "no camera" in str(error) else error) from None
        written = companions.written(path, *views)
        for name in sorted(written):
            say(f"Saved: '{name}'")
        whole = path in written or (views and written.issuperset(views))
        if "CANCELLED" in result or not whole:
            raise Failed(f"frame {frame} was not written: {path}")

    def _draw(self, frame: int) -> set[str]:
        """Render one frame to its file and leave the scene's range alone."""
        scene, render, operator = self.scene, self.scene.render, self.bpy.ops.render.render
        if "frame_start" in operator.get_rna_type().properties:  # since Blender 5.0
            return set(operator(animation=True, scene=scene.name, frame_start=frame, frame_end=frame))
        scene.frame_set(frame)
        path, pattern = self.path_of(frame), render.filepath
        render.filepath = path
        try:
            return set(operator(write_still=True, scene=scene.name))
        finally:
            render.filepath = pattern
            settle_svg(path, frame)

    def _warn_of_blocked_python(self) -> None:
        texts = [text.name for text in self.bpy.data.texts if text.use_module]
        if texts:
            warn(f"Python is switched off on this farm; these scripts did not run: {several(texts)}. {ADVICE}")
        drivers = sorted({driver.expression for driver in _drivers(self.bpy.data) if _is_blocked(driver)})
        if drivers:
            warn(f"Python is switched off on this farm; these drivers stand still: {several(drivers)}. {ADVICE}")

    def path_of(self, frame: int, view: str = "") -> str:
        return str(self.bpy.path.abspath(self.scene.render.frame_path(frame=frame, view=view)))

    def on_stats(self, *words: object) -> None:
        """Blender's progress line; as a module it only hands it over."""
        text = next((word for word in words if isinstance(word, str)), "")
        measures = "Sample " in text or "Time:" in text
        if text and (measures or time.monotonic() - self.said > QUIET_S):
            self.said = time.monotonic()
            say(text if text.startswith("Fra:") else f"Fra:{self.frame} {text}")


def whole_number(option: str, text: str, smallest: int, largest: int) -> int:
    """The number that an option's word is; `WrongOption` when it is none from `smallest` to `largest`."""
    number = int(text) if re.fullmatch(r"\d{1,7}", text, re.ASCII) else -1
    if not smallest <= number <= largest:
        raise WrongOption(f"{option} {text} must be a number from {smallest} to {largest}")
    return number


def _drivers(data: Any) -> Iterator[Any]:
    for collection in data.bl_rna.properties:
        if collection.type == "COLLECTION":
            for block in getattr(data, collection.identifier):
                for owner in (block, getattr(block, "node_tree", None)):
                    animation = getattr(owner, "animation_data", None)
                    yield from (curve.driver for curve in (animation.drivers if animation else ()))


def _is_blocked(driver: Any) -> bool:
    return driver.type == "SCRIPTED" and not driver.is_simple_expression and not driver.is_valid


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
    words = list(words)
    if words and os.path.basename(words[0]) == "blender":  # v1's templates begin with the program's name
        del words[0]
    if not words or words[0] in ("-h", "--help"):
        say(USAGE)
        return
    if words[0] in ("-v", "--version"):
        say(f"Blender {import_bpy().app.version_string}")
        return
    if words[-2:] == ["-E", "help"]:
        list_engines(import_bpy())
        return
    if words == [TRY_CARDS]:
        try_cards(import_bpy())
        return
    steps, options = parse(words), SceneOptions(os.environ)
    bpy = import_bpy(threads_of(steps))
    if not is_module(bpy):
        begin_again(bpy, threads_of(steps))
    session = Session(bpy, options)
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
    """End at once when a signal asks for it: a handler in Python would wait for the frame in C to end."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
