"""The box around a program: what it may touch, and how bubblewrap or Landlock keeps it there.

Standard library only, because the spawner imports this. In order: `Box` and `Found`; the part of the system that every
boxed program reads; bubblewrap; Landlock; `start`, which starts a program in a box of either kind; `probe`, which finds
out what this computer can make by making one, because a kernel or its AppArmor may forbid what is installed.

Of `/etc` a box shows only what programs need to find libraries, fonts and names: other files there hold secrets, of
root or of the account that runs us.

bubblewrap makes namespaces in which nothing else exists. The program runs as a grandchild of bubblewrap, below a
process 1 of its own. bubblewrap exits with the program's exit code, or 128 + n when signal n ended it; all processes
below it die with it.

Landlock is for systems without bubblewrap and needs neither a package nor rights: the kernel refuses files by path, and
a filter refuses sockets. A thread restricts itself for good and starts the program, which inherits the restrictions;
then the thread ends, and the rest of our process stays free. `/proc` is closed to the program; it can see that other
processes exist, and from ABI 6 on it can't signal them. It has no capability, not even root's.

Sources: Linux `Documentation/userspace-api/landlock.rst` (structures, rights by ABI), `seccomp_filter.rst`;
`capabilities(7)`; numbers of system calls: `arch/x86/entry/syscalls/syscall_64.tbl`, `scripts/syscall.tbl`.
"""

import ctypes
import errno
import glob
import os
import platform
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from renderonline.farm.errors import InvalidRequest, NotAvailable
from renderonline.farm.needs import BoxAdvice, BoxKind

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Box:
    """What a program may touch besides the system's programs and libraries. Paths are absolute; what does not exist is
    left out.

    `read`, `write`: files and directories with all that is in them. `hidden`: directories that stay empty although one
    of those holds them; what is named below them is there again (bubblewrap only). `temporary`: the directory that
    serves as `/tmp` (bubblewrap only: in Landlock there is no `/tmp`, only what `TMPDIR` names).
    """

    read: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    temporary: str = ""
    network: bool = False
    devices: tuple[str, ...] = ()
    """Files below `/dev` that are passed through: those of graphics cards."""


@dataclass(frozen=True, slots=True)
class Found:
    """Which boxes this computer makes (`probe`). `version`: for people, for instance `bubblewrap 0.8.0`;
    `advice`: the line that gets a better one, "" if there is none. `program`: bubblewrap's path; `is_final`: in its box
    no further namespaces can be made, in which a program would be root of its own (from bubblewrap 0.8 on); `abi`:
    Landlock's."""

    kind: BoxKind = BoxKind.NONE
    version: str = ""
    advice: str = ""
    program: str = ""
    is_final: bool = False
    abi: int = 0


NO_BOX: Final = Found()

PROGRAMS: Final = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store")
ETC: Final = (
    "/etc/alternatives", "/etc/fonts", "/etc/group", "/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf",
    "/etc/passwd",
)  # fmt: skip
FACTS: Final = ("/sys/devices/system",)
"""How many processors there are."""
FOR_NETWORK: Final = (
    "/etc/ca-certificates", "/etc/hosts", "/etc/host.conf", "/etc/pki/ca-trust", "/etc/pki/tls/certs", "/etc/protocols",
    "/etc/resolv.conf", "/etc/services", "/etc/ssl/certs", "/etc/ssl/openssl.cnf",
)  # fmt: skip
FOR_CARDS: Final = (
    "/etc/OpenCL", "/etc/glvnd", "/etc/vulkan", "/etc/nvidia", "/opt/rocm", "/sys/bus", "/sys/class", "/sys/dev",
    "/sys/devices", "/sys/module",
)  # fmt: skip
KERNEL: Final = tuple(f"/proc/{name}" for name in ("acpi", "bus", "fs", "irq", "scsi", "sys", "sysrq-trigger"))
"""Where the kernel is set up: writable for root without any capability, and `core_pattern` names a program that runs
outside of every box."""
CARDS: Final = ("/dev/dri", "/dev/kfd", "/dev/nvidia*")
PLAIN_DEVICES: Final = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")


