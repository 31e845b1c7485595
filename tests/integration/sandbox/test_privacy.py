"""Secrets of the program that starts ours stay its own: read as another program of the account would."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.fake_renderapi import FakeRenderAPI
from tests.support.farm import wait_until
from tests.support.machines import ROOT, linked_node

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


def is_hidden(ordinary: list[str], pid: int) -> bool:
    """Whether another program of the account is refused a program's environment."""
    read = subprocess.run([*ordinary, "cat", f"/proc/{pid}/environ"], capture_output=True, check=False)
    return (read.returncode, read.stdout) == (1, b"")


async def test_a_machine_and_its_spawner_keep_their_environment_to_themselves(
    ordinary: list[str], tmp_path: Path
) -> None:
    async with FakeRenderAPI() as api:
        with linked_node(tmp_path, api, before=ordinary) as node:
            await api.linked()
            assert is_hidden(ordinary, node.pid)
            assert is_hidden(ordinary, node.spawner())
            await api.assign(1, ["-c", "exit 0"], tmp_path / "1")  # it goes on working
            assert (await api.report(1, "exited"))["outcome"] == "succeeded"


def test_renderapi_keeps_its_environment_to_itself(ordinary: list[str], tmp_path: Path) -> None:
    argv = [*ordinary, sys.executable, "-P", "-m", "renderonline.cli.main", "api", "--port", "0"]
    with subprocess.Popen(
        [*argv, "--data-directory", str(tmp_path)], env={"PATH": os.defpath, "SECRET": "x"}, stderr=subprocess.DEVNULL
    ) as process:
        try:
            wait_until((tmp_path / "renderapi.json").exists, "answer of RenderAPI")
            assert is_hidden(ordinary, process.pid)
        finally:
            process.terminate()


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
