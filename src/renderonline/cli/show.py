"""How the command line prints: tables and lines for people, JSON for programs; text of others never as markup.

Progress is a bar on a terminal, plain lines elsewhere, nothing for programs.
"""

import contextlib
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TextIO

UNITS: Final = ("B", "KB", "MB", "GB", "TB")
STATES: Final = {
    "green": "succeeded",
    "cyan": "running busy",
    "red": "failed lost offline",
    "yellow": "canceled paused draining disabled",
}
COLORS: Final = {state: color for color, states in STATES.items() for state in states.split()}
BARS: Final = {
    "bytes": ("DownloadColumn", "TransferSpeedColumn"),
    "count": ("MofNCompleteColumn",),
    "share": ("TaskProgressColumn", "TimeElapsedColumn"),
}
Output = tuple[object, str | Callable[[], None]]
"""What a command answers: data for programs; a text, or what prints it, for people."""


def answer(output: Output, *, as_json: bool) -> None:
    """Print what a command answers."""
    data, shown = output
    if as_json:
        emit(data)
    elif isinstance(shown, str):
        say(shown)
    else:
        shown()


def replace_letters() -> None:
    """From now on a letter that the terminal or file does not have becomes `?`; else it would end the program."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def emit(data: object) -> None:
    """Print one JSON document; where not every letter can be written, with escapes for those beyond ASCII."""
    plain_letters = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(data, ensure_ascii=plain_letters, indent=2 if sys.stdout.isatty() else None), flush=True)


def say(text: str = "") -> None:
    """Print a line for people."""
    print(plain(text), flush=True)


def note(text: str) -> None:
    """Print a line that is not the command's result."""
    print(plain(text), file=sys.stderr, flush=True)


def plain(text: object) -> str:
    """Text of others without what would steer the terminal (escape sequences, carriage returns)."""
    return "".join(c for c in str(text) if c in "\n\t" or (c.isprintable() or c == " "))


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their columns; cells are text and never markup. States get their colour."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column.startswith(">")
        grid.add_column(column.removeprefix(">"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        cells = [plain("" if cell is None else cell) for cell in row]
        grid.add_row(*(Text(cell, style=COLORS.get(cell.partition(",")[0], "")) for cell in cells))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(grid)


def fields(data: Mapping[str, Any], names: Sequence[str]) -> None:
    """Print some fields of one thing, one a line."""
    width = max(len(name) for name in names)
    for name in names:
        value = data.get(name)
        if value not in (None, "", [], {}):
            say(f"{name.replace('_', ' '):<{width}}  {_text(value)}")


Step = Callable[..., None]
"""Called with what is done, what there is in all, and words about it if there are."""


@contextlib.contextmanager
def bar(label: str, kind: str, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Step]:
    """Shows how far something is: a bar of a kind of `BARS`; off a terminal a line for each text."""
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
                print(plain(f"{label}: {text}" if label else text), file=file, flush=True)

        yield line
        return
    from rich import console, progress

    words = (progress.TextColumn("{task.description}", markup=False), progress.BarColumn())
    columns = (*words, *(getattr(progress, name)() for name in BARS[kind]))
    with progress.Progress(*columns, console=console.Console(file=file), transient=stream is None) as shown:
        job = shown.add_task(plain(label), total=None)

        def update(done: float, total: float, text: str = "", /) -> None:
            described = ": ".join(part for part in (label, text) if part)
            shown.update(job, completed=done, total=total if total > 0 else None, description=plain(described))

        yield update


def sending(step: Step) -> Callable[[int, int], None]:
    """A `Progress` of an upload: its first call says what was there already."""
    there: list[int] = []

    def update(done: int, total: int) -> None:
        there.append(done) if not there else None
        step(done, total, f"{size(there[0])} were there already" if there[0] else "")

    return update


def size(number: float) -> str:
    """Bytes for people: 1.4 MB."""
    power = 0
    while number >= 1000 and power < len(UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.{min(power, 1)}f} {UNITS[power]}"


def when(text: str | None) -> str:
    """A moment of the API (ISO 8601, UTC) in the local time of who reads it."""
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def yes(holds: bool) -> str:  # noqa: FBT001
    """yes or no."""
    return "yes" if holds else "no"


def percent(fraction: float | None) -> str:
    """0.256 as 26 %."""
    return "" if fraction is None else f"{fraction * 100:.0f} %"


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_text(item)}" for name, item in value.items() if item not in (None, "", 0))
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return yes(value) if isinstance(value, bool) else str(value)
