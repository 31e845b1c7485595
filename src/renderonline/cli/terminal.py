"""What all commands share: how they are declared and interrupted, which farm they call, and how they print.

Output is text for people or JSON for programs (`--json`). Text from the farm is never printed as markup, and characters
that would control the terminal are removed. The farm and the login come from `--url`, then the environment, then
`client.json`.
"""

import contextlib
import functools
import inspect
import io
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Final, Self, TextIO, TypeVar

import typer

from renderonline.farm.errors import InvalidRequest, NotAuthenticated, NotFound
from renderonline.rnoclient.sdk import Client, Item, Login
from renderonline.rnoclient.sdk.client import Admin
from renderonline.sandbox.privacy import private_read, write_private
from renderonline.storage.disk import config_directory

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
"""What a command returns: data for programs; for people a text, or a function that prints it."""
Columns = Mapping[str, str | Callable[[Any], object]]
"""Headers of a table (`>` in front: aligned right) -> the key of a cell in its row, or a function of the row."""


def print_answer(output: Output, *, as_json: bool) -> None:
    """Print what a command returns."""
    data, shown = output
    if as_json:
        emit(data)
    elif isinstance(shown, str):
        say(shown)
    else:
        shown()


def replace_letters() -> None:
    """Print `?` from now on for letters that the terminal's encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def emit(data: object) -> None:
    """Print one JSON document; with escapes for letters beyond ASCII unless the encoding is UTF-8."""
    plain_letters = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    print(json.dumps(data, ensure_ascii=plain_letters, indent=2 if sys.stdout.isatty() else None), flush=True)


def say(text: str = "") -> None:
    """Print a line for people."""
    print(plain(text), flush=True)


def note(text: str) -> None:
    """Print a line that is not part of the command's result, on standard error."""
    print(plain(text), file=sys.stderr, flush=True)


def plain(text: object) -> str:
    """Return a text without characters that control the terminal (escape sequences, carriage returns)."""
    return "".join(c for c in str(text) if c in "\n\t" or (c.isprintable() or c == " "))


def listing(columns: Columns, rows: Sequence[Mapping[str, Any]], empty: str = "") -> Output:
    """Return rows for programs, and for people their table, or the text `empty` when there are none."""
    return rows, empty if empty and not rows else lambda: table(columns, rows)


