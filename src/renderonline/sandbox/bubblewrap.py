"""Boxes with bubblewrap: namespaces in which nothing else exists. Standard library only.

The program runs as a grandchild of bubblewrap, below a process 1 of its own. bubblewrap ends with the program's exit
code, or 128 + n when signal n ended it; everything below it dies with it.
"""

import os
from collections.abc import Sequence

from renderonline.sandbox import system
from renderonline.sandbox.box import Box, Found


def words(found: Found, box: Box, directory: str, status: int | None = None, *, tied: bool = True) -> list[str]:
    """The words in front of a command line that run it in the box, in `directory`. `status`: a descriptor to which
    bubblewrap writes JSON, a line each: the process 1 (`child-pid`), then, only when the command could be run, how it
    ended (`exit-code`). `tied`: it dies with the thread that starts it, in a session of its own; else whoever starts it
    kills its process group.

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
    for path in system.readable(network=box.network, cards=bool(cards)):
        link = system.link_of(path) if path in system.PROGRAMS else ""
        argv += ["--symlink", link, path] if link else ["--ro-bind-try", path, path]
    argv += ["--proc", "/proc", "--dev", "/dev"]
    for path in system.KERNEL:
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
    """The program's exit code as `subprocess` tells it (negative: the signal), from bubblewrap's."""
    return 128 - code if 128 < code <= 128 + 64 else code


def _mounts(box: Box) -> list[str]:
    mounts = [("--ro-bind-try", path, path) for path in box.read] + [("--bind-try", path, path) for path in box.write]
    covering = _places(box.hidden, (*box.read, *box.write))
    every = sorted([*mounts, *(("--tmpfs", path) for path in covering)], key=lambda mount: mount[1].count("/"))
    # What is written into these would be memory that no limit counts.
    every += [("--remount-ro", path) for path in ("/", "/dev", *covering)]
    return [word for mount in every for word in mount]


def _places(hidden: Sequence[str], roots: Sequence[str]) -> list[str]:
    """Where hidden directories would show in the box: below each root that really holds them, by whatever name."""
    found: dict[str, None] = {}
    for path in filter(os.path.isdir, hidden):
        for root in roots:
            real, holder = os.path.realpath(path), os.path.realpath(root).rstrip("/")
            if real.startswith(f"{holder}/"):
                found[root.rstrip("/") + real[len(holder) :]] = None
    return list(found)
