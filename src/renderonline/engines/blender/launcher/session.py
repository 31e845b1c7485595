"""One run of the launcher: the loaded file, what the options change in it, and its frames."""

import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

from .speech import Failed, Refused, say

LARGEST_FRAME: Final = 1_048_574
MOST_FRAMES: Final = 100_000
MOST_THREADS: Final = 1_024
QUIET_S: Final = 0.2
"""Between progress lines that only name a stage; there are forty a frame."""
FORMATS: Final = {"TGA": "TARGA", "RAWTGA": "TARGA_RAW", "JP2": "JPEG2000", "EXR": "OPEN_EXR"}
"""Names on the command line -> names in the scene, where they differ."""
FILMS: Final = frozenset({"FFMPEG", "MPEG", "AVIJPEG", "AVIRAW", "AVI_JPEG", "AVI_RAW"})


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


def _whole_number(option: str, text: str, smallest: int, largest: int) -> int:
    number = int(text) if re.fullmatch(r"\d{1,7}", text, re.ASCII) else -1
    if not smallest <= number <= largest:
        raise Refused(f"{option} {text} must be a number from {smallest} to {largest}")
    return number
