"""Checks of rendered pictures, and their previews: small JPEGs that every browser shows.

A picture comes from a renderer that a user's scene drives: its decoder may crash, hang or ask for all the memory. So
`ImageChecker` decodes it in a child with limits (R13 Hostile content), which also makes the previews. `thumb` is for
grids; `view` is made of formats that browsers can't show, with light brought into a screen's range. RenderAPI only
stores previews (`PreviewFiles`) and serves them; a lost one is no failure.
"""

import base64
import contextlib
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from renderonline.sandbox.box import NO_BOX, Found
from renderonline.sandbox.privacy import write_private
from renderonline.storage import disk
from renderonline.storage.confined import Confined

SIZES: Final[Mapping[str, int]] = {"view": 1920, "thumb": 320}
"""Name -> the most pixels of a side; the larger first."""
LARGEST: Final = 512 * 1024
"""Bytes of a preview."""
_BYTES: Final[Mapping[str, int]] = {"view": LARGEST, "thumb": LARGEST // 4}
_BY_BROWSERS: Final = frozenset({"png", "jpeg", "gif", "webp", "bmp"})
_QUALITIES: Final = (82, 60, 30)
_SHOULDER: Final = 0.8
"""Light up to this value is kept; brighter light is compressed between it and white."""
_BACKGROUND: Final = 0.18
"""The grey (as light) that shows where a picture is transparent."""


def make(oiio: Any, picture: Any) -> dict[str, bytes]:
    """Return the previews of a decoded picture, size -> JPEG. Only for the child: it alone imports OpenImageIO."""
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
    """Pixels for a screen. Floating-point values are taken for light, integers for a screen's values."""
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
    """What a screen shows for each 16-bit floating-point value of light: sRGB, with bright light compressed."""
    light = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    light, room = np.nan_to_num(np.clip(light, 0.0, 1e4)), 1.0 - _SHOULDER
    pressed = np.where(light > _SHOULDER, _SHOULDER + room * (1.0 - np.exp((_SHOULDER - light) / room)), light)
    shown = np.where(pressed <= 0.0031308, 12.92 * pressed, 1.055 * pressed ** (1 / 2.4) - 0.055)
    return (shown * 255.0 + 0.5).astype(np.uint8)


def _jpeg(oiio: Any, pixels: Any, most: int) -> bytes:
    """A JPEG of at most `most` bytes, or b""; it is written in memory, because the child may write no file."""
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
        """Return where the preview of a result is, or would be."""
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return self._directory / str(task_id) / f"{digest}.{size}.jpg"

    def there(self, results: Iterable[tuple[int, str]]) -> frozenset[tuple[int, str]]:
        """Which of these results (task id, name) can be shown in a grid."""
        return frozenset(one for one in results if self.path(*one, "thumb").exists())

    def put(self, task_id: int, name: str, size: str, jpeg: bytes) -> Path:
        """Store a preview, which may replace an older one. Raises OSError when the disk refuses."""
        path = self.path(task_id, name, size)
        disk.make_private(self._directory)
        path.parent.mkdir(mode=disk.DIRECTORY, exist_ok=True)
        write_private(path, jpeg, durable=False)
        return path

    def take_back(self, path: Path) -> None:
        """Remove what `put` has just stored, because its task has been deleted."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
            path.parent.rmdir()

    def on_disk(self) -> tuple[int, ...]:
        """The tasks that have previews."""
        return tuple(int(path.name) for path in self._directory.glob("*") if path.name.isdecimal())

    def remove(self, task_id: int) -> None:
        """Remove all previews of a task."""
        shutil.rmtree(self._directory / str(task_id), ignore_errors=True)


LARGEST_PICTURE_BYTES: Final = 1 << 30
"""Decoded; one that says it is larger is refused before it is read."""
MOST_PARTS: Final = 64
"""Parts of a multi-part picture that are looked at."""
LONGEST_FACT: Final = 200
_FOR_PREVIEWS: Final = 1 / 3
"""Pictures that take longer than this part of a check's time to decode have no previews."""
DEPTHS: Final = frozenset({"z", "zback", "depth"})
"""Channels that hold distances."""
NO_NUMBERS: Final = "are not numbers (NaN or infinite); often a material or a compositing node divides by zero"


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Whether a file is a whole picture; if not, `reason` says why.

    `facts`: width, height, channels, format (png, openexr, …), pixel_type, constant (whether all pixels are the same),
    and where the picture says so render_time_s, memory_mib, frame, camera, scene, software, samples. `previews`: JPEGs
    of a good picture by size (`SIZES`), when they were asked for and could be made.
    """

    ok: bool
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    previews: Mapping[str, bytes] = field(default_factory=dict)


def _bad(reason: str, facts: Mapping[str, Any] | None = None) -> ImageCheck:
    return ImageCheck(ok=False, reason=reason, facts=facts or {})


class ImageChecker(Confined):
    """Checks pictures in a child of its own, one at a time. Blocking: call it in a thread."""

    def __init__(self, *, time_s: float = 30.0, memory_bytes: int = 4 << 30, found: Found = NO_BOX) -> None:
        super().__init__(f"{__name__}:checked", time_s=time_s, memory_bytes=memory_bytes, found=found)

    def check(
        self, path: Path, *, previews: bool = False, within: Path | None = None, size: tuple[int, int] = (0, 0)
    ) -> ImageCheck:
        """Decode the whole file; any content is a result, never an error, and failed previews don't make it bad. In a
        box, the pictures below `within` can be read; with one directory for a whole farm the child need not be started
        again. No directory on the way from there may be a link. A picture that has not the `size` (width, height;
        zeros: any) is bad, and is not decoded."""
        root = within or path.parent
        where, previews_s = (str(root), str(path.relative_to(root))), self.time_s * _FOR_PREVIEWS if previews else 0
        self.open(str(root))
        try:
            found = self.call(*where, previews_s, *size)
        except (TimeoutError, EOFError) as error:
            if previews:
                return self.check(path, within=within, size=size)
            if isinstance(error, TimeoutError):
                return _bad(f"the picture could not be decoded within {self.time_s:g} s")
            return _bad("the decoder crashed on the picture or ran out of memory")
        made = {size: base64.b64decode(jpeg) for size, jpeg in found.pop("previews").items()}
        return ImageCheck(**found, previews=made)


def checked(root: str, name: str, previews_s: float, width: int, height: int) -> dict[str, Any]:
    """An `ImageCheck` as JSON, with previews if the picture was decoded within `previews_s` seconds. Only for the
    child: the parent never imports OpenImageIO. Works in the directory that holds the picture, so that renaming it, or
    putting a link in its place, leads to no other one."""
    import OpenImageIO as oiio  # noqa: N813

    oiio.attribute("threads", 1)
    begun = time.monotonic()
    try:
        path = _entered(root, name)
        picture = oiio.ImageBuf(path) if os.path.isfile(path) else None
        check = _examined(oiio, path, picture, (width, height))
    except (MemoryError, RuntimeError, ValueError, OSError) as error:
        picture, check = None, _bad(f"the picture could not be decoded: {type(error).__name__}")
    made: dict[str, bytes] = {}
    if check.ok and time.monotonic() - begun < previews_s:
        with contextlib.suppress(Exception):
            made = make(oiio, picture)
    return asdict(check) | {"previews": {size: base64.b64encode(jpeg).decode() for size, jpeg in made.items()}}


def _entered(root: str, name: str) -> str:
    """Change to the directory of a file below `root`; return the file's name in it. Raises OSError for a link."""
    *folders, last = name.split("/")
    os.chdir(root)
    for folder in folders:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchdir(handle)
        finally:
            os.close(handle)
    return last


def _examined(oiio: Any, path: str, picture: Any, size: tuple[int, int]) -> ImageCheck:
    """Decode the file at `path`, of which `picture` is the first part."""
    if picture is None:
        return _bad("there is no such file")
    if os.path.getsize(path) == 0:
        return _bad("the file is empty")
    if wrong := _of_another_size(picture, size):
        return _bad(wrong)
    if unreadable := _unreadable(picture, 0):
        return _bad(unreadable)
    if picture.file_format_name == "jpeg" and not _ends_as_jpeg(path):
        return _bad("the JPEG file ends too early")
    facts, wrong = _facts(oiio, picture), _not_numbers(oiio, picture)
    file, part = oiio.ImageInput.open(path), 1  # EXR and TIFF may have several parts
    while not wrong and part < MOST_PARTS and file is not None and file.seek_subimage(part, 0):
        other = oiio.ImageBuf(path, part, 0)
        wrong = _unreadable(other, part) or _not_numbers(oiio, other)
        wrong, part = wrong and f"in part {part}: {wrong}", part + 1
    return _bad(wrong, facts) if wrong else ImageCheck(ok=True, facts=facts)


def _of_another_size(picture: Any, wanted: tuple[int, int]) -> str:
    """Checked before anything is decoded, because a small file can claim to be very large."""
    spec = picture.spec()
    found = (spec.full_width or spec.width, spec.full_height or spec.height)
    if not all(wanted) or not all(found) or found == wanted:
        return ""
    return f"it has {found[0]} x {found[1]} pixels, the task asks for {wanted[0]} x {wanted[1]}"


def _unreadable(picture: Any, part: int) -> str:
    """Decode a part of a picture; return why that fails, or ""."""
    spec = picture.spec()
    if picture.has_error or spec.width <= 0 or spec.height <= 0 or spec.nchannels <= 0:
        return _complaint(picture) or "the file is not a picture"
    if spec.image_bytes() > LARGEST_PICTURE_BYTES:
        return f"a picture of {spec.width} x {spec.height} is too large to be checked"
    if not picture.read(part, 0, force=True) or picture.has_error:
        return _complaint(picture) or "the picture is not whole"
    return ""


def _ends_as_jpeg(path: str) -> bool:
    """Whether the end marker is there: the decoder silently paints missing parts grey."""
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - 64, 0))
        return file.read().rstrip(b"\0").endswith(b"\xff\xd9")


