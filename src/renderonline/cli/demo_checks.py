"""What the demo promises, looked at: frames that are pictures, all different, and a film with all of them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from renderonline.engines import films
from renderonline.farm.errors import RenderOnlineError

SMALLEST: Final = (640, 360)


@dataclass(frozen=True, slots=True)
class Picture:
    """What a frame is when it is decoded wholly."""

    width: int
    height: int
    pixels: str
    """Digest of the pixels; file digests differ already by the time stamp."""
    constant: bool
    render_time: str
    error: str = ""


def problems_of(frames: list[Path], film: Path, count: int) -> list[str]:
    """Everything that is not as promised, in plain words."""
    problems = [] if len(frames) == count else [f"There are {len(frames)} frames, not {count}."]
    pictures = {frame.name: look(frame) for frame in frames}
    for name, picture in pictures.items():
        problems += [f"{name}: {problem}" for problem in _problems(picture)]
    if len({picture.pixels for picture in pictures.values()}) != len(pictures):
        problems.append("Some frames show the same picture.")
    try:
        decoded = films.count_frames(film)
    except (RenderOnlineError, OSError) as error:
        return [*problems, f"{film.name} can't be decoded: {error}"]
    return problems if decoded == count else [*problems, f"{film.name} has {decoded} frames, not {count}."]


def look(path: Path) -> Picture:
    """Decode a picture wholly."""
    from OpenImageIO import UINT8, ImageBuf, ImageBufAlgo

    image = ImageBuf(str(path))
    if not image.read(0, 0, force=True):
        return Picture(0, 0, "", constant=True, render_time="", error=str(image.geterror()))
    spec = image.spec()
    pixels = image.get_pixels(UINT8)
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest() if pixels is not None else ""
    constant = ImageBufAlgo.isConstantColor(image) is not None
    return Picture(spec.width, spec.height, digest, constant, str(spec.get_string_attribute("RenderTime")))


def _problems(picture: Picture) -> list[str]:
    if picture.error:
        return [f"it does not decode ({picture.error})"]
    found = []
    if picture.width < SMALLEST[0] or picture.height < SMALLEST[1]:
        found.append(f"it has only {picture.width} x {picture.height} pixels")
    if picture.constant:
        found.append("it has one colour only")
    if not picture.render_time:
        found.append("it does not say how long it was rendered")
    return found
