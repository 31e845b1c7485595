"""Is this file a whole picture, and what does it say of itself? Decoded in a child with limits (R13).

A picture comes from a renderer that a user's scene drives: its decoder may crash, hang or ask for all the memory, so
it never runs in our own process. One child serves many checks; it is started again after it died.
"""

import contextlib
import json
import math
import os
import re
import select
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

LARGEST_PICTURE_BYTES: Final = 1 << 30
"""Decoded; one that says it is larger is refused before it is read."""
MOST_PARTS: Final = 64
"""Parts of a multi-part picture that are looked at."""
LONGEST_REPLY: Final = 64 * 1024
LONGEST_FACT: Final = 200
DEPTHS: Final = frozenset({"z", "zback", "depth"})
"""Channels that hold distances."""
NO_NUMBERS: Final = "are not numbers (NaN or infinite); often a material or a compositing node divides by zero"


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Whether a file is a whole picture; if not, `reason` says why.

    `facts`: width, height, channels, format (png, openexr, …), pixel_type, constant (whether all pixels are the same),
    and where the picture says so render_time_s, memory_mib, frame, camera, scene, software, samples.
    """

    ok: bool
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def _bad(reason: str, facts: Mapping[str, Any] | None = None) -> ImageCheck:
    return ImageCheck(ok=False, reason=reason, facts=facts or {})


class ImageChecker:
    """Checks pictures in a child of its own, one at a time. Blocking: call it in a thread.

    `time_s`: for one picture; `memory_bytes`: address space of the child.
    """

    def __init__(self, *, time_s: float = 30.0, memory_bytes: int = 4 << 30) -> None:
        self._time_s = time_s
        self._memory_bytes = memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "ImageChecker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child; a later check starts another."""
        with self._lock:
            self._end()

    def check(self, path: Path) -> ImageCheck:
        """Decode the file wholly. Never raises for what is in the file."""
        with self._lock:
            if self._child is None or self._child.poll() is not None:
                self._end()
                self._child = _start(self._memory_bytes, self._time_s)
            try:
                return _ask(self._child, os.fspath(path), time.monotonic() + self._time_s)
            except TimeoutError:
                reason = f"the picture could not be decoded within {self._time_s:g} s"
            except (OSError, EOFError):
                reason = "the decoder crashed on the picture or ran out of memory"
            self._end()
            return _bad(reason)

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()


def _start(memory_bytes: int, time_s: float) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "renderonline.storage.images", str(memory_bytes), str(time_s)]
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    # Nothing secret reaches the process that reads strangers' files.
    kept = {"PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV"}
    environment = {name: value for name, value in os.environ.items() if name in kept}
    # numpy would reserve memory for as many threads as there are processors.
    environment |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # In a session of its own: a Ctrl-C meant for us must not look like a broken picture.
    return subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=nothing, env=environment, start_new_session=True)


def _ask(child: subprocess.Popen[bytes], path: str, deadline: float) -> ImageCheck:
    """The child's reply; `TimeoutError` past the deadline (monotonic seconds), `OSError` or `EOFError` when it died."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(path).encode() + b"\n")
    child.stdin.flush()
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([child.stdout], [], [], left)[0]:
            raise TimeoutError
        piece = os.read(child.stdout.fileno(), LONGEST_REPLY)
        if not piece or len(line) > LONGEST_REPLY:
            raise EOFError
        line += piece
    return ImageCheck(**json.loads(line))


def examine(path: str) -> ImageCheck:
    """Decode the file at `path` in this process. Only for the child: the parent never imports OpenImageIO."""
    import OpenImageIO as oiio  # noqa: N813

    if not os.path.isfile(path):
        return _bad("there is no such file")
    if os.path.getsize(path) == 0:
        return _bad("the file is empty")
    picture = oiio.ImageBuf(path)
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


def _limit(memory_bytes: int, time_s: float) -> None:
    """Bound what this process may use for the next picture (`time_s`: seconds of CPU), where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the deadline of the parent is what is left
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu = math.ceil(used.ru_utime + used.ru_stime + time_s) + 1
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu, resource.RLIM_INFINITY))


def serve(memory_bytes: int, time_s: float) -> None:
    """The child's life: a path per line in, a check per line out, until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a decoder prints is not an answer
    _limit(memory_bytes, time_s)
    import OpenImageIO as oiio  # noqa: N813

    oiio.attribute("threads", 1)
    for line in sys.stdin.buffer:
        _limit(memory_bytes, time_s)
        try:
            check = examine(json.loads(line))
        except (MemoryError, RuntimeError, ValueError, OSError) as error:
            check = _bad(f"the picture could not be decoded: {type(error).__name__}")
        replies.write(json.dumps(asdict(check)).encode() + b"\n")


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
