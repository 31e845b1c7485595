"""Previews of pictures: small JPEGs that every browser shows at once, and where RenderAPI keeps them.

`thumb` is for grids; `view` is made of formats that browsers can't show, with light brought into a screen's range.
They are made by the child that has decoded the picture (R13 Hostile content), and only kept and served by RenderAPI.
Losing one costs nothing but looks.
"""

import contextlib
import hashlib
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from renderonline.sandbox.privacy import write_private
from renderonline.storage import modes

SIZES: Final[Mapping[str, int]] = {"view": 1920, "thumb": 320}
"""Name -> the most pixels of a side; the larger first."""
LARGEST: Final = 512 * 1024
"""Bytes of a preview."""
_BYTES: Final[Mapping[str, int]] = {"view": LARGEST, "thumb": LARGEST // 4}
_BY_BROWSERS: Final = frozenset({"png", "jpeg", "gif", "webp", "bmp"})
_QUALITIES: Final = (82, 60, 30)
_SHOULDER: Final = 0.8
"""Light up to here keeps its value; what is brighter is pressed between here and white."""
_BACKGROUND: Final = 0.18
"""The grey (as light) that shows where a picture is transparent."""


def make(oiio: Any, picture: Any) -> dict[str, bytes]:
    """The previews of a decoded picture as JPEG by size. Only for the child: it alone imports OpenImageIO."""
    made: dict[str, bytes] = {}
    colours = _colours(oiio, picture)
    for size, side in SIZES.items():
        if size == "thumb" or picture.file_format_name not in _BY_BROWSERS:
            colours = _shrunk(oiio, colours, side)
            made[size] = _jpeg(oiio, _shown(oiio, colours), _BYTES[size])
    return {size: jpeg for size, jpeg in made.items() if jpeg}


def _colours(oiio: Any, picture: Any) -> Any:
    """The channels red, green, blue and, where there is one, alpha; of a picture without colours its first channel."""
    names = picture.spec().channelnames
    layer = next((name[:-1] for name in names if name == "R" or name.endswith(".R")), "")
    wanted = [layer + colour for colour in "RGB"]
    if not set(wanted) <= set(names):
        wanted = [names[0]] * 3
    alpha = [layer + "A"] if layer + "A" in names else []
    if wanted + alpha == list(names):
        return picture
    return oiio.ImageBufAlgo.channels(picture, tuple(wanted + alpha), newchannelnames=tuple("RGBA"[: 3 + len(alpha)]))


def _shrunk(oiio: Any, picture: Any, side: float = math.inf) -> Any:
    """The whole display window, no side of it longer than `side` pixels."""
    spec = picture.spec()
    scale = min(1.0, side / max(spec.full_width, spec.full_height))
    if scale == 1.0 and spec.roi == spec.roi_full:
        return picture
    width, height = (max(1, round(length * scale)) for length in (spec.full_width, spec.full_height))
    return oiio.ImageBufAlgo.resize(picture, "box", 0.0, oiio.ROI(0, width, 0, height, 0, 1, 0, spec.nchannels))


def for_screen(oiio: Any, picture: Any) -> Any:
    """The whole display window of a decoded picture as pixels of 8 bits (rows, columns, RGB)."""
    return _shown(oiio, _shrunk(oiio, _colours(oiio, picture)))


def _shown(oiio: Any, picture: Any) -> Any:
    """What holds numbers with a point is light, everything else a screen's values."""
    import numpy as np

    spec = picture.spec()
    is_light = spec.format.basetype in (oiio.HALF, oiio.FLOAT, oiio.DOUBLE)
    pixels = picture.get_pixels(oiio.FLOAT if is_light or spec.nchannels == 4 else oiio.UINT8)
    colours = pixels[..., :3]
    if spec.nchannels == 4:
        behind = _BACKGROUND if is_light else _BACKGROUND ** (1 / 2.2)
        colours = colours + np.clip(1.0 - pixels[..., 3:], 0.0, 1.0) * np.float32(behind)
    if is_light:
        with np.errstate(all="ignore"):
            colours = _curve(np)[colours.astype(np.float16).view(np.uint16)]
    elif spec.nchannels == 4:
        colours = (np.clip(colours, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return np.ascontiguousarray(colours)


def _curve(np: Any) -> Any:
    """What a screen shows of each number of 16 bits that stands for light: sRGB, with room left for what is bright."""
    light = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    light, room = np.nan_to_num(np.clip(light, 0.0, 1e4)), 1.0 - _SHOULDER
    pressed = np.where(light > _SHOULDER, _SHOULDER + room * (1.0 - np.exp((_SHOULDER - light) / room)), light)
    shown = np.where(pressed <= 0.0031308, 12.92 * pressed, 1.055 * pressed ** (1 / 2.4) - 0.055)
    return (shown * 255.0 + 0.5).astype(np.uint8)


def _jpeg(oiio: Any, pixels: Any, most: int) -> bytes:
    """A JPEG of at most so many bytes, b"" when there is none; written in memory, for the child may write no file."""
    height, width, _ = pixels.shape
    for quality in _QUALITIES:
        handle = os.memfd_create("preview")
        try:
            spec = oiio.ImageSpec(width, height, 3, "uint8")
            spec.attribute("compression", f"jpeg:{quality}")
            output = oiio.ImageOutput.create("jpeg")
            written = output.open(f"/proc/self/fd/{handle}", spec) and output.write_image(pixels) and output.close()
            if written and os.fstat(handle).st_size <= most:
                return os.pread(handle, most, 0)
        finally:
            os.close(handle)
    return b""


class PreviewFiles:
    """The previews of all tasks, `<directory>/<task>/<digest of the result's name>.<size>.jpg`. Blocks: for threads."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, task_id: int, name: str, size: str) -> Path:
        """Where the preview of a result is, or would be."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self._directory / str(task_id) / f"{digest}.{size}.jpg"

    def there(self, results: Iterable[tuple[int, str]]) -> frozenset[tuple[int, str]]:
        """Which of these results (task id, name) can be shown in a grid."""
        return frozenset(one for one in results if self.path(*one, "thumb").exists())

    def put(self, task_id: int, name: str, size: str, jpeg: bytes) -> Path:
        """Keep a preview in the place of an older one. OSError when the disk refuses; then nothing is left of it."""
        path = self.path(task_id, name, size)
        modes.make_private(self._directory)
        path.parent.mkdir(mode=modes.DIRECTORY, exist_ok=True)
        write_private(path, jpeg, durable=False)
        return path

    def take_back(self, path: Path) -> None:
        """Remove what `put` has just kept: its task is gone by now."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()

    def on_disk(self) -> tuple[int, ...]:
        """The tasks that have previews."""
        return tuple(int(path.name) for path in self._directory.glob("*") if path.name.isdecimal())

    def remove(self, task_id: int) -> None:
        """Remove all previews of a task."""
        shutil.rmtree(self._directory / str(task_id), ignore_errors=True)
