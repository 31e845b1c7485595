"""This very program as a wheel, so that another computer installs the version that the farm runs."""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Final

import renderonline

_TAG: Final = "py3-none-any"
_KIND: Final = f"Wheel-Version: 1.0\nGenerator: renderonline\nRoot-Is-Purelib: true\nTag: {_TAG}\n"


def wheel_name() -> str:
    """The wheel's file name; "" where this program runs without having been installed."""
    try:
        return f"renderonline-{metadata.version('renderonline')}-{_TAG}.whl"
    except metadata.PackageNotFoundError:
        return ""


def make_wheel() -> bytes:
    """The wheel (PyPA's binary distribution format): the package's files as they lie here, and what its installation
    says of it. Blocks for a moment."""
    about, installed = f"{wheel_name().removesuffix(f'-{_TAG}.whl')}.dist-info", metadata.distribution("renderonline")
    told = {name: (installed.read_text(name) or "").encode() for name in ("METADATA", "entry_points.txt")}
    contents = {**dict(_package()), **{f"{about}/{name}": text for name, text in told.items()}}
    contents[f"{about}/WHEEL"] = _KIND.encode()
    lines = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in contents.items()]
    contents[f"{about}/RECORD"] = "".join([*lines, f"{about}/RECORD,,\n"]).encode()
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return written.getvalue()


def _package() -> Iterator[tuple[str, bytes]]:
    root = Path(renderonline.__file__).parent
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"renderonline/{path.relative_to(root).as_posix()}", path.read_bytes()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
