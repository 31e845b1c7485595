"""The part of the system that every boxed program sees, read-only. Standard library only.

Of `/etc` only what programs need to find libraries, fonts and names: other files there hold secrets of the account
that runs us (a settings file with a password), and root's.
"""

import glob
import os
import sys
from pathlib import Path
from typing import Final

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
    """What a Python program of ours reads: this Python with its packages, the real one behind it, and our source."""
    found = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[2]))
    return tuple(path for path in dict.fromkeys(found) if path != "/usr")


def link_of(path: str) -> str:
    """Where a link leads, "" for what is none: `/bin` is a link to `usr/bin` on most systems."""
    try:
        return os.readlink(path)
    except OSError:
        return ""
