"""What the demo promises, looked at: frames that are pictures, all different, and a film with all of them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from renderonline.hpcserver.films import count_frames

SMALLEST: Final = (640, 360)


@dataclass(frozen=True, slots=True)
class Picture:
    """What a frame is when it is decoded wholly, and what is wrong with it."""

    width: int
    height: int
    pixels: str
    """Digest of the pixels; file digests differ already by the time stamp."""
    problems: list[str]


def problems_of(frames: list[Path], film: Path, count: int) -> list[str]:
    """Everything that is not as promised, in plain words."""
    problems = [] if len(frames) == count else [f"There are {len(frames)} frames, not {count}."]
    pictures = {frame.name: look(frame) for frame in frames}
    for name, picture in pictures.items():
        problems += [f"{name}: {problem}" for problem in picture.problems]
    if len({picture.pixels for picture in pictures.values()}) != len(pictures):
        problems.append("Some frames show the same picture.")
    decoded = count_frames(film)
    return problems if decoded == count else [*problems, f"{film.name} has {decoded} frames, not {count}."]


def look(path: Path) -> Picture:
    """Decode a picture wholly."""
    from OpenImageIO import UINT8, ImageBuf, ImageBufAlgo

    image = ImageBuf(str(path))
    if not image.read(0, 0, force=True):
        return Picture(0, 0, "", [f"it does not decode ({image.geterror()})"])
    spec, pixels = image.spec(), image.get_pixels(UINT8)
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest() if pixels is not None else ""
    checks = {
        f"it has only {spec.width} x {spec.height} pixels": spec.width < SMALLEST[0] or spec.height < SMALLEST[1],
        "it has one colour only": ImageBufAlgo.isConstantColor(image) is not None,
        "it does not say how long it was rendered": not spec.get_string_attribute("RenderTime"),
    }
    return Picture(spec.width, spec.height, digest, [problem for problem, holds in checks.items() if holds])