def readable(*, network: bool, cards: bool) -> tuple[str, ...]:
    """The paths that such a program reads; some may not exist."""
    return (*PROGRAMS, *ETC, *FACTS, *(FOR_NETWORK if network else ()), *(FOR_CARDS if cards else ()))


def cards() -> tuple[str, ...]:
    """The graphics cards' device files that exist now: a driver may make them long after the start."""
    return tuple(path for pattern in CARDS for path in sorted(glob.glob(pattern)))


def python_paths() -> tuple[str, ...]:
    """The paths that our Python programs read: this Python with its packages, the one it was made of, our source."""
    found = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]))
    return tuple(path for path in dict.fromkeys(found) if path != "/usr")


def link_of(path: str) -> str:
    """Return the target of a link, or "". On most systems `/bin` is a link to `usr/bin`."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def bubblewrap_words(
    found: Found, box: Box, directory: str, status: int | None = None, *, tied: bool = True
) -> list[str]:
    """The words in front of a command line that run it in the box, in `directory`. `status`: a descriptor to which
    bubblewrap writes JSON, a line each: the process 1 (`child-pid`), then, only when the command could be run, how it
    ended (`exit-code`). `tied`: it dies with the thread that starts it, in a session of its own; else the caller kills
    its process group.

    Later mounts cover earlier ones, so the wide ones come first.
    """
    argv = [found.program, "--unshare-all", "--cap-drop", "ALL"]
    if tied:
        argv += ["--die-with-parent", "--new-session"]
    if found.is_final:
        argv += ["--unshare-user", "--disable-userns"]
    if box.network:
        argv.append("--share-net")
    cards = box.devices
    for path in readable(network=box.network, cards=bool(cards)):
        link = link_of(path) if path in PROGRAMS else ""
        argv += ["--symlink", link, path] if link else ["--ro-bind-try", path, path]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    for path in KERNEL:
        argv += ["--ro-bind-try", path, path]
    for path in cards:
        argv += ["--dev-bind-try", path, path]
    if box.temporary:
        argv += ["--bind", box.temporary, "/tmp", "--bind", box.temporary, "/dev/shm"]  # noqa: S108 - the box's own
    else:
        argv += ["--tmpfs", "/tmp"]  # noqa: S108 - the box's own
    argv += [*_mounts(box), "--chdir", directory]
    if status is not None:
        argv += ["--json-status-fd", str(status)]
    return [*argv, "--"]


def exit_code(code: int) -> int:
    """Return the program's exit code as `subprocess` has it (negative: the signal), from bubblewrap's."""
    return 128 - code if 128 < code <= 128 + 64 else code


def _mounts(box: Box) -> list[str]:
    mounts = [("--ro-bind-try", path, path) for path in box.read] + [("--bind-try", path, path) for path in box.write]
    covering = _places(box.hidden, (*box.read, *box.write))
    every = sorted([*mounts, *(("--tmpfs", path) for path in covering)], key=lambda mount: mount[1].count("/"))
    # What is written into these would be memory that no limit counts.
    every += [("--remount-ro", path) for path in ("/", "/dev", *covering)]
    return [word for mount in every for word in mount]


def _places(hidden: Sequence[str], roots: Sequence[str]) -> list[str]:
    """Where hidden directories would be visible in the box: below each root that holds them under any name."""
    found: dict[str, None] = {}
    for path in filter(os.path.isdir, hidden):
        for root in roots:
            real, holder = os.path.realpath(path), os.path.realpath(root).rstrip("/")
            if real.startswith(f"{holder}/"):
                found[root.rstrip("/") + real[len(holder) :]] = None
    return list(found)


_CREATE, _ADD, _RESTRICT = 444, 445, 446
"""The system calls; they have the same numbers on all computers that matter here."""
_READ: Final = 0b1100
_EXECUTE, _READ_DIRECTORY, _TRUNCATE, _IOCTL = 1 << 0, 1 << 3, 1 << 14, 1 << 15
_WRITE_FILE: Final = 1 << 1
_DEVICES: Final = 1 << 6 | 1 << 9 | 1 << 11
"""Making devices and sockets is never allowed."""
_FILE: Final = _EXECUTE | _WRITE_FILE | 1 << 2 | _TRUNCATE | _IOCTL
"""The rights that a file can have; the others are a directory's."""
_RIGHTS_BY_ABI: Final = ((1, (1 << 13) - 1), (2, 1 << 13), (3, _TRUNCATE), (5, _IOCTL))
_TCP: Final = 0b11
_OTHERS: Final = 0b11
"""Scope: abstract sockets and signals end at the box."""
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_UNIX, _INET, _INET6, _NETLINK = 1, 2, 10, 16
_EPERM, _ENOSYS = 1, 38
_CAPABILITIES: Final = 64
"""More than there are."""
_DROP_FROM_BOUNDS: Final = 24
_CAPABILITY_VERSION: Final = 0x20080522
_NAMESPACES: Final = 0x7E020000
"""The flags of `clone` that make a namespace."""


