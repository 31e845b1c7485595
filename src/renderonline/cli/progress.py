"""Progress as it is shown: a bar on a terminal, plain lines elsewhere, nothing for programs."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Final, Protocol, TextIO

from renderonline.cli import show

COLUMNS: Final = {
    "bytes": ("DownloadColumn", "TransferSpeedColumn"),
    "count": ("MofNCompleteColumn",),
    "share": ("TaskProgressColumn", "TimeElapsedColumn"),
}


class Step(Protocol):
    """Called with what is done, what there is in all, and words about it."""

    def __call__(self, done: float, total: float, text: str = "", /) -> None: ...


@contextlib.contextmanager
def bar(label: str, kind: str, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Step]:
    """Shows how far something is: a bar of a kind of `COLUMNS`; off a terminal a line for each text."""
    file = stream or sys.stderr
    if quiet:
        yield lambda done, total, text="", /: None
        return
    if not file.isatty():
        said = ""

        def line(done: float, total: float, text: str = "", /) -> None:
            nonlocal said
            if text not in ("", said):
                said = text
                print(show.plain(f"{label}: {text}" if label else text), file=file, flush=True)

        yield line
        return
    from rich import console, progress

    words = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn())
    columns = (*words, *(getattr(progress, name)() for name in COLUMNS[kind]))
    with progress.Progress(*columns, console=console.Console(file=file), transient=stream is None) as shown:
        job = shown.add_task(show.plain(label), total=None)

        def update(done: float, total: float, text: str = "", /) -> None:
            described = ": ".join(part for part in (label, text) if part)
            shown.update(job, completed=done, total=total if total > 0 else None, description=show.plain(described))

        yield update


def sending(step: Step) -> Callable[[int, int], None]:
    """A `Progress` of an upload: its first call says what was there already."""
    there: list[int] = []

    def update(done: int, total: int) -> None:
        there.append(done) if not there else None
        step(done, total, f"{show.size(there[0])} were there already" if there[0] else "")

    return update
