"""`scripts/system-packages box`: bubblewrap where it may be installed, and never an error where it may not."""

import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "system-packages"
TOOLS = ("bash", "mktemp", "rm", "tail")


@pytest.mark.parametrize(
    ("user", "apt_code", "installs", "told"),
    [
        (0, 0, True, ""),
        (0, 1, True, "sudo apt-get install bubblewrap"),
        (1000, 0, False, "sudo apt-get install bubblewrap"),
    ],
    ids=["root", "root without a network", "user"],
)
def test_missing_bubblewrap_stops_nobody(
    tmp_path: Path, user: int, apt_code: int, *, installs: bool, told: str
) -> None:
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    scripts = {
        "dpkg-query": "exit 1",
        "id": f"echo {user}",
        "apt-get": f'echo "$@" >>{tmp_path}/asked; exit {apt_code}',
    }
    for name, body in scripts.items():
        (tmp_path / name).write_text(f"#!{shutil.which('bash')}\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [str(shutil.which("bash")), str(SCRIPT), "box"],
        env={"PATH": str(tmp_path), "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert told in done.stderr
    assert bool(done.stderr) == bool(told)
    assert (tmp_path / "asked").exists() == installs
