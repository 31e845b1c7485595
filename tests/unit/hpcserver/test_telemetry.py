"""What a computer and its process trees are said to be."""

import os
import subprocess
import sys
from pathlib import Path

from renderonline.hpcserver import telemetry
from renderonline.hpcserver.process_table import KEY
from renderonline.hpcserver.processes import ProcessUsage

BUSY = """
import time
x = bytearray(64 << 20)
end = time.process_time() + 0.3
while time.process_time() < end:
    pass
print("done", flush=True)
time.sleep(60)
"""
ENDED_CHILD = """
import subprocess, sys, time
subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
print("done", flush=True)
time.sleep(60)
"""


def test_this_computer_has_a_processor_memory_and_a_boot() -> None:
    computer = telemetry.computer()
    assert computer["cpu_count"] >= 1
    assert computer["memory_mib"] > 64
    assert computer["boot"]
    assert computer["boot"] == telemetry.computer()["boot"]
    assert telemetry.load(Path("/")).disk_free_mib > 0
    assert telemetry.load(Path("/no/such/directory")).disk_free_mib == 0


def test_usage_adds_up_the_tree_of_each_engine() -> None:
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BUSY!r}])"
    environment = {**os.environ, KEY: "key"}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            used = telemetry.usage(os.getpid(), {process.pid: "7"}, {"key": "7"})["7"]
            orphans = telemetry.usage(os.getpid(), {1: "7"}, {"key": "7"})["7"]  # found by their key alone
        finally:
            telemetry.psutil.Process(process.pid).children()[0].kill()
            process.kill()
    assert used.cpu_s >= 0.3
    assert used.memory_bytes > 64 << 20
    assert orphans.memory_bytes > 64 << 20


def test_usage_of_what_is_gone_is_nothing() -> None:
    assert telemetry.usage(2**22 - 1, {1: "7"}, {}) == {"7": ProcessUsage(0.0, 0)}


def test_cpu_time_of_ended_children_still_counts() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDED_CHILD], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            assert telemetry.usage(os.getpid(), {process.pid: "1"}, {})["1"].cpu_s > 0.1
        finally:
            process.kill()