class _Calls(NamedTuple):
    """What the filter has to know of a kind of computer: its number, some calls, and the refused calls, which Landlock
    does not look at: change of mode, owner, times and attributes of files, io_uring (it makes sockets), the memory,
    queues and keys that all programs of an account share, and other namespaces."""

    architecture: int
    socket: int
    clone: int
    prlimit: int
    refused: tuple[int, ...]


_NEW: Final = (425, 452, 463, 466)
_CLONE3: Final = 435
_CALLS: Final = {
    "x86_64": _Calls(
        0xC000003E,
        41,
        56,
        302,
        (
            *(90, 91, 268, 92, 93, 94, 260, 132, 235, 261, 280, 188, 189, 190, 197, 198, 199),
            *(29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71, 240, 241, 248, 249, 250, 272, 308),
            *_NEW,
        ),
    ),
    "aarch64": _Calls(
        0xC00000B7,
        198,
        220,
        261,
        (
            *(52, 53, 54, 55, 88, 5, 6, 7, 14, 15, 16),
            *(194, 195, 196, 190, 191, 192, 193, 186, 187, 188, 189, 180, 181, 217, 218, 219, 97, 268),
            *_NEW,
        ),
    ),
}


def abi() -> int:
    """Return this kernel's version of Landlock; 0 for none, or for a processor that is not in `_CALLS`."""
    if sys.platform != "linux" or platform.machine() not in _CALLS:
        return 0
    return max(0, _call(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def restrict_thread(box: Box, version: int) -> None:
    """Put this thread, and what it starts, into the box for good. `version`: that of `abi`. Raises OSError."""
    handled = sum(bits for since, bits in _RIGHTS_BY_ABI if since <= version)
    words = [handled]
    if version >= 4:
        words.append(0 if box.network else _TCP)
    if version >= 6:
        words.append(_OTHERS)
    rules = struct.pack(f"={len(words)}Q", *words)
    ruleset = _checked(_call(_CREATE, rules, ctypes.c_size_t(len(rules)), ctypes.c_uint32(0)))
    try:
        everything, cards = handled & ~_DEVICES, box.devices
        _allow(ruleset, readable(network=box.network, cards=bool(cards)), handled & (_READ | _EXECUTE))
        _allow(ruleset, _without(_real(box.read), _real(box.hidden)), handled & (_READ | _EXECUTE))
        _allow(ruleset, _without(_real(box.write), _real(box.hidden)), everything)
        _allow(ruleset, (*PLAIN_DEVICES, *cards), handled & (_READ | _WRITE_FILE | _IOCTL))
        libc = ctypes.CDLL(None, use_errno=True)
        _checked(libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        _checked(_call(_RESTRICT, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)
    _drop_capabilities(libc)
    program = _filter(_CALLS[platform.machine()], network=box.network)
    code = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: the number of instructions (8 bytes each), padded, and their address.
    packed = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(code))
    _checked(libc.prctl(_SET_SECCOMP, _FILTER, ctypes.c_char_p(packed), 0, 0))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """Take all capabilities from this thread, and from what it starts: root's modules, hostname, restart."""
    for number in range(_CAPABILITIES):
        libc.prctl(_DROP_FROM_BOUNDS, number, 0, 0, 0)  # refused to a thread without capabilities
    header, none = struct.pack("=Ii", _CAPABILITY_VERSION, 0), bytes(24)
    _checked(libc.capset(header, none))


def _allow(ruleset: int, paths: Sequence[str], rights: int) -> None:
    for path in paths:
        with suppress(OSError):  # it does not exist
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                wanted = rights if os.path.isdir(path) else rights & _FILE
                _call(
                    _ADD, ctypes.c_int(ruleset), ctypes.c_int(1), struct.pack("=Qi", wanted, place), ctypes.c_uint32(0)
                )
            finally:
                os.close(place)


def _without(roots: Sequence[str], hidden: Sequence[str]) -> list[str]:
    """The roots. One that holds a hidden directory is replaced by its other entries, except links, which could lead
    there. What is named below a hidden directory has its own root."""
    found: list[str] = []
    for root in roots:
        if any(f"{path}/".startswith(f"{root.rstrip('/')}/") and path != root for path in hidden):
            with suppress(OSError):
                inner = [os.path.join(root, name) for name in os.listdir(root)]
                found += _without([path for path in inner if path not in hidden and not os.path.islink(path)], hidden)
        else:
            found.append(root)
    return found


def _real(paths: Sequence[str]) -> list[str]:
    return [os.path.realpath(path) for path in paths]


def _filter(calls: _Calls, *, network: bool) -> bytes:
    """A filter (classic BPF) that answers EPERM to the refused calls, to new namespaces, to limits of other programs,
    to sockets, and to all calls of another kind of program. Sockets lead to services of this computer (a bus, a
    container engine) that do what a box must not; with `network` those of the internet are let through."""
    load, jump_equal, jump_greater, jump_set, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000 | _EPERM
    # Every test is followed by its own answer, so that jumps are short.
    code = [(load, 0, 0, 4), (jump_equal, 1, 0, calls.architecture), (answer, 0, 0, refuse), (load, 0, 0, 0)]
    code += [(jump_greater, 0, 1, 0x40000000), (answer, 0, 0, refuse)]
    for number in calls.refused:
        code += [(jump_equal, 0, 1, number), (answer, 0, 0, refuse)]
    # Its flags lie in memory, where a filter can't look; C libraries then use the older call.
    code += [(jump_equal, 0, 1, _CLONE3), (answer, 0, 0, 0x00050000 | _ENOSYS)]
    code += [(jump_equal, 0, 4, calls.clone), (load, 0, 0, 16), (jump_set, 0, 1, _NAMESPACES)]
    code += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]
    # A limit of processor time ends another program as a signal does; 0 is the caller itself.
    code += [(jump_equal, 0, 4, calls.prlimit), (load, 0, 0, 16), (jump_equal, 1, 0, 0)]
    code += [(answer, 0, 0, refuse), (answer, 0, 0, allow)]
    code += [(jump_equal, 1, 0, calls.socket), (answer, 0, 0, allow), (load, 0, 0, 16)]
    for family in (_INET, _INET6, _NETLINK) if network else ():
        code += [(jump_equal, 0, 1, family), (answer, 0, 0, allow)]
    code.append((answer, 0, 0, refuse))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _call(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))


def _checked(answer: int) -> int:
    if answer < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"Landlock: {os.strerror(number)}")
    return answer


