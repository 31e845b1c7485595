"""A program that makes a film of the frames that are there, with the ffmpeg of the package `imageio-ffmpeg`.

    python -m renderonline.hpcserver.film_maker FFMPEG DIRECTORY PATTERN FRAMES FILM NAME

An attempt of a chunk of kind `film` runs it, in a process of its own within the limits of an attempt (R13 Hostile
content). It decodes frames of every format as previews show them; in place of a frame that is missing or can't be read
it shows the frame before. The film counts only when it decodes to as many frames as went into it.
"""

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final

import imageio_ffmpeg

from renderonline.engines.command_lines import name_of_frame
from renderonline.engines.discovery import FoundEngine
from renderonline.farm.errors import InvalidRequest
from renderonline.farm.frames import parse_frames
from renderonline.farm.result_names import FILM_ENGINE, SOUND, Film
from renderonline.storage.images import LARGEST_PICTURE_BYTES, for_screen

_AWAY: Final = 1.5
"""Frames by which a film and its sound may differ in length."""
_QUIET: Final = ("-hide_banner", "-nostdin", "-xerror", "-loglevel", "error")
# H.264 in 4:2:0 wants even sizes; an odd row or column is scaled away. The colours are converted to what players
# assume of a film of this size, and the file says so.
_PICTURE: Final = (
    "scale=w='max(2,trunc(iw/2)*2)':h='max(2,trunc(ih/2)*2)':flags=lanczos+accurate_rnd+full_chroma_int"
    ":out_color_matrix=bt709:out_range=tv,format=yuv420p"
)
_COLOURS: Final = (
    *("-colorspace", "bt709", "-color_primaries", "bt709"),
    *("-color_trc", "iec61966-2-1", "-color_range", "tv"),
)
_CODECS: Final = {
    "mp4": ("-c:v", "libx264", "-preset", "medium", "-crf", "18", "-movflags", "+faststart"),
    "webm": ("-c:v", "libvpx-vp9", "-crf", "24", "-b:v", "0", "-row-mt", "1", "-deadline", "good", "-cpu-used", "4"),
}

_SOUNDS: Final = {"mp4": ("-c:a", "aac", "-b:a", "192k"), "webm": ("-c:a", "libopus", "-b:a", "160k")}
_FLAC_HEADER: Final = 26
"""Bytes of a FLAC file with its rate and its length: `fLaC`, the header of the first block, 10 bytes, 8 with both."""


def film_engine() -> FoundEngine | None:
    """This machine's means of making films; None where there is no ffmpeg for its kind of computer."""
    try:
        program = str(imageio_ffmpeg.get_ffmpeg_exe())
        version = str(imageio_ffmpeg.get_ffmpeg_version())
    except (RuntimeError, OSError):
        return None
    numbers = re.match(r"\d+(\.\d+)*", version)
    return FoundEngine(FILM_ENGINE, (sys.executable, "-P", "-m", __name__, program), numbers[0] if numbers else "")


def encode(ffmpeg: str, frames: Sequence[Path], output: Path, film: Film, sound: Sequence[str] = ()) -> None:
    """Write a film that shows these files in this order, telling on stdout how far it is; `sound`: how ffmpeg is to
    read its sound, if it has any. `InvalidRequest` when none of them is a picture, `OSError` when ffmpeg fails."""
    pictures = _pictures(frames)
    first = next(pictures, None)
    if first is None:
        raise InvalidRequest("There is no frame that a film could be made of.")
    height, width, _ = first.shape
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-framerate", str(film.fps))
    there = f"file:{output}"  # whatever its name looks like
    lasts = f"{float(len(_span(frames)) / film.fps):.6f}"
    fitted = ("-af", f"apad=whole_dur={lasts},atrim=end={lasts}", *_SOUNDS[film.format])
    heard = ("-map", "0:v", "-map", "1:a", *fitted) if sound else ()
    argv = [ffmpeg, *_QUIET, "-y", *raw, "-i", "pipe:0", *sound, *heard, "-vf", _PICTURE, *_CODECS[film.format]]
    argv += [*_COLOURS, there]
    # In our session: whoever ends us ends it, and without us it reads the end of its input.
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        count = 0
        for count, picture in enumerate(chain([first], pictures), 1):
            process.stdin.write(_fitted(picture, width, height).tobytes())
            print(f"Frame {count}/{len(frames)}", flush=True)
        process.stdin.close()
    if process.returncode != 0:
        raise OSError(f"ffmpeg ended with code {process.returncode}")
    if (decoded := count_frames(output, ffmpeg)) != count:
        raise OSError(f"The film has {decoded} frames instead of {count}.")


