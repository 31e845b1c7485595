"""A program that says when it was started: the time is taken inside the started process."""

import os
import shutil
from pathlib import Path
from typing import Self


class Clock:
    """A script that writes the time of its start into a pipe. It needs Bash: `$EPOCHREALTIME` costs no process."""

    def __init__(self, directory: Path) -> None:
        """The script and its pipe lie in `directory`, which must exist."""
        self.pipe = directory / "clock.pipe"
        self.program = str(directory / "clock.sh")
        os.mkfifo(self.pipe)
        bash = shutil.which("bash") or "/bin/bash"
        Path(self.program).write_text(f'#!{bash}\necho "$EPOCHREALTIME" > {self.pipe}\n')
        Path(self.program).chmod(0o755)
        # Open for writing as well: a reader alone would block here, and see the end of the file after every line.
        self._file = os.fdopen(os.open(self.pipe, os.O_RDWR), "rb", buffering=0)

    def read(self) -> float:
        """Wait for the next start; its time as `time.time()` has it."""
        line = b""
        while not line.endswith(b"\n"):
            line += self._file.read(1)
        return float(line)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