def start(
    found: Found,
    box: Box,
    argv: Sequence[str],
    spawn: Callable[..., T],
    *,
    directory: str,
    status: int | None = None,
    tied: bool = True,
    **options: Any,
) -> T:
    """`spawn(argv, cwd=directory, **options)`, which is `subprocess.Popen` or takes the same options, in a box of the
    kind that was `found`; without one when the kind is `none`. `status`, `tied`: see `bubblewrap_words`. Raises what
    `spawn` raises, and OSError when the kernel refuses."""
    if found.kind == BoxKind.BWRAP:
        if shutil.which(argv[0], path=(options.get("env") or os.environ).get("PATH")) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])  # bubblewrap would say so later
        words = bubblewrap_words(found, box, directory, status, tied=tied)
        passed = (*options.pop("pass_fds", ()), *(() if status is None else (status,)))
        return spawn([*words, *argv], cwd="/", pass_fds=passed, **options)
    if found.kind == BoxKind.NONE:
        return spawn(argv, cwd=directory, **options)
    begun: list[T | Exception] = []

    def begin() -> None:
        try:
            restrict_thread(box, found.abi)
            begun.append(spawn(argv, cwd=directory, **options))
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
            begun.append(error)

    thread = threading.Thread(target=begin, name="box")
    thread.start()
    thread.join()
    if isinstance(begun[0], Exception):
        raise begun[0]
    return begun[0]


