"""What the benchmarks have in common: how a figure is shown, and files to send."""

import os
from pathlib import Path

MB = 10**6


def show(what: str, value: float, floor: float | None = None, *, most: float | None = None) -> None:
    """Print a figure with its goal: at least `floor`, or at most `most`."""
    met = value >= floor if floor is not None else most is None or value <= most
    bound = f">= {floor:g}" if floor is not None else f"<= {most:g}"
    print(f"{what} {value:.2f} (goal {bound}: {'met' if met else 'MISSED'})", flush=True)


def file_of(path: Path, size: int) -> Path:
    """A file of bytes that don't repeat within 64 MB."""
    block = os.urandom(min(size, 64 * MB))
    with path.open("wb") as file:
        for start in range(0, size, len(block)):
            file.write(block[: size - start])
    return path
