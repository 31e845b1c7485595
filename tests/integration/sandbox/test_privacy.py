"""Secrets of the program that starts ours stay its own: read as another program of the account would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.machines import ROOT

KEEP = "from renderonline.sandbox.privacy import keep_private; keep_private()"
TAKE = "from renderonline.sandbox.privacy import taken_from_environment as t; print(t('CODE'), flush=True)"
WAIT = "print('ready', flush=True); import sys; sys.stdin.read()"


@pytest.fixture
def ordinary() -> list[str]:
    """Words in front of a command that make it a program without special rights."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("no setpriv to leave root's rights behind")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


@pytest.mark.parametrize(("script", "hidden"), [("pass", False), (KEEP, True)])
def test_no_other_program_of_the_account_reads_a_private_ones_environment(
    ordinary: list[str], script: str, *, hidden: bool
) -> None:
    environment = {"PYTHONPATH": str(ROOT / "src"), "CODE": "ABCD-EFGH"}
    with subprocess.Popen(
        [*ordinary, sys.executable, "-c", f"{script}; {WAIT}"],
        env={**environment, "PATH": os.defpath},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        argv = [*ordinary, "cat", f"/proc/{process.pid}/environ"]
        read = subprocess.run(argv, capture_output=True, check=False)
        assert (read.returncode != 0, b"ABCD-EFGH" in read.stdout) == (hidden, not hidden)
        process.kill()


def test_a_code_that_was_taken_is_not_even_there_for_an_administrator() -> None:
    environment = {"PYTHONPATH": str(ROOT / "src"), "CODE": "ABCD-EFGH", "OTHER": "stays"}
    with subprocess.Popen(
        [sys.executable, "-c", f"{TAKE}; {WAIT}"], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ABCD-EFGH\n"
        assert process.stdout.readline() == b"ready\n"
        found = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"ABCD-EFGH" not in found
        assert b"OTHER=stays" in found
        process.kill()
