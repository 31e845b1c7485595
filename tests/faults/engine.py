"""A fake renderer: its pictures follow from task and frame, and it misbehaves as real ones do.

The farm starts a copy of this file as a program, so it knows nothing but the standard library. `FAULTS_SOCKET` names a
datagram socket on which it says `began`, `saved` and `done`: whoever injects faults aims by that.
"""

import hashlib
import json
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

SOCKET = "FAULTS_SOCKET"
MARK = "RENDERONLINE_ATTEMPT"
SIDE = 24
MEMORY_MIB = 160
STALL_S = 3.0
FOR_EVER_S = 600.0
ODDITIES = ("crash", "half", "half_ok", "hang", "orphan", "memory", "disk", "missing", "change", "scribble")

DEFINITION = f"""
name = "fake"
label = "Fake"
extensions = [".scene"]
template = "fake $RENDERONLINE:@uploaded_file $RENDERONLINE:@output_directory \
$RENDERONLINE:first $RENDERONLINE:last $RENDERONLINE:step"
split = "frames"
stall_s = {STALL_S}
memory_mib = {MEMORY_MIB}

[[arguments]]
id = "first"
type = "natural"
default = "1"

[[arguments]]
id = "last"
type = "natural"
default = "1"

[[arguments]]
id = "step"
type = "natural"
default = "1"

[frames]
first = "first"
last = "last"
step = "step"

[outputs]
pattern = "frame_####.png"

[reading]
progress = [{{ kind = "saved", regex = '^Saved: (.+)$' }}]
failures = [{{ kind = "no_space", regex = 'No space left' }}]
"""


def picture(key: str, frame: int) -> bytes:
    """The one right content of a frame: a PNG of noise."""
    block, pixels = f"{key} {frame}".encode(), b""
    while len(pixels) < SIDE * SIDE * 3:
        block = hashlib.sha256(block).digest()
        pixels += block
    rows = b"".join(b"\0" + pixels[row * SIDE * 3 : (row + 1) * SIDE * 3] for row in range(SIDE))
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _part(b"IHDR", header) + _part(b"IDAT", zlib.compress(rows, 1)) + _part(b"IEND", b"")


def _part(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


class Renderer:
    """One run of the program."""

    def __init__(self, words: list[str]) -> None:
        self.scene: dict[str, Any] = json.loads(Path(words[0]).read_text())
        self.directory = Path(words[1])
        self.frames = range(int(words[2]), int(words[3]) + 1, int(words[4]))
        self.attempt = int(os.environ.get(MARK, "0/0/").rstrip("/").rpartition("/")[2])
        self.chance = random.Random(f"{self.scene['key']} {self.attempt}")
        odd = self.chance.random() < self.scene.get("odd", 0.0)
        self.oddity = self.chance.choice(self.scene.get("oddities", ODDITIES)) if odd else ""
        self.odd_frame = self.chance.choice(self.frames)
        self.voice = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def say(self, what: str, frame: int = 0) -> None:
        """Tell the injector; nobody may listen."""
        words = {"what": what, "attempt": self.attempt, "frame": frame, "odd": self.oddity}
        try:
            self.voice.sendto(json.dumps(words).encode(), socket.MSG_DONTWAIT, os.environ.get(SOCKET, ""))
        except OSError:
            pass

    def run(self) -> int:
        self.say("began")
        for frame in self.frames:
            time.sleep(self.chance.uniform(0.3, 1.0) * self.scene["frame_s"])
            if self.oddity and frame == self.odd_frame:
                code = getattr(self, f"_{self.oddity}")(frame)
                if code is not None:
                    return int(code)
            else:
                self._save(frame)
        self.say("done")
        time.sleep(self.chance.uniform(0.0, 0.05))
        return 0

    def _path(self, frame: int) -> Path:
        return self.directory / f"frame_{frame:04d}.png"

    def _save(self, frame: int) -> None:
        self._path(frame).write_bytes(picture(self.scene["key"], frame))
        self._told(frame)

    def _told(self, frame: int) -> None:
        print(f"Saved: {self._path(frame)}", flush=True)
        self.say("saved", frame)

    def _crash(self, frame: int) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    def _half(self, frame: int) -> int:
        data = picture(self.scene["key"], frame)
        self._path(frame).write_bytes(data[: len(data) // 2])
        return 1

    def _half_ok(self, frame: int) -> int:
        self._half(frame)
        return 0

    def _missing(self, frame: int) -> int:
        return 0

    def _hang(self, frame: int) -> None:
        """Ignore SIGTERM, and so does a whole family in sessions of its own."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self._family()
        time.sleep(FOR_EVER_S)

    def _orphan(self, frame: int) -> None:
        """Render on, but leave a family behind."""
        self._family()
        self._save(frame)

    def _family(self) -> None:
        script = "trap '' TERM; (setsid sh -c 'trap \"\" TERM; sleep 600' &) ; sleep 600 & wait"
        subprocess.Popen(["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def _memory(self, frame: int) -> None:
        self.eaten = [bytearray(b"x" * (MEMORY_MIB << 18)) for _ in range(6)]  # half as much again as it may
        time.sleep(FOR_EVER_S)

    def _disk(self, frame: int) -> int:
        """The disk is full in the middle of a file."""
        data = picture(self.scene["key"], frame)
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(data) // 2, len(data) // 2))
        try:
            self._path(frame).write_bytes(data)
        except OSError:
            print("Error: No space left on device", flush=True)
        return 1

    def _change(self, frame: int) -> None:
        """Say that a file is complete, then put another one in its place (no picture: two are never told apart)."""
        self._save(frame)
        time.sleep(0.05)
        other = self._path(frame).with_suffix(".other")
        other.write_bytes(self._path(frame).read_bytes()[::-1])
        other.replace(self._path(frame))

    def _scribble(self, frame: int) -> None:
        """Say that a file is complete, then write into it."""
        self._save(frame)
        time.sleep(0.05)
        with self._path(frame).open("r+b") as file:
            file.write(b"not a picture any more")


if __name__ == "__main__":
    sys.exit(Renderer(sys.argv[1:]).run())