SETTINGS: Final = ("auto", "bwrap", "landlock", "off", "required")
"""The values of the setting `Sandbox`."""
TRY_S: Final = 10.0
_TRIAL: Final = 'cat "$0" >/dev/null 2>&1 && exit 3; test -r /etc/passwd'
"""Exits with 0 if the file outside is not readable and the system is there."""
_FORBIDDEN: Final = (
    ("kernel/apparmor_restrict_unprivileged_userns", "1", BoxAdvice.APPARMOR),
    ("kernel/unprivileged_userns_clone", "0", BoxAdvice.USERS),
    ("user/max_user_namespaces", "0", BoxAdvice.NAMESPACES),
)
"""Kernel settings, and the values that keep ordinary accounts from making namespaces."""


class NoBox(NotAvailable):
    """The settings ask for a box that this computer does not make."""

    code = "no_sandbox"


def checked_setting(setting: str) -> str:
    """Return the setting in lower case. Raises `InvalidRequest` if it is unknown."""
    if (known := setting.casefold()) not in SETTINGS:
        raise InvalidRequest(f"Sandbox must be one of {', '.join(SETTINGS)}, not {setting}.")
    return known


def probe(setting: str) -> Found:
    """Return the best box that `setting` allows and this computer makes; takes a few hundredths of a second. Raises
    `NoBox` when the setting requires a box and there is none."""
    setting = checked_setting(setting)
    if setting == "off":
        return Found(advice=BoxAdvice.SETTING)
    advice, found = "", Found()
    if setting != "landlock":
        found = _bubblewrap()
        advice = found.advice
    if found.kind == BoxKind.NONE and setting != "bwrap":
        found = _landlock(advice)
    if found.kind == BoxKind.NONE and setting != "auto":
        asked = "no sandbox" if setting == "required" else f"no sandbox of kind {setting}"
        hint = f" Try: {found.advice}" if found.advice else ""
        raise NoBox(f"This computer has {asked}, and the setting Sandbox is {setting}.{hint}")
    return found


def _bubblewrap() -> Found:
    program = shutil.which("bwrap")
    if program is None:
        return Found(advice=BoxAdvice.INSTALL)
    with suppress(OSError, subprocess.SubprocessError):
        said = subprocess.run([program, "--version"], capture_output=True, timeout=TRY_S, check=True).stdout
        numbers = re.search(rb"\d+(\.\d+)+", said)
        version = f"bubblewrap {numbers[0].decode() if numbers else ''}".strip()
        for is_final in (True, False):
            if _works(found := Found(BoxKind.BWRAP, version, program=program, is_final=is_final)):
                return found
    return Found(advice=_allowing())


def _allowing() -> str:
    """The command that lets bubblewrap make its namespaces."""
    for name, value, advice in _FORBIDDEN:
        with suppress(OSError):
            if Path("/proc/sys", name).read_text(encoding="ascii").strip() == value:
                return advice
    return BoxAdvice.TRY


def _landlock(advice: str) -> Found:
    """`advice`: how to get bubblewrap."""
    version = abi()
    found = Found(BoxKind.LANDLOCK, f"Landlock ABI {version}", advice, abi=version)
    return found if version and _works(found) else Found(advice=advice)


def _works(found: Found) -> bool:
    with tempfile.NamedTemporaryFile() as outside, suppress(OSError, subprocess.SubprocessError):
        argv, nothing = ["/bin/sh", "-c", _TRIAL, outside.name], subprocess.DEVNULL
        options: dict[str, Any] = {"stdin": nothing, "stdout": nothing, "stderr": nothing, "env": {"PATH": os.defpath}}
        with start(found, Box(), argv, subprocess.Popen, directory="/", **options) as trial:
            try:
                return trial.wait(TRY_S) == 0
            finally:
                trial.kill()
    return False
