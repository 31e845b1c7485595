"""A render engine for tests that paints real PNG frames, as quickly or as slowly as it is told."""

import sys
from pathlib import Path

DEFINITION = r"""
name = "painter"
label = "Painter"
extensions = [".paint"]
template = '''
  painter $RENDERONLINE:@uploaded_file $RENDERONLINE:@output_directory $RENDERONLINE:first_frame
  $RENDERONLINE:last_frame $RENDERONLINE:frame_step $RENDERONLINE:painting_width $RENDERONLINE:painting_seconds
  $RENDERONLINE:painting_mood
'''
split = "frames"

[[arguments]]
id = "first_frame"
type = "integer"
label = "First frame"
default = "1"

[[arguments]]
id = "last_frame"
type = "integer"
label = "Last frame"
default = "24"

[[arguments]]
id = "frame_step"
type = "natural"
label = "Step"
default = "1"

[[arguments]]
id = "painting_width"
type = "natural"
label = "Width"
help = "Pixels from left to right."
default = "192"

[[arguments]]
id = "painting_seconds"
type = "real"
label = "Seconds a frame"
help = "How long each frame takes at least."
default = "0"

[[arguments]]
id = "painting_mood"
type = "word"
label = "Mood"
default = "calm"
choices = ["calm", "wild"]

[frames]
first = "first_frame"
last = "last_frame"
step = "frame_step"

[outputs]
pattern = "frame_####.png"

[reading]
progress = [{ kind = "frame", regex = '^Fra:(-?\d+)' }]
failures = [{ kind = "scene", regex = '^Error: ' }]
"""

_PROGRAM = """\
import os, struct, sys, time, zlib
scene, out, first, last, step, width, seconds, mood = sys.argv[1:9]
first, last, step, width = int(first), int(last), int(step), int(width)
words = open(scene, errors="replace").read()
height = width * 9 // 16
def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
for frame in range(first, last + 1, step):
    print(f"Fra:{frame} Mem:{40 + frame % 7}M painting {width} x {height}", flush=True)
    for line in words.splitlines():
        if line.startswith(f"hold {frame} "):
            while not os.path.exists(line.split(" ", 2)[2]):
                time.sleep(0.02)
    if f"fail {frame}\\n" in words:
        print(f"Error: frame {frame} can't be painted: the scene says so", flush=True)
        sys.exit(1)
    time.sleep(float(seconds))
    cx, cy = (frame * width // 24) % width, height // 2
    rows = bytearray()
    for y in range(height):
        rows.append(0)
        sky = (40 + 60 * y // height, 30 + 70 * y // height, 90 + 100 * y // height)
        row = bytearray(bytes(sky) * width)
        half = 28 * height // 100
        reach = int(max(0, half * half - (y - cy) ** 2) ** 0.5)
        if reach:
            left, right = max(0, cx - reach), min(width, cx + reach)
            row[3 * left : 3 * right] = bytes((250, 190 - frame % 60, 80)) * (right - left)
        rows += row
    data = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    data += chunk(b"IDAT", zlib.compress(bytes(rows), 1)) + chunk(b"IEND", b"")
    with open(os.path.join(out, f"frame_{frame:04d}.png"), "wb") as file:
        file.write(data)
for line in range(words.count("chatter")):
    print(f"chatter line {line}")
"""


def write_painter(path: Path) -> Path:
    """Make the program `path`. A scene is text; a line `fail N` makes frame N fail, `hold N FILE`
    lets it wait until the file is there, each `chatter` is a line of log."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -IS\n{_PROGRAM}")
    path.chmod(0o755)
    return path