def _not_numbers(oiio: Any, picture: Any) -> str:
    """Which values of a decoded picture no viewer can show, or "". Depth may be infinite, where nothing is."""
    spec = picture.spec()
    if spec.format.basetype not in (oiio.HALF, oiio.FLOAT, oiio.DOUBLE):
        return ""
    stats = oiio.ImageBufAlgo.computePixelStats(picture)
    counts = {
        name: nan + (0 if name.rpartition(".")[2].casefold() in DEPTHS else infinite)
        for name, nan, infinite in zip(spec.channelnames, stats.nancount, stats.infcount, strict=True)
    }
    bad = [name for name, count in counts.items() if count]
    channels = ", ".join(bad[:4])[:LONGEST_FACT] + (" and others" if len(bad) > 4 else "")
    return f"{sum(counts.values())} values of channel {channels} {NO_NUMBERS}" if bad else ""


def _facts(oiio: Any, picture: Any) -> dict[str, Any]:
    """What a decoded picture is, and what it says of itself."""
    spec = picture.spec()
    return {
        "width": spec.full_width or spec.width,
        "height": spec.full_height or spec.height,
        "channels": spec.nchannels,
        "format": str(picture.file_format_name),
        "pixel_type": str(spec.format),
        "constant": bool(oiio.ImageBufAlgo.isConstantColor(picture)),
        **_said(spec),
    }


