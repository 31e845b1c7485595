"""Cycles on this computer's graphics cards against its processor: the same frame of the demo's scene, by the launcher
that machines use. Where there is no card, or no Blender, it says so."""

import os
import subprocess
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from renderonline.engines.blender.install import installed
from renderonline.hpcserver.card_rack import find_cards, variables
from renderonline.storage.disk import data_directory

SAMPLE = Path(__file__).parents[1] / "src" / "renderonline" / "engines" / "blender" / "sample.py"
SAMPLES = "512"
FRAMES = "1,2,3"
"""The first one of a process loads kernels; what counts is the fastest of the others."""
LONGEST_S = 1800.0


def run() -> None:
    """Print what a frame takes on the processor and on each card."""
    rack, blender = find_cards(), installed(data_directory() / "engines" / "blender")
    if not rack.found:
        print("Cycles on a graphics card: no card here")
        return
    if blender is None:
        print("Cycles on a graphics card: no Blender here; renderonline engine install blender")
        return
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        scene = Path(name, "sample.blend")
        python = [blender.prefix[0], "-I", "-W", "ignore"]
        subprocess.run([*python, str(SAMPLE), str(scene)], capture_output=True, timeout=LONGEST_S, check=True)
        processor = _frame_s(blender.prefix, scene, "cpu", variables(()))
        for found in rack.found:
            card = _frame_s(blender.prefix, scene, "gpu", variables([found]))
            speed = "does not render" if card is None else f"{card:.2f} s"
            gain = f", {processor / card:.1f} times as fast" if card and processor else ""
            print(f"Cycles, a frame of {SAMPLES} samples: CPU {processor or 0:.2f} s, {found.card.name} {speed}{gain}")


def _frame_s(prefix: tuple[str, ...], scene: Path, device: str, cards: dict[str, str]) -> float | None:
    """Seconds of the fastest frame but the first; None when it failed."""
    asked = {"RENDERONLINE_BLENDER_DEVICE": device, "RENDERONLINE_BLENDER_SAMPLES": SAMPLES, **cards}
    words = ["-b", str(scene), "-o", str(scene.parent / f"{device}_####"), "-F", "PNG", "-f", FRAMES]
    saved: list[float] = []
    with subprocess.Popen(
        [*prefix, *words], env={**os.environ, **asked}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        saved += [time.perf_counter() for line in process.stdout if line.startswith("Saved: ")]
    taken = [after - before for before, after in pairwise(saved)]
    return min(taken) if process.returncode == 0 and taken else None
