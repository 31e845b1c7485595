"""Put on a program's path: its wall clock is off by the seconds that lie in the file `FAULTS_CLOCK`, and can jump.

The monotonic clock is left alone, as it is when somebody sets a computer's clock.
"""

import mmap
import os
import struct
import time


def _jumpy(path: str) -> None:
    with open(path, "rb") as file:
        shared = mmap.mmap(file.fileno(), 8, prot=mmap.PROT_READ)
    real, real_ns = time.time, time.time_ns

    def offset() -> int:
        return int(struct.unpack("q", shared)[0])

    time.time = lambda: real() + offset()
    time.time_ns = lambda: real_ns() + offset() * 1_000_000_000


if os.environ.get("FAULTS_CLOCK"):
    _jumpy(os.environ["FAULTS_CLOCK"])
