"""Progress as it is shown: a bar on a terminal, plain lines elsewhere, JSON lines for programs."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

from renderonline.cli import show
from renderonline.rnoclient.sdk import Task

Step = Callable[[int, int], None]
"""Called with what is done and what there is in all."""


@contextlib.contextmanager
def bytes_bar(label: str, *, quiet: bool = False) -> Iterator[Step]:
    """A bar for bytes; off a terminal nothing is printed (transfers are too quick to be worth lines)."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(show.plain(label), total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total if total > 0 else None)


@contextlib.contextmanager
def count_bar(label: str, *, quiet: bool = False) -> Iterator[Step]:
    """A bar for things that are counted."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(show.plain(label), total=None)
        yield lambda done, total: bar.update(job, completed=done, total=total)


@contextlib.contextmanager
def fraction_bar(label: str, *, quiet: bool = False) -> Iterator[Callable[[float, str], None]]:
    """A bar for something whose share (0 to 1) and present step are known; a line for each new step elsewhere."""
    if quiet:
        yield lambda fraction, step: None
        return
    if not sys.stderr.isatty():
        said: list[str] = []

        def line(fraction: float, step: str) -> None:
            if step and step not in said[-1:]:
                said.append(step)
                show.note(f"{label}: {step}")

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(show.plain(label), total=1.0)
        yield lambda fraction, step: bar.update(
            job, completed=fraction, description=show.plain(f"{label}: {step}" if step else label)
        )


@contextlib.contextmanager
def task_view(*, as_json: bool) -> Iterator[Callable[[Task], None]]:
    """Shows the states of one task as they come."""
    if as_json:
        yield lambda task: print(json.dumps(task), flush=True)
        return
    if not sys.stdout.isatty():
        last: list[tuple[object, ...]] = []

        def line(task: Task) -> None:
            now = (task["status"], task["frames_done"])
            if now not in last[-1:]:
                last.append(now)
                show.say(describe(task))

        yield line
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[frames]}"))
    with Progress(*columns, TimeElapsedColumn()) as bar:
        job = bar.add_task("", total=1.0, frames="")

        def update(task: Task) -> None:
            text = f"task {task['task_id']} {task['status']}"
            bar.update(job, description=text, completed=task["progress"] or 0.0, frames=_frames(task))

        yield update


def describe(task: Task) -> str:
    """One line about a task."""
    text = f"task {task['task_id']} {task['status']}"
    frames = _frames(task)
    text += f", {frames}" if frames else ""
    return f"{text}: {task['reason']}" if task["reason"] else text


def _frames(task: Task) -> str:
    return f"{task['frames_done']} of {task['frames_total']} frames" if task["frames_total"] else ""
