"""A render engine for tests: does what its arguments say, quickly, and writes down how it was started."""

import json
import sys
from pathlib import Path
from typing import Any

_SOURCE = """\
import json, os, sys, time
words = sys.argv[1:]
def of(name, default=""):
    return words[words.index(name) + 1] if name in words[:-1] else default
seen = {"argv": words, "directory": os.getcwd(), "pid": os.getpid(), "at": time.time()}
if of("--record"):
    with open(of("--record"), "a") as file:
        file.write(json.dumps(seen) + "\\n")
deadline = time.monotonic() + float(of("--sleep", "0"))
release = of("--until")
while time.monotonic() < deadline or (release and not os.path.exists(release)):
    time.sleep(0.02)
if of("--write"):
    with open(of("--write"), "x") as file:
        file.write("rendered")
sys.exit(int(of("--exit", "0")))
"""


def write_stub_engine(path: Path) -> Path:
    """Make the program `path`.

    `--record FILE` appends a line of JSON {argv, directory, pid, at}; `--sleep SECONDS`, `--until FILE` (waits for it),
    `--write FILE` (refuses one that exists), `--exit CODE`. Everything else is ignored.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{sys.executable} -IS\n{_SOURCE}")
    path.chmod(0o755)
    return path


def runs(record: Path) -> list[dict[str, Any]]:
    """What `--record` wrote, one entry for each start."""
    if not record.exists():
        return []
    return [json.loads(line) for line in record.read_text().splitlines()]
