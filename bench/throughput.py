"""No-op chunks through the whole farm: RenderAPI on SQLite and four HPCServers, all real, each chunk a process.

Every lease, start and end is on disk on both sides before it counts. Beside it stands the limit of the same run: how
many of these processes a second one program starts and waits for directly.
"""

import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from bench.figures import told
from tests.support.farm import RealFarm

MACHINES = 4
SLOTS = 4
"""Of each machine: while one chunk's end travels, the next one runs."""
CHUNKS = 3000
LONGEST_S = 15.0
DIRECT = 500
PROGRAM = shutil.which("true") or "/bin/true"
ENGINE = """
name = "nothing"
label = "Nothing"
extensions = [".txt"]
template = "nothing $RENDERONLINE:@uploaded_file $RENDERONLINE:first $RENDERONLINE:last"
split = "frames"

[[arguments]]
id = "first"
type = "natural"
default = "1"

[[arguments]]
id = "last"
type = "natural"
default = "1"

[frames]
first = "first"
last = "last"
"""


def run() -> None:
    """Print chunks a second, of one task with thousands of them."""
    with tempfile.TemporaryDirectory(prefix="renderonline-bench-") as name:
        scene = Path(name) / "scene.txt"
        scene.write_text("nothing\n")
        with RealFarm(Path(name)) as farm:
            farm.client.admin.add_engine(ENGINE)
            for number in range(MACHINES):
                farm.add_machine(f"m{number}", engines={"nothing": PROGRAM}, flags=("--slots", str(SLOTS)))
            begun = time.monotonic()
            task = farm.client.submit(scene, engine="nothing", frames=f"1-{CHUNKS}", chunk_size=1)["task_id"]
            done = 0
            while done < CHUNKS and time.monotonic() - begun < LONGEST_S:
                time.sleep(0.1)
                done = farm.client.task(task)["chunks"]["succeeded"]
            passed = time.monotonic() - begun
            farm.client.cancel(task)
    print(f"processes started directly, one after the other: {DIRECT / _direct_s():,.0f}/s")
    told(
        f"no-op chunks through RenderAPI, SQLite and {MACHINES} HPCServers, {done:,} processes: chunks/s",
        done / passed,
        1000,
    )


def _direct_s() -> float:
    begun = time.monotonic()
    for _ in range(DIRECT):
        subprocess.run([PROGRAM], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begun