def table(columns: Columns, rows: Iterable[Any]) -> None:
    """Print a table; cells are text and never markup. States get their colour."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column.startswith(">")
        grid.add_column(column.removeprefix(">"), justify="right" if number else "left", overflow="fold")
    for row in rows:
        values = [row.get(field) if isinstance(field, str) else field(row) for field in columns.values()]
        cells = [plain("" if value is None else value) for value in values]
        grid.add_row(*(Text(cell, style=COLORS.get(cell.partition(",")[0], "")) for cell in cells))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(grid)


def print_fields(data: Mapping[str, Any], names: Sequence[str]) -> None:
    """Print the fields `names` of one item that are not empty, each on its own line."""
    width = max(len(name) for name in names)
    for name in names:
        value = data.get(name)
        if value not in (None, "", [], {}):
            say(f"{name.replace('_', ' '):<{width}}  {_text(value)}")


Step = Callable[..., None]
"""Called with the amount done, the total, and optionally a text about it."""


@contextlib.contextmanager
def bar(label: str, kind: str, *, quiet: bool = False, stream: TextIO | None = None) -> Iterator[Step]:
    """Show progress: a bar of a kind of `BARS` on a terminal, elsewhere a line for each new text."""
    file = stream or sys.stderr
    if quiet:
        yield lambda done, total, text="", /: None
        return
    if not file.isatty():
        latest = ""

        def line(done: float, total: float, text: str = "", /) -> None:
            nonlocal latest
            if text not in ("", latest):
                latest = text
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
    """Return a `Progress` for an upload; its first call has the bytes that the farm had already."""
    before: int | None = None

    def update(done: int, total: int) -> None:
        nonlocal before
        before = done if before is None else before
        step(done, total, f"{size(before)} were there already" if before else "")

    return update


def size(number: float) -> str:
    """Return a number of bytes for people, such as 1.4 MB."""
    power = 0
    while number >= 1000 and power < len(UNITS) - 1:
        number, power = number / 1000, power + 1
    return f"{number:.{min(power, 1)}f} {UNITS[power]}"


def when(text: str | None) -> str:
    """Return a time of the API (ISO 8601, UTC) in local time."""
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def yes(holds: bool) -> str:  # noqa: FBT001
    """Return yes or no."""
    return "yes" if holds else "no"


def percent(fraction: float | None) -> str:
    """Return 0.256 as 26 %."""
    return "" if fraction is None else f"{fraction * 100:.0f} %"


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={_text(item)}" for name, item in value.items() if item not in (None, "", 0))
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return yes(value) if isinstance(value, bool) else str(value)


LOGIN_FIELDS: Final = tuple(field.name for field in fields(Login))


def config_file() -> Path:
    """Return the file that holds the login, readable by its owner only."""
    return config_directory() / "client.json"


def saved() -> Login | None:
    """Return the login of `renderonline login`, or None. Raises `InvalidRequest` if others may read its file."""
    path = config_file()
    try:
        found = json.loads(private_read(path))
        return Login(**{name: found[name] for name in LOGIN_FIELDS if found.get(name)})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, AttributeError):
        raise InvalidRequest(f"{path} can't be read; replace it with `renderonline login`.") from None


def save(login: Login) -> Path:
    """Save a login for the next commands; return its file."""
    path = config_file()
    write_private(path, json.dumps(_filled(login), indent=2) + "\n")
    return path


def current(url: str | None) -> Login:
    """Return the login to use; `url` (option `--url`) and the environment `RENDERONLINE_*` override the saved login.

    A saved e-mail and token are sent to the address that they were saved for and to no other.
    """
    login = saved()
    given = {name: value for name in LOGIN_FIELDS if (value := os.environ.get(f"RENDERONLINE_{name.upper()}"))}
    wanted = url or given.get("url") or (login.url if login else None)
    if wanted is None:
        raise NotAuthenticated(
            "Which farm? Type `renderonline login` to name one, or `renderonline up` to start one here."
        )
    usable = _filled(login) if login is not None and _addresses(wanted) <= _addresses(login.url) else {}
    login = Login(**{**usable, **given, "url": wanted})
    if not login.email or not login.token:
        raise NotAuthenticated(f"There is no login for {wanted}. Type `renderonline login --url {wanted}`.")
    return login


def connect(url: str | None) -> Client:
    """Return a client with the current login."""
    return Client(current(url), patience_s=2.0)


def _addresses(urls: str) -> set[str]:
    return {url.strip().rstrip("/").casefold() for url in urls.split(",")}


def _filled(login: Login) -> dict[str, str]:
    return {name: value for name, value in asdict(login).items() if value}


F = TypeVar("F", bound=Callable[..., Any])


def option(metavar: str, help: str | None = None, *names: str, default: object = None, **limits: Any) -> Any:  # noqa: A002
    """Declare a parameter that is an option with a value."""
    return typer.Option(default, *names, help=help, metavar=metavar, **limits)


def flag(name: str, help: str, *names: str) -> Any:  # noqa: A002
    """Declare a parameter that is an option without a value."""
    return typer.Option(False, name, *names, help=help)


def argument(metavar: str, help: str | None = None, **limits: Any) -> Any:  # noqa: A002
    """Declare a positional parameter; it is required unless there is a `default`."""
    return typer.Argument(metavar=metavar, help=help, **limits)


JSON = flag("--json", "Print JSON for programs instead of text for people.")
URL = option("URL", "RenderAPI's address, when it is not the one of `renderonline login`.", "--url")
TASK = argument("TASK", "The task's number.", min=1)
TASKS = argument("TASK...", "The tasks' numbers.", min=1)
YES = flag("--yes", "Don't ask.", "-y")


def group(summary: str) -> typer.Typer:
    """Return a command that has subcommands."""
    return typer.Typer(
        help=summary,
        rich_markup_mode=None,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )


def command(
    within: typer.Typer, *examples: str, name: str | None = None, summary: str | None = None
) -> Callable[[F], F]:
    """Make a function a command with `--json`, called `name` or like the first word of the function's name. The
    docstring (or `summary`) and the examples are its help.

    A parameter `client` is a client for the farm of the login; `--url` names another farm. `json` and `url` are passed
    to functions that accept them, and come last in the help. A returned `Output` is printed; an int is the exit code.
    """

    def register(function: F) -> F:
        parameters = dict(inspect.signature(function, eval_str=True).parameters)
        takes = set(parameters)
        added: list[tuple[str, Any, Any]] = [("json", bool, JSON)]
        if parameters.pop("client", None) or ("url" in takes and parameters["url"].default is URL):
            added.append(("url", str | None, URL))
        for key, kind, default in added:
            parameters.pop(key, None)
            parameters[key] = inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=default)

        @functools.wraps(function)
        def run(*, json: bool, url: str | None = None, **values: Any) -> int | None:
            values |= {key: value for key, value in (("json", json), ("url", url)) if key in takes}
            with contextlib.ExitStack() as stack:
                if "client" in takes:
                    values["client"] = stack.enter_context(connect(url))
                answer = function(**values)
                if isinstance(answer, tuple):
                    print_answer(answer, as_json=json)
            return answer if isinstance(answer, int) else None

        run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        run.__annotations__ = {key: parameter.annotation for key, parameter in parameters.items()}
        text = "\n\n".join([summary or inspect.getdoc(function) or "", "\b\n" + "\n".join(examples)])
        within.command(name or function.__name__.partition("_")[0], help=text)(run)
        return function

    return register


def confirm(question: str, *, agreed: bool) -> None:
    """Ask for a confirmation unless it is `agreed`; any answer but yes ends the command."""
    if not agreed:
        typer.confirm(question, abort=True)


def pairs(option: str, words: list[str], example: str) -> dict[str, str]:
    """Return the `NAME=VALUE` words of an option as a dictionary."""
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise InvalidRequest(f"{option} {word} must be written like {option} {example} .")
        if name in found:
            raise InvalidRequest(f"{option} {name} is given twice.")
        found[name] = value
    return found


def given(**values: object) -> dict[str, object]:
    """Return the values that are not None."""
    return {name: value for name, value in values.items() if value is not None}


_LISTS: Final = {
    "user": (Admin.users, "email"),
    "subscription": (Admin.subscriptions, "name"),
    "engine": (Admin.engines, "name"),
    "machine": (Admin.machines, "name"),
}
"""Kinds of items that commands name by number or name: how to list them, and the field of their name."""


def find(client: Client, kind: str, wanted: str) -> tuple[int, Item]:
    """Return the number and the item of a kind whose number or name, in any letter case, is `wanted`. Raises `NotFound`
    if there is none, or more than one of that name."""
    list_all, name = _LISTS[kind]
    key = f"{kind}_id"
    found = [item for item in list_all(client.admin) if wanted.casefold() in (str(item[key]), item[name].casefold())]
    if len(found) == 1:
        return int(found[0][key]), found[0]
    numbers = ", ".join(str(item[key]) for item in found)
    several = f"Several of them are called {wanted}; name one by its number ({numbers})."
    raise NotFound(several if found else f"There is no {kind} {wanted}. See `renderonline {kind} list`.")


INTERRUPTED: Final = 130
"""The exit code of a program that Ctrl-C ended."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM; `signal` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.signal = number


class Interrupts:
    """SIGINT, SIGTERM and SIGHUP as one exception, raised once and never inside `held()`."""

    def __init__(self) -> None:
        self._depth = 0
        self._waiting: int | None = None
        self._raised = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        self._before = {number: signal.signal(number, self._take) for number in numbers}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold interrupts back; one that came is raised right after the block."""
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._waiting is not None:
                self._take(self._waiting, None)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self._depth:
            self._waiting = number
        elif not self._raised:  # a second Ctrl-C must not stop the cleaning up
            self._raised = True
            raise Interrupted(number)