def _said(spec: Any) -> dict[str, Any]:
    """The useful metadata of a picture, much of which Blender writes."""
    said = {attribute.name: str(attribute.value)[:LONGEST_FACT] for attribute in spec.extra_attribs}
    facts: dict[str, Any] = {name.lower(): said[name] for name in ("Camera", "Scene", "Software") if name in said}
    for name, text in said.items():
        if name == "RenderTime" and (render_time := seconds(text)) is not None:
            facts["render_time_s"] = render_time
        elif name == "Memory" and (match := re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)([KMG])B?", text, re.ASCII)):
            facts["memory_mib"] = round(float(match[1]) * 1024.0 ** ("KMG".index(match[2]) - 1), 1)
        elif name == "Frame" and re.fullmatch(r"-?\d{1,9}", text):
            facts["frame"] = int(text)
        elif re.fullmatch(r"cycles\..{1,64}\.samples", name) and re.fullmatch(r"\d{1,9}", text):
            facts["samples"] = int(text)
    return facts


def seconds(text: str) -> float | None:
    """Blender's `01:02.50` or `1:02:03.50` in seconds, None when it is something else."""
    if not re.fullmatch(r"(?:\d{1,6}:){0,2}\d{1,6}(?:\.\d{1,6})?", text, re.ASCII):
        return None
    total = 0.0
    for part in text.split(":"):
        total = total * 60 + float(part)
    return round(total, 3)


def _complaint(picture: Any) -> str:
    """OpenImageIO's first complaint, short."""
    lines = [line.strip() for line in str(picture.geterror()).splitlines() if line.strip()]
    return lines[0][:LONGEST_FACT] if lines else ""
