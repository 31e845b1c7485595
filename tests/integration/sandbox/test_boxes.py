"""The boxes themselves: what a program in one can do, of each kind that this computer makes."""

import ctypes
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from renderonline.farm.needs import BoxKind
from renderonline.sandbox.box import Box, Found, NoBox, probe, start

TCP = "import socket, sys; socket.create_connection(('127.0.0.1', int(sys.argv[1])), 3)"
UDP = (
    "import socket, sys; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', int(sys.argv[1])))"
)
UNIX = "import socket, sys; socket.socket(socket.AF_UNIX).connect(sys.argv[1])"


@pytest.fixture(params=["bwrap", "landlock"])
def found(request: pytest.FixtureRequest) -> Found:
    return probe(request.param)


def ran(found: Found, box: Box, *argv: str) -> tuple[int, str]:
    """Exit code and output of a program in the box."""
    environment, pipe = {"PATH": os.defpath, "TMPDIR": box.temporary or "/nowhere"}, subprocess.PIPE
    options = {"env": environment, "stdout": pipe, "stderr": subprocess.STDOUT}
    with start(found, box, argv, subprocess.Popen, directory="/", **options) as process:
        return process.wait(60), process.stdout.read().decode() if process.stdout else ""


def shell(found: Found, box: Box, line: str) -> tuple[int, str]:
    return ran(found, box, "/bin/sh", "-c", line)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    for name in ("task", "output", "tmp", "secret"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return Box((str(tmp_path / "task"),), (str(tmp_path / "output"), str(tmp_path / "tmp")), (), str(tmp_path / "tmp"))


def test_the_task_is_read_the_output_written_and_nothing_else_is_touched(
    found: Found, box: Box, tmp_path: Path
) -> None:
    task, output, secret = (tmp_path / name for name in ("task", "output", "secret"))
    assert shell(found, box, f"cat {task}/file") == (0, "task")
    assert shell(found, box, f"echo hi >{output}/new && mv {output}/new {output}/moved && rm {output}/file")[0] == 0
    assert shell(found, box, 'echo hi >"$TMPDIR"/new')[0] == 0
    for line in (
        f"cat {secret}/file",
        f"echo x >{secret}/new",
        f"echo x >{task}/file",
        f"rm -f {task}/file; test ! -e {task}/file",
        f"ln -s {secret}/file {output}/link; cat {output}/link",
        f"ln {secret}/file {output}/hard && cat {output}/hard",
        f"chmod 600 {secret}/file",
        f"chmod 600 {task}/file",
        "cat /proc/1/environ /etc/shadow",
        "echo x >/usr/bin/zz_test",
        "kill -0 $$ && kill -0 " + str(os.getpid()),
    ):
        code, said = shell(found, box, line)
        assert code != 0, (line, said)
    assert (task / "file").read_text() == "task"
    assert os.listdir(secret) == ["file"]


def test_the_kernel_s_settings_can_t_be_written(found: Found, box: Box) -> None:
    """Also by root, who needs no capability for that: the kernel runs what `core_pattern` names outside of the box."""
    settings = "/proc/sys/kernel/core_pattern /proc/sys/vm/drop_caches /proc/sysrq-trigger"
    assert shell(found, box, f"for file in {settings}; do (: >>$file) 2>/dev/null && echo $file; done; true")[1] == ""


def test_nobody_becomes_root_of_a_namespace_of_their_own(found: Found, box: Box) -> None:
    """There a program could mount and set up networks: much of the kernel that it needs for nothing."""
    assert shell(found, box, "unshare --user --map-root-user true")[0] != 0
    assert found.kind != BoxKind.BWRAP or found.is_final


def test_only_bubblewrap_hides_that_others_run(box: Box) -> None:
    found = probe("auto")
    if found.kind != BoxKind.BWRAP:
        pytest.skip("no bubblewrap here")
    assert len(shell(found, box, "ls -d /proc/[0-9]*")[1].split()) <= 3


def test_sockets_lead_nowhere_unless_the_network_is_open(found: Found, box: Box, tmp_path: Path) -> None:
    words = (sys.executable, "-I", "-S", "-c")
    box = Box((sys.prefix, sys.base_prefix, *box.read), box.write, temporary=box.temporary)
    opened = Box(box.read, box.write, temporary=box.temporary, network=True)
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        udp.settimeout(0.0)
        there, other = str(tcp.getsockname()[1]), str(udp.getsockname()[1])
        assert ran(found, box, *words, TCP, there)[0] != 0
        ran(found, box, *words, UDP, other)
        with pytest.raises(BlockingIOError):
            udp.recv(10)
        assert ran(found, opened, *words, TCP, there) == (0, "")
        assert ran(found, opened, *words, UDP, other) == (0, "")
        assert udp.recv(10) == b"x"
    with socket.socket(socket.AF_UNIX) as service:
        service.bind(str(tmp_path / "service"))
        service.listen()
        assert ran(found, opened, *words, UNIX, str(tmp_path / "service"))[0] != 0


def test_hidden_directories_are_empty_but_for_what_is_named(found: Found, box: Box, tmp_path: Path) -> None:
    wide = Box((str(tmp_path), *box.read), box.write, (str(tmp_path / "secret"),), box.temporary)
    assert shell(found, wide, f"cat {tmp_path}/task/file")[0] == 0
    assert shell(found, wide, f"cat {tmp_path}/secret/file")[0] != 0


def test_hidden_directories_are_empty_by_whatever_name_they_are_reached(found: Found, tmp_path: Path) -> None:
    nas, named = tmp_path / "nas", tmp_path / "named"
    (nas / "farm").mkdir(parents=True)
    (nas / "farm" / "file").write_text("secret")
    (nas / "current").symlink_to(nas / "farm")
    named.symlink_to(nas)
    for root, hidden in ((named, nas / "farm"), (nas, named / "farm"), (nas, nas / "farm")):
        box = Box((str(root),), (), (str(hidden),), str(tmp_path))
        for name in ("farm", "current"):
            assert "secret" not in shell(found, box, f"cat {root}/{name}/file {nas}/{name}/file")[1], (root, name)


def test_nothing_is_written_into_memory_that_no_limit_counts(found: Found, box: Box, tmp_path: Path) -> None:
    wide = Box((str(tmp_path), *box.read), box.write, (str(tmp_path / "secret"),), box.temporary)
    for place in ("/dev", "/", tmp_path / "secret"):
        assert shell(found, wide, f"echo x >{place}/zz_test")[0] != 0, place
    assert shell(found, wide, "echo x >/dev/null && dd if=/dev/zero of=/dev/null count=1")[0] == 0


CALLS = """
import ctypes, os, resource, sys
libc = ctypes.CDLL(None, use_errno=True)
parent = os.getppid()
def say(name, answer):
    if answer >= 0:
        print("OPEN", name)
def tried(name, call):
    try:
        call()
    except OSError:
        return
    print("OPEN", name)
say("shared memory", libc.shmat(int(sys.argv[1]), None, 0))
say("name of the computer", libc.sethostname(os.uname().nodename.encode(), len(os.uname().nodename)))
say("accounting", libc.acct(None))
say("user namespace", libc.unshare(0x10000000))
say("new process in a namespace", libc.clone(ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0), ctypes.c_void_p(
    ctypes.addressof(stack := ctypes.create_string_buffer(1 << 16)) + 65520), 0x10000000 | 17, None))
tried("limits of others", lambda: resource.prlimit(parent, resource.RLIMIT_CORE, (0, 0)))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
import threading
(thread := threading.Thread(target=print, args=("a thread",))).start()
thread.join()
"""


def test_calls_that_reach_beyond_the_box_are_refused(found: Found, box: Box) -> None:
    """Also to root: memory that programs of an account share, the computer's name, namespaces, limits of others."""
    libc = ctypes.CDLL(None)
    memory = libc.shmget(0, 4096, 0o600 | 0o1000)
    opened = Box((sys.prefix, sys.base_prefix), (), temporary=box.temporary)
    try:
        code, said = ran(found, opened, sys.executable, "-I", "-S", "-c", CALLS, str(memory))
    finally:
        libc.shmctl(memory, 0, None)
    limits = "OPEN limits of others\n" if found.kind == BoxKind.BWRAP else ""  # of bubblewrap's own process
    assert (code, said) == (0, f"{limits}a thread\n")


def test_a_program_that_does_not_exist_is_said_to_be_missing(found: Found, box: Box) -> None:
    with pytest.raises(FileNotFoundError, match="/nowhere/program"):
        start(found, box, ["/nowhere/program"], subprocess.Popen, directory="/")


def test_a_bubblewrap_that_may_not_make_namespaces_is_no_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bwrap").write_text('#!/bin/sh\n[ "$1" = --version ] && echo bubblewrap 9.9 || exit 1\n')
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = probe("auto")
    assert found.kind.rank < BoxKind.BWRAP.rank
    assert found.advice
    with pytest.raises(NoBox, match="setting Sandbox is bwrap"):
        probe("bwrap")


def test_without_bubblewrap_the_advice_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe("auto").advice == "apt-get install bubblewrap"
    assert probe("off").kind == BoxKind.NONE
