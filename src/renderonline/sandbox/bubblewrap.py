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
    cards = system.cards() if box.devices else ()
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
    mounts = [("--ro-bind-try", path) for path in box.read] + [("--bind-try", path) for path in box.write]
    covering = [path for path in box.hidden if _below(path, (*box.read, *box.write)) and os.path.isdir(path)]
    hidden = [(None, path) for path in covering]
    for option, path in sorted([*mounts, *hidden], key=lambda mount: mount[1].count("/")):
        argv += ["--tmpfs", path] if option is None else [option, path, path]
    argv += ["--remount-ro", "/", "--chdir", directory]
    if status is not None:
        argv += ["--json-status-fd", str(status)]
    return [*argv, "--"]


def exit_code(code: int) -> int:
    """The program's exit code as `subprocess` tells it (negative: the signal), from bubblewrap's."""
    return 128 - code if 128 < code <= 128 + 64 else code


def _below(path: str, roots: Sequence[str]) -> bool:
    return any(path.startswith(f"{root.rstrip('/')}/") for root in roots)
