"""Is this file a whole picture, and what does it say of itself? Decoded in a child with limits (R13 Hostile content).

A picture comes from a renderer that a user's scene drives: its decoder may crash, hang or ask for all the memory, so
it never runs in our own process.
"""

import base64
import contextlib
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from renderonline.sandbox.box import NO_BOX, Found
from renderonline.storage.confined import Confined
from renderonline.storage.previews import make

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
    of a good picture by size (`storage.previews.SIZES`), when they were asked for and could be made.
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
        """Decode the file wholly. Never raises for what is in the file; making previews of it never makes it bad. In a
        box, the pictures below `within` can be read; one directory for all of a farm saves new children. No directory
        on the way from there may be a link. A picture that is not of `size` (width, height; zeros: any) is bad, and is
        not decoded."""
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
    """An `ImageCheck` as JSON, of a picture that was decoded within `previews_s` seconds with its previews. Only for
    the child: the parent never imports OpenImageIO. Works in the directory that holds the picture: who renames it, or
    puts a link in its place, leads to no other one."""
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
    """Make the directory of a file below `root` the current one; the file's name in it. OSError behind a link."""
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
    """Seen before anything is decoded: a small file can say that it is very large."""
    spec = picture.spec()
    found = (spec.full_width or spec.width, spec.full_height or spec.height)
    if not all(wanted) or not all(found) or found == wanted:
        return ""
    return f"it has {found[0]} x {found[1]} pixels, the task asks for {wanted[0]} x {wanted[1]}"


def _unreadable(picture: Any, part: int) -> str:
    """Decode a part of a picture; why it can't be, or ""."""
    spec = picture.spec()
    if picture.has_error or spec.width <= 0 or spec.height <= 0 or spec.nchannels <= 0:
        return _complaint(picture) or "the file is not a picture"
    if spec.image_bytes() > LARGEST_PICTURE_BYTES:
        return f"a picture of {spec.width} x {spec.height} is too large to be checked"
    if not picture.read(part, 0, force=True) or picture.has_error:
        return _complaint(picture) or "the picture is not whole"
    return ""


def _ends_as_jpeg(path: str) -> bool:
    """Whether the end marker is there: the decoder paints what is missing grey and says nothing."""
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - 64, 0))
        return file.read().rstrip(b"\0").endswith(b"\xff\xd9")


def _not_numbers(oiio: Any, picture: Any) -> str:
    """Which values of a decoded picture no viewer can show, or ""; depth may be infinite: there is nothing."""
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
    """What the picture's metadata say that is worth keeping: Blender writes some of it."""
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