def sound_of(directory: Path, frames: Sequence[int], files: Sequence[Path], film: Film) -> tuple[str, ...]:
    """How ffmpeg reads the sound of a film that begins with the first of these `files` that is there; () when there is
    none, or when it is not that of these frames: it would run away from the picture."""
    path = directory / SOUND
    length = _seconds(path)
    if not length:
        return ()
    whole = len(frames) == frames[-1] - frames[0] + 1
    if not whole or abs(length - len(frames) / film.fps) > _AWAY / film.fps:
        why = "its speed is not the scene's" if whole else "frames between its first and its last are not asked for"
        print(f"Warning: The film has no sound: {why}", flush=True)
        return ()
    begins = next((place for place, file in enumerate(files) if file.is_file()), 0)
    return ("-f", "flac", "-ss", f"{float(begins / film.fps):.6f}", "-i", f"file:{path}")


def _seconds(path: Path) -> float:
    """How long a FLAC file plays; 0 for any other file, or none."""
    try:
        with open(path, "rb") as file:
            head = file.read(_FLAC_HEADER)
    except OSError:
        return 0.0
    if len(head) < _FLAC_HEADER or head[:5] != b"fLaC\0":
        return 0.0
    packed = int.from_bytes(head[18:26])  # 20 bits: samples a second; 3: channels; 5: bits; 36: samples
    rate, samples = packed >> 44, packed & ((1 << 36) - 1)
    return samples / rate if rate else 0.0


def count_frames(film: Path, ffmpeg: str = "") -> int:
    """How many frames a film has, found by decoding all of them; 0 when it can't be decoded."""
    program = ffmpeg or str(imageio_ffmpeg.get_ffmpeg_exe())
    tell = ("-map", "0:v:0", "-f", "null", "-progress", "pipe:1", "-nostats", "-")
    found = subprocess.run([program, *_QUIET, "-i", f"file:{film}", *tell], capture_output=True, check=False)
    counts = [int(count) for count in re.findall(rb"^frame=\s*(\d{1,9})\s*$", found.stdout, re.MULTILINE)]
    return max(counts, default=0) if found.returncode == 0 else 0


def _pictures(frames: Sequence[Path]) -> Iterator[Any]:
    """The pixels of each frame from the first to the last that is there; in the place of a gap the ones before it."""
    latest = None
    for path in _span(frames):
        found = _decoded(path) if path.is_file() else None
        if found is None:
            print(f"Warning: {path.name} is missing or can't be read; the frame before it is shown", flush=True)
        latest = latest if found is None else found
        if latest is not None:
            yield latest


def _span(frames: Sequence[Path]) -> Sequence[Path]:
    """From the first that is there to the last."""
    there = [place for place, path in enumerate(frames) if path.is_file()]
    return frames[there[0] : there[-1] + 1] if there else ()


def _decoded(path: Path) -> Any:
    import OpenImageIO as oiio  # noqa: N813

    picture = oiio.ImageBuf(str(path))
    if picture.spec().image_bytes() > LARGEST_PICTURE_BYTES or not picture.read(0, 0, force=True) or picture.has_error:
        return None
    return for_screen(oiio, picture)


def _fitted(pixels: Any, width: int, height: int) -> Any:
    """A picture of another size, stretched to the first one's."""
    import OpenImageIO as oiio  # noqa: N813

    if pixels.shape[:2] == (height, width):
        return pixels
    return oiio.ImageBufAlgo.resize(oiio.ImageBuf(pixels), roi=oiio.ROI(0, width, 0, height)).get_pixels(oiio.UINT8)


def main(ffmpeg: str, directory: str, pattern: str, frames: str, film: str, name: str) -> None:
    """Write the film into the current directory."""
    numbers, kind = sorted(parse_frames(frames)), Film.parse(film)
    files = [Path(directory, name_of_frame(pattern, frame)) for frame in numbers]
    encode(ffmpeg, files, Path(name), kind, sound_of(Path(directory), numbers, files, kind))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except InvalidRequest as problem:
        sys.exit(f"Error: {problem}")
    except OSError as problem:
        sys.exit(f"Encoding failed: {problem}")
