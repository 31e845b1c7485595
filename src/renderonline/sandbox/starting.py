"""Starting a program in a box. Standard library only: the spawner uses it."""

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from typing import Any

from renderonline.farm.boxes import BoxKind
from renderonline.sandbox import bubblewrap, landlock
from renderonline.sandbox.box import Box, Found


def start(
    found: Found,
    box: Box,
    argv: Sequence[str],
    *,
    directory: str,
    status: int | None = None,
    tied: bool = True,
    **options: Any,
) -> "subprocess.Popen[bytes]":
    """`subprocess.Popen(argv, cwd=directory, **options)` in a box of the kind that was `found`; without one when the
    kind is `none`. `status`, `tied`: see `bubblewrap.words`. Raises what `Popen` raises, and OSError when the kernel
    refuses."""
    if found.kind == BoxKind.BWRAP:
        if shutil.which(argv[0], path=(options.get("env") or os.environ).get("PATH")) is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])  # bubblewrap would say so later
        words = bubblewrap.words(found, box, directory, status, tied=tied)
        passed = (*options.pop("pass_fds", ()), *(() if status is None else (status,)))
        return subprocess.Popen([*words, *argv], cwd="/", pass_fds=passed, **options)
    if found.kind == BoxKind.NONE:
        return subprocess.Popen(argv, cwd=directory, **options)
    begun: list[subprocess.Popen[bytes] | Exception] = []

    def begin() -> None:
        try:
            landlock.restrict_thread(box, found.abi)
            begun.append(subprocess.Popen(argv, cwd=directory, **options))
        except Exception as error:  # noqa: BLE001 - raised below, in the caller's thread
            begun.append(error)

    thread = threading.Thread(target=begin, name="box")
    thread.start()
    thread.join()
    if isinstance(begun[0], Exception):
        raise begun[0]
    return begun[0]
