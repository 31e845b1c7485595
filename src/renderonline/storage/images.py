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
from types import TracebackType
from typing import Any, Final

TIME_S: Final = 30.0
"""For one picture."""
MEMORY_BYTES: Final = 4 << 30
"""Address space of the child."""
LARGEST_PICTURE_BYTES: Final = 1 << 30
"""Decoded; one that says it is larger is refused before it is read."""
MOST_PARTS: Final = 64
"""Parts of a multi-part picture that are looked at."""
LONGEST_REPLY: Final = 64 * 1024
LONGEST_FACT: Final = 200

_TEXT_FACTS: Final = {"Camera": "camera", "Scene": "scene", "Software": "software"}


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """Whether a file is a whole picture; if not, `reason` says why.

    `facts`: width, height, channels, format (png, openexr, …), pixel_type, constant (whether all pixels are the same),
    and where the picture says so render_time_s, frame, camera, scene, software, samples.
    """

    ok: bool
    reason: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


class ImageChecker:
    """Checks pictures in a child of its own, one at a time. Blocking: call it in a thread.

    with ImageChecker() as checker:
        check = checker.check(path)
    """

    def __init__(self, *, time_s: float = TIME_S, memory_bytes: int = MEMORY_BYTES) -> None:
        self._time_s = time_s
        self._memory_bytes = memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> "ImageChecker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child; a later check starts another."""
        with self._lock:
            self._end()

    def check(self, path: Path) -> ImageCheck:
        """Decode the file wholly. Never raises for what is in the file."""
        with self._lock:
            try:
                reply = self._ask(os.fspath(path))
            except TimeoutError:
                self._end()
                return ImageCheck(ok=False, reason=f"the picture could not be decoded within {self._time_s:g} s")
            if reply is None:
                self._end()
                return ImageCheck(ok=False, reason="the decoder crashed on the picture or ran out of memory")
            return ImageCheck(**reply)

    def _ask(self, path: str) -> dict[str, Any] | None:
        """The child's reply; None when it died."""
        child = self._running()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(path).encode() + b"\n")
            child.stdin.flush()
        except OSError:
            return None
        line = _read_line(child.stdout.fileno(), time.monotonic() + self._time_s)
        return json.loads(line) if line else None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end()
        self._child = subprocess.Popen(
            [sys.executable, "-m", "renderonline.storage.images", str(self._memory_bytes), str(self._time_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=_bare_environment(),
            start_new_session=True,  # a Ctrl-C meant for us must not look like a broken picture
        )
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _bare_environment() -> dict[str, str]:
    """Nothing secret reaches the process that reads strangers' files."""
    kept = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "VIRTUAL_ENV")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    # numpy would reserve memory for as many threads as there are processors.
    return environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _read_line(pipe: int, deadline: float) -> bytes:
    """One line, b"" at the end of the pipe; `TimeoutError` past the deadline (monotonic seconds)."""
    line = b""
    while not line.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            raise TimeoutError
        piece = os.read(pipe, LONGEST_REPLY)
        if not piece or len(line) > LONGEST_REPLY:
            return b""
        line += piece
    return line


# The child. It imports OpenImageIO; the parent never does.


def examine(path: str) -> ImageCheck:
    """Decode the file at `path` in this process. For the child; everybody else uses `ImageChecker`."""
    import OpenImageIO as oiio  # noqa: N813

    try:
        if not os.path.isfile(path):
            return ImageCheck(ok=False, reason="there is no such file")
        if os.path.getsize(path) == 0:
            return ImageCheck(ok=False, reason="the file is empty")
    except (OSError, ValueError) as error:
        return ImageCheck(ok=False, reason=f"the file can't be read: {error}")
    picture = oiio.ImageBuf(path)
    spec = picture.spec()
    if picture.has_error or spec.width <= 0 or spec.height <= 0 or spec.nchannels <= 0:
        return ImageCheck(ok=False, reason=_complaint(picture) or "the file is not a picture")
    if spec.image_bytes() > LARGEST_PICTURE_BYTES:
        return ImageCheck(ok=False, reason=f"a picture of {spec.width} x {spec.height} is too large to be checked")
    if not picture.read(force=True) or picture.has_error:
        return ImageCheck(ok=False, reason=_complaint(picture) or "the picture is not whole")
    if picture.file_format_name == "jpeg" and not _ends_as_jpeg(path):
        return ImageCheck(ok=False, reason="the JPEG file ends too early")
    broken = _broken_part(oiio, path)
    return ImageCheck(ok=False, reason=broken) if broken else _judge(oiio, picture)


def _broken_part(oiio: Any, path: str) -> str:
    """What is wrong with the parts of a multi-part picture (EXR, TIFF) behind the first; "" for nothing."""
    file = oiio.ImageInput.open(path)
    part = 1
    while file is not None and part < MOST_PARTS and file.seek_subimage(part, 0):
        if file.spec().image_bytes() > LARGEST_PICTURE_BYTES:
            return f"part {part} of the picture is too large to be checked"
        if file.read_image(part, 0, 0, -1, "unknown") is None:
            return f"part {part} of the picture is not whole"
        part += 1
    return ""


def _ends_as_jpeg(path: str) -> bool:
    """Whether the end marker is there: the decoder paints what is missing grey and says nothing."""
    with open(path, "rb") as file:
        file.seek(max(os.path.getsize(path) - 64, 0))
        return file.read().rstrip(b"\0").endswith(b"\xff\xd9")


def _judge(oiio: Any, picture: Any) -> ImageCheck:
    """What a decoded picture holds."""
    spec = picture.spec()
    facts = {
        "width": spec.full_width or spec.width,
        "height": spec.full_height or spec.height,
        "channels": spec.nchannels,
        "format": str(picture.file_format_name),
        "pixel_type": str(spec.format),
        **_said(spec),
    }
    if spec.format.basetype in (oiio.HALF, oiio.FLOAT, oiio.DOUBLE):
        stats = oiio.ImageBufAlgo.computePixelStats(picture)
        wrong = sum(stats.nancount) + sum(stats.infcount)
        if wrong:
            return ImageCheck(
                ok=False, reason=f"{wrong} values of the picture are not numbers (NaN or infinite)", facts=facts
            )
    facts["constant"] = bool(oiio.ImageBufAlgo.isConstantColor(picture))
    return ImageCheck(ok=True, facts=facts)


def _said(spec: Any) -> dict[str, Any]:
    """What the picture's metadata say that is worth keeping: Blender writes some of it."""
    said = {attribute.name: str(attribute.value)[:LONGEST_FACT] for attribute in spec.extra_attribs}
    facts: dict[str, Any] = {ours: said[theirs] for theirs, ours in _TEXT_FACTS.items() if theirs in said}
    render_time = seconds(said.get("RenderTime", ""))
    if render_time is not None:
        facts["render_time_s"] = render_time
    for name, text in said.items():
        if name == "Frame" and re.fullmatch(r"-?\d{1,9}", text):
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
    return round(total, 3) if math.isfinite(total) else None


def _complaint(picture: Any) -> str:
    """OpenImageIO's first complaint, short."""
    lines = [line.strip() for line in str(picture.geterror()).splitlines() if line.strip()]
    return lines[0][:LONGEST_FACT] if lines else ""


def _limit(memory_bytes: int) -> None:
    """Bound what this process may use, where the system can."""
    try:
        import resource
    except ImportError:  # Windows: the deadline of the parent is what is left
        return
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _limit_time(time_s: float) -> None:
    """The next picture gets so many seconds of CPU."""
    try:
        import resource
    except ImportError:
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + time_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def serve(memory_bytes: int, time_s: float) -> None:
    """The child's life: a path per line in, a check per line out, until the parent closes the pipe."""
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a decoder prints is not an answer
    _limit(memory_bytes)
    import OpenImageIO as oiio  # noqa: N813

    oiio.attribute("threads", 1)
    for line in sys.stdin.buffer:
        _limit_time(time_s)
        try:
            check = examine(json.loads(line))
        except (MemoryError, RuntimeError, ValueError) as error:
            check = ImageCheck(ok=False, reason=f"the picture could not be decoded: {type(error).__name__}")
        replies.write(json.dumps(asdict(check)).encode() + b"\n")


if __name__ == "__main__":
    serve(int(sys.argv[1]), float(sys.argv[2]))
