"""From frames to a film, with the ffmpeg that comes in the package `imageio-ffmpeg` (a process of its own).

A film is only good when it decodes: `ffmpeg` ends with code 0 after a gap in a sequence, and there is no ffprobe.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import imageio_ffmpeg

from renderonline.engines.children import child, lines_of, sigterm_unwinds
from renderonline.farm.errors import InvalidRequest, NotAvailable

Progress = Callable[[float], None]
"""Told which fraction (0 to 1) is done."""

FASTEST_FPS: Final = 240.0
SHOWABLE: Final = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".tga", ".bmp"})
"""Pictures that a film can be made of."""
_QUIET: Final = ("-hide_banner", "-nostdin", "-xerror", "-loglevel", "error")
_TELL_PROGRESS: Final = ("-progress", "pipe:1", "-nostats")
# H.264 in 4:2:0 wants even sizes; an odd row or column is scaled away. The colours are converted to what players
# assume of a film of this size, and the file says so.
_PICTURE: Final = (
    "scale=w='max(2,trunc(iw/2)*2)':h='max(2,trunc(ih/2)*2)':flags=lanczos+accurate_rnd+full_chroma_int"
    ":out_color_matrix=bt709:out_range=tv,format=yuv420p"
)
_TAGS: Final = {"colorspace": "bt709", "color_primaries": "bt709", "color_trc": "iec61966-2-1", "color_range": "tv"}
_COLOURS: Final = [word for name, value in _TAGS.items() for word in (f"-{name}", value)]


def encode(frames: Sequence[Path], output: Path, fps: float, progress: Progress) -> None:
    """Write an MP4 (H.264) that shows `frames` in this order, each once, whatever their names and numbers.

    The film appears under its name only when it is complete and decodes to as many frames. `InvalidRequest` when the
    frames are none, missing or of different kinds; `NotAvailable` with ffmpeg's words when it fails.
    """
    _check(frames, fps)
    output.parent.mkdir(parents=True, exist_ok=True)
    with sigterm_unwinds(), tempfile.TemporaryDirectory(prefix=".film-", dir=output.parent) as directory:
        aside = Path(directory) / "film.mp4"
        suffix = frames[0].suffix.lower()
        _lay_out(frames, Path(directory), suffix)
        argv = [
            *(_ffmpeg(), *_QUIET, "-y"),
            *("-framerate", f"{fps:g}", "-start_number", "0", "-i", str(Path(directory) / f"%06d{suffix}")),
            *("-vf", _PICTURE, "-c:v", "libx264", "-preset", "medium", "-crf", "18", *_COLOURS),
            *("-movflags", "+faststart", *_TELL_PROGRESS, str(aside)),
        ]
        for done in _run(argv):
            progress(min(done / len(frames), 1.0))
        decoded = count_frames(aside)
        if decoded != len(frames):
            raise NotAvailable(f"The film has {decoded} frames instead of {len(frames)}. Encode it again.")
        aside.replace(output)
    progress(1.0)


def count_frames(film: Path) -> int:
    """How many frames a film has, found by decoding all of them; `NotAvailable` when it can't be decoded."""
    argv = [_ffmpeg(), *_QUIET, "-i", os.fspath(film.absolute()), "-map", "0:v:0", "-f", "null", *_TELL_PROGRESS, "-"]
    return max(_run(argv), default=0)


def _check(frames: Sequence[Path], fps: float) -> None:
    if not frames:
        raise InvalidRequest("A film needs at least one frame.")
    if not 0 < fps <= FASTEST_FPS:
        raise InvalidRequest(f"A film has between 0 and {FASTEST_FPS:g} frames per second, not {fps:g}.")
    for frame in frames:
        if not frame.is_file():
            raise InvalidRequest(f"The frame {frame} does not exist.")
    kinds = sorted({frame.suffix.lower() for frame in frames})
    if len(kinds) > 1:
        raise InvalidRequest(f"The frames of a film must be pictures of one kind, not {', '.join(kinds)}.")
    if kinds[0] not in SHOWABLE:
        raise InvalidRequest(
            f"A film can't be made of {kinds[0] or 'nameless'} files (EXR and HDR hold light, not a screen's colours). "
            f"Render to one of {', '.join(sorted(SHOWABLE))}."
        )


def _lay_out(frames: Sequence[Path], directory: Path, suffix: str) -> None:
    """Give the frames consecutive numbers: no gap ends the film early, and no name is ever parsed by ffmpeg."""
    for number, frame in enumerate(frames):
        place = directory / f"{number:06d}{suffix}"
        try:
            place.symlink_to(frame.absolute())
        except OSError:  # Windows without the right to make links
            shutil.copyfile(frame, place)


def _run(argv: Sequence[str]) -> Iterator[int]:
    """Run ffmpeg to its end, yielding how many frames it has done."""
    with tempfile.TemporaryFile() as words:
        with child(argv, stdout=subprocess.PIPE, stderr=words) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if match := re.fullmatch(rb"frame=\s*(\d{1,9})\s*", line):
                    yield int(match[1])
        if process.returncode != 0:
            raise NotAvailable(f"ffmpeg failed: {' / '.join(lines_of(words)[-3:]) or 'it was ended'}")


def _ffmpeg() -> str:
    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        raise NotAvailable("No ffmpeg for this kind of computer. Install ffmpeg, then try again.") from None
